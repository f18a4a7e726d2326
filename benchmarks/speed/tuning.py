"""What full training, adapters and frozen layers take: memory and time of PPO steps, beside the estimate of `plan`.

    python benchmarks/speed/tuning.py                                  # GPT-2 124M, random weights
    python benchmarks/speed/tuning.py --model test --episodes 8 --response 8 --layers 1
    python benchmarks/speed/tuning.py --large                          # estimates for a Llama of 3.2 billion, no run

Each way is `wukong ppo` in a process by itself: policy, reference, separate value model and reward model. The reward
model is what `wukong reward` with the same options makes of the SFT model: an adapter of it, or a copy with the same
lower layers. Memory is the growth over the idle program (on a GPU the most that PyTorch allocated); time is the median
of the steps after the first. Run it on a machine without other load.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from shared.command_line import new_parser, publish, this_command
from shared.machine import machine
from shared.table import markdown_table

from wukong.model.config import LlamaConfig
from wukong.model.gpt2 import GPT2, PRESETS, GPT2Config
from wukong.model.heads import ScalarModel
from wukong.model.hub import load_trunk, save_policy, save_reward
from wukong.records import Prompt, as_messages, write_records
from wukong.stages.online.algorithm import workload
from wukong.stages.online.ppo import PPOOptions
from wukong.tokenizer import Tokenizer
from wukong.training.compute import compute_for
from wukong.training.memory import Decoding, Workload, estimate, gigabytes, n_parameters
from wukong.training.metrics import read_metrics
from wukong.training.tuning import TuningOptions, trained_part, tuned

VOCABULARIES = {"gpt2": 50257}
STEPS, WORDS = 4, 16
PHASES = ("rollout", "scoring", "update")


def ways(layers: int, rank: int) -> dict[str, dict[str, int]]:
    return {
        "full": {},
        f"--lora-rank {rank}": {"lora_rank": rank},
        f"--freeze-layers {layers}": {"freeze_layers": layers},
        "both": {"lora_rank": rank, "freeze_layers": layers},
    }


def options_of(directory: Path, arguments: argparse.Namespace, number: int, tuning: dict[str, int]) -> PPOOptions:
    return PPOOptions(
        out=directory / f"out-{number}", model=str(directory / "sft"), reward_model=str(directory / f"reward-{number}"),
        prompts=[str(directory / "prompts.jsonl")], batch_size=arguments.episodes, precision=arguments.precision,
        episodes=STEPS * arguments.episodes, max_new_tokens=arguments.response, ppo_epochs=arguments.epochs,
        missing_eos_score=None, tensorboard=False, checkpoint_seconds=1e9, device=arguments.device, max_kl=1e9,
        allow_chance_reward_model=True, micro_batch_tokens=arguments.micro_batch_tokens, **tuning,
    )  # fmt: skip


def write_world(directory: Path, arguments: argparse.Namespace) -> GPT2Config:
    """sft/ and prompts."""
    draw, vocabulary = random.Random(0), VOCABULARIES.get(arguments.model, 1000)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(vocabulary // 2)]
    tokenizer = Tokenizer.train([" ".join(words)] * 2, vocabulary, "plain")  # a token for each row of the embedding
    config = GPT2Config(vocab_size=tokenizer.vocab_size, **PRESETS[arguments.model])
    torch.manual_seed(0)
    save_policy(directory / "sft", GPT2(config), tokenizer)
    asked = [Prompt(messages=as_messages(" ".join(draw.choices(words, k=WORDS)))) for _ in range(arguments.episodes)]
    write_records(directory / "prompts.jsonl", asked)
    return config


def write_reward(options: PPOOptions) -> None:
    trunk, tokenizer = load_trunk(options.model)
    model = ScalarModel(trunk)
    if options.lora_rank:
        tuned(model, options, 0)
    save_reward(str(options.reward_model), model, tokenizer, base="../sft")


def measure(command: list[str], device: str) -> None:
    """In a process by itself: runs a command and prints the memory it took."""
    from wukong.cli import main

    x = torch.ones(64, 64, requires_grad=True)
    (x @ x).sum().backward()  # reads PyTorch's kernels and starts its threads
    idle = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    code = main(command)
    if device == "cuda":
        grown = torch.cuda.max_memory_allocated()
    else:
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - idle  # of Linux, in KiB
    print(json.dumps({"bytes": grown}))
    sys.stdout.flush()
    os._exit(code)


def run(options: PPOOptions) -> int:
    """Runs PPO; returns the bytes it took."""
    changed = options.model_dump(exclude_defaults=True, mode="json")
    words = []
    for name, value in changed.items():
        flag = f"--{name.replace('_', '-')}"
        values = value if isinstance(value, list) else [value]
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{name.replace('_', '-')}")
        else:
            words += [flag, *(str(one) for one in values)]
    command = [sys.executable, __file__, "--measured", options.device, "ppo", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    found = re.search(r'\{"bytes": (\d+)\}', done.stdout)
    if done.returncode or not found:
        raise SystemExit(f"wukong ppo failed: {' '.join(command)}")
    return int(found[1])


def row_of(name: str, options: PPOOptions, config: GPT2Config, baseline: dict[str, float]) -> list[str]:
    write_reward(options)
    held = run(options)
    compute = compute_for(options.precision, options.device)
    load = replace(workload(options, config, WORDS), trained=(config, config))  # policy and value model
    said = estimate(load, compute.device, compute.dtype, options.micro_batch_tokens)
    steps = read_metrics(options.out)[1:]
    seconds = {phase: statistics.median(step[f"{phase}_seconds"] for step in steps) for phase in PHASES}
    total = sum(seconds.values())
    baseline.setdefault("bytes", held)
    baseline.setdefault("seconds", total)
    return [
        name, gigabytes(held), f"{held / baseline['bytes']:.0%}", gigabytes(said.total),
        *(f"{value:.3g} s" for value in seconds.values()), f"{total:.3g} s", f"{total / baseline['seconds']:.0%}",
    ]  # fmt: skip


LARGE = LlamaConfig(
    vocab_size=128256, n_positions=2048, n_embd=3072, n_layer=28, n_head=24, n_kv_head=8, head_width=128, n_inner=8192
)
"""The sizes of Llama 3.2 3B."""
ROWS, PROMPT, RESPONSE = 16, 128, 128
"""Sequences decoded together, and their tokens."""


def large(micro_batch: int) -> str:
    """The estimate for PPO with a large model on a GPU, in bfloat16 with gradient checkpointing."""
    length = PROMPT + RESPONSE
    decoding = Decoding(LARGE, ROWS, length)
    work = Workload(ROWS * length, RESPONSE / length, decoding=decoding, checkpointing=True)
    lora, freeze = (trained_part(LARGE, one) for one in (TuningOptions(lora_rank=16), TuningOptions(freeze_layers=24)))
    both, policy = (LARGE, LARGE), (LARGE,)
    workloads = {
        "PPO, full": replace(work, trained=both, frozen=both),
        "PPO, 24 of 28 layers frozen": replace(work, trained=both, part=freeze, frozen_copies=2),
        "PPO, LoRA, a reward model of other weights": replace(work, trained=both, part=lora, frozen_copies=2),
        "PPO, LoRA, the reward model an adapter": replace(
            work, trained=both, part=lora, frozen_copies=2, one_base=True
        ),
        "GRPO, LoRA, a verifier as reward": replace(work, trained=policy, part=lora, frozen_copies=1),
    }
    rows = []
    for name, one in workloads.items():
        said = estimate(one, torch.device("cuda"), torch.bfloat16, micro_batch)
        parts = (said.weights, said.gradients + said.moments, said.frozen, said.decoding, said.step, said.total)
        rows.append([name, *map(gigabytes, parts), "yes" if said.total < 0.9 * 24e9 else "no"])
    columns = ["", "weights", "gradients, moments", "frozen", "decoding", "micro-batch", "peak", "fits 24 GB"]
    described = (
        f"{n_parameters(LARGE) / 1e9:.2f} billion parameters, bfloat16, gradient checkpointing, {ROWS} responses"
    )
    return f"{described} of {RESPONSE} tokens decoded together\n\n{markdown_table(columns, rows)}"


COLUMNS = ["trained", "memory", "of full", "estimate", *PHASES, "step", "of full"]


def main() -> None:
    if sys.argv[1:2] == ["--measured"]:
        measure(sys.argv[3:], sys.argv[2])
    parser = new_parser(__doc__)
    parser.add_argument("--model", default="gpt2", choices=sorted(PRESETS))
    parser.add_argument("--layers", type=int, default=8, help="frozen layers")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--episodes", type=int, default=32, help="in a step")
    parser.add_argument("--response", type=int, default=48, help="tokens")
    parser.add_argument("--epochs", type=int, default=4, help="of PPO")
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--large", action="store_true", help="only the estimates for a large model")
    parser.add_argument("--out", type=Path, help="a file for the table")
    arguments = parser.parse_args()
    if arguments.large:
        publish(large(arguments.micro_batch_tokens), arguments.out)
        return
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        config, rows, baseline = write_world(directory, arguments), [], dict[str, float]()
        for number, (name, tuning) in enumerate(ways(arguments.layers, arguments.rank).items()):
            rows.append(row_of(name, options_of(directory, arguments, number, tuning), config, baseline))
            print(rows[-1], file=sys.stderr, flush=True)
    publish(f"`{this_command()}`: {machine()}\n\n{markdown_table(COLUMNS, rows)}", arguments.out)


if __name__ == "__main__":
    main()
