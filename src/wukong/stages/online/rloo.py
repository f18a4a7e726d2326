"""`wukong rloo`: SFT model + reward + prompts -> a policy, by REINFORCE with the leave-one-out baseline.

Inputs, outputs and loop as for `wukong ppo`; all online algorithms share `wukong.stages.online.train`.

    wukong rloo --model runs/mine/sft --reward-model runs/mine/reward --prompts prompts.jsonl --out runs/mine/rloo

Ahmadian et al. 2024 (after Kool et al. 2019): a response is one action with the reward R = score - beta x KL; of k
responses to a prompt, each is compared with the mean of the others. No value model, no clipping, one pass. Departure:
the sum over tokens is also divided by --max-new-tokens, a constant that Adam cancels except for its epsilon.
"""

from __future__ import annotations

import torch

from wukong.objectives import leave_one_out_advantages, sequence_rewards
from wukong.require import Need
from wukong.stages.online.algorithm import Advantages, Algorithm, Batch, GroupOptions, advantage_metrics
from wukong.stages.online.train import online_needs, train


class RLOOOptions(GroupOptions):
    """Train a policy against a reward with REINFORCE leave-one-out."""

    def algorithm(self) -> RLOO:
        return RLOO(self)


class RLOO(Algorithm):
    name = "rloo"

    def __init__(self, options: RLOOOptions) -> None:
        self.size = options.samples_per_prompt

    def advantages(self, batch: Batch) -> Advantages:
        rewards = sequence_rewards(batch.scores, batch.kl, batch.mask, batch.kl_coef)
        better = leave_one_out_advantages(rewards, self.size)  # (B,)
        advantages = torch.where(batch.mask, better.unsqueeze(1), 0)
        return Advantages(advantages, metrics=advantage_metrics(advantages, batch.mask))


def needs(options: RLOOOptions) -> list[Need]:
    return online_needs(options)


def run(options: RLOOOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError when the run goes wrong (docs/guide/ppo.md)."""
    train(options)
