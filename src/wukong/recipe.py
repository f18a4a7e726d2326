"""A whole run as one YAML file: which stages, in which order, with which options.

    name: kitchen
    seed: 0
    steps:
      kitchen: {out: "{run}/data"}
      tokenize: {data: ["{run}/data/corpus.jsonl"], out: "{run}/tokenizer", vocab_size: 2048}

A step's stage is its name up to the first "_": `reward` and `reward_judge` both train a reward model. In any text,
`{run}` is the run directory and `${NAME}` an environment variable. The whole recipe is resolved and checked before
anything runs: an error in the last step should not surface after an hour.

`wukong.runner` runs it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from wukong.errors import DataError, Text, UsageError, WukongError
from wukong.files import read_yaml
from wukong.options import Options, StageOptions, complaint, nearest
from wukong.places import RUN, resolve_recipe
from wukong.provenance import stage_state
from wukong.recipes.shipped import find_recipe
from wukong.registry import STAGES

# ------------------------------------------------------------------------------------------------------- the recipe


class Recipe(Options):
    name: str = Field(pattern=r"^\.*[\w-][\w.-]*$")
    """The name of the run."""
    seed: int = 0
    """The seed of every step without its own."""
    run_dir: Path | None = None
    """The run directory. Default: runs/<name>. "{here}" is the recipe's directory."""
    called_from: str | None = None
    """In the recipe.yaml of a run directory: the base of relative paths, as seen from there."""
    description: str = ""
    """One sentence about the run."""
    time: str = ""
    """How long it takes, and on which hardware."""
    needs: str = ""
    """What must exist before it can run."""
    steps: dict[str, dict[str, Any]] = Field(min_length=1)
    """The options of each step, in running order."""


Lines = dict[tuple[str, ...], int]
"""The line of each key: ("steps", step, option) -> line."""


@dataclass(frozen=True)
class Loaded:
    """A recipe and the file it came from."""

    path: Path
    recipe: Recipe
    lines: Lines

    def error(self, problem: str, *key: str) -> DataError:
        return DataError(problem, file=self.path, line=_line(self.lines, key))


def _line(lines: Lines, key: tuple[str, ...]) -> int | None:
    """The line of a key, or of its nearest parent that has one."""
    while key and key not in lines:
        key = key[:-1]
    return lines.get(key)


NO_RECIPE = "{path}: is not a recipe, which is a YAML file with `name:` and `steps:`; `wukong recipes` lists some"


def load_recipe(path: str | Path) -> Loaded:
    """Reads a recipe and checks its structure; `resolve` checks the options of its steps.

    Args:
        path: the file, or the name of a recipe that comes with the package.

    Raises:
        UsageError: a missing file. DataError: what is wrong, with the line.
    """
    path = find_recipe(path)
    is_yaml = path.suffix.lower() in (".yaml", ".yml") or path.is_dir()
    try:
        content, root = read_yaml(path)
    except DataError:
        if is_yaml:
            raise
        raise UsageError(NO_RECIPE, path=path) from None
    lines: Lines = {} if root is None else dict(_key_lines(root, path))
    if not isinstance(content, dict) and not is_yaml:
        raise UsageError(NO_RECIPE, path=path)
    if not isinstance(content, dict) or not isinstance(content.get("steps"), dict):
        raise DataError("a recipe needs `name:` and `steps:`", file=path, hint="docs/reference/recipes.md shows one")
    content["steps"] = {str(name): {} if given is None else given for name, given in content["steps"].items()}
    content = resolve_recipe(content, path)
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
    """The line of each key, including nested mappings. A duplicate key is an error: YAML would drop the first."""

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
    places: tuple[str, ...] = ()
    """The environment variables that name directories of its inputs."""

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
        places: list[str] = []

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
                if option != "out" and (place := PLACE.match(text)):
                    places.append(place[1])
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
        steps.append(Step(name, options, run, portable, tuple(dict.fromkeys(places))))
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
PLACE = re.compile(r"(?:\w+=)?\$\{(\w+)\}/")
"""A path below a directory that a variable names."""


def _is_no_directory(place: str) -> bool:
    return bool(place) and "://" not in place and not Path(place).is_dir()


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
    """Whether a path in the run directory is (in) the result of an earlier step, or exists already."""
    name, in_run, place = text.partition("{run}/")
    if not in_run or (name and not name.endswith(("=", "*"))):  # NAME=PATH names a model, WEIGHT*PATH a reward
        return True
    path = run_dir / str(_filled(place, run_dir))
    return path.exists() or any(path.is_relative_to(step.options.out) for step in steps)


# ----------------------------------------------------------------------------------------------------------- checking


def check_steps(steps: Sequence[Step], again: Sequence[Step]) -> list[str]:
    """Checks all steps before the first one runs: an error in the last step should not surface after an hour, or after
    results were deleted.

    Args:
        again: the steps whose results are about to be deleted.

    Returns:
        The names of the steps already done.

    Raises:
        UsageError: a step could not start, or its result was made with other options. DataError: a finished result,
            or an input, is damaged.
    """
    from wukong.require import Planned, sources  # needs torch

    planned, done = Planned(), []
    for step in steps:
        stage, options = STAGES[step.stage], step.options
        with named(step.name):
            needs = stage.needs(options)
            state = "new"
            if step not in again and step.stage != "report":  # a view, redrawn each time
                later = [source for source in sources(needs) if planned.find(source) is not None]
                directory = not stage.makes_file
                state = stage_state(step.stage, options, sources(needs), directory=directory, later=later)
            if state == "done":
                done.append(step.name)
            else:
                for variable in step.places:
                    if _is_no_directory(place := os.environ.get(variable, "")):
                        missing = "the variable {variable} names {place}, and there is no such directory"
                        raise UsageError(missing, variable=variable, place=place)
                stage.check(options, planned)
                planned.add(step.name, step.stage, options)
    return done


@contextlib.contextmanager
def named(step: str) -> Iterator[None]:
    """Adds to an error the step it came from and, if `--redo` remedies it (its values have a `redo`), the recipe form
    of that option."""
    try:
        yield
    except WukongError as error:
        problem = error.text
        if "redo" in problem.values:
            problem = Text(problem.template, **{**problem.values, "redo": f"--redo {step}"})
        error.args = (Text("step {step}: {problem}", step=step, problem=problem),)
        raise
