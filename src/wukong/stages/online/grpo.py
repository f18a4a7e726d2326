"""`wukong grpo`: SFT model + reward + prompts -> a policy, by comparing each response with its group.

Inputs, outputs and loop as for `wukong ppo`; all online algorithms share `wukong.stages.online.train`.

    wukong grpo --model runs/mine/sft --reward-model runs/mine/reward --prompts prompts.jsonl --out runs/mine/grpo

Shao et al. 2024: a response's advantage is its reward minus the mean over the responses to its prompt, divided by
their standard deviation; PPO's clipped loss, averaged over the tokens of each response first; the KL penalty (k3) in
the loss, not in the reward. Variants: `--scale none --average constant` is Dr. GRPO (Liu et al. 2025), `--scale batch`
REINFORCE++'s scaling (Hu et al. 2025), `--average token --clip-range-high 0.28 --dynamic-sampling 3 --kl-coef 0` DAPO
(Yu et al. 2025) but for its penalty on overlong responses. The gradient of k3 on the policy's own samples is that of
the reverse, KL(pi_ref || pi); `--kl-in reward` gives the usual penalty.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from wukong.objectives import (
    Average,
    Scale,
    group_advantages,
    kl_estimate,
    ppo_policy_loss,
    sequence_rewards,
    token_rewards,
)
from wukong.require import Need
from wukong.stages.online.algorithm import Advantages, Algorithm, Batch, GroupOptions, advantage_metrics
from wukong.stages.online.train import online_needs, train


class GRPOOptions(GroupOptions):
    """Train a policy against a reward with group-relative policy optimisation."""

    samples_per_prompt: int = Field(8, ge=2)
    """G: responses to each prompt of a batch, compared with each other."""
    epochs: int = Field(1, ge=1)
    """Passes over each batch."""
    clip_range: float = Field(0.2, gt=0)
    """Clip range of the probability ratio, around 1."""
    clip_range_high: float | None = Field(None, gt=0)
    """Clip range above 1, if it is to differ from that below (DAPO's clip-higher, Yu et al. 2025: 0.28)."""
    dynamic_sampling: int = Field(0, ge=0)
    """Replace groups whose responses all have the same score by groups of further prompts, from up to this many more
    batches per iteration (DAPO's dynamic sampling, Yu et al. 2025); 0 trains on all groups."""
    scale: Scale = "group"
    """Divide advantages by the standard deviation of the group or of the whole batch, or not at all (Dr. GRPO)."""
    average: Average = "sequence"
    """Average over the tokens of each response, then over responses; over all tokens (DAPO); or divide the sum by a
    constant (Dr. GRPO)."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL penalty goes: in the loss (estimator k3), or in the reward as in the other algorithms."""

    def algorithm(self) -> GRPO:
        return GRPO(self)


class GRPO(Algorithm):
    name = "grpo"

    def __init__(self, options: GRPOOptions) -> None:
        self.options, self.epochs = options, options.epochs
        self.average, self.clip_range = options.average, options.clip_range
        self.clip_range_high, self.further_batches = options.clip_range_high, options.dynamic_sampling

    def _kl_coef(self, batch: Batch) -> float:
        """Of the penalty in the reward."""
        return batch.kl_coef if self.options.kl_in == "reward" else 0.0

    def rewards(self, batch: Batch) -> Tensor:
        return token_rewards(batch.scores, batch.kl, batch.mask, self._kl_coef(batch))

    def advantages(self, batch: Batch) -> Advantages:
        rewards = sequence_rewards(batch.scores, batch.kl, batch.mask, self._kl_coef(batch))
        better = group_advantages(rewards, self.options.samples_per_prompt, self.options.scale)  # (B,)
        advantages = torch.where(batch.mask, better.unsqueeze(1), 0)
        return Advantages(advantages, metrics=advantage_metrics(advantages, batch.mask))

    def token_losses(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, reference_logprobs: Tensor, kl_coef: float
    ) -> Tensor:
        losses = ppo_policy_loss(
            logprobs, old_logprobs, advantages, self.options.clip_range, self.options.clip_range_high
        )
        if self.options.kl_in == "loss":
            losses = losses + kl_coef * kl_estimate(logprobs, reference_logprobs, "k3")
        return losses


def needs(options: GRPOOptions) -> list[Need]:
    return online_needs(options)


def run(options: GRPOOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError when the run goes wrong (docs/guide/ppo.md)."""
    train(options)
