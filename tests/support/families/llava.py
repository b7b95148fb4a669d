"""A tiny LLaVA 1.5, LLaVA-NeXT and LLaVA-OneVision."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from support.families.family import IMAGE, LAYERS, PAD, VIDEO, VOCABULARY, Picture, TinyFamily

SIDE, PATCH = 16, 4
# Tokens by height and width in pixels: a small copy, then rows with a newline each, without what was padded.
_TILED = {(32, 16): 16 + 8 * 5, (16, 24): 16 + 4 * 7}


def tower() -> CLIPVisionConfig:
    """16 patches, and a class token."""
    return CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=SIDE,
        patch_size=PATCH,
    )


def text(kind: type = LlamaConfig, **changes: Any) -> Any:
    fields = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return kind(**fields | changes)


class TinyLlava(TinyFamily):
    architecture = LlavaForConditionalGeneration

    def config(self) -> PreTrainedConfig:
        return LlavaConfig(vision_config=tower(), text_config=text(), image_token_index=IMAGE, vision_feature_layer=-1)

    def picture(self, size: Any, generator: torch.Generator) -> Picture:
        return Picture([IMAGE] * 16, [0] * 16, {"pixel_values": torch.randn(1, 3, SIDE, SIDE, generator=generator)})


class TinyLlavaNext(TinyFamily):
    architecture = LlavaNextForConditionalGeneration
    sizes = ((32, 16), (16, 24))

    def config(self) -> PreTrainedConfig:
        return LlavaNextConfig(
            vision_config=tower(),
            text_config=text(),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
            image_grid_pinpoints=[[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]],
        )

    def picture(self, size: Any, generator: torch.Generator) -> Picture:
        count = _TILED[size]
        pixels = torch.randn(1, 3, 3, SIDE, SIDE, generator=generator)
        return Picture([IMAGE] * count, [0] * count, {"pixel_values": pixels, "image_sizes": torch.tensor([size])})


class TinyLlavaOnevision(TinyFamily):
    architecture = LlavaOnevisionForConditionalGeneration
    sizes = ((32, 16), (16, 24))

    def config(self) -> PreTrainedConfig:
        vision = SiglipVisionConfig(
            **tower().to_diff_dict() | {"model_type": "siglip_vision_model"}, vision_use_head=False
        )
        return LlavaOnevisionConfig(
            vision_config=vision,
            text_config=text(Qwen2Config),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_feature_layer=-1,
            image_grid_pinpoints=[[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]],
        )

    def picture(self, size: Any, generator: torch.Generator) -> Picture:
        count = _TILED[size]
        pixels = torch.randn(1, 3, 3, SIDE, SIDE, generator=generator)
        return Picture([IMAGE] * count, [0] * count, {"pixel_values": pixels, "image_sizes": torch.tensor([size])})

    def video(self, generator: torch.Generator) -> Picture:
        # Three frames, each pooled to 4 tokens, and a newline.
        pixels = torch.randn(1, 3, 3, SIDE, SIDE, generator=generator)
        return Picture([VIDEO] * 13, [0] * 4 + [1] * 4 + [2] * 5, {"pixel_values_videos": pixels})
