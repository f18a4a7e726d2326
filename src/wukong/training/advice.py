"""What a training stage tells the user before its first step and after its last."""

from __future__ import annotations

from pathlib import Path

from wukong.console import say
from wukong.errors import Text
from wukong.language import counted

FEW_STEPS = 30
"""Fewer optimiser steps than this draw a warning."""
HARDLY_MOVED = 0.005
"""Nats per token: below it, the probability of a 100-token answer changes by less than a factor of two."""


def warn_of_few_steps(stage: str, steps: int, remedy: str) -> None:
    """Warns if there are too few optimiser steps to change a model much, and suggests a remedy."""
    if steps < FEW_STEPS:
        say(
            "{stage}: warning: {steps} may teach the model next to nothing; {remedy}",
            stage=stage,
            steps=counted(steps, "{n:,} optimiser step", "{n:,} optimiser steps"),
            remedy=Text(remedy),
        )


def say_distance(stage: str, kl: float, remedy: str) -> None:
    """Reports how far the model moved from its starting point, in nats per token."""
    hardly = Text(": it hardly moved; {remedy}", remedy=Text(remedy)) if kl < HARDLY_MOVED else ""
    say(
        "{stage}: the model moved {kl:.3g} nats per token (KL) from where it started{hardly}",
        stage=stage,
        kl=kl,
        hardly=hardly,
    )


def evaluate_command(stage: str, start: str, out: Path) -> str:
    """The command that compares a policy with the model it started from."""
    models = f"start={start} {stage}={out}"
    return f"wukong evaluate --models {models} --reference start --prompts UNSEEN_PROMPTS --out {out}-evaluation"
