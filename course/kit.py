"""What every lesson uses: the models of the recipe `course`, shapes in a line each, the look of the figures, checks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from checks import check
from matplotlib import pyplot as plt

from wukong.console import console

__all__ = ["ROOT", "RUN", "bars", "check", "course_run", "plt", "shapes"]

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "runs" / "course"
"""What the recipe `course` makes: data, tokenizer, base, sft, responses, comparisons, reward models and policies."""
LAST = "report.html"

console.quiet = True  # a stage that a lesson runs prints nothing beside the lesson's own lines

plt.rcParams.update(
    {
        "figure.figsize": (7, 3),
        "figure.dpi": 110,
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "font.size": 9,
    }
)


def course_run() -> Path:
    """The run directory of the recipe `course`; trains its models if that has not been done (about four minutes)."""
    if not (RUN / LAST).exists():
        subprocess.run([sys.executable, "-m", "wukong", "run", "course"], cwd=ROOT, check=True)
    return RUN


def shapes(**tensors: torch.Tensor) -> None:
    """Prints name, shape and type of each tensor."""
    for name, tensor in tensors.items():
        print(f"{name:>18} {tuple(tensor.shape)!s:<18} {str(tensor.dtype).removeprefix('torch.')}")


def bars(values: dict[str, float], label: str) -> None:
    """Horizontal bars, the first on top."""
    _, axes = plt.subplots(figsize=(7, 0.5 + 0.26 * len(values)))
    names = list(values)[::-1]
    axes.barh(names, [values[name] for name in names], color="#4c72b0")
    axes.set_xlabel(label)
    plt.show()
