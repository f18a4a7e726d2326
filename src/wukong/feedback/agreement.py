"""Agreement of annotators with each other and with known answers, and the habits of each.

A judgment is a number per unit (`store.values.units`): a comparison is one unit, a ranking has one per pair of answers,
a rating one per answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any, Literal

import krippendorff
import numpy as np

from wukong.feedback.store.values import units

Level = Literal["nominal", "ordinal"]


@dataclass(frozen=True)
class Judgment:
    """One label that counts.

    Attributes:
        task: which task.
        value: by the task's own indices (`store.values`).
        shown: the order in which the answers were shown.
        seconds: the time taken, when known.
        gold: the known answer, of a gold task.
    """

    task: int
    annotator: str
    kind: str
    value: dict[str, Any]
    shown: Sequence[int] = ()
    seconds: float | None = None
    gold: dict[str, Any] | None = None

    @property
    def numbers(self) -> dict[str, int]:
        return units(self.kind, self.value)


def _by_unit(judgments: Iterable[Judgment]) -> dict[tuple[int, str], dict[str, int]]:
    """(task, unit) -> annotator -> number."""
    found: dict[tuple[int, str], dict[str, int]] = defaultdict(dict)
    for judgment in judgments:
        for unit, number in judgment.numbers.items():
            found[judgment.task, unit][judgment.annotator] = number
    return found


def raw_agreement(judgments: Iterable[Judgment]) -> float | None:
    """The fraction of pairs of judgments of the same unit that are equal; None if nothing was judged twice."""
    checks = [a == b for unit in _by_unit(judgments).values() for a, b in combinations(unit.values(), 2)]
    return sum(checks) / len(checks) if checks else None


def alpha(judgments: Iterable[Judgment], level: Level) -> float | None:
    """Krippendorff's alpha: 1 is full agreement, 0 chance, below 0 worse than chance.

    Nominal treats all differences alike; ordinal puts a tie between the two sides, and 6 closer to 7 than to 1
    (Krippendorff 2004). None if nothing was judged twice, or all judgments are equal.
    """
    by_unit = _by_unit(judgments)
    people = sorted({name for unit in by_unit.values() for name in unit})
    shared = [unit for unit in by_unit.values() if len(unit) > 1]
    if not shared or len({number for unit in shared for number in unit.values()}) < 2:
        return None
    data = np.array([[unit.get(name, np.nan) for unit in shared] for name in people])  # (annotators, units)
    return float(krippendorff.alpha(reliability_data=data, level_of_measurement=level))


@dataclass(frozen=True)
class AnnotatorRow:
    """One annotator's figures; None if there are no data.

    Attributes:
        labels: the number of their labels that count.
        seconds: the median time per label.
        tie_rate: the fraction of units judged equal (None for ratings).
        left_rate: the fraction of decided comparisons won by the left answer; far from one half is a position bias.
        agreement: how often they agree with another annotator on the same unit.
        gold_accuracy, gold_labels: how often they give the known answer, and the number of gold tasks.
    """

    annotator: str
    labels: int
    seconds: float | None
    tie_rate: float | None
    left_rate: float | None
    agreement: float | None
    gold_accuracy: float | None
    gold_labels: int


def annotator_table(judgments: Iterable[Judgment]) -> list[AnnotatorRow]:
    """One row per annotator, by name."""
    judgments = list(judgments)
    by_unit = _by_unit(judgments)
    by_person: dict[str, list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        by_person[judgment.annotator].append(judgment)
    return [_row(name, by_person[name], by_unit) for name in sorted(by_person)]


def _row(name: str, mine: Sequence[Judgment], by_unit: dict[tuple[int, str], dict[str, int]]) -> AnnotatorRow:
    seconds = [one.seconds for one in mine if one.seconds is not None]
    ties = [number == 0 for one in mine if one.kind in ("pairwise", "ranking") for number in one.numbers.values()]
    won = [one for one in mine if one.kind == "pairwise" and one.value["winner"] is not None and one.shown]
    left = [one.value["winner"] == one.shown[0] for one in won]
    others = [
        number == other
        for one in mine
        for unit, number in one.numbers.items()
        for person, other in by_unit[one.task, unit].items()
        if person != name
    ]
    tested = [one for one in mine if one.gold is not None]
    right = [number == units(one.kind, one.gold or {})[unit] for one in tested for unit, number in one.numbers.items()]

    def share(checks: Sequence[bool]) -> float | None:
        return sum(checks) / len(checks) if checks else None

    return AnnotatorRow(
        annotator=name,
        labels=len(mine),
        seconds=median(seconds) if seconds else None,
        tie_rate=share(ties),
        left_rate=share(left),
        agreement=share(others),
        gold_accuracy=share(right),
        gold_labels=len(tested),
    )


def summary(judgments: Iterable[Judgment]) -> dict[str, Any]:
    """All figures of a project, for the page and the export."""
    judgments = list(judgments)
    return {
        "labels": len(judgments),
        "tasks": len({one.task for one in judgments}),
        "raw_agreement": raw_agreement(judgments),
        "alpha_nominal": alpha(judgments, "nominal"),
        "alpha_ordinal": alpha(judgments, "ordinal"),
        "annotators": [vars(row) for row in annotator_table(judgments)],
    }
