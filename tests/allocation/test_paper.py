"""Equations (1) to (5) by written examples and properties; the candidate-layer rule on synthetic curves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from quota.allocation.paper import candidate_layers, keep_ratios, normalize_sensitivities, schedule
from quota.errors import QuotaError
from quota.pruning.schedule import keep_count

# By equations (3) to (5) of docs/method.md these s, keep 30% and V0 = 576 give these counts.
NORMALIZED = [0.9, 0.34, 0.35, 0.30, 0.1]
COUNTS = [524, 441, 359, 274, 173]
# Sensitivities with P10 = 1 and P90 = 2, so that equation (2) maps them to NORMALIZED: inner ones are 1 + s,
# the two outer ones (clipped to .9 and .1) sit where linear interpolation puts the percentiles there.
RAW = [1 + (1 - 0.4 * 0.35) / 0.6, 1.34, 1.35, 1.30, 1 - 0.4 * 0.30 / 0.6]

sensitivities = st.lists(st.floats(0, 1e6), min_size=1, max_size=12)
keeps = st.floats(1e-6, 1)
temperatures = st.floats(1e-3, 1e3)


class TestNormalize:
    def test_written_example(self) -> None:
        assert normalize_sensitivities(RAW) == pytest.approx(NORMALIZED)

    @given(sensitivities)
    def test_percentiles_are_numpy_s(self, values: list[float]) -> None:
        low, high = np.percentile(values, [10, 90])
        if high - low > 1e-6:
            expected = np.clip((np.array(values) - low) / (high - low), 0.1, 0.9)
            assert normalize_sensitivities(values) == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-6)

    @pytest.mark.parametrize("values", [[0.7], [0.2] * 5, [0.0, 0.0]], ids=["one layer", "all alike", "zeros"])
    def test_no_spread_gives_one_half(self, values: list[float]) -> None:
        assert normalize_sensitivities(values) == [0.5] * len(values)

    @given(sensitivities)
    def test_within_bounds_and_order_preserving(self, values: list[float]) -> None:
        normalized = normalize_sensitivities(values)
        assert all(0.1 <= s <= 0.9 for s in normalized)
        assert [s for _, s in sorted(zip(values, normalized, strict=True))] == sorted(normalized)


class TestKeepRatios:
    def test_written_example(self) -> None:
        assert [keep_count(ratio, 576) for ratio in keep_ratios(RAW, keep=0.30, temperature=1.25)] == COUNTS

    def test_written_example_from_normalized(self) -> None:
        assert [keep_count(ratio, 576) for ratio in schedule(NORMALIZED)] == COUNTS

    def test_defaults_are_the_published_ones(self) -> None:
        assert keep_ratios(RAW) == keep_ratios(RAW, keep=0.30, temperature=1.25)

    def test_takes_a_tensor(self) -> None:
        assert keep_ratios(torch.tensor(RAW, dtype=torch.float64)) == keep_ratios(RAW)

    @given(sensitivities, keeps, temperatures)
    @example([1.0, 2.0], 0.3, 1e-3)
    def test_never_rises_and_ends_at_keep(self, values: list[float], keep: float, temperature: float) -> None:
        ratios = keep_ratios(values, keep, temperature)
        assert len(ratios) == len(values)
        assert ratios == sorted(ratios, reverse=True)
        assert all(keep <= ratio <= 1 for ratio in ratios)
        assert ratios[-1] == keep

    @given(sensitivities, keeps, temperatures, st.integers(0, 10_000))
    def test_counts_never_rise_nor_exceed_the_tokens(
        self, values: list[float], keep: float, temperature: float, tokens: int
    ) -> None:
        counts = [keep_count(ratio, tokens) for ratio in keep_ratios(values, keep, temperature)]
        assert counts == sorted(counts, reverse=True)
        assert all(0 <= count <= tokens for count in counts)

    def test_agrees_with_a_plain_transcription(self) -> None:
        s = np.array(NORMALIZED)
        pi = np.exp((1 - s) / 0.8) / np.exp((1 - s) / 0.8).sum()
        expected = np.maximum(0.2, 1 - 0.8 * pi.cumsum())
        assert schedule(NORMALIZED, 0.2, 0.8) == pytest.approx(expected.tolist())

    def test_a_robust_layer_drops_more(self) -> None:
        fragile_first, robust_first = keep_ratios([0.9, 0.1])[0], keep_ratios([0.1, 0.9])[0]
        assert fragile_first > robust_first

    def test_equal_sensitivities_drop_in_equal_steps(self) -> None:
        assert keep_ratios([0.2] * 7) == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])

    def test_one_layer_drops_all_at_once(self) -> None:
        assert keep_ratios([0.4], keep=0.25) == [0.25]

    def test_keep_one_drops_nothing(self) -> None:
        assert keep_ratios([0.3, 0.1, 0.2], keep=1.0) == [1.0] * 3

    def test_lowest_temperature_does_not_overflow(self) -> None:
        assert keep_ratios([0.1, 0.9], temperature=5e-324) == pytest.approx([0.3, 0.3])

    @pytest.mark.parametrize("keep", [0.0, -0.1, 1.0000001, 30, math.nan])
    def test_refuses_keep(self, keep: float) -> None:
        with pytest.raises(QuotaError, match="keep must be above 0 and at most 1"):
            keep_ratios([0.1, 0.2], keep=keep)

    @pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
    def test_refuses_temperature(self, temperature: float) -> None:
        with pytest.raises(QuotaError, match="temperature"):
            keep_ratios([0.1, 0.2], temperature=temperature)

    @pytest.mark.parametrize("values", [[], [0.1, math.nan], [math.inf, 0.1]], ids=["none", "nan", "infinite"])
    def test_refuses_sensitivities(self, values: list[float]) -> None:
        with pytest.raises(QuotaError, match="sensitivities"):
            keep_ratios(values)


Curve = list[float]


def curves(layers: int, ready: int, fall: int, noise: float, seed: int) -> tuple[Curve, Curve, Curve]:
    """Concentration, its IQR and redundancy in the published shape: attention scattered and unsteady before
    layer `ready`, concentrated and steady from there while tokens repeat each other, less so from `fall` on.
    """
    draw = np.random.default_rng(seed)

    def curve(before: float, plateau: float, end: float) -> Curve:
        rise = np.linspace(before, before + 0.3 * (plateau - before), ready)
        flat = np.linspace(plateau, 1.05 * plateau, fall - ready)
        tail = np.linspace(plateau, end, layers - fall)
        return (np.concatenate([rise, flat, tail]) * (1 + noise * draw.uniform(-1, 1, layers))).tolist()

    return curve(0.12, 0.45, 0.30), curve(0.10, 0.04, 0.08), curve(0.35, 0.70, 0.40)


LLAVA = {"layers": 32, "ready": 2, "fall": 20}
QWEN = {"layers": 28, "ready": 8, "fall": 18}


class TestCandidateLayers:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("noise", [0.0, 0.02, 0.04], ids="noise {}".format)
    @pytest.mark.parametrize(
        ("shape", "expected"),
        [(LLAVA, [2, 3, 4, 5, 6]), (QWEN, [8, 9, 10, 11, 12])],
        ids=["LLaVA-1.5-7B", "Qwen2.5-VL-7B"],
    )
    def test_published_ranges(self, shape: dict[str, int], expected: list[int], noise: float, seed: int) -> None:
        assert candidate_layers(*curves(**shape, noise=noise, seed=seed), shape["layers"]) == expected

    @pytest.mark.parametrize(
        ("layers", "width"),
        [(4, 1), (5, 2), (6, 2), (10, 3), (12, 3), (16, 4), (24, 4), (28, 5), (32, 5), (80, 5)],
    )
    def test_width_follows_depth(self, layers: int, width: int) -> None:
        flat = [0.5] * layers
        assert candidate_layers(flat, flat, flat, layers) == list(range(2, 2 + width))

    @given(st.integers(4, 80), st.data())
    def test_any_curves_give_an_early_contiguous_range(self, layers: int, data: st.DataObject) -> None:
        positive = st.lists(st.floats(0, 1), min_size=layers, max_size=layers)
        cosines = st.lists(st.floats(-1, 1), min_size=layers, max_size=layers)
        chosen = candidate_layers(data.draw(positive), data.draw(positive), data.draw(cosines), layers)
        assert chosen == list(range(chosen[0], chosen[0] + len(chosen)))
        assert chosen[0] >= 2
        assert chosen[-1] < layers - 1
        assert chosen[-1] < math.ceil(layers * 2 / 3)

    @pytest.mark.parametrize("curve", ["concentration", "concentration_iqr", "redundancy"])
    def test_each_curve_alone_decides(self, curve: str) -> None:
        flat = {name: [0.5] * 28 for name in ("concentration", "concentration_iqr", "redundancy")}
        before, after = (0.8, 0.1) if curve == "concentration_iqr" else (0.0, 0.9)
        flat[curve] = [before] * 8 + [after] * 20
        assert candidate_layers(**flat, layers=28) == [8, 9, 10, 11, 12]

    def test_curves_of_any_scale(self) -> None:
        concentration, iqr, redundancy = curves(**QWEN, noise=0.02, seed=0)
        small = [c / 1000 for c in concentration], [q / 1000 for q in iqr]
        expected = candidate_layers(concentration, iqr, redundancy, 28)
        assert candidate_layers(*small, redundancy, 28) == expected

    def test_a_small_gain_is_not_worth_waiting_for(self) -> None:
        flat = [0.5] * 28
        rising = [0.5 + 0.002 * layer for layer in range(28)]
        assert candidate_layers(rising, [0.0] * 28, flat, 28)[0] == 2

    def test_a_single_good_layer_does_not_carry_a_window(self) -> None:
        flat = [0.5] * 28
        spike = [0.1] * 10 + [0.9] + [0.1] * 3 + [0.4] * 14
        assert candidate_layers(spike, [0.0] * 28, flat, 28) == [14, 15, 16, 17, 18]

    def test_opposite_tokens_and_no_attention(self) -> None:
        assert candidate_layers([0.0] * 10, [0.0] * 10, [-1.0 - 1e-9] * 10, 10) == [2, 3, 4]

    def test_takes_tensors(self) -> None:
        flat = torch.full((10,), 0.5)
        assert candidate_layers(flat, flat, flat, 10) == [2, 3, 4]

    @pytest.mark.parametrize("layers", [1, 2, 3])
    def test_too_shallow(self, layers: int) -> None:
        flat = [0.5] * layers
        with pytest.raises(QuotaError, match="pass layers="):
            candidate_layers(flat, flat, flat, layers)

    def test_one_point_a_layer(self) -> None:
        with pytest.raises(QuotaError, match="redundancy curve has 9 points for 10 decoder layers"):
            candidate_layers([0.5] * 10, [0.1] * 10, [0.5] * 9, 10)

    @pytest.mark.parametrize("bad", [math.nan, -0.1])
    def test_bad_points(self, bad: float) -> None:
        with pytest.raises(QuotaError, match="concentration_iqr"):
            candidate_layers([0.5] * 10, [0.1] * 9 + [bad], [0.5] * 10, 10)
