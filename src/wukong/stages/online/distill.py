"""`wukong distill`: a student + a teacher + prompts -> a student that answers like the teacher.

In:  two language models with one tokenizer, such as a small SFT model and a larger policy, and prompts.
Out: the student's model directory, metrics.jsonl, samples.jsonl.

    wukong distill --model runs/mine/sft --teacher runs/big/policy --prompts prompts.jsonl --out runs/mine/distilled

On-policy distillation (Agarwal et al. 2024, GKD, arXiv 2306.13649, with lambda = 1 and the reverse KL; Lu and Thinking
Machines 2025): the student answers, and at each token of its answer learns the teacher's distribution of the next one.
The loss is KL(student || teacher), the mean over all response tokens; no gradient flows through the sampling.
Departure: the KL is exact, a sum over the vocabulary, where Thinking Machines estimate it from the sampled token. One
update per batch, so every update is on-policy.

Shape legend: B responses, b those of a micro-batch, T prompt + response time, N response tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from wukong import processes, require
from wukong.console import say
from wukong.data.batches import epoch_batch
from wukong.data.prompts import PROMPTS
from wukong.errors import UsageError
from wukong.language import counted
from wukong.model.config import ModelConfig
from wukong.model.divergence import reverse_kl
from wukong.model.hub import load_policy, save_policy
from wukong.model.language_model import LanguageModel
from wukong.require import Need
from wukong.sampling import RecommendOptions, SamplingParameters
from wukong.scoring import frozen, response_states
from wukong.seeds import derived_seed
from wukong.stages.online.rollouts import (
    Episodes,
    OnPolicyOptions,
    TokenisedPrompt,
    padded_rows,
    roll_out,
    tokenised_prompts,
)
from wukong.stats import distinct_n, repeated_n
from wukong.tokenizer import Tokenizer
from wukong.training.advice import evaluate_command, warn_of_few_steps
from wukong.training.compute import read
from wukong.training.memory import DECODED_TOGETHER, Decoding, Workload
from wukong.training.parallel import full_module
from wukong.training.session import Session

VALIDATED = 64
"""Held-out prompts that are answered at a validation."""
REPEATED = 4
"""Tokens of what counts as a repetition within a response."""


class DistillOptions(OnPolicyOptions, RecommendOptions):
    """Train a student, on its own answers, to match a teacher's distribution of the next token."""

    model: str
    """The student: a directory or hub id."""
    teacher: str
    """The teacher, with the student's tokenizer and chat template: a directory or hub id."""
    episodes: int = Field(4096, ge=1)
    """Responses sampled in total."""
    batch_size: int = Field(32, ge=1, le=1_000_000)
    """Responses per update."""
    valid_fraction: float = Field(0.05, ge=0, lt=1)
    """The fraction of prompts held out for validation."""
    eval_every: int = Field(0, ge=0)
    """Updates between validations; 0 validates at the end only."""
    lr: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    log_every: int = Field(1, ge=1)
    """Updates between lines of metrics.jsonl."""

    @property
    def updates(self) -> int:
        return self.episodes // self.batch_size


def workload(options: DistillOptions, config: ModelConfig, teacher: ModelConfig, prompt: int) -> Workload:
    """What the run holds in memory besides the student. prompt: tokens of the longest one."""
    together = math.ceil(options.batch_size / processes.world_size())
    length = min(prompt + options.max_new_tokens, config.n_positions)
    return Workload(
        tokens=together * length,
        outputs=options.max_new_tokens / length,
        frozen=(teacher,),
        decoding=Decoding(config, min(together, DECODED_TOGETHER), length),
    )


@dataclass(frozen=True)
class Distiller:
    """A run's models; `step` is one update."""

    session: Session
    options: DistillOptions
    student: LanguageModel
    teacher: LanguageModel
    tokenizer: Tokenizer

    def step(self, prompts: Sequence[TokenisedPrompt]) -> dict[str, float]:
        """Answers the prompts and learns from the answers. Returns the metrics of the batch, before its update."""
        session, started = self.session, time.monotonic()
        episodes = self._answers(prompts, derived_seed(self.options.seed, "roll", session.step))
        sampled = time.monotonic()
        found, tokens = self._pass(episodes, learn=True), sum(episodes.response_lengths)
        metrics = found | session.optimizer_step() | _described(episodes)
        metrics |= {"rollout_seconds": sampled - started, "update_seconds": time.monotonic() - sampled}
        metrics["rollout_tokens_per_second"] = tokens / metrics["rollout_seconds"]
        session.log(tokens, **metrics)
        if session.due(10):
            for prompt, response in zip(episodes.prompts[:2], episodes.responses[:2], strict=True):
                session.sample(prompt=self.tokenizer.decode(prompt.ids), text=self.tokenizer.decode(response))
        return metrics

    @torch.no_grad()
    def validate(self, prompts: Sequence[TokenisedPrompt]) -> float:
        """The loss on answers to these prompts, which are sampled with the same random numbers each time."""
        return self._pass(self._answers(prompts, derived_seed(self.options.seed, "valid")), learn=False)["loss"]

    def _answers(self, prompts: Sequence[TokenisedPrompt], seed: int) -> Episodes:
        return roll_out(self.student, prompts, self.tokenizer, self.options, seed, self.session.compute)

    def _pass(self, episodes: Episodes, learn: bool) -> dict[str, float]:
        """The loss and the entropy, means over the response tokens of all processes; `learn` adds the gradient."""
        session, n = self.session, sum(episodes.response_lengths)
        sums: list[Tensor] = []
        for rows in session.micro_batches(range(len(episodes.sequences)), episodes.lengths_of):
            divergences, entropies = self._read(episodes, rows)  # (N,) each
            loss = divergences.sum() / n
            if learn:
                session.backward(loss)
            sums += [loss.detach(), entropies.sum() / n]
        own = read(sums)
        loss_sum, entropy = processes.all_reduce_sum(sum(own[::2]), sum(own[1::2]))
        return {"loss": loss_sum, "entropy": entropy}

    def _read(self, episodes: Episodes, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """KL(student || teacher) and the student's entropy at each response token of these rows: (N,) each."""
        compute = self.session.compute
        ids, predicts, _ = padded_rows(episodes, rows, compute)  # (b, T), (b, T - 1)
        with compute.autocast():
            with torch.no_grad():
                theirs = response_states(self.teacher, ids, predicts)  # (N, D)
            ours = response_states(self.student, ids, predicts)  # (N, C)
            weights = self.student.output_weight, self.teacher.output_weight
            return reverse_kl(ours, weights[0], theirs, weights[1], temperature=self.options.temperature)


def _described(episodes: Episodes) -> dict[str, float]:
    return {
        "response_length": sum(episodes.response_lengths) / len(episodes.sequences),
        "termination_rate": float(np.mean(episodes.ended)),
        "distinct_2": distinct_n(episodes.responses, 2),
        "repetition": repeated_n(episodes.responses, REPEATED),
    }


def needs(options: DistillOptions) -> list[Need]:
    if options.episodes % options.batch_size:
        raise UsageError(f"--episodes {options.episodes} is not a multiple of --batch-size {options.batch_size}")
    return [
        require.policy(options.model),
        require.policy(options.teacher),
        *require.data(options.prompts, require.reader(PROMPTS, options)),
        require.same_tokenizer(options.model, options.teacher),
        require.room(options.model, options.max_new_tokens),
        require.room(options.teacher, options.max_new_tokens),
        require.device(options.device),
    ]


def run(options: DistillOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError when the loss is not finite."""
    work = require.open_stage("distill", options, needs(options))
    if work.done:
        return
    # ------------------------------------------------------------------------------------------ models and data
    student, tokenizer = load_policy(options.model)
    teacher, _ = load_policy(options.teacher)
    if student.config.vocab_size != teacher.config.vocab_size:
        sizes = f"{teacher.config.vocab_size:,} outputs, the student {student.config.vocab_size:,}"
        raise UsageError(f"{options.teacher}: the teacher has {sizes}")
    context = min(student.config.n_positions, teacher.config.n_positions)
    train, valid = tokenised_prompts(options, options.valid_fraction, tokenizer, context)
    valid = valid[:VALIDATED]
    say(
        "distill: {prompts}, {held_out:,} held out, {updates} of {responses}",
        prompts=counted(len(train), "{n:,} prompt", "{n:,} prompts"),
        held_out=len(valid),
        updates=counted(options.updates, "{n:,} update", "{n:,} updates"),
        responses=counted(options.batch_size, "{n:,} response", "{n:,} responses"),
    )
    warn_of_few_steps("distill", options.updates, "give more --episodes, or a smaller --batch-size")
    load = workload(options, student.config, teacher.config, max(len(prompt.ids) for prompt in train))
    # ----------------------------------------------------------------------------------------------------- loop
    modules: dict[str, torch.nn.Module] = {"student": student}
    state = {"first": None, "valid_loss": None}
    with Session(options, modules, options.updates, "distill", state, lr=options.lr, workload=load) as session:
        distiller = Distiller(session, options, student, frozen(teacher, session.compute), tokenizer)
        for step in session.steps():
            batch = [train[i] for i in epoch_batch(len(train), step, options.batch_size, options.seed)]
            metrics = distiller.step(batch)
            session.state |= {"first": session.state["first"] or metrics["loss"], "last": metrics}
            if valid and session.due(options.eval_every):
                session.state["valid_loss"] = distiller.validate(valid)
                session.log(valid_loss=session.state["valid_loss"])
            session.show(loss=metrics["loss"])
    student = full_module(student, "cpu")
    if not processes.is_first():
        return
    # ----------------------------------------------------------------------------------------------------- save
    first, last = session.state["first"], session.state["last"]
    results = {name: last[name] for name in ("loss", "termination_rate", "response_length")}
    sampling = SamplingParameters(options.temperature).for_training(options.recommended_temperature)
    session.finish(
        work,
        lambda staged: save_policy(staged, student.cpu(), tokenizer, sampling=sampling),
        {**results, "first_loss": first, "valid_loss": session.state["valid_loss"]},
    )
    say(
        "distill: the student is {last:.3g} nats per token (KL) from the teacher, {first:.3g} at the start",
        last=last["loss"],
        first=first,
    )
    say("next: {command}", command=evaluate_command("distill", options.model, options.out))
