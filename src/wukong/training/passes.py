"""The default number of passes over the data: one rule for all stages that learn from records.

With much data, epochs and batch size are those of the stage's papers. A few hundred records would then give one or two
optimiser steps, which teach nothing: in that case the batches shrink first, then the passes increase, up to where the
stage overfits, and a model smaller than GPT-2 gets a larger learning rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from wukong.errors import Text
from wukong.language import counted

ENOUGH_STEPS = 150
"""With this many optimiser steps, nothing is adapted."""
SMALL_BATCH = 8
GPT2_WIDTH, SMALL_WIDTH = 768, 192
"""The widths that the usual and the small models' learning rates are for: GPT-2's and the kitchen's (`nano`)."""


@dataclass(frozen=True)
class Passes:
    """A stage's steps, batch size, epochs and learning rate."""

    epochs: float
    batch_size: int
    lr: float

    def steps(self, records: int) -> int:
        return math.ceil(self.epochs * records / self.batch_size)

    def described(self, records: int) -> Text:
        return Text(
            "{steps} of {batch_size} ({epochs}, learning rate {lr:.2g})",
            steps=counted(self.steps(records), "{n:,} step", "{n:,} steps"),
            batch_size=self.batch_size,
            epochs=Text("{n:g} epoch" if self.epochs == 1 else "{n:g} epochs", n=self.epochs),
            lr=self.lr,
        )

    def record(self, records: int) -> dict[str, float]:
        """For provenance.json."""
        return {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr, "steps": self.steps(records)}


@dataclass(frozen=True)
class Usual(Passes):
    """A stage's defaults for much data and for little."""

    most_epochs: float
    """Maximum passes before it overfits."""
    small_lr: float
    """The learning rate for a model of `SMALL_WIDTH` (docs/results/index.md, docs/guide/algorithms.md); between the two
    widths it follows a power of the width, as Adam's best learning rates do."""

    def lr_at(self, width: int) -> float:
        """The learning rate for little data."""
        place = math.log(min(max(width, SMALL_WIDTH), GPT2_WIDTH) / SMALL_WIDTH) / math.log(GPT2_WIDTH / SMALL_WIDTH)
        result: float = self.small_lr ** (1 - place) * self.lr**place
        return result

    def passes(
        self, records: int, width: int, epochs: float | None, batch_size: int | None, lr: float | None
    ) -> Passes:
        """The passes for this many records and a model of this width. Values given by the user (not None) are kept,
        except that a batch holds at most all passes together: a larger one would only repeat records."""
        if batch_size is not None:
            batch_size = min(batch_size, max(2, math.ceil(records * (epochs or self.most_epochs))))
        found = Passes(epochs or self.epochs, batch_size or self.batch_size, lr or self.lr)
        if found.steps(records) >= ENOUGH_STEPS:
            return found
        if batch_size is None:
            smaller = math.floor(found.epochs * records / ENOUGH_STEPS)
            found = Passes(found.epochs, min(self.batch_size, max(SMALL_BATCH, smaller)), found.lr)
        if epochs is None:
            wanted = math.ceil(ENOUGH_STEPS * found.batch_size / records)
            found = Passes(min(max(self.epochs, wanted), self.most_epochs), found.batch_size, found.lr)
        return Passes(found.epochs, found.batch_size, lr or self.lr_at(width))
