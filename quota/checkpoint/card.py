"""The README.md of a compressed checkpoint: what it is, how to run it, and what happens without quota."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quota.errors import QuotaError
from quota.files import write_atomically
from quota.pruning.recipe import PruningRecipe
from quota.quantization.ends import has_tied_head
from quota.scheme import QuantizationScheme
from quota.version import __version__, versions

CARD_FILE = "README.md"

_CARD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [quota, compressed-tensors, {tag}]
---

# {title}

{architecture}{origin}, compressed by quota {version} (distribution `quota-vlm`).

- **Quantisation: {scheme}.** {quantisation}
{visual}
{unmeasured}
- **Versions:** {versions}.

## Run it

```python
import quota  # registers the loader
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("this/folder")
processor = AutoProcessor.from_pretrained("this/folder")
```

## Without quota

The weights are in the "pack-quantized" format of compressed-tensors, so transformers loads them without quota too. It
is slower then (weights are unpacked, and multiplied in floating point), keeps every visual token and the KV cache in
16 bits, and rounds activations to a float scale for every group, where quota has whole steps inside a token's scale: as
close to the original, and not the same bits.{stock}
"""

_VISUAL = "- **Visual tokens:"
_RETENTION = "- **Retention:"
_UNMEASURED = (
    f"{_RETENTION} not measured.** `quota eval this/folder --baseline ORIGINAL` measures it and writes it here."
)

_ALONE = """ Two things transformers 5 does not do by itself: rotate by a
Hadamard matrix what enters quantised layers, and read an embedding in 8 bits. Without them the model would answer
nonsense, so a folder with either refuses to load there, unless with these lines, which take out the refusal and do
what this one needs:

```python
{lines}
```"""

_READ_ROTATION = 'rotation = TransformConfig(**config.quantization_config["transform_config"])'
_ROTATE = "apply_transform_config(model, rotation)"
_EMBED = """
stored = {}
for file in Path("this/folder").glob("*.safetensors"):
    with safe_open(file, "pt") as opened:
        names = [name for name in opened.keys() if ".embed_tokens.weight_" in name]
        stored |= {name.rpartition(".")[2]: opened.get_tensor(name) for name in names}
rows = (stored["weight_packed"].view(torch.uint8).float() - 128) * stored["weight_scale"].float()
weight = model.get_input_embeddings().weight
weight.data = rows[:, : weight.shape[1]].to(weight.dtype)"""
_SHARE = """for name, tensor in stored.items():
    tensor = tensor.to(weight.dtype) if tensor.is_floating_point() else tensor
    setattr(model.get_output_embeddings(), name, torch.nn.Parameter(tensor, requires_grad=False))"""


def model_card(model: Any, scheme: QuantizationScheme, recipe: PruningRecipe | None) -> str:
    """Markdown for a checkpoint of `model` under `scheme`, pruned by `recipe` if there is one."""
    name = str(model.config.name_or_path or "")
    # A path of the machine it was made on tells nobody anything.
    origin = f" `{name}`" if name and not Path(name).exists() else ""
    return _CARD.format(
        tag=scheme.name.lower(),
        title=f"{type(model).__name__}, {scheme.name}" + (_title(recipe) if recipe else ""),
        architecture=type(model).__name__,
        origin=origin,
        version=__version__,
        scheme=scheme.name,
        quantisation=_quantisation(scheme),
        visual=_visual(recipe),
        unmeasured=_UNMEASURED,
        versions=_versions(recipe),
        stock=_alone(scheme.hadamard > 0, scheme.embedding_bits < 16, has_tied_head(model)),
    )


def record_retention(
    folder: Path, retention: float, interval: tuple[float, float], baseline: str, suite: str, questions: int
) -> None:
    """Write into the card of the checkpoint in `folder` how much of the score of `baseline` on `suite` it keeps.

    Shares are fractions, and `interval` their 95% interval. An older figure is replaced. Raises QuotaError if the card
    is not there, or has no such line.
    """
    low, high = interval
    line = (
        f"{_RETENTION} {retention:.1%}** of the score of {baseline} (95% interval {low:.1%} to {high:.1%}), "
        f"the mean over the tasks of {suite}, {questions} questions."
    )
    _replace(folder / CARD_FILE, {_RETENTION: line})


def record_recipe(folder: Path, older: PruningRecipe, recipe: PruningRecipe) -> None:
    """Let the card of the checkpoint in `folder` speak of `recipe` in place of an `older` one.

    What was measured with that one, retention, is taken out. Errors as `record_retention`.
    """
    _replace(folder / CARD_FILE, {_VISUAL: _visual(recipe), _RETENTION: _UNMEASURED}, {_title(older): _title(recipe)})


def _replace(file: Path, beginnings: Mapping[str, str], endings: Mapping[str, str] | None = None) -> None:
    """Replace the first line that has each of `beginnings`, and the ending of the title if it is one of `endings`."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        raise QuotaError(f"cannot read {file}: {error.strerror}; save with quota.save_pretrained") from None
    for beginning, new in beginnings.items():
        places = [number for number, line in enumerate(lines) if line.startswith(beginning)]
        if not places:
            raise QuotaError(f"{file.name} has no line {beginning!r} to write in; add one")
        lines[places[0]] = new + "\n"
    for ending, new in (endings or {}).items():
        title = next((number for number, line in enumerate(lines) if line.startswith("# ")), None)
        if title is not None and lines[title].endswith(f"{ending}\n"):
            lines[title] = lines[title].removesuffix(f"{ending}\n") + f"{new}\n"
    write_atomically(file, "".join(lines))


def _title(recipe: PruningRecipe) -> str:
    """How the title of a card ends."""
    return f", {recipe.keep:.0%} of visual tokens"


def _versions(recipe: PruningRecipe | None) -> str:
    """Those that calibration ran with; without a recipe, which records them, those of this machine."""
    found = versions("torch", "transformers", "compressed-tensors") | (recipe.versions if recipe else {})
    return ", ".join(f"{name} {number}" for name, number in found.items())


def _alone(rotated: bool, embedded: bool, tied: bool) -> str:
    """How to do without quota what transformers does not; a `tied` head has the embedding's integers."""
    if not (rotated or embedded):
        return ""
    lines = [
        *(["from pathlib import Path", "", "import torch"] if embedded else []),
        *(["from compressed_tensors.transform import TransformConfig, apply_transform_config"] if rotated else []),
        *(["from safetensors import safe_open"] if embedded else []),
        "from transformers import AutoConfig, AutoModelForImageTextToText",
        "",
        'config = AutoConfig.from_pretrained("this/folder")',
        *([_READ_ROTATION] if rotated else []),
        'del config.quantization_config["config_groups"]["Import quota first"]',
        'model = AutoModelForImageTextToText.from_pretrained("this/folder", config=config)',
        *([_EMBED] if embedded else []),
        *([_SHARE] if tied else []),
        *([_ROTATE] if rotated else []),
    ]
    return _ALONE.format(lines="\n".join(lines))


def _quantisation(scheme: QuantizationScheme) -> str:
    rotation = f"block Hadamard of {scheme.hadamard} channels in front" if scheme.hadamard else "no rotation"
    if scheme.folds:
        rotation += ", transforms learned from the calibration set folded into the weights"
    return (
        f"Weights {scheme.weight_bits} bits in groups of {scheme.weight_group} ({scheme.weight_rounding}), "
        f"activations {scheme.activation_bits} bits in groups of {scheme.activation_group}, measured for every token, "
        f"{rotation}, KV cache {scheme.kv_bits} bits. Quantised parts: {', '.join(scheme.modules)}. "
        f"Embedding {scheme.embedding_bits} bits, lm_head {scheme.head_bits} bits."
    )


def _visual(recipe: PruningRecipe | None) -> str:
    if recipe is None:
        return f"{_VISUAL} all kept.** There is no recipe beside the weights."
    kept = ", ".join(f"layer {layer}: {count}" for layer, count in _schedule(recipe))
    return (
        f"{_VISUAL} {recipe.keep:.0%} kept.** Of {recipe.reference_tokens} visual tokens there remain, after decoder "
        f"{kept}. `recipe.json` holds the ratios; it was calibrated on {recipe.samples} samples (seed {recipe.seed})."
    )


def _schedule(recipe: PruningRecipe) -> list[tuple[int, int]]:
    return list(zip(recipe.layers, recipe.counts(recipe.reference_tokens), strict=True))
