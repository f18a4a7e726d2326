"""Sampling as the papers tell it, one number at a time: an oracle for `wukong.rollout`."""

import math

import numpy as np


def softmax(logits):
    largest = max(logits)
    weights = [math.exp(x - largest) for x in logits]
    return [w / sum(weights) for w in weights]


def kept_tokens(logits, top_k, top_p):
    """The set of tokens that top-k, and then top-p of what is left, allow. Ties at the k-th place all stay."""
    likeliest_first = sorted(range(len(logits)), key=lambda token: -logits[token])
    kept = likeliest_first
    if top_k and top_k < len(logits):
        kept = [token for token in kept if logits[token] >= logits[likeliest_first[top_k - 1]]]
    if top_p < 1:
        probabilities = softmax([logits[token] for token in kept])
        total, nucleus = 0.0, []
        for token, probability in zip(kept, probabilities, strict=True):
            if nucleus and total >= top_p:
                break
            nucleus.append(token)
            total += probability
        kept = nucleus
    return set(kept)


def inverse_cdf(probabilities, u):
    """The first token at which the running sum passes u x total, by a plain float64 sum."""
    total, running = float(np.sum(probabilities, dtype=np.float64)), 0.0
    for token, probability in enumerate(probabilities):
        running += float(probability)
        if running > u * total:
            return token
    raise AssertionError("u must be below 1")


def continuation(next_logits, prompt, noise, eos_id, temperature=1.0, top_k=0, top_p=1.0):
    """Tokens and log-probs of one response: next_logits(ids) -> (V,) from the whole text, each time anew."""
    ids, logprobs = list(prompt), []
    for u in noise:
        logits = next_logits(ids)
        probabilities = softmax([x / (temperature or 1) for x in logits])
        if temperature == 0:
            token = max(range(len(logits)), key=lambda t: logits[t])
        else:
            allowed = kept_tokens([x / temperature for x in logits], top_k, top_p)
            token = inverse_cdf([p if t in allowed else 0.0 for t, p in enumerate(probabilities)], u)
        ids.append(token)
        logprobs.append(math.log(probabilities[token]))
        if token == eos_id:
            break
    return ids[len(prompt) :], logprobs
