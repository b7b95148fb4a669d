"""What attention does is said by each thread for itself, behind one switch that all of them share."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Event, Thread

import pytest
import torch
from support.tiny import tiny_batch, tiny_llava, tiny_prompt
from transformers import PreTrainedConfig

from quota.attention.function import deploy
from quota.attention.moments import KeyMoments, watch
from quota.attention.per_thread import PerThread
from quota.attention.state import NAME, attending, chosen, current, implementation

BATCH = tiny_batch([tiny_prompt(1, 3, seed=1), tiny_prompt(1, 9, seed=2)])


def text_config(implementation: str = "sdpa") -> PreTrainedConfig:
    return tiny_llava(implementation).config.get_text_config()


@contextmanager
def elsewhere(config: PreTrainedConfig, **changes: object) -> Iterator[Callable[[], None]]:
    """Another thread's pass is in flight inside the block, or until what is given is called."""
    entered, leave = Event(), Event()

    def fly() -> None:
        with attending(config, **changes):
            entered.set()
            leave.wait(60)

    def land() -> None:
        leave.set()
        thread.join()

    thread = Thread(target=fly)
    thread.start()
    assert entered.wait(60)
    try:
        yield land
    finally:
        land()


@pytest.mark.parametrize("first", ["this thread", "the other"])
def test_the_switch_is_thrown_back_by_the_last_pass(first: str) -> None:
    config = text_config()
    with elsewhere(config) as land, ExitStack() as own:
        own.enter_context(attending(config))
        for leave in (own.close, land) if first == "this thread" else (land, own.close):
            assert config._attn_implementation == NAME
            assert chosen(config) == "sdpa"
            leave()
        assert config._attn_implementation == "sdpa"


def test_a_state_is_of_one_thread_and_one_model() -> None:
    config, other = text_config(), text_config("eager")
    with elsewhere(config, deployed=True):
        assert not current(config).deployed and implementation(config) == "sdpa"
        with attending(config, deployed=True), attending(config, causal=False):
            assert current(config).deployed and not current(config).causal
            assert implementation(config) == NAME
            assert not current(other).deployed and implementation(other) == "eager"
        assert not current(config).deployed


@pytest.mark.parametrize("chosen_by_user", ["sdpa", "eager"])
def test_a_pass_that_meets_the_switch_of_another_changes_no_bit(chosen_by_user: str) -> None:
    model = tiny_llava(chosen_by_user, heads=4, kv_heads=2)
    config = model.config.get_text_config()
    with torch.no_grad():
        expected = model(**BATCH).logits
        with elsewhere(config, deployed=True), watch(config, KeyMoments()):
            assert torch.equal(model(**BATCH).logits, expected)
        with elsewhere(config, deployed=True):
            assert torch.equal(model(**BATCH).logits, expected)
            if chosen_by_user == "eager":
                assert len(model(**BATCH, output_attentions=True).attentions) == 5


def test_a_choice_made_while_it_is_thrown_stays() -> None:
    config = text_config()
    with attending(config):
        config._attn_implementation = "eager"
    assert config._attn_implementation == chosen(config) == "eager"


def test_deploying_forgets_an_observation_that_was_interrupted() -> None:
    config = text_config()
    with attending(config, observation="of a layer that never ended"), deploy(config):
        assert current(config).observation is None


class Hook:
    held = PerThread[ExitStack]()


def test_a_pass_whose_thread_has_died_wants_nothing() -> None:
    config, hook = text_config(), Hook()

    def die() -> None:
        hook.held = ExitStack()
        hook.held.enter_context(attending(config, deployed=True))

    with attending(config, causal=False):
        thread = Thread(target=die)
        thread.start()
        thread.join()
        gc.collect()
        assert not current(config).causal
    assert config._attn_implementation == "sdpa"
