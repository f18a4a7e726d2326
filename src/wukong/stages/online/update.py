"""The passes over a batch: the loss of a micro-batch, and the updates of policy and value model.

Shape legend: B episodes, b episodes of a micro-batch, R response time, N real response tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from wukong import processes
from wukong.data.shards import TokenShards
from wukong.errors import RunError
from wukong.model.heads import ScalarModel, ValueHead
from wukong.model.language_model import LanguageModel
from wukong.model.lower_states import LowerStates
from wukong.objectives import loss_average, truncated_importance_weights
from wukong.scoring import language_model_loss
from wukong.seeds import permutation
from wukong.stages.online.algorithm import Advantages, Algorithm, Metrics, OnlineOptions
from wukong.stages.online.rollouts import (
    Episodes,
    RolloutStats,
    ValueModel,
    head_values,
    padded_rows,
    read_responses,
    response_values,
)
from wukong.training.compute import Compute, read, wide
from wukong.training.parallel import lockstep
from wukong.training.session import Session
from wukong.training.tuning import shared_layers

FIRST_RATIO_TOLERANCE, BFLOAT16_RATIO_TOLERANCE = 1e-3, 0.05
"""Deviations of the first ratio from 1 that rounding explains. A logit in bfloat16 is off by 0.2 % of its size, up to
0.03 at 16; dropout, a different temperature or different positions in the update shift the ratio by 0.1 or more."""


@dataclass(frozen=True)
class Minibatch:
    """The episodes of one update."""

    rows: np.ndarray  # int64, the episodes
    lengths: list[int]  # of prompt + response, in tokens
    weights: Tensor  # of the policy loss of each response, and
    divisor: int  # its divisor (`wukong.objectives.loss_average`)
    n_tokens: int  # of all responses

    def lengths_of(self, i: int) -> list[int]:
        return [self.lengths[i]]


@dataclass(frozen=True)
class Tokens:
    """The real response tokens of a micro-batch, row by row; all (N,) except the divisors."""

    old_logprobs: Tensor
    reference_logprobs: Tensor
    advantages: Tensor
    weights: Tensor  # of the policy loss, by `loss_average`
    old_values: Tensor
    returns: Tensor | None
    divisor: int  # of the policy loss of the whole minibatch
    n_tokens: int  # of the whole minibatch
    importance: Tensor | None = None  # pi/pi_sampler, capped; None: 1


def minibatch_loss(
    algorithm: Algorithm, tokens: Tokens, logprobs: Tensor, entropies: Tensor, values: Tensor | None,
    kl_coef: float, entropy_coef: float,
) -> tuple[Tensor, Metrics]:  # fmt: skip
    """This micro-batch's part of the policy loss, plus the value loss if the two share a trunk.

    Args:
        logprobs, entropies: (N,) of the policy being trained.
        values: (N,) of a value head on the policy's trunk; None with a separate value model or none.

    Returns:
        The loss, a scalar, and metrics that add up over micro-batches.
    """
    losses = tokens.weights * algorithm.token_losses(
        logprobs, tokens.old_logprobs, tokens.advantages, tokens.reference_logprobs, kl_coef
    )
    if tokens.importance is not None:
        losses = tokens.importance * losses
    loss = (losses.sum() - entropy_coef * (tokens.weights * entropies).sum()) / tokens.divisor
    with torch.no_grad():
        moved = logprobs - tokens.old_logprobs
        ratio = moved.exp()
        off = (ratio - 1).abs()
        metrics = {
            "policy_loss": wide(losses.sum()) / tokens.divisor,
            "approx_kl": wide(moved.square().sum()) / 2 / tokens.n_tokens,
            "first_ratio_error": wide(off.sum()) / tokens.n_tokens,
            "ratio_min": ratio.min(),
            "ratio_max": ratio.max(),
        }
        if (clipped := algorithm.clipped(ratio)) is not None:
            metrics["clip_fraction"] = wide(clipped.sum()) / tokens.n_tokens
            if algorithm.clip_range_high is not None:
                metrics["clip_fraction_high"] = wide((clipped & (ratio > 1)).sum()) / tokens.n_tokens
        if tokens.importance is not None:
            metrics["importance_weight"] = wide(tokens.importance.sum()) / tokens.n_tokens
    if values is not None:
        of_values, more = value_loss(algorithm, tokens, values)
        return loss + of_values, {**metrics, **more}
    return loss, metrics


def value_loss(algorithm: Algorithm, tokens: Tokens, values: Tensor) -> tuple[Tensor, Metrics]:
    """This micro-batch's part of the value loss, values (N,) -> a scalar, and its metrics."""
    if tokens.returns is None or algorithm.value_coef is None:
        raise ValueError(f"{algorithm.name} gives no returns to train a value model on")
    losses = algorithm.value_losses(values, tokens.old_values, tokens.returns)
    metrics = {"value_loss": wide(losses.detach().sum()) / tokens.n_tokens}
    return algorithm.value_coef * losses.sum() / tokens.n_tokens, metrics


EXTREMES = {"ratio_min": torch.minimum, "ratio_max": torch.maximum}
"""Metrics of which the most extreme value counts; the others add up."""


class UpdateMetrics:
    """Metrics of all micro-batches of a step, kept on the device and read once at the end. Those of an update count
    from `end_update` on."""

    def __init__(self) -> None:
        self.updates = 0
        self._open: list[Metrics] = []
        self._sums: dict[str, Tensor] = {}
        self._extremes: dict[str, Tensor] = {}
        self._norms: dict[str, float] = {}

    def add(self, metrics: Metrics) -> None:
        self._open.append(metrics)

    def so_far(self, name: str) -> float:
        """The sum of a metric over the micro-batches of the update that has not ended, on all processes."""
        own = read([torch.as_tensor(metrics[name]) for metrics in self._open if name in metrics])
        (total,) = processes.all_reduce_sum(sum(own))
        return total

    def _count(self, name: str, value: Tensor) -> None:
        if name in EXTREMES:
            self._extremes[name] = EXTREMES[name](value, self._extremes.get(name, torch.ones_like(value)))
        elif name != "first_ratio_error" or self.updates == 0:
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value

    def end_update(self, norms: dict[str, float]) -> None:
        for metrics in self._open:
            for name, value in metrics.items():
                self._count(name, wide(torch.as_tensor(value).detach()))
        self._open = []
        for name, norm in norms.items():
            self._norms[name] = self._norms.get(name, 0.0) + norm
        self.updates += 1

    def read(self) -> dict[str, float]:
        """The means over all updates and processes; `first_ratio_error` is of the first update only."""
        kept = self._sums | self._extremes
        own = dict(zip(kept, read(list(kept.values())), strict=True))
        totals: dict[str, float] = {}
        for part in processes.all_gather(lambda: [{name: own[name] for name in self._sums}]):
            for name, value in part.items():
                totals[name] = totals.get(name, 0.0) + value
        first = totals.pop("first_ratio_error", 0.0)
        means = {name: value / self.updates for name, value in (totals | self._norms).items()}
        low, high = processes.all_reduce_max(-own.get("ratio_min", 1.0), own.get("ratio_max", 1.0))
        return means | {"ratio_min": -low, "ratio_max": high, "first_ratio_error": first}


@dataclass(frozen=True)
class PretrainingLoss:
    """The language-model loss (nats per token) on pretraining contexts, for PPO-ptx: the next `rows` at each update."""

    shards: TokenShards
    rows: int
    context: int
    seed: int

    def parts(self, policy: LanguageModel, update: int, compute: Compute, micro_batch_tokens: int) -> Iterator[Tensor]:
        """The loss on the contexts of the run's `update`-th update, in micro-batches that add up to it."""
        ids = self.shards.batch(update, self.rows, self.context, self.seed).to(compute.device)
        mine = processes.local_part(ids)
        parts = mine.split(max(1, micro_batch_tokens // self.context)) if len(mine) else ()
        for part in lockstep(parts, policy):
            yield language_model_loss(policy, part, compute) / (self.rows * self.context)


@dataclass(frozen=True)
class Update:
    """The passes over one batch of episodes."""

    session: Session
    algorithm: Algorithm
    options: OnlineOptions
    policy: LanguageModel
    value_model: ValueModel | None
    episodes: Episodes
    stats: RolloutStats
    advantages: Advantages
    pretraining: PretrainingLoss | None = None

    @cached_property
    def shared(self) -> int:
        """The number of frozen layers that policy and value model share."""
        return shared_layers(self.policy, self.value_model) if isinstance(self.value_model, ScalarModel) else 0

    def run(self) -> dict[str, float]:
        """Trains on the batch. Returns the means of the metrics over all updates.

        Raises RunError when rollout and update do not compute the same log-probs.
        """
        if self.session.step < self.algorithm.value_warmup:
            return self._warm_up()
        metrics, limit = UpdateMetrics(), self.algorithm.max_update_kl
        for minibatch in self._minibatches():
            for part in self.session.micro_batches(range(len(minibatch.rows)), minibatch.lengths_of):
                self._learn(minibatch, part, metrics)
            # The same sum, and so the same decision, on all processes. Before the first update nothing has moved.
            if limit is not None and metrics.updates and metrics.so_far("approx_kl") > limit:
                self.session.drop_gradients()
                break
            if self.pretraining is not None:
                self._learn_pretraining(self.pretraining, metrics)
            metrics.end_update(self.session.optimizer_step())
        found = metrics.read()
        if limit is not None:
            found["passes"] = metrics.updates / self.options.updates_per_pass
        check_first_ratio(found["first_ratio_error"], self.session.compute)
        return found

    def _warm_up(self) -> dict[str, float]:
        """As `run`, but only the value model learns."""
        metrics, only = UpdateMetrics(), ("value",)
        for minibatch in self._minibatches():
            for part in self.session.micro_batches(range(len(minibatch.rows)), minibatch.lengths_of, only):
                self._learn_values(minibatch, part, metrics)
            metrics.end_update(self.session.optimizer_step(only))
        return metrics.read()

    def _learn_values(self, minibatch: Minibatch, part: list[int], metrics: UpdateMetrics) -> None:
        """The forward and backward passes of one micro-batch through the value model alone."""
        compute = self.session.compute
        ids, predicts, rows = padded_rows(self.episodes, minibatch.rows[part].tolist(), compute)
        if isinstance(self.value_model, ValueHead):
            values = head_values(self.policy, self.value_model, ids, predicts, compute)
        else:
            assert self.value_model is not None
            values = response_values(self.value_model, ids, predicts, compute)
        loss, found = value_loss(self.algorithm, self._tokens(rows, minibatch, part), values)
        self.session.backward(loss)
        metrics.add(found)

    def _minibatches(self) -> Iterator[Minibatch]:
        """The minibatch of each update; every pass reshuffles the episodes."""
        episodes, given = self.episodes, self.advantages.rows
        rows = np.arange(len(episodes.sequences)) if given is None else given.cpu().numpy()
        size = self.options.minibatch_size or len(rows)
        for epoch in range(self.algorithm.epochs):
            order = rows[permutation(len(rows), self.options.seed, "minibatches", self.session.step, epoch)]
            for chosen in np.split(order, range(size, len(order), size)):
                responses = torch.tensor([episodes.response_lengths[i] for i in chosen])
                weights, divisor = loss_average(responses, self.algorithm.average, self.options.max_new_tokens)
                lengths = [len(episodes.sequences[i]) for i in chosen]
                yield Minibatch(chosen, lengths, weights, divisor, int(responses.sum()))

    def _learn(self, minibatch: Minibatch, part: list[int], metrics: UpdateMetrics) -> None:
        """The forward and backward passes of one micro-batch: `part` of the minibatch."""
        session, options, compute = self.session, self.options, self.session.compute
        ids, predicts, rows = padded_rows(self.episodes, minibatch.rows[part].tolist(), compute)
        tokens = self._tokens(rows, minibatch, part)
        lower = LowerStates(self.shared)
        logprobs, entropies, values = read_responses(
            self.policy, self.value_model, ids, predicts, options.temperature, compute, options.entropy_coef > 0, lower
        )
        loss, found = minibatch_loss(
            self.algorithm, tokens, logprobs, entropies, values, session.state["kl_coef"], options.entropy_coef
        )
        session.backward(loss)
        metrics.add(found)
        if isinstance(self.value_model, ScalarModel):  # second, so that its activations are not held with the policy's
            values = response_values(self.value_model, ids, predicts, compute, lower)
            loss, found = value_loss(self.algorithm, tokens, values)
            session.backward(loss)
            metrics.add(found)

    def _tokens(self, rows: Tensor, minibatch: Minibatch, part: list[int]) -> Tokens:
        mask, returns = self.episodes.mask[rows], self.advantages.returns  # (b, R)
        weights = minibatch.weights[part].to(mask.device)  # (b,)
        old, cap, importance = self.stats.logprobs[rows][mask], self.options.importance_cap, None
        if cap is not None:
            importance = truncated_importance_weights(old, self.episodes.sampler_logprobs[rows][mask], cap)
        return Tokens(
            old_logprobs=old,
            reference_logprobs=self.stats.reference_logprobs[rows][mask],
            advantages=self.advantages.advantages[rows][mask],
            weights=weights.unsqueeze(1).expand(mask.shape)[mask],
            old_values=self.stats.values[rows][mask],
            returns=None if returns is None else returns[rows][mask],
            divisor=minibatch.divisor,
            n_tokens=minibatch.n_tokens,
            importance=importance,
        )

    def _learn_pretraining(self, pretraining: PretrainingLoss, metrics: UpdateMetrics) -> None:
        """The pretraining term of one update."""
        session = self.session
        per_step = self.algorithm.epochs * self.options.updates_per_pass
        number = session.step * per_step + metrics.updates
        for loss in pretraining.parts(self.policy, number, session.compute, session.micro_batch_tokens):
            session.backward(self.options.ptx_coef * loss)
            metrics.add({"ptx_loss": loss})


def check_first_ratio(error: float, compute: Compute) -> None:
    """Raises RunError if the ratio pi/pi_old is not 1 before the first update. `error` is the mean of |ratio - 1| over
    the tokens of the first minibatch; bfloat16 rounds differently in micro-batches of other shapes."""
    if error > (FIRST_RATIO_TOLERANCE if compute.dtype == torch.float32 else BFLOAT16_RATIO_TOLERANCE):
        raise RunError(
            f"before any update the ratio pi/pi_old is off 1 by {error:.2g} on average: rollout and update do not "
            "compute the same log-probs; use --precision float32"
        )
