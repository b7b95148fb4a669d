"""A recipe reads back as it was written, and anything else is refused with one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.allocation.paper import keep_ratios
from quota.errors import QuotaError
from quota.pruning.recipe import PruningRecipe
from quota.pruning.schedule import keep_count
from quota.scheme import QuantizationScheme

SENSITIVITIES = (0.09, 0.034, 0.035, 0.03, 0.01)


def recipe(**changes: Any) -> PruningRecipe:
    fields: dict[str, Any] = {
        "layers": (2, 3, 4, 5, 6),
        "keep_ratios": tuple(keep_ratios(SENSITIVITIES)),
        "keep": 0.3,
        "sensitivities": SENSITIVITIES,
        "reference_tokens": 576,
        "scheme": QuantizationScheme(),
        "model_fingerprint": "a" * 64,
        "calibration_fingerprint": "b" * 64,
        "samples": 128,
        "seed": 7,
        "versions": {"torch": "2.13.0"},
    }
    return PruningRecipe(**{**fields, **changes})


def refused(path: Path, *words: str) -> None:
    """Loading `path` fails with one line that names the file and each of `words`."""
    with pytest.raises(QuotaError) as caught:
        PruningRecipe.load(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    recipe().save(tmp_path / "recipe.json")
    return tmp_path / "recipe.json"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class TestFile:
    @pytest.mark.parametrize("scheme", [QuantizationScheme(), QuantizationScheme(kv_bits=8), None], ids=str)
    def test_reads_back_equal(self, tmp_path: Path, scheme: QuantizationScheme | None) -> None:
        written = recipe(scheme=scheme)
        written.save(tmp_path / "recipe.json")
        assert PruningRecipe.load(tmp_path / "recipe.json") == written

    @given(st.lists(st.floats(0, 10), min_size=1, max_size=8), st.floats(1e-6, 1))
    def test_ratios_survive_to_the_last_bit(self, sensitivities: list[float], keep: float) -> None:
        ratios = tuple(keep_ratios(sensitivities, keep))
        written = recipe(
            layers=tuple(range(len(ratios))),
            keep_ratios=ratios,
            keep=keep,
            sensitivities=tuple(sensitivities),
        )
        assert PruningRecipe(**json.loads(written.model_dump_json())) == written

    def test_is_readable_json_and_nothing_else_is_left(self, saved: Path) -> None:
        assert json.loads(saved.read_text())["layers"] == [2, 3, 4, 5, 6]
        assert os.listdir(saved.parent) == ["recipe.json"]

    def test_missing(self, tmp_path: Path) -> None:
        refused(tmp_path / "recipe.json", "no such recipe", "quota compress")

    def test_truncated_anywhere(self, saved: Path) -> None:
        text = saved.read_text().rstrip()
        for length in range(0, len(text), 37):
            saved.write_text(text[:length])
            refused(saved, "not a whole recipe")

    def test_not_text(self, saved: Path) -> None:
        saved.write_bytes(b"\x80\x00\xff")
        refused(saved, "not a whole recipe")

    @pytest.mark.parametrize("text", ["[" * 100_000, '{"version": ' + "1" * 5000 + "}"], ids=["deep", "5000 digits"])
    def test_json_that_python_cannot_read(self, saved: Path, text: str) -> None:
        saved.write_text(text)
        refused(saved, "not a whole recipe")

    def test_not_an_object(self, saved: Path) -> None:
        saved.write_text("[1, 2]")
        refused(saved, "not a recipe")

    def test_a_folder(self, saved: Path) -> None:
        refused(saved.parent, "is a folder")

    def test_unknown_key(self, saved: Path) -> None:
        edit(saved, kepe_ratio=0.3)
        refused(saved, "unknown key 'kepe_ratio'")

    def test_unknown_key_in_the_scheme(self, saved: Path) -> None:
        edit(saved, scheme={"weigth_bits": 4})
        refused(saved, "scheme", "weigth_bits")

    @pytest.mark.parametrize("version", [0, 2, "1", None])
    def test_other_version(self, saved: Path, version: object) -> None:
        edit(saved, version=version, key_of_the_future=1)
        refused(saved, f"version {version!r}", "update quota")

    @pytest.mark.parametrize("key", ["layers", "keep_ratios", "keep", "reference_tokens", "model_fingerprint"])
    def test_missing_key(self, saved: Path, key: str) -> None:
        fields = json.loads(saved.read_text())
        del fields[key]
        saved.write_text(json.dumps(fields))
        refused(saved, f"key {key!r} is missing")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("layers", ["2", 3, 4, 5, 6]),
            ("layers", [2.5, 3, 4, 5, 6]),
            ("keep", "0.3"),
            ("reference_tokens", 576.0),
            ("samples", True),
            ("seed", None),
            ("weights", {"inter": float("nan")}),
            ("temperature", float("inf")),
        ],
    )
    def test_wrong_type(self, saved: Path, key: str, value: object) -> None:
        edit(saved, **{key: value})
        refused(saved, key)


class TestConsistency:
    @pytest.mark.parametrize("keep", [0.0, -0.3, 1.01, 30.0])
    def test_keep_outside_its_range(self, keep: float) -> None:
        with pytest.raises(QuotaError, match="keep must be above 0 and at most 1"):
            recipe(keep=keep)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"layers": ()}, "ascending"),
            ({"layers": (2, 3, 3, 4, 5)}, "ascending"),
            ({"layers": (-2, 3, 4, 5, 6)}, "ascending"),
            ({"layers": (2, 3)}, "5 keep_ratios for 2 layers"),
            ({"keep_ratios": (0.5, 0.6, 0.5, 0.4, 0.3)}, "never rise"),
            ({"keep_ratios": (0.9, 0.8, 0.7, 0.6, 0.5)}, "end at keep=0.3"),
            ({"keep_ratios": (1.9, 0.8, 0.7, 0.6, 0.3)}, "at most 1"),
            ({"sensitivities": (0.1,)}, "1 sensitivities for 5 layers"),
            ({"temperature": 0.0}, "temperature"),
            ({"reference_tokens": 0}, "reference_tokens"),
            ({"reference_tokens": 10**400}, "reference_tokens"),
            ({"percentiles": (99.0, 1.0)}, "percentiles"),
            ({"scorer": "oracle"}, "unknown scorer 'oracle'"),
            ({"scorer": "peaks"}, "'peaks' is one of an earlier version; compress the original model again"),
            ({"weights": {"luck": 1.0}}, "no metric 'luck'"),
            ({"weights": {"inter": -0.1}}, "'inter' must be at least 0"),
            ({"weights": {"inter": 0.0}}, "above 0"),
            ({"weights": {}}, "above 0"),
            (
                {"scheme": None, "weights": {"inter": 0.8, "risk": 0.2}},
                "full precision has no quantisation risk",
            ),
            ({"method": "magic"}, "method"),
        ],
        ids=lambda value: None if isinstance(value, str) else ", ".join(f"{k}={v}" for k, v in value.items()),
    )
    def test_refused(self, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(QuotaError, match=words) as caught:
            recipe(**changes)
        assert "\n" not in str(caught.value)

    def test_cannot_be_changed(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            recipe().keep = 0.5  # type: ignore[misc]

    def test_default_weights_are_the_published_ones(self) -> None:
        assert recipe().weights == {"inter": 0.45, "mag": 0.25, "intra": 0.10, "risk": 0.20}

    def test_full_precision_has_no_risk_and_the_other_weights_fill_its_place(self) -> None:
        assert recipe(scheme=None).weights == pytest.approx({"inter": 0.5625, "mag": 0.3125, "intra": 0.125})

    def test_sensitivities_are_optional(self) -> None:
        assert recipe(sensitivities=()).sensitivities == ()


class TestCounts:
    def test_written_example(self) -> None:
        ratios = (524 / 576, 441 / 576, 359 / 576, 274 / 576, 0.3)
        assert recipe(keep_ratios=ratios).counts(576) == [524, 441, 359, 274, 173]

    def test_each_image_by_its_own_size(self) -> None:
        example = recipe()
        assert example.counts(100) == [keep_count(ratio, 100) for ratio in example.keep_ratios]
        assert example.counts(100)[-1] == 30

    def test_a_candidate_layer_still_runs_on_all_that_reach_it(self) -> None:
        example = recipe(layers=(2, 4), keep_ratios=(0.5, 0.3), sensitivities=())
        assert example.tokens_per_layer(100, 7) == [100, 100, 100, 50, 50, 30, 30]

    def test_keep_one_drops_nothing(self) -> None:
        example = recipe(keep=1.0, keep_ratios=(1.0,) * 5)
        assert example.tokens_per_layer(144, 10) == [144] * 10

    def test_the_published_average(self) -> None:
        entering = recipe().tokens_per_layer(576, 32)
        assert 0.39 <= sum(entering) / 32 / 576 <= 0.42

    def test_decoder_too_shallow(self) -> None:
        with pytest.raises(QuotaError, match="prunes layer 6, the decoder has 6"):
            recipe().tokens_per_layer(576, 6)


class TestVerify:
    @pytest.mark.parametrize("scheme", [QuantizationScheme(), None], ids=["quantised", "full precision"])
    def test_accepts_its_own(self, scheme: QuantizationScheme | None) -> None:
        recipe(scheme=scheme).verify(model_fingerprint="a" * 64, scheme=scheme)

    def test_another_model(self) -> None:
        with pytest.raises(QuotaError, match="another model"):
            recipe().verify(model_fingerprint="c" * 64, scheme=QuantizationScheme())

    @pytest.mark.parametrize(
        ("scheme", "words"),
        [
            (QuantizationScheme(kv_bits=8), "kv_bits: recipe 4, model 8"),
            (QuantizationScheme(weight_group=32, hadamard=0), "hadamard: recipe 64, model 0"),
            (None, "recipe W4A4KV4, model full precision"),
        ],
        ids=["KV bits", "groups", "full precision"],
    )
    def test_another_scheme(self, scheme: QuantizationScheme | None, words: str) -> None:
        with pytest.raises(QuotaError, match=words):
            recipe().verify(model_fingerprint="a" * 64, scheme=scheme)
