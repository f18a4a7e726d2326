"""Paths inside a run directory, written so that the run can be moved and copied: "{run}/sft".

Records and the resolved recipe in a run directory say `{run}` for it; readers put in where it lies now. Older versions
wrote paths as they were given: those that began with the run directory of then are translated.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from wukong.errors import DataError
from wukong.files import read_yaml

RUN, HERE = "{run}", "{here}"
"""The run directory; and in a recipe's `run_dir:`, the directory that the recipe lies in."""
RECIPE, EVENTS = "recipe.yaml", "events.jsonl"
"""What `wukong run` writes into the run directory itself: the resolved recipe and a log."""
_PREFIX = re.compile(r"[^=/{}]*=|\s*[+-]?[\d.]+(?:[eE][+-]?\d+)?\*\s*")


def parted(text: str) -> tuple[str, str]:
    """("policy=", "runs/x/policy") of "policy=runs/x/policy", ("0.5*", "runs/x/reward"), ("", "runs/x/sft")."""
    found = _PREFIX.match(text)
    return (found[0], text[found.end() :]) if found else ("", text)


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The value with the path in each of its texts changed."""
    if isinstance(value, str):
        prefix, path = parted(value)
        whole = change(value)
        return whole if whole != value else prefix + change(path)
    if isinstance(value, list | tuple):
        return [mapped(item, change) for item in value]
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    return value


def below(path: str, directory: str | Path) -> str | None:
    """The rest of a path that begins with `directory`, both as they are written; None for any other."""
    directory = str(directory)
    if path == directory:
        return ""
    return path[len(directory) :].lstrip("/") if path.startswith(directory.rstrip("/") + "/") else None


def portable(value: Any, run: Path, paths: Iterable[str]) -> Any:
    """The value with `{run}` for the run directory.

    Args:
        run: the run directory, as it is called now.
        paths: texts that are known to be paths; others are taken for one where they begin with the name of the run.
    """
    known, place = set(paths), os.path.abspath(run)

    def change(text: str) -> str:
        rest = below(os.path.abspath(text), place) if text in known else None
        if rest is None and str(run) != ".":
            rest = below(text, run)
        return text if rest is None else f"{RUN}/{rest}" if rest else RUN

    return mapped(value, change)


def here(value: Any, run: Path) -> Any:
    """The value with the run directory for `{run}`."""

    def change(text: str) -> str:
        rest = below(text, RUN)
        return text if rest is None else str(run / rest)

    return mapped(value, change)


def moved(value: Any, old: str, run: Path) -> Any:
    """The value with the run directory for what it was called when an older version wrote it."""

    def change(text: str) -> str:
        rest = below(text, old)
        return text if rest is None else str(run / rest)

    return mapped(value, change) if old else value


def run_of(result: Path) -> Path:
    """The run directory that a result lies in: the nearest one above it with a recipe, else the one it lies in."""
    for directory in result.absolute().parents:
        if (directory / RECIPE).is_file():
            return Path(os.path.normpath(result.parent / os.path.relpath(directory, result.absolute().parent)))
    return result.parent


# ------------------------------------------------------------------------------------------------------------- recipes


def settled(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """A recipe's content with its `run_dir` put in: of a resolved recipe, which lies in its run directory, that
    directory, wherever it was moved to. Paths in it that an older version spelled out become `{run}/...`."""
    run_dir, steps = content.get("run_dir"), content.get("steps")
    if run_dir == HERE:
        return content | {"run_dir": str(path.parent)}
    if path.name != RECIPE or not isinstance(run_dir, str) or not isinstance(steps, dict):
        return content
    outs = [str(options.get("out")) for options in steps.values() if isinstance(options, dict)]
    places = [below(out, run_dir) for out in outs]
    lies_here = any(place and (path.parent / place).exists() for place in places)
    if not outs or None in places or not lies_here:
        return content
    texts, names = moved(steps, run_dir, Path(RUN)), Path(run_dir).parts
    unmoved = not os.path.isabs(run_dir) and path.absolute().parent.parts[-len(names) :] == names
    called_from = {"called_from": os.path.join(*[".."] * len(names))} if unmoved else {}
    return {**called_from, **content, "run_dir": str(path.parent), "steps": texts}


def read_recipe(run: Path) -> dict[str, Any]:
    """`name`, `run_dir`, `called_from` and `steps` of a run's recipe, with paths as they are now; no steps where there
    is no recipe, for stages that were run one by one. Raises DataError for a damaged file."""
    path = run / RECIPE
    if not path.exists():
        return {"name": None, "run_dir": None, "called_from": None, "steps": {}}
    content, _ = read_yaml(path)
    if not isinstance(content, dict) or not isinstance(content.get("steps"), dict):
        raise DataError("not a recipe: no steps", file=path)
    content = settled(content, path)
    steps = {str(name): options if isinstance(options, dict) else {} for name, options in content["steps"].items()}
    own = Path(str(content.get("run_dir") or run))
    return {
        "name": content.get("name"),
        "run_dir": str(own),
        "called_from": content.get("called_from"),
        "steps": here(steps, own),
    }
