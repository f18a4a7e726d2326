"""Strict JSON parsing for requests: only valid JSON, with numbers and text that a database and a reply can hold."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from wukong.errors import Text

DEEPEST = 64
"""Maximum nesting; deeper data are not ours, and recursive readers would fail on them."""


def loads(raw: bytes | str) -> Any:
    """Parses JSON. Raises ValueError, in one line, for invalid JSON or values rejected by `problem_in`."""
    try:
        value = json.loads(raw, parse_constant=_refused)
    except RecursionError:
        raise ValueError("lists and objects are nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    if (found := problem_in(value)) is not None:
        place, problem = found
        raise ValueError(f"{place}: {problem}" if place else problem)
    return value


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def problem_in(value: Any, nul: bool = True) -> tuple[str, str] | None:
    """(place, problem) of the first part of a value that cannot be stored or sent back; None if there is none.

    Python accepts more than valid JSON: lone surrogates, NaN, infinities (also as 1e999), integers of any size. Each
    would fail later, in a database or in the reply.

    Args:
        nul: whether text may hold NUL characters, which PostgreSQL refuses.
    """
    waiting: list[tuple[str, int, Any]] = [("", 0, value)]
    while waiting:
        place, depth, one = waiting.pop()
        problem: str | None = None
        if isinstance(one, str):
            problem = problem_of_text(one, nul)
        elif isinstance(one, float):
            problem = None if math.isfinite(one) else "is not a finite number"
        elif isinstance(one, int):
            problem = None if -(2**63) <= one < 2**63 else "is a number of more than 64 bits"
        elif isinstance(one, dict | list) and depth >= DEEPEST:
            problem = Text("is nested more than {levels} levels deep", levels=DEEPEST)
        elif isinstance(one, dict):
            for key, child in one.items():
                if (found := problem_of_text(str(key), nul)) is not None:
                    return place, found
                waiting.append((f"{place}.{key}" if place else str(key), depth + 1, child))
        elif isinstance(one, list):
            waiting.extend((f"{place}.{i}" if place else str(i), depth + 1, child) for i, child in enumerate(one))
        if problem is not None:
            return place[:200], problem
    return None


def problem_of_text(text: str, nul: bool = True) -> str | None:
    """The problem with storing a text; None if there is none."""
    if not nul and "\x00" in text:
        return "holds a NUL character, which a database cannot store"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "holds half a character (a lone surrogate)"
    return None
