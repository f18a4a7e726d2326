"""`wukong ppo`: SFT model + reward model + prompts -> a policy that people prefer.

In:  the SFT model (policy and frozen reference start from it), the reward model, prompts.
Out: the policy's model directory, metrics.jsonl, samples.jsonl; with --trace also trace.jsonl.

    wukong ppo --model runs/mine/sft --reward-model runs/mine/reward --prompts prompts.jsonl --out runs/mine/policy

Proximal policy optimisation (Schulman et al. 2017) as in Ziegler et al. 2019 and InstructGPT, in the loop of
`wukong.stages.online.train`: the reward of a token is -beta x (log pi - log pi_ref), plus the score at the last token;
GAE turns rewards into advantages; a few epochs of clipped updates of policy and value model follow.
Which numbers follow which paper: docs/explanation/ppo-details.md. Departures: the value model is a separate network,
initialised from the reward model (Stiennon et al. 2020), unless `--value-model shared` selects the original head on
the policy's trunk, and gradients are clipped at norm 1.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from wukong.objectives import Average, gae, ppo_policy_loss, ppo_value_loss, whiten
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


class PPOOptions(OnlineOptions):
    """Train a policy against a reward with PPO."""

    ppo_epochs: int = Field(4, ge=1)
    """Passes over each batch."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount factor."""
    lam: float = Field(0.95, ge=0, le=1)
    """lambda of GAE."""
    clip_range: float = Field(0.2, gt=0)
    """Clip range of the probability ratio, around 1."""
    clip_range_high: float | None = Field(None, gt=0)
    """Clip range above 1, if it is to differ from that below (DAPO's clip-higher, Yu et al. 2025: 0.28)."""
    max_update_kl: float | None = Field(None, gt=0)
    """Stop the passes over a batch once the policy has moved this many nats per token from the one that sampled it
    (approx_kl; target_kl in Spinning Up and Stable-Baselines3, which stop at 1.5 times it)."""
    value_warmup: int = Field(0, ge=0)
    """Iterations at the start in which only the value model learns (value pretraining, Yuan et al. 2025, arXiv
    2503.01491). They count in --episodes."""
    value_clip_range: float = Field(0.2, gt=0)
    """Clip range of a value, around its old one."""
    value_coef: float = Field(0.1, ge=0)
    """Weight of the value loss."""
    value_model: ValueModelKind = "separate"
    """A separate network, initialised from the reward model, or a head on the policy's trunk: half the memory and
    compute, but its loss also changes the policy."""
    whiten_rewards: bool = False
    """Scale the per-token rewards to variance 1, keeping the mean."""

    def algorithm(self) -> PPO:
        return PPO(self)


class PPO(Algorithm):
    name = "ppo"
    average: Average = "token"

    def __init__(self, options: PPOOptions) -> None:
        self.options, self.epochs = options, options.ppo_epochs
        self.clip_range, self.clip_range_high = options.clip_range, options.clip_range_high
        self.max_update_kl, self.value_warmup = options.max_update_kl, options.value_warmup
        self.value_coef = options.value_coef
        self.value_model = options.value_model

    def rewards(self, batch: Batch) -> Tensor:
        rewards = super().rewards(batch)
        return whiten(rewards, batch.mask, shift_mean=False) if self.options.whiten_rewards else rewards

    def advantages(self, batch: Batch) -> Advantages:
        mask = batch.mask
        advantages, returns = gae(self.rewards(batch), batch.values, mask, self.options.gamma, self.options.lam)
        metrics = {**advantage_metrics(advantages, mask), **value_metrics(batch.values, returns, mask)}
        return Advantages(whiten(advantages, mask), returns, metrics=metrics)

    def token_losses(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, reference_logprobs: Tensor, kl_coef: float
    ) -> Tensor:
        return ppo_policy_loss(
            logprobs, old_logprobs, advantages, self.options.clip_range, self.options.clip_range_high
        )

    def value_losses(self, values: Tensor, old_values: Tensor, returns: Tensor) -> Tensor:
        return ppo_value_loss(values, old_values, returns, self.options.value_clip_range)


def needs(options: PPOOptions) -> list[Need]:
    return online_needs(options)


def run(options: PPOOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError when the run goes wrong (docs/guide/ppo.md)."""
    train(options)
