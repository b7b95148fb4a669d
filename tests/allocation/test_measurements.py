"""The file of measurements: it comes back as it was, and nothing else does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.measured import measurements

from quota.allocation.clock import Clock
from quota.allocation.measurements import Measurements, Tried
from quota.errors import QuotaError
from quota.pruning.schedule import Schedule
from quota.scheme import QuantizationScheme

TRIED = (Tried(layers=(-1, 2), counts=(8, 5), error=0.3), Tried(layers=(), counts=(), error=0.0))
WHOLE = measurements(tried=TRIED, clock=Clock(1.0, 2.0, 0.1, 6, 13.0, "an abacus"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    WHOLE.save(tmp_path / "measurements.json")
    return tmp_path / "measurements.json"


@pytest.mark.parametrize("found", [WHOLE, measurements()], ids=["with a clock", "without"])
def test_they_come_back_as_they_were(found: Measurements, tmp_path: Path) -> None:
    found.save(tmp_path / "one.json")
    again = Measurements.load(tmp_path / "one.json")
    assert again == found
    again.save(tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_schedules_are_found_by_what_they_do() -> None:
    assert WHOLE.whole() == {Schedule((-1, 2), (0.5, 5 / 16)): 0.3, Schedule(): 0.0}
    assert WHOLE.depth == 6


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(fields: dict[str, Any]) -> None:
        *way, last = path
        for key in way:
            fields = fields[key]
        fields[last] = value

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(put("version", value=2), "version 2, this quota reads 1; update quota", id="version"),
        pytest.param(put("extra", value=1), "unknown key 'extra'", id="unknown key"),
        pytest.param(lambda fields: fields.pop("cache"), "'cache' is missing", id="missing key"),
        pytest.param(put("curves", "extra", value=[]), "curves.extra", id="unknown curve"),
        pytest.param(put("curves", "redundancy", value=[0.1]), "one point each", id="curves of two lengths"),
        pytest.param(put("errors", "0", "8", value=-1.0), "errors.0.8", id="negative error"),
        pytest.param(put("errors", "0", "8", value="1"), "errors.0.8", id="text for a number"),
        pytest.param(put("errors", "x", value={}), "errors.x", id="no layer"),
        pytest.param(put("errors", "0", value={"8": 1.0}), "same counts", id="rows of two kinds"),
        pytest.param(put("errors", value={}), "errors", id="no table"),
        pytest.param(put("errors", value={"6": {"8": 1.0}}), "from -1 to 5", id="layer beyond the last"),
        pytest.param(put("errors", value={"0": {"17": 1.0}}), "of 16 tokens", id="more than all tokens"),
        pytest.param(put("tried", value=[{"layers": [2, 1], "counts": [8, 5], "error": 1}]), "ascending", id="order"),
        pytest.param(put("tried", value=[{"layers": [1], "counts": [8, 5], "error": 1}]), "one each", id="no pairs"),
        pytest.param(put("prompt", "pictures", value=[[100_000, 100_000]]), "357,913,940 pixels", id="giant picture"),
        pytest.param(put("prompt", "characters", value=10**9), "at most 100,000", id="giant question"),
        pytest.param(put("cache", "token", value=0.0), "bytes above 0 a token", id="tokens for nothing"),
        pytest.param(put("clock", "layer", value=0.0), "times above 0", id="layers in no time"),
        pytest.param(put("clock", "depth", value=7), "of 6 decoder layers", id="another depth"),
        pytest.param(put("reference_tokens", value=0), "reference_tokens", id="no tokens"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_file_and_key(
    spoil: Callable[[dict[str, Any]], Any], message: str, file: Path
) -> None:
    fields = json.loads(file.read_text())
    spoil(fields)
    file.write_text(json.dumps(fields))
    with pytest.raises(QuotaError, match=message) as raised:
        Measurements.load(file)
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)


def test_numbers_that_are_none_are_refused_before_they_are_stored() -> None:
    with pytest.raises(QuotaError, match=r"measurements: key 'errors.*finite number"):
        measurements(errors={0: {8: float("nan")}})


def test_those_of_another_model_or_scheme_are_refused() -> None:
    WHOLE.verify(model_fingerprint="model", scheme=QuantizationScheme(), depth=6)
    with pytest.raises(QuotaError, match=r"of another model \(fingerprint model, this one has other\)"):
        WHOLE.verify(model_fingerprint="other", scheme=QuantizationScheme(), depth=6)
    with pytest.raises(QuotaError, match="another scheme"):
        WHOLE.verify(model_fingerprint="model", scheme=QuantizationScheme(kv_bits=8), depth=6)
    with pytest.raises(QuotaError, match="of 6 decoder layers, the model has 7"):
        WHOLE.verify(model_fingerprint="model", scheme=QuantizationScheme(), depth=7)
