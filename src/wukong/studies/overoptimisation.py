"""Gold reward over KL to the reference: the functional forms of Gao et al. 2023, and best-of-n.

Gao, Schulman and Hilton (arXiv 2210.10760) found that with d = sqrt(KL), in nats, the gain of the gold reward over
the reference is R(d) = d (alpha - beta d) for best-of-n and R(d) = d (alpha - beta log d) for RL.

Shape legend: P prompts, N answers per prompt, K policies of one run.
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
"""The fewest policies of a run that show a trend: two parameters fit any two points exactly, and two points cannot show
a peak."""


@dataclass(frozen=True)
class Trajectory:
    """Measurements of the policies of one training run in order, or of best-of-n for increasing n."""

    kl: np.ndarray  # (K, P) nats, one estimate per prompt
    gold: np.ndarray  # (K, P)
    proxy: np.ndarray  # (K, P)


def best_of_n_weights(ranks: np.ndarray, n: int) -> np.ndarray:
    """The probability of each of N answers to be the best of n drawn without replacement: an unbiased estimate of
    best-of-n from N >= n answers (Nakano et al. 2021, appendix I).

    ranks: (P, N) the rank of each answer, 0 for the worst, all distinct. Returns (P, N); rows sum to 1.
    """
    size = ranks.shape[1]
    if not 1 <= n <= size:
        raise ValueError(f"the best of {n} of {size} answers")
    by_rank = np.array([math.comb(rank, n - 1) for rank in range(size)], dtype=float) / math.comb(size, n)
    result: np.ndarray = by_rank[ranks]
    return result


def _basis(d: np.ndarray, form: Form) -> np.ndarray:
    """(points, 2): the coefficients of alpha and beta. d log d is 0 at 0, its limit."""
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
    result: np.ndarray = _basis(np.asarray(d, dtype=float), form) @ np.array([alpha, beta])
    return result


def peak(alpha: float, beta: float, form: Form) -> float:
    """The KL (nats) at the form's maximum: where dR/dd = alpha - 2 beta d, or alpha - beta log d - beta, is 0. Infinity
    for a form that never falls, 0 for one that never rises."""
    if form == "best-of-n":
        if alpha <= 0:
            return 0.0 if beta >= 0 else math.inf
        return (alpha / (2 * beta)) ** 2 if beta > 0 else math.inf
    return math.exp(min(2 * (alpha / beta - 1), 700)) if beta > 0 else math.inf


def fit(trajectories: Sequence[Trajectory], reference: np.ndarray, form: Form, seed: int) -> dict[str, Any] | None:
    """The form fitted to the points of all runs, with 95 % intervals; None if there are too few points.

    Args:
        trajectories: one per run, of the same prompts.
        reference: (P,) the reference's gold.

    The bootstrap resamples prompts and runs: runs of one algorithm are correlated through their prompts, points of a
    run through its weights. With a single run the intervals reflect only the prompts.
    """

    def points(prompts: np.ndarray, runs: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kl = np.concatenate([trajectories[i].kl[:, prompts].mean(1) for i in runs])
        gold = np.concatenate([trajectories[i].gold[:, prompts].mean(1) for i in runs])
        return np.sqrt(np.maximum(kl, 0)), gold - reference[prompts].mean()

    everything = np.arange(len(reference))
    d, gain = points(everything, range(len(trajectories)))
    if len(np.unique(d[d > 0])) < FEWEST_POINTS:
        return None
    alpha, beta = fitted(d, gain, form)
    generator = np.random.Generator(np.random.Philox(derived_seed(seed, "frontier")))
    draws = []
    for _ in range(DRAWS):
        prompts = generator.integers(len(reference), size=len(reference))
        drawn = fitted(*points(prompts, generator.integers(len(trajectories), size=len(trajectories))), form)
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
    """JSON has no infinity: null means no peak."""
    return float(value) if math.isfinite(value) else None
