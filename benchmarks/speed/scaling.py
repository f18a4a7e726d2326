"""How much faster several processes are than one: `pretrain` and `ppo` as torchrun runs them, on cores of their own.

    python benchmarks/speed/scaling.py --processes 1 2 --out runs/scaling.md

Each process has one core (or GPU) and the batch is the same, so that 2 processes can at best be twice as fast. The
commands take turns, so that a change of the machine's speed meets all. Tokens a second are the medians over the
logged steps of all rounds but each run's first; where the time of a step goes is in docs/explanation/distributed.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.command_line import new_parser, publish, this_command
from shared.machine import machine
from shared.random_models import save_random_policy, save_random_reward
from shared.table import markdown_table

from wukong.kitchen.stage import KitchenOptions
from wukong.kitchen.stage import run as write_kitchen
from wukong.stages.tokenize import TokenizeOptions
from wukong.stages.tokenize import run as tokenize
from wukong.tokenizer import Tokenizer


def prepare(world: Path, preset: str) -> None:
    """Corpus, tokens, prompts, and an untrained policy and reward model: speed does not ask what they know."""
    write_kitchen(KitchenOptions(out=world / "data"))
    tokenize(TokenizeOptions(data=[str(world / "data" / "corpus.jsonl")], out=world / "tokens", vocab_size=2048))
    tokenizer = Tokenizer.load(world / "tokens")
    save_random_policy(world / "sft", tokenizer, preset)
    save_random_reward(world / "reward", tokenizer, preset)


def arguments(stage: str, world: Path, options: argparse.Namespace) -> list[str]:
    shared = ["--precision", "float32", "--no-tensorboard", "--log-every", "1", "--checkpoint-seconds", "1e9"]
    shared += ["--parallel", options.parallel]
    if stage == "pretrain":
        tokens = options.batch_tokens * options.steps
        own = ["--data", world / "tokens", "--model", options.model, "--batch-tokens", options.batch_tokens]
        return [*map(str, own), "--tokens", str(tokens), *shared]
    episodes = options.episodes * max(3, options.steps // 4)
    own = [
        "--model",
        world / "sft",
        "--reward-model",
        world / "reward",
        "--prompts",
        world / "data" / "prompts-train.jsonl",
    ]
    own += ["--batch-size", options.episodes, "--episodes", episodes, "--max-new-tokens", 48, "--ppo-epochs", 2]
    return [*map(str, own), "--missing-eos-score", "None", "--allow-chance-reward-model", *shared]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def rates(stage: str, size: int, world: Path, options: argparse.Namespace) -> list[float]:
    """Tokens a second at each step but the first of one run."""
    out = world / "out"
    shutil.rmtree(out, ignore_errors=True)
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(size)]
    start += ["--master-port", str(free_port()), "-m", "wukong", stage, "--out", str(out)]
    cores = sorted(os.sched_getaffinity(0))[:size]
    if len(cores) < size:
        sys.exit(f"{size} processes need as many cores; there are {len(cores)}")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pin = ["taskset", "-c", ",".join(map(str, cores))]
    done = subprocess.run(
        [*pin, *start, *arguments(stage, world, options)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["tokens_per_second"] for line in lines][1:]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--stages", nargs="+", default=["pretrain", "ppo"], choices=["pretrain", "ppo"])
    parser.add_argument("--parallel", default="ddp", choices=["ddp", "fsdp"])
    parser.add_argument("--model", default="nano", help="a preset")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="of a pretraining step")
    parser.add_argument("--episodes", type=int, default=32, help="of a PPO iteration")
    parser.add_argument("--steps", type=int, default=12, help="pretraining steps a run; a fourth of it PPO iterations")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the table there too")
    options = parser.parse_args()
    found: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        prepare(Path(directory), options.model)
        for _ in range(options.rounds):
            for stage in options.stages:
                for size in options.processes:
                    found.setdefault((stage, size), []).extend(rates(stage, size, Path(directory), options))
    rows = []
    for (stage, size), values in found.items():
        middle, alone = (statistics.median(found[stage, n]) for n in (size, options.processes[0]))
        rows.append([stage, size, *(f"{n:,.0f}" for n in (middle, min(values), max(values))), f"{middle / alone:.2f}"])
    columns = ["stage", "processes", "tokens a second", "min", "max", "times one process"]
    heading = (
        f"{machine()}, {options.model}, float32, {options.parallel}; {time.strftime('%Y-%m-%d')}; load of the machine "
        f"{os.getloadavg()[1]:.1f}"
    )
    publish(f"`{this_command()}`\n\n{heading}\n\n{markdown_table(columns, rows)}", options.out)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
