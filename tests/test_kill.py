"""kill -9 at random moments, then the same command: the same bytes.

`benchmarks/stress/kill_sweep.py` does so to every stage.
"""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from wukong.recipe import load_recipe


@pytest.fixture
def kill_sweep(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks" / "stress")
    return importlib.import_module("kill_sweep")


@pytest.mark.slow
def test_kill_at_random_moments_changes_no_byte(tmp_path, kill_sweep):
    """Two stages, one of text and one that trains; leftovers of the kills are gone too."""
    sweep = kill_sweep.Sweep(tmp_path)
    for step in ("tokenize", "pretrain"):
        sweep.stage(step, kills=2)
    assert sweep.differences() == []
    assert (tmp_path / "killed" / "run" / "base" / "model.safetensors").stat().st_size > 100_000


@pytest.mark.slow
def test_kills_change_no_byte_of_a_llamas_training(tmp_path, kill_sweep):
    """From its first weights to PPO, through a reward model."""
    recipe = tmp_path / "llama.yaml"
    recipe.write_text(kill_sweep.RECIPE.read_text(encoding="utf-8").replace("model: test\n", "model: llama-test\n"))
    sweep = kill_sweep.Sweep(tmp_path, recipe)
    steps = list(load_recipe(recipe).recipe.steps)
    for step in steps[: steps.index("ppo") + 1]:
        sweep.stage(step, kills=2 if step in ("pretrain", "sft", "reward", "ppo") else 0)
    assert sweep.differences() == []
    stored = json.loads((tmp_path / "killed" / "run" / "base" / "config.json").read_text())
    assert stored["architectures"] == ["LlamaForCausalLM"]
