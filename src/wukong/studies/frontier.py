"""`wukong frontier`: did RL gain, or did it hack its reward? Gold and proxy over the distance from the reference.

In:  policies, those kept on the way (--save-every) too; the SFT model; what they learnt from, the proxy; gold; prompts.
Out: out/frontier.html, one page that needs nothing else, and out/frontier.json with every figure on it.

    wukong frontier ppo=runs/mine/ppo-0 ppo=runs/mine/ppo-1 rloo=runs/mine/rloo --reference runs/mine/sft
        --proxy runs/mine/reward --gold rubric --prompts test.jsonl --out runs/mine/frontier

Several runs of one name are its seeds. All policies answer the same prompts with the same random numbers. What was
measured of a policy is kept in out/measured, so that an interrupted study goes on with the next one. Forms, fits and
the choice of a checkpoint: docs/tools/frontier.md.

Shape legend: P prompts, N answers to each, K policies of one run.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from rich.table import Table

from wukong import require
from wukong.console import console, say
from wukong.data.overlap import overlap
from wukong.data.split import halves
from wukong.errors import UsageError
from wukong.feedback.annotators import Judge, load_judge
from wukong.feedback.replies import forget_replies, replies_path
from wukong.files import atomic_open, read_json, write_json
from wukong.intervals import FEWEST_PROMPTS, decisive, mean_interval, shown
from wukong.model.hub import load_policy, recommended_sampling
from wukong.objectives import best_of_n_kl
from wukong.records import Prompt
from wukong.report.frontier_page import render_frontier
from wukong.report.page import number
from wukong.require import Need
from wukong.seeds import derived_seed
from wukong.stages.evaluate import (
    MOST_ANSWERS,
    AnswerOptions,
    Reference,
    answer_all,
    answer_needs,
    chosen_prompts,
    kl_of,
)
from wukong.stages.rewards import is_model, reward_judge
from wukong.studies.answers import split_name
from wukong.studies.overoptimisation import FEWEST_POINTS, Course, Form, best_of_n_weights, curve, fit
from wukong.training.compute import Compute, compute_for
from wukong.training.metrics import read_metrics


class FrontierOptions(AnswerOptions):
    """Gold and proxy reward over the distance from the reference, by algorithm, and the checkpoint to take."""

    runs: list[str]
    """name=directory of each policy; the same name again for another seed. Policies in its policies/ count too."""
    reference: str
    """The SFT model that they started from."""
    proxy: str
    """The reward model that they learnt from."""
    gold: str
    """What counts: rubric, lexicon, openai:MODEL[@URL], module:function, or a reward model that none learnt from."""
    pick_by: str | None = None
    """What picks a checkpoint instead of gold: a reward model trained on the other half (`reward --half`)."""
    best_of: int = Field(16, ge=0, le=MOST_ANSWERS)
    """Best-of-n of the reference for n up to so many answers a prompt; 0 leaves it out."""


@dataclass(frozen=True)
class Policy:
    """One point of a course: a kept policy, or the last one."""

    iteration: int
    path: Path


@dataclass(frozen=True)
class Measured:
    """What was found of one policy's answers, a value for each prompt. All (P,)."""

    kl: np.ndarray  # nats
    gold: np.ndarray
    proxy: np.ndarray
    pick: np.ndarray
    finished: np.ndarray  # 1 or 0
    length: np.ndarray  # tokens


class Ruler:
    """Measures policies on the prompts, each once."""

    def __init__(self, options: FrontierOptions, prompts: list[Prompt], compute: Compute) -> None:
        self.options, self.prompts, self.compute = options, prompts, compute
        self.gold, self.proxy = self._judge(options.gold), self._judge(options.proxy)
        self.pick = self._judge(options.pick_by) if options.pick_by else None
        model, tokenizer = load_policy(options.reference)
        self.reference = Reference(model.to(compute.device).eval(), tokenizer)

    def _judge(self, name: str) -> Judge:
        if is_model(name):
            options = self.options
            # Policies are judged one after the other: room for the longest answer gives all of them the same prompt.
            return reward_judge(name, self.compute, options.micro_batch_tokens, options.max_new_tokens)
        return load_judge(name, replies_path(self.options.out, directory=True))

    def measure(self, name: str, path: str | Path, key: str, repeat: int = 0) -> Measured:
        """The policy at `path`, with other random numbers for each `repeat`; out/measured/KEY.json remembers.

        Raises UsageError for a policy whose tokenizer is not the reference's.
        """
        file = self.options.out / "measured" / f"{key}.json"
        if not file.exists():
            seed = derived_seed(self.options.seed, "best-of", repeat) if repeat else self.options.seed
            options = self.options.model_copy(update={"seed": seed})
            policy, tokenizer = load_policy(path)
            if tokenizer.fingerprint != self.reference.tokenizer.fingerprint:
                raise UsageError(f"{path}: its tokenizer is not the reference's, so their KL means nothing")
            policy.to(self.compute.device).eval()
            answers = answer_all(name, str(path), policy, tokenizer, self.prompts, options, self.compute)
            asked = [prompt.messages for prompt in self.prompts]
            judges = {"gold": self.gold, "proxy": self.proxy, "pick": self.pick}
            found = {who: [o.score for o in judge(asked, answers.texts)] for who, judge in judges.items() if judge}
            kl = kl_of(policy, self.reference.model, answers, options, self.compute)
            found |= {"kl": kl.tolist(), "finished": [float(s.finished) for s in answers.sampled]}
            write_json(file, found | {"length": [float(len(s.ids)) for s in answers.sampled]})
        values = {name: np.array(own) for name, own in read_json(file).items()}
        return Measured(**{"pick": values["gold"], **values})


def needs(options: FrontierOptions) -> list[Need]:
    runs = [split_name(one) for one in options.runs]
    if not runs:
        raise UsageError("no policy is named: write name=directory for each")
    if options.temperature == 0:
        raise UsageError("--temperature 0: greedy answers have no KL; take the temperature of training")
    if options.raw:
        raise UsageError(f"--raw {options.raw[0]}: policies answer through the chat template that they learnt with")
    return [
        *map(require.judge, dict.fromkeys(name for name in (options.gold, options.proxy, options.pick_by) if name)),
        *(Need(lambda planned, path=path: policies_of(Path(path)), path) for _, path in runs),  # type: ignore[misc]
        *answer_needs([options.reference], options),
    ]


def run(options: FrontierOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError when a judge fails."""
    work = require.open_stage("frontier", options, needs(options))
    if work.done:
        return
    runs = [split_name(one) for one in options.runs]
    prompts = chosen_prompts(options)
    policies = [policies_of(Path(path)) for _, path in runs]
    sampled: list[str | Path] = [options.reference, *(one.path for of_run in policies for one in of_run)]
    sampling = {str(path): recommended_sampling(path).unless_given(str(path), options.temperature) for path in sampled}
    if without := [path for path, how in sampling.items() if not how.has_kl]:
        how = sampling[without[0]].in_words()
        raise UsageError(f"{without[0]}: answers at {how} have no KL; give the --temperature of training")
    # -------------------------------------------------------------------------------------------------- measure
    ruler = Ruler(options, prompts, compute_for(options.precision, options.device))
    start = ruler.measure("the reference", options.reference, "reference-0")
    found: dict[str, list[tuple[str, list[Policy], list[Measured]]]] = defaultdict(list)
    for number_of_run, ((name, path), of_run) in enumerate(zip(runs, policies, strict=True)):
        measured = [
            ruler.measure(f"{name} {one.iteration}", one.path, f"{number_of_run}-{one.iteration}") for one in of_run
        ]
        found[name].append((path, of_run, measured))
    # -------------------------------------------------------------------------------------------------- numbers
    first = halves(prompts, options.seed)[0]
    picking = np.isin([p.id for p in prompts], [p.id for p in first])
    if not 0 < picking.sum() < len(prompts):
        raise UsageError(f"{len(prompts)} prompts are too few to pick on one half and to report on the other")
    curves = [curve_of(name, of_name, start, picking, options) for name, of_name in found.items()]
    if options.best_of > 1:
        curves.append(best_of_curve(ruler, start, options))
    judges = [name for name in (options.gold, options.proxy, options.pick_by) if name and is_model(name)]
    report = {
        "n_prompts": len(prompts),
        "overlap": overlap([p.messages for p in prompts], [*(path for _, path in runs), options.reference, *judges]),
        "gold": options.gold,
        "proxy": options.proxy,
        "pick_by": options.pick_by or options.gold,
        "sampling": {path: how.as_dict() for path, how in sampling.items()},
        "reference": {"path": options.reference, **_point(start, start)},
        "curves": curves,
    }
    # ----------------------------------------------------------------------------------------------------- save
    files = [options.out / "frontier.json", options.out / "frontier.html"]
    write_json(files[0], report)
    with atomic_open(files[1]) as out:
        out.write(render_frontier(report))
    console.print(_table(curves))
    say(f"frontier: {report['overlap']['words']}")  # type: ignore[index]
    for one in curves:
        if one["words"]:
            say(f"{one['name']}: {one['words']}")
    say(f"frontier: open {files[1]} in a browser")
    work.finish({one["name"]: one["words"] for one in curves}, files)
    forget_replies(options.out, directory=True)


def policies_of(directory: Path) -> list[Policy]:
    """The policies that a run kept on the way, and its last one, unless it stopped before its end."""
    kept = [Policy(int(path.name.rpartition("-")[2]), path) for path in sorted(directory.glob("policies/iteration-*"))]
    if (directory / "config.json").is_file():
        metrics = read_metrics(directory)
        last = int(metrics[-1]["step"]) if metrics else (kept[-1].iteration if kept else 0) + 1
        kept.append(Policy(last, directory))
    if not kept:
        raise UsageError(f"{directory}: no policy is there")
    return kept


def form_of(fit: dict[str, Any] | None, runs: list[dict[str, Any]], kind: Form) -> list[list[float]]:
    """The fitted form as points (sqrt(KL), gain) from the reference to the farthest policy; none without a fit."""
    if fit is None:
        return []
    reach = max(max(0.0, point["kl"]) for one in runs for point in one["points"])
    d = np.linspace(0, reach**0.5, 60)
    return np.stack([d, curve(d, fit["alpha"], fit["beta"], kind)], 1).tolist()


def _point(one: Measured, start: Measured) -> dict[str, Any]:
    """A policy's means, and its gains over the reference with their intervals over prompts."""
    gains = {name: getattr(one, name) - getattr(start, name) for name in ("gold", "proxy")}
    return {
        **{name: float(getattr(one, name).mean()) for name in ("kl", "gold", "proxy", "pick", "length")},
        "termination_rate": float(one.finished.mean()),
        **{f"{name}_gain": float(gain.mean()) for name, gain in gains.items()},
        **{f"{name}_gain_interval": mean_interval(gain) for name, gain in gains.items()},
    }


def curve_of(
    name: str, runs: list[tuple[str, list[Policy], list[Measured]]], start: Measured, picking: np.ndarray,
    options: FrontierOptions,
) -> dict[str, Any]:  # fmt: skip
    """One algorithm: its points, the fitted form, the checkpoint of each run to take, and what it all says.

    picking: (P,) bool, the prompts on which checkpoints are picked; the others tell what that was good for.
    """
    courses = [Course(*(np.stack([getattr(m, of) for m in ms]) for of in ("kl", "gold", "proxy"))) for *_, ms in runs]
    picked: list[dict[str, Any]] = []
    lost, hidden, unseen, missed, gained, pleased = ([] for _ in range(6))
    reporting = ~picking
    for path, policies, measured in runs:
        candidates = [start, *measured]  # the reference itself is one of them: RL may have done nothing but harm
        iterations = [0, *(policy.iteration for policy in policies)]
        chosen, best = (
            int(np.argmax([getattr(one, of)[picking].mean() for one in candidates])) for of in ("pick", "gold")
        )
        last = candidates[-1]
        lost.append((last.gold - candidates[best].gold)[reporting])
        hidden.append((last.proxy - candidates[best].proxy)[reporting])
        unseen.append((last.pick - candidates[best].pick)[reporting])
        missed.append((candidates[chosen].gold - candidates[best].gold)[reporting])
        gained.append(last.gold - start.gold)
        pleased.append(last.proxy - start.proxy)
        picked.append(
            {
                "run": path,
                "iteration": iterations[chosen],
                "path": str(policies[chosen - 1].path) if chosen else options.reference,
                "best_iteration": iterations[best],
                "last_iteration": iterations[-1],
                "kl": float(candidates[chosen].kl.mean()),
                "gold": float(candidates[chosen].gold[reporting].mean()),
                "last_gold": float(last.gold[reporting].mean()),
            }
        )
    verdict = {
        "policies": min(len(policies) for _, policies, _ in runs),
        "prompts": int(reporting.sum()),
        **_change("last", np.mean(lost, 0)),
        "proxy": float(np.mean(hidden)),
        "pick": float(np.mean(unseen)),
        **_change("picked", np.mean(missed, 0)),
        **_change("gain", np.mean(gained, 0)),
        "proxy_gain": float(np.mean(pleased)),
    }
    points = [
        {
            "path": path,
            "points": [{"iteration": p.iteration, **_point(m, start)} for p, m in zip(policies, measured, strict=True)],
        }
        for path, policies, measured in runs
    ]
    found = fit(courses, start.gold, "rl", options.seed)
    return {
        "name": name,
        "runs": points,
        "fit": found,
        "form": form_of(found, points, "rl"),
        "picked": picked,
        "verdict": verdict,
        "words": in_words(verdict, picked, options.pick_by, options.gold if is_model(options.gold) else None),
    }


def _change(name: str, differences: np.ndarray) -> dict[str, Any]:
    """The mean of differences in gold (P,), its interval, and how many prompts differ at all."""
    best = "" if name == "gain" else "_less_best"
    interval, prompts = mean_interval(differences), decisive(differences, than=0)
    return {f"{name}{best}": float(differences.mean()), f"{name}_interval": interval, f"{name}_prompts": prompts}


def in_words(
    verdict: dict[str, Any], picked: list[dict[str, Any]], pick_by: str | None = None, gold_model: str | None = None
) -> str:
    """What gold lost from its best policies to the last ones, and to those that something else than gold picked. Best
    and picked are chosen on one half of the prompts, the gold told is that of the other half.

    Gold that fell is said to have fallen, whatever other judges say. That it did not fall is said only of a course of
    `FEWEST_POINTS` policies or more.

    Args:
        gold_model: the reward model that is taken for gold, where it is one.
    """
    words, fell = _of_gold(verdict, picked)
    if gold_model and not fell:
        words += f" (by {gold_model}, itself a reward model, which the same answers may deceive)"
    if pick_by is None:
        return words
    if fell and verdict["pick"] > 0:
        words += f"; {pick_by} is deceived as well, it rose by {number(verdict['pick'])}"
    warning = ", clearly worse" if shown(verdict["picked_interval"], verdict["picked_prompts"], than=0) < 0 else ""
    choice = f"{pick_by} picks {_iterations(picked, 'iteration')}{warning}"
    return f"{words}; {choice}: {_gold(verdict, 'picked_less_best', 'picked')} against what gold itself would take"


def _of_gold(verdict: dict[str, Any], picked: list[dict[str, Any]]) -> tuple[str, bool]:
    """What is to be said of gold alone, and whether it fell."""
    best = _iterations(picked, "best_iteration")
    lost, gained = _gold(verdict, "last_less_best", "last"), _gold(verdict, "gain", "gain")
    for than, change, name, proxy in (
        (best, lost, "last", verdict["proxy"]), ("the reference", gained, "gain", verdict["proxy_gain"])
    ):  # fmt: skip
        if shown(verdict[f"{name}_interval"], verdict[f"{name}_prompts"], than=0) < 0:
            worse = f"the last policy is worse than {than}: {change}"
            if proxy > 0:
                return f"over-optimised: {worse}, while the proxy rose by {number(proxy)}", True
            return f"gold fell: {worse}, and the proxy fell by {number(-proxy)} as well", True
    if verdict["policies"] < FEWEST_POINTS:
        many = "one policy" if verdict["policies"] == 1 else f"{verdict['policies']} policies"
        return (
            f"over-optimisation cannot be told from {many} of a run, keep {FEWEST_POINTS} or more with --save-every; "
            f"from the reference to the last policy: {gained}"
        ), False
    if verdict["prompts"] < FEWEST_PROMPTS:
        return f"over-optimisation cannot be told from {verdict['prompts']} prompts: {lost}", False
    if all(one["best_iteration"] == one["last_iteration"] for one in picked):
        return "the last policy is the best of those measured: no sign of over-optimisation", False
    return f"the last policy is not clearly worse than the best, {best}: {lost}", False


def _gold(verdict: dict[str, Any], value: str, name: str) -> str:
    limits = verdict[f"{name}_interval"]
    spread = f" [{number(limits[0])}, {number(limits[1])}]" if limits else ""
    return f"gold {number(verdict[value])}{spread}"


def _iterations(picked: list[dict[str, Any]], of: str) -> str:
    places = (f"iteration {one[of]}" if one[of] else "the reference" for one in picked)
    return " and ".join(dict.fromkeys(places))


def best_of_curve(ruler: Ruler, start: Measured, options: FrontierOptions) -> dict[str, Any]:
    """Best-of-n of the reference by the proxy, for n = 1, 2, 4, … up to --best-of.

    As in training, an answer that did not end is taken only where none did.
    """
    answers = [start]
    for repeat in range(1, options.best_of):
        name = f"the reference, answer {repeat + 1}"
        answers.append(ruler.measure(name, options.reference, f"reference-{repeat}", repeat))
    proxy, gold, finished, lengths = (
        np.stack([getattr(m, of) for m in answers], 1) for of in ("proxy", "gold", "finished", "length")
    )  # (P, N)
    order = np.lexsort((proxy, finished), axis=1)  # the last key counts first
    ranks = np.argsort(order, axis=1)  # (P, N), 0 for the worst
    # The mean of all N answers is the best of 1: a steadier zero than the first answer alone.
    names = ("kl", "gold", "proxy", "pick", "finished", "length")
    start = Measured(**{of: np.mean([getattr(m, of) for m in answers], 0) for of in names})
    sizes = sorted({2**k for k in range(options.best_of.bit_length())} | {options.best_of})
    sizes = [n for n in sizes if 1 < n <= options.best_of]
    points, golds, proxies, kls = [], [], [], []
    for n in sizes:
        weights = best_of_n_weights(ranks, n)
        expected = {
            "kl": np.full(len(proxy), best_of_n_kl(n)),
            **{k: (weights * v).sum(1) for k, v in
               {"gold": gold, "proxy": proxy, "finished": finished, "length": lengths}.items()},
        }  # fmt: skip
        one = Measured(**expected, pick=expected["gold"])
        golds.append(one.gold)
        proxies.append(one.proxy)
        kls.append(one.kl)
        points.append({"n": n, **_point(one, start)})
    course = Course(np.stack(kls), np.stack(golds), np.stack(proxies))
    found, runs = fit([course], start.gold, "best-of-n", options.seed), [{"path": options.reference, "points": points}]
    return {
        "name": "best-of-n",
        "runs": runs,
        "fit": found,
        "form": form_of(found, runs, "best-of-n"),
        "picked": [],
        "verdict": None,
        "words": "",
    }


def _table(curves: list[dict[str, Any]]) -> Table:
    table = Table(title="gold over sqrt(KL)", title_justify="left", show_edge=False)
    for column in ("", "runs", "KL at the end", "gold gained", "proxy gained", "alpha", "beta", "peak at KL"):
        table.add_column(column, justify="left" if not column else "right")
    for of_name in curves:
        last = [one["points"][-1] for one in of_name["runs"]]
        means = [number(float(np.mean([one[key] for one in last]))) for key in ("kl", "gold_gain", "proxy_gain")]
        form = of_name["fit"]
        cells = ["–"] * 3
        if form:
            cells = [number(form[key]) for key in ("alpha", "beta", "peak_kl")]
        table.add_row(of_name["name"], str(len(last)), *means, *cells)
    return table
