"""PPO against TRL's: the same SFT model, reward model, prompts, sampling and number of episodes, several seeds.

    python benchmarks/learning/trl_ppo.py runs/kitchen --trl ~/trl-venv --seeds 0 1 2 --out docs/trl-ppo

TRL 1.12.0 is the last release with a PPO trainer. It runs in a separate environment (shared/requirements-trl.txt; made
at --trl when absent). Both trainers are run with both settings: "ours", those of the run's recipe, and "trl", the
defaults of its PPOConfig with the penalty and the stop token that its documentation recommends; "once" is ours, but for
a single pass over each batch, in minibatches of 8. Batch size and sampling are the recipe's in every case.

Every so many iterations each policy is kept, and `wukong evaluate` lets all of them answer unseen prompts: gold is the
win rate over SFT by the recipe's judge, proxy the mean score of the reward model that they learnt from. Seconds are
those of training, without keeping and evaluating. What is made lies in RUN/trl-ppo and is not made twice, so that the
command can be interrupted between two runs. --out gets the numbers (.json) and the figure (.svg).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.command_line import new_parser, run_argument, this_command
from shared.figures import panels
from shared.finished_run import recipe_steps, run_stage
from shared.peers import python_of_trl

TRAINERS, SETTINGS = ("wukong", "trl"), ("ours", "trl", "once")
TARGET = 0.75
"""The win rate to which the time is told."""

# TRL's names and ours for the options in which the settings differ. TRL's recommended ones: the defaults of PPOConfig
# 1.12.0; it has no gradient clipping at all.
NAMES = {"learning_rate": "lr", "num_ppo_epochs": "ppo_epochs", "kl_coef": "kl_coef", "adam_epsilon": "adam_eps"}
RECOMMENDED = {"learning_rate": 3e-6, "num_ppo_epochs": 4, "kl_coef": 0.05, "adam_epsilon": 1e-8}

ONCE = {"ppo_epochs": 1, "minibatch_size": 8}
"""In what "once" differs from the recipe."""


# ------------------------------------------------------------------------------------- TRL, in its own environment


def train_with_trl(job: dict[str, Any]) -> None:
    """Runs where there is no wukong. Keeps a policy every job["every"] iterations, and the seconds till then."""
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    out = Path(job["out"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    # TRL takes padding out of the loss. With the end token as padding nobody would learn to end, so padding is the
    # one byte that no UTF-8 text holds: the vocabulary stays as it is, and no model ever writes it.
    tokenizer.pad_token = "ÿ"
    load_policy, load_reward = AutoModelForCausalLM.from_pretrained, AutoModelForSequenceClassification.from_pretrained
    policy, reference = load_policy(job["model"]), load_policy(job["model"])
    policy.generation_config.pad_token_id = tokenizer.pad_token_id
    reward_model, value_model = (load_reward(job["reward_model"], num_labels=1) for _ in range(2))

    def read_before_the_end(module, inputs, given, output):
        """TRL reads the score at the end token, which our reward model never saw: it gets the place before it."""
        hidden = output.hidden_states[-1]  # (B, T, C)
        before = torch.cat([hidden[:, :1], hidden[:, :-1]], 1)
        ended = (given["input_ids"] == tokenizer.eos_token_id).unsqueeze(-1)  # (B, T, 1)
        output.hidden_states = (*output.hidden_states[:-1], torch.where(ended, before, hidden))
        return output

    reward_model.transformer.register_forward_hook(read_before_the_end, with_kwargs=True)
    points = []

    class Keep(TrainerCallback):
        def __init__(self) -> None:
            self.seconds, self.since = 0.0, 0.0

        def on_train_begin(self, args, state, control, **_):
            self.since = time.perf_counter()

        def on_step_end(self, args, state, control, **_):
            self.seconds += time.perf_counter() - self.since
            if state.global_step % job["every"] == 0 or state.global_step == job["iterations"]:
                name = f"iteration-{state.global_step:06d}"
                policy.save_pretrained(out / name)
                for file in Path(job["model"]).iterdir():  # the tokenizer with our padding is not to travel along
                    if file.name in job["tokenizer_files"]:
                        shutil.copy(file, out / name)
                points.append({"iteration": state.global_step, "path": str(out / name), "seconds": self.seconds})
            self.since = time.perf_counter()

    batch, minibatches = job["batch_size"], job["minibatches"]
    config = PPOConfig(
        output_dir=str(out / "trl"), seed=job["seed"], total_episodes=job["iterations"] * batch,
        per_device_train_batch_size=batch, gradient_accumulation_steps=1, num_mini_batches=minibatches,
        local_rollout_forward_batch_size=batch, response_length=job["max_new_tokens"], temperature=job["temperature"],
        missing_eos_penalty=1.0, stop_token="eos", num_sample_generations=0, report_to=[], save_strategy="no",
        use_cpu=not torch.cuda.is_available(), bf16=False, gradient_checkpointing=False, disable_tqdm=True,
        **job["settings"],
    )  # fmt: skip
    trainer = PPOTrainer(
        args=config, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward_model,
        value_model=value_model, train_dataset=Dataset.from_dict({"input_ids": job["prompts"]}), callbacks=[Keep()],
    )  # fmt: skip
    trainer.train()
    (out / "points.json").write_text(json.dumps(points))


# --------------------------------------------------------------------------------------------------------- training


def settings_of(name: str, ppo: dict[str, Any]) -> dict[str, Any]:
    """The options in which the settings differ, under TRL's names."""
    return RECOMMENDED if name == "trl" else {theirs: ppo[ours] for theirs, ours in NAMES.items()}


def minibatches_of(name: str, ppo: dict[str, Any]) -> int:
    """Updates a pass: one by TRL's default."""
    return 1 if name == "trl" else ppo["batch_size"] // (ppo["minibatch_size"] or ppo["batch_size"])


def wukongs(ppo: dict[str, Any], out: Path, name: str, seed: int, iterations: int, every: int) -> list[dict[str, Any]]:
    """Trains with ours. Returns the kept policies: iteration, path, seconds."""
    from wukong.training.metrics import read_metrics

    batch = ppo["batch_size"]
    own = {NAMES[theirs]: value for theirs, value in settings_of(name, ppo).items()}
    own |= {"minibatch_size": batch // minibatches_of(name, ppo), "episodes": iterations * batch, "seed": seed}
    run_stage("ppo", ppo | own | {"out": str(out), "save_every": every, "tensorboard": False})
    phases = ("rollout_seconds", "scoring_seconds", "update_seconds")
    points, seconds = [], 0.0
    for line in read_metrics(out):
        seconds += sum(line[phase] for phase in phases)
        step = line["step"]
        kept = out if step == iterations else out / "policies" / f"iteration-{step:06d}"
        if (kept / "model.safetensors").exists():
            points.append({"iteration": step, "path": str(kept), "seconds": seconds})
    return points


def trls(
    ppo: dict[str, Any], out: Path, name: str, seed: int, iterations: int, every: int, python: str
) -> list[dict[str, Any]]:
    """As `wukongs`, with TRL."""
    from wukong.model.hub import load_policy
    from wukong.stages.online.ppo import PPOOptions
    from wukong.stages.online.rollouts import tokenised_prompts
    from wukong.tokenizer import TOKENIZER_FILES

    if not (out / "points.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        model, tokenizer = load_policy(ppo["model"])
        prompts = tokenised_prompts(PPOOptions.model_validate(ppo), tokenizer, model.config.n_positions)
        same = {key: ppo[key] for key in ("model", "reward_model", "batch_size", "max_new_tokens", "temperature")}
        job = same | {
            "out": str(out), "seed": seed, "iterations": iterations, "every": every,
            "minibatches": minibatches_of(name, ppo), "settings": settings_of(name, ppo),
            "prompts": [prompt.ids for prompt in prompts], "tokenizer_files": list(TOKENIZER_FILES),
        }  # fmt: skip
        (out / "job.json").write_text(json.dumps(job))
        surroundings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [python, __file__, "--worker", str(out / "job.json")]
        subprocess.run(command, check=True, env=surroundings | {"HF_HUB_OFFLINE": "1"}, stdout=sys.stderr)
    return json.loads((out / "points.json").read_text())


# -------------------------------------------------------------------------------------------------------- measuring


def measured(
    judging: dict[str, Any], ppo: dict[str, Any], points: list[dict[str, Any]], out: Path, limit: int | None
) -> list[dict[str, Any]]:
    """The points with gold, proxy, KL and length; the SFT model as the first."""
    models = [f"sft={ppo['model']}", *(f"{point['iteration']}={point['path']}" for point in points)]
    own = {"models": models, "reference": "sft", "raw": [], "text": None, "reward_model": ppo["reward_model"]}
    own |= {"temperature": ppo["temperature"]}  # the KL is that of the distributions that were trained
    run_stage("evaluate", judging | own | {"out": str(out), "limit": limit, "seed": 0})
    found = json.loads((out / "evaluation.json").read_text())
    wins = {c["a"]: c for c in found["comparisons"] if c["b"] == "sft" and c["judge"] == found["scorer"]}
    first = {"iteration": 0, "seconds": 0.0, "win_rate": 0.5, "interval": [0.5, 0.5]}
    rows = [first | numbers(found["models"]["sft"])]
    for point in points:
        name = str(point["iteration"])
        win = {"win_rate": wins[name]["win_rate"], "interval": wins[name]["interval"]}
        rows.append({k: point[k] for k in ("iteration", "seconds")} | win | numbers(found["models"][name]))
    return [row | {"episodes": row["iteration"] * ppo["batch_size"]} for row in rows]


def numbers(model: dict[str, Any]) -> dict[str, Any]:
    names = {"proxy": "reward_mean", "kl": "kl", "length": "length_mean", "termination_rate": "termination_rate"}
    return {ours: model[theirs] for ours, theirs in names.items()}


def seconds_to(points: Sequence[dict[str, Any]], target: float) -> float | None:
    """When the win rate first passes the target, linearly between two measurements; None when it does not."""
    for before, after in pairwise(points):
        if after["win_rate"] >= target:
            part = (target - before["win_rate"]) / (after["win_rate"] - before["win_rate"])
            return before["seconds"] + part * (after["seconds"] - before["seconds"])
    return None


def draw(curves: Sequence[dict[str, Any]], file: Path) -> None:
    """Gold and proxy over episodes, gold over minutes: thin lines are seeds, thick ones their mean."""
    shown = [("episodes", "win_rate", 1), ("episodes", "proxy", 1), ("seconds", "win_rate", 60)]
    titles = [("episodes", "win rate over SFT (gold)"), ("episodes", "reward-model score (proxy)"),
              ("minutes of training", "win rate over SFT (gold)")]  # fmt: skip
    colours = {"wukong": "#b4421f", "trl": "#2b6cb0"}
    styles = {"ours": "-", "trl": "--", "once": ":"}
    with panels(file, 3, (13, 3.8)) as axes:
        for axis, (x, y, divisor), (x_title, y_title) in zip(axes, shown, titles, strict=True):
            for trainer in TRAINERS:
                for settings in SETTINGS:
                    of = [c["points"] for c in curves if (c["trainer"], c["settings"]) == (trainer, settings)]
                    # Minutes are told of settings that lead somewhere; the others would only stretch the axis.
                    if not of or (x == "seconds" and not any(p[y] >= TARGET for points in of for p in points)):
                        continue
                    look = {"color": colours[trainer], "linestyle": styles[settings]}
                    for points in of:
                        axis.plot([p[x] / divisor for p in points], [p[y] for p in points], alpha=0.3, lw=0.8, **look)
                    mean_x = [statistics.mean(p[x] for p in at) / divisor for at in zip(*of, strict=True)]
                    mean_y = [statistics.mean(p[y] for p in at) for at in zip(*of, strict=True)]
                    whose = {"ours": "our settings", "trl": "TRL's settings", "once": "one pass"}[settings]
                    name = "Wukong" if trainer == "wukong" else "TRL 1.12.0"
                    axis.plot(mean_x, mean_y, lw=2, label=f"{name}, {whose}", **look)
            if y == "win_rate":
                axis.axhline(TARGET, color="grey", lw=0.8, ls=":")
            axis.set(xlabel=x_title, ylabel=y_title)
        axes[0].legend(frameon=False, fontsize=8)


def main() -> None:
    parser = new_parser(__doc__)
    run_argument(parser, optional=True)
    parser.add_argument("--trl", type=Path, default=Path("trl-venv"), help="TRL's environment; made there when absent")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trainers", nargs="+", default=TRAINERS, choices=TRAINERS)
    parser.add_argument("--settings", nargs="+", default=SETTINGS[:2], choices=SETTINGS)
    parser.add_argument("--episodes", type=int, help="the recipe's when absent")
    parser.add_argument("--every", type=int, nargs="+", default=[4], help="iterations between two measurements; "
                        "one number, or one for each of --settings")  # fmt: skip
    parser.add_argument("--limit", type=int, help="measure on the first so many unseen prompts")
    parser.add_argument("--out", type=Path, help="OUT.json and OUT.svg; RUN/trl-ppo/trl-ppo when absent")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return train_with_trl(json.loads(arguments.worker.read_text()))
    if arguments.run is None:
        parser.error("RUN is required")
    steps = recipe_steps(arguments.run)
    ppo, judging = steps["ppo"], steps["evaluate"]
    recipes = {name: ppo | (ONCE if name == "once" else {}) for name in SETTINGS}
    if len(arguments.every) not in (1, len(arguments.settings)):
        parser.error(f"--every takes one number, or {len(arguments.settings)}, one for each of --settings")
    every = dict(zip(arguments.settings, arguments.every * len(arguments.settings), strict=False))
    iterations = (arguments.episodes or ppo["episodes"]) // ppo["batch_size"]
    root = arguments.run / "trl-ppo"
    curves = []
    for seed in arguments.seeds:
        for settings in arguments.settings:
            for trainer in arguments.trainers:
                out = root / f"{trainer}-{settings}-{iterations}-{seed}"
                given = (recipes[settings], out, settings, seed, iterations, every[settings])
                ours = trainer == "wukong"
                points = wukongs(*given) if ours else trls(*given, python_of_trl(arguments.trl))
                rows = measured(judging, ppo, points, Path(f"{out}-evaluation"), arguments.limit)
                to_target = seconds_to(rows, TARGET)
                curves.append({"trainer": trainer, "settings": settings, "seed": seed, "points": rows,
                               f"seconds_to_{TARGET:.0%}": to_target})  # fmt: skip
                last, when = rows[-1], "never" if to_target is None else f"after {to_target / 60:.1f} min"
                print(
                    f"{trainer}, {settings} settings, seed {seed}: win rate {last['win_rate']:.1%}, proxy "
                    f"{last['proxy']:.2f}, KL {last['kl']:.2f}, {last['seconds'] / 60:.1f} min; {TARGET:.0%} {when}",
                    flush=True,
                )
    out = arguments.out or root / "trl-ppo"
    found = {
        "command": this_command(),
        "cpus": os.cpu_count(),
        "settings": {n: settings_of(n, recipes[n]) for n in SETTINGS},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{out}.json").write_text(json.dumps(found | {"curves": curves}, indent=1) + "\n", encoding="utf-8")
    draw(curves, Path(f"{out}.svg"))


if __name__ == "__main__":
    main()
