"""What a study takes from a finished run: its steps' options, to run a stage again with changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def recipe_steps(run: Path) -> dict[str, dict[str, Any]]:
    """The options of each step, as `wukong run` wrote them down."""
    from wukong.places import read_recipe

    return read_recipe(run)["steps"]


def run_stage(stage: str, options: dict[str, Any]) -> float:
    """Runs a stage unless it is done; returns the seconds that it took, then or now."""
    from wukong.registry import STAGES

    options_class, run = STAGES[stage].load()
    run(options_class.model_validate(options))
    out = Path(options["out"])
    record = out / "provenance.json" if out.is_dir() else Path(f"{out}.provenance.json")
    return json.loads(record.read_text())["seconds"]
