"""The real parts: DINOv2-S/14 and SmolLM2-135M-Instruct, each checked by SHA-256 before it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from quota.errors import QuotaError
from quota.files import sha256
from quota_lab.testbeds import dinov2, gguf, smollm2
from quota_lab.testbeds.packages import package_file
from quota_lab.testbeds.vlm.architecture import LAYER, assemble, with_image_token

DIGESTS = {
    dinov2.WEIGHTS: "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    smollm2.WEIGHTS: gguf.SMOLLM2,
}


def load_parts(layer: int = LAYER) -> tuple[Any, PreTrainedTokenizerFast]:
    """The LLaVA with an untrained projector, float32, and the tokenizer. QuotaError for a missing or other file."""
    for weights, install in ((dinov2.WEIGHTS, dinov2.INSTALL), (smollm2.WEIGHTS, smollm2.INSTALL)):
        check_digest(package_file(*weights, install), DIGESTS[weights])
    decoder, tokenizer = smollm2.load()
    tokenizer = with_image_token(tokenizer)
    return assemble(dinov2.load(), decoder, tokenizer, layer), tokenizer


def check_digest(file: Path, digest: str) -> None:
    """QuotaError unless the SHA-256 of `file` is `digest`."""
    found = sha256(file)
    if found != digest:
        raise QuotaError(f"{file} is another version (SHA-256 {found[:12]}..., expected {digest[:12]}...)")
