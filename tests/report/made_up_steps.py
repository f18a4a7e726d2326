"""Steps with made-up curves, for tests of what is read from them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wukong.report.contents import RunContents, StepResult

N = 24
"""Iterations."""


def noisy(first: float, last: float, noise: float = 0.02, n: int = N) -> list[float]:
    """A curve that goes from one level to another within its first half and stays there, with noise."""
    rng = np.random.default_rng(7)
    level = first + (last - first) * np.minimum(1, np.linspace(0, 2, n))
    return (level + noise * rng.standard_normal(n)).tolist()


HEALTHY = {
    "score": noisy(0.0, 0.9, 0.1),
    "score_std": noisy(1.0, 0.8, 0.05),
    "reward_model_score": noisy(0.0, 0.9, 0.1),
    "kl": noisy(0.0, 5.0, 0.4),
    "kl_k3": noisy(0.0, 5.0, 0.4),
    "kl_penalty_std": noisy(0.0, 0.12, 0.01),
    "entropy": noisy(0.07, 0.06, 0.005),
    "approx_kl": noisy(0.008, 0.001, 1e-4),
    "clip_fraction": noisy(0.02, 0.005, 1e-3),
    "explained_variance": noisy(0.1, 0.85, 0.03),
    "value_error": noisy(0.7, 0.06, 0.01),
    "value_loss": noisy(0.3, 0.03, 0.01),
    "sampler_logprob_gap": noisy(0.0015, 0.0017, 1e-4),
    "first_ratio_error": [1e-6] * N,
    "response_length": noisy(39, 41, 2),
    "termination_rate": [1.0] * N,
    "ended_no_better": noisy(0.05, 0.02, 0.01),
    "score_length_correlation": noisy(-0.1, -0.1, 0.1),
    "distinct_2": noisy(0.40, 0.34, 0.02),
    "repetition": noisy(0.002, 0.004, 0.002),
    "top_phrase_share": noisy(0.1, 0.4, 0.03),
    "top_response_share": noisy(0.04, 0.06, 0.01),
}
"""A policy that learns: the levels of the kitchen's."""


def made_up(
    place: Path, stage: str, curves: dict[str, Sequence[float]], *, results: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None, inputs: Sequence[Path] = (), every: int = 1, finished: bool = True,
) -> StepResult:  # fmt: skip
    """A step whose metrics.jsonl has these curves, a line for each `every` steps."""
    place.mkdir(parents=True, exist_ok=True)
    n = max(map(len, curves.values()), default=0)
    lines = [{"step": (i + 1) * every, **{k: v[i] for k, v in curves.items() if i < len(v)}} for i in range(n)]
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = {
        "stage": stage,
        "options": options or {},
        "results": results or {},
        "inputs": dict.fromkeys(map(str, inputs)),
        "files": {},
    }
    return StepResult(place.name, stage, place, finished, record)


def run_of(place: Path, *steps: StepResult) -> RunContents:
    return RunContents(place, place.name, list(steps))
