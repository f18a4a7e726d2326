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
import sys
from collections.abc import Sequence

from wukong import cli_parser, processes
from wukong.console import machine_trouble
from wukong.errors import Text, UsageError, WukongError
from wukong.language import choose, recognised, spoken
from wukong.options import StageOptions, nearest
from wukong.recipe import load_recipe, stage_of
from wukong.registry import RUN, STAGES, TOOLS, Stage
from wukong.runner import RunOptions, refusal_logged, remove_result, run
from wukong.version import __version__
from wukong.wide_text import widened

# ----------------------------------------------------------------------------------------------------------- commands


def _stage(name: str, stage: Stage, arguments: Sequence[str]) -> None:
    command = f"wukong {name}"
    options_class, call = stage.load()
    hints = cli_parser.hints(options_class, positional=stage.positional)
    if issubclass(options_class, StageOptions):
        text = "First delete what this stage made at --out, and only that."
        hints["redo"] = cli_parser.argument(bool, text, Text("(default: {value})", value=False))
    hints = hints if "language" in hints else cli_parser.with_language(hints)
    arguments = cli_parser.with_new_names(arguments, options_class.old_names)
    description = cli_parser.description(options_class.__doc__ or "", stage.example)
    given = cli_parser.parse(command, hints, description, arguments)
    redo = given.pop("redo", False)
    if "language" not in options_class.model_fields:
        given.pop("language", None)
    if not given.get(stage.positional):
        given.pop(stage.positional, None)
    options = cli_parser.build(options_class, given, command, stage.positional)
    if redo and isinstance(options, StageOptions):
        processes.run_on_first(lambda: _remove_result(name, stage, options))
    call(options)


def _remove_result(name: str, stage: Stage, options: StageOptions) -> None:
    """Deletes what is to be made again, once it is known that it can be."""
    stage.check(options)
    remove_result(name, options.out)


RUN_NOTE = "`wukong run RECIPE --help` also lists the options of the recipe's steps."


def _run(arguments: Sequence[str]) -> None:
    description = cli_parser.description(RunOptions.__doc__ or "", RUN.example)
    hints = cli_parser.with_language(cli_parser.hints(RunOptions))
    if not arguments or arguments[0].startswith("-"):
        note = widened(spoken(RUN_NOTE))
        cli_parser.parse("wukong run RECIPE", hints, f"{description}\n\n{note}", arguments)
        raise UsageError("the recipe comes first: wukong run RECIPE [options]")
    recipe = arguments[0]
    command = f"wukong run {recipe}"
    with refusal_logged(recipe):
        steps = load_recipe(recipe).recipe.steps
    options = {name: STAGES[stage_of(name)].load()[0] for name in steps}
    hints |= {name: cli_parser.hints(options[name], written) for name, written in steps.items()}
    arguments = arguments[1:]
    for name, options_class in options.items():
        arguments = cli_parser.with_new_names(arguments, options_class.old_names, f"{name}.")
    given = cli_parser.parse(command, hints, description, arguments)
    given.pop("language", None)
    overrides = {f"{step}.{name}": value for step in steps for name, value in given.pop(step, {}).items()}
    run(recipe, overrides=overrides, **cli_parser.build(RunOptions, given, command).model_dump())


OVERVIEW = (
    "usage: wukong COMMAND [OPTIONS]",
    "A language model from raw text to a model that people prefer.",
    "The stages, in pipeline order:",
    "Example:",
    "`wukong COMMAND --help` explains a command's options, `wukong --version` prints the version.",
    "`--language zh`, or WUKONG_LANGUAGE=zh, says all this in Chinese.",
)


def overview() -> str:
    """What `wukong --help` prints."""
    usage, about, order, example, more, language = map(spoken, OVERVIEW)
    tools = {"run": RUN.summary, **{name: tool.summary for name, tool in TOOLS.items()}}
    stages = {name: stage.summary for name, stage in STAGES.items()}
    return "\n".join(
        [
            usage,
            "",
            about,
            "",
            *(f"  {name:<15}{spoken(summary)}" for name, summary in tools.items()),
            "",
            order,
            "",
            *(f"  {name:<15}{spoken(summary)}" for name, summary in stages.items()),
            "",
            example,
            "    wukong run kitchen",
            "    wukong chat runs/kitchen/policy",
            "",
            more,
            language,
        ]
    )


def _dispatch(arguments: Sequence[str]) -> None:
    cli_parser.choose_language(arguments)
    if arguments[:1] == ["--language"] or (arguments and arguments[0].startswith("--language=")):
        arguments = arguments[1 if "=" in arguments[0] else 2 :]  # before the command too
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


def reference(language: str = "en") -> str:
    """docs/reference/cli.md or cli.zh.md: every command's help, as wide as the terminal (or $COLUMNS) is."""
    choose(language)
    parts = [f"# {spoken('Command line')}\n\n{spoken(REFERENCE)}\n"]
    for name in ("", "run", *TOOLS, *STAGES):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            _dispatch([name, "--help"] if name else ["--help"])
        text = "\n".join(line.rstrip() for line in said.getvalue().strip("\n").splitlines())
        parts.append(f"## wukong {name}".rstrip() + f"\n\n```text\n{text}\n```\n")
    choose(None)
    return "\n".join(parts)


REFERENCE = "Every command and option, as `--help` prints them. Written by `make docs`."


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
        return _fail(error, error.exit_code)
    except KeyboardInterrupt:
        again = (sys.argv[1:] if arguments is None else list(arguments))[:1]
        resumes = again == ["run"] or again[0] in STAGES if again else False
        return _fail(KEPT if resumes else "stopped by Ctrl-C", 130)
    except BrokenPipeError:  # the reader (head, less) has seen enough
        _abandon_output()
        return 1
    except Exception as error:
        if (trouble := machine_trouble(error)) is None:
            raise
        _abandon_output()
        return _fail(trouble, 1)
    finally:
        choose(None)  # of this command only: a program may call several


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


KEPT = "stopped by Ctrl-C; what is finished is kept: run the same command to go on"


def _fail(problem: str | WukongError, code: int) -> int:
    if processes.reports_failure():
        try:
            message = spoken(
                "wukong: error: {problem}",
                problem=recognised(problem, "errors") if isinstance(problem, str) else problem,
            )
        except UsageError:  # it is the language that is wrong
            message = f"wukong: error: {problem}"
        print(" ".join(message.splitlines()), file=sys.stderr, flush=True)
    return code
