"""Over-optimisation made on purpose: a reward model from few labels, and policies that follow it without restraint.

    python benchmarks/learning/overoptimisation.py runs/kitchen --seeds 0 1 2 --out docs/frontier

From a finished run come the SFT model, its rankings, the prompts, and the options of its reward and ppo steps. Of the
rankings only --rankings prompts are taken for the reward model that the policies learn from, and as many others for a
second one, which picks checkpoints. PPO then runs with each price of KL in --kl-coefs, 0 among them. `wukong frontier`
shows what came of it: with 0, gold (the recipe's judge) falls while the proxy goes on rising. What is made lies in
RUN/overoptimisation and is not made twice; an interrupted command goes on. --out gets the numbers (.json) and the
figure (.svg).
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.command_line import new_parser, run_argument
from shared.figures import panels
from shared.finished_run import recipe_steps, run_stage

from wukong.data.comparisons import read_comparisons
from wukong.errors import RunError
from wukong.records import write_records
from wukong.seeds import permutation
from wukong.studies import frontier
from wukong.studies.frontier import FrontierOptions

COLOURS = ("#b4421f", "#2b6cb0", "#2f855a", "#6b46c1", "#975a16")


def reward_models(steps: dict[str, dict[str, Any]], root: Path, rankings: int) -> tuple[str, str]:
    """(the proxy, the one that picks), each from so many rankings that the other has not seen."""
    own = steps["reward"]
    records = read_comparisons(own["data"])
    if len(records) < 2 * rankings:
        raise SystemExit(f"{own['data'][0]}: {len(records)} records are too few for two sets of {rankings}")
    order = permutation(len(records), "overoptimisation")
    found = []
    for place, name in enumerate(("proxy", "other")):
        data = root / f"{name}.jsonl"
        if not data.exists():
            write_records(data, [records[i] for i in order[place * rankings : (place + 1) * rankings]])
        changes = {"data": [str(data)], "out": str(root / name), "valid_fraction": 0.0, "tensorboard": False}
        run_stage("reward", own | changes)
        found.append(str(root / name))
    return found[0], found[1]


def draw(report: dict[str, Any], file: Path) -> None:
    """Gold and proxy gained over sqrt(KL): thin lines are runs, thick ones the fitted forms."""
    with panels(file, 2, (10, 4)) as axes:
        for axis, of in zip(axes, ("gold", "proxy"), strict=True):
            for colour, curve in zip(COLOURS, report["curves"], strict=False):
                for place, one in enumerate(curve["runs"]):
                    x = [0.0, *(math.sqrt(max(0, p["kl"])) for p in one["points"])]
                    y = [0.0, *(p[f"{of}_gain"] for p in one["points"])]
                    label = None if place else curve["name"]
                    axis.plot(x, y, marker="o", ms=3, lw=0.7, color=colour, alpha=0.6, label=label)
                if of == "gold" and curve["form"]:
                    axis.plot(*zip(*curve["form"], strict=True), color=colour, lw=2.2)
            axis.axhline(0, color="grey", lw=0.6)
            title = f"gold: {report['gold']}" if of == "gold" else "proxy: the reward model"
            axis.set(xlabel="√KL to the SFT model (√nats)", ylabel=f"gain in {of}", title=title)
        axes[0].legend(frameon=False)


def main() -> None:
    parser = new_parser(__doc__)
    run_argument(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kl-coefs", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--rankings", type=int, default=32, help="prompts that the reward model learns from")
    parser.add_argument("--episodes", type=int, help="the recipe's when absent")
    parser.add_argument("--save-every", type=int, default=4, help="iterations between two measured policies")
    parser.add_argument("--best-of", type=int, default=16)
    parser.add_argument("--limit", type=int, help="measure on the first so many unseen prompts")
    parser.add_argument("--lr", type=float, help="the recipe's when absent")
    parser.add_argument("--out", type=Path, help="OUT.json and OUT.svg; RUN/overoptimisation/frontier when absent")
    arguments = parser.parse_args()
    steps = recipe_steps(arguments.run)
    ppo, judging = steps["ppo"], steps["evaluate"]
    root = arguments.run / "overoptimisation"
    root.mkdir(exist_ok=True)
    proxy, other = reward_models(steps, root, arguments.rankings)
    # The reward model is to be bad, and the policy to go as far as it likes: neither may stop the run.
    changes = {"reward_model": proxy, "insist": True, "max_kl": 1e6, "kl_target": None, "tensorboard": False}
    changes |= {"save_every": arguments.save_every, "episodes": arguments.episodes or ppo["episodes"]}
    changes |= {"lr": arguments.lr or ppo["lr"]}
    runs = []
    for kl_coef in arguments.kl_coefs:
        for seed in arguments.seeds:
            out = root / f"ppo-{kl_coef:g}-{changes['episodes']}-{changes['lr']:g}-{seed}"
            try:
                run_stage("ppo", ppo | changes | {"kl_coef": kl_coef, "seed": seed, "out": str(out)})
            except RunError as error:  # a collapse: what was kept before it is shown
                print(f"{out}: {error}", file=sys.stderr)
            runs.append(f"PPO, kl-coef {kl_coef:g}={out}")
    shared = set(FrontierOptions.model_fields) - {"out", "seed", "raw", "limit"}
    options = {name: value for name, value in judging.items() if name in shared}
    options |= {"runs": runs, "reference": ppo["model"], "proxy": proxy, "gold": judging["judge"], "pick_by": other}
    options |= {"temperature": ppo["temperature"]}  # the KL is that of the distributions that were trained
    options |= {"best_of": arguments.best_of, "limit": arguments.limit, "out": root / "frontier"}
    frontier.run(FrontierOptions.model_validate(options))
    report = json.loads((root / "frontier" / "frontier.json").read_text())
    out = arguments.out or root / "frontier" / "frontier"
    if arguments.out:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "frontier" / "frontier.json", f"{out}.json")
    draw(report, Path(f"{out}.svg"))


if __name__ == "__main__":
    main()
