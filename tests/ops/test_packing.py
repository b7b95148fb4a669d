"""Packed weights are those of compressed-tensors, there and back."""

from __future__ import annotations

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st

from quota.ops.packing import pack_int32, unpack_int32


@given(st.integers(1, 5), st.integers(1, 80), st.sampled_from([4, 8]), st.integers(0, 2**31 - 1))
@settings(max_examples=60, deadline=None)
def test_packing_is_that_of_compressed_tensors(rows: int, columns: int, bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    limit = 2 ** (bits - 1)
    q = torch.randint(-limit, limit, (rows, columns), dtype=torch.int8, generator=generator)
    packed = pack_int32(q, bits)
    assert torch.equal(packed, pack_to_int32(q, bits))
    assert torch.equal(unpack_int32(packed, bits, columns), q)
    assert torch.equal(unpack_from_int32(packed, bits, q.shape), q)
