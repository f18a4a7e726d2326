"""`wukong label`: responses -> rankings or comparisons by simulated annotators.

In:  responses.jsonl with several answers to each prompt, and a judge or reward model.
Out: one Ranking (or one Comparison per pair) per line.

    wukong label --responses responses.jsonl --judge rubric --error-rate 0.1 --out comparisons.jsonl

Errors make the reward model's task realistic (AlpacaFarm, Dubois et al. 2023, found that about 25 % flipped labels
reproduce people's ranking of methods). In a ranking, each pair of neighbours is swapped with that probability, from
worst to best; in comparisons, each pair is flipped with it. Answers that the judge scores alike are tied.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Literal

import numpy as np
from pydantic import Field

from wukong import require
from wukong.console import say
from wukong.errors import UsageError
from wukong.feedback.annotators import load_judge
from wukong.feedback.replies import forget_replies, replies_path
from wukong.feedback.reward_models import is_model, reward_judge
from wukong.language import counted
from wukong.options import StageOptions
from wukong.records import Comparison, Ranking, Response, read_records, write_records
from wukong.require import Need
from wukong.seeds import derived_seed
from wukong.training.compute import compute_for

COUNTED = {"ranking": ("{n:,} ranking", "{n:,} rankings"), "pairs": ("{n:,} pair", "{n:,} pairs")}
"""What --shape makes, in words."""


class LabelOptions(StageOptions):
    """Rank or compare responses with an automatic judge."""

    responses: str
    """responses.jsonl of `wukong sample`."""
    judge: str
    """rubric (the kitchen's), lexicon (VADER sentiment), a verifier (exact, number, regex[:PATTERN],
    json[:SCHEMA.json], constraints), openai:MODEL[@URL][#RUBRIC], module:function, or a reward model's directory."""
    shape: Literal["ranking", "pairs"] = "ranking"
    """One ranking per prompt, or every pair separately."""
    error_rate: float = Field(0.0, ge=0, le=0.5)
    """How often the simulated annotator errs."""
    tie_margin: float = Field(0.0, ge=0)
    """Scores at most this far apart are a tie."""
    skip_bad: int = Field(0, ge=0)
    """How many unusable responses to skip (and list) before stopping with an error."""


def needs(options: LabelOptions) -> list[Need]:
    return [require.judge(options.judge), require.records(options.responses, Response, "responses", options.skip_bad)]


def run(options: LabelOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError when the judge fails."""
    work = require.open_stage("label", options, needs(options), directory=False)
    if work.done:
        forget_replies(options.out, directory=False)
        return
    by_model = is_model(options.judge)
    replies = replies_path(options.out, directory=False)
    judge = reward_judge(options.judge, compute_for(), 8192) if by_model else load_judge(options.judge, replies)
    by_prompt: dict[str, dict[str, Response]] = defaultdict(dict)  # answers with the same text count once
    responses = read_records(options.responses, Response, options.skip_bad)
    for response in responses:
        if response.text.strip():
            by_prompt[response.prompt_id].setdefault(response.text, response)
    groups = [list(answers.values()) for answers in by_prompt.values() if len(answers) > 1]
    if not groups:
        raise UsageError(f"{options.responses}: no prompt has two different answers; sample more than one a prompt")
    flat = [response for group in groups for response in group]
    scores = iter(judge(flat, [r.text for r in flat]))
    records: list[Ranking | Comparison] = []
    for group in groups:
        records += _labels(group, [next(scores).score for _ in group], options)
    if not records:
        raise UsageError(f"{options.responses}: the judge finds all answers to every prompt equally good")
    write_records(options.out, records)
    say(
        "label: {records} from {responses} to {prompts}",
        records=counted(len(records), *COUNTED[options.shape]),
        responses=counted(len(responses), "{n:,} response", "{n:,} responses"),
        prompts=counted(len(by_prompt), "{n:,} prompt", "{n:,} prompts"),
    )
    counts = {"records": len(records), "prompts": len(by_prompt), "responses": len(responses)}
    work.finish(counts, [options.out])
    forget_replies(options.out, directory=False)


def _labels(
    group: Sequence[Response], scores: Sequence[float], options: LabelOptions
) -> Iterator[Ranking | Comparison]:
    """The labels of one prompt's answers; none if all are tied."""
    noise = np.random.Generator(np.random.Philox(derived_seed(options.seed, "errors", group[0].prompt_id)))
    annotator = f"{options.judge}, error rate {options.error_rate:g}"
    prompt, source = group[0].messages, group[0].source
    if options.shape == "ranking":
        groups = ranked(scores, options.tie_margin)
        for i in reversed(range(len(groups) - 1)):
            if noise.random() < options.error_rate:
                groups[i], groups[i + 1] = groups[i + 1], groups[i]
        if len(groups) > 1:
            texts = [r.text for r in group]
            yield Ranking(prompt=prompt, responses=texts, groups=groups, annotator=annotator, source=source)
        return
    for a, b in combinations(range(len(group)), 2):
        tie = abs(scores[a] - scores[b]) <= options.tie_margin
        better, worse = (a, b) if scores[a] >= scores[b] else (b, a)
        if not tie and noise.random() < options.error_rate:
            better, worse = worse, better
        yield Comparison(
            prompt=prompt,
            chosen=group[better].text,
            rejected=group[worse].text,
            tie=tie,
            annotator=annotator,
            source=source,
        )


def ranked(scores: Sequence[float], tie_margin: float) -> list[list[int]]:
    """Indices from best to worst; a score within tie_margin of a group's best joins that group."""
    groups: list[list[int]] = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if groups and scores[groups[-1][0]] - scores[i] <= tie_margin:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
