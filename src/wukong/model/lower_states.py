"""The states above layers that several models have in common, so that one pass computes them for all.

Shape legend: B batch, T time, N real tokens, C channels.
"""

from __future__ import annotations

from torch import Tensor


class LowerStates:
    """What the lowest `layers` blocks make of one batch, computed by the first model that reads it. All models that it
    is given to must have the same frozen embeddings and blocks there, and read the same tokens."""

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self._states: Tensor | None = None  # (B, T, C) or (N, C), as the blocks pass them on

    def resume(self, embedded: Tensor) -> tuple[int, Tensor]:
        """The first block to compute, and its input. embedded: of block 0.

        Raises ValueError if the batch has another shape than the one that was read first.
        """
        if self._states is None:
            return 0, embedded
        if self._states.shape != embedded.shape:
            raise ValueError(f"states of shape {tuple(self._states.shape)} are not of {tuple(embedded.shape)}")
        return self.layers, self._states

    def keep(self, layers: int, states: Tensor) -> None:
        """Notes the states after this many blocks, if these are the common ones. Without gradient: they are frozen."""
        if layers == self.layers and self._states is None:
            self._states = states.detach()
