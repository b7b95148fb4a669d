"""What the server remembers of each open page: one picture, the question last asked, what is running. No more.

A page that is closed is forgotten at once, and what it asked is cancelled. Clients that never say that they have gone
are forgotten when too many others have come since.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Event, Lock, Timer

from quota.serving.app.answering import Answer
from quota.serving.app.pictures import Picture

MOST = 64
"""Pages that are remembered at once."""
_SETTLED = 1.0
"""Seconds."""


@dataclass
class Session:
    """One open page."""

    picture: Picture | None = None
    question: str = ""
    """Asked last; empty until then."""
    answer: Answer | None = None
    everything: Answer | None = None
    """The answer to the same question with every token; it does not depend on the budget."""
    looking: Lock = field(default_factory=Lock)
    """Held while a picture is read: a question that comes meanwhile is about that one."""
    running: Event = field(default_factory=Event)
    """Cancels what was asked last."""
    closed: bool = False

    def begin(self) -> Event:
        """A new answer: what ran before is cancelled. Returns what cancels the new one."""
        self.running.set()
        self.running = Event()
        return self.running

    def close(self) -> None:
        """Nobody looks at the page any more."""
        self.closed = True
        self.show(None)

    def show(self, picture: Picture | None) -> None:
        """Another picture, or none; what belonged to the old one goes."""
        self.begin()
        self.picture, self.question, self.answer, self.everything = picture, "", None, None

    def ask(self, question: str) -> None:
        """Another question about the same picture."""
        if question != self.question:
            self.everything = None
        self.question, self.answer = question, None


def _give_back() -> None:
    """Give what is free back to the system: glibc keeps it for each of many threads. Other systems do so themselves."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


class Sessions:
    """All open pages, by what Gradio calls them."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Session] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._known)

    def of(self, name: str) -> Session:
        """That of one page, made if it is new."""
        with self._lock:
            session = self._known.setdefault(name, Session())
            self._known.move_to_end(name)
            while len(self._known) > MOST:
                self._known.popitem(last=False)[1].close()
            return session

    def close(self, name: str) -> None:
        """The page is gone."""
        with self._lock:
            session = self._known.pop(name, None)
        if session is not None:
            session.close()
            # When what it asked has come to its end.
            settled = Timer(_SETTLED, _give_back)
            settled.daemon = True
            settled.start()

    def close_all(self) -> None:
        """The server ends."""
        for name in list(self._known):
            self.close(name)
