"""The README.md of a compressed checkpoint: what it is, how to run it, and what happens without quota."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quota.recipe import PruningRecipe
from quota.scheme import QuantizationScheme
from quota.version import __version__

_CARD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [quota, compressed-tensors, {tag}]
---

# {title}

{architecture}{origin}, compressed by quota {version} (distribution `quota-vlm`).

- **Quantisation: {scheme}.** {quantisation}
- **Visual tokens: {tokens}.** {pruning}

## Run it

```python
import quota  # registers the loader
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("this/folder")
processor = AutoProcessor.from_pretrained("this/folder")
```

## Without quota

The weights are in the "pack-quantized" format of compressed-tensors, so transformers loads them without quota too. It
then keeps every visual token, and the KV cache in 16 bits.{stock}
"""

_ROTATED = """ The inputs of the quantised layers have to be rotated by a Hadamard
matrix, which transformers 5 does not do by itself: without these lines the model answers nonsense.

```python
import json
from compressed_tensors.transform import TransformConfig, apply_transform_config

config = json.load(open("this/folder/config.json"))["quantization_config"]
apply_transform_config(model, TransformConfig(**config["transform_config"]))
```"""


def model_card(model: Any, scheme: QuantizationScheme, recipe: PruningRecipe | None) -> str:
    """Markdown for a checkpoint of `model` under `scheme`, pruned by `recipe` if there is one."""
    name = str(model.config.name_or_path or "")
    # A path of the machine it was made on tells nobody anything.
    origin = f" `{name}`" if name and not Path(name).exists() else ""
    return _CARD.format(
        tag=scheme.name.lower(),
        title=f"{type(model).__name__}, {scheme.name}" + (f", {recipe.keep:.0%} of visual tokens" if recipe else ""),
        architecture=type(model).__name__,
        origin=origin,
        version=__version__,
        scheme=scheme.name,
        quantisation=_quantisation(scheme),
        tokens=f"{recipe.keep:.0%} kept" if recipe else "all kept",
        pruning=_pruning(recipe),
        stock=_ROTATED if scheme.hadamard else "",
    )


def _quantisation(scheme: QuantizationScheme) -> str:
    rotation = f"block Hadamard of {scheme.hadamard} channels in front" if scheme.hadamard else "no rotation"
    return (
        f"Weights {scheme.weight_bits} bits in groups of {scheme.weight_group} ({scheme.weight_rounding}), "
        f"activations {scheme.activation_bits} bits in groups of {scheme.activation_group}, measured for every token, "
        f"{rotation}, KV cache {scheme.kv_bits} bits. Quantised parts: {', '.join(scheme.modules)}."
    )


def _pruning(recipe: PruningRecipe | None) -> str:
    if recipe is None:
        return "There is no recipe beside the weights."
    kept = ", ".join(f"layer {layer}: {count}" for layer, count in _schedule(recipe))
    return (
        f"Of {recipe.reference_tokens} visual tokens there remain, after decoder {kept}. "
        f"`recipe.json` holds the ratios; it was calibrated on {recipe.samples} samples (seed {recipe.seed})."
    )


def _schedule(recipe: PruningRecipe) -> list[tuple[int, int]]:
    return list(zip(recipe.layers, recipe.counts(recipe.reference_tokens), strict=True))
