"""What a judge is: it gives each of a batch of responses a number, and may say why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from wukong.records import Message


class JudgedPrompt(Protocol):
    """A prompt as a judge reads it: `records.Prompt`, `records.Response` and others."""

    @property
    def messages(self) -> Sequence[Message]: ...

    @property
    def answer(self) -> str | None:
        """The reference answer."""

    @property
    def columns(self) -> Mapping[str, Any] | None:
        """The further fields of its record."""


@dataclass(frozen=True)
class Opinion:
    """What a judge says of one response: a number, and where it can, named checks and reasons."""

    score: float
    checks: dict[str, bool]
    reasons: list[str]


Judge = Callable[[Sequence[JudgedPrompt], Sequence[str]], list[Opinion]]
"""Prompts and as many responses -> an opinion of each response."""


@dataclass(frozen=True)
class PromptNeeds:
    """What a judge needs of the prompts.

    Args:
        check: raises DataError, with the field, for a prompt to which it could judge no answer.
        columns: at least one prompt must have each of these ("answer" is the reference answer).
    """

    check: Callable[[JudgedPrompt], object] | None = None
    columns: frozenset[str] = frozenset()
