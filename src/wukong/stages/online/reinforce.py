"""`wukong reinforce`: SFT model + reward + prompts -> a policy, by the plain policy gradient with a baseline.

Inputs, outputs and loop as for `wukong ppo`; all online algorithms share `wukong.stages.online.train`.

    wukong reinforce --model runs/mine/sft --reward-model runs/mine/reward --prompts prompts.jsonl --out runs/mine/pg

Williams 1992: loss = -(G_t - b) log pi(a_t|s_t), where G_t is the remaining reward from token t on (per-token KL
penalty, score at the end) and b does not depend on a_t: the running mean of earlier batches' rewards, or a learned
V(s_t). One pass over each batch, no clipping: every update is on-policy, except minibatches after the first.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from wukong.objectives import gae, sequence_rewards
from wukong.require import Need
from wukong.stages.online.algorithm import (
    Advantages,
    Algorithm,
    Batch,
    OnlineOptions,
    ValueModelKind,
    advantage_metrics,
    value_metrics,
)
from wukong.stages.online.train import online_needs, train


class ReinforceOptions(OnlineOptions):
    """Train a policy against a reward with REINFORCE."""

    baseline: Literal["running", "learned"] = "running"
    """What rewards are compared with: the running mean of past rewards, or a value model's prediction."""
    baseline_decay: float = Field(0.9, ge=0, lt=1)
    """The fraction of the running mean kept at each iteration."""
    value_coef: float = Field(0.1, ge=0)
    """Weight of the value model's loss, with the learned baseline."""
    value_model: ValueModelKind = "separate"
    """With the learned baseline: a separate network, or a head on the policy's trunk."""

    def algorithm(self) -> Reinforce:
        return Reinforce(self)


class Reinforce(Algorithm):
    name = "reinforce"

    def __init__(self, options: ReinforceOptions) -> None:
        self.options = options
        self.value_coef = options.value_coef if options.baseline == "learned" else None
        self.value_model = options.value_model

    def advantages(self, batch: Batch) -> Advantages:
        mask = batch.mask
        rewards = self.rewards(batch)
        # With values of 0 and lambda = 1 the advantage is the remaining reward.
        to_come, _ = gae(rewards, torch.zeros_like(rewards), mask, gamma=1.0, lam=1.0)
        if self.options.baseline == "learned":
            advantages = torch.where(mask, to_come - batch.values, 0)
            metrics = {**advantage_metrics(advantages, mask), **value_metrics(batch.values, to_come, mask)}
            return Advantages(advantages, to_come, metrics=metrics)
        mean = float(sequence_rewards(batch.scores, batch.kl, mask, batch.kl_coef).mean())
        baseline = batch.state.get("baseline", mean)  # the first batch is compared with itself
        decay = self.options.baseline_decay
        batch.state["baseline"] = decay * baseline + (1 - decay) * mean
        advantages = torch.where(mask, to_come - baseline, 0)
        metrics = {"baseline": baseline, **advantage_metrics(advantages, mask)}
        return Advantages(advantages, metrics=metrics)


def needs(options: ReinforceOptions) -> list[Need]:
    return online_needs(options)


def run(options: ReinforceOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError when the run goes wrong (docs/guide/ppo.md)."""
    train(options)
