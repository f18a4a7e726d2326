"""kill -9 at ten random moments of each stage of the `test` recipe, then the same command: the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[1] / "recipes" / "test.yaml"
KILLS = 10
TRAINED = {"pretrain": "base", "sft": "sft", "reward": "reward", "ppo": "policy"}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
STEPS_THAT_TRAIN = [argument for step in TRAINED for argument in (f"--{step}.checkpoint-seconds", "0")]


def command(*arguments: str) -> list[str]:
    """Each run has a working directory of its own, so that the paths in its records are the same."""
    return [sys.executable, "-m", "wukong", "run", str(RECIPE), "--run-dir", "run", *STEPS_THAT_TRAIN, *arguments]


def run_to(run: Path, step: str) -> float:
    """Runs the recipe up to and with a step; returns the seconds it took."""
    begin = time.monotonic()
    subprocess.run(command("--until", step), cwd=run, env=ENVIRONMENT, check=True, capture_output=True, timeout=600)
    return time.monotonic() - begin


def kill_at(run: Path, step: str, seconds: float) -> bool:
    """Starts the recipe and kills it after some time; False when it was done before."""
    process = subprocess.Popen(
        command("--until", step), cwd=run, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


@pytest.mark.slow
def test_kill_at_ten_random_moments_of_each_stage_changes_no_byte(tmp_path: Path) -> None:
    rng = random.Random(0)
    once, killed, before = tmp_path / "once", tmp_path / "killed", tmp_path / "before"
    once.mkdir()
    killed.mkdir()
    steps = ["kitchen", "tokenize", "pretrain", "sft", "sample", "label", "reward", "ppo", "evaluate"]
    run_to(once, "kitchen")
    idle = run_to(once, "kitchen")  # a run with nothing to do: what starting takes
    for step in steps:
        alone = run_to(once, step)
        shutil.copytree(killed, before)
        kills = 0
        while kills < KILLS:
            if kill_at(killed, step, rng.uniform(0.6 * idle, max(alone, idle))):
                kills += 1
            else:  # it was done, and a kill would hit nothing: the stage begins anew
                shutil.rmtree(killed)
                shutil.copytree(before, killed)
        run_to(killed, step)
        shutil.rmtree(before)
    made = [f"{directory}/model.safetensors" for directory in TRAINED.values()]
    made += ["responses.jsonl", "comparisons.jsonl", "tokenizer/tokenizer.json", "tokenizer/train/tokens-00000.bin"]
    for file in made:
        assert (once / "run" / file).read_bytes() == (killed / "run" / file).read_bytes(), file
