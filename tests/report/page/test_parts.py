"""Bytes by part are those of the tensors."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from quota.checkpoint.described import described
from quota.report.page.parts import part_bytes


def test_they_add_up_to_the_file(quota_folder: Path, full_model: LlavaForConditionalGeneration) -> None:
    found = part_bytes(quota_folder, described(quota_folder))
    tensors = load_file(quota_folder / "model.safetensors")
    assert sum(one.stored for one in found.values()) == sum(tensor.nbytes for tensor in tensors.values())
    decoder = sum(tensor.nbytes for name, tensor in tensors.items() if "language_model" in name and ".layers." in name)
    assert found["decoder"].stored == decoder
    assert found["embedding"].stored == sum(t.nbytes for name, t in tensors.items() if "embed_tokens" in name)
    assert sum(one.in_16_bits for one in found.values()) == 2 * sum(one.numel() for one in full_model.parameters())
    # The head is the embedding.
    assert list(found) == ["tower", "projector", "embedding", "decoder", "other"]
