"""The two ways a command can fail, and the exit codes people's scripts rely on.

Exit code 2: the input is wrong (a file, an option, a record). Exit code 1: the input was fine, but the
run failed (the loss is not finite, the disk is full). The command line prints such an error as one line
without a traceback; any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
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


class WukongError(Exception):
    """Something a person can mend; `str(error)` is one line that says what, where and what to do."""

    exit_code = 1

    def __str__(self) -> str:
        """Names of files and fields may hold anything: what would break the line or the terminal becomes a space; what
        cannot be seen, such as a byte order mark, and what no encoding can print become their escapes; a password in an
        address is left out."""
        text = _SECRET.sub("***", "".join(map(_visible, super().__str__())))
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
    """A record that cannot be used, with the place where it stands.

    Args:
        problem: what is wrong, e.g. "field 'output' is missing".
        file: the file it was found in.
        line: the line (JSONL, text, CSV) or the record's number (a JSON array), counted from 1.
        field: the field's name, as written in the file.
        hint: what the person can do about it.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        field: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.problem, self.file, self.line, self.field, self.hint = problem, file, line, field, hint
        where = "" if file is None else f"{file}:{line}: " if line is not None else f"{file}: "
        inside = f"field {field!r}: " if field else ""
        super().__init__(f"{where}{inside}{problem}" + (f" ({hint})" if hint else ""))


class RunError(WukongError):
    """A run that had to stop: a loss that is not finite, a KL that runs away, a full disk."""

    exit_code = 1


def brief(value: Any, show: Callable[[Any], str] = repr, most: int = 120) -> str:
    """Anybody's value in one line of ours, of so many characters at most."""
    shown = " ".join(show(value).split())
    return shown if len(shown) <= most else shown[:most] + "…"
