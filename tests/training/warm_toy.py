"""Imported by the process that forks the others: what torch does once, at its first step, costs seconds."""

import tempfile
from pathlib import Path

from tests.training.toy_run import ToyOptions, toy_run

with tempfile.TemporaryDirectory() as directory:
    toy_run(ToyOptions(out=Path(directory), steps=1))
