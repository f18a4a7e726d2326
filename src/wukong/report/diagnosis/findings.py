"""What a check says: a finding with its evidence, or that it could not be made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from wukong.errors import Text

SITE = "https://wukong-rlhf.github.io/wukong/"
"""The documentation, as in pyproject.toml."""

Severity = Literal["red", "amber"]
Confidence = Literal["high", "medium", "low"]

TITLES = {
    "lr-too-high": "The learning rate is too high",
    "lr-too-low": "The learning rate is too low",
    "kl-coefficient-too-high": "The KL coefficient is too high",
    "kl-runaway": "The KL runs away",
    "length-hacking": "The policy is paid for length",
    "repetition": "The policy repeats itself",
    "reward-at-chance": "The reward model is no better than chance",
    "reward-blind": "The reward model does not read the prompt",
    "value-model": "The value model predicts nothing",
    "never-ends": "Answers do not end",
    "sampler-mismatch": "Sampler and trainer disagree",
    "too-little": "Too few labels or steps",
    "noisy-labels": "The labels are noisy",
    "overlap": "Test prompts were used in training",
    "overfitted-sft": "SFT is over-fitted",
}
"""Code -> title; the code is also the anchor of its section in docs/tools/doctor.md."""

_ORDER = {name: place for place, name in enumerate(("red", "amber", "high", "medium", "low"))}


@dataclass(frozen=True)
class RunFinding:
    """Something that is wrong with a step.

    Attributes:
        code: which of `TITLES`.
        step: the step's name.
        severity: red where the run's result should not be used as it is, amber where it deserves a look.
        confidence: that this is the cause. A red finding has high confidence.
        evidence: what was measured, and where.
        advice: what to change.
    """

    code: str
    step: str
    severity: Severity
    confidence: Confidence
    evidence: tuple[Text, ...]
    advice: tuple[Text, ...]

    @property
    def title(self) -> Text:
        return Text(TITLES[self.code])

    @property
    def certainty(self) -> Text:
        return Text("confidence: {level}", level=Text(self.confidence))

    def section(self, language: str = "en") -> str:
        """Where the documentation has more about it, as messages name a page: by its path in the repository."""
        return f"docs/tools/doctor{'' if language == 'en' else f'.{language}'}.md#{self.code}"

    def link(self, language: str = "en") -> str:
        """The address of that section."""
        return f"{SITE}{'' if language == 'en' else f'{language}/'}tools/doctor.html#{self.code}"

    @property
    def rank(self) -> tuple[int, int]:
        return _ORDER[self.severity], _ORDER[self.confidence]


@dataclass(frozen=True)
class Unchecked:
    """A check that could not be made, and why."""

    code: str
    why: Text

    @property
    def title(self) -> Text:
        return Text(TITLES[self.code])


Outcome = RunFinding | Unchecked | None
"""What a check returns: something is wrong, nothing can be said, or nothing is wrong."""


@dataclass(frozen=True)
class Diagnosis:
    """All findings, the worst first; the checks that found nothing; those that could not be made."""

    findings: Sequence[RunFinding] = field(default_factory=tuple)
    passed: Sequence[str] = field(default_factory=tuple)
    unchecked: Sequence[Unchecked] = field(default_factory=tuple)

    @property
    def red(self) -> list[RunFinding]:
        return [finding for finding in self.findings if finding.severity == "red"]

    def as_json(self) -> dict[str, Any]:
        return {
            "findings": [
                {
                    "code": one.code,
                    "title": str(one.title),
                    "step": one.step,
                    "severity": one.severity,
                    "confidence": one.confidence,
                    "evidence": list(map(str, one.evidence)),
                    "advice": list(map(str, one.advice)),
                    "section": one.section(),
                    "link": one.link(),
                }
                for one in self.findings
            ],
            "passed": list(self.passed),
            "unchecked": [{"code": one.code, "why": str(one.why)} for one in self.unchecked],
        }


def problem(
    code: str, step: str, red: bool, evidence: Sequence[Text], advice: Sequence[Text],
    amber_confidence: Confidence = "medium",
) -> RunFinding:  # fmt: skip
    """A finding; red ones have high confidence."""
    severity: Severity = "red" if red else "amber"
    return RunFinding(code, step, severity, "high" if red else amber_confidence, tuple(evidence), tuple(advice))
