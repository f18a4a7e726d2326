"""Public formats as declarations.

A `Format` declares which fields a record needs, which others it uses, which can safely be ignored, and which would
change the meaning if ignored. Detection, the hint at the nearest format, the count of unused fields and the tables of
docs/reference/data.md are derived from it. Each record is matched separately, so a file may mix formats.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from wukong.data.row import Row, is_empty, is_missing, is_text, is_turns, shown, type_name
from wukong.data.summary import Dropped
from wukong.errors import DataError
from wukong.records import Messages

T = TypeVar("T")
Fields: TypeAlias = Mapping[str, Any]
Yields = Literal["instruction", "comparison", "ranking", "vote", "prompt", "text", "any"]
Found: TypeAlias = Iterable[T | Dropped | DataError]
"""What a converter returns for one record. An error among the items affects that item only, a raised one the whole
record."""


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# ----------------------------------------------------------------------------------------------- what a field must hold


@dataclass(frozen=True)
class Check:
    """What a field must hold: a description for messages, and a predicate."""

    what: str
    holds: Callable[[Any], bool]


def is_answer(value: Any) -> bool:
    """Whether this is text, messages, or an object with the text under one of its usual names."""
    return is_text(value) or is_turns(value) or (isinstance(value, dict) and bool(ANSWER_KEYS & set(value)))


ANSWER_KEYS = {"value", "content", "text", "response"}
TEXT = Check("text", is_text)
TURNS = Check("a list of messages", is_turns)
PROMPT = Check("text or a list of messages", lambda value: is_text(value) or is_turns(value))
ANSWER = Check("text, a message or a list of messages", is_answer)
LIST = Check("a list", lambda value: isinstance(value, list))
OBJECT = Check("an object", lambda value: isinstance(value, dict))
NUMBER = Check("a number", lambda value: isinstance(value, int | float) and not is_missing(value))
ANY = Check("a value", lambda value: True)

COMMON_HARMLESS = names(
    "id idx index uid uuid prompt_id question_id conversation_id source dataset url link created_at "
    "updated_at created_date timestamp date lang language model model_name generator __index_level_0__"
)
"""Fields that can be ignored in every format."""

Neutral: TypeAlias = Callable[[Any], bool]
MEDIA: dict[str, Neutral] = dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), is_empty)
TOOLS: dict[str, Neutral] = dict.fromkeys(("tools", "functions", "tool_calls", "function_call"), is_empty)


def _is_category(value: Any) -> bool:
    """Some sets use `label` for a topic: a word that spells no verdict."""
    return is_empty(value) or (isinstance(value, str) and verdict_of(value) is None and not _is_number(value))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


UP = names(
    "true t yes y up good like liked upvote upvoted thumb_up thumbs_up thumbs-up thumbsup positive pos desirable "
    "accepted accept correct right pass passed 👍"
)
DOWN = names(
    "false f no n down bad dislike disliked downvote downvoted thumb_down thumbs_down thumbs-down thumbsdown negative "
    "neg undesirable rejected reject incorrect wrong fail failed 👎"
)
NUMBERS = {1.0: True, 0.0: False, -1.0: False}
_DRESS = re.compile("[:\ufe0f\U0001f3fb-\U0001f3ff]")
"""Decoration of a thumb emoji: colons, variation selectors and skin-tone modifiers."""
INVERTED = names("thumbs_down thumb_down downvoted disliked is_bad")
VERDICTS: dict[str, Neutral] = {
    "label": _is_category,
    **dict.fromkeys(
        ("kto_tag", "vote", "thumbs", "thumb", "thumbs_up", "liked", "upvoted", "desirable", "is_good"), is_empty
    ),
    **dict.fromkeys(sorted(INVERTED), is_empty),
}
"""Fields that say whether an answer was good (INVERTED: bad), each with a test for values that say nothing."""
VERDICT = Check("true or false", lambda value: verdict_of(value) is not None)


def verdict_of(value: Any) -> bool | None:
    """True for a thumb up, False for a thumb down, in any spelling; None for anything else."""
    if not isinstance(value, str | bool | int | float):
        return None
    word = _DRESS.sub("", str(value)).strip().lower().replace(" ", "_")
    if _is_number(word):
        return NUMBERS.get(float(word))
    return True if word in UP else False if word in DOWN else None


def verdict_in(record: Fields, name: str) -> bool | None:
    """The verdict in a field of VERDICTS; the value of a field such as `thumbs_down` is inverted."""
    verdict = verdict_of(record.get(name))
    return not verdict if verdict is not None and name in INVERTED else verdict


# -------------------------------------------------------------------------------------------------------------- formats


@dataclass(frozen=True)
class Format(Generic[T]):
    """A public format.

    Attributes:
        name: its usual name; several formats may share one.
        example: the smallest record of this format.
        needs: name -> what it must hold; "a|b" is either of the two.
        convert: a record -> ours. It may rely on `needs`.
        uses: optional fields that it reads.
        harmless: fields that can be ignored, in addition to COMMON_HARMLESS.
        meaning: name -> whether a value leaves the meaning unchanged. A record with any other value is not of this
            format, since the reader would ignore what it says.
        when: a further condition on the whole record, and its description.
        prompt: extracts only the prompt, also from a record without a judgment.
        yields: what the records become.
    """

    name: str
    example: Fields
    needs: Mapping[str, Check]
    convert: Callable[[Row], Found[T]]
    uses: frozenset[str] = frozenset()
    harmless: frozenset[str] = frozenset()
    meaning: Mapping[str, Neutral] = field(default_factory=dict)
    when: tuple[Callable[[Fields], bool], str] | None = None
    prompt: Callable[[Row], Messages] | None = None
    yields: Yields = "any"

    @functools.cached_property
    def alternatives(self) -> dict[str, list[str]]:
        """need -> the names of which one must be present."""
        return {need: need.split("|") for need in self.needs}

    def picked(self, record: Fields) -> dict[str, str | None]:
        """need -> the record's field with one of its names; a field that is not null takes precedence."""
        return {need: _pick(names, record) for need, names in self.alternatives.items()}

    def matches(self, record: Fields) -> bool:
        return (
            all(name is not None and self.needs[need].holds(record[name]) for need, name in self.picked(record).items())
            and self.changed(record) is None
            and (self.when is None or self.when[0](record))
        )

    def nearness(self, record: Fields) -> tuple[float, int]:
        """The fraction and the number of needed fields that are present. A further condition counts as one more."""
        there = sum(name is not None for name in self.picked(record).values())
        return there / max(1, len(self.needs) + (self.when is not None)), there

    def complaint(self, row: Row) -> DataError:
        """The error for a record that does not match this format."""
        found = f"found: {', '.join(map(str, row.fields)) or 'nothing'}"
        picked = self.picked(row.fields)
        for need, name in picked.items():
            if name is None:
                return row.error("is missing", _either(need), f"{found}; nearest format: {self}")
        for need, name in picked.items():
            value = row.fields[str(name)]
            if not self.needs[need].holds(value):
                return _misfit(row, str(name), value, self.needs[need])
        if (name := self.changed(row.fields)) is not None:
            problem = f"is {shown(row.fields[name])}, which changes the meaning of a record of format {self.name}"
            return row.error(problem, name, f"--columns {name}= reads it without this field")
        asked = self.when[1] if self.when else "another record"
        return row.error(f"is not of format {self.name}: {asked}", hint=found)

    def holds_all(self, record: Fields) -> bool:
        return all(
            name is not None and self.needs[need].holds(record[name]) for need, name in self.picked(record).items()
        )

    def only_lacks_condition(self, record: Fields) -> bool:
        """Whether a record has this format's fields and fails only its further condition (`when`)."""
        return self.holds_all(record) and self.changed(record) is None

    def changed(self, record: Fields) -> str | None:
        """The first field whose value changes the meaning; names such as "Label" or "KTO_TAG" count too."""
        for name, value in record.items():
            neutral = self.meaning.get(name) or self.meaning.get(str(name).strip().lower())
            if neutral is not None and not neutral(value):
                return str(name)
        return None

    def unused(self, record: Fields) -> list[str]:
        known = {*self.picked(record).values(), *self.uses, *self.harmless, *COMMON_HARMLESS}
        return [str(name) for name, value in record.items() if name not in known and not is_empty(value)]

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(_either, self.needs)) or (self.when[1] if self.when else '')})"


def _pick(names: list[str], record: Fields) -> str | None:
    there = [name for name in names if name in record]
    return next((name for name in there if not is_missing(record[name])), there[0] if there else None)


def _either(need: str) -> str:
    """Alternatives for messages, abbreviated if there are many."""
    names = need.split("|")
    return " or ".join(names if len(names) <= 3 else [*names[:2], "…"])


def _misfit(row: Row, name: str, value: Any, check: Check) -> DataError:
    """The error for a field's value; for a list, of its first invalid item."""
    if isinstance(value, list) and check in (TURNS, PROMPT, ANSWER):
        for i, turn in enumerate(value):
            if not isinstance(turn, dict):
                return row.error(f"is {type_name(turn)}, expected an object", f"{name}[{i}]")
            if not {"role", "from"} & set(turn):
                return row.error("has neither role nor from", f"{name}[{i}]")
        return row.error("is an empty list", name)
    if isinstance(value, dict) and check is ANSWER:
        return row.error(f"has none of value, content, text, response; found: {', '.join(map(str, value))}", name)
    said = is_text(value) and check not in (TURNS, LIST, OBJECT)
    return row.error(f"is {shown(value) if said else type_name(value)}, expected {check.what}", name)
