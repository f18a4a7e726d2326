"""One record as found in its source, and the definition of what counts as text."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wukong.errors import DataError
from wukong.records import Message, Messages

# The names that public data sets use for the three roles.
ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
CONTENT = ("content", "value", "text")
# Fields of a turn that do not change its text; `weight` and similar are read when training on answers.
HARMLESS_IN_A_TURN = {"id", "message_id", "parent_id", "created_at", "timestamp", "annotations", "type", "name"}
LEARN_FLAGS = ("weight", "train", "loss")
TOOL_CALLS = ("tool_calls", "function_call")


def is_missing(value: Any) -> bool:
    """Whether this is null, or NaN, which pandas writes for an empty cell."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_empty(value: Any) -> bool:
    """Whether this is missing, or an empty container or blank text."""
    return is_missing(value) or (isinstance(value, str | list | dict | tuple) and not value)


def is_text(value: Any) -> bool:
    """Whether `Row.string` accepts this: text, or finite numbers and booleans, into which converters turn text."""
    return isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def is_turns(value: Any) -> bool:
    """Whether this is a list of messages: objects with a role (or ShareGPT's `from`)."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and bool({"role", "from"} & set(turn)) for turn in value)
    )


def type_name(value: Any) -> str:
    if is_missing(value):
        return "null" if value is None else "NaN"
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def shown(value: Any, width: int = 60) -> str:
    """A value for a message, shortened."""
    text = repr(value[:width]) if isinstance(value, str) else repr(value)
    return text if len(text) <= width + 2 else f"{text[:width]}…"


def _is_text_part(part: Any) -> bool:
    """Whether this part of a message is only text; image parts may have a text field too."""
    kinds = (None, "text", "input_text", "output_text")
    return isinstance(part, dict) and "text" in part and part.get("type") in kinds


@dataclass
class Row:
    """One record as found in its source, with helpers that read its fields or report what is wrong with them.

    `bad` is set instead of `fields` if the record could not be parsed, so that reading can continue where bad records
    are allowed. `notes` collects what a reader changed, `cuts` what it shortened, `unused` the nested fields it
    ignored. `question` is the option of that name, `asked` the questions (kind, name) that the record answers, `used`
    the fields whose names depend on the record, `kept` those kept as columns of a prompt. Of the option `columns`,
    `renamed` holds the columns found and `lacking` the (name, column) of those not found.
    """

    file: str
    line: int
    fields: dict[str, Any] = field(default_factory=dict)
    bad: DataError | None = None
    notes: list[str] = field(default_factory=list)
    cuts: list[str] = field(default_factory=list)
    hub: bool = False
    question: str = ""
    unused: Counter[str] = field(default_factory=Counter)
    asked: set[tuple[str, str]] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)
    renamed: set[str] = field(default_factory=set)
    lacking: list[tuple[str, str]] = field(default_factory=list)

    @property
    def source(self) -> str:
        """The source name stored in records: without directories, which differ between machines."""
        return self.file if self.hub else Path(self.file).name

    def error(self, problem: str, name: str | None = None, hint: str | None = None) -> DataError:
        return DataError(problem, file=self.file, line=self.line, field=name, hint=hint)

    def string(self, value: Any, name: str) -> str:
        """`value` as text. Numbers and booleans count as text (JSON converters turn "True" into true)."""
        if isinstance(value, str):
            return value
        if not is_text(value):
            what = type_name(value) if not isinstance(value, float) or math.isnan(value) else "infinite"
            raise self.error(f"is {what}, expected text", name)
        self.notes.append("number or boolean read as text")
        try:
            return str(value)
        except ValueError:
            raise self.error("is a number with too many digits", name) from None

    def text(self, *names: str) -> str:
        """The first of these fields that is present; none is an error."""
        for name in names:
            if name in self.fields:
                return self.string(self.fields[name], name)
        raise self.error("is missing", " or ".join(names), f"found: {', '.join(map(str, self.fields)) or 'nothing'}")

    def optional(self, *names: str) -> str:
        """As `text`, but "" if absent, null or NaN. If several fields have different values, the others are noted."""
        there = [name for name in names if not is_missing(self.fields.get(name))]
        self.unused.update({name for name in there[1:] if self.fields[name] not in ("", self.fields[there[0]])})
        return self.text(there[0]) if there else ""

    def number(self, name: str, least: float = -math.inf) -> float | None:
        """A finite number of at least `least`; None if the field is absent or null. NaN is an error."""
        value = self.fields.get(name)
        if value is None or value == "":
            return None
        try:
            number = math.nan if isinstance(value, bool | list | dict) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not (math.isfinite(number) and number >= least):
            raise self.error(f"is {shown(value)}, expected a number{' from 0 up' if least == 0 else ''}", name)
        return number

    def object(self, value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(f"is {type_name(value)}, expected an object", name)
        return value

    def objects(self, value: Any, name: str) -> list[dict[str, Any]]:
        if not isinstance(value, list):
            raise self.error(f"is {type_name(value)}, expected a list", name)
        return [self.object(item, f"{name}[{i}]") for i, item in enumerate(value)]

    def turns(self, value: Any, name: str) -> Messages:
        """A list of {role, content} or ShareGPT's {from, value} -> messages."""
        return [self.turn(item, f"{name}[{i}]") for i, item in enumerate(self.objects(value, name))]

    def turn(self, value: dict[str, Any], name: str) -> Message:
        role_key = "role" if "role" in value else "from"
        content_key = next((key for key in CONTENT if not is_missing(value.get(key))), None)
        content_key = content_key or next((key for key in CONTENT if key in value), "content")
        role = ROLES.get(str(value.get(role_key)).lower())
        if role is None:
            raise self.error(
                f"unknown role {shown(value.get(role_key))}", f"{name}.{role_key}", f"known: {', '.join(ROLES)}"
            )
        for key in TOOL_CALLS:
            if not is_empty(value.get(key)):
                raise self.error("is a tool call, not text", f"{name}.{key}")
        content = value.get(content_key)
        if is_missing(content) and isinstance(value.get("refusal"), str):  # OpenAI's field for refusals
            content_key, content = "refusal", value["refusal"]
        if isinstance(content, list) and all(_is_text_part(part) for part in content):
            content = "".join(self.string(part["text"], f"{name}.{content_key}") for part in content)
        known = {role_key, content_key, "role", *HARMLESS_IN_A_TURN, *LEARN_FLAGS, *TOOL_CALLS}
        path = re.sub(r"\[\d+\]", "[]", name)
        self.unused.update({f"{path}.{key}" for key in set(value) - known if not is_empty(value[key])})
        return Message(role=role, content=self.string(content, f"{name}.{content_key}"))
