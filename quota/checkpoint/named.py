"""Find the model that a command names: a hub id, a folder, or something that is shipped, as `reference`.

A folder written by `quota compress` loads like any other, because importing this package has registered its loader
with transformers. What is shipped comes from packages beside this one, by the entry-point group `quota.shipped`: a
module with a model, suites of questions about pictures, and a way to draw calibration samples.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig, PreTrainedModel

from quota.checkpoint.depth import refuse_endless
from quota.checkpoint.manifest import MANIFEST_FILE, verify_loading
from quota.errors import QuotaError
from quota.files import is_checkpoint
from quota.models import config_fingerprint
from quota.ops import device
from quota.samples import Sample, read_samples

SHIPPED = "quota.shipped"
"""Entry points: a name -> its module."""
_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_LARGEST_VOCABULARY = 1 << 24
_FETCHING = ("huggingface_hub", "httpx", "httpcore")
"""Modules whose errors say that something could not be fetched."""


class Shipped(Protocol):
    """A module that ships a model."""

    def model_path(self) -> Path:
        """Folder of the checkpoint."""
        ...

    def suites(self) -> Mapping[str, Path]:
        """Name -> folder of each suite of questions."""
        ...

    def calibration_samples(self, count: int, seed: int) -> list[Sample]:
        """Questions to calibrate on, the same for the same seed."""
        ...


def shipped(name: str) -> Shipped | None:
    """What is shipped under that name, None if nothing is."""
    found = entry_points(group=SHIPPED, name=name)
    return next(iter(found)).load() if found else None


def shipped_as(config: PreTrainedConfig) -> str | None:
    """The name of the shipped model with the architecture and sizes of `config`, None if there is none."""

    def sizes(of: PreTrainedConfig) -> str:
        return config_fingerprint(of, next(iter(of.architectures or []), ""))

    names = sorted(entry_points(group=SHIPPED).names)
    known = ((name, shipped(name)) for name in names)
    wanted = sizes(config)
    return next(
        (name for name, one in known if one and sizes(AutoConfig.from_pretrained(one.model_path())) == wanted), None
    )


def own_suite(config: PreTrainedConfig) -> str | None:
    """The suite that ships with the model of `config`, or with what it was compressed from; None if there is none."""
    name = shipped_as(config)
    return name if name is not None and (known := shipped(name)) and name in known.suites() else None


def shipped_suites() -> dict[str, Path]:
    """Name -> folder of every suite that is shipped."""
    return {suite: place for module in entry_points(group=SHIPPED) for suite, place in module.load().suites().items()}


def suite_folder(name: str) -> Path:
    """The shipped suite of that name, or the folder that it is. QuotaError if it is neither."""
    suites = shipped_suites()
    if name not in suites and not Path(name).exists():
        known = ", ".join(["a folder with questions.jsonl", *sorted(suites)])
        raise QuotaError(f"there is no suite {name}; give one of: {known}")
    return suites.get(name, Path(name))


def calibration_samples(model: str, file: Path | None, count: int, seed: int) -> list[Sample]:
    """`count` samples of the user's `file`, drawn by the seed; without one, those that a shipped model draws itself.

    Raises QuotaError if there is neither, or too few.
    """
    if file is None:
        if (known := shipped(model)) is None:
            raise QuotaError(
                f"{model} brings no questions: give --calibration FILE, a .jsonl file of questions about pictures"
            )
        return known.calibration_samples(count, seed)
    found = read_samples(file)
    if len(found) < count:
        raise QuotaError(f"{file} holds {len(found)} questions, not {count}; add some, or ask for fewer samples")
    return random.Random(seed).sample(found, count)


def load_model(name: str) -> tuple[PreTrainedModel, Any, str]:
    """Load model and processor by name; returns (model in eval mode, processor, label for reports).

    What is shipped is loaded in float32, everything else in the type its checkpoint is stored in, to the device of
    quota/ops/device.py. Raises QuotaError, in one line, for a name that cannot be loaded.
    """
    source = find_folder(name)
    where = name if source is None else str(source)
    with in_one_line(name):
        if source is not None:
            check_folder(source)
        model: Any = AutoModelForImageTextToText.from_pretrained(where, dtype=model_dtype(name) or "auto")
        processor = load_processor(where)
    model.to(device.chosen())
    return model.eval(), processor, label(name)


def label(name: str) -> str:
    """What reports call the model `name`."""
    source = find_folder(name)
    return name if source is None or shipped(name) else source.name


def check_folder(source: Path) -> None:
    """QuotaError for a folder that is damaged, or would take transformers for ever to load.

    Of a checkpoint of ours all is compared with its manifest but the weights, which follow when they are loaded.
    """
    if is_checkpoint(source) and (source / MANIFEST_FILE).exists():
        files = [file.name for file in source.iterdir() if file.suffix != ".safetensors"]
        verify_loading(source, source / MANIFEST_FILE, files)
    refuse_endless(source)


def load_processor(where: str | Path) -> Any:
    """The processor of the model in a folder, or of a hub id.

    QuotaError for token ids that no vocabulary has: to save them again takes memory for every id below the highest.
    """
    processor = AutoProcessor.from_pretrained(where)
    highest = max(getattr(processor, "tokenizer", processor).get_vocab().values(), default=0)
    if highest >= _LARGEST_VOCABULARY:
        raise QuotaError(
            f"{where} holds a token with the id {highest}, which no vocabulary has; copy its tokenizer again"
        )
    return processor


def model_folder(name: str) -> Path:
    """The folder of the model's files, fetched from the hub if need be. Errors as `load_model`."""
    source = find_folder(name)
    if source is None:
        with in_one_line(name):
            source = Path(snapshot_download(name, allow_patterns=_FILES))
    return source


def model_dtype(name: str) -> torch.dtype | None:
    """The type to compute in, None for that of the checkpoint."""
    return torch.float32 if shipped(name) else None


def find_folder(name: str) -> Path | None:
    """The folder that `name` means, None for a hub id. QuotaError for what can be neither."""
    source = Path(name) if (known := shipped(name)) is None else known.model_path()
    try:
        folder, there = source.is_dir(), source.exists()
    except OSError as error:
        raise QuotaError(f"there is no model folder {name}: {error.strerror}") from None
    if folder:
        if not (source / "config.json").is_file():
            raise QuotaError(f"{source} holds no config.json; give a folder that save_pretrained has written")
        return source
    if there or name.startswith((".", "/", "~")) or name.count("/") != 1:
        # Told here, as asking the hub for what cannot be one of its ids takes half a minute to fail.
        raise QuotaError(f"there is no model folder {name}; give a folder, a hub id (owner/name){_or_shipped()}")
    return None


@contextmanager
def in_one_line(name: str) -> Iterator[None]:
    """Whatever transformers raises while it reads the files of the model `name` becomes a QuotaError."""
    try:
        yield
    except QuotaError:
        raise
    except ImportError as error:
        # Some processors need a package of their own: torchvision, num2words.
        raise QuotaError(f"cannot load {name}: {_first_line(error).split('. ')[0]}; install it") from error
    except Exception as error:
        # transformers and what it calls raise whatever a file with a wrong type or value leads to.
        advice = "check the name and the network" if _not_fetched(name, error) else "copy it again, or save it anew"
        raise QuotaError(f"cannot load {name}: {_first_line(error)}; {advice}") from error


def _not_fetched(name: str, error: BaseException) -> bool:
    """Whether `name` is a hub id, and the error, or what led to it, is the hub's or the network's."""
    with suppress(QuotaError):
        if find_folder(name) is not None:
            return False
        cause: BaseException | None = error
        while cause is not None:
            # The hub's library changes its own for the network from one version to the next.
            if isinstance(cause, ConnectionError | TimeoutError) or type(cause).__module__.startswith(_FETCHING):
                return True
            cause = cause.__cause__ or cause.__context__
    return False


def _first_line(error: BaseException) -> str:
    """transformers explains itself over many lines; the first says what was wrong."""
    lines = str(error).strip().splitlines()
    kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    return f"{kind}{lines[0]}" if lines else type(error).__name__


def _or_shipped() -> str:
    names = sorted(entry_points(group=SHIPPED).names)
    return f", or {', '.join(names)}" if names else "; `reference` comes with the package quota_lab"
