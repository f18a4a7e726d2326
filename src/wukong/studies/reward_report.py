"""`wukong reward-report`: how good is a reward model, and would more labels improve it?

In:  a reward model trained by `wukong reward`, and comparisons: by default those held out from its training.
Out: out/report.html, a self-contained page, and out/report.json with every figure on it.

    wukong reward-report runs/mine/reward --samples sft=runs/mine/responses.jsonl --out runs/mine/reward-report

docs/tools/reward-report.md describes the measurements and their sources. The learning curve fits the same model with
the same options on nested fractions of the training prompts and tests all fits on the same pairs; the reward model
itself is the fit on all prompts.

Shape legend: N pairs.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError
from rich.table import Table

from wukong import require
from wukong.console import console, say
from wukong.data.answers import answers_ids
from wukong.data.comparisons import COMPARISONS, load_comparisons
from wukong.data.sources import DataOptions
from wukong.data.split import group_of
from wukong.data.summary import ReadSummary
from wukong.errors import Text, UsageError
from wukong.files import atomic_open, write_json
from wukong.language import counted, spoken
from wukong.model.heads import ScalarModel
from wukong.model.hub import load_reward
from wukong.options import StageOptions
from wukong.provenance import read_record
from wukong.records import Messages, Preference, prompt_id
from wukong.report.formatting import interval, percent
from wukong.report.reward_page import render_reward
from wukong.require import Need
from wukong.scoring import scores_of
from wukong.seeds import permutation
from wukong.stages.reward import RewardOptions, calibration, fit, groups_of, new_model, records_of
from wukong.stats import FEWEST_PROMPTS, chance_problem, decisive, mean_interval, shown
from wukong.studies.answers import read_answers, split_name
from wukong.studies.pairs import Pair, agreement, calibration_error, pairs_of, proportion, right, simple_judges, slices
from wukong.tokenizer import Tokenizer
from wukong.training.compute import Compute, Precision, compute_for


class RewardReportOptions(StageOptions, DataOptions):
    """Measure a reward model: where it is right, what it relies on, and whether more labels would help."""

    reward_model: str
    """The reward model's directory."""
    data: list[str] = []
    """Comparisons to test on; by default those held out when the reward model was trained."""
    samples: list[str] = []
    """name=responses.jsonl of models whose answers are to be scored too, such as sft and policy."""
    fractions: list[float] = [0.125, 0.25, 0.5]
    """Fractions of the training prompts to fit for the learning curve; no value leaves it out."""
    mistakes: int = Field(12, ge=0)
    """The number of worst mistakes to show."""
    micro_batch_tokens: int = Field(8192, ge=1)
    """Tokens per forward pass."""
    precision: Precision = "auto"
    """bfloat16 where it is faster, or as named."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps (an Apple GPU)."""


@dataclass
class Scorer:
    """Scores each distinct answer once with a reward model."""

    model: ScalarModel
    tokenizer: Tokenizer
    compute: Compute
    max_tokens: int

    def scores(self, answers: Sequence[tuple[Messages, str]]) -> np.ndarray:
        """The scores (N,) of (prompt, answer) pairs; NaN for one that does not fit the context. All answers to a prompt
        are scored with the same (possibly shortened) prompt."""
        context = self.model.config.n_positions
        keys = [(prompt_id(messages), text) for messages, text in answers]
        distinct = dict(zip(keys, answers, strict=True))
        read = answers_ids(self.tokenizer, list(distinct.values()), context)
        fits = {key: ids for key, ids in zip(distinct, read, strict=True) if ids is not None}
        found = scores_of(self.model, list(fits.values()), self.compute, self.max_tokens)
        by_key = dict(zip(fits, found, strict=True))
        return np.array([by_key.get(key, math.nan) for key in keys])

    def margins(self, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
        """Scores of the chosen and of the rejected answers, (N,) each."""
        both = self.scores([(p.prompt, p.chosen) for p in pairs] + [(p.prompt, p.rejected) for p in pairs])
        return both[: len(pairs)], both[len(pairs) :]

    def lengths(self, pairs: Sequence[Pair]) -> np.ndarray:
        """(N, 2) tokens of the chosen and the rejected answers."""
        count = [[len(self.tokenizer.encode(text)) for text in (p.chosen, p.rejected)] for p in pairs]
        return np.array(count)


def needs(options: RewardReportOptions) -> list[Need]:
    if any(not 0 < fraction < 1 for fraction in options.fractions):
        raise UsageError("--fractions: each must be between 0 and 1")
    samples = _samples(options)
    if _trained_with(options.reward_model) is None and not options.data:
        raise UsageError(NO_DATA.format(options.reward_model))
    return [
        require.reward_model(options.reward_model),
        *require.data(options.data, require.reader(COMPARISONS, options)),
        *map(require.some_lines, samples.values()),
        require.device(options.device),
    ]


NO_DATA = "{}: no provenance.json of wukong reward with data; give --data"


def _samples(options: RewardReportOptions) -> dict[str, str]:
    return require.distinct_names([split_name(one) for one in options.samples], "--samples")


def run(options: RewardReportOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError if a fit fails."""
    work = require.open_stage("reward-report", options, needs(options))
    if work.done:
        return
    samples = _samples(options)
    trained = _trained_with(options.reward_model)
    # ------------------------------------------------------------------------------------------- model and data
    model, tokenizer = load_reward(options.reward_model)
    compute = compute_for(options.precision, options.device)
    scorer = Scorer(model.to(compute.device).eval(), tokenizer, compute, options.micro_batch_tokens)
    train_records, test_records, notes = _records(options, trained)
    pairs = pairs_of(test_records)
    if not pairs:
        raise UsageError(f"{options.reward_model}: no comparisons left to test on; give --data")
    chosen, rejected = scorer.margins(pairs)
    kept = np.flatnonzero(~np.isnan(chosen - rejected))
    if len(kept) < len(pairs):
        left_out, context = len(pairs) - len(kept), model.config.n_positions
        notes.append(Text("{n:,} pairs do not fit the context of {context} tokens", n=left_out, context=context))
    if not len(kept):
        raise UsageError(f"no pair fits the context of {model.config.n_positions} tokens")
    pairs, chosen, rejected = [pairs[i] for i in kept], chosen[kept], rejected[kept]
    say(
        "reward-report: {pairs} to test on, {records:,} records it was trained on",
        pairs=counted(len(pairs), "{n:,} pair", "{n:,} pairs"),
        records=len(train_records),
    )
    # -------------------------------------------------------------------------------------------------- measure
    margins, lengths, prompts = chosen - rejected, scorer.lengths(pairs), [prompt_id(p.prompt) for p in pairs]
    scale = float(trained[1].get("normalised_from", {}).get("std", 1.0)) if trained else 1.0
    bins = calibration(margins * scale)  # the scale at which -log sigmoid was minimised
    train_pairs = pairs_of(train_records)
    train_scores = scorer.margins(train_pairs)
    train_margins = train_scores[0] - train_scores[1]
    fits = np.flatnonzero(~np.isnan(train_margins))
    seen = [train_pairs[i] for i in fits], train_margins[fits]
    accuracy = proportion(right(margins), prompts)
    problem = chance_problem(accuracy["value"], accuracy["interval"], len(pairs), accuracy["prompts"])
    report: dict[str, Any] = {
        "reward_model": options.reward_model,
        "data": options.data or "held out in training",
        "notes": notes,
        "unseen": bool(train_records),
        "train_pairs": len(train_pairs),
        "accuracy": accuracy,
        "by": slices(pairs, margins, lengths, prompts),
        "calibration": {"bins": bins, "error": calibration_error(bins), "scale": scale},
        "judges": simple_judges(pairs, margins, lengths, prompts, seen if train_records else None),
        "agreement": agreement([*train_records, *test_records]),
        "scores": _distributions(scorer, {"chosen": chosen, "rejected": rejected}, samples, options.skip_bad),
        "mistakes": _mistakes(pairs, chosen, rejected, options.mistakes),
        "learning_curve": _learning_curve(options, trained, train_records, pairs, right(margins), prompts),
        "preflight": {"passed": problem is None, "problem": problem},
    }
    # --------------------------------------------------------------------------------------------------- save
    files = [options.out / "report.json", options.out / "report.html"]
    write_json(files[0], report)
    with atomic_open(files[1]) as out:
        out.write(render_reward(report))
    console.print(_table(report))
    say("preflight: {result}", result=Text("passed") if problem is None else problem)
    say("reward-report: open {page} in a browser", page=files[1])
    work.finish({name: report[name] for name in ("accuracy", "preflight")}, files)
    shutil.rmtree(options.out / "fits", ignore_errors=True)


def _trained_with(reward_model: str) -> tuple[RewardOptions, dict[str, Any]] | None:
    """The options and results of the training run; None for a model from elsewhere."""
    path = Path(reward_model) / "provenance.json"
    if not path.is_file():
        return None
    record = read_record(path) or {}
    if record.get("stage") != "reward":
        raise UsageError(f"{reward_model}: holds the result of '{record.get('stage')}', expected a reward model")
    try:
        return RewardOptions.model_validate(record["options"]), record.get("results", {})
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path}: option {option}: {first['msg']}; was it written by another version?") from None


def _records(
    options: RewardReportOptions, trained: tuple[RewardOptions, dict[str, Any]] | None
) -> tuple[list[Preference], list[Preference], list[str]]:
    """(training records, empty if unknown; test records; notes for the reader).

    Prompts of the training data are left out of --data.
    """
    train: list[Preference] = []
    test: list[Preference] = []
    notes: list[str] = []
    if trained is not None:
        try:
            train, test, _ = records_of(trained[0])
        except UsageError as error:
            if not options.data:
                raise UsageError(f"{error}; its provenance names this file: run where it was trained") from None
            note = Text("its training data cannot be read ({error}): no bag of words, no learning curve", error=error)
            say("reward-report: {note}", note=note)
            notes.append(note)
    if trained is None:
        notes.append(Text("the model's training data are not recorded: these prompts may be among them"))
    if options.data:
        read = load_comparisons(options.data, options)
        console.print(read.summary.table("comparisons"))
        known = {group_of(record) for record in train}
        test = [record for record in read.records if group_of(record) not in known]
        if left_out := len(read.records) - len(test):
            notes.append(Text("{n:,} comparisons left out: the model was trained on their prompts", n=left_out))
    return train, test, notes


def _distributions(
    scorer: Scorer, known: dict[str, np.ndarray], samples: dict[str, str], skip_bad: int, bins: int = 40
) -> dict[str, Any]:
    """Histograms on common bins and a few quantiles, of the pairs' two sides and of each named file of answers."""
    sets = dict(known)
    for name, path in samples.items():
        found = scorer.scores([(one.messages, one.text) for one in read_answers(path, name, skip_bad)])
        if np.isnan(found).all():
            raise UsageError(f"{path}: no answer fits the reward model's context")
        sets[name] = found[~np.isnan(found)]
    everything = np.concatenate(list(sets.values()))
    low, high = everything.min(), everything.max()
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    return {
        "edges": edges.tolist(),
        "sets": {
            name: {
                "n": len(values),
                "mean": float(values.mean()),
                "std": float(values.std()),
                "quantiles": {str(q): float(np.quantile(values, q / 100)) for q in (5, 25, 50, 75, 95)},
                "counts": np.histogram(values, edges)[0].tolist(),
            }
            for name, values in sets.items()
        },
    }


def _mistakes(pairs: Sequence[Pair], chosen: np.ndarray, rejected: np.ndarray, count: int) -> list[dict[str, Any]]:
    """The most confident wrong choices, the worst first, one per prompt."""
    found: list[dict[str, Any]] = []
    prompts = set()
    for i in np.argsort(chosen - rejected, kind="stable"):
        if len(found) == count or chosen[i] >= rejected[i]:
            break
        one = pairs[i]
        if (prompt := prompt_id(one.prompt)) not in prompts:
            prompts.add(prompt)
            found.append(
                {
                    "messages": [m.model_dump() for m in one.prompt],
                    "source": one.source,
                    "chosen": {"text": one.chosen, "score": float(chosen[i])},
                    "rejected": {"text": one.rejected, "score": float(rejected[i])},
                    "margin": float(chosen[i] - rejected[i]),
                }
            )
    return found


# ------------------------------------------------------------------------------------------------- learning curve


def _learning_curve(
    options: RewardReportOptions, trained: tuple[RewardOptions, dict[str, Any]] | None,
    train: Sequence[Preference], pairs: Sequence[Pair], outcome: np.ndarray, prompts: Sequence[str],
) -> dict[str, Any] | None:  # fmt: skip
    """Accuracy on the same pairs of fits on fractions of the training prompts; None if those are unknown.

    outcome: (N,) 1, 1/2 or 0, for the reward model itself.
    """
    if trained is None or not train or not options.fractions:
        return None
    here = {"tensorboard": False, "device": options.device, "precision": options.precision}
    settings = trained[0].model_copy(update=here)
    model, tokenizer = new_model(settings)
    groups = groups_of(list(train), tokenizer, model.config.n_positions, settings, ReadSummary())
    order = permutation(len(groups), options.seed, "learning curve")
    points = []
    outcomes = []
    for fraction in sorted(options.fractions):
        part = [groups[i] for i in sorted(order[: max(1, round(fraction * len(groups)))])]
        place = options.out / "fits" / f"{fraction:g}"
        fresh, _ = new_model(settings)
        say("reward-report: a fit on {fraction:.3g} of the prompts", fraction=fraction)
        _, session = fit(fresh, tokenizer, part, [], settings.model_copy(update={"out": place}))
        session.checkpoint(session.total_steps)  # a retry, or the next fit, does not repeat this one
        scorer = Scorer(fresh.eval(), tokenizer, session.compute, options.micro_batch_tokens)
        chosen, rejected = scorer.margins(pairs)
        own = right(np.nan_to_num(chosen - rejected))
        outcomes.append(own)
        points.append({"fraction": fraction, "prompts": len(part), "accuracy": proportion(own, prompts)})
    outcomes.append(outcome)
    whole = proportion(outcome, prompts)
    points.append({"fraction": 1.0, "prompts": len(groups), "accuracy": whole})
    gain = _gain(outcomes[-2], outcome, prompts)
    return {"points": points, "gain": gain, "advice": _advice(points, gain)}


def _gain(before: np.ndarray, after: np.ndarray, prompts: Sequence[str]) -> dict[str, Any]:
    """The mean difference on the same pairs, its 95 % interval over prompts, and the number of prompts that differ."""
    _, member = np.unique(np.asarray(prompts), return_inverse=True)
    sums, counts = np.bincount(member, weights=after - before), np.bincount(member)
    interval = mean_interval(sums, counts)
    return {"value": float((after - before).mean()), "interval": interval, "prompts": decisive(sums, counts, than=0)}


def _advice(points: Sequence[dict[str, Any]], gain: dict[str, Any]) -> Text:
    """Advice on whether to label more."""
    begin, end = points[-2], points[-1]
    low, high = gain["interval"] or (-math.inf, math.inf)
    spread = f" [{100 * low:+.1f}, {100 * high:+.1f}]" if gain["interval"] else ""
    step = Text(
        "from {before:,} to {after:,} prompts accuracy changed by {points:+.1f} points{spread}",
        before=begin["prompts"],
        after=end["prompts"],
        points=100 * gain["value"],
        spread=spread,
    )
    if shown(gain["interval"], gain["prompts"], than=0) > 0:
        return Text("Label more: {step}, and the curve still rises.", step=step)
    if high < 0.01 and points[-1]["accuracy"]["prompts"] >= FEWEST_PROMPTS:
        return Text("More of the same labels would hardly help: {step}.", step=step)
    return Text("Unclear whether more labels would help: {step}; test on more pairs to find out.", step=step)


# ------------------------------------------------------------------------------------------------------ terminal


def _table(report: dict[str, Any]) -> Table:
    """The key numbers."""
    table = Table(title=spoken("Reward model {path}", path=report["reward_model"]))
    table.add_column(spoken("what"))
    table.add_column(spoken("value"), justify="right")
    table.add_column(spoken("95 % interval"), justify="right")

    def row(name: str, entry: dict[str, Any] | None) -> None:
        if entry is not None:
            spread = interval(entry["interval"], as_percent=True)
            table.add_row(spoken(name), percent(entry["value"]), spoken(spread))

    row(Text("accuracy on {pairs:,} pairs", pairs=report["accuracy"]["pairs"]), report["accuracy"])
    row("always the longer answer", report["judges"]["length"]["accuracy"])
    row("its choices that are the longer answer", report["judges"]["length"]["explains"])
    if words := report["judges"]["bag_of_words"]:
        row("a bag of words", words["accuracy"])
        row("its choices that a bag of words makes too", words["explains"])
    if (error := report["calibration"]["error"]) is not None:
        table.add_row(spoken("expected calibration error"), percent(error), "")
    if people := report["agreement"]:
        row("two people agree", {"value": people["agreement"], "interval": people["agreement_interval"]})
        ceiling = interval(people["ceiling"], as_percent=True)
        table.add_row(spoken("best accuracy that leaves possible"), spoken(ceiling), "")
    if curve := report["learning_curve"]:
        for point in curve["points"][:-1]:
            fitted = Text("fitted to {percent:.3g} % of the prompts", percent=100 * point["fraction"])
            row(fitted, point["accuracy"])
    return table
