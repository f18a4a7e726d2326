"""Numbers from a step's results and options. A run from elsewhere, or edited by hand, may hold anything there."""

from __future__ import annotations

import math
from typing import Any

from wukong.errors import Text
from wukong.report.contents import StepResult


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def result(step: StepResult, name: str) -> float | None:
    """A number of the results; None where there is none."""
    return _number(step.results.get(name))


def result_interval(step: StepResult, name: str) -> tuple[float, float] | None:
    """An interval of the results: two numbers."""
    value = step.results.get(name)
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = map(_number, value)
    return None if low is None or high is None else (low, high)


def option(step: StepResult, name: str) -> float | None:
    """A number of the options, to make advice definite; no verdict rests on one."""
    return _number(step.options.get(name))


def lower_lr(step: StepResult) -> Text:
    lr = option(step, "lr")
    if lr:
        return Text("lower --lr from {lr:g} to {new:g} or less", lr=lr, new=float(f"{lr / 5:.1g}"))
    return Text("lower --lr to a fifth or less")


def raise_lr(step: StepResult) -> Text:
    lr = option(step, "lr")
    if lr:
        return Text("raise --lr from {lr:g} to {new:g} or more", lr=lr, new=float(f"{lr * 10:.1g}"))
    return Text("raise --lr tenfold or more")
