"""A whole run as one YAML file: which stages, in which order, with which options.

    name: kitchen
    seed: 0
    steps:
      kitchen: {out: "{run}/data"}
      tokenize: {data: ["{run}/data/corpus.jsonl"], out: "{run}/tokenizer", vocab_size: 2048}

A step's stage is its name up to the first "_": `reward` and `reward_judge` both train a reward model. In any text,
`{run}` is the run directory and `${NAME}` an environment variable. The recipe is resolved and checked as a whole
before anything runs: what is wrong with the last step should not be learnt after an hour.

Whether a step is already done is decided by the step itself (`wukong.provenance`), so the same command resumes.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import importlib
import os
import re
import shutil
import tempfile
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from wukong import processes
from wukong.console import say
from wukong.errors import DataError, UsageError, WukongError
from wukong.files import atomic_open, exclusive, read_yaml, remove_leftovers
from wukong.options import POLICY_STAGES, Options, StageOptions
from wukong.places import HERE, RUN, settled
from wukong.provenance import DIRECTORY_RECORD, FILE_RECORD, STARTED, look, read_record

# ------------------------------------------------------------------------------------------------------- the stages


@dataclass(frozen=True)
class Stage:
    """A stage or tool by name. Its module, which may take seconds to import, is imported when it is needed."""

    module: str
    summary: str
    positional: str = ""
    """The option that needs no name on the command line."""
    makes_file: bool = False
    """Whether its result is a file and not a directory."""

    def load(self) -> tuple[type[Options], Callable[[Any], None]]:
        """(the options class, the function that runs it)."""
        run = importlib.import_module(self.module).run
        options = typing.get_type_hints(run)["options"]
        if processes.size() > 1:
            from wukong.training.session import TrainOptions

            run = processes.together(run, trains=issubclass(options, TrainOptions))
        return options, run

    def needs(self, options: Any) -> Sequence[Any]:
        """What must be there before it can start (wukong.require). Raises UsageError for options at odds."""
        return importlib.import_module(self.module).needs(options)

    def check(self, options: StageOptions, planned: Any = None) -> None:
        """Raises UsageError or DataError for whatever would keep it from starting.

        Args:
            planned: what earlier steps will have made by then (wukong.require.Planned).
        """
        from wukong import require

        planned = planned or require.Planned()
        needs = [*self.needs(options), require.writable(options.out, not self.makes_file)]
        require.check_needs(needs, planned)

    @property
    def example(self) -> str:
        """The command in the module's docstring."""
        text = importlib.import_module(self.module).__doc__ or ""
        return "\n".join(line.removeprefix("    ") for line in text.splitlines() if line.startswith("    "))


STAGES = {
    "kitchen": Stage("wukong.kitchen.stage", "write the built-in world: corpus, demonstrations, prompts"),
    "tokenize": Stage("wukong.stages.tokenize", "text -> a tokenizer and token shards"),
    "pretrain": Stage("wukong.stages.pretrain", "token shards -> a base model that continues text"),
    "sft": Stage("wukong.stages.sft", "base model + demonstrations -> a model that answers"),
    "sample": Stage("wukong.stages.sample", "prompts + models -> several responses to each prompt", makes_file=True),
    "label": Stage("wukong.stages.label", "responses -> rankings, by simulated annotators", makes_file=True),
    "reward": Stage("wukong.stages.reward", "rankings -> a reward model"),
    "ppo": Stage("wukong.stages.ppo", "SFT model + reward model -> the policy people prefer"),
    "reinforce": Stage("wukong.stages.reinforce", "the same by REINFORCE, with a running or learned baseline"),
    "rloo": Stage("wukong.stages.rloo", "the same by REINFORCE with the leave-one-out baseline"),
    "grpo": Stage("wukong.stages.grpo", "the same by comparing each response with its group"),
    "bestofn": Stage("wukong.stages.bestofn", "the same by fine-tuning on the best of n responses"),
    "dpo": Stage("wukong.stages.dpo", "SFT model + rankings -> a policy, without reward model (DPO, IPO)"),
    "kto": Stage("wukong.stages.kto", "SFT model + thumbs up and down -> a policy"),
    "evaluate": Stage("wukong.stages.evaluate", "models + unseen prompts -> win rates, KL, diversity"),
    "report": Stage("wukong.stages.report", "a run directory -> one self-contained HTML page", makes_file=True),
}
"""What a recipe's steps can be, in the order of the road."""


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """A hint that names what was probably meant, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def complaint(error: ValidationError, options: type[Options]) -> tuple[str, str]:
    """(the option, what is wrong with it) of the first problem; the option is "" where several are at odds."""
    first = error.errors(include_url=False)[0]
    option = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "missing":
        return option, "is required"
    if first["type"] == "extra_forbidden":
        return option, "unknown option" + nearest(option, options.model_fields)
    problem = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    given = repr(first["input"])
    return option, f"{problem}, not {given}" if option and problem.startswith("should") and len(given) < 80 else problem


# ------------------------------------------------------------------------------------------------------- the recipe


class RunOptions(Options):
    """Run the steps of a recipe in order; a finished step is skipped, an interrupted one goes on."""

    run_dir: Path | None = None
    """The run directory, which {run} in the recipe stands for; runs/<name of the recipe> when absent."""
    seed: int | None = None
    """The seed of every step that the recipe gives none of its own; the recipe's when absent."""
    until: str | None = None
    """The last step to run."""
    redo: str | None = None
    """Delete the results of this step and of all after it first."""


class Recipe(Options):
    name: str = Field(pattern=r"^\.*[\w-][\w.-]*$")
    """What the run is called."""
    seed: int = 0
    """The seed of every step that has none of its own."""
    run_dir: Path | None = None
    """The run directory; runs/<name> when absent. "{here}" is the directory that the recipe lies in."""
    called_from: str | None = None
    """In the recipe that a run leaves in its directory: where relative paths begin, as seen from there."""
    steps: dict[str, dict[str, Any]] = Field(min_length=1)
    """The options of each step, in the order in which they run."""


Lines = dict[tuple[str, ...], int]
"""On which line a key stands: ("steps", step, option) -> line."""


@dataclass(frozen=True)
class Loaded:
    """A recipe and the file it came from."""

    path: Path
    recipe: Recipe
    lines: Lines

    def error(self, problem: str, *key: str) -> DataError:
        return DataError(problem, file=self.path, line=_line(self.lines, key))


def _line(lines: Lines, key: tuple[str, ...]) -> int | None:
    """The line of a key, or of the nearest one above it that has one."""
    while key and key not in lines:
        key = key[:-1]
    return lines.get(key)


def load_recipe(path: str | Path) -> Loaded:
    """Reads a recipe and checks its form; the options of its steps are checked by `resolve`.

    Raises:
        UsageError: a missing file. DataError: what is wrong, with the line.
    """
    path = Path(path)
    content, root = read_yaml(path)
    lines: Lines = {} if root is None else dict(_key_lines(root, path))
    if not isinstance(content, dict) or not isinstance(content.get("steps"), dict):
        raise DataError("a recipe needs `name:` and `steps:`", file=path, hint="docs/reference/recipes.md shows one")
    content["steps"] = {str(name): {} if given is None else given for name, given in content["steps"].items()}
    content = settled(content, path)
    try:
        loaded = Loaded(path, Recipe.model_validate(content), lines)
    except ValidationError as error:
        key = tuple(str(part) for part in error.errors()[0]["loc"])
        raise DataError(complaint(error, Recipe)[1], file=path, line=_line(lines, key), field=".".join(key)) from None
    for name in loaded.recipe.steps:
        if stage_of(name) not in STAGES or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            hint = nearest(stage_of(name), STAGES) or f"; the stages are {', '.join(STAGES)}"
            raise loaded.error(f"step {name!r}: there is no such stage{hint}", "steps", name)
    return loaded


def stage_of(step: str) -> str:
    return step.partition("_")[0]


def _key_lines(root: yaml.Node, path: Path) -> Iterator[tuple[tuple[str, ...], int]]:
    """The line of each key, in nested mappings too. A key given twice is an error: YAML would forget the first."""

    def walk(node: yaml.Node, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
        if not isinstance(node, yaml.MappingNode):
            return
        seen = set()
        for key, value in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise DataError(f"{key.value!r} is given twice", file=path, line=key.start_mark.line + 1)
            seen.add(key.value)
            name = (*above, str(key.value))
            yield name, key.start_mark.line + 1
            yield from walk(value, name)

    yield from walk(root, ())


# ---------------------------------------------------------------------------------------------------- the resolved run


@dataclass(frozen=True)
class Step:
    name: str
    options: StageOptions
    run: Callable[[Any], None]
    written: StageOptions
    """The same options with `{run}` for the run directory."""

    @property
    def stage(self) -> str:
        return stage_of(self.name)


Overrides = Mapping[str, Any]
"""Values that replace the recipe's: {"ppo.kl_coef": 0.1}."""


def resolve(
    loaded: Loaded, run_dir: Path | None = None, seed: int | None = None, overrides: Overrides | None = None
) -> tuple[Path, list[Step]]:
    """The run directory and every step with its validated options. Nothing is run or written.

    Raises:
        DataError: what is wrong in the recipe, with its line. UsageError: what is wrong in the overrides.
    """
    recipe = loaded.recipe
    run_dir = run_dir or recipe.run_dir or Path("runs") / recipe.name
    given = _by_step(overrides or {}, recipe)
    steps: list[Step] = []
    for name, written in recipe.steps.items():
        options_class, run = STAGES[stage_of(name)].load()
        values = {**written, **given[name]}

        def wrong(problem: str, option: str, name: str = name) -> UsageError:
            if option in given[name]:
                return UsageError(f"{name}.{option}: {problem}")
            return loaded.error(f"step {name}: {option + ': ' if option else ''}{problem}", "steps", name, option)

        for option, value in values.items():
            for text in _texts(value):
                for variable in VARIABLE.findall(text):
                    if variable not in os.environ:
                        instead = f"set it, or give --{name}.{option.replace('_', '-')}"
                        raise wrong(f"the environment variable {variable} is not set ({instead})", option)
                if option != "out" and not _is_made(text, run_dir, steps):
                    raise wrong(f"{text} is not the result of an earlier step", option)
        if "seed" in options_class.model_fields:
            values.setdefault("seed", recipe.seed if seed is None else seed)
        try:
            options, portable = (
                options_class.model_validate({key: _filled(value, run) for key, value in values.items()})
                for run in (run_dir, Path(RUN))
            )
        except ValidationError as error:
            option, problem = complaint(error, options_class)
            raise wrong(problem, option) from None
        assert isinstance(options, StageOptions)
        assert isinstance(portable, StageOptions)
        for other in steps:
            if os.path.abspath(other.options.out) == os.path.abspath(options.out):
                raise wrong(f"{options.out} is the result of step {other.name} already", "out")
        steps.append(Step(name, options, run, portable))
    return run_dir, steps


def _by_step(overrides: Overrides, recipe: Recipe) -> dict[str, dict[str, Any]]:
    given: dict[str, dict[str, Any]] = {name: {} for name in recipe.steps}
    for key, value in overrides.items():
        step, _, option = key.partition(".")
        if step not in given or not option:
            hint = nearest(step, given) or f"; its steps are {', '.join(given)}"
            raise UsageError(f"{key}: the recipe {recipe.name} has no step {step!r}{hint}")
        given[step][option] = value
    return given


VARIABLE = re.compile(r"\$\{(\w+)\}")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)


def _filled(value: Any, run_dir: Path) -> Any:
    """The value with {run} and ${NAME} replaced in every text."""
    if isinstance(value, str | Path):
        text = VARIABLE.sub(lambda match: os.environ[match[1]], str(value))
        return text.replace("{run}", str(run_dir))
    if isinstance(value, list | tuple):
        return [_filled(item, run_dir) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, run_dir) for key, item in value.items()}
    return value


def _is_made(text: str, run_dir: Path, steps: list[Step]) -> bool:
    """Whether a place in the run directory is, or lies in, the result of an earlier step (or is there by hand)."""
    name, in_run, place = text.partition("{run}/")
    if not in_run or (name and not name.endswith(("=", "*"))):  # NAME=PATH names a model, WEIGHT*PATH a reward
        return True
    path = run_dir / str(_filled(place, run_dir))
    return path.exists() or any(path.is_relative_to(step.options.out) for step in steps)


# ------------------------------------------------------------------------------------------------------------ redoing


def check_removable(stage: str, out: Path) -> None:
    """Raises UsageError where `out` holds the result of another stage, or a directory of anything else."""
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
    """Deletes what this stage made at `out`, complete or not; an interruption leaves nothing that looks complete.

    Raises:
        UsageError: what lies there is not, or not only, the result of this stage.
    """
    if out.is_dir():
        with exclusive(out, f"{out}: another process writes there; wait for its end"):
            check_removable(stage, out)
            doomed = Path(tempfile.mkdtemp(prefix=f".{out.name}.wukong-", suffix=".tmp", dir=out.parent))
            out.replace(doomed)  # the lock goes with it
            shutil.rmtree(doomed)
        return
    check_removable(stage, out)
    if _side_file(out).exists():  # a file without one was not made here, or is drawn anew each time, as the report
        _side_file(out).unlink()
        out.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------ running


def run(
    recipe: str | Path,
    run_dir: str | Path | None = None,
    overrides: Overrides | None = None,
    *,
    seed: int | None = None,
    until: str | None = None,
    redo: str | None = None,
) -> Path:
    """Runs the steps of a recipe in order; a finished step is skipped, an interrupted one goes on.

    Args:
        recipe: the YAML file.
        run_dir: what `{run}` stands for; the recipe's own, or runs/<name>, when absent.
        overrides: values that replace the recipe's, e.g. {"ppo.kl_coef": 0.1}.
        seed: replaces the recipe's seed.
        until: the last step to run.
        redo: the results of this step and of all after it are deleted first.

    Returns:
        The run directory.

    Raises:
        UsageError: the recipe or the overrides are unusable (a DataError where it is known in which line), or a step's
            result was made with other options. RunError: a step had to stop.
    """
    loaded = load_recipe(recipe)
    directory, steps = resolve(loaded, Path(run_dir) if run_dir else None, seed, overrides)
    names = [step.name for step in steps]
    for option, name in (("until", until), ("redo", redo)):
        if name is not None and name not in names:
            hint = nearest(name, names) or f"; its steps are {', '.join(names)}"
            raise UsageError(f"--{option} {name}: the recipe {loaded.recipe.name} has no such step{hint}")
    with _alone(directory):
        _run_steps(loaded.recipe, directory, steps, seed, until, redo)
    return directory


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Two commands on one run would write the same files. Of the processes of one the first answers for all."""
    if not processes.is_first():
        yield
        return
    with exclusive(directory, f"{directory}: another process is at work on this run; wait for its end"):
        yield


def _run_steps(
    recipe: Recipe, directory: Path, steps: list[Step], seed: int | None, until: str | None, redo: str | None
) -> None:
    names = [step.name for step in steps]
    count = names.index(until) + 1 if until else len(steps)
    processes.by_first(lambda: _prepare(directory, recipe, seed, steps, count, redo))
    for number, step in enumerate(steps[:count], start=1):
        say(f"[{number}/{count}] {step.name} -> {step.options.out}")
        begin = time.monotonic()
        with _named(step.name):
            step.run(step.options)
        if (seconds := time.monotonic() - begin) >= FINISHED_SECONDS:
            say(f"[{number}/{count}] {step.name} took {duration(seconds)}")
            _free_memory()
    # Now that no step has refused its options:
    processes.by_first(lambda: _write_resolved(directory, recipe, seed, steps))
    _say_what_next(steps[:count])


def _prepare(
    directory: Path, recipe: Recipe, seed: int | None, steps: list[Step], count: int, redo: str | None
) -> None:
    """Checks all steps; then deletes what is to be made again, and leaves the resolved recipe in the run directory."""
    again = steps[[step.name for step in steps].index(redo) :] if redo else []
    check_steps(steps[:count], again)
    for step in again:
        with _named(step.name):
            check_removable(step.stage, step.options.out)
    for step in reversed(again):
        remove_result(step.stage, step.options.out)
    remove_leftovers(directory)
    if redo or not (directory / "recipe.yaml").exists():
        _write_resolved(directory, recipe, seed, steps)


def check_steps(steps: Sequence[Step], again: Sequence[Step]) -> None:
    """What is wrong with the last step should not be learnt after an hour, nor after the results were deleted.

    Raises:
        UsageError: a step could not start, or its result was made with other options. DataError: a finished result,
            or an input, is damaged.
    """
    from wukong.require import Planned, sources

    planned = Planned()
    for step in steps:
        stage, options = STAGES[step.stage], step.options
        with _named(step.name):
            needs = stage.needs(options)
            state = "new"
            if step not in again and step.stage != "report":  # which is a view, drawn anew each time
                later = [source for source in sources(needs) if planned.find(source) is not None]
                directory = not stage.makes_file
                state = look(step.stage, options, sources(needs), directory=directory, later=later)
            if state != "done":
                stage.check(options, planned)
                planned.add(step.name, step.stage, options)


FINISHED_SECONDS = 0.1
"""A step that was done before, and says so itself, takes less."""


def _write_resolved(directory: Path, recipe: Recipe, seed: int | None, steps: list[Step]) -> None:
    """`recipe.yaml` in the run directory: the options of every step, spelled out; itself a recipe that runs."""
    content: dict[str, Any] = {"name": recipe.name, "seed": recipe.seed if seed is None else seed}
    content |= {"run_dir": HERE, "called_from": _called_from(directory), "steps": {}}
    for step in steps:
        options = step.written.model_dump(mode="json")
        if options["seed"] == content["seed"]:
            del options["seed"]  # so that --seed still changes it
        content["steps"][step.name] = options
    with atomic_open(directory / "recipe.yaml") as out:
        yaml.safe_dump(content, out, sort_keys=False, allow_unicode=True, width=118)


def _called_from(directory: Path) -> str:
    """The working directory, as seen from a run that lies in it; else where it is."""
    here, run = os.getcwd(), os.path.abspath(directory)
    return os.path.relpath(here, run) if Path(run).is_relative_to(here) else here


@contextlib.contextmanager
def _named(step: str) -> Iterator[None]:
    """Says in an error which step it came from, and what --redo is called in a recipe."""
    try:
        yield
    except WukongError as error:
        error.args = (f"step {step}: {error}".replace("anew with --redo", f"anew with --redo {step}"),)
        raise


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s"


def _free_memory() -> None:
    """A stage's models are garbage in cycles (optimiser, hooks): the next one should not start beside them."""
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _say_what_next(steps: list[Step]) -> None:
    made = {step.stage: step.options.out for step in steps}
    if "report" in made:
        say(f"report: open {made['report']} in a browser")
    model = next((made[stage] for stage in (*POLICY_STAGES, "sft", "pretrain") if stage in made), None)
    if model is not None:
        say(f"talk to the model: wukong chat {model}")
