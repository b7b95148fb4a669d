"""Tiny parts made from configurations, and photographs of one colour each: nothing here is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from quota_lab.testbeds.vlm.architecture import END, START, UNUSED, assemble, with_image_token
from quota_lab.testbeds.vlm.network import Network
from quota_lab.testbeds.vlm.words import COLORS, HORIZONTAL, KINDS, SIGNS, VERTICAL

LAYER = 2
RANK = 4


def make_photos(folder: Path, each: int = 2) -> Path:
    """`each` photographs of every folder of every kind."""
    for number, name in enumerate(name for folders in KINDS.values() for name in folders):
        (folder / name).mkdir(parents=True)
        for index in range(each):
            color = (number * 9 % 256, number * 40 % 256, index * 100 % 256)
            Image.new("RGB", (32, 32), color).save(folder / name / f"{index}.jpg")
    return folder


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with the special tokens that SmolLM2 has, before the image token is made of one of them."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>", START, END, UNUSED],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([f" {word}" for word in (*KINDS, *COLORS, *SIGNS, *VERTICAL, *HORIZONTAL)] * 9, trainer)
    return with_image_token(PreTrainedTokenizerFast(tokenizer_object=bpe))


def make_model(seed: int = 0) -> tuple[Any, PreTrainedTokenizerFast]:
    """A LLaVA of a tower of three blocks and a decoder of two layers."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    tower = Dinov2Model(
        Dinov2Config(
            hidden_size=32, mlp_ratio=2, num_hidden_layers=3, num_attention_heads=2, image_size=70, patch_size=14
        )
    )
    decoder = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=1024,
            bos_token_id=1, eos_token_id=2, pad_token_id=2, tie_word_embeddings=True, rms_norm_eps=1e-5,
        )
    )  # fmt: skip
    return assemble(tower, decoder, tokenizer, LAYER), tokenizer


def make_network(seed: int = 0) -> tuple[Network, PreTrainedTokenizerFast]:
    model, tokenizer = make_model(seed)
    return Network(model, tokenizer, RANK), tokenizer
