"""`wukong frontier`: did RL improve the policy, or hack its reward? Gold and proxy reward over KL to the reference.

In:  policies, including intermediate ones (--save-every); the SFT model; their reward model (proxy); gold; prompts.
Out: out/frontier.html, a self-contained page, and out/frontier.json with every figure on it.

    wukong frontier ppo=runs/mine/ppo-0 ppo=runs/mine/ppo-1 rloo=runs/mine/rloo --reference runs/mine/sft
        --proxy runs/mine/reward --gold rubric --prompts test.jsonl --out runs/mine/frontier

Runs of the same name are its seeds. All policies answer the same prompts with the same random numbers. Each policy's
measurements are kept in out/measured, so that an interrupted study resumes with the next one. Forms, fits and the
choice of a checkpoint: docs/tools/frontier.md.

Shape legend: P prompts, N answers per prompt, K policies of one run.
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
from wukong.errors import Text, UsageError
from wukong.feedback.annotators import load_judge
from wukong.feedback.judge import Judge
from wukong.feedback.replies import forget_replies, replies_path
from wukong.feedback.reward_models import is_model, reward_judge
from wukong.files import atomic_open, read_json, write_json
from wukong.language import joined, spoken
from wukong.model.hub import load_policy, recommended_sampling
from wukong.objectives import best_of_n_kl
from wukong.records import Prompt
from wukong.report.formatting import number
from wukong.report.frontier_page import render_frontier
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
from wukong.stats import FEWEST_PROMPTS, decisive, mean_interval, shown
from wukong.studies.answers import split_name
from wukong.studies.overoptimisation import FEWEST_POINTS, Form, Trajectory, best_of_n_weights, curve, fit
from wukong.training.compute import Compute, compute_for
from wukong.training.metrics import read_metrics


class FrontierOptions(AnswerOptions):
    """Gold and proxy reward over KL to the reference, by algorithm, and the checkpoint to choose."""

    runs: list[str]
    """name=DIRECTORY of each policy; repeat a name for further seeds. Policies in its policies/ are included."""
    reference: str
    """The SFT model from which they were trained."""
    proxy: str
    """The reward model they were trained on."""
    gold: str
    """The gold reward: rubric, lexicon, a verifier, openai:MODEL[@URL][#RUBRIC], module:function, or a reward model no
    policy was trained on."""
    pick_by: str | None = None
    """What picks a checkpoint in place of gold: a reward model trained on the other half (`reward --half`)."""
    best_of: int = Field(16, ge=0, le=MOST_ANSWERS)
    """Best-of-n of the reference for n up to this number; 0 leaves it out."""


@dataclass(frozen=True)
class PolicyPoint:
    """One point of a trajectory: an intermediate policy, or the last one."""

    iteration: int
    path: Path


@dataclass(frozen=True)
class Measurements:
    """Measurements of one policy's answers, one value per prompt. All (P,)."""

    kl: np.ndarray  # nats
    gold: np.ndarray
    proxy: np.ndarray
    pick: np.ndarray
    finished: np.ndarray  # 1 or 0
    length: np.ndarray  # tokens


class PolicyEvaluator:
    """Measures policies on the prompts, each policy once."""

    def __init__(self, options: FrontierOptions, prompts: list[Prompt], compute: Compute) -> None:
        self.options, self.prompts, self.compute = options, prompts, compute
        self.gold, self.proxy = self._judge(options.gold), self._judge(options.proxy)
        self.pick = self._judge(options.pick_by) if options.pick_by else None
        model, tokenizer = load_policy(options.reference)
        self.reference = Reference(model.to(compute.device).eval(), tokenizer)

    def _judge(self, name: str) -> Judge:
        if is_model(name):
            options = self.options
            # Policies are judged separately: reserving space for the longest answer gives all of them the same prompt.
            return reward_judge(name, self.compute, options.micro_batch_tokens, options.max_new_tokens)
        return load_judge(name, replies_path(self.options.out, directory=True))

    def measure(self, name: str, path: str | Path, key: str, repeat: int = 0) -> Measurements:
        """Measures the policy at `path`, with different random numbers for each `repeat`; cached in
        out/measured/KEY.json.

        Raises UsageError for a policy whose tokenizer is not the reference's.
        """
        file = self.options.out / "measured" / f"{key}.json"
        if not file.exists():
            seed = derived_seed(self.options.seed, "best-of", repeat) if repeat else self.options.seed
            options = self.options.model_copy(update={"seed": seed})
            policy, tokenizer = load_policy(path)
            if tokenizer.fingerprint != self.reference.tokenizer.fingerprint:
                raise UsageError(f"{path}: its tokenizer is not the reference's, so their KL is undefined")
            policy.to(self.compute.device).eval()
            answers = answer_all(name, str(path), policy, tokenizer, self.prompts, options, self.compute)
            judges = {"gold": self.gold, "proxy": self.proxy, "pick": self.pick}
            asked = self.prompts
            found = {who: [o.score for o in judge(asked, answers.texts)] for who, judge in judges.items() if judge}
            kl = kl_of(policy, self.reference.model, answers, options, self.compute)
            found |= {"kl": kl.tolist(), "finished": [float(s.finished) for s in answers.sampled]}
            write_json(file, found | {"length": [float(len(s.ids)) for s in answers.sampled]})
        values = {name: np.array(own) for name, own in read_json(file).items()}
        return Measurements(**{"pick": values["gold"], **values})


def needs(options: FrontierOptions) -> list[Need]:
    runs = [split_name(one) for one in options.runs]
    if not runs:
        raise UsageError("no policies: give name=directory for each")
    if options.temperature == 0:
        raise UsageError("--temperature 0: greedy answers have no KL; use the temperature of training")
    if options.raw:
        raise UsageError(f"--raw {options.raw[0]}: policies answer through the chat template they were trained with")
    judges = (options.gold, options.proxy, options.pick_by)
    return [
        *map(require.judge, dict.fromkeys(name for name in judges if name)),
        *(Need(lambda planned, path=path: policies_of(Path(path)), path) for _, path in runs),  # type: ignore[misc]
        *answer_needs([options.reference], options),
        *require.judged_prompts(options.prompts, options, [one for one in judges if one]),
    ]


def run(options: FrontierOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError if a judge fails."""
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
    evaluator = PolicyEvaluator(options, prompts, compute_for(options.precision, options.device))
    start = evaluator.measure(Text("the reference"), options.reference, "reference-0")
    found: dict[str, list[tuple[str, list[PolicyPoint], list[Measurements]]]] = defaultdict(list)
    for number_of_run, ((name, path), of_run) in enumerate(zip(runs, policies, strict=True)):
        measured = [
            evaluator.measure(f"{name} {one.iteration}", one.path, f"{number_of_run}-{one.iteration}") for one in of_run
        ]
        found[name].append((path, of_run, measured))
    # -------------------------------------------------------------------------------------------------- numbers
    first = halves(prompts, options.seed)[0]
    picking = np.isin([p.id for p in prompts], [p.id for p in first])
    if not 0 < picking.sum() < len(prompts):
        raise UsageError(f"{len(prompts)} prompts are too few to pick on one half and report on the other")
    curves = [curve_of(name, of_name, start, picking, options) for name, of_name in found.items()]
    if options.best_of > 1:
        curves.append(best_of_curve(evaluator, start, options))
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
    say("frontier: {words}", words=report["overlap"]["words"])  # type: ignore[index]
    for one in curves:
        if one["words"]:
            say("{name}: {words}", name=one["name"], words=one["words"])
    say("frontier: open {page} in a browser", page=files[1])
    work.finish({one["name"]: one["words"] for one in curves}, files)
    forget_replies(options.out, directory=True)


def policies_of(directory: Path) -> list[PolicyPoint]:
    """A run's intermediate policies, and its last one if it finished."""
    kept = [
        PolicyPoint(int(path.name.rpartition("-")[2]), path) for path in sorted(directory.glob("policies/iteration-*"))
    ]
    if (directory / "config.json").is_file():
        metrics = read_metrics(directory)
        last = int(metrics[-1]["step"]) if metrics else (kept[-1].iteration if kept else 0) + 1
        kept.append(PolicyPoint(last, directory))
    if not kept:
        raise UsageError(f"{directory}: contains no policy")
    return kept


def form_of(fit: dict[str, Any] | None, runs: list[dict[str, Any]], kind: Form) -> list[list[float]]:
    """The fitted form as points (sqrt(KL), gain) from the reference to the largest KL; none without a fit."""
    if fit is None:
        return []
    reach = max(max(0.0, point["kl"]) for one in runs for point in one["points"])
    d = np.linspace(0, reach**0.5, 60)
    result: list[list[float]] = np.stack([d, curve(d, fit["alpha"], fit["beta"], kind)], 1).tolist()
    return result


def _point(one: Measurements, start: Measurements) -> dict[str, Any]:
    """A policy's means, and its gains over the reference with intervals over prompts."""
    gains = {name: getattr(one, name) - getattr(start, name) for name in ("gold", "proxy")}
    return {
        **{name: float(getattr(one, name).mean()) for name in ("kl", "gold", "proxy", "pick", "length")},
        "termination_rate": float(one.finished.mean()),
        **{f"{name}_gain": float(gain.mean()) for name, gain in gains.items()},
        **{f"{name}_gain_interval": mean_interval(gain) for name, gain in gains.items()},
    }


def curve_of(
    name: str, runs: list[tuple[str, list[PolicyPoint], list[Measurements]]], start: Measurements, picking: np.ndarray,
    options: FrontierOptions,
) -> dict[str, Any]:  # fmt: skip
    """One algorithm: its points, the fitted form, the checkpoint to choose in each run, and the conclusion.

    picking: (P,) bool, the prompts on which checkpoints are picked; the others measure the result.
    """
    trajectories = [
        Trajectory(*(np.stack([getattr(m, of) for m in ms]) for of in ("kl", "gold", "proxy"))) for *_, ms in runs
    ]
    picked: list[dict[str, Any]] = []
    lost, hidden, unseen, missed, gained, pleased = ([] for _ in range(6))
    reporting = ~picking
    for path, policies, measured in runs:
        candidates = [start, *measured]  # includes the reference: RL may have made things worse
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
    found = fit(trajectories, start.gold, "rl", options.seed)
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
    """The mean of differences in gold (P,), its interval, and the number of prompts that differ."""
    best = "" if name == "gain" else "_less_best"
    interval, prompts = mean_interval(differences), decisive(differences, than=0)
    return {f"{name}{best}": float(differences.mean()), f"{name}_interval": interval, f"{name}_prompts": prompts}


def in_words(
    verdict: dict[str, Any], picked: list[dict[str, Any]], pick_by: str | None = None, gold_model: str | None = None
) -> Text:
    """The gold lost between the best policies and the last ones, or those picked by something other than gold. Best and
    picked are chosen on one half of the prompts; gold is reported on the other half.

    A fall in gold is always reported. That it did not fall is stated only for a trajectory of at least `FEWEST_POINTS`
    policies.

    Args:
        gold_model: the reward model used as gold, if it is one.
    """
    words, fell = _of_gold(verdict, picked)
    if gold_model and not fell:
        exploited = "{words} (by {model}, itself a reward model, which the same answers may exploit)"
        words = Text(exploited, words=words, model=gold_model)
    if pick_by is None:
        return words
    if fell and verdict["pick"] > 0:
        exploited = "{words}; {judge} is exploited as well: it rose by {gain}"
        words = Text(exploited, words=words, judge=pick_by, gain=number(verdict["pick"]))
    picks = "{words}; {judge} picks {policies}: {gold} compared with gold's own choice"
    if shown(verdict["picked_interval"], verdict["picked_prompts"], than=0) < 0:
        picks = "{words}; {judge} picks {policies}, clearly worse: {gold} compared with gold's own choice"
    policies, gold = _iterations(picked, "iteration"), _gold(verdict, "picked_less_best", "picked")
    return Text(picks, words=words, judge=pick_by, policies=policies, gold=gold)


def _of_gold(verdict: dict[str, Any], picked: list[dict[str, Any]]) -> tuple[Text, bool]:
    """The conclusion about gold alone, and whether it fell."""
    best = _iterations(picked, "best_iteration")
    lost, gained = _gold(verdict, "last_less_best", "last"), _gold(verdict, "gain", "gain")
    for than, change, name, proxy in (
        (best, lost, "last", verdict["proxy"]), (Text("the reference"), gained, "gain", verdict["proxy_gain"])
    ):  # fmt: skip
        if shown(verdict[f"{name}_interval"], verdict[f"{name}_prompts"], than=0) < 0:
            fell = "gold fell: the last policy is worse than {than}: {change}, and the proxy fell by {proxy} as well"
            if proxy > 0:
                fell = "over-optimised: the last policy is worse than {than}: {change}, while the proxy rose by {proxy}"
            return Text(fell, than=than, change=change, proxy=number(abs(proxy))), True
    if verdict["policies"] < FEWEST_POINTS:
        unseen = (
            "over-optimisation cannot be seen in {policies} of a run, keep {fewest} or more with --save-every; "
            "from the reference to the last policy: {gained}"
        )
        many = Text("one policy") if verdict["policies"] == 1 else Text("{n} policies", n=verdict["policies"])
        return Text(unseen, policies=many, fewest=FEWEST_POINTS, gained=gained), False
    if verdict["prompts"] < FEWEST_PROMPTS:
        unseen = "over-optimisation cannot be seen with {prompts} prompts: {lost}"
        return Text(unseen, prompts=verdict["prompts"], lost=lost), False
    if all(one["best_iteration"] == one["last_iteration"] for one in picked):
        return Text("the last policy is the best of those measured: no sign of over-optimisation"), False
    return Text("the last policy is not clearly worse than the best, {best}: {lost}", best=best, lost=lost), False


def _gold(verdict: dict[str, Any], value: str, name: str) -> Text:
    limits = verdict[f"{name}_interval"]
    if not limits:
        return Text("gold {value}", value=number(verdict[value]))
    low, high = map(number, limits)
    return Text("gold {value} [{low}, {high}]", value=number(verdict[value]), low=low, high=high)


def _iterations(picked: list[dict[str, Any]], of: str) -> Text:
    places = (Text("iteration {n}", n=one[of]) if one[of] else Text("the reference") for one in picked)
    return joined(list(dict.fromkeys(places)), "{a} and {b}")


def best_of_curve(evaluator: PolicyEvaluator, start: Measurements, options: FrontierOptions) -> dict[str, Any]:
    """Best-of-n of the reference by the proxy, for n = 1, 2, 4, … up to --best-of.

    As in training, a truncated answer is chosen only if all are truncated.
    """
    answers = [start]
    for repeat in range(1, options.best_of):
        name = Text("the reference, answer {n}", n=repeat + 1)
        answers.append(evaluator.measure(name, options.reference, f"reference-{repeat}", repeat))
    proxy, gold, finished, lengths = (
        np.stack([getattr(m, of) for m in answers], 1) for of in ("proxy", "gold", "finished", "length")
    )  # (P, N)
    order = np.lexsort((proxy, finished), axis=1)  # the last key counts first
    ranks = np.argsort(order, axis=1)  # (P, N), 0 for the worst
    # Best-of-1 is the mean of all N answers: less noisy than the first answer alone.
    names = ("kl", "gold", "proxy", "pick", "finished", "length")
    start = Measurements(**{of: np.mean([getattr(m, of) for m in answers], 0) for of in names})
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
        one = Measurements(**expected, pick=expected["gold"])
        golds.append(one.gold)
        proxies.append(one.proxy)
        kls.append(one.kl)
        points.append({"n": n, **_point(one, start)})
    trajectory = Trajectory(np.stack(kls), np.stack(golds), np.stack(proxies))
    found, runs = (
        fit([trajectory], start.gold, "best-of-n", options.seed),
        [{"path": options.reference, "points": points}],
    )
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
    table = Table(title=spoken("gold over sqrt(KL)"), title_justify="left", show_edge=False)
    table.add_column("")
    for column in map(Text, ("runs", "KL at the end", "gold gained", "proxy gained", "alpha", "beta", "peak at KL")):
        table.add_column(spoken(column), justify="right")
    for of_name in curves:
        last = [one["points"][-1] for one in of_name["runs"]]
        means = [number(float(np.mean([one[key] for one in last]))) for key in ("kl", "gold_gain", "proxy_gain")]
        form = of_name["fit"]
        cells = ["–"] * 3
        if form:
            cells = [number(form[key]) for key in ("alpha", "beta", "peak_kl")]
        table.add_row(of_name["name"], str(len(last)), *means, *cells)
    return table
