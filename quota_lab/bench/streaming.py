"""Peak memory of `quota compress`, at two depths of one width: it may not grow with depth. And against the weights.

The model is a LLaVA with random weights, written shard by shard, so that making it takes no more memory than
compressing it; the process that compresses it is a fresh one and reports its own peak (quota_lab/bench/memory.py).
`python -m quota_lab.bench.streaming SOURCE OUT SAMPLES` is that process, and prints its peak in bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from quota import ops
from quota.checkpoint.on_disk import empty_model
from quota.checkpoint.weights import weight_files
from quota.compress_folder import compress_folder
from quota.errors import QuotaError
from quota.progress import Steps, silent
from quota_lab import reference
from quota_lab.bench.memory import own_peak
from quota_lab.bench.report import Report, Row


@dataclass(frozen=True)
class Width:
    """The sizes of a LLaVA but for the depth of its decoder."""

    name: str
    hidden: int
    inner: int
    heads: int
    tower_hidden: int
    tower_inner: int
    tower_layers: int
    tower_heads: int
    image: int
    patch: int = 14
    words: int = 32064


SEVEN_B = Width("LLaVA-1.5-7B", 4096, 11008, 32, 1024, 4096, 24, 16, 336)
"""CLIP-L/14-336 and a decoder as wide as Llama-2-7B, which has 32 layers."""
REALISTIC = Width("realistic", 2048, 5504, 16, 1024, 4096, 24, 16, 336)
"""That of the random model in `quota bench e2e`, which has 16."""
MODELS = {"7b": SEVEN_B, "realistic": REALISTIC}


def bench_compress(depths: Sequence[int], samples: int, width: Width = SEVEN_B, progress: Steps = silent) -> Report:
    """Compress a model of this width at every depth.

    Each has two rows, one against the peak at the first depth and one against the weights in bfloat16. Needs the disk
    for one model at a time. Raises QuotaError if a process fails.
    """
    report = Report()
    peaks: list[int] = []
    backend = ops.forced() or "automatic"
    for done, depth in enumerate(depths, 1):
        with tempfile.TemporaryDirectory() as folder:
            write_random(width, depth, Path(folder) / "source")
            weights = sum(file.stat().st_size for file in weight_files(Path(folder) / "source"))
            peaks.append(_peak(Path(folder), samples))
        shape = f"compress {width.name}, {depth} of its layers, {samples} samples"
        report.rows.append(Row("memory", shape, backend, peaks[-1], f"{depths[0]} layers", peaks[0]))
        report.rows.append(Row("memory", shape, backend, peaks[-1], "bf16 weights", weights))
        progress("compress", done, len(depths))
    return report


def write_random(width: Width, depth: int, folder: Path) -> None:
    """A checkpoint of this shape in bfloat16, one file a module, with the tokenizer of the reference model."""
    folder.mkdir(parents=True)
    model = empty_model(
        lambda: LlavaForConditionalGeneration._from_config(llava_config(width, depth), dtype=torch.bfloat16)
    )
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    _processor(width).save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    for number, (prefix, module) in enumerate(model.named_modules()):
        tensors = {}
        for name, parameter in module.named_parameters(prefix, recurse=False):
            # Norms are ones; matrices keep the size of what goes through them.
            spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.0
            drawn = torch.randn(parameter.shape, generator=generator).mul_(spread)
            tensors[name] = (drawn if parameter.ndim > 1 else drawn + ("norm" in name)).to(torch.bfloat16)
        if tensors:
            file = f"model-{number:05d}.safetensors"
            save_file(tensors, folder / file, metadata={"format": "pt"})
            places |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index), encoding="utf-8")


def _processor(width: Width) -> Any:
    processor: Any = AutoProcessor.from_pretrained(reference.model_path())
    side = {"height": width.image, "width": width.image}
    processor.image_processor.size = processor.image_processor.crop_size = side
    processor.patch_size = width.patch
    return processor


def llava_config(width: Width, depth: int) -> LlavaConfig:
    """The architecture, with the image token of the reference model's tokenizer."""
    vision = CLIPVisionConfig(
        hidden_size=width.tower_hidden,
        intermediate_size=width.tower_inner,
        num_hidden_layers=width.tower_layers,
        num_attention_heads=width.tower_heads,
        image_size=width.image,
        patch_size=width.patch,
    )
    text = LlamaConfig(
        vocab_size=width.words,
        hidden_size=width.hidden,
        intermediate_size=width.inner,
        num_hidden_layers=depth,
        num_attention_heads=width.heads,
        max_position_embeddings=4096,
    )
    own = LlavaConfig.from_pretrained(reference.model_path())
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=own.image_token_id, tie_word_embeddings=False
    )


def _peak(folder: Path, samples: int) -> int:
    command = [
        sys.executable,
        "-m",
        "quota_lab.bench.streaming",
        str(folder / "source"),
        str(folder / "out"),
        str(samples),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it was ended by the system, perhaps for lack of memory"])[-1]
        raise QuotaError(f"measuring the memory of compression failed: {last}")
    return int(done.stdout.split()[-1])


def measure(source: str, out: str, samples: str) -> int:
    """Compress, pruning after the last layer, and return the peak of this process in bytes."""
    depth = LlavaConfig.from_pretrained(source).get_text_config().num_hidden_layers
    questions = reference.calibration_samples(int(samples), seed=0)
    compress_folder(Path(source), Path(out), questions, layers=[depth - 1], method="paper")
    return own_peak()


if __name__ == "__main__":
    print(measure(*sys.argv[1:]))
