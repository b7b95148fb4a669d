"""Attributes of which every thread has its own."""

from __future__ import annotations

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from quota.attention.per_thread import PerThread


class Hook:
    state = PerThread[list[int]]()
    other = PerThread[list[int]]()


def test_each_object_attribute_and_thread_has_its_own() -> None:
    one, two = Hook(), Hook()
    assert one.state is None
    one.state, two.state = [1], [2]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: one.state).result() is None
        pool.submit(setattr, one, "state", [3]).result()
        assert pool.submit(lambda: one.state).result() == [3]
    assert (one.state, two.state, one.other) == ([1], [2], None)
    one.state = None
    assert (one.state, two.state) == (None, [2])


def test_a_copy_has_none() -> None:
    hook = Hook()
    hook.state = [1]
    assert copy.deepcopy(hook).state is None


def test_a_context_that_is_handed_on_takes_the_values_with_it() -> None:
    hook = Hook()
    hook.state = [1]
    with ThreadPoolExecutor(1) as pool:
        context = copy_context()
        assert pool.submit(context.run, lambda: hook.state).result() is hook.state
        pool.submit(context.run, setattr, hook, "state", [2]).result()
    assert hook.state == [1]


def test_it_keeps_no_object_alive() -> None:
    hook = Hook()
    hook.state = [1]
    alive = weakref.ref(hook)
    del hook
    gc.collect()
    assert alive() is None
