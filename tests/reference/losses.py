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


def ppo_policy_loss(logprob, old_logprob, advantage, clip_range, clip_range_high=None):
    """Scalars: minus eq. 7 of Schulman et al. 2017; with clip_range_high, eq. 10 of Yu et al. 2025."""
    ratio = math.exp(logprob) / math.exp(old_logprob)
    high = clip_range if clip_range_high is None else clip_range_high
    clipped = min(max(ratio, 1 - clip_range), 1 + high)
    return -min(ratio * advantage, clipped * advantage)


def ppo_value_loss(value, old_value, target, clip_range):
    """Scalars."""
    clipped = old_value + min(max(value - old_value, -clip_range), clip_range)
    return 0.5 * max((value - target) ** 2, (clipped - target) ** 2)


# ------------------------------------------------------------------------------------------ the other algorithms


def sequence_rewards(scores, kl, mask, kl_coef):
    """The sum of the per-token rewards of each response."""
    return [float(sum(row)) for row in token_rewards(scores, kl, mask, kl_coef)]


def leave_one_out_advantages(rewards, size):
    """(R_i - 1/(k-1) sum_{j != i} R_j), Ahmadian et al. 2024, section 2.2."""
    found = []
    for i, reward in enumerate(rewards):
        first = i // size * size
        others = [rewards[j] for j in range(first, first + size) if j != i]
        found.append(reward - sum(others) / len(others))
    return found


def standard_deviation(values):
    mean = sum(values) / len(values)
    return math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1))


def group_advantages(rewards, size, scale):
    found = []
    for i, reward in enumerate(rewards):
        group = rewards[i // size * size : i // size * size + size]
        advantage = reward - sum(group) / size
        if scale == "group":
            advantage /= standard_deviation(group) + 1e-4
        if scale == "batch":
            advantage /= standard_deviation(rewards) + 1e-4
        found.append(advantage)
    return found


def averaged_loss(losses, average, max_length):
    """losses: one list of token losses a response. Each variant as its paper writes it."""
    if average == "sequence":  # Shao et al. 2024, eq. 3: 1/G sum_i 1/|o_i| sum_t
        return sum(sum(row) / len(row) for row in losses) / len(losses)
    if average == "token":  # Yu et al. 2025, eq. 8: 1/(sum_i |o_i|) sum_i sum_t
        return sum(sum(row) for row in losses) / sum(len(row) for row in losses)
    return sum(sum(row) for row in losses) / (len(losses) * max_length)  # Liu et al. 2025


def grpo_objective(logprobs, old, reference, advantages, clip_range, beta):
    """Eq. 3 and 4 of Shao et al. 2024, to be maximised. One list of numbers a response; one advantage a response."""
    total = 0.0
    for new, before, ref, advantage in zip(logprobs, old, reference, advantages, strict=True):
        inside = 0.0
        for x, y, z in zip(new, before, ref, strict=True):
            ratio = math.exp(x) / math.exp(y)
            clipped = min(max(ratio, 1 - clip_range), 1 + clip_range)
            kl = math.exp(z) / math.exp(x) - math.log(math.exp(z) / math.exp(x)) - 1
            inside += min(ratio * advantage, clipped * advantage) - beta * kl
        total += inside / len(new)
    return total / len(logprobs)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta, label_smoothing=0.0):
    """Log-probs of whole responses, scalars. Rafailov et al. 2023, eq. 7: the cross-entropy between the label, wrong
    with probability e, and the preference that the implied rewards predict."""
    r_chosen = beta * math.log(math.exp(policy_chosen) / math.exp(reference_chosen))
    r_rejected = beta * math.log(math.exp(policy_rejected) / math.exp(reference_rejected))
    predicted = math.exp(r_chosen) / (math.exp(r_chosen) + math.exp(r_rejected))
    return -(1 - label_smoothing) * math.log(predicted) - label_smoothing * math.log(1 - predicted)


def ipo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, tau):
    """Azar et al. 2023, eq. 17: h = log(pi(w) ref(l) / (pi(l) ref(w))), squared distance to 1/(2 tau)."""
    policy = math.exp(policy_chosen) / math.exp(policy_rejected)
    h = math.log(policy * math.exp(reference_rejected) / math.exp(reference_chosen))
    return (h - 1 / (2 * tau)) ** 2


def kto_loss(logratio, good, baseline, beta, good_weight=1.0, bad_weight=1.0):
    """Ethayarajh et al. 2024, eq. 8: lambda_y - v(x, y)."""
    if good:
        return good_weight - good_weight * sigmoid(beta * (logratio - baseline))
    return bad_weight - bad_weight * sigmoid(beta * (baseline - logratio))


def kto_baseline(mismatched):
    return max(0.0, sum(mismatched) / len(mismatched))
