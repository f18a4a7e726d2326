"""Portable paths inside a run directory: "{run}/sft".

Records and the resolved recipe in a run directory use `{run}` for it; readers substitute its current path, so that a
run can be moved and copied. Older versions stored paths as given: those that begin with the old run directory are
translated.
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


def split_path(text: str) -> tuple[str, str]:
    """("policy=", "runs/x/policy") of "policy=runs/x/policy", ("0.5*", "runs/x/reward"), ("", "runs/x/sft")."""
    found = _PREFIX.match(text)
    return (found[0], text[found.end() :]) if found else ("", text)


def map_paths(value: Any, change: Callable[[str], str]) -> Any:
    """The value with `change` applied to the path in each of its strings."""
    if isinstance(value, str):
        prefix, path = split_path(value)
        whole = change(value)
        return whole if whole != value else prefix + change(path)
    if isinstance(value, list | tuple):
        return [map_paths(item, change) for item in value]
    if isinstance(value, dict):
        return {key: map_paths(item, change) for key, item in value.items()}
    return value


def relative_to(path: str, directory: str | Path) -> str | None:
    """The rest of a path that begins with `directory`, compared as text; None for any other."""
    directory = str(directory)
    if path == directory:
        return ""
    return path[len(directory) :].lstrip("/") if path.startswith(directory.rstrip("/") + "/") else None


def portable(value: Any, run: Path, paths: Iterable[str]) -> Any:
    """The value with `{run}` for the run directory.

    Args:
        run: the current run directory.
        paths: strings known to be paths; others count as paths if they begin with the run's name.
    """
    known, place = set(paths), os.path.abspath(run)

    def change(text: str) -> str:
        rest = relative_to(os.path.abspath(text), place) if text in known else None
        if rest is None and str(run) != ".":
            rest = relative_to(text, run)
        return text if rest is None else f"{RUN}/{rest}" if rest else RUN

    return map_paths(value, change)


def resolve(value: Any, run: Path) -> Any:
    """The value with the run directory in place of `{run}`."""

    def change(text: str) -> str:
        rest = relative_to(text, RUN)
        return text if rest is None else str(run / rest)

    return map_paths(value, change)


def relocate(value: Any, old: str, run: Path) -> Any:
    """The value with the run directory in place of its old path, as stored by an older version."""

    def change(text: str) -> str:
        rest = relative_to(text, old)
        return text if rest is None else str(run / rest)

    return map_paths(value, change) if old else value


def run_of(result: Path) -> Path:
    """A result's run directory: the nearest parent with a recipe, else its parent."""
    for directory in result.absolute().parents:
        if (directory / RECIPE).is_file():
            return Path(os.path.normpath(result.parent / os.path.relpath(directory, result.absolute().parent)))
    return result.parent


# ------------------------------------------------------------------------------------------------------------- recipes


def resolve_recipe(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """A recipe's content with its `run_dir` filled in: for a resolved recipe, the directory it is in now. Absolute
    paths stored by an older version become `{run}/...`."""
    run_dir, steps = content.get("run_dir"), content.get("steps")
    if run_dir == HERE:
        return content | {"run_dir": str(path.parent)}
    if path.name != RECIPE or not isinstance(run_dir, str) or not isinstance(steps, dict):
        return content
    outs = [str(options.get("out")) for options in steps.values() if isinstance(options, dict)]
    places = [relative_to(out, run_dir) for out in outs]
    lies_here = any(place and (path.parent / place).exists() for place in places)
    if not outs or None in places or not lies_here:
        return content
    texts, names = relocate(steps, run_dir, Path(RUN)), Path(run_dir).parts
    unmoved = not os.path.isabs(run_dir) and path.absolute().parent.parts[-len(names) :] == names
    called_from = {"called_from": os.path.join(*[".."] * len(names))} if unmoved else {}
    return {**called_from, **content, "run_dir": str(path.parent), "steps": texts}


def read_recipe(run: Path) -> dict[str, Any]:
    """`name`, `run_dir`, `called_from` and `steps` of a run's recipe, with current paths; no steps if there is no
    recipe (stages run individually). Raises DataError for a damaged file."""
    path = run / RECIPE
    if not path.exists():
        return {"name": None, "run_dir": None, "called_from": None, "steps": {}}
    content, _ = read_yaml(path)
    if not isinstance(content, dict) or not isinstance(content.get("steps"), dict):
        raise DataError("not a recipe: no steps", file=path)
    content = resolve_recipe(content, path)
    steps = {str(name): options if isinstance(options, dict) else {} for name, options in content["steps"].items()}
    own = Path(str(content.get("run_dir") or run))
    return {
        "name": content.get("name"),
        "run_dir": str(own),
        "called_from": content.get("called_from"),
        "steps": resolve(steps, own),
    }
