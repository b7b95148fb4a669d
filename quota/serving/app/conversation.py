"""What the page does when somebody does something on it: each is a function from a session to HTML.

The answer comes first and the comparison with every token behind it, which gives way to the answers of others
(quota/serving/app/precedence.py). Whatever a user can cause is a line on the page.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

from PIL import Image

from quota.errors import QuotaError
from quota.pruning.recipe import PruningRecipe
from quota.samples import Sample
from quota.serving.app.answering import Answer, answers
from quota.serving.app.budgets import Budgets
from quota.serving.app.pictures import Picture, drawn, read_picture
from quota.serving.app.precedence import Precedence
from quota.serving.app.sessions import Session, Sessions
from quota.serving.app.views import answer_view, kept_view, message_view, recipe_view
from quota.serving.lengths import Length

_ANIMATED = "The file holds several pictures; the first is asked about."
_NO_PICTURE = "There is no picture; choose one, or paste it."
_NO_QUESTION = "There is no question; write one."

Shown = tuple[str, str, str]
"""Message, answer and kept tokens."""


class Conversation:
    """All that goes on with one model."""

    def __init__(self, model: Any, processor: Any) -> None:
        """Raises QuotaError for a model that is not pruned."""
        self.budgets = Budgets(model)
        self.sessions = Sessions()
        self._model, self._processor = model, processor
        self._length = Length(processor, model.config.get_text_config().max_position_embeddings)
        self._precedence = Precedence()

    def warm_up(self) -> None:
        """Ask something: what a model prepares at its first question should not count as somebody's time."""
        for recipe in (self.budgets.everything, self.budgets.own):
            sample = Sample(Image.new("RGB", (64, 64)), "?")
            for _ in answers(self._model, self._processor, sample, recipe, Event()):
                break

    def look(self, file: str | None, name: str) -> tuple[Image.Image | None, str, str, str]:
        """Somebody has chosen a picture: its preview, and what is shown."""
        session = self.sessions.of(name)
        with session.looking:
            session.show(None)
            if file is None:
                return (None, *self._shown(session))
            try:
                picture = read_picture(Path(file))
                preview = picture.preview()
            except QuotaError as error:
                return (None, *self._shown(session, message_view(str(error))))
            session.show(picture)
        return (preview, *self._shown(session, message_view(_ANIMATED if picture.animated else "", "note")))

    def solve(self, percent: float) -> str:
        """Somebody has moved the slider: the recipe."""
        try:
            recipe = self.budgets.recipe(round(percent))
        except QuotaError as error:
            return message_view(str(error))
        return recipe_view(recipe, self.budgets.point(recipe), self.budgets.depth)

    def ask(self, question: str, percent: float, name: str) -> Iterator[Shown]:
        """Somebody has asked."""
        session = self.sessions.of(name)
        with session.looking:
            picture = session.picture
        if picture is None:
            yield self._shown(session, message_view(_NO_PICTURE))
            return
        if not question.strip():
            yield self._shown(session, message_view(_NO_QUESTION))
            return
        try:
            self._length.check(question)
        except QuotaError as error:
            yield self._shown(session, message_view(str(error)))
            return
        session.ask(question.strip())
        yield from self._answer(session, picture, percent)

    def again(self, percent: float, name: str) -> Iterator[Shown]:
        """The slider was moved: the same question under the new budget, if one was asked."""
        session = self.sessions.of(name)
        if session.picture is None or not session.question:
            yield self._shown(session)
            return
        session.answer = None
        yield from self._answer(session, session.picture, percent)

    def compare(self, name: str) -> Iterator[str]:
        """Behind an answer: what it would have been with every token."""
        session = self.sessions.of(name)
        cancelled, answer, picture = session.running, session.answer, session.picture
        if answer is not None and answer.finished and picture is not None and session.everything is None:
            self._precedence.give_way(cancelled)
            with closing(self._say(picture, session.question, self.budgets.everything, cancelled, True)) as said:
                for everything in said:
                    if cancelled.is_set():
                        return
                    if everything.finished:
                        session.everything = everything
                    yield answer_view(session.question, answer, everything)
        yield self._view(session)

    def stop(self, name: str) -> None:
        """Nobody wants the rest of what is being said."""
        self.sessions.of(name).running.set()

    def _answer(self, session: Session, picture: Picture, percent: float) -> Iterator[Shown]:
        cancelled, question = session.begin(), session.question
        try:
            yield "", answer_view(question, Answer(), session.everything), ""
            recipe = self.budgets.recipe(round(percent))
            with self._precedence.first(), closing(self._say(picture, question, recipe, cancelled)) as said:
                for answer in said:
                    # Another question may have taken the place of this one.
                    if session.running is not cancelled:
                        return
                    session.answer = answer
                    yield "", self._view(session), ""
        except QuotaError as error:
            session.answer = None
            yield self._shown(session, message_view(str(error)))
            return
        yield self._shown(session, message_view("Stopped." if cancelled.is_set() else "", "note"))

    def _say(
        self, picture: Picture, question: str, recipe: PruningRecipe, cancelled: Event, pause: bool = False
    ) -> Generator[Answer]:
        """The answer, which may `pause` for those of others."""
        give_way = (lambda: self._precedence.give_way(cancelled)) if pause else (lambda: 0.0)
        sample = Sample(picture.pixels(), question)
        return answers(self._model, self._processor, sample, recipe, cancelled, give_way)

    def _shown(self, session: Session, message: str = "") -> Shown:
        answer, picture, kept = session.answer, session.picture, ""
        if answer is not None and answer.finished and picture is not None:
            panels = drawn(picture.pixels(), answer.boxes, answer.kept) if not answer.unplaced else []
            kept = kept_view(panels, answer.unplaced)
        return message, self._view(session), kept

    def _view(self, session: Session) -> str:
        return answer_view(session.question, session.answer, session.everything)
