"""A diagnosis in words, for the terminal, the report and the studio alike."""

from __future__ import annotations

from dataclasses import dataclass

from wukong.errors import Text
from wukong.report.diagnosis.findings import TITLES, Diagnosis, Finding, Severity
from wukong.report.diagnosis.language import in_language


@dataclass(frozen=True)
class PanelFinding:
    """One finding; all texts are in the reader's language."""

    severity: Severity
    severity_word: str
    step: str
    title: str
    confidence: str
    evidence: list[str]
    advice: list[str]
    section: str
    link: str


@dataclass(frozen=True)
class Panel:
    heading: str
    summary: str
    what_to_do: str
    more: str
    findings: list[PanelFinding]
    passed: str
    """The checks that found nothing, in one line; "" for none."""
    not_checked: str
    unchecked: list[str]


def panel_of(diagnosis: Diagnosis, language: str = "en") -> Panel:
    """The texts of a diagnosis in a language."""

    def say(template: str | Text, /, **values: object) -> str:
        return in_language(Text(template, **values), language)

    red, made = len(diagnosis.red), len(TITLES) - len(diagnosis.unchecked)
    counts = {"red": red, "amber": len(diagnosis.findings) - red, "made": made, "all": len(TITLES)}
    comma = say("; ")
    return Panel(
        heading=say("Doctor"),
        summary=say("{red} red and {amber} amber findings; {made} of {all} checks could be made.", **counts),
        what_to_do=say("What to change"),
        more=say("More about it"),
        findings=[_finding(one, language) for one in diagnosis.findings],
        passed=say(
            "Checked and not found: {checks}.", checks=comma.join(say(TITLES[code]) for code in diagnosis.passed)
        )
        if diagnosis.passed
        else "",
        not_checked=say("Not checked"),
        unchecked=[say("{check}: {why}", check=one.title, why=one.why) for one in diagnosis.unchecked],
    )


def _finding(finding: Finding, language: str) -> PanelFinding:
    def say(text: str | Text) -> str:
        return in_language(text, language)

    return PanelFinding(
        severity=finding.severity,
        severity_word=say(finding.severity),
        step=finding.step,
        title=say(finding.title),
        confidence=say(Text("confidence: {level}", level=Text(finding.confidence))),
        evidence=list(map(say, finding.evidence)),
        advice=list(map(say, finding.advice)),
        section=finding.section,
        link=finding.link(language),
    )
