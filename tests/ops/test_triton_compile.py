"""Every kernel compiled for GPUs that are not here, launched as the backend launches it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.operands import make_weight

from quota.ops.interface import PackedTensor
from quota.ops.triton import TritonBackend

triton = pytest.importorskip("triton")
pytestmark = [pytest.mark.skipif(triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is set"), pytest.mark.slow]

# Bytes of shared memory that a program can have (CUDA C++ Programming Guide, table of compute capabilities).
SHARED = {80: 163 << 10, 90: 227 << 10}
TRITON = TritonBackend()


class Absent:
    """What triton asks of a GPU before it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


@pytest.fixture(params=SHARED, ids=lambda capability: f"sm_{capability}")
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Any]]:
    """Kernels compiled so far, by launches that do nothing else."""
    found: list[Any] = []

    def compile_only(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **options: found.append(kernel.warmup(*arguments, grid=grid, **options))

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.JITFunction, "__getitem__", compile_only)
    monkeypatch.setattr(triton.runtime.driver, "_active", Absent(request.param))
    yield found
    assert found
    for kernel in found:
        assert kernel.metadata.target.arch == request.param
        assert f".target sm_{request.param}" in kernel.asm["ptx"]
        assert kernel.asm["cubin"]
        assert kernel.metadata.shared <= SHARED[request.param]


def names(compiled: list[Any]) -> list[str]:
    return [kernel.metadata.name for kernel in compiled]


@pytest.mark.parametrize("tokens", [1, 64, 2048])
def test_linear(compiled: list[Any], tokens: int) -> None:
    TRITON.linear(torch.zeros(tokens, 1024, dtype=torch.bfloat16), make_weight(512, 1024, hadamard=64))
    assert names(compiled) == ["_quantize", "_product"]
    # Integers reach the tensor cores as such.
    assert any(word in compiled[1].asm["ptx"] for word in (".s32.s8.s8", ".s32.s8.s8.s32"))


@pytest.mark.parametrize(("bits", "activation_bits", "group"), [(8, 8, 64), (4, 8, 128), (4, 4, 8)])
def test_linear_of_other_widths(compiled: list[Any], bits: int, activation_bits: int, group: int) -> None:
    weight = make_weight(64, 256, bits, activation_bits, group, group)
    TRITON.linear(torch.zeros(80, 256), weight)
    assert names(compiled) == ["_quantize", "_product"]


@pytest.mark.parametrize(("width", "hadamard"), [(8, 8), (128, 64), (256, 0)])
def test_cache_and_decode(compiled: list[Any], width: int, hadamard: int) -> None:
    stored = TRITON.quantize_kv(torch.zeros(2, 4, 100, width, dtype=torch.bfloat16), 4, hadamard)
    # Compiled only: what is in it does not matter.
    assert isinstance(stored, PackedTensor)
    TRITON.dequantize_kv(stored, torch.bfloat16)
    TRITON.decode_attention(torch.zeros(2, 28, 1, width, dtype=torch.bfloat16), stored, stored, None, 0.1)
    assert names(compiled) == ["_quantize", "_dequantize", "_pieces", "_together"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("queries", [1, 640])
def test_attention(compiled: list[Any], queries: int, dtype: torch.dtype) -> None:
    query, key = torch.zeros(1, 8, queries, 128, dtype=dtype), torch.zeros(1, 2, 640, 128, dtype=dtype)
    rows, visible = torch.ones(1, 2, queries, dtype=torch.bool), torch.ones(1, 640, dtype=torch.bool)
    TRITON.attention(query, key, key, rows, visible, 0.1)
    assert names(compiled) == ["_forward", "_columns"]
