"""Keys behind a transform: every backend against the reference, which transforms, rotates and quantises one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.instruction_sets import HERE, needs_library, using
from support.interpreted import interpreter
from torch import Tensor

from quota import ops
from quota.errors import QuotaError
from quota.ops.cpu import cache
from quota.ops.head_transform import HeadTransform
from quota.ops.interface import Backend, PackedTensor
from quota.ops.reference import ReferenceBackend
from quota.ops.triton import TritonBackend

REFERENCE = ReferenceBackend()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Of numbers of about 4: a unit in the last place, and what a float32 sum in another order may differ by.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2**-5, torch.float16: 2**-8}


@pytest.fixture(params=[*HERE, "reference"], scope="module")
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Those that store in ways of their own, cpu under the name of every instruction set."""
    if request.param == "reference":
        yield REFERENCE
    else:
        with using(request.param):
            yield ops.backend("cpu")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_transform(groups: int, width: int, seed: int = 0) -> HeadTransform:
    """Well conditioned, of channels of unequal size and a mean that is larger than they are."""
    q, _ = torch.linalg.qr(random(groups, width, width, seed=seed))
    size = torch.exp(random(groups, width, seed=seed + 1) / 2)
    return HeadTransform(4 * random(groups, width, seed=seed + 2), q * size.unsqueeze(1) @ q.mT)


def make_keys(batch: int, tokens: int, transform: HeadTransform, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """[B, G, T, D] around the transform's center, token by token in memory as a projection leaves them."""
    groups, width = transform.center.shape
    keys = random(batch, tokens, groups, width, seed=seed) + transform.center
    return keys.to(dtype).transpose(1, 2)


def make_memory(
    batch: int, groups: int, slots: int, width: int, hadamard: int, transform: HeadTransform | None = None
) -> PackedTensor:
    packed = torch.full((batch, groups, slots, width // 2), 85, dtype=torch.uint8)
    scale, zero = (torch.full((batch, groups, slots, 1), value).half() for value in (0.25, -1.0))
    return PackedTensor(packed, scale, zero, 4, width, hadamard, transform)


def slots_of(stored: PackedTensor, first: int, last: int | None = None) -> PackedTensor:
    parts = {name: getattr(stored, name)[:, :, first:last] for name in ("packed", "scale", "zero")}
    return replace(stored, **parts)


def assert_bits(found: PackedTensor, expected: PackedTensor) -> None:
    for name in ("packed", "scale", "zero"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


shapes = given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    tokens=st.sampled_from([0, 1, 2, 5, 31, 33, 70]),
    width=st.sampled_from([8, 24, 64, 80, 128]),
    hadamard=st.sampled_from([0, 8]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
few = settings(deadline=None, max_examples=25)


@few
@shapes
def test_what_is_stored_and_read_is_the_references(
    backend: Backend, batch: int, groups: int, tokens: int, width: int, hadamard: int, dtype: torch.dtype, seed: int
) -> None:
    transform = make_transform(groups, width, seed)
    keys = make_keys(batch, tokens, transform, dtype, seed)
    found = backend.quantize_kv(keys, 4, hadamard, transform)
    expected = REFERENCE.quantize_kv(keys, 4, hadamard, transform)
    assert found.transform is transform and found.hadamard == hadamard
    torch.testing.assert_close(found.scale, expected.scale, atol=0, rtol=2**-9)
    torch.testing.assert_close(found.zero, expected.zero, atol=1e-4, rtol=2**-9)
    # Sums in another order fall on the other side of a tie now and then.
    levels = [torch.stack((each.packed & 15, each.packed >> 4), -1).int() for each in (found, expected)]
    assert not tokens or (levels[0] == levels[1]).float().mean() > 0.98
    assert not tokens or (levels[0] - levels[1]).abs().max() <= 1
    read = backend.dequantize_kv(expected, dtype)
    assert read.dtype == dtype and read.shape == keys.shape
    torch.testing.assert_close(read, REFERENCE.dequantize_kv(expected, dtype), atol=TOLERANCE[dtype], rtol=2**-7)


@few
@shapes
def test_storing_at_once_is_storing_and_reading(
    backend: Backend, batch: int, groups: int, tokens: int, width: int, hadamard: int, dtype: torch.dtype, seed: int
) -> None:
    transform = make_transform(groups, width, seed)
    keys, values = (make_keys(batch, tokens, transform, dtype, seed + i) for i in range(2))
    shape = batch, groups, tokens + 5, width
    memory = make_memory(*shape, hadamard, transform), make_memory(*shape, 0)
    expected = backend.quantize_kv(keys, 4, hadamard, transform), backend.quantize_kv(values, 4, 0)
    assert backend.store_kv(keys, values, memory, 3, False) is None
    before = [replace(each, packed=each.packed.clone()) for each in memory]
    read = backend.store_kv(keys, values, memory, 3, True)
    assert read is not None
    for found, stored, once, numbers in zip(memory, expected, before, read, strict=True):
        assert_bits(slots_of(found, 3, 3 + tokens), stored)
        assert torch.equal(found.packed, once.packed)
        assert torch.equal(numbers, backend.dequantize_kv(stored, dtype))
        # Other slots are nobody's business.
        for other in (slots_of(found, 0, 3), slots_of(found, 3 + tokens)):
            assert_bits(other, make_memory(batch, groups, other.packed.shape[2], width, 0))


@few
@given(
    batch=st.integers(1, 2),
    groups=st.integers(1, 3),
    shared=st.integers(1, 5),
    tokens=st.integers(1, 70),
    width=st.sampled_from([8, 24, 64, 80, 128]),
    hadamard=st.sampled_from([0, 8]),
    masked=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_a_query_meets_the_keys_that_were_given(
    backend: Backend,
    batch: int,
    groups: int,
    shared: int,
    tokens: int,
    width: int,
    hadamard: int,
    masked: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    transform = make_transform(groups, width, seed)
    keys, values = (make_keys(batch, tokens, transform, torch.float32, seed + i) for i in range(2))
    stored = REFERENCE.quantize_kv(keys, 4, hadamard, transform), REFERENCE.quantize_kv(values, 4, 0)
    query = random(batch, groups * shared, 1, width, seed=seed).to(dtype)
    valid = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(seed)) < 0.7 if masked else None
    found = backend.decode_attention(query, *stored, valid, width**-0.5)
    assert found.dtype == dtype and found.shape == query.shape
    expected = REFERENCE.decode_attention(query, *stored, valid, width**-0.5)
    torch.testing.assert_close(found, expected, atol=2 * TOLERANCE[dtype], rtol=2**-7)
    # The same in memory that has room for more.
    shape = batch, groups, tokens + 3, width
    memory = make_memory(*shape, hadamard, transform), make_memory(*shape, 0)
    for room, part in zip(memory, stored, strict=True):
        for name in ("packed", "scale", "zero"):
            getattr(room, name)[:, :, :tokens] = getattr(part, name)
    assert torch.equal(backend.decode_attention(query, *memory, valid, width**-0.5, tokens), found)


@needs_library
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [24, 80, 128])
@pytest.mark.parametrize("isa", HERE)
def test_a_token_is_the_same_alone_among_others_and_for_any_threads(isa: str, width: int, dtype: torch.dtype) -> None:
    with using(isa):
        cpu, transform = ops.backend("cpu"), make_transform(2, width)
        keys = make_keys(2, 70, transform, dtype)
        together = cpu.quantize_kv(keys, 4, 8, transform)
        read = cpu.dequantize_kv(together, dtype)
        for first, last in [(9, 42), (5, 6), (68, 70)]:
            # A step of one token has no use for tiles.
            if isa == "amx" and last - first == 1:
                continue
            part = cpu.quantize_kv(keys[1:, :, first:last], 4, 8, transform)
            whole = slots_of(together, first, last)
            assert_bits(part, replace(whole, packed=whole.packed[1:], scale=whole.scale[1:], zero=whole.zero[1:]))
            assert torch.equal(cpu.dequantize_kv(part, dtype), read[1:, :, first:last])
        before = torch.get_num_threads()
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                assert_bits(cpu.quantize_kv(keys, 4, 8, transform), together)
                assert torch.equal(cpu.dequantize_kv(together, dtype), read)
        finally:
            torch.set_num_threads(before)


@needs_library
@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e38], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_cannot_be_stored_is_refused(isa: str, value: float, dtype: torch.dtype) -> None:
    transform = make_transform(2, 64)
    keys = make_keys(1, 40, transform, dtype)
    keys[0, 1, 37, 5] = value
    with using(isa):
        for tokens in (slice(None), slice(37, 38)):
            part = keys[:, :, tokens]
            memory = make_memory(1, 2, part.shape[2], 64, 8, transform), make_memory(1, 2, part.shape[2], 64, 0)
            with pytest.raises(QuotaError, match="NaN"):
                ops.backend("cpu").store_kv(part, part, memory, 0, True)


@needs_library
def test_sizes_that_do_not_fit_are_refused() -> None:
    cpu, transform = ops.backend("cpu"), make_transform(2, 64)
    keys = make_keys(1, 4, transform, torch.float32)
    memory = make_memory(1, 2, 6, 64, 8, transform), make_memory(1, 2, 6, 64, 0)
    for at in (-1, 3):
        with pytest.raises(QuotaError, match="in a cache of 6"):
            cpu.store_kv(keys, keys, memory, at, False)
    for wrong in (make_transform(3, 64), make_transform(2, 56)):
        with pytest.raises(QuotaError, match="transform"):
            cpu.quantize_kv(keys, 4, 8, wrong)
    cpu.quantize_kv(keys, 4, 8, transform)
    with pytest.raises(QuotaError, match="transform"):
        cpu.quantize_kv(keys[:, :1], 4, 8, transform)
    for values in (keys[:, :, :3], keys.bfloat16(), keys.double()):
        with pytest.raises(QuotaError, match="takes keys or values"):
            cpu.store_kv(keys, values, memory, 0, False)
    with pytest.raises(QuotaError, match="not made for such sizes"):
        cpu.decode_attention(random(1, 2, 1, 64), memory[0], memory[0], None, 0.1)


@needs_library
def test_two_threads_that_are_first_read_the_same_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one has made, and reads by its address, another that makes it too does not put away."""
    stored, panels, taken = make_memory(1, 2, 6, 64, 8, make_transform(2, 64)), cache._panels, []

    def interrupted(matrix: Tensor) -> Tensor:
        if not taken:
            taken.append(None)
            # Another thread comes and goes.
            taken.append(cache._maps(stored, 2))
        return panels(matrix)

    monkeypatch.setattr(cache, "_panels", interrupted)
    assert cache._maps(stored, 2) == taken[1] == cache._maps(stored, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_triton(dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    transform, triton = make_transform(2, 24), TritonBackend()
    keys = make_keys(2, 19, transform, dtype)
    query = random(2, 6, 1, 24).to(dtype)
    expected = REFERENCE.quantize_kv(keys, 4, 8, transform)
    values = REFERENCE.quantize_kv(random(2, 2, 19, 24), 4, 0)
    with interpreter() as call:
        found = call(triton.quantize_kv, keys, 4, 8, transform)
        read = call(triton.dequantize_kv, expected, dtype)
        output = call(triton.decode_attention, query, expected, values, None, 0.2)
        shorter = call(triton.decode_attention, query, expected, values, None, 0.2, 7)
    assert (found.packed == expected.packed).float().mean() > 0.98 and found.hadamard == 8
    torch.testing.assert_close(found.transform.matrix, transform.matrix)
    torch.testing.assert_close(read, REFERENCE.dequantize_kv(expected, dtype), atol=TOLERANCE[dtype], rtol=2**-7)
    expected_output = REFERENCE.decode_attention(query, expected, values, None, 0.2)
    assert output.dtype == dtype
    torch.testing.assert_close(output, expected_output, atol=TOLERANCE[dtype], rtol=2**-7)
    expected_output = REFERENCE.decode_attention(query, expected, values, None, 0.2, 7)
    torch.testing.assert_close(shorter, expected_output, atol=TOLERANCE[dtype], rtol=2**-7)
