"""Where an answer ends by a string of the client's, while it is streamed.

The string itself is never sent, so what might become one is held back until more of the answer is there.
"""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """Text on its way to a client."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.met = False
        """Whether one of the strings has come: nothing after it is sent."""

    def feed(self, text: str) -> str:
        """What may be sent now that `text` has come."""
        if self.met:
            return ""
        self._held += text
        if found := [place for stop in self._stops if (place := self._held.find(stop)) >= 0]:
            self.met = True
            return self._take(min(found))
        longest = max(map(len, self._stops), default=1) - 1
        begun = (
            start
            for start in range(max(0, len(self._held) - longest), len(self._held))
            if any(stop.startswith(self._held[start:]) for stop in self._stops)
        )
        return self._take(next(begun, len(self._held)))

    def rest(self) -> str:
        """What was held back and may be sent at the end of the answer."""
        return "" if self.met else self._take(len(self._held))

    def _take(self, length: int) -> str:
        sent, self._held = self._held[:length], self._held[length:]
        return sent
