"""The ways in which people use a model of transformers, on a compressed checkpoint of the reference model."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, TextIteratorStreamer, pipeline

import quota
from quota import QuotaError
from quota.prompts import MAX_NEW_TOKENS, answer
from quota.quantization.linear import W4A4Linear
from quota.samples import Sample
from quota_lab import reference

pytestmark = pytest.mark.slow

LAYERS = 10


@pytest.fixture(scope="module")
def processor(reference_folder: Path) -> Any:
    return AutoProcessor.from_pretrained(reference_folder)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return reference.calibration_samples(6, seed=5)


@pytest.fixture(scope="module")
def expected(reference_folder: Path, processor: Any, samples: list[Sample]) -> list[str]:
    """What the model answers in float32, asked the way this package asks."""
    model = load(reference_folder)
    answers = [answer(model, processor, sample) for sample in samples]
    assert len(set(answers)) > 1
    return answers


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, **options)


def conversation(sample: Sample) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": sample.pictures()[0]}, {"type": "text", "text": sample.question}]
    return [{"role": "user", "content": content}]


def tokenized(processor: Any, sample: Sample) -> Any:
    """Prompt and picture through the chat template in one call."""
    return processor.apply_chat_template(
        conversation(sample), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def said(model: Any, processor: Any, sample: Sample) -> str:
    inputs = tokenized(processor, sample).to(model.device, model.dtype)
    tokens = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_pipeline(reference_folder: Path, samples: list[Sample], expected: list[str]) -> None:
    ask = pipeline("image-text-to-text", model=str(reference_folder))
    with quota.record(ask.model) as trace:
        outputs = [
            ask(text=conversation(sample), max_new_tokens=MAX_NEW_TOKENS, return_full_text=False) for sample in samples
        ]
    assert trace.tokens_per_layer[-1] < trace.tokens_per_layer[0]
    assert [output[0]["generated_text"].strip() for output in outputs] == expected


def test_pipeline_saves_what_it_loads_again(reference_folder: Path, tmp_path: Path) -> None:
    ask = pipeline("image-text-to-text", model=str(reference_folder))
    ask.save_pretrained(tmp_path / "again")
    again = pipeline("image-text-to-text", model=str(tmp_path / "again"))
    assert again.model.quota_pruner.recipe == ask.model.quota_pruner.recipe


def test_chat_template(reference_folder: Path, processor: Any, samples: list[Sample], expected: list[str]) -> None:
    model = load(reference_folder)
    assert [said(model, processor, sample) for sample in samples] == expected


def test_streaming(reference_folder: Path, processor: Any, samples: list[Sample], expected: list[str]) -> None:
    model = load(reference_folder)
    for sample, whole in zip(samples, expected, strict=True):
        streamer = TextIteratorStreamer(processor.tokenizer, timeout=60, skip_prompt=True, skip_special_tokens=True)
        wanted = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, "streamer": streamer}
        thread = Thread(target=model.generate, kwargs={**tokenized(processor, sample), **wanted})
        thread.start()
        pieces = list(streamer)
        thread.join()
        assert "".join(pieces).strip() == whole


ON_DISK = (3, LAYERS - 1)
SPLIT = {
    "model.vision_tower": "cpu",
    "model.multi_modal_projector": "cpu",
    "model.language_model.embed_tokens": "cpu",
    "model.language_model.norm": "cpu",
    "model.language_model.rotary_emb": "cpu",
    "lm_head": "cpu",
    **{f"model.language_model.layers.{layer}": "disk" if layer in ON_DISK else "cpu" for layer in range(LAYERS)},
}


@pytest.mark.parametrize(
    "device_map", ["cpu", "auto", {"": "cpu"}, SPLIT], ids=["cpu", "auto", "whole", "two layers on disk"]
)
def test_device_map(
    device_map: Any, reference_folder: Path, processor: Any, samples: list[Sample], expected: list[str], tmp_path: Path
) -> None:
    model = load(reference_folder, device_map=device_map, offload_folder=tmp_path)
    offloaded = any(parameter.is_meta for parameter in model.parameters())
    assert offloaded == (device_map is SPLIT)
    assert [said(model, processor, sample) for sample in samples] == expected


@pytest.mark.parametrize(
    "device",
    [pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_device_map_on_an_accelerator(
    device: str, reference_folder: Path, processor: Any, samples: list[Sample]
) -> None:
    model = load(reference_folder, device_map=device, dtype=torch.bfloat16)
    assert all(
        module.weight_packed.device.type == device for module in model.modules() if isinstance(module, W4A4Linear)
    )
    assert all(said(model, processor, sample) for sample in samples)


def test_packed_weights_are_not_offloaded(reference_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(QuotaError, match="without offload_buffers"):
        load(reference_folder, device_map=SPLIT, offload_folder=tmp_path, offload_buffers=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, "auto"], ids=["float32", "bfloat16", "auto"])
def test_types(
    dtype: Any, reference_folder: Path, processor: Any, samples: list[Sample], expected: list[str], tmp_path: Path
) -> None:
    model = load(reference_folder, dtype=dtype)
    assert model.dtype == (torch.float32 if dtype == "auto" else dtype)
    answers = [said(model, processor, sample) for sample in samples]
    same = sum(a == b for a, b in zip(answers, expected, strict=True))
    # Half the digits may tip a close decision, rarely.
    assert same >= (len(samples) - 1 if dtype == torch.bfloat16 else len(samples))
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    assert again.dtype == model.dtype
    assert [said(again, processor, sample) for sample in samples] == answers
