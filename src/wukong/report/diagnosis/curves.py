"""Logged curves with their noise, so that a change is told from a fluctuation.

Shape legend: N logged points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from wukong.report.contents import StepResult


@dataclass(frozen=True)
class Trend:
    """One metric of a step. `steps` and `values` are (N,)."""

    name: str
    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    @property
    def median(self) -> float:
        return float(np.median(self.values))

    @property
    def early_median(self) -> float:
        """The median of the first third, of at least three points where there are."""
        return float(np.median(self.values[: max(3, len(self) // 3)]))

    @property
    def first(self) -> float:
        """The mean of the first points: a sixth of them, at least two."""
        return float(self.values[: self._early].mean())

    @property
    def last(self) -> float:
        """The mean of the last third."""
        return float(self.values[-self._late :].mean())

    @property
    def gain(self) -> float:
        return self.last - self.first

    @property
    def noise(self) -> float:
        """The standard deviation of a point about the trend, from the differences of neighbours, which a slow trend
        hardly changes. Their median, so that single jumps do not count (0.954 = 0.6745 sqrt 2)."""
        if len(self) < 2:
            return math.inf
        return float(np.median(np.abs(np.diff(self.values)))) / 0.954

    @property
    def last_error(self) -> float:
        """The standard error of `last`."""
        return self.noise / math.sqrt(self._late)

    @property
    def z(self) -> float:
        """The gain in its standard errors; beyond ±3 it is no fluctuation."""
        if self.gain == 0:
            return 0.0
        error = self.noise * math.sqrt(1 / self._early + 1 / self._late)
        return self.gain / error if error > 0 else math.copysign(math.inf, self.gain)

    @property
    def highest(self) -> float:
        """The highest mean of three neighbours: a level that was held, not a spike."""
        width = min(3, len(self))
        return float(np.convolve(self.values, np.ones(width) / width, "valid").max())

    @property
    def _early(self) -> int:
        return min(len(self), max(2, len(self) // 6))

    @property
    def _late(self) -> int:
        return min(len(self), max(2, len(self) // 3))


def curve_of(step: StepResult, name: str, at_least: int = 1) -> Trend | None:
    """A metric of a step; None where it was logged at fewer points."""
    points = [(line.get("step", 0), line[name]) for line in step.metrics if isinstance(line.get(name), int | float)]
    if len(points) < at_least:
        return None
    steps, values = np.array(points, dtype=float).reshape(-1, 2).T
    return Trend(name, steps, values)


def last_step(step: StepResult) -> int:
    """The last logged step; 0 where nothing was logged."""
    return max((int(line.get("step", 0)) for line in step.metrics), default=0)
