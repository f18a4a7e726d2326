"""Small pieces that several stages need."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wukong.model.gpt2 import GPT2
from wukong.training.session import permutation


def epoch_batch(n: int, step: int, size: int, seed: int) -> np.ndarray:
    """The indices (into n records) of a step's batch: epochs follow each other without a gap, each shuffled anew.

    A function of the step alone, so that a resumed run sees the same data.
    """
    first, last = step * size, (step + 1) * size
    epochs = range(first // n, (last - 1) // n + 1)
    order = np.concatenate([permutation(n, seed, "epoch", epoch) for epoch in epochs])
    start = first - epochs[0] * n
    return order[start : start + size]


def with_dropout(model: GPT2, dropout: float) -> GPT2:
    """The same weights in a model that trains with this dropout rate."""
    if dropout == model.config.dropout:
        return model
    other = GPT2(replace(model.config, dropout=dropout))
    other.load_state_dict(model.state_dict())
    return other
