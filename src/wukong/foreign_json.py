"""JSON parsing for other people's files: detects faults that the standard parser accepts silently.

`json.loads` accepts duplicate keys, lone surrogate escapes and deep nesting; each would lose data, or fail later.
"""

from __future__ import annotations

import json
import re
from typing import Any

DEEPEST = 200
"""Maximum nesting; conversation trees, the deepest data known, need less than half of it."""
HALF_CHARACTER = "contains half a character (a lone surrogate such as \\ud800), which UTF-8 cannot store"
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class _Twice(dict[str, Any]):
    """An object with the duplicate key `key`."""

    key: str


def parse(text: str) -> tuple[Any, bool]:
    """(the value, whether it needs checking by `fault`).

    Raises:
        ValueError: invalid JSON, with the position if the parser gives one (json.JSONDecodeError).
    """
    doubled = False

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal doubled
        value = dict(pairs)
        if len(value) == len(pairs):
            return value
        doubled, marked, seen = True, _Twice(value), set()
        marked.key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return marked

    try:
        value = json.loads(text, object_pairs_hook=to_dict)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    deep = text.count("[") + text.count("{") > DEEPEST
    return value, doubled or deep or _HALF.search(text) is not None


def fault(value: Any) -> tuple[str, str] | None:
    """(field, problem) of the first fault in a parsed value; None if there is none."""
    waiting: list[tuple[Any, str, int]] = [(value, "", 0)]
    while waiting:
        one, name, depth = waiting.pop()
        if isinstance(one, str):
            if is_half(one):
                return name, HALF_CHARACTER
            continue
        if not isinstance(one, dict | list):
            continue
        if depth >= DEEPEST:
            return name.partition("[")[0].partition(".")[0], f"is nested more than {DEEPEST} levels deep"
        if isinstance(one, _Twice):
            return (f"{name}.{one.key}" if name else one.key), "is given twice"
        items = one.items() if isinstance(one, dict) else enumerate(one)
        children = []
        for key, child in items:
            if isinstance(key, str) and is_half(key):
                return name, HALF_CHARACTER
            below = f"{name}[{key}]" if isinstance(one, list) else f"{name}.{key}" if name else str(key)
            children.append((child, below, depth + 1))
        waiting += reversed(children)
    return None


def is_half(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)
