"""The libraries we are compared with, in separate environments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def _requirements(peer: str) -> Path:
    return Path(__file__).with_name(f"requirements-{peer}.txt")


def python_of_trl(directory: Path) -> str:
    """The interpreter of TRL's environment, which is made where it is absent."""
    python = directory / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", _requirements("trl")], check=True)
    return str(python)


def install_transformers(directory: str) -> None:
    """Installs the version of transformers that we compare with into a directory for PYTHONPATH, unless it is there."""
    if not (Path(directory) / "transformers").exists():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", directory]
        subprocess.run([*install, "-r", _requirements("transformers")], check=True)
