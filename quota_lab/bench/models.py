"""The models that are timed: a LLaVA of realistic size with random weights, and the reference model.

Speed and memory do not depend on what the weights say. Those of the realistic model are therefore drawn in place,
module by module: bfloat16 where it is dense, and 4-bit integers directly where it is quantised, so that a process that
measures the quantised model never holds the dense one. The reference model has its own weights, rounded to nearest.

Tokens are chosen by the default score. The recipe's schedule is the published one of LLaVA-1.5-7B (576 visual tokens;
524 441 359 274 173 left after layers 2 to 6 of 32), at half the depth: every second cut, after layers 1, 2 and 3 of 16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel

from quota.attention.keys import add_key_transforms
from quota.attention.operators import attach_operators
from quota.checkpoint.named import load_model
from quota.models import family, fingerprint
from quota.models.llava import tokens_per_image
from quota.prompts import build_inputs
from quota.pruning.recipe import PruningRecipe
from quota.pruning.scorers.information import NAME
from quota.quantization.ends import empty_ends, quantize_ends
from quota.quantization.linear import W4A4Linear
from quota.scheme import QuantizationScheme
from quota_lab import reference
from quota_lab.reference import NAME as REFERENCE

SCHEME = QuantizationScheme(weight_rounding="rtn")
REALISTIC = "realistic"
NAMES = (REFERENCE, REALISTIC)
TEXT_TOKENS = 64

# (decoder layer, visual tokens left) of 576.
_CUTS = ((1, 441), (2, 274), (3, 173))
_PUBLISHED_TOKENS = 576
KEEP = 0.30
# Standard deviation of integers from -8 to 7; with the scale that goes with it, outputs are as large as inputs.
_SPREAD = 4.6


@dataclass
class Subject:
    """A model to be timed, with its prompt."""

    name: str
    model: Any
    inputs: dict[str, Any]
    """Arguments of `generate`: one image, one question."""
    recipe: PruningRecipe
    """For the scheme that the model is in."""


def realistic_config() -> LlavaConfig:
    """CLIP-L/14-336 tower, 576 visual tokens, Llama decoder 2048 wide and 16 deep."""
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=2048,
        intermediate_size=5504,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=4096,
    )
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=5)


def subject(name: str, quantized: bool) -> Subject:
    """The model called `name` (of `NAMES`), dense in bfloat16 or under the default scheme with its KV cache."""
    return _reference(quantized) if name == REFERENCE else random_subject(realistic_config(), quantized)


def random_subject(config: LlavaConfig, quantized: bool) -> Subject:
    """A model with random weights, and a random prompt of one image and `TEXT_TOKENS` words for it."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model: Any = LlavaForConditionalGeneration._from_config(config, dtype=torch.bfloat16).eval()
    if quantized:
        _replace_linears(model, _random_linear)
        _random_ends(model)
    _fill(model, model)
    model.generation_config.eos_token_id = None
    size = model.config.vision_config.image_size
    words = torch.randint(config.image_token_id + 1, model.config.text_config.vocab_size, (1, TEXT_TOKENS))
    image = torch.full((1, tokens_per_image(model)), config.image_token_id)
    inputs = {
        "input_ids": torch.cat([words[:, :2], image, words[:, 2:]], dim=1),
        "pixel_values": torch.randn(1, 3, size, size, dtype=torch.bfloat16),
    }
    return _finish(REALISTIC, model, inputs, quantized)


def published_recipe(model: Any, scheme: QuantizationScheme | None) -> PruningRecipe:
    """The schedule that this module's head describes, ending at 30%."""
    ratios = [tokens / _PUBLISHED_TOKENS for _, tokens in _CUTS[:-1]]
    return PruningRecipe(
        layers=tuple(layer for layer, _ in _CUTS),
        keep_ratios=(*ratios, KEEP),
        keep=KEEP,
        reference_tokens=tokens_per_image(model),
        scorer=NAME,
        scheme=scheme,
        model_fingerprint=fingerprint(model),
    )


def _reference(quantized: bool) -> Subject:
    loaded, processor, _ = load_model(REFERENCE)
    model: Any = loaded.bfloat16()
    if quantized:
        _replace_linears(model, lambda linear: W4A4Linear.from_linear(linear, SCHEME))
        quantize_ends(model, SCHEME)
    model.generation_config.eos_token_id = None
    [sample] = reference.calibration_samples(1, seed=0)
    inputs = dict(build_inputs(processor, [sample]))
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    return _finish(REFERENCE, model, inputs, quantized)


def _finish(name: str, model: Any, inputs: dict[str, Any], quantized: bool) -> Subject:
    scheme = SCHEME if quantized else None
    if scheme is not None:
        # The identity takes as long as any other matrix.
        add_key_transforms(family(model).text_model)
        attach_operators(model, scheme)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return Subject(name, model, inputs, published_recipe(model, scheme))


def _replace_linears(model: Any, replacement: Callable[[nn.Linear], W4A4Linear]) -> None:
    for name, linear in family(model).linears(SCHEME.modules):
        model.set_submodule(name, replacement(linear))


def _random_linear(linear: nn.Linear) -> W4A4Linear:
    layer = W4A4Linear.empty_like(linear, SCHEME, "cpu")
    _draw(layer)
    return layer


def _random_ends(model: Any) -> None:
    """Put a quantised embedding and head in the places of those on "meta"."""
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        end.to_empty(device="cpu")
    empty_ends(model, SCHEME, tied=False)
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        if isinstance(end, W4A4Linear):
            _draw(end)


def _draw(layer: W4A4Linear) -> None:
    # Every bit drawn: all integers that there are, without the memory that rounding would take.
    layer.weight_packed.random_(-(2**31), 2**31)
    layer.weight_scale.fill_(layer.in_features**-0.5 / _SPREAD)


def _fill(module: nn.Module, owner: Any) -> None:
    """Give everything inside `module` that is still empty its tensors, as `owner`'s architecture initialises them."""
    owner = module if isinstance(module, PreTrainedModel) else owner
    for child in module.children():
        _fill(child, owner)
    own: list[Tensor] = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if any(tensor.is_meta for tensor in own):
        module.to_empty(device="cpu", recurse=False)
        owner._init_weights(module)
