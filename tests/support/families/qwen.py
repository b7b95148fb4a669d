"""A tiny Qwen2-VL, Qwen2.5-VL and Qwen3-VL.

Their processors need torchvision, so patches and grids are written here: a picture of h x w patches has a grid
(1, h, w) and a token for each 2 x 2 of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from support.families.family import (
    END,
    IMAGE,
    LAYERS,
    PAD,
    START,
    VIDEO,
    VOCABULARY,
    WORDS,
    Picture,
    Prompt,
    TinyFamily,
)

PATCH, MERGE = 4, 2
PATCH_VALUES = 3 * 2 * PATCH * PATCH


class TinyQwen2VL(TinyFamily):
    architecture = Qwen2VLForConditionalGeneration
    configuration: Any = Qwen2VLConfig
    # Height and width in patches.
    sizes = ((8, 6), (4, 10))
    frames = (2, 4, 6)

    def vision(self) -> dict[str, Any]:
        return {"depth": 2, "embed_dim": 64, "hidden_size": 64, "mlp_ratio": 2}

    def config(self) -> PreTrainedConfig:
        text = {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            "pad_token_id": PAD,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        common = {"num_heads": 2, "patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2}
        return self.configuration(
            text_config=text,
            vision_config={**common, **self.vision()},
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END,
        )

    def picture(self, size: Any, generator: torch.Generator) -> Picture:
        height, width = size
        count = height * width // MERGE**2
        pixels = torch.randn(height * width, PATCH_VALUES, generator=generator)
        vision = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, height, width]])}
        return Picture([START] + [IMAGE] * count + [END], [-1] + [0] * count + [-1], vision)

    def video(self, generator: torch.Generator) -> Picture:
        time, height, width = self.frames
        each = height * width // MERGE**2
        return Picture(
            [START] + [VIDEO] * (time * each) + [END],
            [-1, *(frame for frame in range(time) for _ in range(each)), -1],
            self.clip(generator),
        )

    def clip(self, generator: torch.Generator) -> dict[str, Tensor]:
        time, height, width = self.frames
        pixels = torch.randn(time * height * width, PATCH_VALUES, generator=generator)
        return {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor([self.frames])}

    def extras(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}

    def rotary(self, model: Any, prompt: Prompt) -> list[tuple[Tensor, Tensor]]:
        decoder = model.model.language_model
        cos, sin = decoder.rotary_emb(torch.zeros(1), self.places(model, prompt))
        return [(cos[0], sin[0])] * LAYERS

    def places(self, model: Any, prompt: Prompt) -> Tensor:
        """Time, row and column [3, 1, L] of every token."""
        ids = prompt.ids[None]
        given = self.collate([prompt.vision])
        grids = {name: given.get(name) for name in ("image_grid_thw", "video_grid_thw")}
        return model.model.get_rope_index(ids, **self.extras(ids, ids), **grids)[0]

    def later(self, model: Any, whole: Sequence[Prompt], new: Sequence[Prompt], mask: Tensor) -> dict[str, Tensor]:
        # With pictures of an earlier turn left out, transformers cannot place the new ones: the caller has to.
        given = super().later(model, whole, new, mask)
        positions = torch.zeros(4, *mask.shape, dtype=torch.long)
        for sample, prompt in enumerate(whole):
            there = mask[sample].bool()
            positions[0, sample, there] = torch.arange(len(prompt.ids))
            positions[1:, sample, there] = self.places(model, prompt)[:, 0]
        return {**given, "position_ids": positions}


class TinyQwen25VL(TinyQwen2VL):
    architecture = Qwen2_5_VLForConditionalGeneration
    configuration = Qwen2_5_VLConfig

    def vision(self) -> dict[str, Any]:
        # Windows of 2 x 2 tokens in the first block.
        windows = {"window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 2}
        return {"depth": 2, "hidden_size": 64, "intermediate_size": 96, "out_hidden_size": 64, **windows}


class TinyQwen3VL(TinyQwen2VL):
    architecture = Qwen3VLForConditionalGeneration
    configuration = Qwen3VLConfig

    def vision(self) -> dict[str, Any]:
        deepstack = {"deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 16}
        return {"depth": 3, "hidden_size": 64, "intermediate_size": 96, "out_hidden_size": 64, **deepstack}

    def video(self, generator: torch.Generator) -> Picture:
        # Every frame stands behind its time, in words.
        time, height, width = self.frames
        each = height * width // MERGE**2
        ids, images = [], []
        for frame in range(time):
            ids += [WORDS[frame], START] + [VIDEO] * each + [END]
            images += [-1, -1] + [frame] * each + [-1]
        return Picture(ids, images, self.clip(generator))
