"""The first paragraph of a report: what was learned, what was lost, what still fails, from the evaluation's numbers.

The rules: only a difference whose 95 % interval excludes zero is a gain or a loss. Shares of answers that meet a check
have Wald intervals of the difference of two independent shares, which are cautious here: both models answered the same
prompts. Every sentence has its number, and its interval where there is one. What was not measured is not mentioned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from wukong.errors import Text
from wukong.report.contents import Evaluation, EvaluationResult, ModelResult, PairResult, RunContents
from wukong.report.formatting import interval, number, percent, signed_points
from wukong.stats import shown

MOST = 3
"""Sentences of one kind."""
FAILS_BELOW = 0.9
"""A check that fewer answers meet still fails."""
LOW_SCORE = 0.5
"""Of the model's mean score: prompts of a kind with less still fail."""
LENGTH, VARIETY, LENGTH_GAIN = 0.2, 0.9, 0.1
"""Changes worth a sentence: of the mean length, of distinct-2, and of a win rate at equal length."""


@dataclass
class PlainWords:
    """The sentences of the first paragraph. `compared` is the comparison that they are about, if there is one."""

    compared: PairResult | None = None
    learned: list[Text] = field(default_factory=list)
    lost: list[Text] = field(default_factory=list)
    fails: list[Text] = field(default_factory=list)


def plain_words(run: RunContents) -> PlainWords:
    """What the first evaluation says about the newest model and the one before it."""
    evaluation = next(iter(run.evaluations), None)
    if evaluation is None or not evaluation.result.comparisons:
        return PlainWords()
    result = evaluation.result
    pair = result.newest_first[0]
    new, old = result.models.get(pair.a), result.models.get(pair.b)
    words = PlainWords(pair)
    wins = shown(pair.interval, pair.wins + pair.losses)
    (words.lost if wins < 0 else words.learned).append(_win(pair, wins))
    words.learned += _earlier(result, pair)
    if new is None or old is None:
        return words
    changes = sorted(_changes(new, old, result), key=lambda change: -abs(change.difference))
    words.learned += [change.sentence(pair) for change in changes if change.low > 0][:MOST]
    words.lost += [change.sentence(pair) for change in changes if change.high < 0][:MOST]
    words.lost += _costs(pair, new, old)
    words.fails += _failing(pair, new, evaluation)
    return words


def _win(pair: PairResult, wins: int) -> Text:
    values = {
        "a": pair.a, "b": pair.b, "rate": percent(pair.win_rate), "interval": interval(pair.interval, True),
        "n": pair.n, "judge": Text(pair.judge.replace("_", " ")),
    }  # fmt: skip
    if wins > 0:
        return Text("On {rate} of {n:,} unseen prompts, the answers of {a} are preferred to those of {b} "
                    "(95 % interval {interval}; judged by {judge}).", **values)  # fmt: skip
    if wins < 0:
        return Text("The answers of {a} are worse than those of {b}: preferred on {rate} of {n:,} unseen prompts "
                    "(95 % interval {interval}; judged by {judge}).", **values)  # fmt: skip
    return Text("No difference between {a} and {b} is shown: {rate} of {n:,} unseen prompts "
                "(95 % interval {interval}; judged by {judge}).", **values)  # fmt: skip


def _earlier(result: EvaluationResult, newest: PairResult) -> Iterator[Text]:
    """What the step before the newest one brought: usually SFT over the base model."""
    before = next((p for p in result.newest_first if p.a == newest.b and p.judge == newest.judge), None)
    if before and shown(before.interval, before.wins + before.losses) > 0:
        yield Text("Before that, {a} had won {rate} against {b} ({interval}).", a=before.a, b=before.b,
                   rate=percent(before.win_rate), interval=interval(before.interval, True))  # fmt: skip


@dataclass(frozen=True)
class Change:
    """Of a check: the share of answers that meet it, in the older and in the newer model."""

    check: str
    before: float
    after: float
    n: int

    @property
    def difference(self) -> float:
        return self.after - self.before

    @property
    def reach(self) -> float:
        variance = self.before * (1 - self.before) + self.after * (1 - self.after)
        return 1.96 * math.sqrt(variance / self.n) + 1 / self.n  # with the correction for continuity

    @property
    def low(self) -> float:
        return self.difference - self.reach

    @property
    def high(self) -> float:
        return self.difference + self.reach

    def sentence(self, pair: PairResult) -> Text:
        rises = self.difference > 0
        template = (
            "“{check}” rises from {before} to {after} of the answers ({points} points, {low} to {high})."
            if rises
            else "“{check}” falls from {before} to {after} of the answers ({points} points, {low} to {high})."
        )
        return Text(
            template, check=Text(self.check), before=percent(self.before, 0), after=percent(self.after, 0),
            points=signed_points(self.difference), low=signed_points(self.low), high=signed_points(self.high),
        )  # fmt: skip


def _changes(new: ModelResult, old: ModelResult, result: EvaluationResult) -> Iterator[Change]:
    for check in new.checks.keys() & old.checks.keys():
        yield Change(check, old.checks[check], new.checks[check], _applies(check, new, result))


def _applies(check: str, model: ModelResult, result: EvaluationResult) -> int:
    """The number of answers that a check applies to. Where it is not recorded: of the kinds of prompts where it
    applies, else all."""
    if check in model.check_counts:
        return model.check_counts[check]
    return sum(kind.n for kind in model.by_source.values() if check in kind.checks) or result.n_prompts


def _costs(pair: PairResult, new: ModelResult, old: ModelResult) -> Iterator[Text]:
    if new.kl:
        spread = interval(new.kl_interval, digits=2) if new.kl_interval else Text("no interval")
        yield Text("The price of the change is a [KL](#kl-divergence) of {kl} nats per answer ({interval}).",
                   kl=number(new.kl, 2), interval=spread)  # fmt: skip
    if new.distinct_2 is not None and old.distinct_2 and new.distinct_2 < VARIETY * old.distinct_2:
        yield Text("The answers repeat themselves more: [distinct-2](#distinct-2) is {share} of what it was.",
                   share=percent(new.distinct_2 / old.distinct_2, 0))  # fmt: skip
    if new.length_mean and old.length_mean and abs(new.length_mean / old.length_mean - 1) > LENGTH:
        longer = new.length_mean > old.length_mean
        template = "Answers are longer: {after} tokens instead of {before}."
        yield Text(template if longer else "Answers are shorter: {after} tokens instead of {before}.",
                   after=f"{new.length_mean:.0f}", before=f"{old.length_mean:.0f}")  # fmt: skip
    at_equal_length = pair.length_controlled_win_rate
    if at_equal_length is not None and pair.win_rate - at_equal_length > LENGTH_GAIN:
        yield Text("Part of the preference is for length: at equal length the win rate is {rate}.",
                   rate=percent(at_equal_length))  # fmt: skip
    if new.termination_rate is not None and new.termination_rate < (old.termination_rate or 0) - 0.02:
        yield Text("Fewer answers come to an end by themselves: {after} instead of {before}.",
                   after=percent(new.termination_rate), before=percent(old.termination_rate))  # fmt: skip


def _failing(pair: PairResult, new: ModelResult, evaluation: Evaluation) -> Iterator[Text]:
    result = evaluation.result
    low = sorted((share, check) for check, share in new.checks.items() if share < FAILS_BELOW)
    for share, check in low[:MOST]:
        n = _applies(check, new, result)
        reach = 1.96 * math.sqrt(share * (1 - share) / n) + 0.5 / n
        spread = interval((max(0.0, share - reach), min(1.0, share + reach)), True)
        yield Text("“{check}” is met by only {share} of the {n:,} answers of {a} that it applies to ({interval}).",
                   check=Text(check), share=percent(share, 0), n=n, a=pair.a, interval=spread)  # fmt: skip
    mean = new.score_mean
    for name, kind in sorted(new.by_source.items(), key=lambda one: one[1].score_mean or 0):
        if mean and kind.score_mean is not None and kind.score_mean < LOW_SCORE * mean:
            yield Text("Prompts of the kind “{kind}” score {score} on average, all together {mean} ({n:,} prompts).",
                       kind=Text(name), score=number(kind.score_mean, 2), mean=number(mean, 2), n=kind.n)  # fmt: skip
