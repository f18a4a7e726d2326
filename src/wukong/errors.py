"""The two ways a command can fail, and the exit codes people's scripts rely on.

Exit code 2: the input is wrong (a file, an option, a record). Exit code 1: the input was fine, but the
run failed (the loss is not finite, the disk is full). The command line prints such an error as one line
without a traceback; any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_AFTER_SCHEME = r"(?:(?<=://)|(?<=:/)(?!/))"
_SECRET = re.compile(
    r"(?:(?<=http:/)|(?<=https:/)|(?<=http://)|(?<=https://))(?!/)[^\s/]+(?=@)"  # a user may be a token
    rf"|(?:{_AFTER_SCHEME}|(?<=@))[^\s/@:]+:(?!//)\S*(?=@)"  # also in openai:MODEL@user:password@host
    r"|(?:(?<=[?&]key=)|(?<=api_key=)|(?<=token=)|(?<=password=))[^\s&'\")]+",
    re.IGNORECASE,
)
"""What must not be printed of an address: the user with a password, and keys."""


class Text(str):
    """A text for people, filled in; `template` and `values` are kept so that it can be looked up in another language.

    Args:
        template: the text with `{places}`; without values it is the text itself and may hold any braces.
        values: what to fill in, by `str.format`. A value that is a `Text` or an error is translated with the whole;
            any other value is somebody's data and is shown unchanged.
    """

    template: str
    values: Mapping[str, Any]

    def __new__(cls, template: str, /, **values: Any) -> Text:
        if isinstance(template, Text) and not values:
            return template
        text = super().__new__(cls, template.format(**values) if values else template)
        text.template, text.values = str(template), values
        return text

    def as_json(self) -> dict[str, Any]:
        """`template` and `values` as JSON types. Numbers stay numbers, since a place may have a format for them."""
        return {"template": self.template, "values": {name: _as_json(value) for name, value in self.values.items()}}


def _as_json(value: Any) -> Any:
    if isinstance(value, WukongError):
        value = value.text
    if isinstance(value, Text):
        return value.as_json()
    if isinstance(value, str):
        return printable(value)
    return value if value is None or isinstance(value, bool | int | float) else printable(str(value))


class WukongError(Exception):
    """Something a person can fix; `str(error)` is one line that says what, where and what to do.

    Args:
        template: the message, with `{places}` if there are values; see `Text`.
        values: what to fill in.
    """

    exit_code = 1

    def __init__(self, template: object = "", /, **values: Any) -> None:
        super().__init__(Text(template if isinstance(template, str) else str(template), **values))

    @property
    def text(self) -> Text:
        said = self.args[0] if self.args else ""
        return said if isinstance(said, Text) else Text(str(said))

    @property
    def template(self) -> str:
        return self.text.template

    @property
    def values(self) -> Mapping[str, Any]:
        return self.text.values

    def __str__(self) -> str:
        return printable(self.text)


def printable(text: str) -> str:
    """A message as one line that can be printed. Names of files and fields may hold anything: what would break the line
    or the terminal becomes a space; invisible characters, such as a byte order mark, and characters that no encoding
    can print become escapes; a password in an address is replaced by asterisks; a long message is shortened."""
    text = _SECRET.sub("***", "".join(map(_visible, text)))
    if len(text) > LONGEST:  # somebody's value is in it
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    return text.encode("utf-8", "backslashreplace").decode()


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category in ("Cc", "Zl", "Zp"):
        return " "
    return character.encode("unicode_escape").decode() if category == "Cf" and character not in JOINERS else character


LONGEST = 1600
"""Characters of a message, about."""
JOINERS = "\u200c\u200d"
"""Invisible too, but parts of words and of emoji."""


class UsageError(WukongError):
    """An unknown option, an impossible combination, a missing file, a foreign checkpoint."""

    exit_code = 2


class DataError(UsageError):
    """A record that cannot be used, with the place where it was found.

    Args:
        problem: what is wrong, e.g. "field 'output' is missing"; with `{places}` if there are values.
        file: the file it was found in.
        line: the line (JSONL, text, CSV) or the record's number (a JSON array), counted from 1.
        field: the field's name, as written in the file.
        hint: what the person can do about it.
        values: what to fill in into `problem`.
    """

    def __init__(
        self,
        problem: str,
        /,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        field: str | None = None,
        hint: str | None = None,
        **values: Any,
    ) -> None:
        self.problem, self.file, self.line, self.field, self.hint = Text(problem, **values), file, line, field, hint
        said = Text("field {field!r}: {problem}", field=field, problem=self.problem) if field else self.problem
        where = "" if file is None else "{file}: " if line is None else "{file}:{line}: "
        more = " ({hint})" if hint else ""
        if not where and not more:
            super().__init__(said)
            return
        parts = {"file": file, "line": line, "problem": said, "hint": Text(hint) if hint else None}
        super().__init__(
            f"{where}{{problem}}{more}", **{name: part for name, part in parts.items() if part is not None}
        )


class RunError(WukongError):
    """A run that had to stop: a loss that is not finite, a KL that runs away, a full disk."""

    exit_code = 1


def brief(value: Any, show: Callable[[Any], str] = repr, most: int = 120) -> str:
    """Anybody's value in one line of ours, of so many characters at most."""
    shown = " ".join(show(value).split())
    return shown if len(shown) <= most else shown[:most] + "…"
