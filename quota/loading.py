"""Find the model that a command names: a hub id, a folder, or `reference`, the small one shipped with the package.

A folder written by `quota compress` loads like any other, because importing this package has registered its loader
with transformers (quota/checkpoint.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from quota import reference
from quota.errors import QuotaError

REFERENCE = "reference"
_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


def load_model(name: str) -> tuple[PreTrainedModel, Any, str]:
    """Load model and processor by name; returns (model in eval mode, processor, label for reports).

    `reference` is loaded in float32, everything else in the type its checkpoint is stored in. Weights stay on the
    device where transformers puts them, the CPU. Raises QuotaError, in one line, for a name that cannot be loaded.
    """
    source = _folder(name)
    where = name if source is None else str(source)
    with _in_one_line(name):
        model = AutoModelForImageTextToText.from_pretrained(where, dtype=model_dtype(name) or "auto")
        processor = AutoProcessor.from_pretrained(where)
    return model.eval(), processor, name if source is None or name == REFERENCE else source.name


def model_folder(name: str) -> Path:
    """The folder of the model's files, fetched from the hub if need be. Errors as `load_model`."""
    source = _folder(name)
    if source is None:
        with _in_one_line(name):
            source = Path(snapshot_download(name, allow_patterns=_FILES))
    return source


def model_dtype(name: str) -> torch.dtype | None:
    """The type to compute in, None for that of the checkpoint."""
    return torch.float32 if name == REFERENCE else None


def _folder(name: str) -> Path | None:
    """The folder that `name` means, None for a hub id."""
    source = reference.model_path() if name == REFERENCE else Path(name)
    if source.is_dir():
        if not (source / "config.json").is_file():
            raise QuotaError(f"{source} holds no config.json; give a folder that save_pretrained has written")
        return source
    if source.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        # Told here, as asking the hub for what cannot be one of its ids takes half a minute to fail.
        raise QuotaError(f"there is no model folder {name}; give a folder, a hub id (owner/name), or {REFERENCE}")
    return None


@contextmanager
def _in_one_line(name: str) -> Iterator[None]:
    try:
        yield
    except QuotaError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise QuotaError(f"cannot load {name}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """transformers explains itself over many lines; the first says what was wrong."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
