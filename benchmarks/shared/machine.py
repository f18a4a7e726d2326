"""The machine and the versions that a table was measured with."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

import wukong


def machine() -> str:
    """The machine and versions in one line."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = f"{len(lines)} x {lines[0].split(':', 1)[1].strip()}" if lines else name
    python = platform.python_version()
    return f"{name}, {platform.system()}, Python {python}, torch {torch.__version__}, wukong {wukong.__version__}"
