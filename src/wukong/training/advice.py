"""What a training stage tells the person before its first step and after its last."""

from __future__ import annotations

from pathlib import Path

from wukong.console import say

FEW_STEPS = 30
"""Fewer optimiser steps than this draw a warning."""
HARDLY_MOVED = 0.005
"""Nats a token: over a hundred tokens, an answer's probability then changes by less than a factor of two."""


def warn_of_few_steps(stage: str, steps: int, remedy: str) -> None:
    """Warns that so few optimiser steps change a model little, and says what to do."""
    if steps < FEW_STEPS:
        many = "step is" if steps == 1 else "steps are"
        say(f"{stage}: warning: {steps} optimiser {many} few, and may teach the model next to nothing; {remedy}")


def say_distance(stage: str, kl: float, remedy: str) -> None:
    """Says how far the model moved from the one it started from, in nats a token."""
    hardly = f": it hardly moved; {remedy}" if kl < HARDLY_MOVED else ""
    say(f"{stage}: the model moved {kl:.3g} nats a token (KL) from where it began{hardly}")


def evaluate_command(stage: str, start: str, out: Path) -> str:
    """The command that compares a policy with the model it started from."""
    models = f"start={start} {stage}={out}"
    return f"wukong evaluate --models {models} --reference start --prompts UNSEEN_PROMPTS --out {out}-evaluation"
