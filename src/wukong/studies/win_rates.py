"""Who wins against whom, by how much, and what may be said of it: pure functions of outcomes.

Shape legend: P prompts, K models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wukong.seeds import derived_seed
from wukong.stages.common import bootstrap_interval
from wukong.stages.evaluate import win_rate

Outcomes = Mapping[tuple[str, str], np.ndarray]
"""(a, b) -> (P,): 1 where a's answer was preferred, 0 where b's, 1/2 for a tie, NaN where nobody judged. A pair of
models stands in one order only."""

POINTS = 0.05
"""The difference from one half that a person is told how many prompts would show."""


def compared(outcomes: Outcomes, lengths: Mapping[str, np.ndarray], seed: int) -> list[dict[str, Any]]:
    """The win rate of each pair of models that was judged on any prompt.

    lengths: model -> (P,), in characters, as models may have different tokens.
    """
    found = []
    for (a, b), outcome in outcomes.items():
        judged = ~np.isnan(outcome)
        if judged.any():
            difference = (lengths[a] - lengths[b])[judged].astype(float)
            found.append({"a": a, "b": b, **win_rate(outcome[judged], difference, seed)})
    return found


def ratings(names: Sequence[str], outcomes: Outcomes, seed: int, draws: int = 300) -> dict[str, dict[str, Any]]:
    """Bradley-Terry ratings on Elo's scale: 400 points are odds of 10 to 1, the mean of the models is 1000.

    P(a wins) = s_a / (s_a + s_b), fitted by maximum likelihood (choix: Maystre and Grossglauser 2015); a tie is half a
    win for each. Before that each pair is given one tie, so that a model that always wins has a finite rating.
    Intervals are 95 % bootstraps over prompts.
    """
    import choix

    place = {name: i for i, name in enumerate(names)}
    prompts = len(next(iter(outcomes.values())))
    wins = np.zeros((prompts, len(names), len(names)))  # (P, K, K)
    for (a, b), outcome in outcomes.items():
        wins[:, place[a], place[b]] = np.nan_to_num(outcome)
        wins[:, place[b], place[a]] = np.nan_to_num(1 - outcome)
    prior = (1 - np.eye(len(names))) / 2

    def fitted(total: np.ndarray) -> np.ndarray:
        strengths = choix.ilsr_pairwise_dense(total + prior)  # log s, (K,)
        return 1000 + 400 / math.log(10) * (strengths - strengths.mean())

    whole = fitted(wins.sum(0))
    generator = np.random.Generator(np.random.Philox(derived_seed(seed, "ratings")))
    drawn = np.array([fitted(wins[generator.integers(prompts, size=prompts)].sum(0)) for _ in range(draws)])
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return {name: {"rating": float(whole[i]), "interval": [float(low[i]), float(high[i])]} for name, i in place.items()}


def with_people(outcomes: Outcomes, people: Outcomes, seed: int) -> dict[str, Any] | None:
    """How often a judge prefers what people prefer, where people have a preference; a tie of the judge counts half.
    None where both judged nothing in common."""
    hits: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    for pair, outcome in outcomes.items():
        human = people[pair]
        both = ~np.isnan(outcome) & ~np.isnan(human) & (human != 0.5)
        same = np.where(outcome == 0.5, 0.5, (outcome > 0.5) == (human > 0.5))
        hits.append(np.where(both, same, 0.0))
        counts.append(both.astype(float))
    hit, count = np.sum(hits, axis=0), np.sum(counts, axis=0)  # (P,): a prompt's judgments hang together
    if not count.sum():
        return None
    interval = bootstrap_interval(hit, count, seed)
    return {"value": float(hit.sum() / count.sum()), "interval": interval, "judgments": int(count.sum())}


def prompts_needed(outcome_std: float, points: float = POINTS) -> int:
    """How many prompts show a win rate this far from one half with 80 % probability, by an interval of 95 %:
    ((1.96 + 0.84) x std / points)^2, rounded up to two digits."""
    n = ((1.959964 + 0.841621) * outcome_std / points) ** 2
    step = 10 ** max(0, math.floor(math.log10(n)) - 1) if n >= 1 else 1
    return max(1, math.ceil(n / step) * step)


def in_words(entry: Mapping[str, Any]) -> str:
    """What a win rate says: who is better, or that nothing can be said and how many prompts it would take."""
    a, b, rate, (low, high), n = entry["a"], entry["b"], entry["win_rate"], entry["interval"], entry["n"]
    if rate < 0.5:
        a, b, rate, low, high = b, a, 1 - rate, 1 - high, 1 - low
    figures = f"{100 * rate:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
    if low > 0.5:
        return f"{a} is better than {b}: {figures} of {n:,} prompts"
    std = math.sqrt(max(0.0, (entry["wins"] + entry["losses"]) / n / 4 - (rate - 0.5) ** 2))
    needed = prompts_needed(std) if std else 0
    begin = f"no difference between {a} and {b} can be seen with {n:,} prompts ({figures})"
    if not std:
        return f"{begin}: they are tied on all of them" if not entry["wins"] + entry["losses"] else begin
    if needed > n:
        return f"{begin}; about {needed:,} would show {100 * POINTS:.0f} points"
    return f"{begin}; one of {100 * POINTS:.0f} points would probably have shown"
