"""Does GRPO against a verifier raise the share of right answers? Runs the recipe `verifiable` for several seeds.

    python benchmarks/learning/verifiable.py --seeds 0 1 2 --out docs/results/verifiable.md

Both models answer the recipe's test questions, whose numbers no other question has, as they were trained (temperature
1) and greedily. The share of right answers and the difference are means over questions; their 95 % intervals are
clustered by sum: two questions with the same numbers in other words are one. Runs lie in runs/verifiable-seed<N>; a
finished one is only read, an interrupted one goes on.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import run_recipe
from shared.command_line import new_parser, publish, this_command
from shared.finished_run import recipe_steps, run_stage
from shared.machine import machine
from shared.table import markdown_table

from wukong.stats import mean_interval, rate_interval

TARGET = 0.2
"""By which the share of right answers should rise."""
GREEDY = "evaluation-greedy"
Scores = dict[str, dict[str, list[float]]]
"""Model -> sum -> 1 or 0 of each question about it."""


def evaluate_greedily(run: Path, seed: int) -> None:
    """The recipe's evaluation again, at temperature 0."""
    options = {**recipe_steps(run)["evaluate"], "temperature": 0, "out": str(run / GREEDY), "seed": seed}
    options.pop("reference", None)  # greedy answers have no KL
    run_stage("evaluate", options)


def sum_of(line: dict) -> str:
    """The numbers that a question is about, whatever its words and, in a scaled recipe, its food."""
    text = line["messages"][-1]["content"]
    numbers = " ".join(sorted(re.findall(r"\d+", text)))
    return f"{line['source']} {numbers} {line['answer'] if line['source'].endswith('scaling') else text}"


def scores(evaluation: Path, kind: str = "") -> Scores:
    found: Scores = defaultdict(lambda: defaultdict(list))
    for line in map(json.loads, (evaluation / "answers.jsonl").read_text(encoding="utf-8").splitlines()):
        if line["source"].endswith(kind):
            for name, answer in line["answers"].items():
                found[name][sum_of(line)].append(answer["score"])
    return found


def joined(every: list[Scores]) -> Scores:
    """All seeds together; the same sum in several seeds is one cluster."""
    found: Scores = defaultdict(lambda: defaultdict(list))
    for one in every:
        for name, sums in one.items():
            for key, values in sums.items():
                found[name][key] += values
    return found


def by_sum(values: dict[str, list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """The total and the number of each sum's values."""
    totals, counts = (np.array([of(one) for one in values.values()], dtype=float) for of in (sum, len))
    return totals, counts


def percent(totals: np.ndarray, counts: np.ndarray, interval: list[float] | None) -> str:
    low, high = interval or (float("nan"), float("nan"))
    return f"{100 * totals.sum() / counts.sum():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def share(values: dict[str, list[float]]) -> str:
    totals, counts = by_sum(values)
    return percent(totals, counts, rate_interval(totals, counts))


def gain(found: Scores) -> tuple[str, float]:
    """The difference in points, and the lower end of its interval."""
    differences = {
        key: [b - a for a, b in zip(found["sft"][key], found["policy"][key], strict=True)] for key in found["sft"]
    }
    totals, counts = by_sum(differences)
    interval = mean_interval(totals, counts)
    return percent(totals, counts, interval), (interval or [float("nan")])[0]


def table(runs: list[Path]) -> str:
    rows = []
    for kind, title in (("", "all"), ("scaling", "scaled recipes"), ("conversion", "conversions")):
        for evaluation, how in (("evaluation", "as trained"), (GREEDY, "greedy")):
            of_seeds = [scores(run / evaluation, kind) for run in runs]
            for name, found in [*zip([run.name[-1] for run in runs], of_seeds, strict=True), ("all", joined(of_seeds))]:
                if not kind or name == "all":
                    cells = [share(found["sft"]), share(found["policy"]), gain(found)[0]]
                    rows.append([title, how, name, *cells])
    return markdown_table(
        ["questions", "sampling", "seed", "SFT, right in %", "GRPO, right in %", "gain in points"], rows
    )


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="write the table there too")
    arguments = parser.parse_args()
    runs = [Path("runs") / f"verifiable-seed{seed}" for seed in arguments.seeds]
    for seed, run in zip(arguments.seeds, runs, strict=True):
        run_recipe(Path("verifiable"), run, seed)
        evaluate_greedily(run, seed)
    lows = [gain(scores(run / "evaluation"))[1] for run in runs]
    reached = "reached" if min(lows) >= TARGET else "not reached"
    verdict = f"Aim: a gain of at least {100 * TARGET:.0f} points in every seed (lower end of its interval): {reached}."
    head = f"`{this_command()}`\n\n{machine()}; {time.strftime('%Y-%m-%d')}"
    publish(f"{head}\n\n{table(runs)}\n\n{verdict}\n", arguments.out)


if __name__ == "__main__":
    main()
