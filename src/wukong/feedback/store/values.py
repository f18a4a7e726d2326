"""What a judgment says, by kind of task. A value is a JSON object about answers by their index:

    pairwise   {"winner": 0, "strength": 2}, {"winner": null, "verdict": "tie"} or {..., "verdict": "both bad"}
    ranking    {"groups": [[2], [0, 1], [3]]}: best first, answers in one group are tied
    likert     {"ratings": [{"score": 6, "flags": ["hallucination"]}, …]}, one for each answer
    thumbs     {"vote": 1} or {"vote": -1}

An annotator's page knows answers only by the place they are shown at; `as_stored` translates.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wukong.errors import DataError, Text

FLAGS = (
    "fails to follow the instruction",
    "inappropriate for an assistant",
    "hallucination",
    "does not satisfy a stated constraint",
    "sexual content",
    "violent content",
    "encourages harm",
    "denigrates a protected group",
    "harmful advice",
    "expresses an opinion",
    "expresses a moral judgment",
)
"""What may be marked on an answer: the yes-or-no questions of InstructGPT's tool (Ouyang et al. 2022, table 3)."""

SKIP_REASONS = ("unclear prompt", "not my field", "answers cannot be compared", "offensive", "other")


class Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Pairwise(Value):
    winner: Literal[0, 1] | None
    strength: int = Field(2, ge=1, le=3)
    """1 slightly, 2 clearly, 3 much better."""
    verdict: Literal["better", "tie", "both bad"] = "better"

    @model_validator(mode="after")
    def _says_one_thing(self) -> Pairwise:
        if (self.winner is None) == (self.verdict == "better"):
            raise ValueError("names a winner, or is a tie or both bad")
        return self


class RankingValue(Value):
    groups: list[list[int]]


class AnswerRating(Value):
    score: int = Field(ge=1, le=7)
    flags: list[str] = []

    @model_validator(mode="after")
    def _known_flags(self) -> AnswerRating:
        if unknown := [flag for flag in self.flags if flag not in FLAGS]:
            raise ValueError(Text("unknown flag {flag!r}", flag=unknown[0]))
        return self


class Likert(Value):
    ratings: list[AnswerRating]


class Thumbs(Value):
    vote: Literal[1, -1]


_MODELS: dict[str, type[Value]] = {"pairwise": Pairwise, "ranking": RankingValue, "likert": Likert, "thumbs": Thumbs}


def checked(kind: str, value: Any, n_responses: int) -> dict[str, Any]:
    """The value in its full form. Raises DataError, with the field, for one that does not fit the task."""
    try:
        found = _MODELS[kind].model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "value"
        said = first.get("ctx", {}).get("error")  # of ours, with its template
        raise DataError(said.args[0] if said else first["msg"], field=field) from None
    if isinstance(found, RankingValue):
        named = sorted(i for group in found.groups for i in group)
        if named != list(range(n_responses)) or not all(found.groups):
            raise DataError("must name each of the {n} answers once", n=n_responses, field="groups")
        found = RankingValue(groups=[sorted(group) for group in found.groups])
    if isinstance(found, Likert) and len(found.ratings) != n_responses:
        raise DataError("must rate each of the {n} answers", n=n_responses, field="ratings")
    return found.model_dump()


def as_stored(kind: str, value: dict[str, Any], shown: Sequence[int]) -> dict[str, Any]:
    """A value by places on the page -> by the task's own indices. `shown[place]` is the index shown there."""
    if kind == "pairwise" and value["winner"] is not None:
        return {**value, "winner": shown[value["winner"]]}
    if kind == "ranking":
        return {"groups": [sorted(shown[place] for place in group) for group in value["groups"]]}
    if kind == "likert":
        return {"ratings": [value["ratings"][shown.index(i)] for i in range(len(shown))]}
    return value


def as_shown(kind: str, value: dict[str, Any], shown: Sequence[int]) -> dict[str, Any]:
    """The reverse of `as_stored`."""
    if kind == "pairwise" and value["winner"] is not None:
        return {**value, "winner": list(shown).index(value["winner"])}
    if kind == "ranking":
        return {"groups": [sorted(list(shown).index(i) for i in group) for group in value["groups"]]}
    if kind == "likert":
        return {"ratings": [value["ratings"][i] for i in shown]}
    return value


def units(kind: str, value: dict[str, Any]) -> dict[str, int]:
    """A value as numbers that two annotators can agree or disagree on, by what each is about.

    A comparison is one unit: 1 the first answer won, -1 the second, 0 neither. A ranking has one such unit for each
    pair of its answers, a rating has the score of each answer, a thumb its sign.
    """
    if kind == "pairwise":
        return {"0>1": {0: 1, 1: -1, None: 0}[value["winner"]]}
    if kind == "ranking":
        place = {i: rank for rank, group in enumerate(value["groups"]) for i in group}
        pairs = combinations(sorted(place), 2)
        return {f"{i}>{j}": (place[i] < place[j]) - (place[i] > place[j]) for i, j in pairs}
    if kind == "likert":
        return {str(i): rating["score"] for i, rating in enumerate(value["ratings"])}
    return {"vote": value["vote"]}


def disagreement(kind: str, values: Sequence[dict[str, Any]]) -> float:
    """The share of (pair of annotators, unit) on which they differ, from 0 to 1; ratings differ from 2 points on."""
    tolerance = 1 if kind == "likert" else 0
    numbers = [units(kind, value) for value in values]
    checks = [abs(a[u] - b[u]) > tolerance for a, b in combinations(numbers, 2) for u in a]
    return sum(checks) / len(checks) if checks else 0.0
