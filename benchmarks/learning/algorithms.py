"""Trains every algorithm on a finished run, with equal numbers of sampled responses, and writes one table.

    python benchmarks/learning/algorithms.py runs/kitchen --seeds 0 1 2 --out docs/results/algorithms.md

From the run directory come the SFT model, the reward model, prompts, and from the recipe's ppo and evaluate steps the
sampling, the price of KL and the judge. Every policy learns from as many sampled responses as PPO does; DPO's are
sampled from the SFT model, four or more a prompt, and ranked by the same reward model. The best of 16 is the SFT
model's. What is made lies in RUN/algorithms/seed-N and is not made twice; an interrupted one goes on.

Options of an algorithm can be changed: --set rloo.lr=2e-4 grpo.scale=none
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.command_line import new_parser, publish, run_argument, this_command
from shared.figures import panels
from shared.finished_run import recipe_steps, run_stage
from shared.machine import machine
from shared.table import markdown_table

from wukong.data.prompts import read_prompts

ONLINE = ("ppo", "reinforce", "rloo", "grpo")
GROUPS = {"rloo": 4, "grpo": 8}
"""Responses a prompt."""
RESPONSES_PER_PROMPT = 4
"""At least, of those that DPO learns from: more where the prompts are too few for the number of responses."""
BEST_OF = 16
SHARED = (
    "model", "reward_model", "prompts", "first_words", "holdout", "episodes", "batch_size", "minibatch_size",
    "max_new_tokens", "temperature", "kl_coef", "missing_eos_score", "truncate_at", "truncate_after", "lr",
    "micro_batch_tokens", "precision", "device", "tensorboard", "max_kl",
)  # fmt: skip
"""Options that all online algorithms take over from the recipe's PPO."""


def changes(given: list[str]) -> dict[str, dict[str, Any]]:
    """STAGE.OPTION=VALUE -> stage -> options."""
    found: dict[str, dict[str, Any]] = {}
    for text in given:
        name, _, value = text.partition("=")
        stage, _, option = name.partition(".")
        found.setdefault(stage, {})[option] = yaml.safe_load(value)
    return found


def one_seed(
    steps: dict[str, dict[str, Any]], directory: Path, seed: int, given: dict[str, dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, float]]:
    """Trains all of one seed. Returns evaluation.json and the seconds of each algorithm."""
    ppo, judging = steps["ppo"], steps["evaluate"]
    shared = {name: ppo[name] for name in SHARED if name in ppo}
    seconds, policies = {}, {}
    for name in ONLINE:
        own = ppo if name == "ppo" else shared | {"samples_per_prompt": GROUPS.get(name, 1)}
        policies[name] = directory / name
        seconds[name] = run_stage(name, own | given.get(name, {}) | {"out": str(policies[name]), "seed": seed})
    # ------------------------------------------------------------------------------------------------------- dpo
    sampled = {name: ppo[name] for name in ("prompts", "holdout", "first_words", "max_new_tokens") if name in ppo}
    sampled |= {"models": [ppo["model"]], "temperatures": [ppo["temperature"]], "precision": ppo["precision"]}
    prompts = len(read_prompts(ppo["prompts"], first_words=ppo["first_words"]))
    each = max(RESPONSES_PER_PROMPT, math.ceil(ppo["episodes"] / prompts))
    sampled |= {"responses_per_prompt": each, "limit": ppo["episodes"] // each}
    responses, ranked = directory / "responses.jsonl", directory / "ranked.jsonl"
    seconds["dpo"] = run_stage("sample", sampled | {"out": str(responses), "seed": seed})
    labels = {"responses": str(responses), "judge": ppo["reward_model"], "out": str(ranked), "seed": seed}
    seconds["dpo"] += run_stage("label", labels)
    learnt = {name: ppo[name] for name in ("model", "temperature", "precision", "tensorboard", "micro_batch_tokens")}
    learnt |= {"data": [str(ranked)], "lr": ppo["lr"] / 2, "batch_size": 8, "epochs": 1, "valid_fraction": 0.05}
    policies["dpo"] = directory / "dpo"
    seconds["dpo"] += run_stage("dpo", learnt | given.get("dpo", {}) | {"out": str(policies["dpo"]), "seed": seed})
    # ------------------------------------------------------------------------------------------------ evaluation
    best = f"best-of-{BEST_OF}"
    models = [f"sft={ppo['model']}", *(f"{name}={path}" for name, path in policies.items()), f"{best}={ppo['model']}"]
    judged = {"models": models, "reference": "sft", "raw": [], "best_of": [f"{best}={BEST_OF}"], "text": None}
    judged |= {"best_of_reward": ppo["reward_model"], "out": str(directory / "evaluation"), "seed": seed}
    run_stage("evaluate", judging | judged)
    return json.loads((directory / "evaluation" / "evaluation.json").read_text()), seconds


def rows(evaluation: dict[str, Any], seconds: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Algorithm -> the numbers of its row."""
    found = {}
    for one in evaluation["comparisons"]:
        if one["b"] == "sft" and one["judge"] == evaluation["scorer"]:
            model = evaluation["models"][one["a"]]
            found[one["a"]] = {
                "win": one["win_rate"],
                "low": one["interval"][0],
                "high": one["interval"][1],
                "controlled": one["length_controlled_win_rate"],
                "reward": model["reward_mean"],
                "kl": model["kl"],
                "length": model["length_mean"],
                "distinct": model["distinct_2"],
                "minutes": seconds[one["a"]] / 60 if one["a"] in seconds else None,
            }
    return found


def cell(values: list[float | None], digits: int) -> str:
    """The mean over seeds, with the standard deviation where there are several; "–" for what was not measured."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "–"
    mean = f"{statistics.mean(numbers):.{digits}f}"
    return f"{mean} ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else mean


def table(seeds: list[int], results: list[dict[str, dict[str, Any]]], command: str, prompts: int, judge: str) -> str:
    heading = (
        f"`{command}`\n\n{machine()}; {time.strftime('%Y-%m-%d')}. Win rate over SFT by {judge} on {prompts} unseen "
        "prompts, in %, with the 95 % interval of each seed; the other columns are mean ± standard deviation over the "
        "seeds. Best-of-n's KL is log n - (n-1)/n."
    )
    columns = ["algorithm", *(f"seed {seed}" for seed in seeds), "mean", "at equal length", "reward", "KL (nats)"]
    columns += ["length (tokens)", "distinct-2", "minutes"]
    table_rows = []
    for name in results[0]:
        of = [result[name] for result in results]
        each = [f"{100 * o['win']:.1f} [{100 * o['low']:.1f}, {100 * o['high']:.1f}]" for o in of]
        cells = [*each, cell([100 * o["win"] for o in of], 1), cell([100 * o["controlled"] for o in of], 1)]
        measured = (("reward", 2), ("kl", 2), ("length", 1), ("distinct", 3), ("minutes", 1))
        cells += [cell([o[key] for o in of], digits) for key, digits in measured]
        table_rows.append([name, *cells])
    return f"{heading}\n\n{markdown_table(columns, table_rows)}\n"


def draw(seeds: list[int], results: list[dict[str, dict[str, Any]]], judge: str, file: Path) -> None:
    """Each algorithm's win rate over SFT: a dot and its interval for every seed."""
    names = list(results[0])
    with panels(file, 1, (7, 0.6 * len(names) + 1)) as (axis,):
        for place, seed in enumerate(seeds):
            y = [row + 0.2 * (place - (len(seeds) - 1) / 2) for row in range(len(names))]
            of = [results[place][name] for name in names]
            wins = [100 * one["win"] for one in of]
            spread = [[100 * (one["win"] - one["low"]) for one in of], [100 * (one["high"] - one["win"]) for one in of]]
            axis.errorbar(wins, y, xerr=spread, fmt="o", ms=4, lw=1.2, label=f"seed {seed}")
        axis.axvline(50, color="grey", lw=0.8, ls=":")
        axis.set(yticks=range(len(names)), yticklabels=names, xlabel=f"wins over SFT by {judge}, %")
        axis.invert_yaxis()
        axis.legend(frameon=False)


def main() -> None:
    parser = new_parser(__doc__)
    run_argument(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="STAGE.OPTION=VALUE")
    parser.add_argument("--out", type=Path, help="write the table there too, and the figure beside it (.svg)")
    arguments = parser.parse_args()
    steps = recipe_steps(arguments.run)
    results, evaluation = [], {}
    for seed in arguments.seeds:
        directory = arguments.run / "algorithms" / f"seed-{seed}"
        evaluation, seconds = one_seed(steps, directory, seed, changes(arguments.set))
        results.append(rows(evaluation, seconds))
    text = table(arguments.seeds, results, this_command(), evaluation["n_prompts"], evaluation["scorer"])
    publish(text, arguments.out)
    if arguments.out:
        draw(arguments.seeds, results, evaluation["scorer"], arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
