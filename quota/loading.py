"""Find the model that a command names: a hub id, a folder, or `reference`, the small one shipped with the package.

A folder written by `quota compress` loads like any other, because importing this package has registered its loader
with transformers (quota/checkpoint.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from quota import reference
from quota.errors import QuotaError

REFERENCE = "reference"


def load_model(name: str) -> tuple[PreTrainedModel, Any, str]:
    """Load model and processor by name; returns (model in eval mode, processor, label for reports).

    `reference` is loaded in float32, everything else in the type its checkpoint is stored in. Weights stay on the
    device where transformers puts them, the CPU. Raises QuotaError, in one line, for a name that cannot be loaded.
    """
    source = reference.model_path() if name == REFERENCE else Path(name)
    if source.is_dir():
        if not (source / "config.json").is_file():
            raise QuotaError(f"{source} holds no config.json; give a folder that save_pretrained has written")
    elif source.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        # Told here, as asking the hub for what cannot be one of its ids takes half a minute to fail.
        raise QuotaError(f"there is no model folder {name}; give a folder, a hub id (owner/name), or {REFERENCE}")
    where = str(source) if source.is_dir() else name
    dtype = torch.float32 if name == REFERENCE else "auto"
    try:
        model = AutoModelForImageTextToText.from_pretrained(where, dtype=dtype)
        processor = AutoProcessor.from_pretrained(where)
    except QuotaError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise QuotaError(f"cannot load {name}: {_first_line(error)}") from error
    return model.eval(), processor, source.name if source.is_dir() and name != REFERENCE else name


def _first_line(error: BaseException) -> str:
    """transformers explains itself over many lines; the first says what was wrong."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
