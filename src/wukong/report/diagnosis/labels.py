"""What labels say about themselves: contradictions, preference cycles, length, and whether the prompt mattered.

Shape legend: P prompts.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np

from wukong.data.comparisons import load_comparisons
from wukong.data.sources import DataOptions
from wukong.data.text import normalised
from wukong.records import Comparison, Message, Preference, Ranking, Vote
from wukong.stats import rate_interval

MOST_BYTES = 30_000_000
"""Larger files of labels are not read: a diagnosis has to take seconds."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_\u3040-\u30ff\u3400-\u9fff]{3,}")
COMMON = 0.1
"""Words in more than this part of the prompts say nothing about which prompt an answer belongs to."""


@dataclass(frozen=True)
class Rate:
    """A rate with its 95 % interval over prompts."""

    value: float
    low: float
    high: float
    n: int


def rate_of(sums: Sequence[float], counts: Sequence[float]) -> Rate | None:
    """The rate sum(sums) / sum(counts) of the prompts; both are (P,). None of nothing."""
    total = sum(counts)
    if not total:
        return None
    low, high = rate_interval(np.array(sums), np.array(counts))
    return Rate(sum(sums) / total, low, high, int(total))


@dataclass(frozen=True)
class LabelStatistics:
    """A file of comparisons and rankings."""

    records: int
    prompts: frozenset[str]
    """Normalised, to be compared with other files."""
    pairs: int
    cycles: Rate | None
    """Of three answers that an annotator compared in all three pairs: how often a beats b, b beats c, c beats a."""
    contradictions: Rate | None
    """Of two judgments of one pair: how often they differ."""
    longer: Rate | None
    """How often the longer of two answers is preferred."""
    on_prompt: Rate | None
    """How often the preferred answer shares more rare words with its prompt than the other, where one does."""

    @property
    def prompt_decides(self) -> float:
        """A lower bound of the part of the pairs in which the prompt tells which answer is better: how much more often
        than by chance, times how many pairs it concerns. Two wordings of one answer to the same question differ in few
        such words; an answer to another question in most."""
        rate = self.on_prompt
        return (2 * rate.low - 1) * rate.n / self.pairs if rate is not None and self.pairs else 0.0

    @property
    def flip_rates(self) -> list[tuple[str, Rate]]:
        """How often a single judgment is wrong, as estimated from cycles and from contradictions.

        If each comparison of a true order is flipped with probability e, three of them form a cycle with probability
        e(1-e), and two judgments of one pair differ with probability 2e(1-e).
        """
        found = []
        if self.cycles is not None:
            found.append(("cycles", _flips(self.cycles, 1.0)))
        if self.contradictions is not None:
            found.append(("contradictions", _flips(self.contradictions, 0.5)))
        return found


def _flips(rate: Rate, scale: float) -> Rate:
    low, value, high = (
        (1 - math.sqrt(max(0.0, 1 - 4 * scale * part))) / 2 for part in (rate.low, rate.value, rate.high)
    )
    return Rate(value, low, high, rate.n)


def label_statistics(path: Path) -> LabelStatistics | None:
    """The statistics of a file; None if it is too large to be read here. They are kept until the file changes.

    Raises DataError for a file that holds no comparisons, OSError for one that cannot be read.
    """
    found = path.stat()
    return None if found.st_size > MOST_BYTES else _of_file(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=32)
def _of_file(path: Path, _changed: int, _size: int) -> LabelStatistics:
    return statistics_of(load_comparisons([str(path)], DataOptions()).records)


def statistics_of(records: Sequence[Preference]) -> LabelStatistics:
    """The statistics of labels; votes only count as records."""
    by_prompt: dict[str, list[Comparison | Ranking]] = defaultdict(list)
    for record in records:
        if not isinstance(record, Vote):
            by_prompt[_key(record.prompt)].append(record)
    groups = list(by_prompt.values())
    common = _common_words(by_prompt)
    counted = [_Counts.of(group, common) for group in groups]

    def rate(name: str) -> Rate | None:
        columns = [getattr(one, name) for one in counted]
        return rate_of([hits for hits, _ in columns], [n for _, n in columns])

    pairs = sum(one.pairs for one in counted)
    return LabelStatistics(
        len(records), frozenset(by_prompt), pairs, rate("cycles"), rate("contradictions"), rate("longer"),
        rate("on_prompt"),
    )  # fmt: skip


def _key(prompt: Sequence[Message]) -> str:
    return "\n".join(normalised(m.content) for m in prompt if m.role != "system")


def _words(text: str) -> set[str]:
    return {word.casefold() for word in _WORD.findall(text)}


def _common_words(prompts: dict[str, list[Comparison | Ranking]]) -> set[str]:
    counts = Counter(word for prompt in prompts for word in _words(prompt))
    return {word for word, n in counts.items() if n > max(2, COMMON * len(prompts))}


Share = tuple[float, int]
"""Hits, of how many."""


@dataclass(frozen=True)
class _Counts:
    """One prompt's counts."""

    pairs: int
    cycles: Share
    contradictions: Share
    longer: Share
    on_prompt: Share

    @classmethod
    def of(cls, records: Sequence[Comparison | Ranking], common: set[str]) -> _Counts:
        decided = [(better, worse, who) for record in records for better, worse, who in _decided(record)]
        asked = _words(records[0].prompt[-1].content) - common if records[0].prompt else set()
        longer, on_prompt = [], []
        for better, worse, _ in decided:
            if len(better) != len(worse):
                longer.append(len(better) > len(worse))
            own, other = len(asked & _words(better)), len(asked & _words(worse))
            if own != other:
                on_prompt.append(own > other)
        return cls(
            len(decided), _cycles(records), _contradictions(decided), (sum(longer), len(longer)),
            (sum(on_prompt), len(on_prompt)),
        )  # fmt: skip


def _decided(record: Comparison | Ranking) -> Iterator[tuple[str, str, str]]:
    """(better, worse, annotator) of each pair that is not tied."""
    if isinstance(record, Ranking):
        for better, worse in record.pairs():
            yield record.responses[better], record.responses[worse], record.annotator
    elif not record.tie:
        yield record.chosen, record.rejected, record.annotator


def _cycles(records: Sequence[Comparison | Ranking]) -> Share:
    """Of single comparisons only: a ranking has no cycle, however noisy it is."""
    beaten: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        if isinstance(record, Comparison) and not record.tie:
            beaten[record.annotator][record.chosen].add(record.rejected)
    hits = n = 0
    for wins in beaten.values():
        answers = sorted({*wins, *(text for worse in wins.values() for text in worse)})
        for trio in combinations(answers, 3):
            edges = [(b in wins.get(a, ()), a in wins.get(b, ())) for a, b in (trio[:2], trio[1:], (trio[2], trio[0]))]
            if all(forward != back for forward, back in edges):
                n += 1
                hits += len({forward for forward, _ in edges}) == 1  # all the same way round
    return hits, n


def _contradictions(decided: Sequence[tuple[str, str, str]]) -> Share:
    verdicts: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for better, worse, _ in decided:
        first, second = sorted((better, worse))
        verdicts[first, second].append(better == first)
    checks = [a != b for given in verdicts.values() for a, b in combinations(given, 2)]
    return sum(checks), len(checks)
