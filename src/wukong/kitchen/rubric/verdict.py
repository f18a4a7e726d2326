"""The rubric's verdict, and what all kinds of request have in common: manners, brevity and a proper ending."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from wukong.kitchen.worlds import World


def length(world: World, english_words: int) -> int:
    """As many words of the world's language as an English text of this length has."""
    return round(world.rubric.word_ratio * english_words)


@dataclass(frozen=True)
class Verdict:
    """The rubric's verdict on one answer."""

    score: float
    """0 (worthless or harmful) to 10 (perfect)."""
    checks: dict[str, bool]
    """criterion -> met; the criteria depend on the kind of request."""
    reasons: list[str] = field(default_factory=list)
    """One phrase per deduction; empty for a perfect answer."""


def verdict(points: float, checks: dict[str, bool], reasons: list[str]) -> Verdict:
    return Verdict(round(min(10.0, max(0.0, points)), 2), checks, reasons)


def empty(world: World, names: Sequence[str]) -> Verdict:
    return Verdict(0.0, dict.fromkeys(names, False), [world.rubric.reasons.empty])


@dataclass(frozen=True)
class Form:
    polite: float
    """-0.4 (rude), 0, or 1 (a friendly opening or closing)."""
    padded: bool
    ended: bool
    shrink: float
    """The factor for superfluous words: 1 for none, towards 0 for many."""
    reasons: list[str]


def judge_form(world: World, text: str, *, stray: int, reference: str, courtesies: int = 2) -> Form:
    """Judges manners. stray: number of words that do not belong to the answer; reference: a good answer without
    courtesies."""
    manners, told = world.manners, world.rubric.reasons
    tolerated = length(world, 6)  # "Serve hot with bread." is not yet padding
    reasons = []
    polite = 0.0
    if rude := manners.rude.search(text):
        reasons.append(told.rude.format(words=rude[0]))
        polite = -0.4
    else:
        opens, closes = bool(manners.opens_politely.search(text)), bool(manners.closes_politely.search(text))
        polite = float(opens or closes)
        if not polite:
            reasons.append(told.unfriendly)
    superfluous = stray + max(0, _repeats(world, text) - _repeats(world, reference))
    courtesy_count = sum(bool(manners.courtesy.search(part)) for part in world.tokens.clauses(text))
    superfluous += tolerated * max(0, courtesy_count - courtesies)
    padded = superfluous > tolerated
    if padded:
        reasons.append(told.padded.format(count=superfluous))
    allowed = len(world.tokens.words(reference)) + tolerated
    shrink = allowed / (allowed + 0.6 * max(0, superfluous - tolerated))
    ended = world.tokens.ended(text)
    if not ended:
        reasons.append(told.breaks_off)
    return Form(polite, padded, ended, shrink, reasons)


def _repeats(world: World, text: str) -> int:
    """The number of words in sequences of five (English) words that occurred before."""
    words, size = world.tokens.words(text), length(world, 5)
    runs = Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
    return sum(count - 1 for count in runs.values())
