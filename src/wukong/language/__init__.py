"""The two languages of what the package says: in the terminal, on the reports and in the studio.

English text is written where it is used. `zh/*.json` have its Chinese, one file per place: the template is the key. A
line with names and numbers in it is a `wukong.errors.Text`, whose template is looked up.

The terminal's language is that of --language, else of $WUKONG_LANGUAGE, else Chinese if $LC_ALL, $LC_MESSAGES or $LANG
names Chinese. The reports hold both languages, and the studio follows the reader's browser.
"""

from __future__ import annotations

import json
import os
import re
import string
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from wukong.errors import Text, UsageError, WukongError, printable

HERE = Path(__file__).parent
LANGUAGES = {"en": "English", "zh": "简体中文"}
VARIABLE = "WUKONG_LANGUAGE"


@cache
def catalogue(name: str) -> dict[str, str]:
    """English -> Chinese of one place, such as studio, metrics, report, console, options."""
    found: dict[str, str] = json.loads((HERE / "zh" / f"{name}.json").read_text(encoding="utf-8"))
    return found


@cache
def chinese() -> dict[str, str]:
    """English -> Chinese of all places."""
    return {text: said for file in sorted((HERE / "zh").glob("*.json")) for text, said in catalogue(file.stem).items()}


def translate(language: str, text: str | WukongError, /, **values: Any) -> str:
    """A text in a language, with `{name}` filled in. What has no translation stays English.

    A `Text` and an error bring their own values; those among them that are a `Text` or an error are translated too.
    """
    if isinstance(text, WukongError):
        return printable(translate(language, _known_error(text.text) if language != "en" else text.text))
    said = Text(text, **values)
    found = chinese().get(said.template, said.template) if language == "zh" else said.template
    if not said.values:
        return found
    return found.format(
        **{
            name: translate(language, value) if isinstance(value, Text | WukongError) else value
            for name, value in said.values.items()
        }
    )


def recognised(text: str, place: str = "reasons") -> Text:
    """A text that comes filled in, with its template and values again, by the templates of a catalogue: `reasons` (a
    judge's, and why records were left out; they are stored so) or `errors`. What comes from none of them is somebody's
    own text."""
    if text in chinese():
        return Text(text)
    for pattern, template in _patterns(place):
        if match := pattern.fullmatch(text):
            found = match.groupdict()
            return Text(template, **found | {name: recognised(found[name], place) for name in _NESTED & found.keys()})
    where, colon, rest = text.partition(": ")
    if place == "errors" and colon and ((problem := recognised(rest, place)).values or problem in chinese()):
        return Text("{place}: {problem}", place=where, problem=problem)
    return Text(text)


_NESTED = {"names", "problem"}
"""The places of templates whose values may come from a template too."""


@cache
def _patterns(place: str) -> list[tuple[re.Pattern[str], str]]:
    """(what matches a filled-in text, its template), for the templates with places."""
    found = []
    for template in catalogue(place):
        parts = [(re.escape(before), name) for before, name, _, _ in string.Formatter().parse(template)]
        pattern = "".join(
            before + (f"(?P<{name}>{_VALUES.get(name, '.+?')})" if name else "") for before, name in parts
        )
        if any(name for _, name in parts):
            found.append((re.compile(pattern), template))
    return found


_VALUES = {"count": r"\d+", "n": r"[\d,]+", "problem": ".+"}
"""What the values of some places look like."""


def _known_error(said: Text) -> Text:
    """An error's text with templates where the code filled it in itself."""
    if not said.values:
        return recognised(said, "errors")
    values = said.values.items()
    return Text(said.template, **{name: _known_error(v) if isinstance(v, Text) else v for name, v in values})


def counted(number: int, one: str, many: str) -> Text:
    """A number with its noun, which is a template: counted(1, "{n:,} pair", "{n:,} pairs")."""
    return Text(one if number == 1 else many, n=number)


def joined(parts: Sequence[str], pair: str = "{a}, {b}") -> Text:
    """The parts in one text, put together two by two by a template; empty for none."""
    whole = Text(parts[0]) if parts else Text("")
    for part in parts[1:]:
        whole = Text(pair, a=whole, b=part)
    return whole


# ---------------------------------------------------------------------------------------------------- the terminal's

_chosen: list[str] = []


def choose(language: str | None) -> None:
    """Sets the language of this process's terminal; None leaves it to the environment.

    Raises:
        UsageError: a language that is not there.
    """
    if language is not None and language not in LANGUAGES:
        raise UsageError("--language {language}: choose one of {known}", language=language, known=", ".join(LANGUAGES))
    _chosen[:] = [] if language is None else [language]


def current() -> str:
    """The terminal's language. Raises UsageError if $WUKONG_LANGUAGE names one that is not there."""
    if _chosen:
        return _chosen[0]
    if named := os.environ.get(VARIABLE):
        if named not in LANGUAGES:
            raise UsageError(
                "WUKONG_LANGUAGE={language}: choose one of {known}", language=named, known=", ".join(LANGUAGES)
            )
        return named
    locale = next((value for name in ("LC_ALL", "LC_MESSAGES", "LANG") if (value := os.environ.get(name))), "")
    return "zh" if locale.lower().startswith("zh") else "en"


def spoken(text: str | WukongError, /, **values: Any) -> str:
    """A text in the terminal's language."""
    return translate(current(), text, **values)
