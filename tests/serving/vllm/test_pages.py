"""Rows of bytes, and the blocks that they lie in: what is written is what operators read."""

from __future__ import annotations

import pytest
import torch

from quota import ops
from quota.ops.interface import CacheSpec
from quota.serving.vllm.pages import Pages, gather, slots

HEADS, WIDTH, BLOCK = 2, 16, 4


@pytest.mark.parametrize("bits", [4, 8])
def test_what_was_stored_in_blocks_is_read_as_it_was(bits: int) -> None:
    pages = Pages(CacheSpec(bits, WIDTH, 16), HEADS)
    assert pages.bytes_of_token == HEADS * (2 * WIDTH * bits // 8 + 8)
    backend = ops.for_cache(pages.spec, torch.device("cpu"))
    torch.manual_seed(0)
    keys, values = torch.randn(2, 1, HEADS, 7, WIDTH)
    rows = pages.rows(1, 7, keys.device)
    read = backend.store_kv(keys, values, pages.packed(rows, None), 0, True)
    assert read is not None
    memory = torch.full((10 * BLOCK, pages.bytes_of_token), 255, dtype=torch.uint8)
    table = torch.tensor([7, 2, 0], dtype=torch.int32)
    memory[slots(table, BLOCK, torch.arange(7))] = rows[0]
    found = pages.packed(gather(memory, table[None], BLOCK, 7), None)
    for stored, expected in zip(found, read, strict=True):
        assert torch.equal(backend.dequantize_kv(stored.first(7), torch.float32), expected)


def test_a_query_reads_the_rows_of_its_own_request() -> None:
    pages = Pages(CacheSpec(4, WIDTH, 0), HEADS)
    backend = ops.for_cache(pages.spec, torch.device("cpu"))
    torch.manual_seed(0)
    query = torch.randn(2, 4, 1, WIDTH)
    # What ended requests have left: numbers.
    old = pages.rows(1, 10 * BLOCK, query.device)
    backend.store_kv(*torch.randn(2, 1, HEADS, 10 * BLOCK, WIDTH), pages.packed(old, None), 0, False)
    memory = old[0]
    tables, counts = torch.tensor([[1, 2], [5, 4]], dtype=torch.int32), [6, 3]
    expected = []
    for row, count in enumerate(counts):
        keys, values = torch.randn(2, 1, HEADS, count, WIDTH)
        rows = pages.rows(1, count, keys.device)
        stored = pages.packed(rows, None)
        backend.store_kv(keys, values, stored, 0, False)
        memory[slots(tables[row], BLOCK, torch.arange(count))] = rows[0]
        expected.append(backend.decode_attention(query[row : row + 1], *stored, None, 0.25))
    stored = pages.packed(gather(memory, tables, BLOCK, max(counts)), None)
    valid = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    found = backend.decode_attention(query, *stored, valid, 0.25, max(counts))
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-5, atol=1e-6)
