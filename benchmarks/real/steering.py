"""The classic steering task with a real model: continue the opening of a film review, the more positive the better.

    python benchmarks/real/steering.py --model smollm2 --seeds 0 1 2 --out docs/results/steering.md

--model is SmolLM2-135M-Instruct, from `wukong import` or the hub, used as a plain language model without its chat
template. $WUKONG_DATA has the reviews of Pang and Lee, in three parts that share none:

- the openings are the first words of whole reviews (movie_reviews);
- the reward model learns from a part of the rated sentences (rt-polarity): of two sentences after the same opening,
  the one from a favourable review is the better;
- the judge, TF-IDF and logistic regression, learns from the other sentences, and no method ever sees it.

PPO (upper layers, and LoRA) and GRPO are trained; best-of-n is drawn from one set of samples. All are measured on
openings that no run was trained on: reward, judge, VADER, KL to the base model, and the perplexity of the responses
under it. What is made lies in --runs and is not made twice; an interrupted command goes on. Each stage is a process,
whose processor time and peak of memory are noted: on a busy machine only the former counts.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))  # the judge below, as steering:judge

from shared.command_line import new_parser, publish, this_command
from shared.figures import panels
from shared.finished_run import run_stage
from shared.machine import machine
from shared.table import markdown_table

from wukong.errors import RunError
from wukong.feedback.annotators import load_judge
from wukong.feedback.reward_models import reward_judge
from wukong.files import atomic_directory, numbered_lines, read_json, write_json
from wukong.model.hub import load_policy, save_policy
from wukong.objectives import best_of_n_kl
from wukong.records import Prompt, Ranking, as_messages, read_records, write_records
from wukong.scoring import reference_of
from wukong.seeds import permutation
from wukong.stages.evaluate import AnswerOptions, Reference, answer_all, kl_of
from wukong.stats import mean_interval
from wukong.studies.overoptimisation import best_of_n_weights
from wukong.training.compute import compute_for
from wukong.training.metrics import read_metrics

WORDS, NEW_TOKENS = 8, 24
TEST_OPENINGS = 128
REWARD_OPENINGS, REWARD_TEST_OPENINGS = 600, 100
"""Each with two favourable and two unfavourable sentences."""
EACH = 2
JUDGE_TEST = 2000
"""Sentences that neither reward model nor judge learns from; those of the reward model's test are among them."""
BEST_OF = 16
COLOURS = {"PPO": "#2b6cb0", "GRPO": "#2f855a", "LoRA PPO": "#6b46c1", "best-of-n": "#b4421f"}
SENTIMENT = ("proxy", "judge", "vader")

REWARD = {
    "freeze_layers": 20, "epochs": 1, "batch_size": 4, "lr": 7e-5, "valid_fraction": 0.0, "micro_batch_tokens": 2048,
    "precision": "bfloat16", "log_every": 1,
}  # fmt: skip
ONLINE = {
    "freeze_layers": 20, "batch_size": 64, "max_new_tokens": NEW_TOKENS, "missing_eos_score": None,
    "rewards": ["0*steering:judge", "0*lexicon"], "micro_batch_tokens": 2048, "kl_target": None, "max_kl": 40,
    "precision": "bfloat16",
}  # fmt: skip
"""Judge and lexicon have no weight: they are only logged, on the responses that the policy learns from."""


@dataclass(frozen=True)
class Method:
    name: str
    stage: str
    options: dict[str, Any]


METHODS = {
    "ppo": Method("PPO", "ppo", {"episodes": 1024, "minibatch_size": 32, "ppo_epochs": 2, "lr": 5e-5, "kl_coef": 0.05}),
    "grpo": Method("GRPO", "grpo", {"episodes": 1024, "minibatch_size": 32, "lr": 5e-5, "kl_coef": 0.05}),
    "lora": Method(
        "LoRA PPO",
        "ppo",
        {
            "episodes": 1024, "minibatch_size": 32, "ppo_epochs": 2, "lr": 5e-4, "kl_coef": 0.05, "lora_rank": 16,
            "freeze_layers": 0,
        },
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- data


def data_file(name: str) -> Path:
    if "WUKONG_DATA" not in os.environ:
        raise SystemExit("set WUKONG_DATA to the directory that has sentiment/ (docs/reference/recipes.md)")
    return Path(os.environ["WUKONG_DATA"]) / "sentiment" / name


@cache
def sentences() -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[tuple[str, str]]]:
    """(unfavourable, favourable) sentences of the reward model, the judge, and the test of both."""
    of_label = []
    for name in ("rt-polarity.neg", "rt-polarity.pos"):
        lines = [line.strip() for _, line in numbered_lines(data_file(name), "latin-1")]
        of_label.append([lines[i] for i in permutation(len(lines), "steering", name)])
    pairs = list(zip(*of_label, strict=True))
    test, learnt = JUDGE_TEST // 2, EACH * REWARD_OPENINGS
    return pairs[test : test + learnt], pairs[test + learnt :], pairs[:test]


@cache
def _classifier() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    own = sentences()[1]
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10))
    return model.fit([text for pair in own for text in pair], [0, 1] * len(own))


def judge(prompts: list[Any], responses: list[str]) -> list[float]:
    """The judge's probability that a response is from a favourable review."""
    return _classifier().predict_proba(responses)[:, 1].tolist()


def write_data(work: Path) -> None:
    with gzip.open(data_file("movie_reviews.jsonl.gz"), "rt", encoding="utf-8") as file:
        openings = [" ".join(json.loads(line)["text"].split()[:WORDS]) for line in file]
    openings = list(dict.fromkeys(openings))
    openings = [openings[i] for i in permutation(len(openings), "steering", "openings")]
    sides = {"prompts-test": openings[:TEST_OPENINGS], "prompts": openings[TEST_OPENINGS:]}
    for name, own in sides.items():
        if not (work / f"{name}.jsonl").exists():
            write_records(work / f"{name}.jsonl", [Prompt(messages=as_messages(text)) for text in own])
    learnt, _, test = sentences()
    spare = iter(sides["prompts"])
    for name, count, pairs in (
        ("comparisons", REWARD_OPENINGS, learnt),
        ("comparisons-test", REWARD_TEST_OPENINGS, test),
    ):
        records = []
        for place in range(count):
            own = pairs[EACH * place : EACH * (place + 1)]
            answers = [f" {text}" for label in (1, 0) for text in (pair[label] for pair in own)]
            groups = [list(range(EACH)), list(range(EACH, 2 * EACH))]
            records.append(Ranking(prompt=as_messages(next(spare)), responses=answers, groups=groups))
        if not (work / f"{name}.jsonl").exists():
            write_records(work / f"{name}.jsonl", records)


def write_base(model: str, work: Path) -> None:
    """The model with a template that leaves texts as they are."""
    if not (work / "base").exists():
        policy, tokenizer = load_policy(model, template="plain")
        with atomic_directory(work / "base") as staged:
            save_policy(staged, policy, tokenizer)


# ----------------------------------------------------------------------------------------------------------- stages


def stage(name: str, options: dict[str, Any]) -> dict[str, float]:
    """Runs a stage in a process, unless it is done; returns its processor time and its peak of memory."""
    out = Path(options["out"])
    noted = out.parent / f"{out.name}.cost.json"
    cost = read_json(noted) if noted.exists() else {"seconds": 0.0, "peak": 0.0}
    if not (out / "provenance.json").exists():
        words = [sys.executable, __file__, "--stage", name, json.dumps(options)]
        process = subprocess.Popen(words)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        cost["seconds"] += used.ru_utime + used.ru_stime
        cost["peak"] = max(cost["peak"], used.ru_maxrss / 2**20)  # kB to GiB
        write_json(noted, cost)
        if process.returncode:
            raise SystemExit(process.returncode)
    return cost


def train(work: Path, key: str, seed: int) -> dict[str, float]:
    method = METHODS[key]
    own = ONLINE | method.options | {"model": str(work / "base"), "prompts": [str(work / "prompts.jsonl")]}
    own |= {"reward_model": str(work / "reward"), "seed": seed, "out": str(work / f"{key}-{seed}")}
    return stage(method.stage, own | {"tensorboard": False, "checkpoint_seconds": 300})


# ------------------------------------------------------------------------------------------------------ measurements


def measure(work: Path, name: str, policy_directory: Path, answers: int) -> dict[str, Any]:
    """Of `answers` responses to each test opening: the texts, and one number of each kind per response."""
    noted = work / "measured" / f"{name}.json"
    if not noted.exists():
        compute = compute_for("bfloat16")
        policy, tokenizer = load_policy(policy_directory)
        policy.to(compute.device).eval()
        base = Reference(reference_of(str(work / "base"), policy, compute), tokenizer)
        prompts = [p for p in read_records(work / "prompts-test.jsonl", Prompt) for _ in range(answers)]
        found: dict[str, list[Any]] = {key: [] for key in ("text", "length", "kl", "base", *SENTIMENT)}
        for repeat in range(answers):
            own = prompts[::answers]
            options = AnswerOptions(
                out=noted,
                prompts=[],
                max_new_tokens=NEW_TOKENS,
                temperature=1.0,
                seed=repeat,
                micro_batch_tokens=2048,
                precision="bfloat16",
            )
            one = answer_all(name, str(policy_directory), policy, tokenizer, own, options, compute)
            kl = (
                kl_of(policy, base.model, one, options, compute)
                if policy_directory != work / "base"
                else [0.0] * len(own)
            )
            found["text"] += one.texts
            found["length"] += [len(sampled.ids) for sampled in one.sampled]
            found["kl"] += list(map(float, kl))
            found["base"] += [sum(s.logprobs) - k for s, k in zip(one.sampled, kl, strict=True)]
        del policy, base
        asked = prompts[::answers] * answers
        judges = {
            "proxy": reward_judge(str(work / "reward"), compute, 2048),
            "judge": load_judge("steering:judge"),
            "vader": load_judge("lexicon"),
        }
        for key, ask in judges.items():
            found[key] = [opinion.score for opinion in ask(asked, found["text"])]
        noted.parent.mkdir(exist_ok=True)
        write_json(noted, found)
    return read_json(noted)


def by_opening(values: list[float]) -> np.ndarray:
    """(openings, answers) of the values of one measurement."""
    return np.array(values, dtype=float).reshape(-1, TEST_OPENINGS).T


def row_of(found: dict[str, Any], weights: np.ndarray | None = None) -> dict[str, Any]:
    """Means with 95 % intervals over openings; with weights (openings, answers), of best-of-n."""
    values = {key: by_opening(found[key]) for key in ("length", "kl", "base", *SENTIMENT)}
    own = np.full(values["kl"].shape, 1 / values["kl"].shape[1]) if weights is None else weights
    row: dict[str, Any] = {}
    for key, each in values.items():
        means = (own * each).sum(1)
        row[key], row[f"{key} interval"] = float(means.mean()), mean_interval(means)
    row["perplexity"] = math.exp(-row["base"] / row["length"])
    return row


def best_of(found: dict[str, Any]) -> dict[int, dict[str, Any]]:
    proxy = by_opening(found["proxy"])
    ranks = proxy.argsort(1).argsort(1)
    rows = {}
    for n in (1, 2, 4, 8, 16):
        rows[n] = row_of(found, best_of_n_weights(ranks, n)) | {"kl": best_of_n_kl(n), "kl interval": None}
    return rows


# -------------------------------------------------------------------------------------------------------------- text


def cell(row: dict[str, Any], key: str, digits: int = 2) -> str:
    interval = row.get(f"{key} interval")
    text = f"{row[key]:.{digits}f}"
    return text if interval is None else f"{text} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def table(best: dict[int, dict[str, Any]], runs: dict[tuple[str, int], dict[str, Any]], costs: dict[Any, Any]) -> str:
    columns = ["method", "KL, nats", "reward", "judge, P(favourable)", "VADER", "perplexity", "minutes", "GiB"]

    def line(name: str, row: dict[str, Any], cost: dict[str, float] | None) -> list[str]:
        spent = [f"{cost['seconds'] / 60:.1f}", f"{cost['peak']:.1f}"] if cost else ["–", "–"]
        return [name, cell(row, "kl"), *(cell(row, key) for key in SENTIMENT), f"{row['perplexity']:.1f}", *spent]

    rows = [line("base model" if n == 1 else f"best of {n}", row, None) for n, row in best.items()]
    for (key, seed), row in runs.items():
        rows.append(line(f"{METHODS[key].name}, seed {seed}", row, costs[key, seed]))
    return markdown_table(columns, rows)


def trajectory(run: Path, key: str) -> list[float]:
    name = {"kl": "kl", "proxy": "reward_of.reward", "judge": "reward_of.steering:judge"}[key]
    return [line.get(name, line["reward_model_score"]) for line in read_metrics(run)]


def draw(file: Path, work: Path, best: dict[int, dict[str, Any]], runs: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Reward and judge over KL: thin lines are training, dots the finished policies on unseen openings."""
    titles = {"proxy": "reward model (learnt from)", "judge": "judge (never seen)"}
    with panels(file, 2, (10, 4)) as axes:
        for axis, key in zip(axes, titles, strict=True):
            axis.plot(
                [row["kl"] for row in best.values()], [row[key] for row in best.values()],
                marker="s", ms=4, color=COLOURS["best-of-n"], label="best-of-n",
            )  # fmt: skip
            named = set()
            for (of, seed), row in runs.items():
                name, run = METHODS[of].name, work / f"{of}-{seed}"
                axis.plot(trajectory(run, "kl"), trajectory(run, key), lw=0.6, alpha=0.5, color=COLOURS[name])
                low, high = row[f"{key} interval"]
                axis.errorbar(
                    [row["kl"]], [row[key]], yerr=[[row[key] - low], [high - row[key]]], fmt="o", ms=5,
                    color=COLOURS[name], label=None if name in named else name,
                )  # fmt: skip
                named.add(name)
            axis.set(xlabel="KL to the base model, nats per response", ylabel=key, title=titles[key])
        axes[0].legend(frameon=False)


ABOUT = (
    "SmolLM2-135M continues the openings of film reviews, the more positive the better: reward and an independent "
    "judge over KL, for PPO, GRPO and best-of-n."
)
PAPERS = (
    "Ziegler et al. (2019, arXiv 1909.08593) steer GPT-2 124M with a million episodes in batches of 512 and hold the "
    "KL near 6 nats with an adaptive coefficient; reward rises with KL, ever more slowly. Gao et al. (2022, arXiv "
    "2210.10760) fit the gain of a gold reward over d = √KL by d (α - β d) for best-of-n and by d (α - β log d) for "
    "RL: per nat best-of-n gains more, and where the reward model is exploited, gold turns down while the learnt "
    "reward rises on. This table has a thousandth of those episodes, so compare shapes, not heights."
)


def page(
    best: dict[int, dict[str, Any]], runs: dict[tuple[str, int], dict[str, Any]], costs: dict[Any, Any], work: Path
) -> str:
    reward = read_json(work / "reward" / "provenance.json")["results"]
    low, high = reward["valid_accuracy_interval"]
    learnt, judges, test = sentences()
    own = [text for pair in test for text in pair]
    probability = np.array(judge([], own)).reshape(-1, 2)
    right = [float(p > 0.5) == label for pair in probability for label, p in enumerate(pair)]
    vader = np.array([o.score for o in load_judge("lexicon")([], own)]).reshape(-1, 2)
    pairs = [
        (each[:, 1] > each[:, 0]).mean() + 0.5 * (each[:, 1] == each[:, 0]).mean() for each in (probability, vader)
    ]
    measured = (
        f"{machine()}; {time.strftime('%Y-%m-%d')}. Minutes are of processor time on one thread, GiB the peak of "
        f"memory of the process. {TEST_OPENINGS} openings of {WORDS} words that no run was trained on, {NEW_TOKENS} "
        f"new tokens at temperature 1, {EACH} responses of each policy to each opening, {BEST_OF} of the base model. "
        "Intervals are 95 %, over openings. Perplexity is that of the responses under the base model, per token."
    )
    models = (
        f"The reward model, SmolLM2 with its 20 lower layers frozen, read {2 * len(learnt):,} rated sentences once "
        f"({costs['reward']['seconds'] / 60:.1f} minutes). Of {reward['valid_pairs']} pairs from unseen reviews it "
        f"ranks {reward['valid_accuracy']:.1%} [{low:.1%}, {high:.1%}] rightly. The judge read {2 * len(judges):,} "
        f"others and is right about {np.mean(right):.1%} of {len(own):,} unseen ones. Of {len(test):,} pairs of these "
        f"it ranks {pairs[0]:.1%} rightly, VADER {pairs[1]:.1%}."
    )
    return "\n\n".join([
        "# Steering a real model",
        ABOUT,
        f"`{this_command()}`",
        measured,
        models,
        table(best, runs, costs),
        "![Reward and judge over KL](figures/steering.svg)",
        "## Beside the published curves",
        PAPERS,
    ])  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--stage"]:
        try:
            run_stage(sys.argv[2], json.loads(sys.argv[3]))
        except RunError as error:
            raise SystemExit(str(error)) from None
        return
    parser = new_parser(__doc__)
    parser.add_argument("--model", required=True, help="the directory of SmolLM2-135M-Instruct, or its hub id")
    parser.add_argument("--runs", type=Path, default=Path("runs/steering"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of PPO and GRPO; LoRA has the first")
    parser.add_argument("--out", type=Path, help="write the page there, and its figure to figures/ beside it")
    arguments = parser.parse_args()
    work = arguments.runs
    work.mkdir(parents=True, exist_ok=True)
    write_data(work)
    write_base(arguments.model, work)
    reward = REWARD | {
        "model": str(work / "base"), "data": [str(work / "comparisons.jsonl")],
        "eval_data": [str(work / "comparisons-test.jsonl")], "tensorboard": False, "checkpoint_seconds": 300,
    }  # fmt: skip
    costs: dict[Any, Any] = {"reward": stage("reward", reward | {"out": str(work / "reward")})}
    best = best_of(measure(work, "base", work / "base", BEST_OF))
    for n, row in best.items():
        print(f"best of {n}: {cell(row, 'kl')} nats, reward {cell(row, 'proxy')}, judge {cell(row, 'judge')}")
    runs = {}
    for seed in arguments.seeds:
        for key in arguments.methods:
            if key == "lora" and seed != arguments.seeds[0]:
                continue
            costs[key, seed] = train(work, key, seed)
            runs[key, seed] = row_of(measure(work, f"{key}-{seed}", work / f"{key}-{seed}", EACH))
            row = runs[key, seed]
            print(f"{key}-{seed}: {cell(row, 'kl')} nats, reward {cell(row, 'proxy')}, judge {cell(row, 'judge')}")
    publish(page(best, runs, costs, work), arguments.out)
    directory = arguments.out.parent if arguments.out else work
    draw(directory / "figures" / "steering.svg", work, best, runs)


if __name__ == "__main__":
    main()
