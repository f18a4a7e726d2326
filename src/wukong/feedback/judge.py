"""What a judge is: it gives each of a batch of responses a number, and may say why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wukong.records import Message


@dataclass(frozen=True)
class Opinion:
    """What a judge says of one response: a number, and where it can, named checks and reasons."""

    score: float
    checks: dict[str, bool]
    reasons: list[str]


Judge = Callable[[Sequence[Sequence[Message]], Sequence[str]], list[Opinion]]
