"""Runs a recipe for several seeds and writes what it reached as a table, with machine and versions.

    python benchmarks/learning/pipeline.py kitchen --seeds 0 1 2 --out runs/kitchen-table.md

Run directories lie in runs/<recipe>-seed<N>; a finished one is only read, an interrupted one goes on.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.command_line import new_parser, publish, this_command
from shared.machine import machine
from shared.table import markdown_table

from wukong.stats import rate_interval


def run_recipe(recipe: Path, run_dir: Path, seed: int) -> float:
    """Runs the recipe as a person would; returns the wall seconds of this call."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "wukong", "run", str(recipe), "--seed", str(seed), "--run-dir", str(run_dir)]
    subprocess.run(command, check=True)
    return time.monotonic() - begin


def provenance(run_dir: Path) -> dict[str, dict]:
    """Every finished step's provenance, by its place in the run directory."""
    files = [*run_dir.glob("*/provenance.json"), *run_dir.glob("*.provenance.json")]
    return {str(f.relative_to(run_dir)): json.loads(f.read_text()) for f in files}


def figures(run_dir: Path) -> dict[str, float]:
    """The numbers worth a column, as far as the recipe made them."""
    found: dict[str, float] = {}
    records = provenance(run_dir)
    found["minutes"] = sum(r["seconds"] for r in records.values()) / 60
    for place, record in sorted(records.items()):
        if record["stage"] == "reward" and "valid_accuracy" in record["results"]:
            name = Path(place).parent.name
            found[f"{name} accuracy"] = record["results"]["valid_accuracy"]
            found[f"{name} accuracy low"], found[f"{name} accuracy high"] = record["results"]["valid_accuracy_interval"]
    path = run_dir / "evaluation" / "evaluation.json"
    if path.exists():
        evaluation = json.loads(path.read_text())
        for c in evaluation["comparisons"]:
            if c["a"] == "policy" and c["b"] == "sft":
                found[f"win rate over sft ({c['judge']})"] = c["win_rate"]
                found[f"win rate over sft ({c['judge']}) low"] = c["interval"][0]
                found[f"win rate over sft ({c['judge']}) high"] = c["interval"][1]
        sft, policy = evaluation["models"]["sft"], evaluation["models"]["policy"]
        for key in ("score_mean", "score_std", "reward_mean", "distinct_2", "length_mean"):
            for name, model in (("sft", sft), ("policy", policy)):
                if model[key] is not None:
                    found[f"{key} {name}"] = model[key]
        found["KL (nats)"] = policy["kl"]
        found["termination rate"] = policy["termination_rate"]
        found["distinct-2 policy/sft"] = policy["distinct_2"] / sft["distinct_2"]
        for check, rate in policy["checks"].items():
            found[f"check: {check}"] = rate
    return found


def pooled(runs: list[Path]) -> str:
    """The rubric's comparison of policy and SFT over all seeds; the interval clusters answers to one prompt."""
    outcomes: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for line in (run / "evaluation" / "answers.jsonl").read_text(encoding="utf-8").splitlines():
            found = json.loads(line)
            policy, sft = (found["answers"][name]["score"] for name in ("policy", "sft"))
            outcomes[json.dumps(found["messages"])].append(0.5 + 0.5 * ((policy > sft) - (policy < sft)))
    sums = np.array([sum(values) for values in outcomes.values()])
    counts = np.array([len(values) for values in outcomes.values()])
    low, high = rate_interval(sums, counts)
    rate, answers = sums.sum() / counts.sum(), int(counts.sum())
    return (
        f"All seeds: policy beats SFT by the rubric in {rate:.1%} [{low:.1%}, {high:.1%}] of {answers:,} answers to "
        f"{len(counts):,} prompts; ties count half."
    )


def table(seeds: list[int], rows: list[dict[str, float]], summary: str) -> str:
    """A Markdown table: one row a figure, one column a seed, then mean and standard deviation."""
    lines = []
    for name in rows[0]:
        values = [row[name] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        lines.append([name, *(f"{v:.3f}" for v in (*values, statistics.mean(values), spread))])
    columns = ["figure", *(f"seed {seed}" for seed in seeds), "mean", "sd"]
    head = f"`{this_command()}`\n\n{machine()}; {time.strftime('%Y-%m-%d')}"
    return f"{head}\n\n{summary}\n\n{markdown_table(columns, lines)}\n"


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("recipe", type=Path, nargs="?", default=Path("kitchen"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="write the table there too")
    arguments = parser.parse_args()
    runs = [Path("runs") / f"{arguments.recipe.stem}-seed{seed}" for seed in arguments.seeds]
    for seed, run_dir in zip(arguments.seeds, runs, strict=True):
        run_recipe(arguments.recipe, run_dir, seed)
    text = table(arguments.seeds, [figures(run_dir) for run_dir in runs], pooled(runs))
    publish(text, arguments.out)


if __name__ == "__main__":
    main()
