"""The records exchanged by stages, one JSON object per line.

Stages exchange no Python objects: each writes these records to a file in the run directory, and the next one reads
them. So any step can be rerun, replaced by another tool, or run on another machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticSerializationError

from wukong import foreign_json
from wukong.errors import DataError, Text
from wukong.files import atomic_open, numbered_lines

Role = Literal["system", "user", "assistant"]


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Message(Record):
    role: Role
    content: str


Messages: TypeAlias = list[Message]
Seconds: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
PromptLike: TypeAlias = str | Sequence[Message | dict[str, Any]]


def as_messages(prompt: PromptLike) -> Messages:
    """Converts a prompt, given as a string (one user turn) or as messages, to messages.

    Raises DataError, with the field, for anything else.
    """
    if isinstance(prompt, str):
        return [Message(role="user", content=prompt)]
    if isinstance(prompt, Mapping) or not isinstance(prompt, Iterable):
        raise DataError(f"a prompt is text or a list of messages, not {type(prompt).__name__}")
    return [_as_message(m, index) for index, m in enumerate(prompt)]


def _as_message(value: Message | dict[str, Any], index: int) -> Message:
    if isinstance(value, Message):
        return value
    try:
        return Message.model_validate(value)
    except ValidationError as error:
        raise _data_error(error, f"messages.{index}") from None


def _data_error(
    error: ValidationError, *above: str, file: str | Path | None = None, line: int | None = None
) -> DataError:
    """Pydantic's first error, with its field (below the fields `above`)."""
    first = error.errors()[0]
    field = ".".join([*above, *map(str, first["loc"])]) or None
    return DataError(first["msg"].removeprefix("Value error, "), file=file, line=line, field=field)


def prompt_id(messages: Sequence[Message]) -> str:
    """A stable id of a prompt: a hash of its messages.

    Raises DataError for half a character (a lone surrogate), which no file can store.
    """
    canonical = json.dumps([[m.role, m.content] for m in messages], ensure_ascii=False)
    try:
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]
    except UnicodeEncodeError:
        raise DataError(foreign_json.HALF_CHARACTER) from None


class Prompt(Record):
    """A conversation to be continued by the assistant.

    `answer` is a reference answer, `columns` the further fields of its record; both reach every reward and judge.
    """

    messages: Messages = Field(min_length=1)
    source: str = ""
    id: str = ""
    answer: str | None = None
    columns: dict[str, Any] | None = None

    def for_judges(self) -> dict[str, Any]:
        """Answer and columns, if there are any, as fields of a line about this prompt."""
        return self.model_dump(include={"answer", "columns"}, exclude_none=True)

    @model_validator(mode="before")
    @classmethod
    def _fill_id(cls, values: dict[str, Any]) -> dict[str, Any]:
        if isinstance(values, dict) and not values.get("id") and values.get("messages"):
            try:
                messages = as_messages(values["messages"])
            except DataError:
                return values  # the field's own validation, which follows, reports the error
            try:
                return {**values, "id": prompt_id(messages)}
            except DataError as error:
                raise ValueError(error.problem) from None
        return values


class Conversation(Record):
    """A demonstration: a conversation with at least one assistant message."""

    messages: Messages = Field(min_length=1)
    source: str = ""


class Sampling(Record):
    """How a response was drawn: `top_k` 0 and `top_p` 1 mean the model's own distribution, untruncated."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


class Response(Record):
    """A model's response. `finish_reason` is "stop" (the model ended it) or "length" (truncated); `answer` and
    `columns` are those of the prompt."""

    id: str
    prompt_id: str
    messages: Messages
    text: str
    model: str
    sampling: Sampling = Sampling()
    finish_reason: Literal["stop", "length"] = "stop"
    n_tokens: int = 0
    source: str = ""
    answer: str | None = None
    columns: dict[str, Any] | None = None

    @classmethod
    def of(
        cls,
        prompt: Prompt,
        text: str,
        model: str,
        sampling: Sampling,
        *,
        finished: bool,
        n_tokens: int,
        id: str | None = None,
    ) -> Response:
        """A model's response to a prompt. Its id is a function of prompt, model and sampling: the same draw has the
        same id wherever it is made.

        Args:
            finished: whether the model ended it; otherwise it was cut.
            id: another id, such as a client's.
        """
        identity = repr((prompt.id, model, sampling.model_dump()))
        return cls(
            id=hashlib.sha256(identity.encode()).hexdigest()[:16] if id is None else id,
            prompt_id=prompt.id,
            messages=prompt.messages,
            text=text,
            model=model,
            sampling=sampling,
            finish_reason="stop" if finished else "length",
            n_tokens=n_tokens,
            source=prompt.source,
            answer=prompt.answer,
            columns=prompt.columns,
        )


class Comparison(Record):
    """Of two answers to one prompt, `chosen` was preferred (or they were equal: `tie`).

    `strength` is the degree of preference, if given (any positive scale; larger is clearer); `annotator` the person or
    model that judged; `source` the data set or tool; `seconds` the time taken.
    """

    prompt: Messages
    chosen: str
    rejected: str
    strength: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    tie: bool = False
    annotator: str = ""
    source: str = ""
    seconds: Seconds = None


class Ranking(Record):
    """K answers to a prompt, in groups from best to worst; answers in a group are tied.

    `groups` holds indices into `responses`: [[2], [0, 1], [3]] says that answer 2 is best, 0 and 1 are equal.
    """

    prompt: Messages
    responses: list[str] = Field(min_length=2)
    groups: list[list[int]]
    annotator: str = ""
    source: str = ""
    seconds: Seconds = None

    @model_validator(mode="after")
    def _groups_name_each_response_once(self) -> Ranking:
        named = sorted(i for group in self.groups for i in group)
        if named != list(range(len(self.responses))):
            raise ValueError(f"groups must name each of the {len(self.responses)} responses once, not {named}")
        return self

    def pairs(self) -> Iterator[tuple[int, int]]:
        """All pairs (better, worse) of answers in different groups: K answers without ties give C(K, 2)."""
        for better, worse in combinations(self.groups, 2):
            yield from ((b, w) for b in better for w in worse)


class Vote(Record):
    """A thumb up (+1) or down (-1) for a single answer."""

    prompt: Messages
    response: str
    vote: Literal[1, -1]
    annotator: str = ""
    source: str = ""


Preference: TypeAlias = Comparison | Ranking | Vote
R = TypeVar("R", bound=Record)


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Writes one JSON object per line, atomically; returns the number of records.

    Raises RunError if the disk is full, DataError for text with half a character (a lone surrogate).
    """
    count = 0
    with atomic_open(path) as out:
        for record in records:
            try:
                line = record.model_dump_json(exclude_none=True)
            except PydanticSerializationError:
                raise DataError(foreign_json.HALF_CHARACTER, file=path, line=count + 1) from None
            out.write(line + "\n")
            count += 1
    return count


def iter_records(
    path: str | Path, kind: type[R], skip_bad: int = 0, tell: Callable[[str], None] | None = None
) -> Iterator[R]:
    """Reads our JSONL, one validated record at a time.

    Args:
        skip_bad: the number of bad records to leave out before reading stops with an error.
        tell: called with a message for each; by default it is printed.

    Raises DataError with file, line and field.
    """
    from wukong.console import say

    left_out = 0
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            yield _validated(line, kind, path, number)
        except DataError as error:
            if left_out == skip_bad:
                raise
            left_out += 1
            (tell or say)(Text("left out: {record}", record=error))


def _validated(line: str, kind: type[R], path: str | Path, number: int) -> R:
    try:
        record = kind.model_validate_json(line)
    except ValidationError as error:
        raise _data_error(error, file=path, line=number) from None
    value, suspicious = foreign_json.parse(line)  # pydantic silently uses the last of duplicate keys
    if suspicious and (found := foreign_json.fault(value)) is not None:
        raise DataError(found[1], file=path, line=number, field=found[0] or None)
    return record


def read_records(path: str | Path, kind: type[R], skip_bad: int = 0) -> list[R]:
    """As `iter_records`, all at once; an empty file is an error."""
    records = list(iter_records(path, kind, skip_bad))
    if not records:
        raise DataError("the file contains no records", file=path)
    return records
