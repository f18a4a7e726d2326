"""How gold changes with the distance from the reference: the forms of Gao et al. 2023, and the best of n.

Gao, Schulman and Hilton (arXiv 2210.10760) found that with d = sqrt(KL), in nats, the gain of the gold reward over
the reference is R(d) = d (alpha - beta d) for best-of-n and R(d) = d (alpha - beta log d) for RL.

Shape legend: P prompts, N answers to each, K policies of one run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wukong.seeds import derived_seed

Form = Literal["best-of-n", "rl"]
DRAWS = 1000
FEWEST_POINTS = 3
"""So many policies of a run show a course: two parameters go through any two points, and one that only rose or only
fell between two says nothing of a turn."""


@dataclass(frozen=True)
class Course:
    """The policies of one training run in order, or the best of n for growing n: what was measured of each."""

    kl: np.ndarray  # (K, P) nats, an estimate for each prompt
    gold: np.ndarray  # (K, P)
    proxy: np.ndarray  # (K, P)


def best_of_n_weights(ranks: np.ndarray, n: int) -> np.ndarray:
    """How often each of N answers is the best of n drawn without replacement: an unbiased estimate of best-of-n from
    N >= n answers (Nakano et al. 2021, appendix I).

    ranks: (P, N) the place of each answer, 0 for the worst, no two alike. Returns (P, N), rows that sum to 1.
    """
    size = ranks.shape[1]
    if not 1 <= n <= size:
        raise ValueError(f"the best of {n} of {size} answers")
    by_rank = np.array([math.comb(rank, n - 1) for rank in range(size)], dtype=float) / math.comb(size, n)
    return by_rank[ranks]


def _basis(d: np.ndarray, form: Form) -> np.ndarray:
    """(points, 2): what alpha and beta are multiplied with. d log d is 0 at 0, its limit."""
    second = d * d if form == "best-of-n" else d * np.log(np.where(d > 0, d, 1))
    return np.stack([d, -second], 1)


def fitted(d: np.ndarray, gain: np.ndarray, form: Form) -> tuple[float, float]:
    """(alpha, beta) by least squares; both forms are linear in them.

    d, gain: (points,) sqrt(KL) and the mean gold less the reference's.
    """
    alpha, beta = np.linalg.lstsq(_basis(d, form), gain, rcond=None)[0]
    return float(alpha), float(beta)


def curve(d: np.ndarray, alpha: float, beta: float, form: Form) -> np.ndarray:
    """R(d) of the form."""
    return _basis(np.asarray(d, dtype=float), form) @ np.array([alpha, beta])


def peak(alpha: float, beta: float, form: Form) -> float:
    """The KL (nats) at which the form is highest: where dR/dd = alpha - 2 beta d, or alpha - beta log d - beta, is 0.
    Infinity for a form that never falls, 0 for one that never rises."""
    if form == "best-of-n":
        if alpha <= 0:
            return 0.0 if beta >= 0 else math.inf
        return (alpha / (2 * beta)) ** 2 if beta > 0 else math.inf
    return math.exp(min(2 * (alpha / beta - 1), 700)) if beta > 0 else math.inf


def fit(courses: Sequence[Course], reference: np.ndarray, form: Form, seed: int) -> dict[str, Any] | None:
    """The form fitted to the points of all runs, with 95 % intervals; None where there are too few points.

    Args:
        courses: a run each, of the same prompts.
        reference: (P,) the reference's gold.

    The bootstrap draws prompts and runs anew, with replacement: runs of one algorithm hang together by their prompts,
    points of a run by its weights. With one run its intervals know of the prompts alone.
    """

    def points(prompts: np.ndarray, runs: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kl = np.concatenate([courses[i].kl[:, prompts].mean(1) for i in runs])
        gold = np.concatenate([courses[i].gold[:, prompts].mean(1) for i in runs])
        return np.sqrt(np.maximum(kl, 0)), gold - reference[prompts].mean()

    everything = np.arange(len(reference))
    d, gain = points(everything, range(len(courses)))
    if len(np.unique(d[d > 0])) < FEWEST_POINTS:
        return None
    alpha, beta = fitted(d, gain, form)
    generator = np.random.Generator(np.random.Philox(derived_seed(seed, "frontier")))
    draws = []
    for _ in range(DRAWS):
        prompts = generator.integers(len(reference), size=len(reference))
        drawn = fitted(*points(prompts, generator.integers(len(courses), size=len(courses))), form)
        draws.append((*drawn, peak(*drawn, form)))
    limits = np.percentile(np.array(draws), [2.5, 97.5], axis=0, method="nearest")  # (2, 3); no mean with infinity
    spread = float(np.square(gain - gain.mean()).sum())
    missed = float(np.square(gain - curve(d, alpha, beta, form)).sum())
    highest = peak(alpha, beta, form)
    return {
        "form": "d (alpha - beta d)" if form == "best-of-n" else "d (alpha - beta log d)",
        "points": len(d),
        "alpha": alpha,
        "alpha_interval": limits[:, 0].tolist(),
        "beta": beta,
        "beta_interval": limits[:, 1].tolist(),
        "peak_kl": _finite(highest),
        "peak_kl_interval": [_finite(limit) for limit in limits[:, 2]],
        "r2": 1 - missed / spread if spread > 0 else None,
    }


def _finite(value: float) -> float | None:
    """JSON knows no infinity: null is a peak that never comes."""
    return float(value) if math.isfinite(value) else None
