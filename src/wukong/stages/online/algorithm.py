"""The interface of an online algorithm, and the options that all of them share.

The loop is the same for all (train.py); an algorithm defines how reward is assigned to tokens
(`Algorithm.advantages`) and the loss of a token (`Algorithm.token_losses`).

Shape legend: B episodes, R response time, N real response tokens.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from wukong import processes
from wukong.errors import UsageError
from wukong.model.adapters import is_adapter, open_adapter
from wukong.model.config import ModelConfig
from wukong.model.hub import stored_config
from wukong.objectives import (
    Average,
    masked_mean,
    outside_clip_range,
    policy_gradient_loss,
    ppo_value_loss,
    token_rewards,
)
from wukong.sampling import RecommendOptions
from wukong.stages.online.rewards import ScoringOptions, model_inputs
from wukong.stages.online.rollouts import RolloutOptions
from wukong.training.memory import DECODED_TOGETHER, Decoding, Workload
from wukong.training.tuning import TuningOptions, trained_part

ValueModelKind = Literal["separate", "shared"]
Metrics = Mapping[str, Tensor | float]
"""Scalars; device tensors are read together at the end of a step."""


@dataclass(frozen=True)
class Batch:
    """The inputs to the advantages."""

    scores: Tensor  # (B,)
    kl: Tensor  # (B, R) per token, estimator k1; zero where masked
    mask: Tensor  # (B, R) bool
    values: Tensor  # (B, R); zeros without a value model
    kl_coef: float
    state: dict[str, Any]
    """What the algorithm keeps between iterations (JSON values), saved in every checkpoint."""


@dataclass(frozen=True)
class Advantages:
    advantages: Tensor  # (B, R) as the loss takes them
    returns: Tensor | None = None  # (B, R) the value model's targets
    rows: Tensor | None = None  # int64, the episodes to train on; all when absent
    metrics: Metrics = field(default_factory=dict)


class Algorithm(ABC):
    """How an algorithm differs from the others. The defaults give the plain policy gradient without a value model."""

    name: str
    epochs: int = 1
    """Passes over a batch."""
    average: Average = "constant"
    """How losses are averaged over responses of different lengths."""
    clip_range: float | None = None
    """The clip range of the probability ratio; None: no clipping."""
    clip_range_high: float | None = None
    """The clip range above 1; None: as below 1."""
    value_warmup: int = 0
    """Iterations at the start in which only the value model learns."""
    max_update_kl: float | None = None
    """Passes over a batch stop when the policy has moved this far (`approx_kl`); None: never."""
    further_batches: int = 0
    """Batches of prompts that may be sampled in place of groups with equal scores, per iteration."""
    value_coef: float | None = None
    """Weight of the value loss; None: no value model."""
    value_model: ValueModelKind = "separate"
    """A separate network, or a head on the policy's trunk."""

    def rewards(self, batch: Batch) -> Tensor:
        """The reward of each token (B, R): the KL penalty, and the score at the last one. What is one action for an
        algorithm has their sum."""
        return token_rewards(batch.scores, batch.kl, batch.mask, batch.kl_coef)

    def clipped(self, ratios: Tensor) -> Tensor | None:
        """Which ratios pi/pi_old are outside the clip range; None without clipping. Any shape -> bool."""
        if self.clip_range is None:
            return None
        return outside_clip_range(ratios, self.clip_range, self.clip_range_high)

    @abstractmethod
    def advantages(self, batch: Batch) -> Advantages:
        """Rewards -> advantages."""

    def token_losses(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, reference_logprobs: Tensor, kl_coef: float
    ) -> Tensor:
        """The policy's loss at each token; all (N,)."""
        return policy_gradient_loss(logprobs, advantages)

    def value_losses(self, values: Tensor, old_values: Tensor, returns: Tensor) -> Tensor:
        """The value model's loss at each token, half the squared error; all (N,)."""
        return ppo_value_loss(values, old_values, returns, math.inf)


def advantage_metrics(advantages: Tensor, mask: Tensor) -> Metrics:
    """Metrics of the advantages (B, R) before whitening."""
    return {"advantage_std": advantages[mask].std(correction=0)}


def value_metrics(values: Tensor, returns: Tensor, mask: Tensor) -> Metrics:
    """How well the value model predicted the returns of this batch, before its update; all (B, R)."""
    residual, target = (returns - values)[mask], returns[mask]
    return {
        "value_mean": masked_mean(values, mask),
        "value_error": residual.square().mean(),
        "return_mean": target.mean(),
        "explained_variance": 1 - residual.var(correction=0) / (target.var(correction=0) + 1e-8),
    }


class OnlineOptions(RolloutOptions, ScoringOptions, TuningOptions, RecommendOptions):
    """What all online algorithms share."""

    old_names: ClassVar[dict[str, str]] = {"insist": "allow_chance_reward_model"}

    model: str
    """The SFT model, from which policy and reference start: a directory or hub id."""
    episodes: int = Field(4096, ge=1)
    """Responses sampled in total."""
    batch_size: int = Field(64, ge=1, le=1_000_000)
    """Responses per iteration."""
    minibatch_size: int | None = Field(None, ge=1)
    """Responses per update; the whole batch when absent."""
    samples_per_prompt: int = Field(1, ge=1)
    """Responses to each prompt of a batch."""
    kl_coef: float = Field(0.05, ge=0)
    """beta, the KL coefficient: the penalty per nat of KL to the reference; with --kl-target, its initial value."""
    kl_target: float | None = Field(None, gt=0)
    """Adapt beta to keep the KL per response near this many nats."""
    kl_horizon: int = Field(10_000, ge=1)
    """Horizon of the adaptive KL controller, in episodes."""
    importance_cap: float | None = Field(None, gt=0)
    """Weight each token's loss by pi/pi_sampler, at most this (truncated importance sampling, Yao et al. 2025): for a
    sampler that computes in another precision than the update. 2 is usual; None gives every token the weight 1."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of an entropy bonus."""
    ptx_data: str | None = None
    """Token shards (`wukong tokenize`) for PPO-ptx, whose language-model loss is added."""
    ptx_coef: float = Field(0.0, ge=0)
    """Weight of the --ptx-data loss (InstructGPT: 27.8; reported to destabilise small set-ups)."""
    allow_chance_reward_model: bool = False
    """Train even on a reward model no better than chance."""
    max_kl: float = Field(100.0, gt=0)
    """Stop if the mean KL per response exceeds this many nats."""
    lr: float = Field(1e-5, gt=0)
    """Peak learning rate."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "linear"
    """How the learning rate falls."""
    adam_eps: float = Field(1e-5, gt=0)
    """AdamW's epsilon: 1e-5 in the original."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    log_every: int = Field(1, ge=1)
    """Iterations between lines of metrics.jsonl."""
    save_every: int = Field(0, ge=0)
    """Iterations between policies saved in OUT/policies; 0 saves none."""
    trace: int = Field(0, ge=0)
    """Record the responses to this many prompts of a batch in OUT/trace.jsonl, token by token; 0 records none."""
    trace_every: int = Field(0, ge=0)
    """Iterations between traced ones; 0: ten, evenly spread, with the first and the last."""
    trace_prompts: list[str] = []
    """Questions that are also answered at each traced iteration, beside the batch. Default: the first of --prompts."""

    @abstractmethod
    def algorithm(self) -> Algorithm:
        """The algorithm whose options these are."""

    @property
    def prompts_per_batch(self) -> int:
        return self.batch_size // self.samples_per_prompt

    @property
    def iterations(self) -> int:
        return self.episodes // self.batch_size

    @property
    def updates_per_pass(self) -> int:
        return self.batch_size // (self.minibatch_size or self.batch_size)


class GroupOptions(OnlineOptions):
    """What algorithms that compare responses to one prompt share."""

    samples_per_prompt: int = Field(4, ge=2)
    """Responses to each prompt of a batch, compared with each other."""


def check(options: OnlineOptions) -> None:
    """Raises UsageError for incompatible options."""
    if options.missing_eos_score is not None and options.missing_eos_penalty is not None:
        raise UsageError("--missing-eos-score and --missing-eos-penalty exclude each other: give one")
    if options.truncate_at is not None and options.missing_eos_score is None and options.missing_eos_penalty is None:
        needed = "a --missing-eos-score or --missing-eos-penalty"
        raise UsageError(f"--truncate-at needs {needed} for responses without that token")
    if options.kl_target is not None and not options.kl_coef:
        raise UsageError("--kl-target adapts --kl-coef by factors, which leaves 0 at 0: give a --kl-coef above 0")
    if options.episodes % options.batch_size:
        raise UsageError(f"--episodes {options.episodes} is not a multiple of --batch-size {options.batch_size}")
    if options.batch_size % options.samples_per_prompt:
        given = f"--samples-per-prompt {options.samples_per_prompt}"
        raise UsageError(f"{given} does not divide --batch-size {options.batch_size}")
    if options.batch_size % (options.minibatch_size or options.batch_size):
        raise UsageError(f"--minibatch-size {options.minibatch_size} does not divide --batch-size {options.batch_size}")
    if options.parallel == "fsdp" and options.algorithm().value_model == "shared":
        raise UsageError("--value-model shared cannot be sharded: choose --value-model separate or --parallel ddp")
    if (warmup := options.algorithm().value_warmup) >= options.iterations:
        raise UsageError(f"--value-warmup {warmup} leaves the policy none of the {options.iterations} iterations")
    if options.ptx_coef and not options.ptx_data:
        raise UsageError("--ptx-coef needs --ptx-data")


def _has_base_of_policy(options: OnlineOptions) -> bool:
    """Whether a separate value model starts with the policy's frozen weights: without a reward model, or with one that
    is an adapter of the policy's own start."""
    reward_model = options.reward_model
    if reward_model is None:
        return True
    if not options.lora_rank or not is_adapter(Path(reward_model)):
        return False
    return os.path.realpath(open_adapter(Path(reward_model)).base) == os.path.realpath(options.model)


def workload(options: OnlineOptions, config: ModelConfig, prompt: int) -> Workload:
    """What the run holds in memory besides the trained models. prompt: tokens of the longest one."""
    together = math.ceil(options.batch_size / processes.world_size())
    length = min(prompt + options.max_new_tokens, config.n_positions)
    rewards = [stored_config(directory) or config for directory in model_inputs(options)]
    part, algorithm = trained_part(config, options), options.algorithm()
    copies = 1  # the reference shares the policy's frozen weights; so does the reward model with the value model
    if algorithm.value_coef is not None and algorithm.value_model == "separate" and options.reward_model:
        copies += 1
    return Workload(
        tokens=together * length,
        outputs=1.0 if options.ptx_coef else options.max_new_tokens / length,
        frozen=(config, *rewards) if part is None else tuple(rewards[copies - 1 :]),
        part=part,
        one_base=part is not None and _has_base_of_policy(options),
        frozen_copies=0 if part is None else copies,
        decoding=Decoding(config, min(together, DECODED_TOGETHER), length),
    )
