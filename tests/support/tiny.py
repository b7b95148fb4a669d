"""Tiny random LLaVA models and prompts for them, made from configurations alone.

An image is 16 visual tokens (32 px, patches of 8 px, class token dropped). Weights are drawn so that every layer
matters and attention is far from uniform; with the usual 0.02 all tokens would look alike to a scorer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

PAD, IMAGE, FIRST_WORD = 0, 3, 6
IMAGE_SIZE, PATCH, VOCABULARY = 32, 8, 96
TOKENS_PER_IMAGE = (IMAGE_SIZE // PATCH) ** 2


def tiny_config(layers: int = 5, heads: int = 2, kv_heads: int = 1) -> LlavaConfig:
    """Hidden size 128 (tower 64), heads of 64 channels in the decoder."""
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        max_position_embeddings=512,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=TOKENS_PER_IMAGE,
        vision_feature_layer=-1,
    )


def tiny_llava(
    implementation: str = "sdpa", seed: int = 0, layers: int = 5, heads: int = 2, kv_heads: int = 1
) -> LlavaForConditionalGeneration:
    """A random float32 model in evaluation mode, always the same for the same arguments."""
    config = tiny_config(layers, heads, kv_heads)
    config._attn_implementation = implementation
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config).eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                # Queries and keys a little larger, for attention with peaks.
                gain = 1.5 if "q_proj" in name or "k_proj" in name else 1.0
                parameter.normal_(0, 1.0 if "embed" in name else gain * parameter.shape[1] ** -0.5)
            elif parameter.ndim == 4:
                parameter.normal_(0, 0.1)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return model


def tiny_prompt(images: int = 1, question: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(input_ids [L], pixel_values [images, 3, 32, 32]): two words, the images one after another, a question."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(FIRST_WORD, VOCABULARY, (2 + question,), generator=generator)
    ids = torch.cat([words[:2], torch.full((images * TOKENS_PER_IMAGE,), IMAGE), words[2:]])
    return ids, torch.randn(images, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)


def tiny_batch(prompts: Sequence[tuple[Tensor, Tensor]], side: str = "left") -> dict[str, Tensor]:
    """The model's arguments for several prompts, padded on one side."""
    length = max(len(ids) for ids, _ in prompts)
    input_ids = torch.full((len(prompts), length), PAD)
    for row, (ids, _) in zip(input_ids, prompts, strict=True):
        row[length - len(ids) :] = ids if side == "left" else row[length - len(ids) :]
        if side == "right":
            row[: len(ids)] = ids
    pixels = [pixels for _, pixels in prompts if len(pixels)]
    batch = {"input_ids": input_ids, "attention_mask": (input_ids != PAD).long()}
    return batch | ({"pixel_values": torch.cat(pixels)} if pixels else {})
