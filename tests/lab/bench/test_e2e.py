"""The benchmark of whole models: its models are what they are called, and every variant is measured as what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.commands import call
from support.tiny import tiny_config

import quota
from quota import ops
from quota.attention.cache import QuantizedLayer
from quota.cli import main
from quota.errors import QuotaError
from quota.models import family
from quota.quantization.linear import W4A4Linear
from quota_lab.bench import e2e, memory, models, overhead

pytestmark = pytest.mark.slow


def tiny_subject(name: str, quantized: bool) -> models.Subject:
    return models.random_subject(tiny_config(), quantized)


def test_the_realistic_model_has_the_sizes_it_is_named_for() -> None:
    config = models.realistic_config()
    with torch.device("meta"):
        model = models.LlavaForConditionalGeneration._from_config(config)
    assert models.tokens_per_image(model) == 576
    recipe = models.published_recipe(model, None)
    assert recipe.tokens_per_layer(576, 16) == [576, 576, 441, 274, *[173] * 12]
    assert sum(recipe.tokens_per_layer(576, 16)) / 16 / 576 == pytest.approx(0.43, abs=0.005)


def test_the_quantized_model_never_holds_a_dense_layer() -> None:
    subject = tiny_subject("realistic", quantized=True)
    replaced = [module for module in subject.model.modules() if isinstance(module, W4A4Linear)]
    # Tower, projector, decoder, and both of its ends.
    assert len(replaced) == 12 + 2 + 35 + 2
    assert family(subject.model).linears() == []
    with torch.inference_mode():
        output = subject.model(**subject.inputs, use_cache=True)
    assert all(isinstance(layer, QuantizedLayer) for layer in output.past_key_values.layers)
    assert bool(output.logits.isfinite().all()) and float(output.logits.float().std()) > 0.1


def test_both_models_are_whole_and_have_the_same_prompt() -> None:
    dense, quantized = tiny_subject("realistic", quantized=False), tiny_subject("realistic", quantized=True)
    for subject in (dense, quantized):
        tensors = [*subject.model.parameters(), *subject.model.buffers()]
        assert not any(tensor.is_meta for tensor in tensors)
        assert subject.inputs["input_ids"].shape == (1, 16 + models.TEXT_TOKENS)
    frequencies = type(dense.model.model.language_model.rotary_emb)(dense.model.config.text_config).inv_freq
    assert torch.equal(dense.model.model.language_model.rotary_emb.inv_freq, frequencies)
    assert dense.model.model.vision_tower.embeddings.position_ids.tolist() == [list(range(17))]


def test_every_variant_is_measured_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(e2e, "subject", tiny_subject)
    peaks = {"dense": 400, "quantized": 200, "pruned": 360, "quota": 100}
    monkeypatch.setattr(e2e, "peak_bytes", lambda name, variant: peaks[variant])
    report = e2e.bench_e2e(["realistic"], new_tokens=3, turns=1)
    shapes = ["realistic quantized", "realistic pruned, keep 30%", "realistic quota, keep 30%"]
    parts = [row for row in report.rows if row.job in ("prefill", "step")]
    assert {row.shape.partition(": ")[0] for row in parts} == {shapes[0], shapes[2]}
    assert [(row.job, row.shape) for row in report.rows if row not in parts] == [
        *(("ttft", shape) for shape in shapes),
        *(("decode", shape) for shape in shapes),
        ("overhead", shapes[2]),
        *(("memory", shape) for shape in shapes),
    ]
    assert [row.ratio for row in report.rows[-3:]] == [2.0, pytest.approx(400 / 360), 4.0]
    assert all(row.value > 0 for row in report.rows if row not in parts)
    assert report.others is not None
    # Quantised variants run on quantised operators.
    assert all(row.backend in ops.NAMES or ":" in row.backend for row in report.rows if "pruned" not in row.shape)


def test_the_stopwatch_divides_a_generation_at_its_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 10.1, 12.0, 12.5, 13.0])
    monkeypatch.setattr(e2e.time, "perf_counter", lambda: next(times))

    class Model:
        def generate(self, streamer, **kwargs) -> None:
            # The prompt, then three tokens.
            for _ in range(4):
                streamer.put(None)
            streamer.end()

    subject = models.Subject("realistic", Model(), {}, recipe=None)  # pyright: ignore[reportArgumentType]
    assert e2e.generate_timed(subject, 3) == (2.0, 2.0)


def test_a_variant_is_pruned_only_inside_its_block() -> None:
    variant = e2e.Variant("quota", tiny_subject("realistic", quantized=True), pruned=True)
    with e2e.pruning(variant), quota.record(variant.subject.model) as trace, torch.inference_mode():
        variant.subject.model(**variant.subject.inputs)
    assert list(trace.tokens_per_layer) == variant.subject.recipe.tokens_per_layer(16, 5)
    with pytest.raises(QuotaError, match="not pruned"), quota.record(variant.subject.model):
        pass


def test_overhead_is_a_part_of_the_prefill_and_leaves_no_pruner_behind() -> None:
    subject = tiny_subject("realistic", quantized=True)
    # Text included: 64 words and 16, 16, 13, 8 of 16 visual tokens.
    assert overhead.candidate_lengths(subject) == [64 + 16, 64 + 13, 64 + 8]
    spent, prefill = overhead.overhead(subject, turns=2)
    assert spent > 0 and prefill > 0
    assert not hasattr(subject.model, "quota_pruner")


def test_a_timed_pruner_counts_its_hooks_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = tiny_subject("realistic", quantized=True)
    pruner = overhead.TimedPruner(subject.model, subject.recipe, subject.recipe.scheme)
    ticks = iter(range(1000))
    monkeypatch.setattr(overhead.time, "perf_counter", lambda: next(ticks))
    pruner.attach()
    with torch.inference_mode():
        subject.model(**subject.inputs)
    pruner.detach()
    # A tick a hook: base and decoder before, four layers before, three after, decoder after.
    assert pruner.seconds == 2 + 4 + 3 + 1


@pytest.fixture(scope="module")
def reference_peaks() -> dict[str, int]:
    return {variant: memory.peak_bytes("reference", variant) for variant in ("dense", "quota")}


def test_memory_is_that_of_a_process_of_its_own(reference_peaks: dict[str, int]) -> None:
    assert all(peak > 100e6 for peak in reference_peaks.values())
    block = torch.zeros(400_000_000, dtype=torch.uint8)
    assert memory.own_peak() > block.nbytes
    # What this process holds does not count.
    assert memory.peak_bytes("reference", "dense") < 1.2 * reference_peaks["dense"]


def test_a_process_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ops.ENVIRONMENT_VARIABLE, "abacus")
    with pytest.raises(QuotaError, match=r"measuring the memory of reference quantized failed: .*'abacus'"):
        memory.peak_bytes("reference", "quantized")


def test_the_command_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(e2e, "subject", tiny_subject)
    monkeypatch.setattr(e2e, "peak_bytes", lambda name, variant: 100)
    monkeypatch.setattr(e2e, "NEW_TOKENS", 2)
    file = tmp_path / "e2e.json"
    with pytest.raises(SystemExit) as raised:
        main(["bench", "e2e", "--turns", "1", "--json", str(file)])
    assert raised.value.code == 0
    figures = json.loads(file.read_text())
    assert {row["job"] for row in figures["rows"]} == {"ttft", "decode", "overhead", "prefill", "step", "memory"}
    assert {row["shape"].split()[0] for row in figures["rows"]} == {"reference", "realistic"}
    assert "tokens/s" in capsys.readouterr().out


def test_one_model_of_those_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(e2e, "subject", tiny_subject)
    monkeypatch.setattr(e2e, "peak_bytes", lambda name, variant: 100)
    file = tmp_path / "e2e.json"
    assert call("bench", "e2e", "--model", "realistic", "--turns", 1, "--json", file) == 0
    assert {row["shape"].split()[0] for row in json.loads(file.read_text())["rows"]} == {"realistic"}
    capsys.readouterr()
    assert call("bench", "e2e", "--model", "llava") == 1
    assert (
        capsys.readouterr().err == "quota: there is no model 'llava' to time here; choose one of reference, realistic\n"
    )
