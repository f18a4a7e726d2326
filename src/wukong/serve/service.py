"""The service that answers: one queue of requests for all models, batched through the sampler in a separate thread.

    service = Service({"policy": load_model("policy", "runs/mine/policy")})
    with service:
        answer = await service.chat("policy", "How to make pizza", Drawing(max_new_tokens=80, seed=1))
        async for piece in answer:
            print(piece.text, end="")

The HTTP interface (`wukong.serve.app`) and the studio's chat use it. A request that comes while others are being
written joins them at their next token (`wukong.rollout.Decoder`), and what it gets does not depend on them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from wukong.errors import RunError, UsageError, brief
from wukong.model.hub import load_policy, recommended_sampling
from wukong.model.language_model import LanguageModel
from wukong.provenance import verify
from wukong.records import PromptLike, as_messages, prompt_id
from wukong.rollout import Continuation, Decoder, inference_copy
from wukong.sampling import OWN_DISTRIBUTION, SamplingParameters
from wukong.seeds import derived_seed
from wukong.serve.metrics import Metrics
from wukong.tokenizer import StreamDecoder, Tokenizer
from wukong.training.compute import Compute, Precision, compute_for

log = logging.getLogger("wukong.serve")


class UnknownModelError(UsageError):
    """No model of this name is loaded."""


class TooLongError(UsageError):
    """Prompt and answer do not fit the model's context."""


class BusyError(RunError):
    """The queue is full, or the service is stopping: worth another try later."""


@dataclass(frozen=True)
class Served:
    """A loaded model, in the precision it decodes in."""

    name: str
    source: str
    model: LanguageModel
    tokenizer: Tokenizer
    created: int
    sampling: SamplingParameters = OWN_DISTRIBUTION
    """What it recommends, which an answer is drawn with unless the request says otherwise."""

    @property
    def context(self) -> int:
        return self.model.config.n_positions

    @cached_property
    def longest_token(self) -> int:
        """Most bytes that one token encodes."""
        tokenizer = self.tokenizer
        return max(len(tokenizer.token_bytes(index, skip_special=False)) for index in range(tokenizer.vocab_size))


def load_model(name: str, source: str, precision: Precision = "auto", device: str = "auto") -> Served:
    """A model directory of ours or of `transformers`, or a hub id.

    Raises UsageError for one that cannot be loaded, DataError for one that is not what its stage wrote.
    """
    compute: Compute = compute_for(precision, device)
    verify(source)
    model, tokenizer = load_policy(source)
    sampling = recommended_sampling(source)
    return Served(
        name, source, inference_copy(model.to(compute.device).eval(), compute), tokenizer, int(time.time()), sampling
    )


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn; names and meanings as in `Policy.generate`, so that both give the same ones.

    Attributes:
        temperature, top_k, top_p: None takes what the model recommends.
        max_new_tokens: None takes the service's default, or what is left of the context when that is less.
        seed: None takes a random one.
        n: answers to each prompt.
        stop: an answer ends before the first of these texts.
        top_logprobs: note with each token the model's own log-prob (at temperature 1), and those of so many of the
            likeliest tokens; None for neither.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    n: int = 1
    stop: Sequence[str] = ()
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Token:
    """A token of an answer; `start` is where its text begins, in characters; `likeliest` holds (id, log-prob)."""

    id: int
    start: int
    logprob: float | None = None
    likeliest: Sequence[tuple[int, float]] = ()


FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """The next part of one answer. The last one has a finish reason: "stop" (the model or a stop text ended it) or
    "length". `n_tokens` counts all tokens drawn so far, the end token included."""

    index: int
    text: str
    tokens: Sequence[Token]
    finish_reason: FinishReason | None
    n_tokens: int


@dataclass
class Whole:
    """One finished answer."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    n_tokens: int = 0


class Answer:
    """The answers to one request, as they are written: an asynchronous iterator of `Piece`.

    Attributes:
        served: the model.
        prompt_tokens: the number of tokens of each prompt.
        seed: from which the answers' own seeds are derived.
    """

    def __init__(self, served: Served, prompt_tokens: Sequence[int], seed: int, count: int) -> None:
        self.served, self.prompt_tokens, self.seed, self.count = served, prompt_tokens, seed, count
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()

    def cancel(self) -> None:
        """Nobody wants it any more: its place in the batch is free from the next token on."""
        self.cancelled = True

    async def __aiter__(self) -> AsyncIterator[Piece]:
        async for pieces in self.bunches():
            for piece in pieces:
                yield piece

    async def bunches(self) -> AsyncIterator[list[Piece]]:
        """The pieces, those together that are there together: a reader that is slower than the model catches up."""
        open_answers = self.count
        while open_answers:
            pieces = [await self._pieces.get()]
            while not self._pieces.empty():
                pieces.append(self._pieces.get_nowait())
            good = [piece for piece in pieces if isinstance(piece, Piece)]
            open_answers -= sum(piece.finish_reason is not None for piece in good)
            if good:
                yield good
            if trouble := next((piece for piece in pieces if isinstance(piece, Exception)), None):
                raise trouble

    async def whole(self) -> list[Whole]:
        """All answers when they are finished: n to the first prompt, n to the second, …"""
        answers = [Whole() for _ in range(self.count)]
        async for piece in self:
            one = answers[piece.index]
            one.text += piece.text
            one.tokens += piece.tokens
            one.finish_reason, one.n_tokens = piece.finish_reason, piece.n_tokens
        return answers


class _Writing:
    """One answer while it is written: from tokens to text, up to the first stop text."""

    def __init__(self, answer: Answer, index: int, continuation: Continuation, stop: Sequence[str]) -> None:
        self.answer, self.index, self.continuation, self.stop = answer, index, continuation, stop
        self.arrived, self.stopped = time.monotonic(), False
        self._decoder = StreamDecoder(answer.served.tokenizer)
        self._held = ""  # text that may be the beginning of a stop text
        self._tokens: list[Token] = []  # whose text was not yet passed on
        self._read = self._passed = 0  # characters that came from the model, and that were passed on

    def take(self) -> Piece | None:
        """What the newest token adds to the answer, if anything can be said yet."""
        written, over = self.continuation.written, self.continuation.over
        if not written.finished:  # the end token is no part of the text
            noted = self.continuation.notes[-1:]
            logprob, likeliest = (noted[0][0][1], noted[0][1:]) if noted else (None, [])
            self._tokens.append(Token(written.ids[-1], self._read, logprob, likeliest))
            text = self._decoder.push(written.ids[-1])
        else:
            text = ""
        if over:
            text += self._decoder.finish()
        self._held, self._read = self._held + text, self._read + len(text)
        if found := [at for stop in self.stop if (at := self._held.find(stop)) >= 0]:
            self.stopped, length = True, min(found)
        else:
            length = len(self._held) - (0 if over else self._doubtful())
        passed, self._held = self._held[:length], self._held[length:]
        self._passed += length
        ended = over or self.stopped
        whole = over and not self.stopped
        tokens = [token for token in self._tokens if whole or token.start < self._passed]
        self._tokens = self._tokens[len(tokens) :]
        if not (passed or tokens or ended):
            return None
        reason: FinishReason | None = None
        if ended:
            reason = "stop" if self.stopped or written.finished else "length"
        return Piece(self.index, passed, tokens, reason, len(written.ids))

    def _doubtful(self) -> int:
        """How many of the last characters may be the beginning of a stop text."""
        longest = max((len(stop) - 1 for stop in self.stop), default=0)
        return next(
            (n for n in range(min(longest, len(self._held)), 0, -1) if self._held.endswith(self._beginnings(n))), 0
        )

    def _beginnings(self, n: int) -> tuple[str, ...]:
        return tuple(stop[:n] for stop in self.stop if len(stop) > n)


class Service:
    """Loaded models, the queue of what is asked of them, and the thread that writes the answers.

    Args:
        models: by name; `add` loads more later.
        max_batch: answers written at the same time, all models together.
        max_waiting: answers that may wait for a place; more are refused (`BusyError`).
        max_new_tokens: the length of answers when a request gives none.
    """

    def __init__(
        self,
        models: Mapping[str, Served] | None = None,
        *,
        max_batch: int = 32,
        max_waiting: int = 256,
        max_new_tokens: int = 128,
    ) -> None:
        self.models = dict(models or {})
        self.max_batch, self.max_waiting, self.max_new_tokens = max_batch, max_waiting, max_new_tokens
        self.metrics = Metrics()
        self._changed = threading.Condition()
        self._waiting: deque[_Writing] = deque()
        self._writing: dict[int, _Writing] = {}  # by the identity of its continuation
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="wukong-serve", daemon=True)

    # ---------------------------------------------------------------------------------------------- for the outside

    def add(self, served: Served) -> None:
        """One more model, at any time; requests that were accepted keep the one of that name they began with."""
        self.models[served.name] = served

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; answers that are not finished end with `BusyError`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def model(self, name: str) -> Served:
        """Raises UnknownModelError."""
        if (served := self.models.get(name)) is None:
            raise UnknownModelError(
                "the model {name} does not exist; there are {models}", name=brief(name), models=", ".join(self.models)
            )
        return served

    async def chat(
        self, model: str, messages: PromptLike, drawing: Drawing | None = None, max_prompt: int | None = None
    ) -> Answer:
        """Answers a conversation: the same as `Policy.generate([messages] * n, seed=…)` gives.

        Args:
            max_prompt: of a conversation of more tokens the oldest turns are left out, as `Policy.generate` does;
                when absent, one that does not fit is refused.

        Raises:
            UnknownModelError, TooLongError, BusyError; DataError for messages that cannot be used.
        """
        drawing, served = drawing or Drawing(), self.model(model)
        conversation = as_messages(messages)
        self._check_room(served, 1, drawing)
        if max_prompt is None:
            if len(conversation) > served.context:
                raise TooLongError(
                    "this model's context is {context} tokens, and {n:,} messages were sent",
                    context=served.context,
                    n=len(conversation),
                )
            self._check_size(served, sum(len(message.content.encode("utf-8", "replace")) for message in conversation))
        ids = await asyncio.to_thread(served.tokenizer.prompt_ids, conversation, max_prompt)
        return self._submit(served, [(prompt_id(conversation), ids)], drawing)

    async def complete(
        self, model: str, prompts: Sequence[str | Sequence[int]], drawing: Drawing | None = None
    ) -> Answer:
        """Continues texts, or token ids, unchanged, without the chat template; an empty one begins a document.

        Raises as `chat`; UsageError for a token id outside the vocabulary.
        """
        drawing, served = drawing or Drawing(), self.model(model)
        self._check_room(served, len(prompts), drawing)
        every = []
        for prompt in prompts:
            if isinstance(prompt, str):
                self._check_size(served, len(prompt.encode("utf-8", "replace")))
                ids = await asyncio.to_thread(served.tokenizer.raw_ids, prompt)
            else:
                ids = list(prompt)
            if bad := [index for index in ids if not 0 <= index < served.tokenizer.vocab_size]:
                raise UsageError(
                    "token id {id} is not in the vocabulary of {n}", id=bad[0], n=served.tokenizer.vocab_size
                )
            every.append((str(ids), ids or [served.tokenizer.eos_id]))
        return self._submit(served, every, drawing)

    def _submit(self, served: Served, prompts: Sequence[tuple[str, list[int]]], drawing: Drawing) -> Answer:
        """prompts: (what its seeds are derived from, token ids) each."""
        for _, ids in prompts:
            self._length(served, len(ids), drawing.max_new_tokens)
        seed = secrets.randbits(31) if drawing.seed is None else drawing.seed
        drawn = served.sampling.unless_given(served.source, drawing.temperature, drawing.top_k, drawing.top_p)
        answer = Answer(served, [len(ids) for _, ids in prompts], seed, len(prompts) * drawing.n)
        new = [
            _Writing(
                answer,
                p * drawing.n + k,
                Continuation(
                    ids,
                    self._length(served, len(ids), drawing.max_new_tokens),
                    derived_seed(seed, name, drawn.temperature, k),  # as `Policy.generate` derives them
                    drawn.temperature,
                    drawn.top_k,
                    drawn.top_p,
                    drawing.top_logprobs,
                ),
                drawing.stop,
            )
            for p, (name, ids) in enumerate(prompts)
            for k in range(drawing.n)
        ]
        with self._changed:
            self._check_queue(len(new))  # again: others came while the prompts were read
            self._waiting.extend(new)
            self.metrics.waiting.set(len(self._waiting))
            self._changed.notify()
        self.metrics.prompt_tokens.labels(served.name).inc(sum(answer.prompt_tokens))
        return answer

    def _check_room(self, served: Served, prompts: int, drawing: Drawing) -> None:
        """Everything that can be refused before a prompt is read. Raises UsageError, TooLongError, BusyError."""
        count, room = prompts * drawing.n, self.max_batch + self.max_waiting
        if count > room:
            raise UsageError(
                "{n} answers in one request are more than the {room} that this server takes at once", n=count, room=room
            )
        if (asked := drawing.max_new_tokens) is not None and asked > served.context:
            raise TooLongError(
                "this model's context is {context} tokens, and an answer of {n} was requested",
                context=served.context,
                n=asked,
            )
        with self._changed:
            self._check_queue(count)

    def _check_queue(self, count: int) -> None:
        """Raises BusyError when so many more answers find no place."""
        if self._closing:
            raise BusyError("the server is stopping")
        if len(self._waiting) + len(self._writing) + count > self.max_batch + self.max_waiting:
            self.metrics.refused.inc()
            raise BusyError(
                "the server is busy: {n} answers are waiting already; try again later", n=len(self._waiting)
            )

    def _check_size(self, served: Served, size: int) -> None:
        """Refuses a text of so many bytes that no tokenization of it fits. Raises TooLongError."""
        fewest = size // served.longest_token
        if fewest >= served.context:
            raise TooLongError(
                "this model's context is {context} tokens, and {size:,} bytes are at least {fewest:,} of them",
                context=served.context,
                size=size,
                fewest=fewest,
            )

    def _length(self, served: Served, prompt: int, asked: int | None) -> int:
        room = served.context - prompt
        if room >= 1 and (asked is None or asked <= room):
            return asked or min(self.max_new_tokens, room)
        wanted = 1 if asked is None else asked
        raise TooLongError(
            "this model's context is {context} tokens, and {n} were requested: {prompt} in the prompt, {answer} in the "
            "answer; shorten one of them",
            context=served.context,
            n=prompt + wanted,
            prompt=prompt,
            answer=wanted,
        )

    # --------------------------------------------------------------------------------------------------- the thread

    def _work(self) -> None:
        decoders: dict[int, Decoder] = {}  # by the identity of the model
        while (new := self._next()) is not None:
            by_model: dict[int, list[_Writing]] = defaultdict(list)
            for one in new:
                self._writing[id(one.continuation)] = one
                by_model[id(one.answer.served)].append(one)
            self.metrics.writing.set(len(self._writing))
            parcels: list[tuple[Answer, Piece | Exception]] = []
            for key in {**decoders, **by_model}:
                joining = by_model.get(key, [])
                mine = [one for one in self._writing.values() if id(one.answer.served) == key]
                try:
                    if key not in decoders:
                        served = joining[0].answer.served
                        decoders[key] = Decoder(served.model, served.tokenizer.eos_ids)
                    parcels += self._step(decoders[key], mine, joining)
                    if not len(decoders[key]):
                        del decoders[key]
                except Exception as error:  # out of memory, a bug: those who wait must hear of it, and others go on
                    log.exception("decoding failed")
                    trouble = RunError(
                        "the model failed: {reason}", reason=(str(error) or type(error).__name__).splitlines()[0]
                    )
                    parcels += [(answer, trouble) for answer in {id(one.answer): one.answer for one in mine}.values()]
                    for one in mine:
                        self._writing.pop(id(one.continuation), None)
                    decoders.pop(key, None)
            self.metrics.writing.set(len(self._writing))
            _deliver(parcels)
        left = {id(one.answer): one.answer for one in [*self._waiting, *self._writing.values()]}
        _deliver([(answer, BusyError("the server is stopping")) for answer in left.values()])

    def _next(self) -> list[_Writing] | None:
        """Waits for work; gives those who may join now, or None at the end."""
        with self._changed:
            while not (self._closing or self._waiting or self._writing):
                self._changed.wait()
            if self._closing:
                return None
            if any(one.answer.cancelled for one in self._waiting):
                self._waiting = deque(one for one in self._waiting if not one.answer.cancelled)
            gone = [one for one in self._writing.values() if one.answer.cancelled]
            free = self.max_batch - len(self._writing) + len(gone)
            new = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
            self.metrics.waiting.set(len(self._waiting))
        return new

    def _step(
        self, decoder: Decoder, mine: Sequence[_Writing], joining: Sequence[_Writing]
    ) -> list[tuple[Answer, Piece | Exception]]:
        """One token for every answer of one model: `mine`, of which some are `joining` now."""
        begin = time.monotonic()
        gone = {id(one): one.continuation for one in mine if one.answer.cancelled}
        decoder.drop(gone.values())
        decoder.admit([one.continuation for one in joining if id(one) not in gone])
        stepped = decoder.step()
        over, parcels, name = list(gone.values()), list[tuple[Answer, Piece | Exception]](), mine[0].answer.served.name
        for continuation in stepped:
            one = self._writing[id(continuation)]
            if len(continuation.written.ids) == 1:
                self.metrics.first_token_seconds.labels(name).observe(time.monotonic() - one.arrived)
            if (piece := one.take()) is not None:
                parcels.append((one.answer, piece))
            if continuation.over or one.stopped:
                over.append(continuation)
                self.metrics.answer_seconds.labels(name).observe(time.monotonic() - one.arrived)
        decoder.drop(over)
        for continuation in over:
            del self._writing[id(continuation)]
        if stepped:
            self.metrics.stepped(name, len(stepped), time.monotonic() - begin)
        return parcels


def _hand_over(parcels: Sequence[tuple[Answer, Piece | Exception]]) -> None:
    for answer, piece in parcels:
        answer._pieces.put_nowait(piece)


def _deliver(parcels: Sequence[tuple[Answer, Piece | Exception]]) -> None:
    """One call into each event loop: a call for each piece would wake it once a token of every answer."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Answer, Piece | Exception]]] = defaultdict(list)
    for answer, piece in parcels:
        by_loop[answer._loop].append((answer, piece))
    for loop, some in by_loop.items():
        try:
            loop.call_soon_threadsafe(_hand_over, some)
        except RuntimeError:  # the loop is closed: the client is gone
            for answer, _ in some:
                answer.cancel()
