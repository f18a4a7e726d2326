"""Active learning: which answers to have judged next, by the uncertainty of reward models.

Shape legend: M models, K answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pair_uncertainty(scores: Sequence[Sequence[float]]) -> float:
    """The information expected from a judgment of these answers, from 0 to 1, as the mean over all their pairs.

    With one reward model, the entropy in bits of its prediction sigmoid(r_i - r_j): uncertainty sampling (Lewis and
    Gale 1994). With several, their disagreement: the entropy of the mean prediction minus the mean entropy of the
    predictions (BALD, Houlsby et al. 2011, arXiv 1112.5745). A pair that every model finds equal then scores 0: its
    noise cannot be reduced by labels.

    Args:
        scores: (M, K) the reward of each answer by each model, at least one model and two answers.
    """
    r = np.asarray(scores, dtype=float)
    if r.ndim != 2 or r.shape[0] < 1 or r.shape[1] < 2:
        raise ValueError(f"scores must be (models, answers), at least (1, 2), not {r.shape}")
    first, second = np.triu_indices(r.shape[1], k=1)
    p = 1 / (1 + np.exp(-np.clip(r[:, first] - r[:, second], -50, 50)))  # (M, pairs)
    whole = _entropy(p.mean(axis=0))
    found = whole if len(r) == 1 else whole - _entropy(p).mean(axis=0)
    return float(np.clip(found.mean(), 0.0, 1.0))


def _entropy(p: np.ndarray) -> np.ndarray:
    """The entropy of a Bernoulli variable with probability p, in bits."""
    p = np.clip(p, 1e-15, 1 - 1e-15)
    result: np.ndarray = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return result
