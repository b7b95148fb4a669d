"""Which backend is taken, when one is refused, and what is written down about it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from quota import ops
from quota.errors import QuotaError
from quota.ops.interface import CacheSpec, InputSpec, LinearSpec

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FOUR = LinearSpec(8, 4, 64, InputSpec(64, 4, 64, 64))
EIGHT = LinearSpec(8, 8, 64, InputSpec(64, 8, 64, 64))


class Fast:
    """Runs, but only four bits."""

    name = "cpu"

    def why_not(self) -> str | None:
        return None

    def lacks(self, spec: LinearSpec) -> str | None:
        return None if spec.bits == 4 else f"{spec.bits}-bit weights"

    def lacks_cache(self, spec: CacheSpec) -> str | None:
        return None if spec.bits == 4 else f"{spec.bits}-bit caches"


class Broken(Fast):
    """Is there and cannot run."""

    name = "torch"

    def why_not(self) -> str | None:
        return "its engine is missing"


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """ "cpu" is `Fast`, "torch" is `Broken`, "triton" cannot be imported, and nothing is forced."""
    module = ModuleType("made_up_backends")
    module.Fast, module.Broken = Fast, Broken  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(ops._REGISTRY, "cpu", (module.__name__, "Fast"))
    monkeypatch.setitem(ops._REGISTRY, "torch", (module.__name__, "Broken"))
    monkeypatch.setitem(ops._REGISTRY, "triton", ("no_such_package.triton", "TritonBackend"))
    monkeypatch.delenv(ops.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    forget()
    yield
    forget()


def forget() -> None:
    ops._load.cache_clear()
    ops._choose.cache_clear()


def test_every_backend_says_whether_it_runs_and_why_not() -> None:
    assert ops.NAMES == ("triton", "cpu", "torch", "reference")
    assert [ops.why_not(name) for name in ops.NAMES] == [
        "no_such_package cannot be imported",
        None,
        "its engine is missing",
        None,
    ]


def test_a_registered_name_without_its_class_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ops._REGISTRY, "cpu", ("made_up_backends", "Absent"))
    assert "not part of this installation" in str(ops.why_not("cpu"))


def test_the_fastest_that_runs_is_taken() -> None:
    assert ops.backend().name == "cpu"
    assert ops.for_linear(FOUR, CPU).name == "cpu"
    assert ops.for_cache(CacheSpec(4, 64, 64), CPU).name == "cpu"
    assert ops.for_attention(CPU).name == ops.for_tokens(CPU).name == "cpu"


def test_a_device_has_its_own_order() -> None:
    # "triton" and "torch" are made for it and do not run; "cpu" runs and is not made for it.
    assert ops.backend(device="cuda").name == "reference"
    assert ops.for_linear(FOUR, CUDA).name == "reference"
    assert ops.backend(device="mps").name == "reference"


def test_what_the_fastest_lacks_goes_to_the_next() -> None:
    assert ops.for_linear(EIGHT, CPU).name == "reference"
    assert ops.for_cache(CacheSpec(3, 64, 64), CPU).name == "reference"


def test_the_argument_wins_over_use_and_use_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ops.ENVIRONMENT_VARIABLE, "reference")
    assert ops.forced() == "reference"
    assert ops.backend().name == "reference"
    with ops.use("cpu"):
        assert ops.for_linear(FOUR, CPU).name == "cpu"
        assert ops.backend("reference").name == "reference"
        with ops.use(None):
            assert ops.forced() == "cpu"
    assert ops.for_linear(FOUR, CPU).name == "reference"
    monkeypatch.setenv(ops.ENVIRONMENT_VARIABLE, "")
    assert ops.forced() is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        pytest.param("abacus", r"unknown backend 'abacus'; choose one of .*reference", id="unknown"),
        pytest.param("torch", r"'torch' cannot run here: its engine is missing", id="cannot run"),
        pytest.param("triton", r"'triton' cannot run here: no_such_package", id="cannot be imported"),
    ],
)
def test_one_that_is_asked_for_and_cannot_run_is_an_error(
    name: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(QuotaError, match=says):
        ops.backend(name)
    entered = False
    with pytest.raises(QuotaError, match=says), ops.use(name):
        entered = True
    assert not entered and ops.forced() is None
    monkeypatch.setenv(ops.ENVIRONMENT_VARIABLE, name)
    with pytest.raises(QuotaError, match=says):
        ops.for_linear(FOUR, CPU)


@pytest.mark.parametrize(
    ("choose", "says"),
    [
        pytest.param(lambda: ops.for_linear(EIGHT, CPU), "8-bit weights", id="lacks the layer"),
        pytest.param(lambda: ops.for_cache(CacheSpec(3, 64, 64), CPU), "3-bit caches", id="lacks the cache"),
        pytest.param(lambda: ops.for_attention(CUDA), "the tensors are on cuda", id="other device"),
        pytest.param(lambda: ops.for_tokens(CUDA), "the tensors are on cuda", id="other device, tokens"),
    ],
)
def test_one_that_is_asked_for_is_not_replaced(choose, says: str) -> None:
    with ops.use("cpu"), pytest.raises(QuotaError, match=f"'cpu' was asked for .*{says}"):
        choose()


def test_use_ends_with_its_block_even_when_that_fails() -> None:
    with pytest.raises(KeyError), ops.use("reference"):
        raise KeyError
    assert ops.forced() is None


def test_use_and_record_reach_other_threads() -> None:
    names = []
    with ops.use("reference"), ops.record() as usage:
        thread = threading.Thread(target=lambda: names.append(ops.for_linear(FOUR, CPU).name))
        thread.start()
        thread.join()
    assert names == ["reference"]
    assert usage.backends() == {"linear": ["reference"]}


def test_a_record_says_what_ran_each_job() -> None:
    with ops.record() as usage:
        assert str(usage) == "none" and usage.backends() == {}
        ops.for_linear(FOUR, CPU)
        assert str(usage) == "cpu"
        ops.for_linear(EIGHT, CPU)
        ops.for_linear(FOUR, CPU)
        with ops.record() as inner:
            ops.for_cache(CacheSpec(4, 64, 64), CPU)
        ops.for_tokens(CPU)
    ops.for_attention(CPU)
    assert usage.backends() == {"cache": ["cpu"], "linear": ["cpu", "reference"], "tokens": ["cpu"]}
    assert str(usage) == "cache: cpu; linear: cpu, reference; tokens: cpu (cpu: 8-bit weights)"
    assert inner.backends() == {"cache": ["cpu"]} and not inner.lacking
    with ops.record(inner):
        ops.for_linear(FOUR, CPU)
    assert inner.calls == {("cache", "cpu"): 1, ("linear", "cpu"): 1}


def test_one_slower_backend_for_everything_is_still_explained() -> None:
    with ops.record() as usage:
        ops.for_linear(EIGHT, CPU)
    assert str(usage) == "reference (cpu: 8-bit weights)"


def test_asking_what_there_is_counts_as_no_run() -> None:
    with ops.record() as usage:
        ops.backend()
    assert not usage.calls


def test_triton_takes_tensors_in_main_memory_only_in_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ops._REGISTRY, "triton", ("made_up_backends", "Fast"))
    with pytest.raises(QuotaError, match="the tensors are on cpu"):
        ops.backend("triton", "cpu")
    forget()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert isinstance(ops.backend("triton", "cpu"), Fast)
