"""How a language is cut into words and sentences: the part of a world that is code rather than data."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import ClassVar, Protocol


class WordRules(Protocol):
    """One language's words and sentences, as the rubric and the generators need them."""

    script: ClassVar[re.Pattern[str]]
    """Letters by which a text in the language is recognised."""
    longest_step: ClassVar[int]
    """A step of a recipe may extend over this many clauses."""

    def normal(self, text: str) -> str:
        """The text in lower case, with figures in digits."""

    def words(self, text: str) -> list[str]:
        """The words in lower case and in one form each ("eggs" and "egg" are equal), and the figures."""

    def segments(self, text: str) -> list[str]:
        """The sentences and lines of an answer, without step numbers."""

    def clauses(self, text: str) -> list[str]:
        """The parts of an answer of which each may be a step or a courtesy: its sentences, or parts of them."""

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

    script: ClassVar[re.Pattern[str]] = re.compile("[a-z]", re.IGNORECASE)
    longest_step: ClassVar[int] = 1

    def normal(self, text: str) -> str:
        return text.lower()

    def words(self, text: str) -> list[str]:
        return [_singular(word) for word in re.findall(r"-?\d+|[a-z]+", text.lower())]

    def segments(self, text: str) -> list[str]:
        text = re.sub(r"(?:(?<=\s)|^)[1-9][.)]\s+", "\n", text)
        parts = re.split(r"(?<=[.!?])\s+|\n+|;\s*|,? (?:and )?then ", text)
        return [part.strip(" -*\t") for part in parts if self.words(part)]

    def clauses(self, text: str) -> list[str]:
        return self.segments(text)

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


class Chinese:
    """Written without spaces: a word is the longest one of a vocabulary at its place, else a single character.

    The vocabulary need not be large: names of foods, dishes, units and dangers, so that "chicken" is not found in "egg"
    because both begin with the same character.
    """

    script: ClassVar[re.Pattern[str]] = re.compile("[\u4e00-\u9fff]")
    longest_step: ClassVar[int] = 3

    _NUMERALS: ClassVar[dict[str, int]] = {
        **{character: value for value, character in enumerate("零一二三四五六七八九十")},
        "两": 2,
    }

    _SIGNS: ClassVar[dict[str, str]] = {"kg": "千克", "g": "克", "ml": "毫升", "°c": "度", "摄氏度": "度"}
    _COUNTED = ("分钟", "小时", "度", "人份")

    def __init__(
        self, vocabulary: Iterable[str], same: Mapping[str, Sequence[str]] | None = None, units: Iterable[str] = ()
    ) -> None:
        """
        Args:
            vocabulary: words of two or more characters.
            same: word -> others for the same thing, which are read as that word.
            units: of ingredients. Only before them, and before minutes, degrees and the like, 一 is a figure.
        """
        self._same = {other: word for word, others in (same or {}).items() for other in others}
        self._vocabulary = frozenset({*vocabulary, *units, *(same or ()), *self._same})
        self._longest = max(map(len, self._vocabulary))
        self._words = lru_cache(maxsize=1 << 14)(self._cut)  # the rubric asks for the same names again and again
        self._units = "|".join(sorted(map(re.escape, (*units, *self._COUNTED)), key=len, reverse=True))

    @cached_property
    def _numeral(self) -> re.Pattern[str]:
        digits = "".join(self._NUMERALS)
        return re.compile(f"(?<![{digits}])([{digits}]{{1,3}})(?= ?(?:{self._units}))")

    def normal(self, text: str) -> str:
        text = unicodedata.normalize("NFKC", text.replace("…", "。")).lower()
        text = re.sub(r"(?<=\d)( ?)(kg|g|ml|°c|摄氏度)(?![a-z])", lambda match: match[1] + self._SIGNS[match[2]], text)
        text = re.sub(r"零下 ?(?=\d)", "-", text)
        return self._numeral.sub(lambda match: str(self._figure(match[1])), text)

    def _figure(self, numeral: str) -> int:
        """The value of a numeral below a hundred: 七, 十二, 七十四."""
        tens, ten, ones = numeral.rpartition("十")
        last = self._NUMERALS.get(ones[-1:], 0)
        return 10 * self._NUMERALS.get(tens[-1:], 1) + last if ten else last

    def words(self, text: str) -> list[str]:
        return list(self._words(text))

    def _cut(self, text: str) -> tuple[str, ...]:
        found: list[str] = []
        for run in re.findall(r"-?\d+|[a-z]+|[\u4e00-\u9fff]+", self.normal(text)):
            found += self._split(run) if self.script.match(run) else [run]
        return tuple(found)

    def _split(self, run: str) -> list[str]:
        """Cuts a run of characters, each time at the end of the longest known word."""
        found, start = [], 0
        while start < len(run):
            ends = range(min(len(run), start + self._longest), start + 1, -1)
            end = next((end for end in ends if run[start:end] in self._vocabulary), start + 1)
            word = run[start:end]
            found.append(self._same.get(word, word))
            start = end
        return found

    def segments(self, text: str) -> list[str]:
        text = re.sub(
            r"(?:(?<=[\s。！？!?；;：:，,])|^)[1-9][.．、)）]\s*(?!\d)|[①-⑨]|第[一二三四五六1-6]步[：:，,]?", "\n", text
        )
        parts = re.split(r"(?<=[。！？!?])|\n+|[；;]", text)
        return [part.strip(" -*·•\t") for part in parts if self.words(part)]

    def clauses(self, text: str) -> list[str]:
        parts = (part for segment in self.segments(text) for part in re.split("[，,]", segment))
        return [part for part in parts if self.words(part)]

    def pieces(self, text: str) -> list[str]:
        return list(text)

    def rejoin(self, pieces: Sequence[str]) -> str:
        return "".join(pieces)

    def join(self, sentences: Iterable[str]) -> str:
        """Without spaces; a comma follows a part that has no punctuation at its end."""
        first, *others = sentences
        for other in others:
            first += other if re.search(r"[。！？：，～…!?:,]$", first) else f"，{other}"
        return first

    def ended(self, text: str) -> bool:
        return bool(re.search(r"[。！？!?.～~][”’』」）\"')]*$", text)) and not re.search(
            r"(^|[\s。！？])\d[.、)）]$", text
        )

    def unended(self, text: str) -> str:
        return text.rstrip("。！？：；、，（ .!?:")


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
