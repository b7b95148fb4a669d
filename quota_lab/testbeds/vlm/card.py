"""The model card of the testbed."""

from __future__ import annotations

import json
from pathlib import Path

SCORES = Path(__file__).parent / "adapter" / "scores.json"
"""Accuracy of full precision by task, as `quota eval --json` writes it; ships with the adapter."""

_CARD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
license: apache-2.0
---

# A LLaVA of real parts: DINOv2-S/14 and SmolLM2-135M-Instruct

A testbed for quantisation and visual token pruning, no assistant: it answers short questions about pictures of framed
photographs and signs, and little else. 256 visual tokens a picture of 224 pixels.

| part | from | licence |
|---|---|---|
| vision tower, frozen | DINOv2-S/14 (Meta), fine-tuned for saliency; hidden states of block {layer} | Apache-2.0 |
| decoder | SmolLM2-135M-Instruct (Hugging Face), Q4_1 weights dequantised; low-rank additions merged | Apache-2.0 |
| projector and additions | trained by QUOTA | Apache-2.0 |

Files of the parts, by SHA-256:

{digests}

## Data

Pictures are drawn by a seeded generator from photographs: the Grocery Store Dataset (Klasson, Zhang, Kjellström, "A
Hierarchical Grocery Store Image Dataset with Visual and Semantic Labels", WACV 2019; MIT) and the Clothing Dataset
(Alexey Grigorev and contributors; CC0). Photographs of the suite are in none of the training pictures.
Pictures of the suite lose resolution and grain to a camera (`camera.py`) that training does not have.

## Training

    quota testbed vlm train STATE --photos photos/train --device cuda

The projector learns first what each patch shows, in the decoder's own word embeddings; then it learns together with
additions of rank {rank} to every linear layer of the decoder.

## Accuracy of full precision

{scores}
"""


def card() -> str:
    """README.md of the built checkpoint."""
    # Late: the parts need packages that not everyone who prints a card has.
    from quota_lab.testbeds.vlm.architecture import LAYER
    from quota_lab.testbeds.vlm.parts import DIGESTS
    from quota_lab.testbeds.vlm.training import Plan

    digests = "\n".join(f"- `{Path(file).name}`: {digest}" for (_, file), digest in DIGESTS.items())
    return _CARD.format(layer=LAYER, rank=Plan.rank, digests=digests, scores=_scores())


def _scores() -> str:
    if not SCORES.is_file():
        return "Not measured yet."
    figures = json.loads(SCORES.read_text(encoding="utf-8"))
    low, high = figures["interval"]
    lines = ["| task | accuracy | majority answer |", "|---|---|---|"]
    lines += [
        f"| {task} | {100 * share:.1f} | {100 * figures['majority'][task]:.1f} |"
        for task, share in figures["accuracy"].items()
    ]
    lines.append(f"| average | {100 * figures['average']:.1f} ({100 * low:.1f}-{100 * high:.1f}) | |")
    return "\n".join(lines)
