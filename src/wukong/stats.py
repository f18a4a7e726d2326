"""Confidence intervals of rates and means, and the claims based on them; used everywhere such claims are made.

A rate is a mean of values from 0 to 1 (wins, with 1/2 for a tie; pairs ordered correctly). All intervals are 95 %,
clustered by prompt, and exact where possible: a bootstrap of three prompts that are all won would be a point.

Shape legend: P prompts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wukong.errors import Text
from wukong.language import counted

ALPHA = 0.05
FEWEST_PROMPTS = 6
"""The fewest decided prompts that can show a difference. If neither side is better, n prompts all go one way with
probability 2 x (1/2)^n: 6.25 % for five, 3.1 % for six."""
POINTS = 0.05
"""The difference from one half for which messages give the number of prompts needed."""


def exact_interval(hits: float, n: float) -> tuple[float, float]:
    """Clopper and Pearson 1934: the rates at which the probability of at most, or at least, this many hits of n is 2.5
    %."""
    from scipy.stats import beta  # imported here: it takes half a second

    low = beta.ppf(ALPHA / 2, hits, n - hits + 1) if hits > 0 else 0.0
    high = beta.ppf(1 - ALPHA / 2, hits + 1, n - hits) if hits < n else 1.0
    return float(low), float(high)


def rate_interval(sums: np.ndarray, counts: np.ndarray | None = None) -> list[float]:
    """The 95 % interval of a rate sum(sums) / sum(counts).

    Args:
        sums: (P,) each prompt's sum of values from 0 to 1.
        counts: (P,) the number of these values; 1 when absent. Prompts with 0 are ignored.

    For one win, tie or loss per prompt: Newcombe's (1998, method 10) interval of the difference of two paired
    proportions, wins and losses, from exact intervals of both; without ties it is the exact interval of Clopper and
    Pearson. If the exact sign test finds no difference, it includes one half. Otherwise: the exact interval with the
    effective number of values, which clustering by prompt reduces (Korn and Graubard 1998); it excludes one half only
    if at least `FEWEST_PROMPTS` prompts are decided.
    """
    sums = np.asarray(sums, dtype=float)
    counts = np.ones(len(sums)) if counts is None else np.asarray(counts, dtype=float)
    sums, counts = sums[counts > 0], counts[counts > 0]
    if not len(sums):
        return [0.0, 1.0]
    if (counts == 1).all() and np.isin(sums, (0.0, 0.5, 1.0)).all():
        low, high = _of_outcomes(int((sums == 1).sum()), int((sums == 0).sum()), len(sums))
        tells = _sign_test((sums == 1).sum(), (sums == 0).sum()) <= ALPHA
    else:
        low, high = _of_clusters(sums, counts)
        tells = decisive(sums, counts) >= FEWEST_PROMPTS
    return [low, high] if tells else [min(low, 0.5), max(high, 0.5)]


def _of_outcomes(wins: int, losses: int, n: int) -> tuple[float, float]:
    won, lost = wins / n, losses / n
    (won_low, won_high), (lost_low, lost_high) = exact_interval(wins, n), exact_interval(losses, n)
    # A prompt that is won is not lost: the two rates are correlated, by -1 without ties.
    odds = won * lost / ((1 - won) * (1 - lost)) if 0 < wins < n and 0 < losses < n else 0.0
    correlation = -math.sqrt(min(1.0, odds)) if wins + losses < n else -1.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a + b * b - 2 * correlation * a * b))

    down, up = reach(won - won_low, lost_high - lost), reach(won_high - won, lost - lost_low)
    return max(0.0, (1 + won - lost - down) / 2), min(1.0, (1 + won - lost + up) / 2)


def _of_clusters(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    from scipy.stats import t

    prompts, n = len(sums), float(counts.sum())
    rate = float(sums.sum() / n)
    variance = float(np.square(sums - rate * counts).sum()) / n**2
    effective = float(prompts)  # all prompts alike: each is one observation
    if variance > 1e-12 and prompts > 1:
        freedom = t.ppf(1 - ALPHA / 2, max(n - 1, prompts - 1)) / t.ppf(1 - ALPHA / 2, prompts - 1)
        effective = min(n, rate * (1 - rate) / variance * float(freedom) ** 2)
    return exact_interval(rate * effective, effective)


def _sign_test(wins: int, losses: int) -> float:
    """The probability of a split at least this uneven if each decided prompt is a coin toss."""
    from scipy.stats import binomtest

    return float(binomtest(int(wins), int(wins + losses)).pvalue) if wins + losses else 1.0


def decisive(sums: np.ndarray, counts: np.ndarray | None = None, than: float = 0.5) -> int:
    """The number of decided prompts: those whose mean differs from the rate."""
    counts = np.ones(len(sums)) if counts is None else counts
    return int((np.abs(np.asarray(sums) - than * counts) > 1e-9).sum())


def mean_interval(sums: np.ndarray, counts: np.ndarray | None = None) -> list[float] | None:
    """The 95 % interval of the mean sum(sums) / sum(counts) of numbers of any size; Student's t, over prompts.

    Args:
        sums: (P,) each prompt's sum; counts: (P,) of how many numbers, 1 when absent.

    Returns:
        None for fewer than two prompts.
    """
    from scipy.stats import t

    sums = np.asarray(sums, dtype=float)
    counts = np.ones(len(sums)) if counts is None else np.asarray(counts, dtype=float)
    sums, counts = sums[counts > 0], counts[counts > 0]
    if len(sums) < 2:
        return None
    mean = sums.sum() / counts.sum()
    error = math.sqrt(len(sums) / (len(sums) - 1) * np.square(sums - mean * counts).sum()) / counts.sum()
    reach = float(t.ppf(1 - ALPHA / 2, len(sums) - 1)) * error
    return [float(mean - reach), float(mean + reach)]


def shown(interval: Sequence[float] | None, prompts: int, than: float = 0.5) -> int:
    """Whether something is significantly better (1) or worse (-1) than a rate or number, or neither (0). Every claim
    that one thing is better than another uses this.

    Args:
        interval: its 95 % interval.
        prompts: the number of decided prompts, see `decisive`.
    """
    if interval is None or prompts < FEWEST_PROMPTS:
        return 0
    return int(interval[0] > than) - int(interval[1] < than)


# ------------------------------------------------------------------------------------------------------------ in words


def prompts_needed(outcome_std: float, points: float = POINTS) -> int:
    """The number of prompts that show a win rate this far from one half with 80 % power in a 95 % interval: ((1.96 +
    0.84) x std / points)^2, rounded up to two digits, and at least `FEWEST_PROMPTS`."""
    n = ((1.959964 + 0.841621) * outcome_std / points) ** 2
    step = 10 ** max(0, math.floor(math.log10(n)) - 1) if n >= 1 else 1
    return max(FEWEST_PROMPTS, math.ceil(n / step) * step)


def in_words(entry: Mapping[str, Any]) -> Text:
    """The conclusion from a win rate: which is better, or that no difference is seen and how many prompts would show
    it.

    entry: a, b, win_rate, interval, n, wins, ties, losses.
    """
    a, b, rate, (low, high), n = entry["a"], entry["b"], entry["win_rate"], entry["interval"], entry["n"]
    if rate < 0.5:
        a, b, rate, low, high = b, a, 1 - rate, 1 - high, 1 - low
    figures = {"rate": 100 * rate, "low": 100 * low, "high": 100 * high}
    decided, prompts = entry["wins"] + entry["losses"], counted(n, "{n:,} prompt", "{n:,} prompts")
    if shown([low, high], decided) > 0:
        return Text(
            "{a} is better than {b}: {rate:.0f} % [{low:.0f}, {high:.0f}] of {prompts}",
            a=a,
            b=b,
            prompts=prompts,
            **figures,
        )
    begin = Text(
        "no difference between {a} and {b} can be seen with {prompts} ({rate:.0f} % [{low:.0f}, {high:.0f}])",
        a=a, b=b, prompts=prompts, **figures,
    )  # fmt: skip
    if not decided:
        return Text("{begin}: they are tied on all of them", begin=begin)
    if decided < FEWEST_PROMPTS:
        return Text(
            "{begin}: {n} decided, and fewer than {least} show nothing", begin=begin, n=decided, least=FEWEST_PROMPTS
        )
    needed = prompts_needed(math.sqrt(max(0.0, decided / n / 4 - (rate - 0.5) ** 2)))
    points = 100 * POINTS
    if needed > n:
        return Text(
            "{begin}; about {needed:,} would show {points:.0f} points", begin=begin, needed=needed, points=points
        )
    return Text("{begin}; one of {points:.0f} points would probably have shown", begin=begin, points=points)


def chance_problem(accuracy: float, interval: Sequence[float], pairs: int, prompts: int | None = None) -> Text | None:
    """Why a reward model with this accuracy on held-out pairs cannot be told from a coin; None when it can.

    interval: its 95 %, over prompts. Results of earlier versions have a bootstrap's, which is a point for a handful of
    pairs that are all right, and do not say of how many prompts they are: the exact interval of so many independent
    pairs has to lie above one half too.
    """
    low, high = min(interval[0], exact_interval(accuracy * pairs, pairs)[0]), interval[1]
    if shown([low, high], pairs if prompts is None else prompts) > 0:
        return None
    few = Text(" of {prompts:,} prompts", prompts=prompts) if prompts is not None and prompts < FEWEST_PROMPTS else ""
    return Text(
        "its accuracy on {pairs}{few} is {accuracy:.0f} % [{low:.0f}, {high:.0f}], which cannot be told from chance",
        pairs=counted(pairs, "{n:,} held-out pair", "{n:,} held-out pairs"),
        few=few,
        accuracy=100 * accuracy,
        low=100 * low,
        high=100 * high,
    )


# -------------------------------------------------------------------------------------------------------- of responses


def distinct_n(responses: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams as a part of all n-grams of the responses (Li et al. 2016); 0 when there is none."""
    grams = [tuple(r[i : i + n]) for r in responses for i in range(len(r) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repeated_n(responses: Sequence[Sequence[int]], n: int) -> float:
    """The fraction of a response's n-grams that occurred earlier in it, the mean over responses (Welleck et al. 2020,
    seq-rep-n). Responses shorter than n tokens repeat nothing."""
    if not responses:
        return 0.0
    return float(np.mean([1 - distinct_n([one], n) if len(one) >= n else 0.0 for one in responses]))


def top_phrase_share(responses: Sequence[Sequence[int]], n: int) -> float:
    """The fraction of responses that contain the most widespread n-gram."""
    seen = Counter(gram for one in responses for gram in {tuple(one[i : i + n]) for i in range(len(one) - n + 1)})
    return max(seen.values()) / len(responses) if seen else 0.0


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's correlation of two columns (N,); 0 where one is constant."""
    a, b = (np.asarray(column, dtype=float) - np.mean(column) for column in (x, y))
    size = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / size if size > 0 else 0.0
