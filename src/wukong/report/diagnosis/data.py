"""Checks of labels and data: noise, and test prompts that were used in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wukong.errors import Text
from wukong.report.contents import RunContents, StepResult
from wukong.report.diagnosis.curves import curve_of
from wukong.report.diagnosis.findings import Outcome, Unchecked, problem
from wukong.report.diagnosis.records import LabelFile, RunRecords
from wukong.report.diagnosis.results import result, result_interval

NOISY, VERY_NOISY = 0.12, 0.2
"""How often a single judgment is wrong. People agree in 63 to 75 % of real pairs, which is 0.15 to 0.24."""
FEWEST_CHECKS = 20

HOW = {
    "cycles": "of {n} triples of answers that one annotator compared in all pairs, {rate:.0%} form a cycle: a beats b, "
    "b beats c, c beats a ({path})",
    "contradictions": "of {n} repeated judgments of one pair, {rate:.0%} contradict each other ({path})",
}


def noisy_labels(file: LabelFile) -> Outcome:
    """Labels contradict themselves: cycles among one annotator's comparisons, pairs that are judged both ways."""
    code, found = "noisy-labels", file.statistics
    if found is None:
        return Unchecked(code, file.why)
    measured = {"cycles": found.cycles, "contradictions": found.contradictions}
    estimates = [(how, flips) for how, flips in found.flip_rates if flips.n >= FEWEST_CHECKS]
    if not estimates:
        return Unchecked(code, Text("{path}: no pair was judged twice and no cycle is possible", path=file.path.name))
    how, worst = max(estimates, key=lambda one: one[1].low)
    if worst.low < NOISY:
        return None
    rate = measured[how]
    assert rate is not None
    evidence = [
        Text(HOW[how], n=rate.n, rate=rate.value, path=file.path.name),
        Text(
            "so about {value:.0%} [{low:.0%}, {high:.0%}] of the single judgments are wrong",
            value=worst.value, low=worst.low, high=worst.high,
        ),
    ]  # fmt: skip
    advice = [
        Text("have each pair judged by three people and train on the majority: --judgments majority"),
        Text("look for annotators who disagree with the rest on the quality page of the studio"),
    ]
    red = worst.low > VERY_NOISY
    return problem(code, file.step, red, evidence, advice)


TRAIN_BELOW = 0.1
"""Of the pairs: a model that fits its training pairs worse than unseen ones."""


def noise_in_training(step: StepResult) -> Outcome:
    """A reward model is right about more of the held-out pairs than of those that it trained on: those are noisier."""
    code, train = "noisy-labels", curve_of(step, "accuracy", 6)
    accuracy, interval = result(step, "valid_accuracy"), result_interval(step, "valid_accuracy_interval")
    if train is None or accuracy is None or interval is None or interval[0] < 0.5:
        return Unchecked(code, Text("{step}: no accuracy in training and on held-out pairs", step=step.name))
    below = interval[0] - (train.last + 2 * train.last_error)
    if below < 0 or accuracy - train.last < TRAIN_BELOW:
        return None
    evidence = [
        Text(
            "it is right about {accuracy:.0%} [{low:.0%}, {high:.0%}] of the held-out pairs, but only about "
            "{train:.0%} of its training pairs, late in training (valid_accuracy, accuracy)",
            accuracy=accuracy, low=interval[0], high=interval[1], train=train.last,
        )
    ]  # fmt: skip
    advice = [Text("have each pair judged by three people and train on the majority: --judgments majority")]
    return problem(code, step.name, False, evidence, advice)


# ------------------------------------------------------------------------------------------------------------- overlap

SOME, MANY = 0.02, 0.1
"""Of the test prompts."""


def seen_prompts(run: RunContents) -> Outcome:
    """Prompts of an evaluation that its models were trained on, as `wukong evaluate` found."""
    code = "overlap"
    known = [one for one in run.evaluations if one.result.overlap is not None]
    if not known:
        return Unchecked(code, Text("no evaluation that compared its prompts with the training data"))
    for evaluation in known:
        overlap, n = evaluation.result.overlap, evaluation.result.n_prompts
        if overlap is None or not n or overlap.seen < max(3, SOME * n):
            continue
        evidence = [
            Text("{seen} of the {n} prompts were used in training (evaluation.json, overlap)", seen=overlap.seen, n=n),
            overlap.said,
        ]
        advice = [Text("evaluate on prompts that no stage has seen: --holdout with one --seed for all stages")]
        red = overlap.seen >= MANY * n
        return problem(code, evaluation.name, red, evidence, advice)
    return None


def seen_comparisons(records: RunRecords, step: StepResult) -> Outcome:
    """Prompts of a reward model's test comparisons that are among its training comparisons."""
    code = "overlap"
    train, test = (_files(records, step, option) for option in ("data", "eval_data"))
    if not test:
        return None  # held out by prompt
    if not train or any(one.statistics is None for one in [*train, *test]):
        return Unchecked(code, Text("{step}: its comparisons cannot be read", step=step.name))
    known = {key for one in train if one.statistics for key in one.statistics.prompts}
    asked = {key for one in test if one.statistics for key in one.statistics.prompts}
    seen = len(known & asked)
    if seen < max(3, SOME * len(asked)):
        return None
    evidence = [
        Text(
            "{seen} of the {n} prompts of its test comparisons are among its training comparisons",
            seen=seen, n=len(asked),
        )
    ]  # fmt: skip
    advice = [Text("split comparisons by prompt, as --valid-fraction does")]
    return problem(code, step.name, seen >= MANY * len(asked), evidence, advice)


def _files(records: RunRecords, step: StepResult, option: str) -> Sequence[LabelFile]:
    named = step.options.get(option) or []
    paths = {Path(str(source)).absolute() for source in named} if isinstance(named, list) else set()
    return [one for one in records.labels if one.path in paths]
