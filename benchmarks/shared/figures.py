"""The figures of docs/: SVG, byte for byte the same for the same numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def panels(file: Path, count: int, size: tuple[float, float]) -> Iterator[list[Any]]:
    """So many axes side by side to draw on; the file is written when the block ends."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "wukong"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=size, constrained_layout=True, squeeze=False)
    yield list(axes[0])
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
