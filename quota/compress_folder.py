"""Compress a checkpoint folder without ever having the model in memory, and go on where an interrupted run stopped.

The model is made on "meta"; calibration asks for one block after the other (quota/checkpoint/on_disk.py), and every
finished block is a file of the new checkpoint. They gather in a folder beside OUT, which becomes OUT when all is
there:

    .OUT.compressing          finished blocks, model-00002-of-... onwards, each written beside and renamed
    .OUT.compressing.json     what they were made of; a run with anything else in mind refuses them
    .OUT.compressing.lock     held by the run that writes them (quota/checkpoint/lock.py); a second one is refused

What is in memory at any time: embeddings and head, the tower, one decoder layer with GPTQ's matrices for its widest
linear, and two hidden states a sample. None of it grows with the depth of the decoder. The method "quota" then measures
drops on the finished model, and has that in memory, in its packed form: half a byte a weight. To this come two hidden
states a sample once more (quota/allocation/replay.py).

Several ranks (quota/ranks.py) see the source and OUT alike; the first of them alone writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

from quota import ops
from quota.checkpoint.card import CARD_FILE, model_card
from quota.checkpoint.depth import refuse_endless
from quota.checkpoint.lock import writing
from quota.checkpoint.manifest import seal
from quota.checkpoint.named import in_one_line, load_processor
from quota.checkpoint.on_disk import OnDisk, empty_model
from quota.checkpoint.save import write_recipe
from quota.checkpoint.weights import Weights
from quota.compress import CompressionResult, Options, compress
from quota.errors import QuotaError
from quota.files import read_bytes, read_json, refuse_foreign, replace_folder, tidy, write_atomically
from quota.ops import device, machine
from quota.progress import Progress
from quota.prompts import failing
from quota.ranks import ALONE, Ranks
from quota.samples import Sample, is_text
from quota.samples import fingerprint as samples_fingerprint
from quota.scheme import QuantizationScheme
from quota.version import versions


def compress_folder(
    source: Path,
    out: Path,
    samples: Sequence[Sample],
    keep: float | None = None,
    *,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
    **options: Any,
) -> CompressionResult:
    """Compress the checkpoint in the folder `source` to the folder `out`, which appears complete or not at all.

    `keep`, `progress`, `ranks` and `options` are those of `quota.compress`; `dtype` is the type to compute in, that of
    the checkpoint if it is not given. Called again with the same arguments after an interruption, it goes on from the
    last finished block and writes the same files. Raises QuotaError as `quota.compress` does, for a source without
    safetensors files, for an interrupted run of other arguments in the way, while another run is writing `out`, and for
    ranks that differ in anything that the bits of a block depend on, or are not on the CPU.
    """
    scheme = Options(keep=keep, **options).scheme
    if ranks.size > 1 and device.chosen().type != "cpu":
        raise QuotaError("ranks share samples on the processor; with another --device start one process")
    target = out.resolve()
    if not is_text(str(target)):
        raise QuotaError(f"{os.fsencode(target)!r} is no text in UTF-8, as safetensors needs it; give another name")
    refuse_foreign(target)
    if scheme.weight_bits == 16:
        raise QuotaError(f"{scheme.name} has 16-bit weights, for which there is no packed format; use 4 or 8 bits")
    folder, job = working_folder(target)
    with ExitStack() as at_work:
        if ranks.first:
            at_work.enter_context(writing(target))
            tidy(target, folder)
        with in_one_line(str(source)):
            model, weights = _open(source, dtype)
            processor = load_processor(source)
        identity = _identity(source, weights, samples, scheme, model.dtype)
        if ranks.first:
            _claim(folder, job, identity)
        _agree(identity, ranks)
        try:
            with failing("model", "configuration, which must fit its processor and weights"):
                blocks = OnDisk(model, weights, folder, scheme, ranks)
                result = compress(
                    model, processor, samples, keep, progress=progress, storage=blocks, ranks=ranks, **options
                )
        except BaseException:
            if ranks.first and not any(folder.glob("*.safetensors")):
                # Nothing to go on from.
                shutil.rmtree(folder)
                job.unlink()
            raise
        if not ranks.first:
            return result
        blocks.keep_rest()
        _write_index(folder)
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        # Not the one that was used: a tokenizer saves the padding of its last call, too.
        load_processor(source).save_pretrained(folder)
        write_recipe(folder, result.recipe, result.measurements)
        write_atomically(folder / CARD_FILE, model_card(model, scheme, result.recipe))
        for file in folder.iterdir():
            if file.name.startswith("."):
                # Half-written when an earlier run was ended.
                file.unlink()
            elif file.is_file():
                shutil.copymode(folder / CARD_FILE, file)
        seal(folder)
        replace_folder(folder, target)
        for file in (job, *job.parent.glob(f".{job.name}.*.partial")):
            file.unlink()
    return result


def working_folder(target: Path) -> tuple[Path, Path]:
    """Where the blocks of `target` gather, and the file that says what they are made of."""
    folder = target.with_name(f".{target.name}.compressing")
    return folder, folder.with_name(f"{folder.name}.json")


def finished_blocks(out: Path) -> int:
    """How many blocks an interrupted run has left for `out`."""
    return len(list(working_folder(out.resolve())[0].glob("*.safetensors")))


def _open(source: Path, dtype: torch.dtype | None) -> tuple[Any, Weights]:
    """The model of a checkpoint, on "meta", and where its weights are."""
    refuse_endless(source)
    config = AutoConfig.from_pretrained(source)
    if getattr(config, "quantization_config", None) is not None:
        raise QuotaError(f"{source} is quantised already; give the original model")
    probe = empty_model(lambda: AutoModelForImageTextToText.from_config(config))
    weights = Weights(source, probe)
    if dtype is None:
        dtype = config.dtype if isinstance(config.dtype, torch.dtype) else weights.dtype()
    if dtype == torch.float64:
        raise QuotaError(f"{source} is in float64, which no operator takes; save it in float32 first")
    model = empty_model(lambda: AutoModelForImageTextToText.from_config(config, dtype=dtype))
    model.config.dtype = dtype
    # As transformers writes it: what stands there may be missing, or another program's name.
    model.config.architectures = [type(model).__name__]
    if (source / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(source)
    return model, weights


def _identity(
    source: Path, weights: Weights, samples: Sequence[Sample], scheme: QuantizationScheme, dtype: torch.dtype
) -> dict[str, Any]:
    """All that the bits of a finished block depend on. The keep ratio and the candidate layers are not among it."""
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in weights.files]
    # Configuration, tokenizer and processor.
    others = {
        file.name: hashlib.sha256(read_bytes(file)).hexdigest()
        for file in sorted(source.iterdir())
        # Not what a run to a folder in the source keeps there.
        if file.suffix in (".json", ".jinja", ".model", ".txt") and not file.name.startswith(".")
    }
    return {
        "source": str(source.resolve()),
        "weights": [list(state) for state in states],
        "files": others,
        "samples": samples_fingerprint(samples),
        "scheme": scheme.model_dump(mode="json"),
        "type": str(dtype),
        "threads": torch.get_num_threads(),
        "backend": ops.backend(device=device.chosen()).name,
        "device": machine.name(device.chosen()),
        "instruction set": machine.instructions(),
        "versions": versions("torch", "transformers"),
    }


def _claim(folder: Path, job: Path, identity: dict[str, Any]) -> None:
    """Start in `folder`, or go on in it if what it holds is of the same identity."""
    if folder.exists() and any(folder.glob("*.safetensors")):
        try:
            earlier = read_json(job)
        except QuotaError:
            earlier = {}
        if differing := [name for name in identity if earlier.get(name) != identity[name]]:
            raise QuotaError(
                f"{folder} holds an interrupted run with other {', '.join(differing)}; finish that or delete the folder"
            )
        return
    write_atomically(job, json.dumps(identity, indent=2) + "\n")
    folder.mkdir(parents=True, exist_ok=True)


def _agree(identity: dict[str, Any], ranks: Ranks) -> None:
    """Raise QuotaError on a rank that would make other bits than the first."""
    own = [int(hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12], 16) for value in identity.values()]
    expected = ranks.told(len(own), lambda: own)
    if differing := [name for name, here, there in zip(identity, own, expected, strict=True) if here != there]:
        raise QuotaError(f"rank {ranks.rank} has other {', '.join(differing)} than rank 0; start all ranks alike")


def _write_index(folder: Path) -> None:
    """The file that says which tensor is where."""
    places, size = {}, 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            places |= dict.fromkeys(opened.keys(), file.name)
        size += file.stat().st_size
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    write_atomically(folder / SAFE_WEIGHTS_INDEX_NAME, json.dumps(index, indent=2) + "\n")
