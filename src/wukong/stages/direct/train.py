"""The loop that DPO and KTO share: learning directly from preferences, without a reward model or sampling.

An algorithm (dpo.py, kto.py) defines which records it learns from and the loss of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, Literal, TypeVar

import numpy as np
import torch
from pydantic import Field

from wukong import require
from wukong.console import console, say
from wukong.data.batches import epoch_batch
from wukong.data.comparisons import COMPARISONS, load_comparisons
from wukong.data.sources import DataOptions
from wukong.data.split import split_by_prompt
from wukong.data.summary import ReadSummary
from wukong.errors import UsageError
from wukong.language import counted
from wukong.model.config import ModelConfig
from wukong.model.hub import load_policy, save_policy
from wukong.model.language_model import LanguageModel
from wukong.processes import is_first
from wukong.provenance import StageRun
from wukong.records import Preference
from wukong.require import Kind, Need
from wukong.sampling import RecommendOptions, SamplingParameters
from wukong.scoring import frozen, kl_to_start
from wukong.stages.direct.logratios import AnswerTokens, measure_reference
from wukong.tokenizer import Tokenizer
from wukong.training.advice import evaluate_command, say_distance, warn_of_few_steps
from wukong.training.memory import Workload, step_tokens
from wukong.training.parallel import full_module
from wukong.training.passes import Passes, Usual
from wukong.training.session import Session, TrainOptions


class DirectOptions(TrainOptions, DataOptions, RecommendOptions):
    """What DPO and KTO share."""

    model: str
    """The SFT model: policy and frozen reference start from it. A directory or hub id."""
    data: list[str]
    """Preference data: paths, globs or Hugging Face data set ids."""
    eval_data: list[str] = []
    """Data to test on. Default: some of the prompts of --data are held out."""
    valid_fraction: float = Field(0.1, ge=0, lt=1)
    """The fraction of prompts held out if there is no --eval-data."""
    beta: float = Field(0.1, gt=0)
    """The KL coefficient of the implied reward; a smaller one lets the policy move further."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits: the temperature the answers were sampled at and the policy will be sampled at."""
    epochs: float | None = Field(None, gt=0, json_schema_extra={"usual": 1.0})
    """Passes over the data. Default: 1, or up to 4 if that is fewer than 150 steps."""
    batch_size: int | None = Field(None, ge=1, json_schema_extra={"usual": 32})
    """Prompts per step, each with all its pairs. Default: 32, or down to 8 if there are few."""
    lr: float | None = Field(None, gt=0, json_schema_extra={"usual": 5e-6})
    """Peak learning rate. Default: 5e-6, or more for models smaller than GPT-2 if there are few records."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int = Field(10, ge=0)
    """Steps over which the learning rate rises from 0."""
    eval_every: int = Field(0, ge=0)
    """Steps between evaluations; 0 evaluates at the end only."""


USUAL = Usual(epochs=1.0, batch_size=32, lr=5e-6, most_epochs=4.0, small_lr=5e-5)


def workload(lengths: Sequence[int], response: float, batch_size: int, config: ModelConfig) -> Workload:
    """lengths: tokens per record, over all its answers; response: the fraction of them that are answer tokens."""
    return Workload(step_tokens(lengths, batch_size), response, frozen=(config,))


Item = TypeVar("Item")
Metrics = dict[str, float]


class DirectAlgorithm(ABC, Generic[Item]):
    """How an algorithm differs from the others. An item is one training unit: a prompt's pairs, or a vote."""

    name: str

    @abstractmethod
    def items_of(
        self, records: Sequence[Preference], tokenizer: Tokenizer, context: int, summary: ReadSummary
    ) -> list[Item]:
        """The training items; unusable records are counted in `summary`."""

    @abstractmethod
    def answers_of(self, item: Item) -> Sequence[AnswerTokens]:
        """The answers of an item."""

    @abstractmethod
    def batch_loss(
        self, session: Session, policy: LanguageModel, reference: LanguageModel, batch: Sequence[Item], learn: bool
    ) -> Metrics:
        """The metrics of a batch, including `loss` and `margin`; `learn` also adds the gradient. Each process computes
        its local part; the metrics are of the whole batch."""

    def lengths_of(self, item: Item) -> list[int]:
        return [len(answer.ids) for answer in self.answers_of(item)]


def direct_needs(options: DirectOptions, accepts: Callable[[Preference], None], no: Sequence[Kind] = ()) -> list[Need]:
    """The inputs of DPO and KTO; `accepts` raises DataError for a record they cannot learn from."""
    read = require.reader(COMPARISONS, options)
    learnt = require.data([*options.data, *options.eval_data], read, accepts, no=("responses", *no))
    return [require.policy(options.model), *learnt, require.device(options.device)]


def train(algorithm: DirectAlgorithm[Item], options: DirectOptions, needs: Sequence[Need]) -> None:
    """Reads the data, trains, saves.

    Raises:
        UsageError or DataError: unusable input. RunError: the loss is not finite.
    """
    work = require.open_stage(algorithm.name, options, needs)
    if work.done:
        return
    # ------------------------------------------------------------------------------------------- model and data
    policy, tokenizer = load_policy(options.model)
    train_items, test_items, summary = _items(algorithm, options, tokenizer, policy.config.n_positions)
    passes = USUAL.passes(len(train_items), policy.config.n_embd, options.epochs, options.batch_size, options.lr)
    steps, name = passes.steps(len(train_items)), algorithm.name
    say(
        "{name}: {records}, {held_out:,} held out, {described}",
        name=name,
        records=counted(len(train_items), "{n:,} record", "{n:,} records"),
        held_out=len(test_items),
        described=passes.described(len(train_items)),
    )
    warn_of_few_steps(name, steps, "label more, or give more --epochs")
    lengths = [sum(algorithm.lengths_of(item)) for item in train_items]
    learnt = sum(len(answer.response) for item in train_items for answer in algorithm.answers_of(item))
    load = workload(lengths, learnt / sum(lengths), passes.batch_size, policy.config)
    # ---------------------------------------------------------------------------------------------------- loop
    with Session(options, {"policy": policy}, steps, name, lr=passes.lr, workload=load) as session:
        reference = frozen(load_policy(options.model)[0], session.compute)
        answers = [answer for item in (*train_items, *test_items) for answer in algorithm.answers_of(item)]
        measure_reference(reference, answers, options.temperature, session.compute, session.micro_batch_tokens)
        for step in session.steps():
            policy.eval()  # dropout is off everywhere after SFT
            chosen = epoch_batch(len(train_items), step, passes.batch_size, options.seed)
            batch = [train_items[i] for i in chosen]
            metrics = algorithm.batch_loss(session, policy, reference, batch, learn=True)
            tokens = sum(length for item in batch for length in algorithm.lengths_of(item))
            session.log(tokens, **metrics, **session.optimizer_step())
            if test_items and session.due(options.eval_every):
                session.state["valid"] = _evaluate(algorithm, session, policy, reference, test_items, passes)
                session.log(0, **session.state["valid"])
            session.show(loss=metrics["loss"], margin=metrics["margin"])
    policy = full_module(policy, "cpu")
    if is_first():
        results = {"records": len(train_items), "passes": passes.record(len(train_items)), "data": summary.as_dict()}
        measured = [answer for item in (test_items or train_items) for answer in algorithm.answers_of(item)]
        _save(session, work, policy.cpu(), tokenizer, options, measured, results)


def _items(
    algorithm: DirectAlgorithm[Item], options: DirectOptions, tokenizer: Tokenizer, context: int
) -> tuple[list[Item], list[Item], ReadSummary]:
    """The training items, the held-out items, and a summary of what was read."""
    read = load_comparisons(options.data, options)
    if options.eval_data:
        unseen = load_comparisons(options.eval_data, options)
        console.print(unseen.summary.table("held out"))
        sides = read.records, unseen.records
    else:
        sides = split_by_prompt(read.records, options.valid_fraction, options.seed)
    train_items, test_items = (algorithm.items_of(side, tokenizer, context, read.summary) for side in sides)
    console.print(read.summary.table("records"))
    if not train_items:
        raise UsageError(f"{options.data[0]}: nothing is left to train on")
    return train_items, test_items, read.summary


@torch.no_grad()
def _evaluate(
    algorithm: DirectAlgorithm[Item], session: Session, policy: LanguageModel, reference: LanguageModel,
    items: Sequence[Item], passes: Passes,
) -> Metrics:  # fmt: skip
    """The mean loss and margin of held-out items."""
    parts = _batches(items, passes.batch_size)
    found = [algorithm.batch_loss(session, policy, reference, part, learn=False) for part in parts]
    sizes = [len(part) for part in parts]
    return {
        f"valid_{name}": float(np.average([one[name] for one in found], weights=sizes)) for name in ("loss", "margin")
    }


def _batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Batches in the given order; a final single item joins the batch before, since KTO compares within a batch."""
    starts = list(range(0, len(items), size))
    if len(starts) > 1 and len(items) - starts[-1] == 1:
        starts.pop()
    return [items[a:b] for a, b in zip(starts, [*starts[1:], len(items)], strict=True)]


def _save(
    session: Session, work: StageRun, policy: LanguageModel, tokenizer: Tokenizer, options: DirectOptions,
    answers: Sequence[AnswerTokens], results: dict[str, object],
) -> None:  # fmt: skip
    """Publishes the policy and reports how far it moved on these answers."""
    masks = [(answer.ids, [i >= len(answer.prompt) for i in range(len(answer.ids))]) for answer in answers]
    moved = kl_to_start(policy, load_policy(options.model)[0], masks)
    sampling = SamplingParameters(options.temperature).for_training(options.recommended_temperature)
    session.finish(
        work,
        lambda staged: save_policy(staged, policy, tokenizer, sampling=sampling),
        {**results, "kl_to_start": moved, **session.state.get("valid", {})},
    )
    say_distance(work.stage, moved, "give a higher --lr, more --epochs or a lower --beta")
    say("next: {command}", command=evaluate_command(work.stage, options.model, options.out))
