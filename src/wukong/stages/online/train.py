"""The loop of all online algorithms: the policy answers prompts, the answers are scored, the policy learns.

An iteration (`Trainer.step`):
  1. the policy answers a batch of prompts, sampled without truncation (top-k 0, top-p 1)    collect.py, rollouts.py
  2. the rewards score the answers; policy, reference and value model (if any) read them     rewards.py, rollouts.py
  3. the algorithm turns rewards into advantages                                             ppo.py, grpo.py, ...
  4. one or more passes of updates, in minibatches, with the algorithm's loss                update.py
  5. the KL controller, metrics, and guards that stop a run gone wrong
Prompts, reference, rewards, KL controller, pretraining term, metrics, guards and checkpoints are the same for all.

Shape legend: B episodes, R response time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from wukong import processes, require
from wukong.console import say
from wukong.data.batches import epoch_batch
from wukong.data.prompts import PROMPTS
from wukong.data.shards import TokenShards
from wukong.errors import RunError, UsageError
from wukong.feedback.replies import forget_replies, replies_path
from wukong.feedback.reward_models import require_better_than_chance
from wukong.files import atomic_directory
from wukong.language import counted
from wukong.model.adapters import base_name
from wukong.model.heads import ScalarModel, ValueHead
from wukong.model.hub import load_policy, load_reward, load_trunk, save_policy
from wukong.model.language_model import LanguageModel
from wukong.objectives import adapted_kl_coef, masked_mean
from wukong.require import Need
from wukong.sampling import SamplingParameters
from wukong.scoring import reference_of
from wukong.seeds import derived_seed
from wukong.stages.online.algorithm import Advantages, Batch, OnlineOptions, check, workload
from wukong.stages.online.collect import FURTHER, Collected, Collector, EpisodeScorer
from wukong.stages.online.rewards import judge_names, load_rewards, model_inputs, reward_needs
from wukong.stages.online.rollouts import (
    Episodes,
    RolloutStats,
    ScoreFunction,
    TokenisedPrompt,
    ValueModel,
    ended_no_better,
    rollout_stats,
    tokenised_prompts,
)
from wukong.stages.online.trace import Tracer, tracer_of
from wukong.stages.online.update import PretrainingLoss, Update
from wukong.stats import correlation, distinct_n, repeated_n, top_phrase_share
from wukong.tokenizer import Tokenizer
from wukong.training.advice import evaluate_command, warn_of_few_steps
from wukong.training.compute import read
from wukong.training.parallel import full_module
from wukong.training.session import Session
from wukong.training.tuning import as_loaded, share_frozen, tuned

COLLAPSE_SHARE, COLLAPSE_DISTINCT = 0.5, 0.25
"""Collapse: one response fills more than this share of a batch, or distinct-2 falls below this fraction of the first
batch's."""
COLLAPSE_PROMPTS = 16
"""The share is checked only in batches of at least this many prompts: a few may have the same best answer."""
REPEATED, PHRASE = 4, 6
"""Tokens of what counts as a repetition within a response, and as a phrase shared by responses."""


@dataclass
class Trainer:
    """One run of an online algorithm; `step` is one iteration."""

    session: Session
    options: OnlineOptions
    policy: LanguageModel
    reference: LanguageModel
    value_model: ValueModel | None
    score: ScoreFunction
    tokenizer: Tokenizer
    pretraining: PretrainingLoss | None = None
    tracer: Tracer | None = None
    further: Callable[[int], Sequence[TokenisedPrompt]] | None = None
    """The prompts of the nth batch after the iteration's first, for dynamic sampling."""

    def __post_init__(self) -> None:
        self.algorithm = self.options.algorithm()
        self.collect = Collector(self.session, self.options, self.policy, self.score, self.tokenizer, self.further)

    def step(self, prompts: Sequence[TokenisedPrompt]) -> dict[str, float]:
        """Roll out, score, compute advantages, update; then the KL controller and the guards. Returns the metrics."""
        options, session, compute = self.options, self.session, self.session.compute
        times = [time.monotonic()]
        collected = self.collect(prompts)
        episodes, rewards, scores = collected.episodes, collected.rewards, collected.scores
        rows = session.micro_batches(range(len(prompts)), episodes.lengths_of)
        stats = rollout_stats(
            self.policy, self.reference, self.value_model, episodes, rows, options.temperature, compute
        )
        kl = stats.kl(episodes.mask, "k1")
        batch = Batch(scores, kl, episodes.mask, stats.values, session.state["kl_coef"], session.state)
        advantages = self.algorithm.advantages(batch)
        traced = self.tracer.before_update(episodes, rewards, stats, batch, advantages) if self.tracer else None
        times.append(time.monotonic())
        losses = Update(
            session, self.algorithm, options, self.policy, self.value_model, episodes, stats, advantages,
            self.pretraining,
        ).run()  # fmt: skip
        times.append(time.monotonic())
        if self.tracer and traced:
            self.tracer.after_update(traced)
        metrics = self._metrics(episodes, stats, rewards, scores, kl, advantages, losses)
        metrics |= collected.metrics | _seconds(times, collected)
        self._warn_of_fixed_score(metrics["ended_no_better"], rewards, episodes)
        self._adapt_kl_coef(metrics["kl"], len(prompts))
        self._log(metrics, collected, kl)
        self._guard(metrics)
        return metrics

    def _metrics(
        self, episodes: Episodes, stats: RolloutStats, rewards: Tensor, scores: Tensor, kl: Tensor,
        advantages: Advantages, losses: dict[str, float],
    ) -> dict[str, float]:  # fmt: skip
        """The metrics of an iteration; device tensors are read together."""
        mask = episodes.mask
        on_device = {
            "score": scores.mean(),
            "score_std": scores.std(correction=0),
            "reward_model_score": rewards.mean(),
            "kl": kl.sum(1).mean(),
            "kl_k3": stats.kl(mask, "k3").sum(1).mean(),
            "kl_penalty_std": self.session.state["kl_coef"] * kl.sum(1).std(correction=0),
            "entropy": masked_mean(stats.entropies, mask),
            "sampler_logprob_gap": masked_mean((stats.logprobs - episodes.sampler_logprobs).abs(), mask),
            **{
                name: value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)
                for name, value in advantages.metrics.items()
            },
        }
        responses = episodes.responses
        return {
            **dict(zip(on_device, read(list(on_device.values())), strict=True)),
            "ended_no_better": ended_no_better(rewards, episodes, self.options),
            "kl_coef": self.session.state["kl_coef"],
            **losses,
            "response_length": sum(episodes.response_lengths) / len(responses),
            "termination_rate": float(np.mean(episodes.ended)),
            "score_length_correlation": correlation(rewards.tolist(), episodes.response_lengths),
            "distinct_2": distinct_n(responses, 2),
            "repetition": repeated_n(responses, REPEATED),
            "top_phrase_share": top_phrase_share(responses, PHRASE),
            "top_response_share": Counter(responses).most_common(1)[0][1] / len(responses),
        }

    def _adapt_kl_coef(self, kl: float, episodes: int) -> None:
        options, state = self.options, self.session.state
        warms_up = self.session.step < self.algorithm.value_warmup  # until it ends the KL is 0
        if options.kl_target is not None and not warms_up:
            state["kl_coef"] = adapted_kl_coef(state["kl_coef"], kl, options.kl_target, episodes, options.kl_horizon)

    def _log(self, metrics: dict[str, float], collected: Collected, kl: Tensor) -> None:
        episodes, scores = collected.episodes, collected.scores
        self.session.log(collected.tokens, **metrics)
        self.session.state["last"] = metrics
        if self.session.due(10):
            for i, (prompt, response) in enumerate(zip(episodes.prompts[:2], episodes.responses[:2], strict=True)):
                text = {"prompt": self.tokenizer.decode(prompt.ids), "text": self.tokenizer.decode(response)}
                self.session.sample(**text, score=float(scores[i]), kl=float(kl[i].sum()))

    def _warn_of_fixed_score(self, no_better: float, rewards: Tensor, episodes: Episodes) -> None:
        """Warns once per run if the fixed score is no penalty: with a length penalty, or rewards on another scale, it
        can exceed the reward of ended responses."""
        state = self.session.state
        if all(episodes.ended) or not no_better or state.get("warned_of_fixed_score"):
            return
        state["warned_of_fixed_score"] = True
        lowest = float(rewards[torch.tensor(episodes.ended, device=rewards.device)].min())
        say(
            "{name}: warning: responses that never end score {missing_eos_score:g}, and {no_better:.0%} of those "
            "that end score no more (the lowest {lowest:.3g}), so that not ending can pay; --missing-eos-penalty 1 "
            "subtracts from each one's own reward instead",
            name=self.algorithm.name,
            missing_eos_score=self.options.missing_eos_score,
            no_better=no_better,
            lowest=lowest,
        )

    def _guard(self, metrics: dict[str, float]) -> None:
        """Stops a run that has gone wrong, before its checkpoint is overwritten. Raises RunError."""
        session, options = self.session, self.options
        first = session.state["first_distinct_2"]
        if first is None:
            session.state["first_distinct_2"] = first = metrics["distinct_2"]
        problem = None
        if metrics["kl"] > options.max_kl:
            problem = (
                f"the KL is {metrics['kl']:.0f} nats, over --max-kl {options.max_kl:g}; raise --kl-coef or lower --lr"
            )
        elif options.prompts_per_batch >= COLLAPSE_PROMPTS and metrics["top_response_share"] > COLLAPSE_SHARE:
            problem = "most prompts get the same response (collapse); raise --kl-coef or lower --lr"
        elif metrics["distinct_2"] < COLLAPSE_DISTINCT * first:
            problem = "the responses repeat themselves (distinct-2 collapsed); raise --kl-coef or lower --lr"
        if problem:
            session.write_metrics()
            at = f"{self.algorithm.name} stopped at iteration {session.step + 1}"
            raise RunError(f"{at}: {problem}; {session.kept_checkpoint()}")


def _seconds(times: Sequence[float], collected: Collected) -> dict[str, float]:
    before, update = (end - begin for begin, end in pairwise(times))
    return {
        "rollout_seconds": collected.seconds,
        "scoring_seconds": before - collected.seconds,
        "update_seconds": update,
        "rollout_tokens_per_second": collected.tokens / collected.seconds,
    }


# ---------------------------------------------------------------------------------------------------------- the run


def online_needs(options: OnlineOptions) -> list[Need]:
    """What every online algorithm needs."""
    check(options)
    rewards = reward_needs(options)  # models first: the order of inputs in existing results
    return [
        require.policy(options.model),
        *(need for need in rewards if need.source is not None),
        *require.data(options.prompts, require.reader(PROMPTS, options)),
        *require.judged_prompts(options.prompts, options, judge_names(options)),
        *([require.shards(options.ptx_data, ("train",))] if options.ptx_data else []),
        *(need for need in rewards if need.source is None),
        require.room(options.model, options.max_new_tokens),
        require.tuning(options.model, options),
        require.device(options.device),
    ]


def train(options: OnlineOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError when the run goes wrong (docs/guide/ppo.md)."""
    algorithm = options.algorithm()
    work = require.open_stage(algorithm.name, options, online_needs(options))
    if work.done:
        return
    for reward_model in model_inputs(options):
        require_better_than_chance(reward_model, options.allow_chance_reward_model)
    # ------------------------------------------------------------------------------------------ models and data
    policy, tokenizer = _start(options)
    if options.truncate_at is not None and len(tokenizer.encode(options.truncate_at)) != 1:
        raise UsageError(f"--truncate-at {options.truncate_at!r} is not one token of this tokenizer")
    value_model = first_value_model(options, policy) if algorithm.value_coef is not None else None
    prompts, _ = tokenised_prompts(options, options.holdout, tokenizer, policy.config.n_positions)
    say(
        "{name}: {prompts}, {iterations} of {responses}",
        name=algorithm.name,
        prompts=counted(len(prompts), "{n:,} prompt", "{n:,} prompts"),
        iterations=counted(options.iterations, "{n:,} iteration", "{n:,} iterations"),
        responses=counted(options.batch_size, "{n:,} response", "{n:,} responses"),
    )
    updates = options.iterations * algorithm.epochs * options.updates_per_pass
    warn_of_few_steps(algorithm.name, updates, "give more --episodes, or a smaller --batch-size")
    # ----------------------------------------------------------------------------------------------------- loop
    modules: dict[str, nn.Module] = {"policy": policy}
    if value_model is not None:
        modules["value"] = value_model
    state = {"kl_coef": options.kl_coef, "first_distinct_2": None}
    load = workload(options, policy.config, max(len(prompt.ids) for prompt in prompts))
    session = Session(options, modules, options.iterations, algorithm.name, state, lr=options.lr, workload=load)
    with session:
        trainer = _trainer(session, options, policy, value_model, tokenizer, prompts)
        for step in session.steps():
            metrics = trainer.step(batch_of(prompts, step + session.state.get(FURTHER, 0), options))
            session.show(score=metrics["score"], kl=metrics["kl"])
            if options.save_every and (step + 1) % options.save_every == 0 and step + 1 < options.iterations:
                _keep_policy(options, step + 1, policy, tokenizer)
    policy = as_loaded(full_module(policy, "cpu").cpu(), lambda: _start(options)[0])
    if not processes.is_first():
        return
    # ----------------------------------------------------------------------------------------------------- save
    kept = sorted(file for file in (options.out / "policies").rglob("*") if file.is_file())
    last = session.state["last"]
    results = {name: last[name] for name in ("score", "kl", "termination_rate", "response_length")}
    session.finish(
        work,
        lambda staged: save_policy(
            staged, policy, tokenizer, sampling=_sampling(options), base=base_name(options.model, options.out)
        ),
        results,
        kept,
    )
    forget_replies(options.out, directory=True)
    say(
        "{name}: the policy scores {score:.3g}, and is {kl:.3g} nats per response (KL) from where it started",
        name=algorithm.name,
        score=last["score"],
        kl=last["kl"],
    )
    say("next: {command}", command=evaluate_command(algorithm.name, options.model, options.out))


def _start(options: OnlineOptions) -> tuple[LanguageModel, Tokenizer]:
    """The policy at the start, ready to be trained."""
    policy, tokenizer = load_policy(options.model)
    return tuned(policy, options, options.seed), tokenizer


def batch_of(prompts: Sequence[TokenisedPrompt], number: int, options: OnlineOptions) -> list[TokenisedPrompt]:
    """The prompts of the run's `number`th batch, from 0, each listed `samples_per_prompt` times in a row."""
    asked = [prompts[i] for i in epoch_batch(len(prompts), number, options.prompts_per_batch, options.seed)]
    return [prompt for prompt in asked for _ in range(options.samples_per_prompt)]


def _trainer(
    session: Session, options: OnlineOptions, policy: LanguageModel, value_model: ValueModel | None,
    tokenizer: Tokenizer, prompts: Sequence[TokenisedPrompt],
) -> Trainer:  # fmt: skip
    """The trainer with its frozen parts: the reference, the rewards and the pretraining term."""
    reference = reference_of(options.model, policy, session.compute)
    kept = replies_path(options.out, directory=True)
    holders: list[nn.Module] = []
    if (options.lora_rank or options.freeze_layers) and not session.is_sharded:
        if isinstance(value_model, ScalarModel):
            share_frozen(value_model, policy)
            holders.append(value_model)
        holders.append(policy)
    rewards = load_rewards(options, tokenizer, session.compute, session.micro_batch_tokens, kept, holders)
    pretraining = None
    if options.ptx_data and options.ptx_coef:
        context = policy.config.n_positions
        shards = TokenShards.open(f"{options.ptx_data}/train", tokenizer)
        rows = max(1, options.micro_batch_tokens // context)  # the option, so that results do not depend on the memory
        pretraining = PretrainingLoss(shards, rows, context, options.seed)
    scorer = EpisodeScorer(session, rewards, tokenizer, options.algorithm().name)
    tracer = tracer_of(session, options, policy, reference, value_model, scorer.score, tokenizer, prompts)

    def further(n: int) -> list[TokenisedPrompt]:
        return batch_of(prompts, session.step + session.state.get(FURTHER, 0) + n, options)

    return Trainer(session, options, policy, reference, value_model, scorer, tokenizer, pretraining, tracer, further)


def _sampling(options: OnlineOptions) -> SamplingParameters:
    return SamplingParameters(options.temperature).for_training(options.recommended_temperature)


def _keep_policy(options: OnlineOptions, iteration: int, policy: LanguageModel, tokenizer: Tokenizer) -> None:
    plain, place = full_module(policy, "cpu"), f"policies/iteration-{iteration:06d}"
    if processes.is_first():
        plain, base = as_loaded(plain, lambda: _start(options)[0]), base_name(options.model, options.out, place)
        with atomic_directory(options.out / place) as staged:
            save_policy(staged, plain, tokenizer, sampling=_sampling(options), base=base)


def first_value_model(options: OnlineOptions, policy: LanguageModel) -> ValueModel:
    """A head on the policy's trunk, or a copy of the reward model (Stiennon et al. 2020); without a reward model, the
    SFT model with a new head. A reward model's adapter is trained further."""
    if options.algorithm().value_model == "shared":
        return ValueHead(policy.config.n_embd)
    if options.reward_model:
        return tuned(load_reward(options.reward_model, merge=not options.lora_rank)[0], options, options.seed)
    trunk, _ = load_trunk(options.model)
    torch.manual_seed(derived_seed(options.seed, "head"))
    return tuned(ScalarModel(trunk), options, options.seed)
