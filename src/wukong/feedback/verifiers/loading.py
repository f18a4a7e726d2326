"""Verifiers by name: `exact`, `number`, `regex`, `regex:PATTERN`, `json`, `json:SCHEMA.json`, `constraints`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from wukong.errors import DataError, UsageError
from wukong.feedback.judge import Judge, JudgedPrompt, Opinion, PromptNeeds
from wukong.feedback.verifiers.constraints import Constraints
from wukong.feedback.verifiers.json_schema import Json
from wukong.feedback.verifiers.numbers import Number
from wukong.feedback.verifiers.texts import Exact, Regex
from wukong.files import whole_text
from wukong.records import Message


class Verifier(Protocol):
    def check(self, prompt: JudgedPrompt) -> Any:
        """Raises DataError, with the field, for a prompt to which no response can be verified."""

    def verify(self, prompt: JudgedPrompt, text: str) -> Opinion: ...


SIMPLE: dict[str, Callable[[], Verifier]] = {"exact": Exact, "number": Number, "constraints": Constraints}
VERIFIERS = (*SIMPLE, "regex", "json")


def is_verifier(name: str) -> bool:
    return name in VERIFIERS or name.startswith(("regex:", "json:"))


def verifier_file(name: str) -> str | None:
    """The file that a verifier's name contains, on which its verdicts depend."""
    return name.removeprefix("json:") if name.startswith("json:") else None


def load_verifier(name: str) -> Verifier:
    """Raises UsageError for an invalid pattern or schema."""
    if name in SIMPLE:
        return SIMPLE[name]()
    kind, colon, given = name.partition(":")
    if kind == "json":
        verifier: Verifier = Json(whole_text(Path(given)) if colon else "")
    else:
        verifier = Regex(given)
    if colon:
        try:
            verifier.check(_NO_PROMPT)
        except DataError as error:
            raise UsageError("{name}: {problem}", name=name, problem=error.text) from None
    return verifier


def verifying_judge(name: str) -> Judge:
    """The verifier as a judge, which raises DataError for a prompt that lacks what it needs."""
    verifier = load_verifier(name)

    def judge(prompts: Sequence[JudgedPrompt], texts: Sequence[str]) -> list[Opinion]:
        return [verifier.verify(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]

    return judge


def verifier_needs(name: str) -> PromptNeeds:
    """What it needs of every prompt."""
    return PromptNeeds(check=load_verifier(name).check)


class _NoPrompt:
    messages: Sequence[Message] = ()
    answer = None
    columns = None


_NO_PROMPT = _NoPrompt()
