"""The profile: every second has one part, parts are where they are said to be, and nothing of it stays in the model."""

from __future__ import annotations

import pytest
import torch
from support.tiny import tiny_config

from quota import ops
from quota.attention.slots import SlotLayer
from quota_lab.bench import models, profile
from quota_lab.bench.profile import Clock

pytestmark = pytest.mark.slow


def test_a_part_does_not_count_what_is_inside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    monkeypatch.setattr(profile.time, "perf_counter", lambda: next(times))
    clock = Clock()
    with clock.part("layer"):
        with clock.part("linear"):
            pass
        with clock.part("linear"):
            pass
    assert dict(clock.seconds) == {"layer": 1.0 + 3.0 + 5.0, "linear": 2.0 + 4.0}


@pytest.mark.parametrize(("quantized", "pruned"), [(False, False), (True, False), (True, True)])
def test_the_parts_of_a_model(quantized: bool, pruned: bool) -> None:
    subject = models.random_subject(tiny_config(), quantized)
    # transformers leaves hooks of its own at the first pass.
    with torch.inference_mode():
        subject.model(**subject.inputs)
    update, hooks = SlotLayer.update, sum(len(module._forward_hooks) for module in subject.model.modules())
    found = profile.profile(subject, pruned, turns=1)
    decoder = {"decoder linears", "decoder attention", "KV cache", "norms", "activations", "lm_head", "other"}
    tower = {"tower linears", "tower attention", "projector linears"}
    assert found["prefill"].keys() == decoder | tower | ({"pruning"} if pruned else set())
    assert decoder <= found["step"].keys()
    assert not tower & found["step"].keys()
    assert all(seconds > 0 for parts in found.values() for seconds in parts.values())
    assert SlotLayer.update is update
    assert sum(len(module._forward_hooks) for module in subject.model.modules()) == hooks
    assert not hasattr(subject.model, "quota_pruner")


def test_the_decoding_steps_follow_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = models.random_subject(tiny_config(), quantized=False)
    lengths: list[int] = []
    original = profile._next

    def noted(inputs, output):
        lengths.append(output.past_key_values.get_seq_length())
        return original(inputs, output)

    monkeypatch.setattr(profile, "_next", noted)
    profile.profile(subject, pruned=False, turns=1)
    prompt = subject.inputs["input_ids"].shape[1]
    assert lengths == [prompt + step for step in range(profile.STEPS + 1)] * 2
    assert torch.is_tensor(subject.inputs["input_ids"])


def test_what_is_timed_runs_by_the_operators_that_run_without_a_clock() -> None:
    subject = models.random_subject(tiny_config(), quantized=True)
    with torch.inference_mode(), ops.record() as alone:
        subject.model(**subject.inputs)
    with torch.inference_mode(), ops.record() as timed, profile._watched(subject.model, Clock()):
        subject.model(**subject.inputs)
    rows = [{key: count for key, count in used.calls.items() if key[0] == "rows"} for used in (alone, timed)]
    assert rows[0] == rows[1] != {}
