"""Finds the recipes that come with the package."""

from __future__ import annotations

from pathlib import Path

from wukong.errors import UsageError
from wukong.options import nearest

SHIPPED = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"), key=lambda path: path.stem)}
"""Name -> file."""


def find_recipe(given: str | Path) -> Path:
    """The file that is meant: an existing one, else the shipped recipe of that name.

    Raises:
        UsageError: neither; the message names the shipped recipe that was probably meant.
    """
    path = Path(given)
    if path.exists() and not path.is_dir():
        return path
    if path.name == str(given) and not path.suffix:
        if path.name in SHIPPED:
            return SHIPPED[path.name]
        if not path.exists():
            hint = nearest(path.name, SHIPPED) or f"; the recipes that come along are {', '.join(SHIPPED)}"
            raise UsageError(f"{path}: no such file, and no such recipe{hint}")
    if not path.exists() and path.suffix in (".yaml", ".yml") and path.stem in SHIPPED:
        raise UsageError(f"{path}: no such file; the recipe is part of the package: wukong run {path.stem}")
    return path
