"""How much faster several processes are than one: `pretrain` and `ppo` as torchrun runs them, on cores of their own.

    python benchmarks/scaling.py --processes 1 2 --out runs/scaling.md

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
from road import machine

from wukong.kitchen.stage import KitchenOptions
from wukong.kitchen.stage import run as write_kitchen
from wukong.model.gpt2 import GPT2, PRESETS, GPT2Config
from wukong.model.heads import ScalarModel
from wukong.model.hub import save_policy, save_reward
from wukong.stages.tokenize import TokenizeOptions
from wukong.stages.tokenize import run as tokenize
from wukong.tokenizer import Tokenizer


def prepare(world: Path, preset: str) -> None:
    """Corpus, tokens, prompts, and an untrained policy and reward model: speed does not ask what they know."""
    write_kitchen(KitchenOptions(out=world / "data"))
    tokenize(TokenizeOptions(data=[str(world / "data" / "corpus.jsonl")], out=world / "tokens", vocab_size=2048))
    tokenizer = Tokenizer.load(world / "tokens")
    for name in ("sft", "reward"):
        (world / name).mkdir()
        trunk = GPT2(GPT2Config(vocab_size=tokenizer.vocab_size, **PRESETS[preset]))
        if name == "sft":
            save_policy(world / name, trunk, tokenizer)
        else:
            save_reward(world / name, ScalarModel(trunk), tokenizer)


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
    return [*map(str, own), "--missing-eos-score", "None", "--insist", *shared]


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    lines = [
        f"`python benchmarks/scaling.py {' '.join(sys.argv[1:])}`",
        "",
        f"{machine()}, {options.model}, float32, {options.parallel}; {time.strftime('%Y-%m-%d')}; load of the machine "
        f"{os.getloadavg()[1]:.1f}",
        "",
        "| stage | processes | tokens a second | min | max | times one process |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (stage, size), values in found.items():
        middle, alone = (statistics.median(found[stage, n]) for n in (size, options.processes[0]))
        lines.append(
            f"| {stage} | {size} | {middle:,.0f} | {min(values):,.0f} | {max(values):,.0f} | {middle / alone:.2f} |"
        )
    print("\n".join(lines))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
