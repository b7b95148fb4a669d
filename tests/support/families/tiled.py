"""A tiny InternVL 3, Idefics 3 and SmolVLM: pictures of tiles, which are all of one size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedConfig,
    Qwen2Config,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from support.families.family import END, IMAGE, NEWLINE, START, WORDS, Picture, TinyFamily
from support.families.llava import text

SIDE, PATCH, HALF = 16, 2, 2
TOKENS = (SIDE // PATCH // HALF) ** 2


class TinyInternVL(TinyFamily):
    architecture = InternVLForConditionalGeneration
    # Tiles.
    sizes = (1, 3)

    def config(self) -> PreTrainedConfig:
        vision = {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [SIDE, SIDE],
            "patch_size": [PATCH, PATCH],
        }
        return InternVLConfig(
            vision_config=vision,
            text_config=text(Qwen2Config).to_dict(),
            image_token_id=IMAGE,
            downsample_ratio=0.5,
            tie_word_embeddings=False,
        )

    def picture(self, size: int, generator: torch.Generator) -> Picture:
        pixels = torch.randn(size, 3, SIDE, SIDE, generator=generator)
        count = size * TOKENS
        return Picture([START] + [IMAGE] * count + [END], [-1] + [0] * count + [-1], {"pixel_values": pixels})

    def video(self, generator: torch.Generator) -> Picture:
        # Two frames, each named in words.
        frames = torch.randn(2, 3, SIDE, SIDE, generator=generator)
        ids, images = [], []
        for frame in range(2):
            ids += [WORDS[frame], START] + [IMAGE] * TOKENS + [END, NEWLINE]
            images += [-1, -1] + [frame] * TOKENS + [-1, -1]
        return Picture(ids, images, {"pixel_values": frames})


class TinyIdefics3(TinyFamily):
    architecture: type = Idefics3ForConditionalGeneration
    configuration: Any = Idefics3Config
    # Tiles, the small copy of the whole included.
    sizes = (1, 3)

    def config(self) -> PreTrainedConfig:
        vision = {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": PATCH,
        }
        fields = text().to_dict()
        return self.configuration(
            vision_config=vision, text_config=fields, image_token_id=IMAGE, scale_factor=HALF, pad_token_id=0
        )

    def picture(self, size: int, generator: torch.Generator) -> Picture:
        pixels = torch.randn(1, size, 3, SIDE, SIDE, generator=generator)
        seen = torch.ones(1, size, SIDE, SIDE, dtype=torch.long)
        # The lower rows of the first tile are padding.
        seen[:, 0, SIDE - PATCH :] = 0
        ids, images = [], []
        for tile in range(size):
            ids += [START, WORDS[tile]] + [IMAGE] * TOKENS
            images += [-1, -1] + [tile] * TOKENS
        return Picture([*ids, END], [*images, -1], {"pixel_values": pixels, "pixel_attention_mask": seen})

    def collate(self, visions: Sequence[Sequence[Mapping[str, Tensor]]]) -> dict[str, Tensor]:
        """A row of tiles for each sample, those of shorter ones filled up with zeros."""
        names = dict.fromkeys(name for sample in visions for vision in sample for name in vision)
        most = max(sum(vision["pixel_values"].shape[1] for vision in sample) for sample in visions)
        batch = {name: [] for name in names}
        for sample in visions:
            for name in names:
                tiles = torch.cat([vision[name] for vision in sample], dim=1)
                empty = tiles.new_zeros(1, most - tiles.shape[1], *tiles.shape[2:])
                batch[name].append(torch.cat([tiles, empty], dim=1))
        return {name: torch.cat(rows) for name, rows in batch.items()}


class TinySmolVLM(TinyIdefics3):
    architecture = SmolVLMForConditionalGeneration
    configuration = SmolVLMConfig

    def video(self, generator: torch.Generator) -> Picture:
        return self.picture(2, generator)
