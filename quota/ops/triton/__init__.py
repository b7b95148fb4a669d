"""The "triton" backend: kernels for CUDA.

Nothing here imports triton before a job is run, so `why_not` can tell a machine without it what is missing. With
TRITON_INTERPRET=1 the same kernels run on the CPU, one program after the other, in triton's interpreter: slow, but
every line of them is tested that way. What a GPU compiles is tested without one too, for sm_80 and sm_90.

NaN and infinity are noticed by the kernels that quantise. Waiting for their word would stall the GPU at every layer:
the rows concerned come out as NaN, and the error is raised by the first call that finds the word there
(`quota.ops.triton.alarm`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from quota.ops.head_transform import HeadTransform
from quota.ops.interface import CacheSpec, InputSpec, LinearSpec, LinearWeight, PackedTensor
from quota.ops.reference.backend import LARGEST_COLUMNS
from quota.ops.reference.plain import PlainTorch
from quota.ops.triton.limits import LARGEST_ROTATION, WIDEST_HEAD


class TritonBackend(PlainTorch):
    """Needs triton and an NVIDIA GPU of compute capability 8.0 or later."""

    name = "triton"

    def why_not(self) -> str | None:
        if find_spec("triton") is None:
            return "triton is not installed (`pip install triton`)"
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None
        if not torch.cuda.is_available():
            return "torch finds no CUDA device"
        if torch.version.cuda is None or torch.cuda.get_device_capability() < (8, 0):
            return "the GPU is not an NVIDIA one of compute capability 8.0 or later"
        return None

    def lacks(self, spec: LinearSpec) -> str | None:
        if not {spec.bits, spec.inputs.bits} <= {4, 8}:
            return "it multiplies integers of 4 and 8 bits only"
        if spec.columns % 8 or spec.group % 8:
            return f"its tiles need multiples of 8 input channels, not {spec.columns} in groups of {spec.group}"
        if spec.columns > LARGEST_COLUMNS:
            return f"sums over {spec.columns} channels do not fit 32 bits"
        return _lacks_rotation(spec.inputs.hadamard)

    def lacks_cache(self, spec: CacheSpec) -> str | None:
        if spec.bits != 4:
            return f"it stores keys and values in 4 bits only, not {spec.bits}"
        if spec.width % 8 or spec.width > WIDEST_HEAD:
            return f"its tiles need heads of a multiple of 8 channels up to {WIDEST_HEAD}, not {spec.width}"
        return _lacks_rotation(spec.hadamard)

    def quantize(self, x: Tensor, inputs: InputSpec) -> tuple[Tensor, Tensor]:
        """v int8 [M, K] and s float32 [M] of x [M, K]; QuotaError as for `linear`."""
        from quota.ops.triton.activations import quantize

        values, scale = quantize(x, inputs)
        return values[0], scale

    def sums(self, values: Tensor, weight: LinearWeight) -> Tensor:
        """S of v int8 [M, K]: int32 [M, N]."""
        from quota.ops.triton.linear import sums

        return sums(values, weight)

    def linear(self, x: Tensor, weights: Sequence[LinearWeight]) -> list[Tensor]:
        """x [M, K] -> [M, N] for each weight; QuotaError for NaN or infinity, on a GPU perhaps a few calls later."""
        from quota.ops.triton.linear import linear

        return linear(x, weights)

    def activation_error(self, x: Tensor, inputs: InputSpec) -> Tensor:
        """||Q(x H) - x H||_2 of each row of x [M, K] -> [M] float32, NaN for a row with NaN or infinity."""
        from quota.ops.triton.activations import activation_error

        return activation_error(x, inputs)

    def information(self, hidden: Tensor, valid: Tensor, counts: Tensor, noise: float) -> Tensor:
        """hidden [B, V, D], valid bool [B, V], counts int64 [B] -> score [B, V] float32, 0 at padding."""
        from quota.ops.triton.information import information

        return information(hidden, valid, counts, noise)

    def quantize_kv(self, x: Tensor, bits: int, hadamard: int, transform: HeadTransform | None = None) -> PackedTensor:
        """[B, G, T, D] -> packed, 4 bits; QuotaError as for `linear`, and for what float16 cannot hold."""
        from quota.ops.triton.cache import quantize

        return quantize(x, hadamard, transform)

    def dequantize_kv(self, stored: PackedTensor, dtype: torch.dtype) -> Tensor:
        """Rotated and transformed back: [B, G, T, D] in `dtype`."""
        from quota.ops.triton.cache import dequantize

        return dequantize(stored, dtype)

    def decode_attention(
        self,
        query: Tensor,
        keys: PackedTensor,
        values: PackedTensor,
        valid: Tensor | None,
        scaling: float,
        tokens: int | None = None,
        added: Tensor | None = None,
    ) -> Tensor:
        """query [B, H, 1, D], valid bool [B, T] -> [B, H, 1, D] in the query's type; zeros where nothing is valid."""
        from quota.ops.triton.decode import decode_attention

        return decode_attention(query, keys, values, valid, scaling, tokens, added)

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rows: Tensor,
        visible: Tensor,
        scaling: float,
        causal: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Output [B, H, T, D], zeros for a query that sees nothing, and sums float32 [B, R, S]."""
        from quota.ops.triton.attention import attention

        return attention(query, key, value, rows, visible, scaling, causal)

    def leads_attention(self, dtype: torch.dtype) -> bool:
        return False


def _lacks_rotation(block: int) -> str | None:
    return f"it rotates up to {LARGEST_ROTATION} channels, not {block}" if block > LARGEST_ROTATION else None
