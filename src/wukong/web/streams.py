"""Answers while they are generated for a person: one in the chat, two side by side in the arena."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from wukong.errors import WukongError
from wukong.feedback.store.labels import ConflictError, NotFoundError
from wukong.feedback.store.tables import Annotator
from wukong.records import Messages, Prompt, Response, Sampling
from wukong.web.inputs import Body

if TYPE_CHECKING:
    from wukong.serve.service import Answer, Drawing, Served

MOST_AT_ONCE = 3
"""Streams that one person may have open: one for each of three tabs."""


class SamplingBody(Body):
    """How an answer is drawn; as in `wukong chat`."""

    temperature: float | None = Field(default=None, ge=0, le=10)
    """What the model recommends when absent; so are the next two without a temperature."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=1_000_000)
    max_new_tokens: int = Field(default=128, ge=1, le=4096)
    """The answer is cut there, or at half the model's context if that is shorter."""
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    """A random one when absent."""

    def drawing(self, served: Served) -> Drawing:
        """With every number in place."""
        from wukong.serve.service import Drawing

        length = min(self.max_new_tokens, served.context // 2)
        drawn = served.sampling.unless_given(served.name, self.temperature, self.top_k, self.top_p)
        return Drawing(length, drawn.temperature, drawn.top_k, drawn.top_p, self.seed)


class AnswerStream:
    """Answers that are being written, as one stream.

    Attributes:
        person: for whom.
        texts: what was said so far, by place.
        stopped: whether the person stopped them.
    """

    def __init__(self, person: Annotator, answers: Sequence[Answer]) -> None:
        self.person, self.answers = person, answers
        self.texts = ["" for _ in answers]
        self.stopped = False
        self._finished: list[str | None] = [None for _ in answers]
        self._tokens = [0 for _ in answers]
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def stop(self) -> None:
        self._stop.set()

    async def pieces(self) -> AsyncIterator[tuple[int, str]]:
        """(place, text) as it comes, until all are finished or the person stops them.

        Raises WukongError when one of them fails.
        """
        news: asyncio.Queue[tuple[int, str] | WukongError | None] = asyncio.Queue()

        async def read(place: int, answer: Answer) -> None:
            try:
                async for piece in answer:
                    text = piece.text.replace("\x00", "\ufffd")  # a small model says anything, a database refuses NUL
                    self.texts[place] += text
                    self._finished[place], self._tokens[place] = piece.finish_reason, piece.n_tokens
                    news.put_nowait((place, text))
            except WukongError as error:
                news.put_nowait(error)

        async def wait() -> None:
            await self._stop.wait()
            news.put_nowait(None)

        self._tasks = [asyncio.create_task(read(*one)) for one in enumerate(self.answers)]
        self._tasks.append(asyncio.create_task(wait()))
        try:
            while not all(self._finished) or not news.empty():
                match await news.get():
                    case None:
                        self.stopped = not all(self._finished)
                        return
                    case WukongError() as error:
                        raise error
                    case (place, text):
                        yield place, text
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Nobody reads them any more."""
        for answer in self.answers:
            answer.cancel()
        for task in self._tasks:
            task.cancel()

    def response(self, name: str, place: int, messages: Messages, drawing: Drawing, source: str) -> Response:
        """What was said at a place, as a record."""
        one = self.answers[place]
        drawn = one.served.sampling.unless_given(one.served.name, drawing.temperature, drawing.top_k, drawing.top_p)
        sampling = Sampling(**drawn.as_dict(), seed=one.seed)
        return Response.of(
            Prompt(messages=messages, source=source), self.texts[place], one.served.name, sampling,
            finished=self._finished[place] == "stop", n_tokens=self._tokens[place], id=f"{name}:{place}",
        )  # fmt: skip


class AnswerStreams:
    """All that is being written now, by the name that the page gave it."""

    def __init__(self) -> None:
        self._now: dict[str, AnswerStream] = {}

    def admit(self, name: str, person: Annotator) -> None:
        """Raises ConflictError for a name in use, or when too much is being written for this person."""
        busy = sum(one.person.id == person.id for one in self._now.values())
        if name in self._now or busy >= MOST_AT_ONCE:
            raise ConflictError("wait until your other answers are finished")

    def begin(self, name: str, person: Annotator, answers: Sequence[Answer]) -> AnswerStream:
        """Raises as `admit`: others may have come since it was asked."""
        try:
            self.admit(name, person)
        except ConflictError:
            for one in answers:
                one.cancel()
            raise
        self._now[name] = AnswerStream(person, answers)
        return self._now[name]

    def end(self, name: str) -> None:
        if (stream := self._now.pop(name, None)) is not None:
            stream.cancel()

    def of(self, name: str, person: Annotator) -> AnswerStream:
        """Raises NotFoundError for another person's stream, or an unknown name."""
        stream = self._now.get(name)
        if stream is None or stream.person.id != person.id:
            raise NotFoundError("no such answer of yours is being written")
        return stream
