"""Chinese text for programs that count characters as columns: a Chinese character is two columns wide.

`widened` puts a blank after each wide character, so that a program that pads and breaks lines by the number of
characters gets both right (a line may break after any Chinese character, but not before punctuation); `narrowed` takes
these blanks out of what the program printed.
"""

from __future__ import annotations

import re
import unicodedata

_STAY = "\ue000"
"""In place of the blank where the line must not break; of the private use area, so it is in no text."""
_NEVER_FIRST = "，。、；：？！）」』》”’…"
_NEVER_LAST = "（「『《“‘"


def is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"


def width(text: str) -> int:
    """Columns in a terminal."""
    return sum(1 + is_wide(character) for character in text)


def widened(text: str) -> str:
    parts = []
    for character, following in zip(text, [*text[1:], ""], strict=True):
        parts.append(character)
        if is_wide(character):
            stays = following in (*_NEVER_FIRST, " ", "") or character in _NEVER_LAST
            parts.append(_STAY if stays else " ")
    return "".join(parts)


def narrowed(printed: str) -> str:
    wide = "".join(sorted({character for character in printed if is_wide(character)}))
    return re.sub(f"([{re.escape(wide)}]) ", r"\1", printed).replace(_STAY, "") if wide else printed


def replaced(printed: str, old: str, new: str) -> str:
    """`printed` with the first `old` replaced by the narrower `new`, and the rest of its line where it was: after it
    comes a frame's line or blanks, of which more are put in."""
    begin, found, end = printed.partition(old)
    if not found:
        return printed
    fill = "─" if end.startswith(" ─") else " "
    return f"{begin}{new}{end[:1]}{fill * (width(old) - width(new))}{end[1:]}"
