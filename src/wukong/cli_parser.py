"""The parser of a subcommand, which tyro makes from its options class, and its help in two languages.

Only the options that were given leave the parser: defaults, limits and combinations are the option class's own affair.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Annotated, Any, Literal, Required, TypedDict, cast, get_args, get_origin

from pydantic import ValidationError

from wukong.console import readable_width
from wukong.errors import Text, UsageError
from wukong.language import LANGUAGES, choose, current, joined, spoken
from wukong.options import Options, complaint, nearest, warn_of_old_name
from wukong.wide_text import narrowed, replaced, widened

Hints = dict[str, Any]
"""What tyro makes a parser from: option -> annotated type, or step -> the hints of its options."""


def hints(options: type[Options], recipe: Mapping[str, Any] | None = None, positional: str = "") -> Hints:
    """The fields of an options class for the parser: those required first, then its own, then those it shares.

    Args:
        recipe: values that replace the class's defaults, for the help.
        positional: the field that is given without its name.
    """
    recipe = recipe or {}
    fields = options.model_fields
    found: Hints = {}
    for name in sorted(fields, key=lambda n: (not fields[n].is_required(), n not in options.__annotations__)):
        field = fields[name]
        if name in recipe:
            default = Text("(recipe: {value})", value=_shown(recipe[name]))
        elif field.is_required():
            default = Text("(required)")
        else:
            default = Text("(default: {value})", value=_shown(field.get_default()))
        found[name] = argument(field.annotation, field.description, default, name.upper() if name == positional else "")
    return found


def with_new_names(arguments: Sequence[str], old_names: Mapping[str, str], step: str = "") -> list[str]:
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


LANGUAGE = "The language of the terminal, en or zh; also WUKONG_LANGUAGE. Default: that of the system's locale."


def with_language(hints: Hints) -> Hints:
    """The hints and --language, which every command has."""
    languages = Literal[*LANGUAGES]  # type: ignore[valid-type]
    return {**hints, "language": argument(languages, LANGUAGE, Text("(default: {value})", value=current()))}


def choose_language(arguments: Sequence[str]) -> None:
    """Chooses the language that --language names, before anything is said. Raises UsageError for one not there."""
    for argument_, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, given, value = argument_.partition("=")
        if name == "--language":
            choose(value if given else following)


def argument(kind: Any, text: str | None, default: Text, positional: str = "") -> Any:
    import tyro

    text, default_text = widened(spoken(" ".join((text or "").split()))), widened(spoken(default))
    if positional:
        about = tyro.conf.arg(help=text, help_behavior_hint=default_text, metavar=positional)
        is_list, kind = get_origin(kind) is list, Annotated[kind, tyro.conf.Positional, about]
        return Required[kind] if is_list else kind  # an absent list would come as the text "[]"
    return Annotated[kind, tyro.conf.arg(help=text, help_behavior_hint=default_text)]


def _shown(value: Any) -> str:
    return (" ".join(map(str, value)) or "none") if isinstance(value, list | tuple) else str(value)


def parse(command: str, hints: Hints, description: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The options that were given. Prints the help and raises SystemExit for --help.

    Raises:
        UsageError: one line for what tyro says in a box.
    """
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), _help_shown(), readable_width():
            kind = cast(Any, _dictionary(command, hints))
            given, unknown = tyro.cli(
                kind, prog=command, description=description, args=_gathered(arguments, hints), return_unknown_args=True
            )
    except SystemExit as error:
        if not error.code:
            raise
        raise UsageError(
            "{problem}; see {command} --help", problem=_plainly(_sentence(said.getvalue())), command=command
        ) from None
    if unknown:
        name = unknown[0].partition("=")[0]
        kind = "unknown option" if name.startswith("-") else "unexpected argument"
        raise UsageError(f"{kind} {name}{nearest(name, _flags(hints)) or f'; see {command} --help'}")
    result: dict[str, Any] = given
    return result


TYROS_WORDS = ("usage:", "options", "positional arguments", "show this help message and exit", "(repeatable)")
"""What tyro itself says in a help text."""


@contextlib.contextmanager
def _help_shown() -> Iterator[None]:
    """Prints the help that tyro prints within the block, with its own words in the terminal's language."""
    if current() == "en":
        yield
        return
    printed = io.TextIOWrapper(io.BytesIO(), encoding=getattr(sys.stdout, "encoding", None) or "utf-8")
    printed.isatty = sys.stdout.isatty  # type: ignore[method-assign]
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        printed.seek(0)
        lines = narrowed(printed.read()).splitlines(keepends=True)
        for word in TYROS_WORDS:
            lines = [replaced(line, word, spoken(word)) if _is_tyros(line, word) else line for line in lines]
        sys.stdout.write("".join(lines))


def _is_tyros(line: str, word: str) -> bool:
    """Whether a word in a line of a help text is tyro's (a title's, say) and not a part of ours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip()
    if word in ("options", "positional arguments"):
        return re.fullmatch(rf"(╭─)? ([\w.-]+ )?{word}( ─+╮)?", plain) is not None
    return word in plain


def _dictionary(name: str, hints: Hints) -> Any:
    """A dictionary type in which every key may be absent: what is not given is then not in the result."""
    fields = {key: _dictionary(key, hint) if isinstance(hint, dict) else hint for key, hint in hints.items()}
    return TypedDict(name, fields, total=False)  # type: ignore[operator]


def flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _flags(hints: Hints, above: str = "") -> dict[str, Any]:
    """Flag -> annotated type."""
    flags = {}
    for name, hint in hints.items():
        flags.update(_flags(hint, f"{name}.") if isinstance(hint, dict) else {flag(above + name): hint})
    return flags


def _gathered(arguments: Sequence[str], hints: Hints) -> list[str]:
    """The arguments with all values of a list behind its first flag: tyro would forget those of an earlier one."""
    lists = {flag for flag, hint in _flags(hints).items() if get_origin(get_args(hint)[0]) is list}
    groups: dict[str, list[str]] = {"": []}  # flag -> flag and values
    values = groups[""]
    for number, argument in enumerate(arguments):
        name, given, value = argument.partition("=")
        if (known := flag(name.removeprefix("--"))) in lists and name.startswith("--"):
            values = groups.setdefault(known, [known])
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


_SAYS = (
    (r"(--[\w.-]+): no type matching \S*\bINT\b\S* could be instantiated from \[(.*?)\].*",
     "{option}: expected a whole number, not {given}"),
    (r"(--[\w.-]+): no type matching \S*\bFLOAT\b\S* could be instantiated from \[(.*?)\].*",
     "{option}: expected a number, not {given}"),
    (r"(--[\w.-]+): no type matching (?:.*?) could be instantiated from \[(.*?)\].*", "{option}: cannot be {given}"),
    (r"(--[\w.-]+): invalid literal for int\(\) with base 10: (.*)", "{option}: expected a whole number, not {given}"),
    (r"(--[\w.-]+): could not convert string to float: (.*)", "{option}: expected a number, not {given}"),
    (r"Missing value for argument '(--[\w.-]+)'\. Expected 1 values()", "{option}: a value is missing"),
    (r"Missing value for argument '(--[\w.-]+)'\. Expected (\d+) values", "{option}: {given} values are needed"),
)  # fmt: skip
"""What tyro says of a wrong value -> what we say. It has names of Python in it, and lists every type it tried."""
_CHOICE = re.compile(r"invalid choice (.*) for argument '(--[\w.-]+)'\. Expected one of \((.*?),?\)")


def _plainly(problem: str) -> Text:
    if choice := _CHOICE.fullmatch(problem):
        known = choice[3].replace("'", "")
        return Text("{option}: choose one of {known}, not {given}", option=choice[2], known=known, given=choice[1])
    for pattern, template in _SAYS:
        if match := re.fullmatch(pattern, problem):
            values = {"option": match[1], "given": match[2]}
            return Text(template, **{name: value for name, value in values.items() if f"{{{name}}}" in template})
    return Text(problem)


def build(options: type[Options], given: Mapping[str, Any], command: str, positional: str = "") -> Options:
    """The validated options. Raises UsageError naming the option that is wrong, or all that are missing."""

    def shown(option: object) -> str:
        return positional.upper() if option == positional else flag(str(option))

    try:
        found = options.model_validate(dict(given))
        _require(options.needed(given), command)
        return found
    except ValidationError as error:
        missing = [shown(problem["loc"][0]) for problem in error.errors() if problem["type"] == "missing"]
        if missing:
            _require([*missing, *options.needed(given)], command)
        option, problem = complaint(error, options)
        raise UsageError(f"{shown(option)}: {problem}" if option else problem) from None


def _require(missing: Sequence[str], command: str) -> None:
    """Raises UsageError that names all options that are missing, if any are."""
    if missing:
        required = "{options} is required; see {command} --help"
        if len(missing) > 1:
            required = "{options} are required; see {command} --help"
        raise UsageError(required, options=joined(missing, "{a} and {b}"), command=command)


def description(text: str, example: str) -> str:
    """What a help text begins with, in the terminal's language."""
    indented = "\n".join(f"    {line}" for line in example.splitlines())
    return f"{widened(spoken(' '.join(text.split())))}\n\n{widened(spoken('Example:'))}\n{indented}"
