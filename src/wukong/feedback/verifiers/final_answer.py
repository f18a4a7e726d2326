"""Where the final answer of a text is, if the text marks it."""

from __future__ import annotations

import re

BOX = re.compile(r"\\f?boxed\s*\{")
PHRASE = re.compile(r"\banswers?\b(?:\s+(?:is|are|equals)\b|\s*[:=：])|答案(?:\s*[是为為]|\s*[:=：])", re.IGNORECASE)
END = re.compile(r"[.!?](?=\s|$)|[。！？\n]")


def marked_answer(text: str) -> str | None:
    """What follows the last `#### ` on its line (GSM8K's mark), else the last `\\boxed{...}` (MATH's); None without."""
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0]
    if boxes := list(BOX.finditer(text)):
        return _braced(text[boxes[-1].end() :])
    return None


def stated_answer(text: str) -> str | None:
    """The rest of the sentence behind the last "the answer is", "answer:" or "答案是"; None without one."""
    if not (phrases := list(PHRASE.finditer(text))):
        return None
    said = text[phrases[-1].end() :].lstrip()
    end = END.search(said)
    return said[: end.start()] if end else said


def _braced(text: str) -> str:
    """The text up to the brace that closes it, or all of it if none does (a response that was cut off)."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:place]
    return text
