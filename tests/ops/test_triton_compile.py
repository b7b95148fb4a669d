"""Every kernel compiled for GPUs that are not here, launched as the backend launches it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.operands import make_weight

from quota.ops.interface import InputSpec, PackedTensor
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


def assert_integers_are_multiplied(kernel: Any, tokens: int) -> None:
    """By tensor cores, eight bits by eight; what follows is exact."""
    ptx = kernel.asm["ptx"]
    if kernel.metadata.target.arch == 80 or tokens <= 16:
        assert re.search(r"mma\.sync\.aligned\.m16n8k32\.row\.col\S*\.s32\.s8\.s8\.s32", ptx)
    else:
        assert re.search(r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k32\.s32\.s8\.s8", ptx)
    assert_exact(kernel)


def assert_exact(kernel: Any) -> None:
    """No product is fused with a sum, and subnormal numbers are not flushed."""
    assert not kernel.metadata.enable_fp_fusion
    assert "fma.rn.f32" not in kernel.asm["ptx"] and ".ftz" not in kernel.asm["ptx"]


@pytest.mark.parametrize("tokens", [1, 64, 2048])
def test_linear(compiled: list[Any], tokens: int) -> None:
    # One launch each for all weights that read the same tensor.
    weights = [make_weight(rows, 1024, hadamard=64) for rows in (512, 256, 1)]
    TRITON.linear(torch.zeros(tokens, 1024, dtype=torch.bfloat16), weights)
    assert names(compiled) == ["_quantize", "_product"]
    assert_integers_are_multiplied(compiled[1], tokens)


@pytest.mark.parametrize(
    ("columns", "bits", "activation_bits", "group"),
    [(256, 8, 8, 64), (256, 4, 8, 128), (256, 4, 4, 8), (5504, 4, 4, 64)],
)
def test_linear_of_other_widths(compiled: list[Any], columns: int, bits: int, activation_bits: int, group: int) -> None:
    weight = make_weight(64, columns, bits, activation_bits, group, group)
    TRITON.linear(torch.zeros(80, columns), [weight])
    assert names(compiled) == ["_quantize", "_product"]
    assert_exact(compiled[0])
    assert_integers_are_multiplied(compiled[1], 80)


@pytest.mark.parametrize("columns", [256, 5504])
def test_activation_error(compiled: list[Any], columns: int) -> None:
    TRITON.activation_error(torch.zeros(80, columns, dtype=torch.bfloat16), InputSpec(columns, 4, 64, 64))
    assert names(compiled) == ["_quantize"]


@pytest.mark.parametrize("tokens", [144, 576, 16384])
def test_information(compiled: list[Any], tokens: int) -> None:
    valid = torch.ones(2, tokens, dtype=torch.bool)
    TRITON.information(torch.zeros(2, tokens, 1), valid, torch.tensor([3, tokens // 3]), 0.03)
    assert names(compiled) == ["_choose"]
    # What one thread writes all read at the next choice.
    assert "bar.sync" in compiled[0].asm["ptx"]


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
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all to all"])
def test_attention(compiled: list[Any], causal: bool, queries: int, dtype: torch.dtype) -> None:
    query, key = torch.zeros(1, 8, queries, 128, dtype=dtype), torch.zeros(1, 2, 640, 128, dtype=dtype)
    rows, visible = torch.ones(1, 2, queries, dtype=torch.bool), torch.ones(1, 640, dtype=torch.bool)
    TRITON.attention(query, key, key, rows, visible, 0.1, causal)
    assert names(compiled) == ["_forward", "_columns"]
