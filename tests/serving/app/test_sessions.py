"""What is remembered of a page, and when it is forgotten; who goes first."""

from __future__ import annotations

import time
from threading import Event, Thread

from quota.serving.app.pictures import Picture
from quota.serving.app.precedence import Precedence
from quota.serving.app.sessions import MOST, Sessions


def test_a_closed_page_is_forgotten_and_its_answer_cancelled() -> None:
    sessions = Sessions()
    session = sessions.of("a")
    session.show(Picture(b"x"))
    running = session.begin()
    assert sessions.of("a") is session
    sessions.close("a")
    sessions.close("never there")
    assert running.is_set() and session.picture is None and len(sessions) == 0


def test_no_more_than_some_are_remembered() -> None:
    sessions = Sessions()
    first = sessions.of("first")
    running = first.begin()
    for number in range(MOST):
        sessions.of(str(number))
    assert len(sessions) == MOST and running.is_set() and sessions.of("first") is not first


def test_a_new_answer_cancels_the_one_before() -> None:
    session = Sessions().of("a")
    before = session.begin()
    assert not session.begin().is_set() and before.is_set()


def test_what_is_for_comparison_waits_for_answers() -> None:
    precedence, done = Precedence(), []
    with precedence.first():
        waiting = Thread(target=lambda: done.append(precedence.give_way(Event())))
        waiting.start()
        time.sleep(0.2)
        assert not done
        cancelled = Event()
        cancelled.set()
        assert precedence.give_way(cancelled) < 0.1
    waiting.join(5)
    assert done[0] >= 0.2
    assert precedence.give_way(Event()) < 0.1
