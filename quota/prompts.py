"""Questions become a model's arguments, and its tokens greedy answers, through its own chat template and `generate`.

Models from before chat templates get the plain prompt of their family.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from quota.errors import QuotaError
from quota.samples import Sample, is_text

MAX_NEW_TOKENS = 24
"""Enough for the short answers of a suite."""
FRAMES_PER_SECOND = 1
"""What models are told that read the time of a frame: the frames of a video come without."""

# Families from before chat templates, by their processor: a mark for each picture, then the question. That of PaliGemma
# adds the beginning and the end of the line itself.
_PLAIN_PROMPTS = {"PaliGemmaProcessor": "<image>"}
_PROCESSOR = ("model's processor", "chat template, tokenizer and processor files")


def generate(
    model: Any, processor: Any, inputs: Any, max_new_tokens: int = MAX_NEW_TOKENS, **more: Any
) -> torch.Tensor:
    """Greedy continuation of a batch from `build_inputs`: the new tokens only, [B, T], padded after the end.

    `more` goes to the model's own `generate`: a streamer, what stops it, a cache.
    """
    inputs = inputs.to(model.device)
    with torch.inference_mode(), failing("model", "config.json and generation_config.json"):
        tokens = model.generate(
            **taken(model, inputs),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=processor.tokenizer.pad_token_id,
            **more,
        )
    return tokens[:, inputs["input_ids"].shape[1] :]


def decode(processor: Any, tokens: torch.Tensor) -> list[str]:
    """Generated tokens [B, T] as B texts, without special tokens."""
    return [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]


def answer(model: Any, processor: Any, sample: Sample, max_new_tokens: int = MAX_NEW_TOKENS) -> str:
    """The model's answer to one question."""
    inputs = build_inputs(processor, [sample])
    return decode(processor, generate(model, processor, inputs, max_new_tokens))[0]


def count_tokens(processor: Any, tokens: torch.Tensor) -> int:
    """Tokens that were really produced: a sample's end mark counts, the padding after it does not."""
    padding, end = processor.tokenizer.pad_token_id, processor.tokenizer.eos_token_id
    produced = int((tokens != padding).sum())
    # Where the end mark is also the padding, the first one of each sample was produced.
    return produced + int((tokens == end).any(dim=1).sum()) if padding == end else produced


def taken(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the processor's arguments that the model's forward takes: `generate` refuses others."""
    names = inspect.signature(model.forward).parameters
    return {name: value for name, value in inputs.items() if name in names}


def build_inputs(processor: Any, samples: Sequence[Sample]) -> Any:
    """What the model takes for a batch of questions: `input_ids` and `attention_mask` [B, L], `pixel_values`.

    The processor's own chat template writes the prompt, and shorter prompts are padded on the left, as generation
    needs. All frames of a video are shown. Labels, which some processors always add, are left out: nothing here asks
    for a loss.

    Raises QuotaError for a processor that has neither a chat template nor a plain prompt, a question that is no text, a
    video for a model that takes none, and what the processor itself refuses.
    """
    prompts = [prompt_text(processor, sample) for sample in samples]
    pictures = [sample.pictures() for sample in samples]
    given: dict[str, Any] = {}
    if not all(sample.video for sample in samples):
        # Each in a list of its own: some processors take a flat list for the pictures of one prompt.
        given["images"] = [[] if sample.video else own for sample, own in zip(samples, pictures, strict=True)]
    if videos := [frames for sample, frames in zip(samples, pictures, strict=True) if sample.video]:
        given |= {"videos": videos, "video_metadata": [_times(frames) for frames in videos], "do_sample_frames": False}
    with failing(*_PROCESSOR):
        inputs = processor(text=prompts, padding=True, padding_side="left", return_tensors="pt", **given)
    inputs.pop("labels", None)
    return inputs


def prompt_text(processor: Any, sample: Sample) -> str:
    """What the model is asked, as its processor words it. QuotaError for a question that it cannot be asked."""
    if not is_text(sample.question):
        raise QuotaError(f"the question {sample.question!r} holds half a character; write it as UTF-8")
    check_marks(processor, sample.question)
    if sample.video and getattr(processor, "video_processor", None) is None:
        raise QuotaError("this model takes no videos; give frames of it as several pictures")
    count = 1 if sample.video or not isinstance(sample.image, tuple) else len(sample.image)
    if getattr(processor, "chat_template", None) is None:
        mark = _PLAIN_PROMPTS.get(type(processor).__name__)
        if mark is None:
            raise QuotaError("the model's processor has no chat template; add chat_template.jinja to its folder")
        return mark * count + sample.question
    media = [{"type": "video" if sample.video else "image"}] * count
    turns: list[dict[str, Any]] = [{"role": "user", "content": [*media, {"type": "text", "text": sample.question}]}]
    with failing(*_PROCESSOR):
        return processor.apply_chat_template(turns, add_generation_prompt=True)


def _times(frames: Sequence[Any]) -> dict[str, Any]:
    """When each frame of a video is shown, in the form of transformers' `VideoMetadata`."""
    return {"total_num_frames": len(frames), "fps": FRAMES_PER_SECOND, "frames_indices": list(range(len(frames)))}


def check_marks(processor: Any, question: str) -> None:
    """QuotaError for marks of pictures: those are the template's to set, one for each picture that there is."""
    for kind in ("image_token", "video_token"):
        mark = getattr(processor, kind, None)
        if isinstance(mark, str) and mark and mark in question:
            raise QuotaError(f"the question holds {mark}, which stands for a picture; leave it out")


@contextmanager
def failing(part: str, files: str) -> Iterator[None]:
    """What transformers raises of a model's own `files`, if their types or values are wrong, becomes one line."""
    try:
        yield
    except QuotaError:
        raise
    except Exception as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if Path(frame.f_code.co_filename).is_relative_to(Path(__file__).parent):
            # Not of theirs, but a defect of ours.
            raise
        reason = next(iter(str(error).splitlines()), "")
        raise QuotaError(
            f"the {part} fails ({type(error).__name__}: {reason}); look at its {files}, or copy them again"
        ) from error
