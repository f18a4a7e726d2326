"""`wukong bestofn`: SFT model + reward + prompts -> a policy, fine-tuned on the best of its n responses.

Inputs, outputs and loop as for `wukong ppo`; all online algorithms share `wukong.stages.online.train`.

    wukong bestofn --model runs/mine/sft --reward-model runs/mine/reward --prompts prompts.jsonl --out runs/mine/bestofn

Rejection-sampling fine-tuning (Nakano et al. 2021; RAFT, Dong et al. 2023; Llama 2, Touvron et al. 2023): of
--samples-per-prompt responses the one with the highest R = score - beta x KL is kept, and the policy is trained on it
with the language-model loss, as in SFT. The others are discarded. `wukong evaluate --best-of` evaluates best-of-n
without training.
"""

from __future__ import annotations

import torch
from pydantic import Field

from wukong.objectives import Average, best_of_groups, sequence_rewards
from wukong.require import Need
from wukong.stages.online.algorithm import Advantages, Algorithm, Batch, GroupOptions
from wukong.stages.online.train import online_needs, train


class BestOfNOptions(GroupOptions):
    """Fine-tune a policy on the best of several of its own responses."""

    samples_per_prompt: int = Field(8, ge=2)
    """n: responses to each prompt of a batch; the policy is trained on the best."""
    epochs: int = Field(1, ge=1)
    """Passes over each batch's best responses."""

    def algorithm(self) -> BestOfN:
        return BestOfN(self)


class BestOfN(Algorithm):
    name = "bestofn"
    average: Average = "token"

    def __init__(self, options: BestOfNOptions) -> None:
        self.size, self.epochs = options.samples_per_prompt, options.epochs

    def advantages(self, batch: Batch) -> Advantages:
        rewards = sequence_rewards(batch.scores, batch.kl, batch.mask, batch.kl_coef)
        best = best_of_groups(rewards, self.size)
        metrics = {"kept_score": batch.scores[best].mean()}
        return Advantages(torch.where(batch.mask, 1.0, 0.0), rows=best, metrics=metrics)


def needs(options: BestOfNOptions) -> list[Need]:
    return online_needs(options)


def run(options: BestOfNOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError when the run goes wrong (docs/guide/ppo.md)."""
    train(options)
