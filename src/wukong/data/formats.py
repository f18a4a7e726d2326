"""Public formats as declarations.

A `Format` says which fields a record needs, which it uses besides, which are harmless and which would change its
meaning if they were not read. Detection, the hint at the nearest format, the count of what was not used and the tables
of docs/reference/data.md all come from this. Each record is matched by itself, so a file may mix formats.
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
"""What a converter makes of one record. An error among the items loses that item alone, a raised one the record."""


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# ----------------------------------------------------------------------------------------------- what a field must hold


@dataclass(frozen=True)
class Check:
    """What a field must hold for its reader: a name for messages, and a test."""

    what: str
    holds: Callable[[Any], bool]


def is_answer(value: Any) -> bool:
    """Text, messages, or an object that has the text under one of its usual names."""
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
"""Names under which no format keeps anything that a reader would miss."""

Neutral: TypeAlias = Callable[[Any], bool]
MEDIA: dict[str, Neutral] = dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), is_empty)
TOOLS: dict[str, Neutral] = dict.fromkeys(("tools", "functions", "tool_calls", "function_call"), is_empty)


def _is_category(value: Any) -> bool:
    """`label` is also what some sets call a topic: a word that no verdict is spelled with."""
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
"""What is written around a thumb: colons, and the marks for emoji style and the tone of skin."""
INVERTED = names("thumbs_down thumb_down downvoted disliked is_bad")
VERDICTS: dict[str, Neutral] = {
    "label": _is_category,
    **dict.fromkeys(
        ("kto_tag", "vote", "thumbs", "thumb", "thumbs_up", "liked", "upvoted", "desirable", "is_good"), is_empty
    ),
    **dict.fromkeys(sorted(INVERTED), is_empty),
}
"""Fields that say whether one answer was good (of INVERTED: bad), and the values that say nothing."""
VERDICT = Check("true or false", lambda value: verdict_of(value) is not None)


def verdict_of(value: Any) -> bool | None:
    """Thumb up or down, in whatever way it is written; None for what says neither."""
    if not isinstance(value, str | bool | int | float):
        return None
    word = _DRESS.sub("", str(value)).strip().lower().replace(" ", "_")
    if _is_number(word):
        return NUMBERS.get(float(word))
    return True if word in UP else False if word in DOWN else None


def verdict_in(record: Fields, name: str) -> bool | None:
    """What one of VERDICTS says of the answer: of a field such as `thumbs_down` the opposite of its value."""
    verdict = verdict_of(record.get(name))
    return not verdict if verdict is not None and name in INVERTED else verdict


# -------------------------------------------------------------------------------------------------------------- formats


@dataclass(frozen=True)
class Format(Generic[T]):
    """A public format.

    Attributes:
        name: what people call it; several formats may share one.
        example: the smallest record of this format.
        needs: name -> what it must hold; "a|b" is whichever of the two is there.
        convert: a record -> ours. It may count on `needs`.
        uses: fields that it reads where they are there.
        harmless: fields that change nothing, beside COMMON_HARMLESS.
        meaning: name -> whether a value leaves the meaning as it is. With any other value the record is not of this
            format, for the reader would pass over what it says.
        when: a further condition on the whole record, and what it asks for in words.
        prompt: the prompt alone, also of a record in which nothing was judged.
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
        """need -> the names of which one has to be there."""
        return {need: need.split("|") for need in self.needs}

    def picked(self, record: Fields) -> dict[str, str | None]:
        """For each need the field of the record that meets it by name; one that is null gives way to its other."""
        return {need: _pick(names, record) for need, names in self.alternatives.items()}

    def matches(self, record: Fields) -> bool:
        return (
            all(name is not None and self.needs[need].holds(record[name]) for need, name in self.picked(record).items())
            and self.changed(record) is None
            and (self.when is None or self.when[0](record))
        )

    def nearness(self, record: Fields) -> tuple[float, int]:
        """How much of what is needed is there: part and number of fields. A further condition counts as one more."""
        there = sum(name is not None for name in self.picked(record).values())
        return there / max(1, len(self.needs) + (self.when is not None)), there

    def complaint(self, row: Row) -> DataError:
        """Why a record that does not match is not of this format."""
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
            problem = f"is {shown(row.fields[name])}, which changes what a record of format {self.name} means"
            return row.error(problem, name, f"--columns {name}= reads it without this field")
        asked = self.when[1] if self.when else "another record"
        return row.error(f"is not of format {self.name}: {asked}", hint=found)

    def holds_all(self, record: Fields) -> bool:
        return all(
            name is not None and self.needs[need].holds(record[name]) for need, name in self.picked(record).items()
        )

    def only_lacks_condition(self, record: Fields) -> bool:
        """Whether the fields are those of this format by name and kind, and the record is another one all the same."""
        return self.holds_all(record) and self.changed(record) is None

    def changed(self, record: Fields) -> str | None:
        """The first field whose value changes the meaning, also where its name is written "Label" or "KTO_TAG"."""
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
    """Alternatives for people: the first ones of many."""
    names = need.split("|")
    return " or ".join(names if len(names) <= 3 else [*names[:2], "…"])


def _misfit(row: Row, name: str, value: Any, check: Check) -> DataError:
    """What is wrong with the value of a field, in a list with the first item that is wrong."""
    if isinstance(value, list) and check in (TURNS, PROMPT, ANSWER):
        for i, turn in enumerate(value):
            if not isinstance(turn, dict):
                return row.error(f"is {type_name(turn)}, an object was expected", f"{name}[{i}]")
            if not {"role", "from"} & set(turn):
                return row.error("has neither role nor from", f"{name}[{i}]")
        return row.error("is an empty list", name)
    if isinstance(value, dict) and check is ANSWER:
        return row.error(f"has none of value, content, text, response; found: {', '.join(map(str, value))}", name)
    said = is_text(value) and check not in (TURNS, LIST, OBJECT)
    return row.error(f"is {shown(value) if said else type_name(value)}, {check.what} was expected", name)
