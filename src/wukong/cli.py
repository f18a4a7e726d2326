"""The command line: one subcommand per stage and tool. It parses, calls and prints; it decides nothing.

The options of a subcommand are the fields of its options class, or for `run` those of every step of the recipe, and
tyro makes the parser from them. Only the options that were given leave the parser: defaults, limits and combinations
are the option class's own affair, so a wrong value has the same message on the command line, in a recipe and in
Python. Stages import torch, so only the chosen one is imported: `wukong --help` must not take seconds.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Annotated, Any, Required, TypedDict, cast, get_args, get_origin

from pydantic import ValidationError

from wukong import processes
from wukong.console import machine_trouble, readable_width
from wukong.errors import UsageError, WukongError
from wukong.options import Options, StageOptions, complaint, nearest, warn_of_old_name
from wukong.recipe import load_recipe, stage_of
from wukong.registry import RUN, STAGES, TOOLS, Stage
from wukong.runner import RunOptions, refusal_logged, remove_result, run
from wukong.version import __version__

Hints = dict[str, Any]
"""What tyro makes a parser from: option -> annotated type, or step -> the hints of its options."""


# ------------------------------------------------------------------------------------------------------------ parsing


def _hints(options: type[Options], recipe: Mapping[str, Any] | None = None, positional: str = "") -> Hints:
    """The fields of an options class for the parser: those required first, then its own, then those it shares.

    Args:
        recipe: values that replace the class's defaults, for the help.
        positional: the field that is given without its name.
    """
    recipe = recipe or {}
    fields = options.model_fields
    hints: Hints = {}
    for name in sorted(fields, key=lambda n: (not fields[n].is_required(), n not in options.__annotations__)):
        field = fields[name]
        if name in recipe:
            default = f"(recipe: {_shown(recipe[name])})"
        else:
            default = "(required)" if field.is_required() else f"(default: {_shown(field.get_default())})"
        hints[name] = _argument(
            field.annotation, field.description, default, name.upper() if name == positional else ""
        )
    return hints


def _with_new_names(arguments: Sequence[str], old_names: Mapping[str, str], step: str = "") -> list[str]:
    """The arguments with new names for options that were renamed; a warning for each."""
    found = list(arguments)
    for (old, new), no in product(old_names.items(), ("", "no-")):
        flag = f"--{step}{no}{old.replace('_', '-')}"
        for i, argument in enumerate(found):
            name, equals, value = argument.partition("=")
            if name == flag:
                warn_of_old_name(old, new)
                found[i] = f"--{step}{no}{new.replace('_', '-')}{equals}{value}"
    return found


def _argument(kind: Any, text: str | None, default: str, positional: str = "") -> Any:
    import tyro

    if positional:
        about = tyro.conf.arg(help=text, help_behavior_hint=default, metavar=positional)
        is_list, kind = get_origin(kind) is list, Annotated[kind, tyro.conf.Positional, about]
        return Required[kind] if is_list else kind  # an absent list would come as the text "[]"
    return Annotated[kind, tyro.conf.arg(help=text, help_behavior_hint=default)]


def _shown(value: Any) -> str:
    return (" ".join(map(str, value)) or "none") if isinstance(value, list | tuple) else str(value)


def _parse(command: str, hints: Hints, description: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The options that were given. Prints the help and raises SystemExit for --help.

    Raises:
        UsageError: one line for what tyro says in a box.
    """
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), readable_width():
            kind = cast(Any, _dictionary(command, hints))
            given, unknown = tyro.cli(
                kind, prog=command, description=description, args=_gathered(arguments, hints), return_unknown_args=True
            )
    except SystemExit as error:
        if not error.code:
            raise
        raise UsageError(f"{_sentence(said.getvalue())}; see {command} --help") from None
    if unknown:
        name = unknown[0].partition("=")[0]
        kind = "unknown option" if name.startswith("-") else "unexpected argument"
        raise UsageError(f"{kind} {name}{nearest(name, _flags(hints)) or f'; see {command} --help'}")
    result: dict[str, Any] = given
    return result


def _dictionary(name: str, hints: Hints) -> Any:
    """A dictionary type in which every key may be absent: what is not given is then not in the result."""
    fields = {key: _dictionary(key, hint) if isinstance(hint, dict) else hint for key, hint in hints.items()}
    return TypedDict(name, fields, total=False)  # type: ignore[operator]


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _flags(hints: Hints, above: str = "") -> dict[str, Any]:
    """Flag -> annotated type."""
    flags = {}
    for name, hint in hints.items():
        flags.update(_flags(hint, f"{name}.") if isinstance(hint, dict) else {_flag(above + name): hint})
    return flags


def _gathered(arguments: Sequence[str], hints: Hints) -> list[str]:
    """The arguments with all values of a list behind its first flag: tyro would forget those of an earlier one."""
    lists = {flag for flag, hint in _flags(hints).items() if get_origin(get_args(hint)[0]) is list}
    groups: dict[str, list[str]] = {"": []}  # flag -> flag and values
    values = groups[""]
    for number, argument in enumerate(arguments):
        name, given, value = argument.partition("=")
        if (flag := _flag(name.removeprefix("--"))) in lists and name.startswith("--"):
            values = groups.setdefault(flag, [flag])
            values += [value] if given else []
        elif argument.startswith("--"):
            values = groups.setdefault(f"{number}", [])
            values.append(argument)
        else:
            values.append(argument)
    return [argument for group in groups.values() for argument in group]


def _sentence(box: str) -> str:
    """What one of tyro's boxes says: the part between its first two rules, the rest being help. A box has a frame with
    its title inside, or, where the terminal is not UTF-8, only rules and the title above the first."""
    lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    parts = re.split(r"\n(?:[╭╰─].*|-{9,})(?=\n|$)", "\n" + "\n".join(lines))
    return " ".join(parts[min(1, len(parts) - 1)].split()).removeprefix("Error parsing ").rstrip(".")


def _build(options: type[Options], given: Mapping[str, Any], command: str, positional: str = "") -> Options:
    """The validated options. Raises UsageError naming the option that is wrong or missing."""

    def shown(option: object) -> str:
        return positional.upper() if option == positional else _flag(str(option))

    try:
        return options.model_validate(dict(given))
    except ValidationError as error:
        missing = [shown(problem["loc"][0]) for problem in error.errors() if problem["type"] == "missing"]
        if missing:
            are = "is" if len(missing) == 1 else "are"
            raise UsageError(f"{' and '.join(missing)} {are} required; see {command} --help") from None
        option, problem = complaint(error, options)
        raise UsageError(f"{shown(option)}: {problem}" if option else problem) from None


def _description(text: str, example: str) -> str:
    indented = "\n".join(f"    {line}" for line in example.splitlines())
    return f"{' '.join(text.split())}\n\nExample:\n{indented}"


# ----------------------------------------------------------------------------------------------------------- commands


def _stage(name: str, stage: Stage, arguments: Sequence[str]) -> None:
    command = f"wukong {name}"
    options_class, call = stage.load()
    hints = _hints(options_class, positional=stage.positional)
    if issubclass(options_class, StageOptions):
        text = "First delete what this stage made at --out, and only that."
        hints["redo"] = _argument(bool, text, "(default: False)")
    arguments = _with_new_names(arguments, options_class.old_names)
    given = _parse(command, hints, _description(options_class.__doc__ or "", stage.example), arguments)
    redo = given.pop("redo", False)
    if not given.get(stage.positional):
        given.pop(stage.positional, None)
    options = _build(options_class, given, command, stage.positional)
    if redo and isinstance(options, StageOptions):
        processes.run_on_first(lambda: _remove_result(name, stage, options))
    call(options)


def _remove_result(name: str, stage: Stage, options: StageOptions) -> None:
    """Deletes what is to be made again, once it is known that it can be."""
    stage.check(options)
    remove_result(name, options.out)


def _run(arguments: Sequence[str]) -> None:
    description = _description(RunOptions.__doc__ or "", RUN.example)
    hints = _hints(RunOptions)
    if not arguments or arguments[0].startswith("-"):
        note = "`wukong run RECIPE --help` also lists the options of the recipe's steps."
        _parse("wukong run RECIPE", hints, f"{description}\n\n{note}", arguments)
        raise UsageError("the recipe comes first: wukong run RECIPE [options]")
    recipe = arguments[0]
    command = f"wukong run {recipe}"
    with refusal_logged(recipe):
        steps = load_recipe(recipe).recipe.steps
    options = {name: STAGES[stage_of(name)].load()[0] for name in steps}
    hints |= {name: _hints(options[name], written) for name, written in steps.items()}
    arguments = arguments[1:]
    for name, options_class in options.items():
        arguments = _with_new_names(arguments, options_class.old_names, f"{name}.")
    given = _parse(command, hints, description, arguments)
    overrides = {f"{step}.{name}": value for step in steps for name, value in given.pop(step, {}).items()}
    run(recipe, overrides=overrides, **_build(RunOptions, given, command).model_dump())


def overview() -> str:
    """What `wukong --help` prints."""
    tools = {"run": RUN.summary, **{name: tool.summary for name, tool in TOOLS.items()}}
    stages = {name: stage.summary for name, stage in STAGES.items()}
    return "\n".join(
        [
            "usage: wukong COMMAND [OPTIONS]",
            "",
            "GPT-2 from raw text to a model that people prefer.",
            "",
            *(f"  {name:<15}{summary}" for name, summary in tools.items()),
            "",
            "The stages, in pipeline order:",
            "",
            *(f"  {name:<15}{summary}" for name, summary in stages.items()),
            "",
            "Example:",
            "    wukong run kitchen",
            "    wukong chat runs/kitchen/policy",
            "",
            "`wukong COMMAND --help` explains a command's options, `wukong --version` prints the version.",
        ]
    )


def _dispatch(arguments: Sequence[str]) -> None:
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h"):
        print(overview())
    elif name == "--version":
        print(f"wukong {__version__}")
    elif name == "run":
        _run(arguments[1:])
    elif stage := (STAGES | TOOLS).get(name):
        _stage(name, stage, arguments[1:])
    else:
        raise UsageError(f"unknown command {name}{nearest(name, ['run', *STAGES, *TOOLS]) or '; see wukong --help'}")


def reference() -> str:
    """docs/reference/cli.md: every command's help, as wide as the terminal (or $COLUMNS) is."""
    parts = ["# Command line\n\nEvery command and option, as `--help` prints them. Written by `make docs`.\n"]
    for name in ("", "run", *TOOLS, *STAGES):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            _dispatch([name, "--help"] if name else ["--help"])
        text = "\n".join(line.rstrip() for line in said.getvalue().strip("\n").splitlines())
        parts.append(f"## wukong {name}".rstrip() + f"\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


# ------------------------------------------------------------------------------------------------------------- errors


def _ask_for_huge_pages() -> None:
    """Tensors in huge pages (Linux; docs/results/benchmarks.md). torch reads the variable when it is imported,
    so it is set before. A value that is set already is kept."""
    if sys.platform == "linux":
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 1 the run failed, 2 the input is wrong, 130 Ctrl-C."""
    _ask_for_huge_pages()
    try:
        _dispatch(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        processes.leave()
        return 0
    except WukongError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("stopped by Ctrl-C", 130)
    except BrokenPipeError:  # the reader (head, less) has seen enough
        _abandon_output()
        return 1
    except Exception as error:
        if (trouble := machine_trouble(error)) is None:
            raise
        _abandon_output()
        return _fail(trouble, 1)


def command() -> int:
    """`main` as a program: the exit code, unless this is a process of a job, which ends here."""
    try:
        code = main()
    except SystemExit as stopped:  # by a signal, or after --help
        code = int(stopped.code or 0)
    processes.exit_now(code)
    return code


def _abandon_output() -> None:
    """Keeps Python's last flush at exit from failing, with a traceback, where a write has failed already."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    if processes.reports_failure():
        print(f"wukong: error: {' '.join(message.splitlines())}", file=sys.stderr, flush=True)
    return code
