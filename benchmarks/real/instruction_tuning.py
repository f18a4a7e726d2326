"""Does `wukong sft` with adapters teach SmolLM2 the style of an instruction set? Held-out loss before and after.

    python benchmarks/real/instruction_tuning.py MODEL DATA --runs runs/tuning --page docs/results/smollm2.md

The data are the 880 instructions of LLMs-from-scratch (Apache-2.0), of which a part by prompt is held out. The loss is
the mean over the tokens of the held-out answers, the closing token included; 95 % intervals resample prompts. Peak
memory is that of a process that trains with one seed.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.finished_run import run_stage
from shared.table import markdown_table
from smollm2 import part_parser, publish_section

import wukong
from wukong.data.instructions import read_instructions
from wukong.data.split import group_of, split_by_prompt
from wukong.files import write_json
from wukong.records import Conversation, write_records
from wukong.stats import mean_interval

DATA = "instructions/llms-from-scratch/instruction-data.json"
SETTINGS = {
    "lora_rank": 8, "epochs": 1.0, "batch_size": 8, "lr": 5e-4, "valid_fraction": 0.0, "precision": "bfloat16",
    "tensorboard": False,
}  # fmt: skip


def losses(model: Path, records: list[Conversation]) -> list[tuple[float, int]]:
    """(summed loss, tokens) of each answer."""
    pairs = [(one.messages[:-1], one.messages[-1].content) for one in records]
    found = wukong.load_policy(model, precision="bfloat16").logprobs(pairs)
    return [(-float(logprobs.sum()), len(logprobs)) for logprobs in found]


def one_seed(model: Path, train: Path, held_out: list[Conversation], seed: int, runs: Path) -> dict[str, Any]:
    """Losses of the held-out answers, seconds and peak memory; trained and measured once."""
    out, known = runs / f"sft-{seed}", runs / f"losses-{seed}.json"
    options = SETTINGS | {"model": str(model), "data": [str(train)], "out": str(out), "seed": seed}
    seconds = run_stage("sft", options)
    if not known.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kB to GiB
        write_json(known, {"losses": losses(out, held_out), "seconds": seconds, "peak": peak})
    return json.loads(known.read_text())


def mean(sums: np.ndarray, counts: np.ndarray, prompts: list[str], sign: str = "") -> str:
    """The mean per token with its interval, clustered by prompt."""
    _, member = np.unique(np.asarray(prompts), return_inverse=True)
    low, high = mean_interval(np.bincount(member, weights=sums), np.bincount(member, weights=counts)) or (0, 0)
    return f"{sums.sum() / counts.sum():{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def main() -> None:
    parser = part_parser(__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/tuning"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--examples", type=int, help="train on the first so many; all when absent")
    parser.add_argument("--held-out", type=float, default=0.15)
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    learnt, held_out = split_by_prompt(read_instructions([str(arguments.data / DATA)]), arguments.held_out)
    learnt = learnt[: arguments.examples]
    write_records(train := arguments.runs / "train.jsonl", learnt)
    if len(arguments.seeds) > 1:  # a process each, for a peak of its own
        for seed in arguments.seeds:
            own = [*sys.argv, "--seeds", str(seed)]
            if "--page" in own:
                del own[(at := own.index("--page")) : at + 2]
            subprocess.run([sys.executable, *own], check=True)
    if not (known := arguments.runs / "before.json").exists():
        write_json(known, losses(arguments.model, held_out))
    before, counts = (np.array(column) for column in zip(*json.loads(known.read_text()), strict=True))
    prompts = [group_of(one) for one in held_out]
    rows = []
    for seed in arguments.seeds:
        found = one_seed(arguments.model, train, held_out, seed, arguments.runs)
        after = np.array([loss for loss, _ in found["losses"]])
        loss, change = mean(after, counts, prompts), mean(after - before, counts, prompts, "+")
        rows.append(
            [seed, mean(before, counts, prompts), loss, change, f"{found['seconds']:.0f}", f"{found['peak']:.1f}"]
        )
    columns = ["seed", "loss before", "loss after", "change (nats per token)", "training, s", "peak, GiB"]
    settings = (
        f"LoRA of rank {SETTINGS['lora_rank']} on all linear layers, {len(learnt)} demonstrations, one epoch in "
        f"batches of {SETTINGS['batch_size']} at {SETTINGS['lr']:g}; {len(held_out)} held-out answers of "
        f"{len(set(prompts))} prompts, {counts.sum():,.0f} tokens; bfloat16"
    )
    body = f"{settings}:\n\n{markdown_table(columns, rows)}"
    publish_section("Instruction tuning", body, arguments)


if __name__ == "__main__":
    main()
