"""Existing answers of models, from the files of `wukong sample` and `wukong evaluate`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from wukong import foreign_json
from wukong.console import say
from wukong.errors import DataError, UsageError
from wukong.files import numbered_lines
from wukong.records import Messages, Response, prompt_id


@dataclass(frozen=True)
class ModelAnswer:
    """One model's answer to one prompt; `finished`: the model ended it."""

    prompt_id: str
    messages: Messages
    text: str
    source: str = ""
    finished: bool = True
    answer: str | None = None
    """The prompt's reference answer."""
    columns: dict[str, Any] | None = None


class _AnswerText(BaseModel):
    model_config = ConfigDict(extra="ignore")
    text: str
    finish_reason: str = "stop"


class _AnswersLine(BaseModel):
    """A line of answers.jsonl."""

    model_config = ConfigDict(extra="ignore")
    messages: Messages
    answers: dict[str, _AnswerText]
    source: str = ""
    answer: str | None = None
    columns: dict[str, Any] | None = None


def split_name(text: str) -> tuple[str, str]:
    """("policy", "runs/x/policy") for "policy=runs/x/policy" and for "runs/x/policy"."""
    name, separator, path = text.partition("=")
    if separator and name and "/" not in name:
        return name, path
    return Path(text).name.removesuffix(".gz").removesuffix(".jsonl"), text


def read_answers(path: str | Path, name: str, skip_bad: int = 0) -> list[ModelAnswer]:
    """The answers in a responses.jsonl, or those of the model `name` in an answers.jsonl.

    Args:
        skip_bad: the number of bad lines to leave out (with a message) before reading stops with an error.

    Raises:
        UsageError: a missing file, or one without an answer of this model.
        DataError: a line of another kind (file, line, field).
    """
    answers: list[ModelAnswer] = []
    left_out = 0
    for number, line in numbered_lines(path):
        try:
            answers += _of(path, number, line, name) if line.strip() else ()
        except DataError as error:
            if left_out == skip_bad:
                raise
            left_out += 1
            say("left out: {error}", error=error)
    if not answers:
        raise UsageError(f"{path}: contains no answer of {name!r}")
    return answers


def _of(path: str | Path, number: int, line: str, name: str) -> Iterator[ModelAnswer]:
    try:
        value, suspicious = foreign_json.parse(line)
        if suspicious and (found := foreign_json.fault(value)) is not None:
            raise DataError(found[1], file=path, line=number, field=found[0] or None)
        if isinstance(value, dict) and "answers" in value:
            one = _AnswersLine.model_validate(value)
            if name in one.answers:
                text = one.answers[name]
                finished = text.finish_reason == "stop"
                told = (one.source, finished, one.answer, one.columns)
                yield ModelAnswer(prompt_id(one.messages), one.messages, text.text, *told)
            return
        response = Response.model_validate(value)
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON: {error.msg}", file=path, line=number) from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or None
        hint = "expected responses.jsonl of wukong sample or answers.jsonl of wukong evaluate"
        raise DataError(first["msg"], file=path, line=number, field=field, hint=hint) from None
    except ValueError as error:
        raise DataError(f"not JSON: {error}", file=path, line=number) from None
    finished = response.finish_reason == "stop"
    told = (response.source, finished, response.answer, response.columns)
    yield ModelAnswer(prompt_id(response.messages), response.messages, response.text, *told)
