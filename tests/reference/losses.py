"""Every formula of `wukong.objectives` as a plain loop over float64 numbers, written from the papers.

No line is shared with the package, nothing is vectorised, and masks are `if`s: slow, and hard to get wrong.
"""

import math

import numpy as np


def log_softmax(logits):
    """(V,) -> (V,)."""
    largest = max(logits)
    log_total = math.log(sum(math.exp(x - largest) for x in logits))
    return np.array([x - largest - log_total for x in logits])


def token_logprobs(hidden, weight, targets, temperature=1.0):
    """(N, C), (V, C), (N,) -> log-probs (N,), entropies (N,)."""
    logprobs, entropies = [], []
    for row, target in zip(hidden, targets, strict=True):
        logits = [sum(float(h) * float(w) for h, w in zip(row, column, strict=True)) for column in weight]
        all_logprobs = log_softmax([x / temperature for x in logits])
        logprobs.append(all_logprobs[target])
        entropies.append(-sum(math.exp(x) * x for x in all_logprobs))
    return np.array(logprobs), np.array(entropies)


def masked_mean(values, mask):
    total, count = 0.0, 0
    for index in np.ndindex(values.shape):
        if mask[index]:
            total, count = total + float(values[index]), count + 1
    return total / count


def whiten(values, mask, shift_mean=True):
    mean = masked_mean(values, mask)
    total, count = 0.0, 0
    for index in np.ndindex(values.shape):
        if mask[index]:
            total, count = total + (float(values[index]) - mean) ** 2, count + 1
    deviation = math.sqrt(total / count + 1e-8)  # biased: divided by n
    white = np.zeros(values.shape)
    for index in np.ndindex(values.shape):
        if mask[index]:
            white[index] = (float(values[index]) - mean) / deviation + (0 if shift_mean else mean)
    return white


def kl_estimate(logprob, reference_logprob, kind):
    """Scalars. r = pi_ref/pi, as in Schulman's note."""
    r = math.exp(reference_logprob - logprob)
    return {"k1": -math.log(r), "k2": math.log(r) ** 2 / 2, "k3": (r - 1) - math.log(r)}[kind]


def pairwise_loss(margin, tie=False, target_margin=0.0):
    """Scalars. The cross-entropy of "the first is better" (for a tie: of half a win and half a loss)."""
    if tie:
        win = 1 / (1 + math.exp(-margin))
        return -0.5 * math.log(win) - 0.5 * math.log(1 - win)
    return -math.log(1 / (1 + math.exp(-(margin - target_margin))))


def grouped_mean(losses, groups):
    means = []
    for group in sorted(set(groups)):
        members = [loss for loss, its_group in zip(losses, groups, strict=True) if its_group == group]
        means.append(sum(members) / len(members))
    return sum(means) / len(means)


def token_rewards(scores, kl, mask, kl_coef):
    rewards = np.zeros(kl.shape)
    for b in range(len(scores)):
        last = None
        for t in range(kl.shape[1]):
            if mask[b, t]:
                rewards[b, t] = -kl_coef * kl[b, t]
                last = t
        rewards[b, last] += scores[b]
    return rewards


def gae(rewards, values, mask, gamma, lam):
    """A_t = sum_l (gamma lam)^l delta_{t+l}, the definition, not the recursion; every episode by itself."""
    advantages, returns = np.zeros(rewards.shape), np.zeros(rewards.shape)
    for b in range(len(rewards)):
        length = int(sum(mask[b]))
        deltas = []
        for t in range(length):
            next_value = values[b, t + 1] if t + 1 < length else 0.0
            deltas.append(rewards[b, t] + gamma * next_value - values[b, t])
        for t in range(length):
            advantages[b, t] = sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, length))
            returns[b, t] = advantages[b, t] + values[b, t]
    return advantages, returns


def ppo_policy_loss(logprob, old_logprob, advantage, clip_range):
    """Scalars: minus eq. 7 of Schulman et al. 2017."""
    ratio = math.exp(logprob) / math.exp(old_logprob)
    clipped = min(max(ratio, 1 - clip_range), 1 + clip_range)
    return -min(ratio * advantage, clipped * advantage)


def ppo_value_loss(value, old_value, target, clip_range):
    """Scalars."""
    clipped = old_value + min(max(value - old_value, -clip_range), clip_range)
    return 0.5 * max((value - target) ** 2, (clipped - target) ** 2)
