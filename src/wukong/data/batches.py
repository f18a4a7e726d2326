"""Sequences of tokens -> tensors.

Shape legend: B rows, T time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from wukong.seeds import permutation


def pad(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows padded on the right with 0 (never attended to, never counted): ids (B, T) int64, lengths (B,) int64."""
    lengths = [len(s) for s in sequences]
    ids = np.zeros((len(sequences), max(lengths)), dtype=np.int64)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = sequence
    return torch.from_numpy(ids), torch.tensor(lengths)


Item = TypeVar("Item")


def micro_batches(
    items: Sequence[Item], lengths_of: Callable[[Item], Sequence[int]], max_tokens: int
) -> list[list[Item]]:
    """The items in micro-batches of at most max_tokens tokens, padding included; similar lengths share one.

    Args:
        lengths_of: the lengths (tokens) of an item's sequences, which stay in one micro-batch.
        max_tokens: an item larger than this gets a micro-batch to itself.
    """
    widths = [max(lengths_of(item)) for item in items]
    parts: list[list[Item]] = []
    rows = width = 0
    for i in sorted(range(len(items)), key=lambda i: (-widths[i], i)):
        rows += len(lengths_of(items[i]))
        if not parts or rows * width > max_tokens:
            parts.append([])
            rows, width = len(lengths_of(items[i])), widths[i]
        parts[-1].append(items[i])
    return parts


def by_length(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """The indices of sequences of these lengths, in `micro_batches`."""
    return micro_batches(range(len(lengths)), lambda i: [lengths[i]], max_tokens)


def epoch_batch(n: int, step: int, size: int, seed: int) -> np.ndarray:
    """The indices (into n records) of a step's batch: one epoch follows another without a gap, each shuffled.

    A function of the step alone, so that a resumed run sees the same data.
    """
    first, last = step * size, (step + 1) * size
    epochs = range(first // n, (last - 1) // n + 1)
    order = np.concatenate([permutation(n, seed, "epoch", epoch) for epoch in epochs])
    start = first - epochs[0] * n
    return order[start : start + size]


@dataclass(frozen=True)
class Example:
    """A demonstration as tokens; `response` is True where the loss counts."""

    ids: list[int]
    response: list[bool]


@dataclass(frozen=True)
class Packed:
    """Examples packed into rows. A token attends to its own segment only (see `LanguageModel.forward`).

    `response_mask` is never True on the first token of a segment: no token of its example precedes it.
    """

    input_ids: Tensor  # (B, T) int64
    segments: Tensor  # (B, T) int64
    response_mask: Tensor  # (B, T) bool


def pack(examples: Sequence[Example], row_tokens: int) -> Packed:
    """First-fit decreasing: examples of different lengths share rows of at most row_tokens tokens.

    Raises ValueError if an example is longer than a row.
    """
    rows: list[list[Example]] = []
    free: list[int] = []
    for example in sorted(examples, key=lambda e: -len(e.ids)):
        if len(example.ids) > row_tokens:
            raise ValueError(f"an example of {len(example.ids)} tokens does not fit a row of {row_tokens}")
        fits = next((i for i, room in enumerate(free) if room >= len(example.ids)), None)
        if fits is None:
            rows.append([])
            free.append(row_tokens)
            fits = len(rows) - 1
        rows[fits].append(example)
        free[fits] -= len(example.ids)
    width = row_tokens - min(free)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    segments = np.zeros((len(rows), width), dtype=np.int64)
    response = np.zeros((len(rows), width), dtype=bool)
    for row, members in enumerate(rows):
        at = 0
        for number, example in enumerate(members, start=1):
            end = at + len(example.ids)
            ids[row, at:end], segments[row, at:end], response[row, at:end] = example.ids, number, example.response
            response[row, at:end][:1] = False  # the token before it belongs to another example
            at = end
    return Packed(torch.from_numpy(ids), torch.from_numpy(segments), torch.from_numpy(response))
