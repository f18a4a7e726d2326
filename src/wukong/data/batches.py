"""Sequences of tokens -> tensors.

Shape legend: B rows, T time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def pad(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows padded on the right with 0 (never attended to, never counted): ids (B, T) int64, lengths (B,) int64."""
    lengths = [len(s) for s in sequences]
    ids = np.zeros((len(sequences), max(lengths)), dtype=np.int64)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = sequence
    return torch.from_numpy(ids), torch.tensor(lengths)


def by_length(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices in micro-batches of at most max_tokens, padding included, grouped by length.

    A sequence longer than max_tokens gets its own micro-batch.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@dataclass(frozen=True)
class Example:
    """A demonstration as tokens; `response` is True where the loss counts."""

    ids: list[int]
    response: list[bool]


@dataclass(frozen=True)
class Packed:
    """Examples packed into rows. A token attends to its own segment only (see `GPT2.forward`).

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
