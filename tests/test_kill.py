"""kill -9 at random moments, then the same command: the same bytes.

`benchmarks/stress/kill_sweep.py` does so to every stage.
"""

import importlib
from pathlib import Path


def test_kill_at_random_moments_changes_no_byte(tmp_path, monkeypatch):
    """Two stages, one of text and one that trains; leftovers of the kills are gone too."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks" / "stress")
    sweep = importlib.import_module("kill_sweep").Sweep(tmp_path)
    for step in ("tokenize", "pretrain"):
        sweep.stage(step, kills=2)
    assert sweep.differences() == []
    assert (tmp_path / "killed" / "run" / "base" / "model.safetensors").stat().st_size > 100_000
