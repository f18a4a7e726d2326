"""`wukong run`: the steps of a recipe in order.

    wukong run kitchen
    wukong run kitchen --seed 1 --run-dir runs/seed-1
    wukong run kitchen --redo ppo --ppo.kl-coef 0.1

Each step decides whether it is already done (`wukong.provenance`), so the same command resumes. Events are also
written to events.jsonl in the run directory (`wukong.events`).
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from wukong import console, processes, story
from wukong.console import duration, say
from wukong.errors import UsageError, WukongError
from wukong.events import EventLog
from wukong.files import atomic_open, exclusive, remove_leftovers
from wukong.options import POLICY_STAGES, Options, nearest
from wukong.places import HERE, RECIPE
from wukong.provenance import DIRECTORY_RECORD, FILE_RECORD, STARTED, read_record
from wukong.recipe import Overrides, Recipe, Step, check_steps, load_recipe, named, resolve


class RunOptions(Options):
    """Run the steps of a recipe in order; a finished step is skipped, an interrupted one resumed."""

    run_dir: Path | None = None
    """The run directory, {run} in the recipe. Default: runs/<name of the recipe>."""
    seed: int | None = None
    """The seed of every step without its own. Default: the recipe's."""
    until: str | None = None
    """The last step to run."""
    redo: str | None = None
    """First delete the results of this step and all later ones."""


def run(
    recipe: str | Path,
    run_dir: str | Path | None = None,
    overrides: Overrides | None = None,
    *,
    seed: int | None = None,
    until: str | None = None,
    redo: str | None = None,
) -> Path:
    """Runs the steps of a recipe in order; a finished step is skipped, an interrupted one resumed.

    Args:
        recipe: the YAML file, or the name of a recipe that comes with the package.
        run_dir: the value of `{run}`. Default: the recipe's, or runs/<name>.
        overrides: values that replace the recipe's, e.g. {"ppo.kl_coef": 0.1}.
        seed: replaces the recipe's seed.
        until: the last step to run.
        redo: first delete the results of this step and all later ones.

    Returns:
        The run directory.

    Raises:
        UsageError: the recipe or the overrides are unusable (a DataError if the line is known), or a step's result was
            made with other options. RunError: a step had to stop.
    """
    with refusal_logged(recipe, run_dir):
        loaded = load_recipe(recipe)
        directory, steps = resolve(loaded, Path(run_dir) if run_dir else None, seed, overrides)
        names = [step.name for step in steps]
        for option, name in (("until", until), ("redo", redo)):
            if name is not None and name not in names:
                hint = nearest(name, names) or f"; its steps are {', '.join(names)}"
                raise UsageError(f"--{option} {name}: the recipe {loaded.recipe.name} has no such step{hint}")
    with _alone(directory), _logged(EventLog(directory)) as log:
        _run_steps(loaded.recipe, directory, steps, seed, until, redo, log)
    return directory


# ------------------------------------------------------------------------------------------------------------- events


@contextlib.contextmanager
def refusal_logged(recipe: str | Path, run_dir: str | Path | None = None) -> Iterator[None]:
    """Records in an existing run why its recipe was refused, unless another process is using the run."""
    try:
        yield
    except WukongError as error:
        directory = Path(run_dir or (Path(recipe).parent if Path(recipe).name == RECIPE else ""))
        if (run_dir or directory != Path()) and (directory / RECIPE).is_file() and processes.is_first():
            with contextlib.suppress(WukongError), exclusive(directory, "busy"):
                EventLog(directory).failed(error)
        raise


@contextlib.contextmanager
def _logged(log: EventLog) -> Iterator[EventLog]:
    """Records the failure or interruption of the block, and the progress of its bars."""
    try:
        with console.progress_reported_to(log.progress):
            yield log
    except Exception as error:
        log.failed(error)
        raise
    except (KeyboardInterrupt, SystemExit):
        log.write("interrupted")
        raise


# ------------------------------------------------------------------------------------------------------------ running


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Locks the run: two commands would write the same files. In a job, the first process holds the lock for all."""
    if not processes.is_first():
        yield
        return
    with exclusive(directory, f"{directory}: another process is at work on this run; wait for its end"):
        yield


def _run_steps(
    recipe: Recipe,
    directory: Path,
    steps: list[Step],
    seed: int | None,
    until: str | None,
    redo: str | None,
    log: EventLog,
) -> None:
    names = [step.name for step in steps]
    count = names.index(until) + 1 if until else len(steps)
    done = processes.run_on_first(lambda: _prepare(directory, recipe, seed, steps, count, redo))
    for number, step in enumerate(steps[:count], start=1):
        say("[{number}/{count}] {name} -> {out}", number=number, count=count, name=step.name, out=step.options.out)
        log.start(step.name, number, count)
        begin = time.monotonic()
        if step.name not in done:
            log.write("started")
        with named(step.name):
            step.run(step.options)
        if step.name in done:
            log.write("skipped")
            continue
        seconds = time.monotonic() - begin
        log.write("finished", seconds=round(seconds, 3))
        say(
            "[{number}/{count}] {name} took {duration}",
            number=number,
            count=count,
            name=step.name,
            duration=duration(seconds),
        )
        if processes.is_first():
            story.tell(step.stage, step.options, next(iter(_pinned(steps)), None))
        _free_memory()
    # Only now: no step has refused its options.
    processes.run_on_first(lambda: _write_resolved(directory, recipe, seed, steps))
    if processes.is_first():
        _say_what_next(steps[:count], _pinned(steps))


def _prepare(
    directory: Path, recipe: Recipe, seed: int | None, steps: list[Step], count: int, redo: str | None
) -> list[str]:
    """Checks all steps, then deletes the results to be rebuilt and writes the resolved recipe to the run directory.
    Returns the names of the steps already done."""
    again = steps[[step.name for step in steps].index(redo) :] if redo else []
    done = check_steps(steps[:count], again)
    for step in again:
        with named(step.name):
            check_removable(step.stage, step.options.out)
    for step in reversed(again):
        remove_result(step.stage, step.options.out)
    remove_leftovers(directory)
    if redo or not (directory / RECIPE).exists():
        _write_resolved(directory, recipe, seed, steps)
    return done


def _write_resolved(directory: Path, recipe: Recipe, seed: int | None, steps: list[Step]) -> None:
    """`recipe.yaml` in the run directory: every step with all its options, itself a runnable recipe."""
    content: dict[str, Any] = {"name": recipe.name, "seed": recipe.seed if seed is None else seed}
    content |= {"run_dir": HERE, "called_from": _called_from(directory), "steps": {}}
    for step in steps:
        options = step.written.model_dump(mode="json")
        if options["seed"] == content["seed"]:
            del options["seed"]  # so that --seed still changes it
        content["steps"][step.name] = options
    with atomic_open(directory / RECIPE) as out:
        yaml.safe_dump(content, out, sort_keys=False, allow_unicode=True, width=118)


def _called_from(directory: Path) -> str:
    """The working directory, relative to a run inside it; else absolute."""
    here, run = os.getcwd(), os.path.abspath(directory)
    return os.path.relpath(here, run) if Path(run).is_relative_to(here) else here


# ------------------------------------------------------------------------------------------------------------ redoing


def check_removable(stage: str, out: Path) -> None:
    """Raises UsageError if `out` holds the result of another stage or anything else."""
    marks = [out / DIRECTORY_RECORD, out / STARTED, _side_file(out)]
    made_by = next((record["stage"] for mark in marks if (record := read_record(mark)) is not None), None)
    if made_by is not None and made_by != stage:
        raise UsageError(f"{out}: holds the result of '{made_by}', so --redo does not delete it; choose another --out")
    if made_by is None and out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out}: was not made by wukong {stage}, so --redo does not delete it; choose another --out")
    inside = [mark for pattern in ("*/**/options.json", "**/*.provenance.json") for mark in out.glob(pattern)]
    if inside:
        raise UsageError(f"{out}: holds another result too ({inside[0]}), so --redo does not delete it")


def _side_file(out: Path) -> Path:
    return Path(f"{out}{FILE_RECORD}")


def remove_result(stage: str, out: Path) -> None:
    """Deletes this stage's result at `out`, complete or not; an interruption leaves nothing that looks complete.

    Raises:
        UsageError: `out` is not, or not only, the result of this stage.
    """
    if out.is_dir():
        with exclusive(out, f"{out}: another process writes there; wait for its end"):
            check_removable(stage, out)
            doomed = Path(tempfile.mkdtemp(prefix=f".{out.name}.wukong-", suffix=".tmp", dir=out.parent))
            out.replace(doomed)  # the lock goes with it
            shutil.rmtree(doomed)
        return
    check_removable(stage, out)
    if _side_file(out).exists():  # a file without one is not ours, or is redrawn each time, like the report
        _side_file(out).unlink()
        out.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------ between and after


def _free_memory() -> None:
    """Frees a stage's models, which are in reference cycles (optimiser, hooks), before the next stage starts."""
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _pinned(steps: list[Step]) -> list[str]:
    """The prompts that the recipe's reports show first."""
    return [prompt for step in steps if step.stage == "report" for prompt in getattr(step.options, "pinned", [])]


def _say_what_next(steps: list[Step], pinned: list[str]) -> None:
    made = {step.stage: step.options.out for step in steps}
    if "evaluate" in made:
        story.tell_answers(made["evaluate"], pinned)
    if "report" in made:
        say("report: open {report} in a browser", report=made["report"])
    model = next((made[stage] for stage in (*POLICY_STAGES, "sft", "pretrain") if stage in made), None)
    if model is not None:
        say("talk to the model: wukong chat {model}", model=model)
