"""What the offline algorithms (DPO, KTO) share: answers as tokens, their log-ratios to the reference, a small loop.

Shape legend: B answers, T time, N pairs or votes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from wukong import require
from wukong.console import console, say
from wukong.data.batches import by_length, pad
from wukong.data.comparisons import COMPARISONS, load_comparisons
from wukong.data.sources import DataOptions
from wukong.data.split import split_by_prompt
from wukong.data.summary import ReadSummary
from wukong.errors import UsageError
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.hub import load_policy, save_policy
from wukong.processes import all_gather, is_first, local_part
from wukong.records import Preference
from wukong.require import Kind, Need
from wukong.sampling import RecommendOptions, SamplingParameters
from wukong.stages.common import (
    epoch_batch,
    evaluation_of,
    frozen,
    kl_to_start,
    response_logprobs,
    response_positions,
    say_how_far,
)
from wukong.tokenizer import Tokenizer
from wukong.training.compute import Compute
from wukong.training.memory import Workload, step_tokens
from wukong.training.parallel import full_module
from wukong.training.passes import Usual, warn_of_few_steps
from wukong.training.session import Session, TrainOptions, publish


class OfflineOptions(TrainOptions, DataOptions, RecommendOptions):
    """What DPO and KTO share."""

    model: str
    """The SFT model: policy and frozen reference start from it. A directory or hub id."""
    eval_data: list[str] = []
    """Data to test on; when empty, a part of the prompts of --data is held out."""
    valid_fraction: float = Field(0.1, ge=0, lt=1)
    """The part of the prompts held out when there is no --eval-data."""
    beta: float = Field(0.1, gt=0)
    """The price of a nat of KL to the reference that is assumed; smaller goes further."""
    temperature: float = Field(1.0, gt=0)
    """Logits are divided by it: the temperature at which the answers were sampled and the policy will be."""
    epochs: float | None = Field(None, gt=0, json_schema_extra={"usual": 1.0})
    """Passes over the data. When absent 1, and up to 4 where that is fewer than 150 steps."""
    batch_size: int | None = Field(None, ge=1, json_schema_extra={"usual": 32})
    """Prompts a step, each with all its pairs. When absent 32, and down to 8 where there are few."""
    lr: float | None = Field(None, gt=0, json_schema_extra={"usual": 5e-6})  # type: ignore[assignment]
    """Peak learning rate. When absent 5e-6, and more for models smaller than GPT-2 where there are few records."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int = Field(10, ge=0)
    """Steps over which the learning rate rises from 0."""
    eval_every: int = Field(0, ge=0)
    """Steps between evaluations; 0 evaluates at the end only."""


USUAL = Usual(epochs=1.0, batch_size=32, lr=5e-6, most_epochs=4.0, small_lr=5e-5)


def workload(lengths: Sequence[int], response: float, batch_size: int, config: GPT2Config) -> Workload:
    """lengths: of the records, all answers of each; response: the part of their tokens that are an answer."""
    return Workload(step_tokens(lengths, batch_size), response, frozen=(config,))


@dataclass
class Answer:
    """An answer as tokens, the closing end token included, and its log-prob (nats) under the reference."""

    prompt: list[int]
    response: list[int]
    reference: float = math.nan

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.response


def response_sums(model: GPT2, answers: Sequence[Answer], temperature: float, compute: Compute) -> Tensor:
    """log pi of each whole response (nats), in one forward pass: (B,) float32."""
    ids, _ = pad([answer.ids for answer in answers])  # (B, T)
    lengths = [len(answer.response) for answer in answers]
    predicts = response_positions([len(answer.prompt) for answer in answers], lengths, ids.shape[1])
    logprobs, _ = response_logprobs(model, ids.to(compute.device), predicts.to(compute.device), temperature, compute)
    return torch.stack([part.sum() for part in logprobs.split(lengths)])


def logratios(model: GPT2, answers: Sequence[Answer], temperature: float, compute: Compute) -> Tensor:
    """log pi - log pi_ref of each whole response (nats): (B,) float32."""
    reference = torch.tensor([answer.reference for answer in answers], device=compute.device)
    return response_sums(model, answers, temperature, compute) - reference


@torch.inference_mode()
def measure_reference(
    model: GPT2, answers: Sequence[Answer], temperature: float, compute: Compute, max_tokens: int
) -> None:
    """Fills in the reference's log-probs: it never changes, so once is enough."""
    model.eval().to(compute.device)

    def measured() -> list[tuple[int, float]]:
        found: list[tuple[int, float]] = []
        for rows in local_part(list(by_length([len(answer.ids) for answer in answers], max_tokens))):
            of_rows = response_sums(model, [answers[i] for i in rows], temperature, compute)
            found += zip(rows, of_rows.tolist(), strict=True)
        return found

    for i, value in all_gather(measured):
        answers[i].reference = value


Item = TypeVar("Item")
Metrics = dict[str, float]


def in_parts(
    items: Sequence[Item], answers_of: Callable[[Item], Sequence[Answer]], max_tokens: int
) -> list[list[Item]]:
    """The batch in parts of at most max_tokens tokens, padding included, each item whole, like lengths together."""
    widths = [max(len(answer.ids) for answer in answers_of(item)) for item in items]
    parts: list[list[Item]] = []
    rows = width = 0
    for i in sorted(range(len(items)), key=lambda i: (-widths[i], i)):
        rows += len(answers_of(items[i]))
        if not parts or rows * width > max_tokens:
            parts.append([])
            rows, width = len(answers_of(items[i])), widths[i]
        parts[-1].append(items[i])
    return parts


def offline_needs(
    options: OfflineOptions, data: Sequence[str], accepts: Callable[[Preference], None], no: Sequence[Kind] = ()
) -> list[Need]:
    """What DPO and KTO need; `accepts` raises DataError for a record that they cannot learn from."""
    read = require.reader(COMPARISONS, options)
    learnt = require.data([*data, *options.eval_data], read, accepts, no=("responses", *no))
    return [require.policy(options.model), *learnt, require.device(options.device)]


def train_offline(
    stage: str,
    options: OfflineOptions,
    needs: Sequence[Need],
    data: list[str],
    items_of: Callable[[Sequence[Preference], Tokenizer, int, ReadSummary], list[Item]],
    answers_of: Callable[[Item], Sequence[Answer]],
    learn: Callable[[GPT2, GPT2, Sequence[Item], Compute, Callable[[Tensor], None] | None], Metrics],
) -> None:
    """Reads the data, trains, saves.

    Args:
        items_of: records, tokenizer, context and account -> what is trained on.
        answers_of: the answers of an item.
        learn: (policy, reference, batch, compute, backward) -> metrics, `loss` and `margin` among them; `backward` is
            called with the loss, in parts that add up to it, and is None where nothing is learnt. Of several
            processes each puts its share of the batch through the models; the metrics are of the whole.

    Raises:
        UsageError or DataError: unusable input. RunError: the loss is not finite.
    """
    work = require.open_stage(stage, options, needs)
    if work.done:
        return
    # ------------------------------------------------------------------------------------------- model and data
    policy, tokenizer = load_policy(options.model)
    reference, _ = load_policy(options.model)
    context = policy.config.n_positions
    read = load_comparisons(data, options)
    if options.eval_data:
        unseen = load_comparisons(options.eval_data, options)
        console.print(unseen.summary.table("held out"))
        sides = read.records, unseen.records
    else:
        sides = split_by_prompt(read.records, options.valid_fraction, options.seed)
    train, test = (items_of(side, tokenizer, context, read.summary) for side in sides)
    console.print(read.summary.table("records"))
    if not train:
        raise UsageError(f"{data[0]}: nothing is left to train on")
    passes = USUAL.passes(len(train), policy.config.n_embd, options.epochs, options.batch_size, options.lr)
    steps = passes.steps(len(train))
    say(f"{stage}: {len(train):,} records, {len(test):,} held out, {passes.described(len(train))}")
    warn_of_few_steps(stage, steps, "label more, or give more --epochs")
    lengths = [sum(len(answer.ids) for answer in answers_of(item)) for item in train]
    learnt = sum(len(answer.response) for item in train for answer in answers_of(item))
    load = workload(lengths, learnt / sum(lengths), passes.batch_size, policy.config)
    # ---------------------------------------------------------------------------------------------------- loop
    with Session(options, {"policy": policy}, steps, stage, workload=load, lr=passes.lr) as session:
        compute = session.compute
        frozen(reference, compute)
        answers = [answer for item in (*train, *test) for answer in answers_of(item)]
        measure_reference(reference, answers, options.temperature, compute, options.micro_batch_tokens)
        for step in session.steps():
            policy.eval()  # dropout is off everywhere after SFT
            batch = [train[i] for i in epoch_batch(len(train), step, passes.batch_size, options.seed)]
            metrics = learn(policy, reference, batch, compute, session.backward)
            tokens = sum(len(answer.ids) for item in batch for answer in answers_of(item))
            session.log(tokens, **metrics, **session.optimizer_step())
            if test and session.due(options.eval_every):
                parts = _batches(test, passes.batch_size)
                with torch.no_grad():
                    held_out = [learn(policy, reference, part, compute, None) for part in parts]
                measured = {
                    f"valid_{name}": float(np.average([m[name] for m in held_out], weights=[len(p) for p in parts]))
                    for name in ("loss", "margin")
                }
                session.log(0, **measured)
                session.state["valid"] = measured
            session.show(loss=metrics["loss"], margin=metrics["margin"])
    policy = full_module(policy, "cpu")
    if not is_first():
        return
    # ---------------------------------------------------------------------------------------------------- save
    staged = options.out / ".staged"
    sampling = SamplingParameters(options.temperature).for_training(options.recommended_temperature)
    save_policy(staged, policy.cpu(), tokenizer, sampling=sampling)
    files = publish(staged, options.out)
    judged = [answer for item in (test or train) for answer in answers_of(item)]
    masks = [(answer.ids, [i >= len(answer.prompt) for i in range(len(answer.ids))]) for answer in judged]
    moved = kl_to_start(policy, load_policy(options.model)[0], masks)
    results = {"records": len(train), "kl_to_start": moved, "passes": passes.record(len(train))}
    results |= session.state.get("valid", {})
    work.finish({**results, "data": read.summary.as_dict()}, files, session.compute_record())
    session.discard_checkpoints()
    say_how_far(
        stage,
        moved,
        "give a higher --lr, more --epochs or a lower --beta",
        evaluation_of(stage, options.model, options.out),
    )


def _batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """In the given order; a last one of a single item joins the one before, since KTO compares within a batch."""
    starts = list(range(0, len(items), size))
    if len(starts) > 1 and len(items) - starts[-1] == 1:
        starts.pop()
    return [items[a:b] for a, b in zip(starts, [*starts[1:], len(items)], strict=True)]
