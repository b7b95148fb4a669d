"""The embedding in 8 bits: exactly as its docstring defines it, and the head that is tied to it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from quota.errors import QuotaError
from quota.ops.hadamard import block_hadamard_naive
from quota.ops.packing import unpack_int32
from quota.quantization.embedding import QuantizedEmbedding, TiedHead
from quota.quantization.ends import end_scheme
from quota.scheme import QuantizationScheme

SCHEME = end_scheme(QuantizationScheme(), 8)
TOKENS, WIDTH = 50, 128
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def dense(width: int = WIDTH, dtype: torch.dtype = torch.float32) -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(TOKENS, width, padding_idx=3, dtype=dtype)


def naive(layer: QuantizedEmbedding, ids: Tensor) -> Tensor:
    """Every row dequantised, number by number, and then looked up: e_v = m H (s_v q_v)."""
    q = unpack_int32(layer.weight_packed, 8, layer.in_features)
    table = torch.zeros(q.shape)
    for row in range(q.shape[0]):
        for column in range(q.shape[1]):
            table[row, column] = float(layer.weight_scale[row, 0]) * int(q[row, column])
    rotated = block_hadamard_naive(table, SCHEME.hadamard_for(layer.in_features))
    return layer.multiplier * rotated[ids]


@pytest.mark.parametrize("width", [128, 96, 6], ids=["two blocks", "a smaller block", "a word not full"])
@pytest.mark.parametrize("shape", [(), (7,), (2, 5), (1, 0)], ids=str)
def test_a_lookup_is_the_naive_one(width: int, shape: tuple[int, ...]) -> None:
    layer = QuantizedEmbedding.from_embedding(dense(width), SCHEME)
    ids = torch.randint(TOKENS, shape)
    found = layer(ids)
    assert found.shape == (*shape, width)
    torch.testing.assert_close(found, naive(layer, ids), rtol=1e-5, atol=1e-6)


@dtypes
def test_rows_stay_within_half_a_step(dtype: torch.dtype) -> None:
    embedding = dense(dtype=dtype)
    layer = QuantizedEmbedding.from_embedding(embedding, SCHEME)
    found = layer(torch.arange(TOKENS))
    assert found.dtype == dtype
    exact = embedding.weight.detach().float()
    # In the rotated basis an error is at most half a scale, and the scale 1/127 of the largest number.
    most = layer.weight_scale.float() / 2 * WIDTH**0.5 + (0.01 * exact.norm(dim=1, keepdim=True))
    error = (found.float() - exact).norm(dim=1, keepdim=True)
    assert bool((error > 0).sum() >= TOKENS - 1) and bool((error <= most).all())


def test_a_padding_row_of_zeros_stays_zero() -> None:
    layer = QuantizedEmbedding.from_embedding(dense(), SCHEME)
    assert torch.equal(layer(torch.tensor([3])), torch.zeros(1, WIDTH))


def test_gemma_multiplies_what_is_looked_up() -> None:
    torch.manual_seed(0)
    embedding = Gemma3TextScaledWordEmbedding(TOKENS, WIDTH, 0, embed_scale=WIDTH**0.5).bfloat16()
    layer = QuantizedEmbedding.from_embedding(embedding, SCHEME)
    ids = torch.arange(TOKENS)
    assert layer.multiplier == WIDTH**0.5
    exact = embedding(ids).float()
    assert (layer(ids).float() - exact).norm() < 0.01 * exact.norm()


def test_an_embedding_that_does_something_else_is_refused() -> None:
    class Odd(nn.Embedding):
        pass

    with pytest.raises(QuotaError, match="the model's embedding is Odd; use embedding_bits=16"):
        QuantizedEmbedding.from_embedding(Odd(4, 8), SCHEME)


def test_an_id_that_is_no_row_is_an_error() -> None:
    layer = QuantizedEmbedding.from_embedding(dense(), SCHEME)
    for wrong in (-1, TOKENS):
        with pytest.raises(IndexError):
            layer(torch.tensor([wrong]))


def test_its_type_follows_the_model() -> None:
    layer: Any = nn.Sequential(QuantizedEmbedding.from_embedding(dense(), SCHEME))
    assert layer.bfloat16()(torch.tensor([1])).dtype == torch.bfloat16
    assert layer.float()(torch.tensor([1])).dtype == torch.float32


def test_a_tied_head_multiplies_by_the_rows_that_are_looked_up() -> None:
    layer = QuantizedEmbedding.from_embedding(dense(), SCHEME)
    head = TiedHead(layer)
    assert not head.state_dict() and not list(head.children())
    x = torch.randn(2, 3, WIDTH)
    exact = x @ layer(torch.arange(TOKENS)).T
    # Only the activations are rounded, to 8 bits.
    assert 0 < (head(x) - exact).norm() < 0.02 * exact.norm()
    assert torch.equal(head(x), layer.project(x))


def test_a_copy_is_tied_to_the_copy() -> None:
    layer = QuantizedEmbedding.from_embedding(dense(), SCHEME)
    copied: Any = copy.deepcopy(nn.Sequential(layer, TiedHead(layer)))
    assert copied[1].embedding is copied[0] is not layer
