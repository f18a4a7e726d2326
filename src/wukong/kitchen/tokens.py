"""How a language is cut into words and sentences: the part of a world that is code rather than data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Protocol


class Tokens(Protocol):
    """One language's words and sentences, as the rubric and the generators need them."""

    def words(self, text: str) -> list[str]:
        """The words in lower case and in one form each ("eggs" and "egg" are equal), and the figures."""

    def segments(self, text: str) -> list[str]:
        """The sentences and lines of an answer, without step numbers."""

    def pieces(self, text: str) -> list[str]:
        """The smallest parts at which a text may be cut; `rejoin` undoes it up to white space."""

    def rejoin(self, pieces: Sequence[str]) -> str: ...

    def join(self, sentences: Iterable[str]) -> str:
        """One text of several sentences."""

    def ended(self, text: str) -> bool:
        """Whether the text ends as a sentence does, rather than breaking off."""

    def unended(self, text: str) -> str:
        """The text without punctuation at its end."""


class English:
    """Words between spaces, reduced to a rough singular."""

    def words(self, text: str) -> list[str]:
        return [_singular(word) for word in re.findall(r"-?\d+|[a-z]+", text.lower())]

    def segments(self, text: str) -> list[str]:
        text = re.sub(r"(?:(?<=\s)|^)[1-9][.)]\s+", "\n", text)
        parts = re.split(r"(?<=[.!?])\s+|\n+|;\s*|,? (?:and )?then ", text)
        return [part.strip(" -*\t") for part in parts if self.words(part)]

    def pieces(self, text: str) -> list[str]:
        return text.split()

    def rejoin(self, pieces: Sequence[str]) -> str:
        return " ".join(pieces)

    def join(self, sentences: Iterable[str]) -> str:
        return " ".join(sentences)

    def ended(self, text: str) -> bool:
        return bool(re.search(r"[.!?][\"')]*$", text)) and not re.search(r"(^|\s)\d[.)]$", text)

    def unended(self, text: str) -> str:
        return text.rstrip(".!?:")


def _singular(word: str) -> str:
    """Enough to match "eggs" and "egg", "tomatoes" and "tomato"."""
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("oes", "ches", "shes")):
        return word[:-2]
    return word[:-1] if len(word) > 1 and word.endswith("s") and not word.endswith("ss") else word


def spaced(words: Sequence[str]) -> str:
    """Padded with spaces, for whole-word search of a phrase: " 500 g flour "."""
    return f" {' '.join(words)} "
