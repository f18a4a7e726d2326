"""The loop that the online algorithms share: the policy answers prompts, the answers are scored, the policy learns.

An iteration of every algorithm:
  1. the policy answers a batch of prompts, sampled without truncation (top-k 0, top-p 1);
  2. policy, reference and (where there is one) value model read the answers, the rewards score them;
  3. the algorithm says which token gets how much of the reward: `Algorithm.credit`;
  4. one or more passes of updates, in minibatches, with the algorithm's loss: `Algorithm.token_losses`.
Around it are the same prompts, reference, rewards, KL controller, pretraining term, metrics, guards and checkpoints.

Shape legend: B episodes, R response time, N real response tokens.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from wukong import processes, require
from wukong.console import say
from wukong.data.batches import by_length
from wukong.data.prompts import PROMPTS
from wukong.data.shards import TokenShards
from wukong.errors import RunError, UsageError
from wukong.feedback.replies import forget_replies, replies_path
from wukong.files import atomic_directory
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.heads import ScalarModel, ValueHead
from wukong.model.hub import load_policy, load_reward, load_trunk, save_policy
from wukong.objectives import (
    Average,
    adapted_kl_coef,
    kl_estimate,
    loss_average,
    masked_mean,
    policy_gradient_loss,
    ppo_value_loss,
)
from wukong.require import Need
from wukong.sampling import RecommendOptions, SamplingParameters
from wukong.seeds import derived_seed, permutation
from wukong.stages.common import (
    distinct_n,
    epoch_batch,
    evaluation_of,
    frozen,
    language_model_loss,
    require_better_than_chance,
)
from wukong.stages.episodes import (
    Episodes,
    Judged,
    RolloutOptions,
    ScoreFunction,
    TokenisedPrompt,
    ValueModel,
    ended_no_better,
    final_scores,
    judge,
    micro_batch,
    read_responses,
    response_values,
    roll_out,
    tokenised_prompts,
)
from wukong.stages.rewards import Answers, Rewards, ScoringOptions, load_rewards, model_inputs, reward_needs
from wukong.tokenizer import Tokenizer
from wukong.training.compute import Compute
from wukong.training.memory import DECODED_TOGETHER, Decoding, Workload, stored_config
from wukong.training.parallel import in_step, whole
from wukong.training.passes import warn_of_few_steps
from wukong.training.session import Session, publish

# ------------------------------------------------------------------------------------------- what an algorithm says


ValueModelKind = Literal["separate", "shared"]


@dataclass
class Batch:
    """What an algorithm may look at when it shares out the reward."""

    scores: Tensor  # (B,)
    kl: Tensor  # (B, R) per token, estimator k1; zero where masked
    mask: Tensor  # (B, R) bool
    values: Tensor  # (B, R); zeros without a value model
    kl_coef: float
    state: dict[str, Any]
    """What is kept from iteration to iteration, JSON values: part of every checkpoint."""


@dataclass
class Credit:
    advantages: Tensor  # (B, R) as the loss takes them
    returns: Tensor | None = None  # (B, R) what the value model is trained towards
    rows: Tensor | None = None  # int64, the episodes to train on; all when absent
    metrics: dict[str, float] = field(default_factory=dict)


class Algorithm(ABC):
    """How an algorithm differs from the others. What stands here is the plain policy gradient without values."""

    name: str
    epochs: int = 1
    """Passes over a batch."""
    average: Average = "constant"
    """How the losses of responses of different lengths become one number."""
    clip_range: float | None = None
    """Where the loss clips the probability ratio, if it does."""
    value_coef: float | None = None
    """Weight of the value model's loss; None: no value model."""
    value_model: ValueModelKind = "separate"
    """Whether that has a trunk of its own."""

    @abstractmethod
    def credit(self, batch: Batch) -> Credit:
        """Advantages out of rewards."""

    def token_losses(
        self, logprobs: Tensor, old: Tensor, advantages: Tensor, reference: Tensor, kl_coef: float
    ) -> Tensor:
        """The policy's loss at each token; all (N,)."""
        return policy_gradient_loss(logprobs, advantages)

    def value_losses(self, values: Tensor, old: Tensor, returns: Tensor) -> Tensor:
        """The value model's loss at each token, half the squared error; all (N,)."""
        return ppo_value_loss(values, old, returns, math.inf)


class OnlineOptions(RolloutOptions, ScoringOptions, RecommendOptions):
    """What all online algorithms share."""

    model: str
    """The SFT model: policy and reference start from it. A directory or hub id."""
    episodes: int = Field(4096, ge=1)
    """Responses sampled in all."""
    batch_size: int = Field(64, ge=1, le=1_000_000)
    """Responses an iteration."""
    minibatch_size: int | None = Field(None, ge=1)
    """Responses an update; a whole batch when absent."""
    samples_per_prompt: int = Field(1, ge=1)
    """Responses to each prompt of a batch."""
    kl_coef: float = Field(0.05, ge=0)
    """beta, the price of a nat of KL to the reference; the first one when --kl-target is given."""
    kl_target: float | None = Field(None, gt=0)
    """Adapt beta so that the KL of a response stays near this many nats."""
    kl_horizon: int = Field(10_000, ge=1)
    """How many episodes the adaptive controller takes."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of an entropy bonus."""
    ptx_data: str | None = None
    """Token shards (`wukong tokenize`) for PPO-ptx: their language-model loss is added."""
    ptx_coef: float = Field(0.0, ge=0)
    """Weight of that loss (InstructGPT: 27.8; reported to destabilise small set-ups)."""
    insist: bool = False
    """Train even against a reward model that cannot be told from chance."""
    max_kl: float = Field(100.0, gt=0)
    """Stop when the mean KL of a response passes this many nats."""
    lr: float = Field(1e-5, gt=0)
    """Peak learning rate."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "linear"
    """How the learning rate falls."""
    adam_eps: float = Field(1e-5, gt=0)
    """AdamW's epsilon: 1e-5 in the original."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    log_every: int = Field(1, ge=1)
    """Iterations between two lines of metrics.jsonl."""
    save_every: int = Field(0, ge=0)
    """Iterations between two policies that are kept on the way, in OUT/policies; 0 keeps none."""

    @abstractmethod
    def algorithm(self) -> Algorithm:
        """The algorithm whose options these are."""


class GroupOptions(OnlineOptions):
    """What the algorithms share that compare responses to one prompt."""

    samples_per_prompt: int = Field(4, ge=2)
    """Responses to each prompt of a batch, which are compared with each other."""


def workload(options: OnlineOptions, config: GPT2Config, prompt: int) -> Workload:
    """prompt: tokens of the longest. Judging and updating put micro-batches of whole responses through the models."""
    together = math.ceil(options.batch_size / processes.size())
    length = min(prompt + options.max_new_tokens, config.n_positions)
    rewards = [stored_config(directory) or config for directory in model_inputs(options)]
    return Workload(
        tokens=together * length,
        outputs=1.0 if options.ptx_coef else options.max_new_tokens / length,
        frozen=(config, *rewards),
        decoding=Decoding(config, min(together, DECODED_TOGETHER), length),
    )


COLLAPSE_SHARE, COLLAPSE_DISTINCT = 0.5, 0.25
"""One response for more than this share of a batch, or distinct-2 below this part of the first batch's: a collapse."""
COLLAPSE_PROMPTS = 16
"""The share is judged in batches of at least so many prompts: a few may well have the same best answer."""
FIRST_RATIO_TOLERANCE, BFLOAT16_RATIO_TOLERANCE = 1e-3, 0.05
"""What rounding explains of the first ratio. A logit in bfloat16 is off by 0.2 % of its size, up to 0.03 for one of 16;
a policy that is read otherwise than it wrote (dropout, another temperature, other positions) is off by 0.1 and more."""

# --------------------------------------------------------------------------------------------------- one iteration


def iterate(
    session: Session, policy: GPT2, reference: GPT2, value_model: ValueModel | None, score: ScoreFunction,
    prompts: Sequence[list[int]], tokenizer: Tokenizer, options: OnlineOptions,
    ptx_losses: Callable[[int], Iterator[Tensor]] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Roll out, judge, share out the reward, update; then the KL controller, metrics and guards."""
    compute, kl_coef, algorithm = session.compute, session.state["kl_coef"], options.algorithm()
    clock = [time.monotonic()]
    episodes = roll_out(policy, prompts, tokenizer, options, derived_seed(options.seed, "roll", session.step), compute)
    clock.append(time.monotonic())
    judged = judge(policy, reference, value_model, score, episodes, options, compute)
    scores = final_scores(judged.scores, episodes, options)
    no_better = ended_no_better(judged.scores, episodes, options)
    _warn_of_fixed_score(session, no_better, judged.scores, episodes, options)
    mask = episodes.mask
    kl = torch.where(mask, kl_estimate(judged.logprobs, judged.reference_logprobs, "k1"), 0)  # (B, R)
    credit = algorithm.credit(Batch(scores, kl, mask, judged.values, kl_coef, session.state))
    clock.append(time.monotonic())
    losses = update(session, algorithm, episodes, judged, credit, options, ptx_losses)
    clock.append(time.monotonic())

    mean_kl = float(kl.sum(1).mean())
    if options.kl_target is not None:
        session.state["kl_coef"] = adapted_kl_coef(
            kl_coef, mean_kl, options.kl_target, len(prompts), options.kl_horizon
        )
    k3 = torch.where(mask, kl_estimate(judged.logprobs, judged.reference_logprobs, "k3"), 0)
    tokens, responses = int(mask.sum()), episodes.responses
    metrics = {
        "score": float(scores.mean()),
        "score_std": float(scores.std(correction=0)),
        "reward_model_score": float(judged.scores.mean()),
        "ended_no_better": no_better,
        "kl": mean_kl,
        "kl_k3": float(k3.sum(1).mean()),
        "kl_coef": kl_coef,
        "entropy": float(masked_mean(judged.entropies, mask)),
        **losses,
        **credit.metrics,
        "sampler_logprob_gap": float(masked_mean((judged.logprobs - episodes.sampler_logprobs).abs(), mask)),
        "response_length": tokens / len(prompts),
        "termination_rate": float(np.mean(episodes.ended)),
        "distinct_2": distinct_n(responses, 2),
        "top_response_share": Counter(responses).most_common(1)[0][1] / len(responses),
        "rollout_seconds": clock[1] - clock[0],
        "scoring_seconds": clock[2] - clock[1],
        "update_seconds": clock[3] - clock[2],
        "rollout_tokens_per_second": tokens / (clock[1] - clock[0]),
    }
    session.log(tokens, **metrics)
    session.state["last"] = metrics
    if session.due(10):
        for i in range(min(2, len(prompts))):
            text = {"prompt": tokenizer.decode(prompts[i]), "text": tokenizer.decode(responses[i])}
            session.sample(**text, score=float(scores[i]), kl=float(kl[i].sum()))
    _guard(session, metrics, options)
    return metrics


def _warn_of_fixed_score(
    session: Session, no_better: float, scores: Tensor, episodes: Episodes, options: OnlineOptions
) -> None:
    """Says once in a run that the fixed score is no punishment: with a length penalty, or rewards on another scale,
    it can be more than what ended responses get."""
    if all(episodes.ended) or not no_better or session.state.get("warned_of_fixed_score"):
        return
    session.state["warned_of_fixed_score"] = True
    lowest = float(scores[torch.tensor(episodes.ended, device=scores.device)].min())
    say(
        f"{options.algorithm().name}: warning: responses that never end score {options.missing_eos_score:g}, and "
        f"{no_better:.0%} of those that end score no more (the lowest {lowest:.3g}), so that not ending can pay; "
        "--missing-eos-penalty 1 takes the price off each one's own reward"
    )


def advantage_metrics(advantages: Tensor, mask: Tensor) -> dict[str, float]:
    """Of advantages (B, R) before they are whitened."""
    metrics = {"advantage_std": float(advantages[mask].std(correction=0))}
    return metrics


def value_metrics(values: Tensor, returns: Tensor, mask: Tensor) -> dict[str, float]:
    """How well the value model foresaw the returns of this batch, before its update; all (B, R)."""
    residual, target = (returns - values)[mask], returns[mask]
    metrics = {
        "value_mean": float(masked_mean(values, mask)),
        "value_error": float(residual.square().mean()),
        "return_mean": float(target.mean()),
        "explained_variance": float(1 - residual.var(correction=0) / (target.var(correction=0) + 1e-8)),
    }
    return metrics


def update(
    session: Session, algorithm: Algorithm, episodes: Episodes, judged: Judged, credit: Credit,
    options: OnlineOptions, ptx_losses: Callable[[int], Iterator[Tensor]] | None,
) -> dict[str, float]:  # fmt: skip
    """The passes over a batch, reshuffled each time. Returns the means over all updates."""
    policy: GPT2 = session.modules["policy"]  # type: ignore[assignment]
    value_model: ValueModel | None = session.modules.get("value")  # type: ignore[assignment]
    compute = session.compute
    rows = np.arange(len(episodes.sequences)) if credit.rows is None else credit.rows.cpu().numpy()
    size = options.minibatch_size or len(rows)
    kl_coef = session.state["kl_coef"]
    sums: defaultdict[str, float] = defaultdict(float)  # of what this process's share of each batch adds up to
    norms: defaultdict[str, float] = defaultdict(float)
    ratios = [1.0, 1.0]
    first_error, updates = 0.0, 0
    for epoch in range(algorithm.epochs):
        order = rows[permutation(len(rows), options.seed, "minibatches", session.step, epoch)]
        for chosen in np.split(order, range(size, len(order), size)):
            lengths = torch.tensor([episodes.response_lengths[i] for i in chosen])
            n_tokens = int(lengths.sum())
            weights, divisor = loss_average(lengths, algorithm.average, options.max_new_tokens)
            mine = processes.share(range(len(chosen)))
            parts = by_length([len(episodes.sequences[chosen[i]]) for i in mine], options.micro_batch_tokens)
            for part in in_step(([mine[i] for i in these] for these in parts), *session.modules.values()):
                ids, predicts, index = micro_batch(episodes, [int(chosen[i]) for i in part], compute)
                mask = episodes.mask[index]
                weight = weights[part].to(compute.device).unsqueeze(1).expand(mask.shape)[mask]  # (N,)
                old, wanted = judged.logprobs[index][mask], credit.advantages[index][mask]  # (N,) each
                logprobs, entropies, values = read_responses(
                    policy, value_model, ids, predicts, options.temperature, compute, options.entropy_coef > 0
                )
                expected = judged.reference_logprobs[index][mask]
                losses = weight * algorithm.token_losses(logprobs, old, wanted, expected, kl_coef)
                loss = (losses.sum() - options.entropy_coef * (weight * entropies).sum()) / divisor
                if isinstance(value_model, ScalarModel):  # its activations need not stand beside the policy's
                    session.backward(loss)
                    loss, values = torch.zeros(()), response_values(value_model, ids, predicts, compute)
                if values is not None:
                    assert credit.returns is not None
                    assert algorithm.value_coef is not None
                    value_losses = algorithm.value_losses(
                        values, judged.values[index][mask], credit.returns[index][mask]
                    )
                    loss = loss + algorithm.value_coef * value_losses.sum() / n_tokens
                    sums["value_loss"] += float(value_losses.detach().sum()) / n_tokens
                session.backward(loss)
                with torch.no_grad():
                    moved = logprobs - old
                    ratio = moved.exp()
                    sums["policy_loss"] += float(losses.sum()) / divisor
                    sums["approx_kl"] += float(moved.square().sum()) / 2 / n_tokens
                    if algorithm.clip_range is not None:
                        outside = (ratio - 1).abs() > algorithm.clip_range
                        sums["clip_fraction"] += float(outside.sum()) / n_tokens
                    ratios = [min(ratios[0], float(ratio.min())), max(ratios[1], float(ratio.max()))]
                    if updates == 0:
                        first_error += float((ratio - 1).abs().sum()) / n_tokens
            for loss in ptx_losses(updates) if ptx_losses is not None else ():
                session.backward(options.ptx_coef * loss)
                sums["ptx_loss"] += loss.item()
            if updates == 0:
                (first_error,) = processes.sums(first_error)
                _check_first_ratio(first_error, compute)
            for name, norm in session.optimizer_step().items():
                norms[name] += norm
            updates += 1
    totals: defaultdict[str, float] = defaultdict(float)
    for part_of_sums in processes.gathered(lambda: [dict(sums)]):
        for name, value in part_of_sums.items():
            totals[name] += value
    means = {name: value / updates for name, value in (totals | norms).items()}
    low, high = processes.largest(-ratios[0], ratios[1])
    return means | {"ratio_min": -low, "ratio_max": high, "first_ratio_error": first_error}


def _check_first_ratio(error: float, compute: Compute) -> None:
    """`error` is the mean of |ratio - 1| over the tokens of the first minibatch. bfloat16 rounds differently in
    micro-batches of other shapes."""
    if error > (FIRST_RATIO_TOLERANCE if compute.dtype == torch.float32 else BFLOAT16_RATIO_TOLERANCE):
        raise RunError(
            f"before any update the ratio pi/pi_old is off 1 by {error:.2g} on average: rollout and update do not "
            "compute the same log-probs; use --precision float32"
        )


def _guard(session: Session, metrics: dict[str, float], options: OnlineOptions) -> None:
    """Stops a run that has gone wrong, before its checkpoint is overwritten."""
    first = session.state["first_distinct_2"]
    if first is None:
        session.state["first_distinct_2"] = first = metrics["distinct_2"]
    n_prompts = options.batch_size // options.samples_per_prompt
    problem = None
    if metrics["kl"] > options.max_kl:
        problem = f"the KL is {metrics['kl']:.0f} nats, over --max-kl {options.max_kl:g}; raise --kl-coef or lower --lr"
    elif n_prompts >= COLLAPSE_PROMPTS and metrics["top_response_share"] > COLLAPSE_SHARE:
        problem = "most prompts get one and the same response (a collapse); raise --kl-coef or lower --lr"
    elif metrics["distinct_2"] < COLLAPSE_DISTINCT * first:
        problem = "the responses repeat themselves (a collapse of distinct-2); raise --kl-coef or lower --lr"
    if problem:
        session.write_metrics()
        name = options.algorithm().name
        raise RunError(f"{name} stopped at iteration {session.step + 1}: {problem}; {session.kept_checkpoint()}")


# ---------------------------------------------------------------------------------------------------------- the run


def online_needs(options: OnlineOptions) -> list[Need]:
    """What every online algorithm needs."""
    check(options)
    rewards = reward_needs(options)  # models first: the order in which results have always named their inputs
    return [
        require.policy(options.model),
        *(need for need in rewards if need.source is not None),
        *require.data(options.prompts, require.reader(PROMPTS, options)),
        *([require.shards(options.ptx_data, ("train",))] if options.ptx_data else []),
        *(need for need in rewards if need.source is None),
        require.room(options.model, options.max_new_tokens),
        require.device(options.device),
    ]


def train(options: OnlineOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError when the run goes wrong (docs/guide/ppo.md)."""
    algorithm = options.algorithm()
    work = require.open_stage(algorithm.name, options, online_needs(options))
    if work.done:
        return
    for reward_model in model_inputs(options):
        require_better_than_chance(reward_model, options.insist)
    # ------------------------------------------------------------------------------------------ models and data
    policy, tokenizer = load_policy(options.model)
    reference, _ = load_policy(options.model)
    if options.truncate_at is not None and len(tokenizer.encode(options.truncate_at)) != 1:
        raise UsageError(f"--truncate-at {options.truncate_at!r} is not one token of this tokenizer")
    modules: dict[str, torch.nn.Module] = {"policy": policy}
    value_model = first_value_model(options, policy) if algorithm.value_coef is not None else None
    if value_model is not None:
        modules["value"] = value_model
    prompts = tokenised_prompts(options, tokenizer, policy.config.n_positions)
    iterations, per_batch = options.episodes // options.batch_size, options.batch_size // options.samples_per_prompt
    say(f"{algorithm.name}: {len(prompts):,} prompts, {iterations:,} iterations of {options.batch_size} responses")
    state = {"kl_coef": options.kl_coef, "first_distinct_2": None}
    sampling = SamplingParameters(options.temperature).for_training(options.recommended_temperature)
    # ---------------------------------------------------------------------------------------------------- loop
    ptx_rows = max(1, options.micro_batch_tokens // policy.config.n_positions)  # as asked for, whatever the memory
    updates = algorithm.epochs * options.batch_size // (options.minibatch_size or options.batch_size)
    warn_of_few_steps(algorithm.name, iterations * updates, "give more --episodes, or a smaller --batch-size")
    load = workload(options, policy.config, max(len(prompt.ids) for prompt in prompts))
    with Session(options, modules, iterations, algorithm.name, state, load) as session:
        frozen(reference, session.compute)
        kept = replies_path(options.out, directory=True)
        rewards = load_rewards(options, tokenizer, session.compute, options.micro_batch_tokens, kept)
        ptx = (
            _ptx_losses(options, policy, tokenizer, session, ptx_rows)
            if options.ptx_data and options.ptx_coef
            else None
        )
        for step in session.steps():
            asked = [prompts[i] for i in epoch_batch(len(prompts), step, per_batch, options.seed)]
            batch = [prompt for prompt in asked for _ in range(options.samples_per_prompt)]
            score = scorer(session, rewards, batch, tokenizer, algorithm.name)
            ids = [prompt.ids for prompt in batch]
            metrics = iterate(session, policy, reference, value_model, score, ids, tokenizer, options, ptx)
            session.show(score=metrics["score"], kl=metrics["kl"])
            if options.save_every and (step + 1) % options.save_every == 0 and step + 1 < iterations:
                plain = whole(policy, "cpu")
                if processes.is_first():
                    with atomic_directory(options.out / "policies" / f"iteration-{step + 1:06d}") as staged:
                        save_policy(staged, plain, tokenizer, sampling=sampling)
    policy = whole(policy, "cpu")
    if not processes.is_first():
        return
    # ---------------------------------------------------------------------------------------------------- save
    staged = options.out / ".staged"
    save_policy(staged, policy.cpu(), tokenizer, sampling=sampling)
    files = publish(staged, options.out)
    files += sorted(file for file in (options.out / "policies").rglob("*") if file.is_file())
    keep = ("score", "kl", "termination_rate", "response_length")
    last = session.state["last"]
    work.finish({name: last[name] for name in keep}, files, session.compute_record())
    forget_replies(options.out, directory=True)
    session.discard_checkpoints()
    distance = f"{last['kl']:.3g} nats a response (KL) from where it began"
    say(f"{algorithm.name}: the policy scores {last['score']:.3g}, and is {distance}")
    say(f"next: {evaluation_of(algorithm.name, options.model, options.out)}")


def check(options: OnlineOptions) -> None:
    """Raises UsageError for options that do not go together."""
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
    if options.ptx_coef and not options.ptx_data:
        raise UsageError("--ptx-coef needs --ptx-data")


def first_value_model(options: OnlineOptions, policy: GPT2) -> ValueModel:
    """A head on the policy's trunk, or a copy of the reward model (Stiennon et al. 2020); where there is none, the SFT
    model with a new head."""
    if options.algorithm().value_model == "shared":
        return ValueHead(policy.config.n_embd)
    if options.reward_model:
        return load_reward(options.reward_model)[0]
    trunk, _ = load_trunk(options.model)
    torch.manual_seed(derived_seed(options.seed, "head"))
    return ScalarModel(trunk)


def scorer(
    session: Session, rewards: Rewards, prompts: Sequence[TokenisedPrompt], tokenizer: Tokenizer, name: str
) -> ScoreFunction:
    """The rewards of the responses to these prompts. The terms are logged; where one fails, the run stops with what
    it has learnt so far in a checkpoint: nothing of this step has changed the weights yet."""

    def score(episodes: Episodes) -> Tensor:
        read = episodes.scored_sequences
        texts = [tokenizer.decode(s[n:]) for s, n in zip(read, episodes.prompt_lengths, strict=True)]
        try:
            scored = rewards(Answers([p.messages for p in prompts], texts, read, episodes.response_lengths))
        except RunError as error:
            if session.step:
                session.checkpoint(session.step)
            at = f"{name} stopped at iteration {session.step + 1}"
            raise RunError(f"{at}: {error}; {session.kept_checkpoint()}") from error
        session.log(0, **scored.means)
        return torch.tensor(scored.total, dtype=torch.float32, device=session.compute.device)

    return score


def _ptx_losses(
    options: OnlineOptions, policy: GPT2, tokenizer: Tokenizer, session: Session, rows: int
) -> Callable[[int], Iterator[Tensor]]:
    """The language-model loss (nats a token) of the next `rows` pretraining contexts, a function of step and update,
    in micro-batches that add up to it."""
    assert options.ptx_data is not None
    shards = TokenShards.open(f"{options.ptx_data}/train", tokenizer)
    context = policy.config.n_positions

    def losses(updates: int) -> Iterator[Tensor]:
        per_pass = options.batch_size // (options.minibatch_size or options.batch_size)
        at = session.step * options.algorithm().epochs * per_pass + updates
        ids = shards.batch(at, rows, context, options.seed).to(session.compute.device)
        mine = processes.share(ids)
        parts = mine.split(max(1, options.micro_batch_tokens // context)) if len(mine) else ()
        for part in in_step(parts, policy):
            yield language_model_loss(policy, part, session.compute) / (rows * context)

    return losses
