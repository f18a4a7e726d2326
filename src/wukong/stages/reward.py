"""`wukong reward`: comparisons -> a model that scores answers (the reward model).

In:  a model directory (the SFT model) and comparisons or rankings in any of the formats of docs/reference/data.md.
Out: a model directory, metrics.jsonl, and the accuracy on held-out prompts in provenance.json.

    wukong reward --model runs/mine/sft --data comparisons.jsonl --out runs/mine/reward

Step 2 of InstructGPT (Ouyang et al. 2022, eq. 1): -log sigmoid(r_chosen - r_rejected) over all pairs of each prompt's
K answers, divided by C(K, 2); every answer passes through the model once. One epoch, learning rate falling linearly
to 0 (Ziegler et al. 2019). Afterwards the scores are shifted and scaled so that the reference policy's answers have
mean 0 and standard deviation 1. The model reads prompt + answer without the closing <|endoftext|> (model/heads.py).

Shape legend: B answers, T time, N pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from wukong import require
from wukong.console import console, say
from wukong.data.answers import answers_ids, pair_index, pairs_by_prompt
from wukong.data.batches import epoch_batch, micro_batches, pad
from wukong.data.comparisons import COMPARISONS, load_comparisons
from wukong.data.sources import DataOptions
from wukong.data.split import halves, split_by_prompt
from wukong.data.summary import ReadSummary
from wukong.errors import DataError, Text, UsageError
from wukong.feedback.consensus import by_annotators, decide, weights_of
from wukong.language import counted
from wukong.model.adapters import base_name
from wukong.model.heads import HeadKind, Pooling, ScalarModel
from wukong.model.hub import load_trunk, save_reward
from wukong.objectives import grouped_mean, pairwise_loss
from wukong.processes import all_gather, all_reduce_sum, is_first, local_part
from wukong.records import Comparison, Message, Preference, Ranking, Response, Vote, read_records
from wukong.require import Need
from wukong.scoring import scores_of
from wukong.seeds import derived_seed, permutation
from wukong.stats import rate_interval
from wukong.tokenizer import Tokenizer
from wukong.training.advice import warn_of_few_steps
from wukong.training.compute import Compute, read
from wukong.training.memory import TrainedPart, Workload, step_tokens
from wukong.training.parallel import full_module, lockstep
from wukong.training.passes import Passes, Usual
from wukong.training.session import Session, TrainOptions
from wukong.training.tuning import DropoutTuningOptions, as_loaded, trained_part, tuned


class RewardOptions(TrainOptions, DataOptions, DropoutTuningOptions):
    """Train a reward model on comparisons."""

    model: str
    """The model to start from, usually the SFT model: a directory or hub id."""
    data: list[str]
    """Comparisons and rankings: paths, globs or Hugging Face data set ids."""
    eval_data: list[str] = []
    """Comparisons to test on. Default: some of the prompts of --data are held out."""
    valid_fraction: float = Field(0.1, ge=0, lt=1)
    """The fraction of prompts held out if there is no --eval-data."""
    annotators: list[str] = []
    """Train on these annotators' judgments only; NAME=2 doubles the weight of one. Default: all annotators."""
    judgments: Literal["all", "majority"] = "all"
    """Use every judgment separately, or one per pair of answers: the weighted majority of the annotators."""
    half: Literal["both", "first", "second"] = "both"
    """Train on one half of the training prompts only, so that a second reward model can judge independently."""
    head: HeadKind = "linear"
    """linear, or mlp (one hidden layer)."""
    pooling: Pooling = "last"
    """Read the score at the last token, or average it over all tokens: evenly, or weighted by position (SGPT)."""
    ties: Literal["drop", "half"] = "drop"
    """Drop tied comparisons, or train them towards probability 1/2 (ties within a ranking are dropped)."""
    margin: float = Field(0.0, ge=0)
    """Target score difference for a comparison of strength 1; multiplied by the strength if given."""
    off_prompt: int = Field(0, ge=0)
    """For each prompt, add this many pairs of its best answer over the best answer to another prompt, so that the
    score depends on the prompt (Liu et al. 2024). Every second of them is of about the same length."""
    epochs: float | None = Field(None, gt=0, json_schema_extra={"usual": 1.0})
    """Passes over the data; on large data more than one overfits. Default: 1, or up to 6 if that is fewer than 150
    steps."""
    batch_size: int | None = Field(None, ge=1, json_schema_extra={"usual": 16})
    """Prompts per step, each with all its answers. Default: 16, or down to 8 if there are few."""
    lr: float | None = Field(None, gt=0, json_schema_extra={"usual": 5e-5})
    """Peak learning rate. Default: 5e-5, or more for models smaller than GPT-2 if there are few prompts."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int = Field(5, ge=0)
    """Steps over which the learning rate rises from 0."""
    eval_every: int = Field(0, ge=0)
    """Steps between evaluations; 0 evaluates at the end only."""
    reference_responses: str | None = None
    """responses.jsonl of the reference policy, on which the scores are normalised. Default: the training answers."""
    normalise_samples: int = Field(256, ge=2)
    """Number of answers used for normalisation."""


USUAL = Usual(epochs=1.0, batch_size=16, lr=5e-5, most_epochs=6.0, small_lr=0.0005)


def workload(lengths: Sequence[int], batch_size: int, part: TrainedPart | None = None) -> Workload:
    """lengths: tokens per prompt, over all its answers; part: what is trained of the transformer, if not everything.
    There are no logits."""
    return Workload(step_tokens(lengths, batch_size), outputs=0.0, part=part)


@dataclass
class Group:
    """The distinct answers to one prompt, and which were preferred to which."""

    prompt: list[Message] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)  # token ids of prompt + answer
    texts: list[str] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)  # (better, worse)
    ties: list[bool] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)  # of each pair, by annotator

    @property
    def best(self) -> int:
        """The index of the first answer that won a pair and lost none, by the weighted majority on each pair; if errors
        leave none, the first that won a pair; if all are ties, the first."""
        votes: dict[tuple[int, int], float] = defaultdict(float)
        for pair, tie, weight in zip(self.pairs, self.ties, self.weights, strict=True):
            if not tie:
                votes[pair] += weight
        decided = [(a, b) for (a, b), weight in votes.items() if weight > votes.get((b, a), 0.0)]
        won = decided or list(votes)
        winners, losers = [better for better, _ in won], {worse for _, worse in won}
        return next((answer for answer in winners if answer not in losers), winners[0] if winners else 0)


def groups_of(
    records: Sequence[Preference], tokenizer: Tokenizer, context: int, options: RewardOptions, summary: ReadSummary
) -> list[Group]:
    """All pairs of a prompt, by any annotator, as one group. A pair that does not fit the context
    even without its prompt's oldest turns is dropped and counted.

    Raises DataError for votes, which compare nothing.
    """
    # A majority has its weights applied already.
    weights = weights_of(options.annotators) if options.judgments == "all" else {}
    judged: list[Comparison | Ranking] = []
    for record in records:
        if isinstance(record, Vote):
            raise DataError("a single vote compares nothing: a reward model needs pairs", hint="use pairs or rankings")
        if isinstance(record, Comparison) and record.tie and options.ties == "drop":
            summary.dropped["a tie (--ties half trains on them)"] += 1
        else:
            judged.append(record)
    return [
        Group(
            one.prompt,
            [[*prompt, *response] for prompt, response in one.answers],
            one.texts,
            one.pairs,
            [isinstance(record, Comparison) and record.tie for record in one.records],
            [_margin(record, options) for record in one.records],
            [weights.get(record.annotator, 1.0) for record in one.records],
        )
        for one in pairs_by_prompt(judged, tokenizer, context, summary, finished=False)
    ]


def _margin(record: Comparison | Ranking, options: RewardOptions) -> float:
    if isinstance(record, Ranking):
        return 0.0
    return options.margin * (1.0 if record.strength is None else record.strength)


def off_prompt_groups(
    groups: Sequence[Group], tokenizer: Tokenizer, context: int, count: int, seed: int
) -> list[Group]:
    """`count` groups for each group: its best answer, preferred to the best answer to another prompt.

    People compare answers to one prompt, mostly relevant ones, so a reward model may learn style alone; a policy then
    finds one answer that scores well everywhere. In these pairs only the prompt tells which is better, which closes
    that loophole (RRM, Liu et al. 2024, arXiv 2409.13156).

    Most other prompts are of another kind, whose answers the length gives away: a recipe is no answer to a greeting. So
    the second, fourth, ... group of each takes an answer of about the same length, unless it may be the same answer in
    other words.
    """
    found = []
    for turn in range(count):
        order = permutation(len(groups), seed, "off-prompt", turn)
        if turn % 2:
            order = _by_length(groups, order)
        # a cycle of different prompts: none is paired with itself
        for here, there in zip(order, np.roll(order, 1), strict=True):
            group, other = groups[here], groups[there]
            own, foreign = group.texts[group.best], other.texts[other.best]
            if foreign == own or (turn % 2 and _reworded(tokenizer, own, foreign)):
                continue
            read = answers_ids(tokenizer, [(group.prompt, own), (group.prompt, foreign)], context)
            answers = [ids for ids in read if ids is not None]
            if len(answers) == 2:
                found.append(Group(group.prompt, answers, [own, foreign], [(0, 1)], [False], [0.0], [1.0]))
    return found


SAME_WORDS = 0.75
"""Answers that share more of their tokens may be one answer in other words."""


def _reworded(tokenizer: Tokenizer, own: str, foreign: str) -> bool:
    ours, theirs = set(tokenizer.encode(own)), set(tokenizer.encode(foreign))
    return len(ours & theirs) > SAME_WORDS * len(ours | theirs)


def _by_length(groups: Sequence[Group], order: np.ndarray) -> np.ndarray:
    """`order` sorted by the length of the best answers, give or take a quarter."""
    lengths = np.array([len(groups[index].texts[groups[index].best]) for index in order])
    jitter = np.linspace(0.8, 1.25, len(order))  # over a random order
    return order[np.argsort(lengths * jitter, kind="stable")]


def forward_pairs(model: ScalarModel, groups: Sequence[Group], compute: Compute) -> tuple[Tensor, Tensor]:
    """r_better - r_worse of every pair of the groups (N,) float32, and the group each pair belongs to (N,) int64."""
    answers = [answer for group in groups for answer in group.answers]
    ids, lengths = pad(answers)
    with compute.autocast():
        scores = model(ids.to(compute.device), lengths.to(compute.device))  # (B,)
    better, worse, member = pair_index([(len(group.answers), group.pairs) for group in groups])
    return scores[better] - scores[worse], torch.tensor(member, device=scores.device)


def group_losses(groups: Sequence[Group], margins: Tensor, options: RewardOptions) -> Tensor:
    """The loss of every pair (N,), times its weight."""
    weights = torch.tensor([w for group in groups for w in group.weights], device=margins.device)
    ties = torch.tensor([tie for group in groups for tie in group.ties], device=margins.device)
    target = torch.tensor([m for group in groups for m in group.margins], device=margins.device)
    return pairwise_loss(margins, ties, target if options.margin else None) * weights


def _lengths(group: Group) -> list[int]:
    return [len(answer) for answer in group.answers]


@torch.no_grad()
def evaluate_pairs(
    model: ScalarModel, groups: Sequence[Group], options: RewardOptions, session: Session
) -> dict[str, Any]:
    """Accuracy on pairs without ties, with a 95 % interval over prompts; equal scores count half."""
    model.eval()
    losses, hits, difference, longer, counts = [], [], [], [], []
    parts, compute = micro_batches(groups, _lengths, session.micro_batch_tokens), session.compute

    def measured() -> list[tuple[float, list[float]]]:
        """The summed loss and the margins of each local part."""
        found = []
        for part in lockstep(local_part(parts), model):
            margins, member = forward_pairs(model, part, compute)
            loss = grouped_mean(group_losses(part, margins, options), member).item() * len(part)
            found.append((loss, margins.tolist()))
        return found

    for part, (loss, margins) in zip(parts, all_gather(measured), strict=True):
        losses.append(loss)
        rest = iter(margins)
        for group in part:
            values = list(islice(rest, len(group.pairs)))
            kept = [i for i, tie in enumerate(group.ties) if not tie]
            hits.append(sum((values[i] > 0) + 0.5 * (values[i] == 0) for i in kept))
            counts.append(len(kept))
            difference += [values[i] for i in kept]
            lengths = [(len(group.answers[group.pairs[i][0]]), len(group.answers[group.pairs[i][1]])) for i in kept]
            longer += [(a > b) + 0.5 * (a == b) for a, b in lengths]
    if not sum(counts):
        return {}
    return {
        "valid_loss": sum(losses) / len(groups),
        "valid_accuracy": sum(hits) / sum(counts),
        "valid_accuracy_interval": rate_interval(np.array(hits), np.array(counts)),
        "valid_pairs": sum(counts),
        "valid_prompts": sum(count > 0 for count in counts),
        "length_accuracy": float(np.mean(longer)),
        "calibration": calibration(np.array(difference)),
    }


OFF_PROMPT_TESTED = 200
"""Held-out prompts on which it is measured whether the model reads the prompt."""


def off_prompt_quality(
    model: ScalarModel, tokenizer: Tokenizer, test: Sequence[Group], options: RewardOptions, session: Session
) -> dict[str, Any]:
    """How often the best answer to a held-out prompt scores higher than the best answer to another one, both under this
    prompt: one half for a model that does not read it. {} with a single prompt."""
    groups = off_prompt_groups(test[:OFF_PROMPT_TESTED], tokenizer, model.config.n_positions, 1, options.seed)
    found = evaluate_pairs(model, groups, options, session)
    names = {"valid_accuracy": "off_prompt_accuracy", "valid_accuracy_interval": "off_prompt_interval"}
    return {new: found[old] for old, new in (names | {"valid_prompts": "off_prompt_prompts"}).items() if old in found}


def calibration(differences: np.ndarray, bins: int = 10) -> list[dict[str, float]]:
    """Predicted probability that the preferred answer wins against how often it does, each pair counted from both
    sides (so the curve is symmetric about 1/2). Bins of predicted probability from 0.5 to 1."""
    confidence = 1 / (1 + np.exp(-np.abs(differences)))
    right = differences > 0
    edges = np.linspace(0.5, 1.0, bins + 1)
    place = np.clip(np.digitize(confidence, edges) - 1, 0, bins - 1)
    return [
        {"predicted": float(confidence[place == b].mean()), "observed": float(right[place == b].mean()), "n": int(n)}
        for b in range(bins)
        if (n := (place == b).sum())
    ]


def records_of(options: RewardOptions) -> tuple[list[Preference], list[Preference], ReadSummary]:
    """The training records, the held-out ones, and a summary of what was read."""
    read = load_comparisons(options.data, options)
    records = by_annotators(read.records, weights_of(options.annotators))
    if options.judgments == "majority":
        records = decide(records, weights_of(options.annotators))
    if options.eval_data:
        held_out = load_comparisons(options.eval_data, options)
        console.print(held_out.summary.table("held out"))
        train, test = records, held_out.records
    else:
        train, test = split_by_prompt(records, options.valid_fraction, options.seed)
    if options.half != "both":
        train = halves(train, options.seed)[options.half == "second"]
    return train, test, read.summary


def passes_over(groups: Sequence[Group], model: ScalarModel, options: RewardOptions) -> Passes:
    return USUAL.passes(len(groups), model.config.n_embd, options.epochs, options.batch_size, options.lr)


def new_model(options: RewardOptions) -> tuple[ScalarModel, Tokenizer]:
    """The model to start from with a new head, ready to be trained."""
    trunk, tokenizer = load_trunk(options.model)
    torch.manual_seed(derived_seed(options.seed, "head"))
    return tuned(ScalarModel(trunk, options.head, options.pooling), options, options.seed), tokenizer


def fit(
    model: ScalarModel, tokenizer: Tokenizer, train: Sequence[Group], test: Sequence[Group], options: RewardOptions
) -> tuple[dict[str, Any], Session]:
    """Trains on `train` and evaluates on `test`; checkpoints and metrics go to `options.out`.

    Returns:
        The final result of `evaluate_pairs` (empty without `test`), and the session, whose checkpoints remain.
    """
    off_prompt = off_prompt_groups(train, tokenizer, model.config.n_positions, options.off_prompt, options.seed)
    groups = [*train, *off_prompt]
    passes = passes_over(groups, model, options)
    steps = passes.steps(len(groups))
    n_pairs = sum(len(group.pairs) for group in train)
    added = Text(" and {n:,} off-prompt pairs", n=len(off_prompt)) if off_prompt else ""
    described = passes.described(len(groups))
    say(
        "reward: {pairs} of {prompts}{added}, {held_out:,} held out, {described}",
        pairs=counted(n_pairs, "{n:,} pair", "{n:,} pairs"),
        prompts=counted(len(train), "{n:,} prompt", "{n:,} prompts"),
        added=added,
        held_out=len(test),
        described=described,
    )
    warn_of_few_steps("reward", steps, "label more, or give more --epochs")
    state = {"quality": {}, "passes": passes.record(len(groups))}
    lengths = [sum(map(len, group.answers)) for group in groups]
    load = workload(lengths, passes.batch_size, trained_part(model.config, options))
    with Session(options, {"model": model}, steps, "reward", state, lr=passes.lr, workload=load) as session:
        compute = session.compute
        for step in session.steps():
            model.train()
            batch = [groups[i] for i in epoch_batch(len(groups), step, passes.batch_size, options.seed)]
            wins, spreads, pairs = [], [], 0.0
            for part in session.micro_batches(batch, _lengths):
                margins, member = forward_pairs(model, part, compute)
                loss = grouped_mean(group_losses(part, margins, options), member) * len(part) / len(batch)
                session.backward(loss)
                wins.append((margins > 0).sum())
                spreads.append(margins.detach().sum())
                pairs += len(margins)
            norms = session.optimizer_step()
            spread, right = (sum(read(values)) for values in (spreads, wins))
            total, spread, right, pairs = all_reduce_sum(session.loss, spread, right, pairs)
            tokens = sum(len(answer) for group in batch for answer in group.answers)
            session.log(tokens, loss=total, accuracy=right / pairs, margin=spread / pairs, pairs=int(pairs), **norms)
            if test and session.due(options.eval_every):
                quality = evaluate_pairs(model, test, options, session)
                if step + 1 == steps:
                    quality |= off_prompt_quality(model, tokenizer, test, options, session)
                session.state["quality"] = quality
                session.log(**{k: quality[k] for k in ("valid_loss", "valid_accuracy") if k in quality})
            session.show(loss=total, accuracy=right / pairs)
        return session.state["quality"], session


def needs(options: RewardOptions) -> list[Need]:
    weights_of(options.annotators)
    read, reference = require.reader(COMPARISONS, options), options.reference_responses
    return [
        require.any_model(options.model),
        *require.data([*options.data, *options.eval_data], read, _compares, no=("responses",)),
        *([require.records(reference, Response, "responses", options.skip_bad)] if reference else []),
        require.tuning(options.model, options),
        require.device(options.device),
    ]


def _compares(record: Preference) -> None:
    """Raises DataError for a vote."""
    if isinstance(record, Vote):
        raise DataError("a single vote compares nothing: a reward model needs pairs", hint="use pairs or rankings")


def run(options: RewardOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError when the loss is not finite."""
    work = require.open_stage("reward", options, needs(options))
    if work.done:
        return
    # ------------------------------------------------------------------------------------------- model and data
    model, tokenizer = new_model(options)
    context = model.config.n_positions
    train_records, test_records, summary = records_of(options)
    train = groups_of(train_records, tokenizer, context, options, summary)
    test = groups_of(test_records, tokenizer, context, options, summary)
    console.print(summary.table("comparisons"))
    if not train:
        raise UsageError(f"{options.data[0]}: no pair is left to train on")
    reference = _reference_answers(options, tokenizer, context)
    # ------------------------------------------------------------------------------------------------------ fit
    quality, session = fit(model, tokenizer, train, test, options)
    model = as_loaded(full_module(model, session.compute.device), lambda: new_model(options)[0])
    if not is_first():
        return
    # ----------------------------------------------------------------------------------------------- normalise
    answers = reference or [answer for group in train for answer in group.answers]
    before = _normalise(model, options, answers, session.compute)
    # ---------------------------------------------------------------------------------------------------- save
    n_pairs = sum(len(group.pairs) for group in train)
    results = {**quality, "train_pairs": n_pairs, "normalised_from": before, "passes": session.state["passes"]}
    session.finish(
        work,
        lambda staged: save_reward(staged, model.cpu(), tokenizer, base=base_name(options.model, options.out)),
        {**results, "data": summary.as_dict()},
    )
    if quality:
        low, high = quality["valid_accuracy_interval"]
        say(
            "reward: accuracy {valid_accuracy:.3f} [{low:.3f}, {high:.3f}] on held-out prompts",
            valid_accuracy=quality["valid_accuracy"],
            low=low,
            high=high,
        )
    say("next: wukong reward-report {out} --out {out}-report", out=options.out)


def _reference_answers(options: RewardOptions, tokenizer: Tokenizer, context: int) -> list[list[int]]:
    """The token ids of the reference's answers; [] without --reference-responses. Read before the fit, so that a bad
    record does not waste it."""
    if not options.reference_responses:
        return []
    responses = read_records(options.reference_responses, Response, options.skip_bad)
    found = answers_ids(tokenizer, [(r.messages, r.text) for r in responses], context)
    if not (answers := [ids for ids in found if ids is not None]):
        raise UsageError(f"{options.reference_responses}: no answer fits the context of {context} tokens")
    return answers


def _normalise(
    model: ScalarModel, options: RewardOptions, answers: Sequence[list[int]], compute: Compute
) -> dict[str, float]:
    """Rescales the head so that these answers have mean 0 and standard deviation 1. Returns the previous values."""
    order = np.random.Generator(np.random.Philox(derived_seed(options.seed, "normalise"))).permutation(len(answers))
    picked = [answers[i] for i in order[: options.normalise_samples]]
    scores = scores_of(model, picked, compute, options.micro_batch_tokens)
    mean, std = float(np.mean(scores)), float(np.std(scores))
    if not std > 0:
        raise UsageError(f"{options.out}: the reward model gives every answer the same score; it learnt nothing")
    model.rescale(1 / std, -mean / std)
    return {"mean": mean, "std": std, "samples": len(picked)}
