"""Every loss, advantage and KL formula, defined once as a pure function of tensors.

Shape legend: B batch (episodes), R response time, N positions (any flattened set).
`response_mask` is True where a token counts. Every function checks rank and dtype on entry.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def _check(name: str, tensor: Tensor, rank: int, dtype: torch.dtype | None = None) -> None:
    if tensor.ndim != rank:
        raise ValueError(f"{name} must have rank {rank}, not shape {tuple(tensor.shape)}")
    if dtype is not None and tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, not {tensor.dtype}")


def _check_like(reference: Tensor, mask: Tensor, **tensors: Tensor) -> None:
    _check("response_mask", mask, reference.ndim, torch.bool)
    _check_shape(reference, response_mask=mask, **tensors)


def _check_shape(reference: Tensor, **tensors: Tensor) -> None:
    """Raises for a wrong shape, which broadcasting would turn into a wrong number."""
    for name, tensor in tensors.items():
        if tensor.shape != reference.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(reference.shape)}")


# ------------------------------------------------------------------------------------------- masked statistics


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over the True positions. Raises ValueError if there is none."""
    _check_like(values, mask)
    if not mask.any():
        raise ValueError("the mask is empty")
    return torch.where(mask, values, 0).sum() / mask.sum()


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """(x - mean) x rsqrt(var + 1e-8) with masked mean and biased variance (lm-human-preferences).

    `shift_mean=False` keeps the mean, as for rewards; masked positions become 0.
    """
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    white = (values - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, white if shift_mean else white + mean, 0)


# ---------------------------------------------------------------------------------------------------------- KL


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, kind: Literal["k1", "k2", "k3"]) -> Tensor:
    """Per-token estimates of KL(policy || reference) from samples of the policy (Schulman 2020).

    With d = log pi - log pi_ref: k1 = d (unbiased; may be negative, never clamp it), k2 = d^2/2 (biased, low
    variance), k3 = exp(-d) - 1 + d (unbiased, never negative). Shapes equal: any.
    """
    _check_shape(logprobs, reference_logprobs=reference_logprobs)
    d = logprobs - reference_logprobs
    if kind == "k1":
        return d
    if kind == "k2":
        return d.square() / 2
    if kind == "k3":
        return torch.exp(-d) - 1 + d
    raise ValueError(f"unknown KL estimator {kind!r}")


def adapted_kl_coef(kl_coef: float, kl: float, target: float, episodes: int, horizon: int) -> float:
    """The adaptive controller of Ziegler et al. 2019: beta x (1 + clip(KL/target - 1, -0.2, 0.2) x n/horizon).

    kl, target: mean KL per episode in nats; episodes: n, the batch size.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * episodes / horizon)


# ------------------------------------------------------------------------------------------------- reward model


def pairwise_loss(margins: Tensor, ties: Tensor | None = None, target_margins: Tensor | None = None) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected - m) per pair (Bradley-Terry; the margin m as in Llama 2).

    Args:
        margins: (N,) r_chosen - r_rejected, float32.
        ties: (N,) bool; a tie is trained towards probability 1/2: -(log sigmoid(x) + log sigmoid(-x))/2.
        target_margins: (N,) m, the target difference of a graded preference.

    Returns:
        (N,) losses.
    """
    _check("margins", margins, 1, torch.float32)
    if target_margins is not None:
        _check_shape(margins, target_margins=target_margins)
    wanted = margins if target_margins is None else margins - target_margins
    losses = -F.logsigmoid(wanted)
    if ties is not None:
        _check("ties", ties, 1, torch.bool)
        _check_shape(margins, ties=ties)
        losses = torch.where(ties, -(F.logsigmoid(margins) + F.logsigmoid(-margins)) / 2, losses)
    return losses


def grouped_mean(losses: Tensor, groups: Tensor) -> Tensor:
    """The mean over groups of each group's mean: the C(K,2) pairs of a prompt count as one (InstructGPT, eq. 1).

    losses: (N,); groups: (N,) int64, equal for pairs of one ranking. Returns a scalar.
    """
    _check("losses", losses, 1)
    _check("groups", groups, 1, torch.int64)
    _check_shape(losses, groups=groups)
    _, inverse, counts = groups.unique(return_inverse=True, return_counts=True)
    result: Tensor = (losses / counts[inverse]).sum() / len(counts)
    return result


# ---------------------------------------------------------------------------------------------------------- PPO


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """r_t = -beta x KL_t, plus the score at the last real token of each response (its end token if it has one).

    Args:
        scores: (B,) reward of each whole response.
        kl: (B, R) per-token KL estimate (k1).
        mask: (B, R) True on response tokens, without gaps, at least one per row.

    Returns:
        (B, R), zero where masked.
    """
    _check("scores", scores, 1)
    _check("kl", kl, 2)
    _check_like(kl, mask)
    _check_shape(kl[:, 0], scores=scores)
    rewards = torch.where(mask, -kl_coef * kl, 0)
    last = mask.sum(1) - 1  # (B,)
    if (last < 0).any():
        raise ValueError("a response without a token has no place for its score")
    if not torch.equal(mask, torch.arange(mask.shape[1], device=mask.device) <= last.unsqueeze(1)):
        raise ValueError("response_mask has a gap or starts late: the score would miss the last token")
    rewards[torch.arange(len(scores)), last] += scores
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016); V after the last real token is 0.

    Args:
        rewards, values: (B, R). values[b, t] is V of the state *before* token t is emitted.
        mask: (B, R) True on response tokens.

    Returns:
        advantages (B, R) and returns = advantages + values (B, R), both 0 where masked, neither whitened.
    """
    _check("rewards", rewards, 2, torch.float32)
    _check_like(rewards, mask, values=values)
    advantages = torch.zeros_like(rewards)
    next_advantage = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(mask[:, t], delta + gamma * lam * next_advantage, 0)
        next_value = torch.where(mask[:, t], values[:, t], 0)
        advantages[:, t] = next_advantage
    return advantages, torch.where(mask, advantages + values, 0)


def ppo_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_range: float, clip_range_high: float | None = None
) -> Tensor:
    """max(-A x ratio, -A x clip(ratio, 1 - eps, 1 + eps_high)) per token (Schulman et al. 2017, eq. 7, as a loss).

    Args:
        logprobs, old_logprobs, advantages: (N,) over real response tokens only.
        clip_range: eps, and eps_high where that is not given.
        clip_range_high: eps_high. A larger one than eps leaves room for unlikely tokens to become likelier, which
            keeps the entropy up (clip-higher: DAPO, Yu et al. 2025, section 3.1).

    Returns:
        (N,).
    """
    for name, tensor in {"logprobs": logprobs, "old_logprobs": old_logprobs, "advantages": advantages}.items():
        _check(name, tensor, 1, torch.float32)
    _check_shape(logprobs, old_logprobs=old_logprobs, advantages=advantages)
    ratio = torch.exp(logprobs - old_logprobs)
    high = clip_range if clip_range_high is None else clip_range_high
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + high))


def outside_clip_range(ratio: Tensor, clip_range: float, clip_range_high: float | None = None) -> Tensor:
    """Whether a ratio is below 1 - eps or above 1 + eps_high (see `ppo_policy_loss`). Any shape -> bool."""
    moved = ratio - 1
    return (moved > (clip_range if clip_range_high is None else clip_range_high)) | (-moved > clip_range)


def truncated_importance_weights(logprobs: Tensor, sampler_logprobs: Tensor, cap: float) -> Tensor:
    """min(pi / pi_sampler, C) per token: the weights that correct for a sampler whose probabilities differ from those
    of the model that is trained, for instance because it computes in another precision.

    Truncated importance sampling (Ionides 2008); for this mismatch Yao et al. 2025, "Your Efficient RL Framework
    Secretly Brings You Off-Policy RL Training". Without the cap the weights are unbiased, but a few may be huge.

    Args:
        logprobs: (N,) of the sampled tokens, computed by the trainer before the update.
        sampler_logprobs: (N,) as the sampler drew them.
        cap: C, above 0.

    Returns:
        (N,), without gradient.
    """
    _check("logprobs", logprobs, 1, torch.float32)
    _check("sampler_logprobs", sampler_logprobs, 1, torch.float32)
    _check_shape(logprobs, sampler_logprobs=sampler_logprobs)
    return torch.exp(logprobs.detach() - sampler_logprobs.detach()).clamp(max=cap)


def ppo_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """0.5 x max of the squared errors of the value and of the value clipped to its old one +- eps. (N,) -> (N,)."""
    for name, tensor in {"values": values, "old_values": old_values, "returns": returns}.items():
        _check(name, tensor, 1, torch.float32)
    _check_shape(values, old_values=old_values, returns=returns)
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


# ---------------------------------------------------------------------------- policy gradient: REINFORCE, RLOO, GRPO


def sequence_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """R = score - beta x KL, with a response as one action: the sum of its `token_rewards`. (B,), (B, R) -> (B,)."""
    _check("scores", scores, 1, torch.float32)
    _check("kl", kl, 2)
    _check_like(kl, mask)
    _check_shape(kl[:, 0], scores=scores)
    return scores - kl_coef * torch.where(mask, kl, 0).sum(1)


def policy_gradient_loss(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-A log pi per token (Williams 1992, REINFORCE): its gradient is the policy gradient. (N,), (N,) -> (N,)."""
    _check("logprobs", logprobs, 1, torch.float32)
    _check("advantages", advantages, 1, torch.float32)
    _check_shape(logprobs, advantages=advantages)
    return -advantages * logprobs


def _groups(rewards: Tensor, size: int) -> Tensor:
    """(B,) -> (B/size, size): the responses to one prompt are consecutive."""
    _check("rewards", rewards, 1, torch.float32)
    if size < 2 or len(rewards) % size:
        raise ValueError(f"{len(rewards)} rewards do not form groups of {size}; a group needs at least two")
    return rewards.view(-1, size)


def leave_one_out_advantages(rewards: Tensor, size: int) -> Tensor:
    """A_i = R_i - the mean reward of the other responses to its prompt (RLOO: Kool et al. 2019, Ahmadian et al. 2024).

    The baseline does not depend on the response, so the policy gradient stays unbiased.

    Args:
        rewards: (B,) of whole responses, those to one prompt consecutive.
        size: responses per prompt.

    Returns:
        (B,).
    """
    groups = _groups(rewards, size)
    others = (groups.sum(1, keepdim=True) - groups) / (size - 1)
    return (groups - others).flatten()


Scale = Literal["group", "batch", "none"]
"""The standard deviation that advantages are divided by."""


def group_advantages(rewards: Tensor, size: int, scale: Scale) -> Tensor:
    """A_i = (R_i - mean of its group) / (standard deviation + 1e-4) (GRPO: Shao et al. 2024, section 4.1.2).

    Args:
        rewards: (B,) of whole responses, those to one prompt consecutive.
        size: responses per prompt.
        scale: the (unbiased) standard deviation of the group, as in the paper; of all rewards of the batch
            (Hu et al. 2025, REINFORCE++); or none (Dr. GRPO, Liu et al. 2025: dividing by the group's gives prompts
            whose responses hardly differ as much weight as informative ones).

    Returns:
        (B,).
    """
    groups = _groups(rewards, size)
    centred = groups - groups.mean(1, keepdim=True)
    if scale == "group":
        centred = centred / (groups.std(1, keepdim=True) + 1e-4)
    elif scale == "batch":
        centred = centred / (rewards.std() + 1e-4)
    elif scale != "none":
        raise ValueError(f"unknown scale {scale!r}")
    return centred.flatten()


def equal_groups(rewards: Tensor, size: int) -> Tensor:
    """Which groups have the same reward throughout, up to rounding: their advantages are 0, so nothing is learnt from
    them (DAPO, Yu et al. 2025, section 3.2, drops them).

    Args:
        rewards: (B,) of whole responses, those to one prompt consecutive.
        size: responses per prompt.

    Returns:
        (B/size,) bool.
    """
    groups = _groups(rewards, size)
    return torch.isclose(groups.amax(1), groups.amin(1), rtol=1e-5, atol=1e-5)


Average = Literal["token", "sequence", "constant"]
"""How token losses are averaged over several responses."""


def loss_average(lengths: Tensor, average: Average, max_length: int) -> tuple[Tensor, int]:
    """The weight of each response's tokens and the divisor in loss = sum_i w_i sum_t loss_it / divisor.

    token: the mean over all tokens (PPO; DAPO, Yu et al. 2025). sequence: the mean over responses of the mean over
    their tokens (GRPO), in which a token of a long response counts less, so that long wrong answers cost little.
    constant: the sum over tokens, divided by responses x max_length (Dr. GRPO, Liu et al. 2025): the unbiased policy
    gradient up to a constant factor.

    Args:
        lengths: (B,) int64, tokens of each response, at least 1.
        max_length: the maximum tokens of a response.

    Returns:
        weights (B,) float32, divisor.
    """
    _check("lengths", lengths, 1, torch.int64)
    ones = torch.ones(len(lengths), device=lengths.device)
    if average == "token":
        return ones, int(lengths.sum())
    if average == "sequence":
        return 1 / lengths, len(lengths)
    if average == "constant":
        return ones, len(lengths) * max_length
    raise ValueError(f"unknown average {average!r}")


# ---------------------------------------------------------------------------------------------------------- best of n


def best_of_groups(rewards: Tensor, size: int) -> Tensor:
    """The index of the best response to each prompt; of equals, the first: (B,) -> (B/size,) int64."""
    groups = _groups(rewards, size)
    return groups.argmax(1) + torch.arange(len(groups), device=rewards.device) * size


def best_of_n_kl(n: int) -> float:
    """KL(best of n || the model) in nats: log n - (n - 1)/n (Stiennon et al. 2020, appendix G.3).

    Exact if no two responses have the same reward, else an upper bound (Beirami et al. 2024).
    """
    if n < 1:
        raise ValueError(f"the best of {n} responses")
    return math.log(n) - (n - 1) / n


# ------------------------------------------------------------------------------------ offline: DPO, IPO, KTO


def _check_logratios(**tensors: Tensor) -> None:
    first = next(iter(tensors.values()))
    for name, tensor in tensors.items():
        _check(name, tensor, 1, torch.float32)
    _check_shape(first, **tensors)


def dpo_loss(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h) with h = chosen - rejected, per pair.

    Direct preference optimisation (Rafailov et al. 2023, eq. 7). e > 0 is the conservative variant (Mitchell 2023,
    cDPO): labels are wrong with probability e, and h has a finite optimum, logit(1 - e)/beta.

    Args:
        chosen, rejected: (N,) log pi - log pi_ref of the whole responses (nats).
        beta: the KL coefficient of the implied reward beta (log pi - log pi_ref).
        label_smoothing: e.

    Returns:
        (N,).
    """
    _check_logratios(chosen=chosen, rejected=rejected)
    logits = beta * (chosen - rejected)
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def ipo_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """(h - 1/(2 beta))^2 with h = chosen - rejected (Azar et al. 2023, eq. 17, tau = beta): if all annotators agree,
    DPO drives h to infinity for any beta; IPO does not. Arguments as for `dpo_loss`. (N,), (N,) -> (N,)."""
    _check_logratios(chosen=chosen, rejected=rejected)
    return (chosen - rejected - 1 / (2 * beta)).square()


def kto_baseline(mismatched: Tensor) -> Tensor:
    """z_0 = max(0, mean of log pi - log pi_ref) over responses paired with other prompts, without gradient: the
    estimate of KL(pi || pi_ref) that responses are compared with (Ethayarajh et al. 2024, section 4.1). (N,) -> ()."""
    _check("mismatched", mismatched, 1, torch.float32)
    return mismatched.detach().mean().clamp(min=0)


def kto_loss(
    logratios: Tensor, good: Tensor, baseline: Tensor, beta: float, good_weight: float = 1.0, bad_weight: float = 1.0
) -> Tensor:
    """w (1 - sigmoid(beta (r - z_0))) for a good response, w (1 - sigmoid(beta (z_0 - r))) for a bad one.

    Kahneman-Tversky optimisation (Ethayarajh et al. 2024, eq. 8).

    Args:
        logratios: (N,) r = log pi - log pi_ref of the whole responses (nats).
        good: (N,) bool, a thumb up.
        baseline: () z_0 of `kto_baseline`.
        beta: as for `dpo_loss`.
        good_weight, bad_weight: lambda_D and lambda_U, to balance unequal numbers.

    Returns:
        (N,).
    """
    _check("logratios", logratios, 1, torch.float32)
    _check("good", good, 1, torch.bool)
    _check("baseline", baseline, 0)
    _check_shape(logratios, good=good)
    gain = beta * (logratios - baseline)
    return torch.where(good, good_weight * torch.sigmoid(-gain), bad_weight * torch.sigmoid(gain))
