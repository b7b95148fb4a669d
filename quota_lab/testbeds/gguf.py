"""Language models in GGUF files: which one a file holds, by its SHA-256, and its weights as numbers.

Such a file stores weights in 4 to 6 bits (Q4_1, Q4_K_M). transformers dequantises them, and those numbers are full
precision here.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from quota.errors import QuotaError
from quota.models import TEXT_FAMILIES
from quota_lab.testbeds.packages import require

SMOLLM2 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAMES = {
    SMOLLM2: "SmolLM2-135M-Instruct (Q4_1)",
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32": "Qwen2.5-Coder-0.5B-Instruct (Q4_K_M)",
    "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046": "Qwen2.5-Coder-1.5B-Instruct (Q4_K_M)",
}
"""By the SHA-256 of the official files, any copy of which is the same model."""


def model_name(digest: str) -> str:
    """What to call the model in a file with this SHA-256: its name, or the digest itself if it is not a known one."""
    return NAMES.get(digest, f"SHA-256 {digest}")


def load(file: Path) -> tuple[Any, Any]:
    """Model in float32, eval mode, and tokenizer.

    QuotaError if a package is missing, for what is not a GGUF file, and for an architecture that is not supported.
    """
    # transformers reads the format with the first and places the tensors with the second.
    for module in ("gguf", "accelerate"):
        require(module)
    folder, name = str(file.parent), file.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    except (OSError, ValueError, struct.error) as error:
        raise QuotaError(f"cannot read {file} ({str(error).splitlines()[0]}); give a whole GGUF file") from error
    if (kind := type(model).__name__) not in TEXT_FAMILIES:
        raise QuotaError(f"{file} holds a {kind}; supported are {', '.join(TEXT_FAMILIES)}")
    return model.eval(), tokenizer
