"""All checks of a run, in pipeline order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from wukong.errors import Text
from wukong.report.contents import StepResult
from wukong.report.diagnosis import data, models, online, responses
from wukong.report.diagnosis.findings import TITLES, Diagnosis, Outcome, RunFinding, Unchecked
from wukong.report.diagnosis.records import RunRecords

ONLINE = ("ppo", "reinforce", "rloo", "grpo", "bestofn")


def diagnose(records: RunRecords) -> Diagnosis:
    """Every finding about the run, the worst first.

    A check counts as passed if it could be made for at least one step and found nothing anywhere; as not made if it
    could be made for none.
    """
    run = records.contents
    outcomes: list[tuple[str, Outcome]] = [
        ("overlap", data.seen_prompts(run)),
        ("never-ends", responses.answers_never_end(run)),
        *(("noisy-labels", data.noisy_labels(file)) for file in records.labels),
    ]
    for step in run.steps:
        outcomes += _of_step(records, step)
    findings = sorted((one for _, one in outcomes if isinstance(one, RunFinding)), key=lambda one: one.rank)
    found = {one.code for one in findings}
    made = {code for code, one in outcomes if one is None}
    unchecked = {one.code: one for _, one in outcomes if isinstance(one, Unchecked)}
    missing = [code for code in TITLES if code not in found | made]
    nothing = Text("no step that it concerns")
    return Diagnosis(
        findings,
        [code for code in TITLES if code in made - found],
        [unchecked.get(code, Unchecked(code, nothing)) for code in missing],
    )


def _of_step(records: RunRecords, step: StepResult) -> Iterator[tuple[str, Outcome]]:
    if step.stage in ("pretrain", "sft", "reward"):
        yield "lr-too-high", models.loss_rises(step)
    if step.stage == "sft":
        yield "lr-too-low", models.loss_stays(step)
        yield "overfitted-sft", models.overfitted(step)
    if step.stage == "reward":
        yield from _of_reward(records, step)
    if step.stage in ("pretrain", "sft", *ONLINE):
        yield "too-little", models.too_few_steps(step)
    if step.stage in ONLINE:
        yield from _of_policy(records, step)


def _of_reward(records: RunRecords, step: StepResult) -> Iterable[tuple[str, Outcome]]:
    yield "reward-at-chance", models.at_chance(step)
    yield "reward-blind", models.reads_no_prompt(step, records.labels_of(step))
    yield "too-little", models.too_few_labels(step)
    yield "noisy-labels", data.noise_in_training(step)
    yield "overlap", data.seen_comparisons(records, step)


def _of_policy(records: RunRecords, step: StepResult) -> Iterable[tuple[str, Outcome]]:
    for code, check in online.CHECKS.items():
        yield code, check(step)
    yield "length-hacking", responses.length_hacking(step, records.contents)
    yield "repetition", responses.repetition(step, records.contents)
    yield "never-ends", responses.never_ends(step, records.contents)
