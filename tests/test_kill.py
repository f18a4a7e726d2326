"""kill -9 at ten random moments of each stage of the `test` recipe, then the same command: the same bytes."""

import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from wukong.cli import main

RECIPE = Path(__file__).parents[1] / "recipes" / "test.yaml"
KILLS = 10
TRAINED = {"pretrain": "base", "sft": "sft", "reward": "reward", "ppo": "policy"}
STEPS_THAT_TRAIN = [argument for step in TRAINED for argument in (f"--{step}.checkpoint-seconds", "0")]

# Importing torch takes longer than most of these stages: a server that has done so forks a process for each command,
# so that the kills meet the work.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["wukong.stages.ppo", "wukong.stages.evaluate", "wukong.stages.label"])


def command(directory: Path, step: str) -> None:
    """Runs the recipe up to and with a step, in a working directory of its own, so that the paths in the records of
    two runs are the same."""
    os.chdir(directory)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    raise SystemExit(main(["run", str(RECIPE), "--run-dir", "run", *STEPS_THAT_TRAIN, "--until", step]))


def run_to(directory: Path, step: str) -> float:
    """Runs the recipe up to and with a step; returns the seconds it took."""
    begin = time.monotonic()
    process = processes.Process(target=command, args=(directory, step))
    process.start()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - begin


def kill_at(directory: Path, step: str, seconds: float) -> bool:
    """Starts the recipe and kills it after some time; False when it was done before."""
    process = processes.Process(target=command, args=(directory, step))
    process.start()
    process.join(seconds)
    alive = process.exitcode is None
    process.kill()
    process.join()
    return alive


@pytest.mark.slow
def test_kill_at_ten_random_moments_of_each_stage_changes_no_byte(tmp_path: Path) -> None:
    rng = random.Random(0)
    once, killed, before = tmp_path / "once", tmp_path / "killed", tmp_path / "before"
    once.mkdir()
    killed.mkdir()
    steps = ["kitchen", "tokenize", "pretrain", "sft", "sample", "label", "reward", "ppo", "evaluate"]
    for step in steps:
        alone = run_to(once, step)
        shutil.copytree(killed, before)
        kills = 0
        while kills < KILLS:
            if kill_at(killed, step, rng.uniform(0, alone)):
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
