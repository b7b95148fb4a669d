"""Supported architectures. A new one is a short file like `llava.py` and one line in `FAMILIES`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from quota.errors import QuotaError
from quota.models.boxes import Box, Boxes
from quota.models.family import PARTS, Family
from quota.models.gemma3 import gemma3
from quota.models.idefics3 import idefics3
from quota.models.internvl import internvl
from quota.models.llama import llama
from quota.models.llava import llava
from quota.models.llava_next import llava_next
from quota.models.llava_onevision import llava_onevision
from quota.models.paligemma import paligemma
from quota.models.qwen_vl import qwen2_vl, qwen3_vl
from quota.models.support import Support, with_video

__all__ = ["FAMILIES", "PARTS", "Box", "Boxes", "Family", "config_fingerprint", "family", "fingerprint"]

FAMILIES: dict[str, Support] = {
    "LlavaForConditionalGeneration": Support("LLaVA 1.5", llava),
    "LlavaNextForConditionalGeneration": Support("LLaVA-NeXT", llava_next),
    "LlavaOnevisionForConditionalGeneration": with_video("LLaVA-OneVision", llava_onevision),
    "Qwen2VLForConditionalGeneration": with_video("Qwen2-VL", qwen2_vl),
    "Qwen2_5_VLForConditionalGeneration": with_video("Qwen2.5-VL", qwen2_vl),
    "Qwen3VLForConditionalGeneration": with_video("Qwen3-VL", qwen3_vl),
    "InternVLForConditionalGeneration": with_video("InternVL 3", internvl),
    "Idefics3ForConditionalGeneration": Support("Idefics 3", idefics3),
    "SmolVLMForConditionalGeneration": with_video("SmolVLM", idefics3),
    "Gemma3ForConditionalGeneration": Support("Gemma 3", gemma3),
    "PaliGemmaForConditionalGeneration": Support("PaliGemma", paligemma),
}

# Decoders without a tower: quantised by the same sweep, for the testbeds; there is nothing to prune in them.
TEXT_FAMILIES: dict[str, Callable[[PreTrainedModel], Family]] = {
    "LlamaForCausalLM": llama,
    "Qwen2ForCausalLM": llama,
}

# What decides whether a recipe fits: the shape of the network and of its visual tokens.
_SHAPE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "image_size",
    "patch_size",
    "image_token_id",
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "depth",
    "embed_dim",
    "num_heads",
    "spatial_merge_size",
    "deepstack_visual_indexes",
    "downsample_ratio",
    "scale_factor",
    "mm_tokens_per_image",
    "image_grid_pinpoints",
)


def family(model: nn.Module) -> Family:
    """Where the rooms of this model are. QuotaError, naming what is supported, for an unknown architecture."""
    name = type(model).__name__
    make = FAMILIES[name].rooms if name in FAMILIES else TEXT_FAMILIES.get(name)
    if make is None or not isinstance(model, PreTrainedModel):
        raise QuotaError(f"{name} is not supported; supported architectures: {', '.join(FAMILIES)}")
    return make(model)


def fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 (hex) of the architecture and its sizes.

    It does not look at weights, so it stays the same when the model is quantised, saved and loaded again; two
    fine-tunes of one architecture share it.
    """
    return config_fingerprint(model.config, type(model).__name__)


def config_fingerprint(config: PreTrainedConfig, architecture: str) -> str:
    """That of a model of the class `architecture`, without the model."""
    rooms = {"model": config, "text": config.get_text_config(), "vision": getattr(config, "vision_config", None)}
    facts = {
        room: {key: getattr(part, key) for key in _SHAPE if getattr(part, key, None) is not None}
        for room, part in rooms.items()
        if part is not None
    }
    text = json.dumps({"architecture": architecture, **facts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
