"""A tiny Gemma 3 and PaliGemma, whose attention is not causal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedConfig,
)

from support.families.family import END, IMAGE, START, Picture, Prompt, TinyFamily
from support.families.llava import text

SIDE, PATCH = 16, 4
KINDS = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]


def tower() -> dict[str, Any]:
    """16 patches."""
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
        "projection_dim": 64,
        "vision_use_head": False,
    }


class TinyGemma3(TinyFamily):
    architecture = Gemma3ForConditionalGeneration

    def config(self) -> PreTrainedConfig:
        # The window ends inside a picture.
        changes = {"model_type": "gemma3_text", "sliding_window": 10, "layer_types": KINDS, "query_pre_attn_scalar": 16}
        fields = text().to_dict() | changes
        fields.pop("rope_parameters")
        return Gemma3Config(
            vision_config=tower(),
            text_config=fields,
            image_token_index=IMAGE,
            boi_token_index=START,
            eoi_token_index=END,
            mm_tokens_per_image=16,
            tie_word_embeddings=False,
        )

    def picture(self, size: Any, generator: torch.Generator) -> Picture:
        pixels = torch.randn(1, 3, SIDE, SIDE, generator=generator)
        return Picture([START] + [IMAGE] * 16 + [END], [-1] + [0] * 16 + [-1], {"pixel_values": pixels})

    def extras(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": (ids == IMAGE).int()}

    def rotary(self, model: Any, prompt: Prompt) -> list[tuple[Tensor, Tensor]]:
        places, tables = torch.arange(len(prompt.ids))[None], []
        for kind in KINDS:
            cos, sin = model.model.language_model.rotary_emb(torch.zeros(1), places, kind)
            tables.append((cos[0], sin[0]))
        return tables

    def blocks(self, prompt: Prompt, passes: Sequence[int]) -> Tensor:
        return prompt.images


class TinyPaliGemma(TinyFamily):
    architecture = PaliGemmaForConditionalGeneration

    def config(self) -> PreTrainedConfig:
        return PaliGemmaConfig(
            vision_config=tower(),
            text_config=text(GemmaConfig).to_dict(),
            image_token_index=IMAGE,
            projection_dim=64,
            tie_word_embeddings=False,
        )

    def picture(self, size: Any, generator: torch.Generator) -> Picture:
        return Picture([IMAGE] * 16, [0] * 16, {"pixel_values": torch.randn(1, 3, SIDE, SIDE, generator=generator)})

    def extras(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": torch.zeros_like(ids)}

    def positions(self, model: Any, prompt: Prompt) -> Tensor:
        return torch.arange(1, len(prompt.ids) + 1)[None]

    def blocks(self, prompt: Prompt, passes: Sequence[int]) -> Tensor:
        # The prompt of the first turn.
        return torch.where(torch.arange(len(prompt.ids)) < passes[0], 0, -1)
