"""Layers that read one tensor are found by that alone, run together, and change no bit."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from quota import ops
from quota.ops.reference import ReferenceBackend
from quota.quantization import siblings
from quota.quantization.linear import W4A4Linear
from quota.scheme import QuantizationScheme

RTN = QuantizationScheme(weight_rounding="rtn")


class Attention(nn.Module):
    """Three layers that read `x`, and one that reads what comes of it."""

    def __init__(self, **changes: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        scheme = RTN.model_copy(update=changes)
        self.q, self.k, self.v, self.o = (
            W4A4Linear.from_linear(nn.Linear(64, width).requires_grad_(False), scheme) for width in (64, 16, 16, 64)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.q(x) + (self.k(x) * self.v(x)).repeat(1, 4))


@pytest.fixture(autouse=True)
def nothing_read_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(siblings, "_last", siblings._Last())


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many weights each product inside the block has."""
    counts: list[int] = []

    class Counting(ReferenceBackend):
        def linear(self, x, weights):
            counts.append(len(weights))
            return super().linear(x, weights)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "for_linear", lambda spec, device: Counting())
        yield counts


def tokens(count: int = 5, seed: int = 1) -> Tensor:
    return torch.randn(count, 64, generator=torch.Generator().manual_seed(seed))


def test_a_second_pass_runs_siblings_as_one_product_and_changes_no_bit() -> None:
    model = Attention()
    with counted() as counts:
        first = model(tokens())
        assert counts == [1, 1, 1, 1]
        assert model.q.siblings.layers() == [model.k, model.v]
        assert len(model.k.siblings) == len(model.v.siblings) == len(model.o.siblings) == 0
        assert torch.equal(model(tokens()), first)
        assert counts[4:] == [3, 1]
        assert torch.equal(model(tokens(9, seed=2))[:3], model(tokens(9, seed=2)[:3]))


def test_an_equal_tensor_is_not_the_same() -> None:
    model, x = Attention(), tokens()
    model(x)
    with counted() as counts:
        model.q(x), model.k(x.clone()), model.v(x)
    assert counts == [3, 1, 1]


def test_what_was_written_to_is_not_the_same() -> None:
    model, x = Attention(), tokens()
    model(x)
    model.q(x)
    x.mul_(2)
    assert torch.equal(model.k(x), copy.deepcopy(model.k)(x.clone()))


def test_a_layer_that_is_not_called_is_no_sibling_any_more() -> None:
    model, x = Attention(), tokens()
    model(x)
    model.q(x), model.k(x)
    model.o(tokens(seed=9))
    assert model.q.siblings.layers() == [model.k]
    with counted() as counts:
        model(tokens(seed=3))
        model(tokens(seed=4))
    assert counts == [2, 1, 1, 3, 1]


def test_layers_that_quantise_in_another_way_are_none() -> None:
    model = Attention()
    model.k = Attention(activation_bits=8).k
    model.v = Attention(weight_bits=8).v
    x = tokens()
    model(x)
    assert len(model.q.siblings) == 0


def test_nothing_is_kept_alive() -> None:
    model, x = Attention(), tokens()
    model(x)
    model(x)
    assert siblings._last.ready == {}
    assert siblings._last.source is not None
    del x
    gc.collect()
    assert siblings._last.source() is None
    model.v = Attention().v
    gc.collect()
    assert model.q.siblings.layers() == [model.k]


def test_a_copy_finds_its_own() -> None:
    model, x = Attention(), tokens()
    model(x)
    other = copy.deepcopy(model)
    assert len(other.q.siblings) == 0
    other(x)
    assert other.q.siblings.layers() == [other.k, other.v]


def test_threads_do_not_meet() -> None:
    model = Attention()
    inputs = [tokens(seed=seed) for seed in range(40)]
    expected = [model(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(model, inputs * 3))
    assert all(torch.equal(one, other) for one, other in zip(found, expected * 3, strict=True))


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
def test_in_either_mode(inference: bool) -> None:
    model = Attention()
    with torch.inference_mode(inference):
        first = model(tokens())
        assert torch.equal(model(tokens()), first)
    assert model.q.siblings.layers() == [model.k, model.v]
