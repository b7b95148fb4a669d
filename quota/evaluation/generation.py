"""Greedy answers: a batch of questions in, text out, through the model's own `generate`."""

from __future__ import annotations

from typing import Any

import torch

from quota.samples import Sample, build_inputs

MAX_NEW_TOKENS = 24
"""Enough for the short answers of a suite."""


def generate(model: Any, processor: Any, inputs: Any, max_new_tokens: int = MAX_NEW_TOKENS) -> torch.Tensor:
    """Greedy continuation of a batch from `build_inputs`: the new tokens only, [B, T], padded after the end."""
    inputs = inputs.to(model.device)
    with torch.inference_mode():
        tokens = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=processor.tokenizer.pad_token_id,
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
