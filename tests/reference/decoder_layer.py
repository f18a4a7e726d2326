"""A layer of a Llama for one new token as plain loops over float64 numbers, written from the papers: RMSNorm (Zhang &
Sennrich 2019), rotary positions (Su et al. 2021), grouped queries (Ainslie et al. 2023), SwiGLU (Shazeer 2020).

No line is shared with the package or with PyTorch: slow, and hard to get wrong.

Shape legend: C channels, H query heads, G key-value heads, D head width, I columns inside the MLP, S cached tokens.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass
class LayerWeights:
    """Weights as in Hugging Face's files, float64; biases and the norms of queries and keys may be absent."""

    heads: int
    kv_heads: int
    epsilon: float
    input_norm: np.ndarray  # (C,)
    q: np.ndarray  # (H x D, C)
    k: np.ndarray  # (G x D, C)
    v: np.ndarray  # (G x D, C)
    o: np.ndarray  # (C, H x D)
    mlp_norm: np.ndarray  # (C,)
    gate: np.ndarray  # (I, C)
    up: np.ndarray  # (I, C)
    down: np.ndarray  # (C, I)
    q_bias: np.ndarray | None = None
    k_bias: np.ndarray | None = None
    v_bias: np.ndarray | None = None
    q_norm: np.ndarray | None = None  # (D,)
    k_norm: np.ndarray | None = None  # (D,)


def rms_norm(x, weight, epsilon):
    mean_square = sum(value * value for value in x) / len(x)
    return np.array([value / math.sqrt(mean_square + epsilon) * w for value, w in zip(x, weight, strict=True)])


def turned(head, position, frequencies):
    """Number i and number i + D / 2 are a point of the plane, turned by position x frequencies[i] radians."""
    out, half = np.array(head), len(head) // 2
    for i in range(half):
        cosine, sine = math.cos(position * frequencies[i]), math.sin(position * frequencies[i])
        out[i] = head[i] * cosine - head[i + half] * sine
        out[i + half] = head[i] * sine + head[i + half] * cosine
    return out


def softmax(scores):
    exponentials = [math.exp(score - max(scores)) for score in scores]
    return [e / sum(exponentials) for e in exponentials]


def projected(x, weight, bias):
    """(K,), (N, K) -> (N,)."""
    product = np.array([float(np.dot(row, x)) for row in weight])
    return product if bias is None else product + bias


def heads_of(w, x, position, frequencies):
    """The new token's queries (H, D), keys (G, D) and values (G, D)."""
    q = projected(x, w.q, w.q_bias).reshape(w.heads, -1)
    k = projected(x, w.k, w.k_bias).reshape(w.kv_heads, -1)
    v = projected(x, w.v, w.v_bias).reshape(w.kv_heads, -1)
    if w.q_norm is not None:
        q = np.array([rms_norm(head, w.q_norm, w.epsilon) for head in q])
    if w.k_norm is not None:
        k = np.array([rms_norm(head, w.k_norm, w.epsilon) for head in k])
    q = np.array([turned(head, position, frequencies) for head in q])
    k = np.array([turned(head, position, frequencies) for head in k])
    return q, k, v


def layer(w, x, keys, values, frequencies):
    """x (C,), keys and values (S, G, D) of the tokens before -> the output (C,), and keys and values (S + 1, G, D)."""
    q, k, v = heads_of(w, rms_norm(x, w.input_norm, w.epsilon), len(keys), frequencies)
    keys, values = np.concatenate([keys, k[None]]), np.concatenate([values, v[None]])
    attended = []
    for h, query in enumerate(q):
        g = h * w.kv_heads // w.heads  # neighbouring queries share a key-value head
        weights = softmax([float(np.dot(query, key)) / math.sqrt(len(query)) for key in keys[:, g]])
        attended.append(sum(weight * value for weight, value in zip(weights, values[:, g], strict=True)))
    x = x + projected(np.concatenate(attended), w.o, None)
    narrow = rms_norm(x, w.mlp_norm, w.epsilon)
    gates, ups = projected(narrow, w.gate, None), projected(narrow, w.up, None)
    wide = np.array([gate / (1 + math.exp(-gate)) * up for gate, up in zip(gates, ups, strict=True)])
    return x + projected(wide, w.down, None), keys, values
