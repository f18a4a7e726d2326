"""Win rates and ratings: pure functions of outcomes.

Shape legend: P prompts, K models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wukong.seeds import derived_seed
from wukong.stages.evaluate import win_rate
from wukong.stats import rate_interval

Outcomes = Mapping[tuple[str, str], np.ndarray]
"""(a, b) -> (P,): 1 if a's answer was preferred, 0 if b's, 1/2 for a tie, NaN if not judged. A pair of models occurs in
one order only."""


def compared(outcomes: Outcomes, lengths: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """The win rate of each pair of models judged on at least one prompt.

    lengths: model -> (P,), in characters, since tokenizers may differ.
    """
    found = []
    for (a, b), outcome in outcomes.items():
        judged = ~np.isnan(outcome)
        if judged.any():
            difference = (lengths[a] - lengths[b])[judged].astype(float)
            found.append({"a": a, "b": b, **win_rate(outcome[judged], difference)})
    return found


def ratings(names: Sequence[str], outcomes: Outcomes, seed: int, draws: int = 300) -> dict[str, dict[str, Any]]:
    """Bradley-Terry ratings on Elo's scale: 400 points are odds of 10 to 1, the mean of the models is 1000.

    P(a wins) = s_a / (s_a + s_b), fitted by maximum likelihood (choix: Maystre and Grossglauser 2015); a tie is half a
    win for each. One tie is added to each pair, so that a model that always wins has a finite rating. Intervals are 95
    % bootstraps over prompts, or those from the likelihood's curvature (with the added ties) if wider: the bootstrap of
    a few games that are all won would be a point.
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
        result: np.ndarray = 1000 + 400 / math.log(10) * (strengths - strengths.mean())
        return result

    whole = fitted(wins.sum(0))
    generator = np.random.Generator(np.random.Philox(derived_seed(seed, "ratings")))
    drawn = np.array([fitted(wins[generator.integers(prompts, size=prompts)].sum(0)) for _ in range(draws)])
    games = wins.sum(0) + wins.sum(0).T + 2 * prior  # (K, K)
    p = 1 / (1 + 10 ** ((whole - whole[:, None]) / 400))
    curvature = games * p * (1 - p)
    covariance = np.linalg.pinv(np.diag(curvature.sum(1)) - curvature)  # of log s minus its mean
    reach = 1.959964 * 400 / math.log(10) * np.sqrt(np.diag(covariance))
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    low, high = np.minimum(low, whole - reach), np.maximum(high, whole + reach)
    return {name: {"rating": float(whole[i]), "interval": [float(low[i]), float(high[i])]} for name, i in place.items()}


def with_people(outcomes: Outcomes, people: Outcomes) -> dict[str, Any] | None:
    """How often a judge agrees with people's preferences; a tie of the judge counts half. None if they judged nothing
    in common."""
    hits: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    for pair, outcome in outcomes.items():
        human = people[pair]
        both = ~np.isnan(outcome) & ~np.isnan(human) & (human != 0.5)
        same = np.where(outcome == 0.5, 0.5, (outcome > 0.5) == (human > 0.5))
        hits.append(np.where(both, same, 0.0))
        counts.append(both.astype(float))
    hit, count = np.sum(hits, axis=0), np.sum(counts, axis=0)  # (P,): judgments are clustered by prompt
    if not count.sum():
        return None
    interval = rate_interval(hit, count)
    return {"value": float(hit.sum() / count.sum()), "interval": interval, "judgments": int(count.sum())}
