"""A diagnosis in words, for the terminal, the report and the studio alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wukong.errors import Text
from wukong.language import joined
from wukong.report.diagnosis.findings import TITLES, Diagnosis, RunFinding


@dataclass(frozen=True)
class Panel:
    """What is shown of a diagnosis; the headings are those of the place where it is shown."""

    summary: Text
    findings: Sequence[RunFinding]
    passed: Text
    """The checks that found nothing, in one line; "" for none."""
    unchecked: Sequence[Text]


def panel_of(diagnosis: Diagnosis) -> Panel:
    red, made = len(diagnosis.red), len(TITLES) - len(diagnosis.unchecked)
    passed = joined([Text(TITLES[code]) for code in diagnosis.passed], "{a}; {b}")
    return Panel(
        Text(
            "{red} red and {amber} amber findings; {made} of {all} checks could be made.",
            red=red, amber=len(diagnosis.findings) - red, made=made, all=len(TITLES),
        ),
        diagnosis.findings,
        Text("Checked and not found: {checks}.", checks=passed) if passed else Text(""),
        [Text("{check}: {why}", check=one.title, why=one.why) for one in diagnosis.unchecked],
    )  # fmt: skip
