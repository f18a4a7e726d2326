"""Three right and three wrong answers to each exercise of the course."""

import importlib.util
import math
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

PREAMBLE = "import math\nimport numpy as np\nimport torch\nfrom itertools import combinations\n"
"""What the solutions of the lessons find imported."""


def _load() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "course" / "checks.py"
    spec = importlib.util.spec_from_file_location("course_checks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHECKS = _load()
Answer = Callable[..., Any]


def _returns(rewards, gamma):
    return [sum(gamma**i * r for i, r in enumerate(rewards[t:])) for t in range(len(rewards))]


def _gae(rewards, values, lam):
    after = [*values[1:], 0.0]
    deltas = [r + v2 - v for r, v, v2 in zip(rewards, values, after, strict=True)]
    return [sum(lam**i * d for i, d in enumerate(deltas[t:])) for t in range(len(deltas))]


def _last(rewards, score):
    rewards = list(rewards)
    rewards[-1] += score
    return rewards


def _stop(gold, patience):
    best = 0
    for i, value in enumerate(gold):
        if value > gold[best]:
            best = i
        elif i - best >= patience:
            break
    return best


def _stop_counting(gold, patience):
    best, bad = 0, 0
    for i in range(1, len(gold)):
        best, bad = (i, 0) if gold[i] > gold[best] else (best, bad + 1)
        if bad == patience:
            return best
    return best


def _record(prompt, chosen, rejected):
    return {"prompt": [{"role": "user", "content": prompt}], "chosen": chosen, "rejected": rejected}


def _sigmoid_loss(w, b):
    return -math.log(1 / (1 + math.exp(b - w)))


RIGHT: dict[str, list[Answer]] = {
    "0.1": [lambda V, n: V**n, lambda V, n: math.prod([V] * n), lambda V, n: round(math.exp(n * math.log(V)))],
    "0.2": [
        lambda s, n: [0] * (n - 1) + [s],
        lambda s, n: [s if t == n - 1 else 0.0 for t in range(n)],
        lambda s, n: torch.cat([torch.zeros(n - 1), torch.tensor([s])]),
    ],
    "0.3": [
        _returns,
        lambda r, g: np.array([sum(g ** (k - t) * r[k] for k in range(t, len(r))) for t in range(len(r))]),
        lambda r, g: torch.tensor(_returns(r, g)),
    ],
    "1.1": [
        lambda ids: (ids[:-1], ids[1:]),
        lambda ids: (ids[: len(ids) - 1], [*ids[1:]]),
        lambda ids: (torch.tensor(ids)[:-1], torch.tensor(ids)[1:]),
    ],
    "1.2": [
        lambda p: -sum(map(math.log, p)) / len(p),
        lambda p: -np.log(p).mean(),
        lambda p: -torch.tensor(p).log().mean(),
    ],
    "1.3": [math.exp, lambda x: math.e**x, lambda x: torch.tensor(x).exp()],
    "2.1": [
        lambda p, n: [t >= p for t in range(1, n)],
        lambda p, n: [False] * (p - 1) + [True] * (n - p),
        lambda p, n: torch.arange(1, n) >= p,
    ],
    "2.2": [
        lambda x, m: sum(a * b for a, b in zip(x, m, strict=True)) / sum(m),
        lambda x, m: np.array(x)[np.array(m)].mean(),
        lambda x, m: torch.tensor(x, dtype=torch.float)[torch.tensor(m)].mean(),
    ],
    "3.1": [
        lambda s: list(combinations(s, 2)),
        lambda s: {(s[i], s[j]) for i in range(len(s)) for j in range(i + 1, len(s))},
        lambda s: [[a, b] for a in s for b in s if s.index(a) < s.index(b)],
    ],
    "3.2": [lambda e: (1 - e) ** 2 + e**2, lambda e: 1 - 2 * e * (1 - e), lambda e: 1 - 2 * e + 2 * e * e],
    "3.3": [
        lambda e: (1 - e) ** 3 + 3 * e * (1 - e) ** 2,
        lambda e: (1 - e) ** 2 * (1 + 2 * e),
        lambda e: 1 - 3 * e**2 + 2 * e**3,
    ],
    "4.1": [
        lambda n: [2 * t / (n * (n + 1)) for t in range(1, n + 1)],
        lambda n: np.arange(1, n + 1) / np.arange(1, n + 1).sum(),
        lambda n: torch.arange(1.0, n + 1) / torch.arange(1.0, n + 1).sum(),
    ],
    "4.2": [
        lambda w, b: math.log1p(math.exp(b - w)) if b - w < 30 else b - w,
        lambda w, b: -torch.nn.functional.logsigmoid(torch.tensor(w - b)),
        lambda w, b: np.logaddexp(0, b - w),
    ],
    "4.3": [
        lambda m: sum((x > 0) + (x == 0) / 2 for x in m) / len(m),
        lambda m: (np.sign(m).mean() + 1) / 2,
        lambda m: ((torch.tensor(m) > 0).float() + (torch.tensor(m) == 0).float() / 2).mean(),
    ],
    "5.1": [
        lambda p, a: [(k == a) - x for k, x in enumerate(p)],
        lambda p, a: np.eye(len(p))[a] - np.array(p),
        lambda p, a: torch.nn.functional.one_hot(torch.tensor(a), len(p)) - torch.tensor(p),
    ],
    "5.2": [
        lambda q, r, b: np.array(q) * np.exp(np.array(r) / b) / (np.array(q) * np.exp(np.array(r) / b)).sum(),
        lambda q, r, b: (torch.tensor(q).log() + torch.tensor(r) / b).softmax(0),
        lambda q, r, b: [x * math.exp(y / b) / sum(u * math.exp(v / b) for u, v in zip(q, r, strict=True))
                         for x, y in zip(q, r, strict=True)],
    ],
    "5.3": [
        lambda p, q: sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a),
        lambda p, q: torch.special.xlogy(torch.tensor(p), torch.tensor(p) / torch.tensor(q)).sum(),
        lambda p, q: float(np.sum([a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True) if a > 0])),
    ],
    "6.1": [_gae, lambda r, v, lam: torch.tensor(_gae(r, v, lam)), lambda r, v, lam: np.array(_gae(r, v, lam))],
    "6.2": [
        lambda x, a, e: max(-a * x, -a * min(max(x, 1 - e), 1 + e)),
        lambda x, a, e: -min(a * x, a * np.clip(x, 1 - e, 1 + e)),
        lambda x, a, e: -a * min(x, 1 + e) if a > 0 else -a * max(x, 1 - e),
    ],
    "6.3": [
        lambda p, q, s, b: _last([-b * (x - y) for x, y in zip(p, q, strict=True)], s),
        lambda p, q, s, b: -b * (np.array(p) - np.array(q)) + s * (np.arange(len(p)) == len(p) - 1),
        lambda p, q, s, b: [b * (y - x) for x, y in zip(p[:-1], q[:-1], strict=True)] + [s - b * (p[-1] - q[-1])],
    ],
    "7.1": [
        lambda x, a, e: x > 1 + e if a > 0 else x < 1 - e,
        lambda x, a, e: (x - 1) * np.sign(a) > e,
        lambda x, a, e: -a * np.clip(x, 1 - e, 1 + e) > -a * x,
    ],
    "7.2": [
        lambda kl: max(range(len(kl)), key=lambda t: abs(kl[t])),
        lambda kl: int(np.abs(kl).argmax()),
        lambda kl: torch.tensor(kl).abs().argmax(),
    ],
    "8.1": [_stop, _stop_counting, lambda g, n: float(_stop(g, n))],
    "8.2": [
        lambda s: [min(column) for column in zip(*s, strict=True)],
        lambda s: np.min(s, axis=0),
        lambda s: torch.tensor(s).amin(0),
    ],
    "8.3": [
        lambda s, n, most, c: s - c * max(0, n - most),
        lambda s, n, most, c: s - c * (n - most) * (n > most),
        lambda s, n, most, c: s if n <= most else s - c * (n - most),
    ],
    "9.1": [
        lambda w, t, n: (w + t / 2) / (w + t + n),
        lambda w, t, n: np.mean([1] * w + [0.5] * t + [0] * n),
        lambda w, t, n: 0.5 + (w - n) / 2 / (w + t + n),
    ],
    "9.2": [
        lambda x, y: ((x == "A") + (y == "A")) / 2,
        lambda x, y: 0.5 if x != y else float(x == "A"),
        lambda x, y: (x + y).count("A") / 2,
    ],
    "9.3": [
        lambda d: math.ceil((2.8 * 0.5 / d) ** 2 - 1e-9),
        lambda d: math.ceil(1.96 / d**2),
        lambda d: int(np.ceil(round(7.84 * 0.25 / d**2, 6))),
    ],
    "10.1": [
        _record,
        lambda p, c, r: {**_record(p, c, r), "annotator": "me"},
        lambda p, c, r: {"chosen": c, "rejected": r, "prompt": [{"content": p, "role": "user"}], "tie": False},
    ],
    "10.2": [
        lambda prompts, texts: [-len(text.split()) for text in texts],
        lambda prompts, texts: [-float(len(text)) for text in texts],
        lambda prompts, texts: np.array([1 / (1 + len(text)) for text in texts]),
    ],
}  # fmt: skip

WRONG: dict[str, list[Answer]] = {
    "0.1": [lambda V, n: V * n, lambda V, n: n**V, math.comb],
    "0.2": [lambda s, n: [s] * n, lambda s, n: [s] + [0] * (n - 1), lambda s, n: [0] * n + [s]],
    "0.3": [
        lambda r, g: [sum(r)] * len(r),
        lambda r, g: [sum(g**i * x for i, x in enumerate(r[t + 1 :])) for t in range(len(r))],
        lambda r, g: r,
    ],
    "1.1": [lambda i: (i, i), lambda i: (i[1:], i[:-1]), lambda i: (i[:-1], i)],
    "1.2": [
        lambda p: -sum(map(math.log, p)),
        lambda p: sum(map(math.log, p)) / len(p),
        lambda p: -math.log(sum(p) / len(p)),
    ],
    "1.3": [lambda x: 2**x, lambda x: math.exp(-x), lambda x: x],
    "2.1": [
        lambda p, n: [t > p for t in range(1, n)],
        lambda p, n: [t >= p for t in range(n)],
        lambda p, n: [t < p for t in range(1, n)],
    ],
    "2.2": [
        lambda x, m: sum(x) / len(x),
        lambda x, m: sum(a * b for a, b in zip(x, m, strict=True)) / len(x),
        lambda x, m: sum(a * b for a, b in zip(x, m, strict=True)),
    ],
    "3.1": [
        lambda s: [(b, a) for a, b in combinations(s, 2)],
        lambda s: list(pairwise(s)),
        lambda s: [*combinations(s, 2), *combinations(s, 2)],
    ],
    "3.2": [lambda e: 1 - e, lambda e: (1 - e) ** 2, lambda e: 1 - 2 * e],
    "3.3": [lambda e: 1 - e, lambda e: (1 - e) ** 3, lambda e: (1 - e) ** 3 + e * (1 - e) ** 2],
    "4.1": [
        lambda n: [1 / n] * n,
        lambda n: [t / n for t in range(1, n + 1)],
        lambda n: [2 * t / (n * (n - 1) or 1) for t in range(n)],
    ],
    "4.2": [_sigmoid_loss, lambda w, b: max(0.0, b - w), lambda w, b: math.log1p(math.exp(min(30, w - b)))],
    "4.3": [
        lambda m: sum(x > 0 for x in m) / len(m),
        lambda m: sum(x >= 0 for x in m) / len(m),
        lambda m: sum(x < 0 for x in m) / len(m),
    ],
    "5.1": [
        lambda p, a: [x - (k == a) for k, x in enumerate(p)],
        lambda p, a: [float(k == a) for k in range(len(p))],
        lambda p, a: [(k == a) / p[a] - x for k, x in enumerate(p)],
    ],
    "5.2": [
        lambda q, r, b: torch.tensor(r).div(b).softmax(0),
        lambda q, r, b: (torch.tensor(q).log() + torch.tensor(r) * b).softmax(0) if b != 1 else torch.tensor(q),
        lambda q, r, b: torch.tensor(q) * (torch.tensor(r) / b).exp(),
    ],
    "5.3": [
        lambda p, q: sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)),
        lambda p, q: sum(b * math.log(b / a) for a, b in zip(p, q, strict=True) if a),
        lambda p, q: sum(abs(a - b) for a, b in zip(p, q, strict=True)),
    ],
    "6.1": [
        lambda r, v, lam: [x - y for x, y in zip(r, v, strict=True)],
        lambda r, v, lam: [x + y - z for x, y, z in zip(r, [*v[1:], v[-1]], v, strict=True)],
        lambda r, v, lam: _gae(r, v, 1.0),
    ],
    "6.2": [
        lambda x, a, e: -a * x,
        lambda x, a, e: -a * min(max(x, 1 - e), 1 + e),
        lambda x, a, e: min(-a * x, -a * min(max(x, 1 - e), 1 + e)),
    ],
    "6.3": [
        lambda p, q, s, b: [-b * (x - y) for x, y in zip(p, q, strict=True)],
        lambda p, q, s, b: _last([b * (x - y) for x, y in zip(p, q, strict=True)], s),
        lambda p, q, s, b: [s - b * (x - y) for x, y in zip(p, q, strict=True)],
    ],
    "7.1": [lambda x, a, e: abs(x - 1) > e, lambda x, a, e: x > 1 + e, lambda x, a, e: (1 - x) * a > e],
    "7.2": [
        lambda kl: max(range(len(kl)), key=lambda t: kl[t]),
        lambda kl: min(range(len(kl)), key=lambda t: abs(kl[t])),
        lambda kl: max(map(abs, kl)),
    ],
    "8.1": [
        lambda g, n: max(range(len(g)), key=lambda i: g[i]),
        lambda g, n: len(g) - 1,
        lambda g, n: min(len(g) - 1, _stop(g, n) + n),
    ],
    "8.2": [lambda s: np.mean(s, axis=0), lambda s: np.max(s, axis=0), lambda s: np.min(s, axis=1)],
    "8.3": [lambda s, n, m, c: s - c * n, lambda s, n, m, c: s - c * (n - m), lambda s, n, m, c: s + c * max(0, n - m)],
    "9.1": [lambda w, t, n: w / (w + t + n), lambda w, t, n: w / (w + n or 1), lambda w, t, n: (w + t) / (w + t + n)],
    "9.2": [lambda x, y: float(x == "A"), lambda x, y: float(x == y == "A"), lambda x, y: float("A" in (x, y))],
    "9.3": [lambda d: 1.96 / d**2 - 0.5, lambda d: math.ceil(0.98 / d), lambda d: math.ceil((1.96 * 0.5 / d) ** 2)],
    "10.1": [
        lambda p, c, r: _record(p, r, c),
        lambda p, c, r: {"prompt": [{"role": "assistant", "content": p}], "chosen": c, "rejected": r},
        lambda p, c, r: {"prompt": p, "better": c, "worse": r},
    ],
    "10.2": [
        lambda prompts, texts: [len(text) for text in texts],
        lambda prompts, texts: -len(texts),
        lambda prompts, texts: [0.0] * len(texts),
    ],
}
