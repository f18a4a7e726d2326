"""Checks of what the policy writes: longer and longer, the same again and again, without an end."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from wukong.errors import Text
from wukong.report.contents import RunContents, StepResult
from wukong.report.diagnosis.curves import Trend, curve_of
from wukong.report.diagnosis.findings import Outcome, Unchecked, problem
from wukong.report.diagnosis.online import FEWEST, too_short
from wukong.report.diagnosis.verdicts import better_at_equal_length, judged
from wukong.stats import correlation

LONGER, MUCH_LONGER = 1.25, 1.5
"""Last third over first iterations, of the mean length."""
PAID = 0.2
"""Correlation of rewards and lengths."""


def length_hacking(step: StepResult, run: RunContents) -> Outcome:
    """Responses grow, and longer ones score higher: within a batch, and from iteration to iteration."""
    length, score = curve_of(step, "response_length", FEWEST), curve_of(step, "score", FEWEST)
    if length is None or score is None:
        return too_short("length-hacking", step)
    growth = length.last / length.first if length.first > 0 else 1.0
    if growth < LONGER or length.z < 3:
        return None
    inside, across = curve_of(step, "score_length_correlation", FEWEST), _together(length, score)
    within = float(inside.values.mean()) if inside is not None else None
    paid = across > 0.5 and score.z > 3 if within is None else within > PAID or (across > 0.7 and score.z > 3)
    if not paid:
        return None
    evidence = [
        Text(
            "responses grew from {first:.0f} to {last:.0f} tokens (response_length)",
            first=length.first, last=length.last,
        ),
        Text(
            "from iteration to iteration the score rises with the length (correlation {across:.2f})", across=across
        ),
    ]  # fmt: skip
    if within is not None:
        evidence.append(
            Text(
                "within an iteration longer responses score higher (correlation {within:.2f} on average, "
                "score_length_correlation)",
                within=within,
            )
        )
    verdict = judged(run, step)
    if verdict is not None:
        evidence.append(verdict.sentence)
    justified = better_at_equal_length(verdict)
    red = growth > MUCH_LONGER and not justified
    advice = [
        Text("subtract a little for each token: --length-penalty 0.01"),
        Text("label pairs of similar length, or train the reward model without those whose length differs much"),
    ]
    return problem("length-hacking", step.name, red, evidence, advice)


def _together(a: Trend, b: Trend) -> float:
    """Pearson's correlation of two curves at the steps that both have."""
    shared = np.intersect1d(a.steps, b.steps)
    return correlation(a.values[np.isin(a.steps, shared)].tolist(), b.values[np.isin(b.steps, shared)].tolist())


# ---------------------------------------------------------------------------------------------------------- repetition

MORE_REPEATED, MUCH_REPEATED = 0.04, 0.1
"""Rise of the fraction of 4-grams that a response repeats."""
LESS_DISTINCT, MUCH_LESS_DISTINCT = 0.65, 0.45
"""Last third over first iterations, of distinct_2."""
SAME, OFTEN_SAME = 0.2, 0.4
"""Share of the most frequent response."""


def repetition(step: StepResult, run: RunContents) -> Outcome:
    """Responses repeat themselves or each other more than at the start."""
    distinct = curve_of(step, "distinct_2", FEWEST)
    if distinct is None:
        return too_short("repetition", step)
    evidence, grades = [], [0]
    left = distinct.last / distinct.first if distinct.first > 0 else 1.0
    if left < LESS_DISTINCT and distinct.z < -3:
        grades.append(2 if left < MUCH_LESS_DISTINCT else 1)
        evidence.append(
            Text(
                "the share of distinct bigrams fell from {first:.0%} to {last:.0%} (distinct_2)",
                first=distinct.first, last=distinct.last,
            )
        )  # fmt: skip
    repeated = curve_of(step, "repetition", FEWEST)
    if repeated is not None and repeated.gain > MORE_REPEATED and repeated.z > 3:
        grades.append(2 if repeated.gain > MUCH_REPEATED else 1)
        evidence.append(
            Text(
                "the part of a response that repeats itself rose from {first:.0%} to {last:.0%} (repetition)",
                first=repeated.first, last=repeated.last,
            )
        )  # fmt: skip
    same = curve_of(step, "top_response_share", FEWEST)
    if same is not None and same.last > SAME and same.gain > SAME / 2 and same.z > 3:
        grades.append(2 if same.last > OFTEN_SAME else 1)
        evidence.append(Text("{last:.0%} of the responses are one and the same (top_response_share)", last=same.last))
    if max(grades) == 0:
        return None
    phrase = curve_of(step, "top_phrase_share", FEWEST)
    if phrase is not None and phrase.last > 0.5:
        evidence.append(Text("{last:.0%} of the responses contain one phrase (top_phrase_share)", last=phrase.last))
    if quoted := _quoted(step):
        evidence.append(Text('in samples.jsonl it is "{phrase}"', phrase=quoted))
    verdict = judged(run, step)
    if verdict is not None:
        evidence.append(verdict.sentence)
    advice = [
        Text("read samples.jsonl; if the phrase earns the reward, label answers that have it and should lose"),
        Text("raise --kl-coef or stop earlier"),
    ]
    red = max(grades) == 2 and not (verdict is not None and verdict.better and max(grades) < 2)
    return problem("repetition", step.name, red, evidence, advice)


def _quoted(step: StepResult) -> str:
    """The most frequent run of three words in the last samples; "" where none occurs three times."""
    texts = [str(line.get("text", "")) for line in step.samples[-6:]]
    grams: Counter[str] = Counter()
    for text in texts:
        words = re.findall(r"[\u3400-\u9fff]|[^\s\u3400-\u9fff]+", text)
        grams.update(" ".join(words[i : i + 3]) for i in range(len(words) - 2))
    if not grams:
        return ""
    phrase, times = grams.most_common(1)[0]
    return phrase if times >= 3 else ""


# ------------------------------------------------------------------------------------------------------------- endings

FEW_END, FEWER_END = 0.5, 0.85
"""Of the responses, in the last third."""


def never_ends(step: StepResult, run: RunContents) -> Outcome:
    """Fewer responses end than at the start, or few of a model that was taught to end its answers."""
    ends, score, reward = (curve_of(step, name, 2) for name in ("termination_rate", "score", "reward_model_score"))
    if ends is None:
        return too_short("never-ends", step)
    fell = ends.first - ends.last
    costs = score is not None and reward is not None and abs(score.last - reward.last) > 0.05
    taught = bool(run.of_stage("sft"))
    if ends.last >= FEWER_END or not (fell > 0.1 or costs or taught):
        return None
    evidence = [
        Text(
            "{last:.0%} of the responses end in the last third, {first:.0%} at the start (termination_rate)",
            first=ends.first, last=ends.last,
        )
    ]  # fmt: skip
    if costs and score is not None and reward is not None:
        evidence.append(
            Text(
                "the rule for missing ends moves the score from {reward:.2f} to {score:.2f} (reward_model_score, "
                "score)",
                reward=reward.last, score=score.last,
            )
        )  # fmt: skip
    no_better = curve_of(step, "ended_no_better", 2)
    pays = no_better is not None and float(no_better.values.mean()) > 0.3
    if pays and no_better is not None:
        evidence.append(
            Text(
                "{share:.0%} of the responses that end score no more than those that do not (ended_no_better): not "
                "ending pays",
                share=float(no_better.values.mean()),
            )
        )
    advice = [
        Text("give --missing-eos-penalty 1 in place of a fixed score")
        if pays
        else Text("raise --max-new-tokens, or give --missing-eos-penalty 1"),
        Text("check that the demonstrations of SFT end, and that the chat template closes an answer"),
    ]
    red = ends.last < FEW_END and (fell > 0.2 or taught or pays or costs)
    return problem("never-ends", step.name, red, evidence, advice)


def answers_never_end(run: RunContents) -> Outcome:
    """The same of the answers in evaluations, by models that were trained to answer."""
    code = "never-ends"
    if not run.evaluations:
        return Unchecked(code, Text("no evaluation"))
    taught = {step.out.name for step in run.steps if step.stage == "sft"}
    for evaluation in run.evaluations:
        for name, model in evaluation.result.models.items():
            rate = model.termination_rate
            if name in taught and rate is not None and rate < FEWER_END:
                evidence = [
                    Text(
                        "{rate:.0%} of the answers of {model} end (evaluation.json, termination_rate)",
                        rate=rate, model=name,
                    )
                ]  # fmt: skip
                advice = [Text("check that the demonstrations of SFT end, and that the chat template closes an answer")]
                return problem(code, evaluation.name, rate < FEW_END, evidence, advice)
    return None
