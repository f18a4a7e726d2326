"""`wukong ppo`: SFT model + reward model + prompts -> a policy that people prefer.

In:  the SFT model (policy and frozen reference start from it), the reward model, prompts.
Out: the policy's model directory, metrics.jsonl, samples.jsonl.

    wukong ppo --model runs/mine/sft --reward-model runs/mine/reward --prompts prompts.jsonl --out runs/mine/policy

Proximal policy optimisation (Schulman et al. 2017) as in Ziegler et al. 2019 and InstructGPT. One iteration:
  1. the policy answers a batch of prompts, sampled without truncation (top-k 0, top-p 1);
  2. policy, reference and value model read the answers; the reward model scores them;
  3. reward of a token = -beta x (log pi - log pi_ref), plus the score at the last token; GAE turns it into advantages;
  4. a few epochs of clipped updates of policy and value model.
Which numbers follow which paper, and where: docs/ppo-details.md. Departures: the value model is a network of its own,
initialised from the reward model (Stiennon et al. 2020), and gradients are clipped at norm 1.

Shape legend: B episodes, T prompt + response time, R response time, N real response tokens, C channels.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from wukong.console import console, say
from wukong.data.batches import by_length, pad
from wukong.data.prompts import PromptOptions, load_prompts
from wukong.data.shards import TokenShards
from wukong.data.split import split_by_prompt
from wukong.errors import DataError, RunError, UsageError
from wukong.model.gpt2 import GPT2
from wukong.model.heads import ScalarModel
from wukong.model.hub import load_policy, load_reward, save_policy
from wukong.objectives import (
    adapted_kl_coef,
    gae,
    kl_estimate,
    masked_mean,
    ppo_policy_loss,
    ppo_value_loss,
    token_rewards,
    whiten,
)
from wukong.provenance import begin
from wukong.rollout import generate, inference_copy
from wukong.seeds import derived_seed, permutation
from wukong.stages.common import (
    distinct_n,
    epoch_batch,
    language_model_loss,
    response_logprobs,
    response_positions,
    scores_of,
)
from wukong.tokenizer import Tokenizer
from wukong.training.compute import Compute
from wukong.training.session import Session, TrainOptions, publish


class PPOOptions(TrainOptions, PromptOptions):
    """Train a policy against a reward model with PPO."""

    model: str
    """The SFT model: policy and reference start from it. A directory or hub id."""
    reward_model: str
    """The reward model's directory; the value model starts from it too."""
    prompts: list[str]
    """Prompts in any of the formats of docs/data.md."""
    holdout: float = Field(0.0, ge=0, lt=1)
    """Leave out this part of the prompts: the part that sft and reward hold out with the same --valid-fraction and
    --seed, and that evaluate takes with the same --holdout."""
    episodes: int = Field(4096, ge=1)
    """Responses sampled in all."""
    batch_size: int = Field(64, ge=1)
    """Responses an iteration."""
    minibatch_size: int | None = Field(None, ge=1)
    """Responses an update; a whole batch when absent."""
    ppo_epochs: int = Field(4, ge=1)
    """Passes over each batch."""
    max_new_tokens: int = Field(128, ge=1)
    """Responses are cut there."""
    temperature: float = Field(1.0, gt=0)
    """Logits are divided by it in rollout, reference and update alike."""
    kl_coef: float = Field(0.05, ge=0)
    """beta, the price of a nat of KL to the reference; the first one when --kl-target is given."""
    kl_target: float | None = Field(None, gt=0)
    """Adapt beta so that the KL of a response stays near this many nats."""
    kl_horizon: int = Field(10_000, ge=1)
    """How many episodes the adaptive controller takes."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount."""
    lam: float = Field(0.95, ge=0, le=1)
    """lambda of GAE."""
    clip_range: float = Field(0.2, gt=0)
    """How far the probability ratio may move."""
    value_clip_range: float = Field(0.2, gt=0)
    """How far a value may move."""
    value_coef: float = Field(0.1, ge=0)
    """Weight of the value loss."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of an entropy bonus."""
    whiten_rewards: bool = False
    """Scale the per-token rewards to variance 1 (the mean is kept)."""
    missing_eos_score: float | None = -1.0
    """The score of a response that never ended, in place of the reward model's; None (null in a recipe) keeps it."""
    truncate_at: str | None = None
    """Score the response only up to the first such token, e.g. "." (it is trained on untruncated all the same)."""
    truncate_after: int = Field(16, ge=0)
    """Where --truncate-at begins to look, in tokens."""
    ptx_data: str | None = None
    """Token shards (`wukong tokenize`) for PPO-ptx: their language-model loss is added."""
    ptx_coef: float = Field(0.0, ge=0)
    """Weight of that loss (InstructGPT: 27.8; reported to destabilise small set-ups)."""
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


COLLAPSE_SHARE, COLLAPSE_DISTINCT = 0.5, 0.25
"""One response for more than this share of a batch, or distinct-2 below this part of the first batch's: a collapse."""
FIRST_RATIO_TOLERANCE, BFLOAT16_RATIO_TOLERANCE = 1e-3, 1e-2


@dataclass
class Episodes:
    """A batch of answered prompts. `mask` is True on response tokens (the closing end token included)."""

    sequences: list[list[int]]  # prompt + response
    prompt_lengths: list[int]
    response_lengths: list[int]
    scored_lengths: list[int]  # what the reward model reads: without end token, and cut at `truncate_at`
    ended: list[bool]
    mask: Tensor  # (B, R) bool
    sampler_logprobs: Tensor  # (B, R)


@dataclass
class Judged:
    """What the models say of a batch of episodes, before any update. All (B, R) float32 but the scores."""

    logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    entropies: Tensor
    scores: Tensor  # (B,)


# -------------------------------------------------------------------------------------------------- the four steps


def roll_out(
    policy: GPT2, prompts: Sequence[list[int]], tokenizer: Tokenizer, options: PPOOptions, seed: int, compute: Compute
) -> Episodes:
    """Step 1: one response to each prompt."""
    policy.eval()
    sampled = generate(
        inference_copy(policy, compute),
        prompts,
        eos_id=tokenizer.eos_id,
        max_new_tokens=options.max_new_tokens,
        seeds=[derived_seed(seed, i) for i in range(len(prompts))],
        temperature=options.temperature,
    )
    stop = tokenizer.encode(options.truncate_at)[0] if options.truncate_at else None
    responses, logprobs, scored, ended = [], [], [], []
    for prompt, one in zip(prompts, sampled, strict=True):
        cut = next((i for i, t in enumerate(one.ids) if t == stop and i >= options.truncate_after), None)
        real = len(one.ids) - one.finished
        scored.append(len(prompt) + (min(cut + 1, real) if cut is not None else real))
        ended.append(one.finished or cut is not None)
        responses.append(one.ids)
        logprobs.append(one.logprobs)
    lengths = torch.tensor([len(r) for r in responses])  # (B,)
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)  # (B, R)
    sampler = torch.zeros(mask.shape)
    sampler[mask] = torch.tensor([x for row in logprobs for x in row])
    return Episodes(
        sequences=[p + r for p, r in zip(prompts, responses, strict=True)],
        prompt_lengths=[len(p) for p in prompts],
        response_lengths=lengths.tolist(),
        scored_lengths=scored,
        ended=ended,
        mask=mask.to(compute.device),
        sampler_logprobs=sampler.to(compute.device),
    )


def _micro_batch(episodes: Episodes, rows: Sequence[int], compute: Compute) -> tuple[Tensor, Tensor, Tensor]:
    """ids (b, T), which positions predict a response token (b, T - 1) bool, and the rows as a tensor (b,)."""
    ids, _ = pad([episodes.sequences[i] for i in rows])
    predicts = response_positions(
        [episodes.prompt_lengths[i] for i in rows], [episodes.response_lengths[i] for i in rows], ids.shape[1]
    )
    return ids.to(compute.device), predicts.to(compute.device), torch.tensor(rows, device=compute.device)


def response_values(model: ScalarModel, ids: Tensor, predicts: Tensor, compute: Compute) -> Tensor:
    """V of the state before each response token: (N,) float32."""
    with compute.autocast():
        return model.token_scores(ids)[:, :-1][predicts]


ScoreFunction = Callable[[Episodes], Tensor]
"""Episodes -> the reward of each response, (B,) float32, before the rule for responses that never ended."""


def reward_scores(model: ScalarModel, episodes: Episodes, compute: Compute, max_tokens: int) -> Tensor:
    """The reward model's score of each response: (B,) float32."""
    read = [s[:n] for s, n in zip(episodes.sequences, episodes.scored_lengths, strict=True)]
    return torch.tensor(scores_of(model, read, compute, max_tokens), device=compute.device)


@torch.no_grad()
def judge(
    policy: GPT2, reference: GPT2, value_model: ScalarModel, score: ScoreFunction, episodes: Episodes,
    options: PPOOptions, compute: Compute,
) -> Judged:  # fmt: skip
    """Step 2: log-probs of policy and reference, values, entropies, scores."""
    policy.eval()
    value_model.eval()
    logprobs, reference_logprobs, values, entropies = (
        torch.zeros(episodes.mask.shape, device=compute.device) for _ in range(4)
    )
    for rows in by_length([len(s) for s in episodes.sequences], options.micro_batch_tokens):
        ids, predicts, index = _micro_batch(episodes, rows, compute)
        mask = episodes.mask[index]  # (b, R): its True positions stand in the same order as those of `predicts`
        found = response_logprobs(policy, ids, predicts, options.temperature, compute, with_entropy=True)
        expected, _ = response_logprobs(reference, ids, predicts, options.temperature, compute)
        for target, value in (
            (logprobs, found[0]),
            (entropies, found[1]),
            (reference_logprobs, expected),
            (values, response_values(value_model, ids, predicts, compute)),
        ):
            part = torch.zeros(mask.shape, device=compute.device)
            part[mask] = value
            target[index] = part
    return Judged(logprobs, reference_logprobs, values, entropies, score(episodes))


def final_scores(scores: Tensor, episodes: Episodes, missing_eos_score: float | None) -> Tensor:
    """A response that never ended gets a fixed score, so that ending is learnt (the "EOS trick"). (B,) -> (B,)."""
    if missing_eos_score is None:
        return scores
    ended = torch.tensor(episodes.ended, device=scores.device)
    return torch.where(ended, scores, missing_eos_score)


def update(
    session: Session, episodes: Episodes, judged: Judged, advantages: Tensor, returns: Tensor, options: PPOOptions,
    ptx_loss: Callable[[int], Tensor] | None,
) -> dict[str, float]:  # fmt: skip
    """Step 4: `ppo_epochs` passes of clipped updates, reshuffled. Returns the means over all updates."""
    policy: GPT2 = session.modules["policy"]  # type: ignore[assignment]
    value_model: ScalarModel = session.modules["value"]  # type: ignore[assignment]
    compute, B = session.compute, len(episodes.sequences)
    size = options.minibatch_size or B
    sums: defaultdict[str, float] = defaultdict(float)
    ratios = [1.0, 1.0]
    first_error, updates = 0.0, 0
    for epoch in range(options.ppo_epochs):
        order = permutation(B, options.seed, "minibatches", session.step, epoch)
        for chosen in np.split(order, range(size, B, size)):
            n_tokens = int(episodes.mask[torch.from_numpy(chosen).to(compute.device)].sum())
            for part in by_length([len(episodes.sequences[i]) for i in chosen], options.micro_batch_tokens):
                ids, predicts, index = _micro_batch(episodes, [int(chosen[i]) for i in part], compute)
                mask = episodes.mask[index]
                old, wanted = judged.logprobs[index][mask], advantages[index][mask]  # (N,) each
                logprobs, entropies = response_logprobs(
                    policy, ids, predicts, options.temperature, compute, with_entropy=options.entropy_coef > 0
                )
                losses = ppo_policy_loss(logprobs, old, wanted, options.clip_range)
                session.backward((losses.sum() - options.entropy_coef * entropies.sum()) / n_tokens)
                values = response_values(value_model, ids, predicts, compute)
                value_losses = ppo_value_loss(
                    values, judged.values[index][mask], returns[index][mask], options.value_clip_range
                )
                session.backward(options.value_coef * value_losses.sum() / n_tokens)
                with torch.no_grad():
                    moved = logprobs - old
                    ratio = moved.exp()
                    sums["policy_loss"] += float(losses.sum()) / n_tokens
                    sums["value_loss"] += float(value_losses.sum()) / n_tokens
                    sums["approx_kl"] += float(moved.square().sum()) / 2 / n_tokens
                    sums["clip_fraction"] += float(((ratio - 1).abs() > options.clip_range).sum()) / n_tokens
                    ratios = [min(ratios[0], float(ratio.min())), max(ratios[1], float(ratio.max()))]
                    if updates == 0:
                        first_error = max(first_error, float((ratio - 1).abs().mean()))
            if ptx_loss is not None:
                loss = ptx_loss(updates)
                session.backward(options.ptx_coef * loss)
                sums["ptx_loss"] += loss.item()
            if updates == 0:
                _check_first_ratio(first_error, compute)
            for name, norm in session.optimizer_step().items():
                sums[name] += norm
            updates += 1
    means = {name: value / updates for name, value in sums.items()}
    return means | {"ratio_min": ratios[0], "ratio_max": ratios[1], "first_ratio_error": first_error}


def _check_first_ratio(error: float, compute: Compute) -> None:
    """`error` is the mean of |ratio - 1|. bfloat16 rounds differently in micro-batches of other shapes."""
    if error > (FIRST_RATIO_TOLERANCE if compute.dtype == torch.float32 else BFLOAT16_RATIO_TOLERANCE):
        raise RunError(
            f"before any update the ratio pi/pi_old is off 1 by {error:.2g} on average: rollout and update do not "
            "compute the same log-probs; use --precision float32"
        )


# ---------------------------------------------------------------------------------------------------------- the run


def tokenised_prompts(options: PPOOptions, tokenizer: Tokenizer, context: int) -> list[list[int]]:
    """Prompts as token ids; one that leaves no room for a response is dropped and counted."""
    read = load_prompts(options.prompts, options)
    room = context - options.max_new_tokens
    if room < 1:
        raise UsageError(f"--max-new-tokens {options.max_new_tokens} leaves no room in the context of {context}")
    prompts = []
    for prompt in split_by_prompt(read.records, options.holdout, options.seed)[0]:
        try:
            prompts.append(tokenizer.prompt_ids(prompt.messages, max_tokens=room))
        except DataError:
            read.summary.dropped[f"longer than {room} tokens"] += 1
    console.print(read.summary.table("prompts"))
    if not prompts:
        raise UsageError(f"{options.prompts[0]}: no prompt leaves room for {options.max_new_tokens} new tokens")
    return prompts


def run(options: PPOOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError when the run goes wrong (docs/ppo.md)."""
    if options.truncate_at is not None and options.missing_eos_score is None:
        raise UsageError("--truncate-at needs a --missing-eos-score for responses without that token")
    if options.episodes % options.batch_size:
        raise UsageError(f"--episodes {options.episodes} is not a multiple of --batch-size {options.batch_size}")
    if options.batch_size % (options.minibatch_size or options.batch_size):
        raise UsageError(f"--minibatch-size {options.minibatch_size} does not divide --batch-size {options.batch_size}")
    if options.ptx_coef and not options.ptx_data:
        raise UsageError("--ptx-coef needs --ptx-data")
    extra = [options.ptx_data] if options.ptx_data else []
    work = begin("ppo", options, [options.model, options.reward_model, *options.prompts, *extra])
    if work.done:
        return
    # ------------------------------------------------------------------------------------------ models and data
    policy, tokenizer = load_policy(options.model)
    reference, _ = load_policy(options.model)
    if options.truncate_at is not None and len(tokenizer.encode(options.truncate_at)) != 1:
        raise UsageError(f"--truncate-at {options.truncate_at!r} is not one token of this tokenizer")
    reward_model, reward_tokenizer = load_reward(options.reward_model)
    value_model, _ = load_reward(options.reward_model)
    if reward_tokenizer.fingerprint != tokenizer.fingerprint:
        raise UsageError(f"{options.reward_model}: its tokenizer or chat template is not {options.model}'s")
    for frozen in (reference, reward_model):
        frozen.requires_grad_(False).eval()
    prompts = tokenised_prompts(options, tokenizer, policy.config.n_positions)
    iterations = options.episodes // options.batch_size
    say(f"ppo: {len(prompts):,} prompts, {iterations:,} iterations of {options.batch_size} responses")
    state = {"kl_coef": options.kl_coef, "first_distinct_2": None}
    # ---------------------------------------------------------------------------------------------------- loop
    with Session(options, {"policy": policy, "value": value_model}, iterations, "ppo", state) as session:
        compute = session.compute
        for frozen in (reference, reward_model):
            frozen.to(compute.device)
        ptx = _ptx_loss(options, policy, tokenizer, session) if options.ptx_data and options.ptx_coef else None

        def score(episodes: Episodes) -> Tensor:
            return reward_scores(reward_model, episodes, compute, options.micro_batch_tokens)

        for step in session.steps():
            batch = [prompts[i] for i in epoch_batch(len(prompts), step, options.batch_size, options.seed)]
            metrics = iterate(session, policy, reference, value_model, score, batch, tokenizer, options, ptx)
            session.show(score=metrics["score"], kl=metrics["kl"])
    # ---------------------------------------------------------------------------------------------------- save
    staged = options.out / ".staged"
    save_policy(staged, policy.cpu(), tokenizer)
    files = publish(staged, options.out)
    keep = ("score", "kl", "termination_rate", "response_length")
    work.finish({name: session.state["last"][name] for name in keep}, files)
    session.discard_checkpoints()


def iterate(
    session: Session, policy: GPT2, reference: GPT2, value_model: ScalarModel, score: ScoreFunction,
    prompts: Sequence[list[int]], tokenizer: Tokenizer, options: PPOOptions,
    ptx_loss: Callable[[int], Tensor] | None = None,
) -> dict[str, float]:  # fmt: skip
    """One iteration: roll out, judge, advantages, update; then the KL controller, metrics and guards."""
    compute, kl_coef = session.compute, session.state["kl_coef"]
    clock = [time.monotonic()]
    episodes = roll_out(policy, prompts, tokenizer, options, derived_seed(options.seed, "roll", session.step), compute)
    clock.append(time.monotonic())
    judged = judge(policy, reference, value_model, score, episodes, options, compute)
    scores = final_scores(judged.scores, episodes, options.missing_eos_score)
    mask = episodes.mask
    kl = torch.where(mask, kl_estimate(judged.logprobs, judged.reference_logprobs, "k1"), 0)  # (B, R)
    rewards = token_rewards(scores, kl, mask, kl_coef)
    if options.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns = gae(rewards, judged.values, mask, options.gamma, options.lam)
    raw_advantages, advantages = advantages, whiten(advantages, mask)
    clock.append(time.monotonic())
    losses = update(session, episodes, judged, advantages, returns, options, ptx_loss)
    clock.append(time.monotonic())

    mean_kl = float(kl.sum(1).mean())
    if options.kl_target is not None:
        session.state["kl_coef"] = adapted_kl_coef(
            kl_coef, mean_kl, options.kl_target, len(prompts), options.kl_horizon
        )
    k3 = torch.where(mask, kl_estimate(judged.logprobs, judged.reference_logprobs, "k3"), 0)
    tokens = int(mask.sum())
    responses = [tuple(s[n:]) for s, n in zip(episodes.sequences, episodes.prompt_lengths, strict=True)]
    residual, target = (returns - judged.values)[mask], returns[mask]
    metrics = {
        "score": float(scores.mean()),
        "score_std": float(scores.std(correction=0)),
        "reward_model_score": float(judged.scores.mean()),
        "kl": mean_kl,
        "kl_k3": float(k3.sum(1).mean()),
        "kl_coef": kl_coef,
        "entropy": float(masked_mean(judged.entropies, mask)),
        **losses,
        "value_mean": float(masked_mean(judged.values, mask)),
        "value_error": float(residual.square().mean()),
        "return_mean": float(target.mean()),
        "explained_variance": float(1 - residual.var(correction=0) / (target.var(correction=0) + 1e-8)),
        "advantage_std": float(raw_advantages[mask].std(correction=0)),
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


def _guard(session: Session, metrics: dict[str, float], options: PPOOptions) -> None:
    """Stops a run that has gone wrong, before its checkpoint is overwritten."""
    first = session.state["first_distinct_2"]
    if first is None:
        session.state["first_distinct_2"] = first = metrics["distinct_2"]
    problem = None
    if metrics["kl"] > options.max_kl:
        problem = f"the KL is {metrics['kl']:.0f} nats, over --max-kl {options.max_kl:g}; raise --kl-coef or lower --lr"
    elif options.batch_size >= 16 and metrics["top_response_share"] > COLLAPSE_SHARE:
        problem = "most prompts get one and the same response (a collapse); raise --kl-coef or lower --lr"
    elif metrics["distinct_2"] < COLLAPSE_DISTINCT * first:
        problem = "the responses repeat themselves (a collapse of distinct-2); raise --kl-coef or lower --lr"
    if problem:
        session.write_metrics()
        raise RunError(f"ppo stopped at iteration {session.step + 1}: {problem}; {session.kept_checkpoint()}")


def _ptx_loss(options: PPOOptions, policy: GPT2, tokenizer: Tokenizer, session: Session) -> Callable[[int], Tensor]:
    """The language-model loss (nats a token) of the next pretraining contexts, a function of step and update."""
    assert options.ptx_data is not None
    shards = TokenShards.open(f"{options.ptx_data}/train", tokenizer)
    context = policy.config.n_positions
    rows = max(1, options.micro_batch_tokens // context)

    def loss(updates: int) -> Tensor:
        per_step = options.ppo_epochs * (options.batch_size // (options.minibatch_size or options.batch_size))
        ids = shards.batch(session.step * per_step + updates, rows, context, options.seed).to(session.compute.device)
        return language_model_loss(policy, ids, session.compute) / (rows * context)

    return loss
