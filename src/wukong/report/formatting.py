"""Numbers, times and nested values as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from wukong import console
from wukong.errors import Text


def number(value: Any, digits: int = 3) -> str:
    """A formatted number: 1,234,567; 0.0123; 12.3; an en dash for None."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    rounded = f"{value:.{digits}g}"
    if "e+" in rounded:  # 780 rather than 7.8e+02
        rounded = f"{float(rounded):,.0f}"
    return rounded.replace("-", "−")


def short(value: float | None) -> str:
    """An abbreviated count: 950, 12.3 k, 4.27 M."""
    if value is None:
        return "–"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return number(value)


def percent(value: float | None, digits: int = 1) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.0f} %" if value in (0, 1) else f"{100 * value:.{digits}f} %"


def equal_length(rate: float | None) -> str:
    """A length-controlled win rate, which not all outcomes determine."""
    return Text("not estimable") if rate is None else percent(rate)


def interval(pair: Sequence[float] | None, as_percent: bool = False, digits: int = 3) -> Text:
    """Two limits: 3.1 to 4.2, or 79.3 to 85.5 %."""
    if pair is None:
        return Text("")
    low, high = (f"{100 * x:.1f}" for x in pair) if as_percent else (number(x, digits) for x in pair)
    return Text("{low} to {high} %" if as_percent else "{low} to {high}", low=low, high=high)


def signed_points(difference: float) -> str:
    """A difference of two shares in percentage points: +81, −3."""
    return f"{100 * difference:+.0f}".replace("-", "−")


def duration(seconds: float | None) -> Text:
    return Text("–") if seconds is None else console.duration(seconds)


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested options or results as (dotted name, text) lines; long lists show only their length."""
    if isinstance(value, dict) and value:
        return [line for key, one in value.items() for line in flat(one, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list) and len(value) <= 6 and not any(isinstance(one, dict | list) for one in value):
        return [(name, ", ".join(map(number, value)) if value else Text("none"))]
    if isinstance(value, list | dict):
        return [(name, Text("{n} entries", n=len(value)))]
    return [(name, number(value, 6) if value is not None else Text("none"))]
