"""The reference VLM: a LLaVA of 9.5M parameters, stock layout (CLIP tower, MLP projector, Llama decoder)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, GenerationConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from quota_lab.reference import tokenizer
from quota_lab.reference.labels import PATCH
from quota_lab.reference.pictures import PICTURE


def build_config() -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=PICTURE,
        patch_size=PATCH,
        projection_dim=192,
    )
    text = LlamaConfig(
        vocab_size=tokenizer.VOCABULARY,
        hidden_size=256,
        intermediate_size=576,
        num_hidden_layers=10,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.BOS,
        eos_token_id=tokenizer.EOS,
        pad_token_id=tokenizer.PAD,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.IMAGE,
        image_seq_length=(PICTURE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def build_model() -> LlavaForConditionalGeneration:
    """The untrained model in float32; seed torch before for a reproducible start.

    - Position embeddings of the patches start as sines and cosines of row and column. From random ones the tower
      learns rows, which backgrounds give away, and hardly any columns.
    - Word embeddings start with unit variance, the output layer as a small copy of them, and the branches of the
      decoder's residual stream at zero: the words stay readable in it, so that a question's word and a visual token
      that was pulled towards the same word match from the start.
    """
    model: Any = LlavaForConditionalGeneration(build_config())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.BOS, eos_token_id=tokenizer.EOS, pad_token_id=tokenizer.PAD, max_new_tokens=128
    )
    position = model.model.vision_tower.embeddings.position_embedding.weight
    words = model.get_input_embeddings().weight
    with torch.no_grad():
        position[1:] = positions(PICTURE // PATCH, position.shape[1])
        words.normal_()
        model.lm_head.weight.copy_(words * words.shape[1] ** -0.5)
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


def positions(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column at geometric frequencies, [side * side, width], at half amplitude."""
    place = torch.arange(side).float()
    angle = place[:, None] * torch.logspace(0, -2, width // 4)
    wave = torch.cat((angle.sin(), angle.cos()), 1)
    rows, columns = wave[:, None].expand(-1, side, -1), wave[None].expand(side, -1, -1)
    return 0.5 * torch.cat((rows, columns), -1).reshape(side * side, width)
