"""Several threads on one model: every pass has its own state, so each answers what one thread alone is answered."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from threading import Event, Thread, current_thread
from typing import Any

import pytest
import torch
from support.pruned import PROMPTS, generate, kept_of, pruned, recipe_for
from support.tiny import tiny_batch, tiny_llava, tiny_prompt
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from quota.models import family
from quota.prompts import build_inputs
from quota.pruning.pruner import Pruner, record
from quota.quantization.linear import W4A4Linear
from quota.scheme import QuantizationScheme
from quota_lab import reference

pytestmark = pytest.mark.slow

THREADS = 4
BATCHES = [
    *map(tiny_batch, PROMPTS.values()),
    tiny_batch([tiny_prompt(1, 2, seed=8)]),
    tiny_batch([tiny_prompt(count, 3 + 4 * count, seed=9 + count) for count in range(4)]),
    tiny_batch([tiny_prompt(2, 30, seed=20), tiny_prompt(2, 1, seed=21), tiny_prompt(1, 1, seed=22)]),
    tiny_batch([tiny_prompt(0, 7, seed=30), tiny_prompt(0, 2, seed=31)]),
]
BEFORE_THE_DECODER = {"layers": (-1,), "keep_ratios": (0.5,), "keep": 0.5, "scorer": "visionzip"}


def compressed(implementation: str = "sdpa", **changes: Any) -> LlavaForConditionalGeneration:
    scheme = QuantizationScheme(weight_rounding="rtn")
    model = tiny_llava(implementation)
    for name, linear in family(model).linears(scheme.modules):
        model.set_submodule(name, W4A4Linear.from_linear(linear, scheme))
    Pruner(model, recipe_for(model, scheme=scheme, **changes), scheme).attach()
    return model


def at_once(call: Callable[[int], Any], calls: int) -> list[Any]:
    """What `call` gives for 0, 1, ..., asked by all threads together in an order of chance."""
    order = random.Random(0).sample(range(calls), calls)
    with ThreadPoolExecutor(THREADS) as pool:
        given = dict(zip(order, pool.map(call, order), strict=True))
    return [given[number] for number in range(calls)]


def assert_as_alone(make: Callable[[], Any], call: Callable[[Any, int], Any], calls: int, kinds: int) -> None:
    """`call(model, number)` gives each of so many `kinds` of calls the same tensors in threads as alone."""
    alone = make()
    expected = [call(alone, number) for number in range(kinds)]
    # A model that nobody has used before: what is made at the first use is made by several at once.
    model = make()
    for number, given in enumerate(at_once(lambda number: call(model, number % kinds), calls)):
        for found, wanted in zip(given, expected[number % kinds], strict=True):
            assert torch.equal(found, wanted)
    config = model.config.get_text_config()
    assert config._attn_implementation == alone.config.get_text_config()._attn_implementation != "quota"


@pytest.mark.parametrize(
    ("make", "calls"),
    [
        (compressed, 200),
        (lambda: compressed("eager"), 60),
        (pruned, 60),
        (lambda: pruned("eager"), 60),
        (lambda: compressed(**BEFORE_THE_DECODER), 60),
    ],
    ids=["sdpa", "eager", "full precision, sdpa", "full precision, eager", "scores of the tower"],
)
def test_answers_are_those_of_one_thread(make: Callable[[], Any], calls: int) -> None:
    def answer(model: Any, number: int) -> list[torch.Tensor]:
        output = generate(model, BATCHES[number])
        return [output.sequences, *output.logits]

    assert_as_alone(make, answer, calls, len(BATCHES))


def test_passes_of_all_kinds_at_once() -> None:
    """Some attend by the backend, some by the model's own attention, and some let their weights be seen."""
    questions = [PROMPTS["left padding"], PROMPTS["two images and one"]]

    @torch.no_grad()
    def ask(model: Any, number: int) -> list[torch.Tensor]:
        batch = tiny_batch(questions[number % 2])
        if number < 2:
            output = model(**batch, output_attentions=True, use_cache=False)
            return [output.logits, *(weights for weights in output.attentions if weights is not None)]
        if number < 4:
            mask = batch["attention_mask"].bool()[:, None, None].expand(-1, -1, mask_length(batch), -1).tril()
            text = model.model.language_model
            return [text(inputs_embeds=text.embed_tokens(batch["input_ids"]), attention_mask=mask).last_hidden_state]
        return [model(**batch).logits]

    assert_as_alone(lambda: compressed("eager"), ask, 60, 6)


def mask_length(batch: dict[str, torch.Tensor]) -> int:
    return batch["input_ids"].shape[1]


def test_the_reference_model_answers_as_one_thread(reference_folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(reference_folder)
    samples = reference.calibration_samples(9, seed=5)
    batches = [build_inputs(processor, samples[:first]) for first in (1, 2, 3)]
    batches += [build_inputs(processor, samples[first : first + 3]) for first in (3, 6)]

    def answer(model: Any, number: int) -> list[torch.Tensor]:
        return [model.generate(**batches[number], max_new_tokens=8, do_sample=False)]

    assert_as_alone(lambda: AutoModelForImageTextToText.from_pretrained(reference_folder), answer, 30, len(batches))


def test_a_failure_in_one_thread_is_its_own() -> None:
    model = pruned()
    expected = [generate(model, batch).sequences for batch in BATCHES]

    def fail_in_some(*_: object) -> None:
        if current_thread().name.startswith("failing"):
            raise KeyboardInterrupt

    def fail(batch: dict[str, torch.Tensor]) -> None:
        with pytest.raises(KeyboardInterrupt):
            generate(model, batch)

    hook = model.model.language_model.layers[2].mlp.register_forward_pre_hook(fail_in_some)
    with ThreadPoolExecutor(2, "failing") as failing, ThreadPoolExecutor(2) as pool:
        failed = [failing.submit(fail, batch) for batch in BATCHES * 3]
        answers = list(pool.map(lambda batch: generate(model, batch).sequences, BATCHES * 3))
    assert all(failure.exception() is None for failure in failed)
    assert all(torch.equal(answer, wanted) for answer, wanted in zip(answers, expected * 3, strict=True))
    hook.remove()
    assert torch.equal(generate(model, BATCHES[0]).sequences, expected[0])
    assert model.config.get_text_config()._attn_implementation == "sdpa"


class TestRecord:
    def test_sees_the_passes_of_its_thread(self) -> None:
        model = pruned()
        kept = []
        for batch in BATCHES[:-1]:
            with record(model) as trace:
                generate(model, batch)
            kept.append([kept_of(row) for row in trace.kept[3]])

        def recorded(number: int) -> list[list[int]]:
            with record(model) as trace:
                generate(model, BATCHES[number % len(kept)])
            return [kept_of(row) for row in trace.kept[3]]

        assert at_once(recorded, 3 * len(kept)) == kept * 3

    @pytest.mark.parametrize("with_context", [True, False])
    def test_sees_a_thread_that_was_given_its_context(self, with_context: bool) -> None:
        model = pruned()
        run = copy_context().run
        with record(model) as trace:
            if with_context:
                run = copy_context().run
            worker = Thread(target=run, args=(generate, model, BATCHES[0]))
            worker.start()
            worker.join()
            assert set(trace.kept) == ({1, 2, 3} if with_context else set())

    def test_a_pass_of_another_thread_in_the_middle_of_one(self) -> None:
        """Not by chance: one waits inside a candidate layer until the other is done."""
        model = pruned()
        with record(model) as alone:
            expected = generate(model, BATCHES[0])
        waiting, done = Event(), Event()

        def wait_once(*_: object) -> None:
            if current_thread().name == "waiting" and not done.is_set():
                waiting.set()
                assert done.wait(60)

        hook = model.model.language_model.layers[1].self_attn.o_proj.register_forward_pre_hook(wait_once)
        found = []

        def ask() -> None:
            with record(model) as trace:
                found.append((generate(model, BATCHES[0]), trace))

        thread = Thread(target=ask, name="waiting")
        thread.start()
        assert waiting.wait(60)
        generate(model, BATCHES[2])
        done.set()
        thread.join()
        hook.remove()
        ((output, trace),) = found
        assert torch.equal(torch.stack(output.logits), torch.stack(expected.logits))
        assert all(torch.equal(trace.kept[layer], alone.kept[layer]) for layer in (1, 2, 3))
