"""The glass box: what a traced iteration would have been under other settings.

The algorithm itself computes it (`Algorithm.rewards`, `advantages` and the losses, and thereby `wukong.objectives`),
from what trace.jsonl keeps of the whole batch. The responses, their log-probs and the update stay as they were.

Shape legend: B episodes, P pinned episodes, R response time, N real response tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from wukong.errors import UsageError
from wukong.objectives import masked_mean
from wukong.options import complaint
from wukong.report.traces import TracedIteration, TracedResponse
from wukong.stages.online.algorithm import Advantages, Algorithm, Batch, OnlineOptions
from wukong.stages.online.bestofn import BestOfNOptions
from wukong.stages.online.grpo import GRPOOptions
from wukong.stages.online.ppo import PPOOptions
from wukong.stages.online.reinforce import ReinforceOptions
from wukong.stages.online.rloo import RLOOOptions
from wukong.stages.online.trace import joined, numbers, update_terms

ALGORITHMS: dict[str, type[OnlineOptions]] = {
    "ppo": PPOOptions,
    "reinforce": ReinforceOptions,
    "rloo": RLOOOptions,
    "grpo": GRPOOptions,
    "bestofn": BestOfNOptions,
}
SETTINGS = ("kl_coef", "gamma", "lam", "clip_range")
"""What can be changed, where the algorithm has it."""


@dataclass(frozen=True)
class Recomputed:
    """The traced responses with their new rewards, advantages, returns, ratios and losses; and means: of the whole
    batch as in metrics.jsonl, and with the prefix "traced_" over the tokens of its traced responses."""

    responses: list[TracedResponse]
    means: dict[str, float]


def settings_of(traced: TracedIteration) -> dict[str, float]:
    """The settings of a traced iteration that can be changed."""
    known = {"kl_coef": traced.kl_coef} | {name: traced.options[name] for name in SETTINGS if name in traced.options}
    return {name: float(value) for name, value in known.items()}


def algorithm_of(traced: TracedIteration, changes: Mapping[str, float]) -> Algorithm:
    """The algorithm as it was, but for the changes. Raises UsageError for a setting that it does not have or that is
    out of range, and for a trace of an algorithm that this version does not know."""
    kind = ALGORITHMS.get(traced.algorithm)
    if kind is None:
        raise UsageError("this version knows no algorithm {name!r}", name=traced.algorithm)
    if unknown := sorted(changes.keys() - settings_of(traced).keys()):
        raise UsageError("{algorithm} has no {name}", algorithm=traced.algorithm, name=unknown[0])
    own = traced.options | {name: value for name, value in changes.items() if name != "kl_coef"}
    kl_coef = changes.get("kl_coef", traced.kl_coef)
    try:
        return kind(out=Path("-"), model="", prompts=[], kl_coef=kl_coef, **own).algorithm()
    except ValidationError as error:
        name, problem = complaint(error, kind)
        raise UsageError("{name} {problem}", name=name, problem=problem) from None


def recompute(traced: TracedIteration, changes: Mapping[str, float]) -> Recomputed:
    """The iteration under other settings, by the names of `SETTINGS`; without changes, as it was recorded.

    Advantages are whitened, and compared with their group, over the whole batch, as in training. A running baseline
    stays as it was.

    Raises:
        UsageError: as `algorithm_of`; or the trace does not fit together.
    """
    algorithm = algorithm_of(traced, changes)
    kl_coef = changes.get("kl_coef", traced.kl_coef)
    batch = _batch(traced, kl_coef)
    try:
        advantages, rewards = algorithm.advantages(batch), algorithm.rewards(batch)
        parts = {False: (rewards, advantages)}
        if pinned := [one for one in traced.responses if one.pinned]:
            parts[True] = _of_pinned(algorithm, traced, batch, pinned)
        responses = [_response(algorithm, kl_coef, one, *parts[one.pinned]) for one in traced.responses]
    except (ValueError, IndexError, RuntimeError) as error:
        raise UsageError("the trace does not fit together: {reason}", reason=error) from None
    return Recomputed(responses, _means(batch, advantages, responses))


def _batch(traced: TracedIteration, kl_coef: float) -> Batch:
    scores, (kl, mask) = torch.tensor(traced.batch.scores), padded(traced.batch.kl)
    values = torch.zeros_like(kl) if traced.batch.values is None else padded(traced.batch.values)[0]
    state = {} if traced.baseline is None else {"baseline": traced.baseline}
    return Batch(scores, kl, mask, values, kl_coef, state)


def padded(rows: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor]:
    """(B, R) float32, zero where masked, and the mask."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    tensor = torch.zeros(mask.shape)
    tensor[mask] = torch.tensor([x for row in rows for x in row])
    return tensor, mask


def _of_pinned(
    algorithm: Algorithm, traced: TracedIteration, batch: Batch, pinned: Sequence[TracedResponse]
) -> tuple[Tensor, Advantages]:
    """The rewards and advantages of the pinned responses beside the batch, (P, R) each."""
    scores, (kl, mask) = torch.tensor([one.score for one in pinned]), padded([one.kl for one in pinned])
    values = torch.zeros_like(kl) if traced.batch.values is None else padded([one.values or [] for one in pinned])[0]
    both = joined(batch, scores, kl, mask, values, traced.baseline)
    B, found = len(batch.scores), algorithm.advantages(both)
    returns = None if found.returns is None else found.returns[B:]
    return algorithm.rewards(both)[B:], Advantages(found.advantages[B:], returns)


def _response(
    algorithm: Algorithm, kl_coef: float, one: TracedResponse, rewards: Tensor, advantages: Advantages
) -> TracedResponse:
    """The response with what follows from the rewards and advantages of its row, (B, R)."""
    n = len(one.tokens)
    of_values = {}
    if one.values is not None and one.new_values is not None and advantages.returns is not None:
        of_values = {"values": torch.tensor(one.values), "new_values": torch.tensor(one.new_values)}
        of_values["returns"] = advantages.returns[one.row, :n]
    own = advantages.advantages[one.row, :n]
    terms = update_terms(
        algorithm, kl_coef, logprobs=torch.tensor(one.logprobs), new_logprobs=torch.tensor(one.new_logprobs),
        reference_logprobs=torch.tensor(one.reference_logprobs), advantages=own, **of_values,
    )  # fmt: skip
    columns = {"rewards": rewards[one.row, :n], "advantages": own, "returns": of_values.get("returns"), **vars(terms)}
    return one.model_copy(update={k: None if v is None else numbers(v) for k, v in columns.items()})


def _means(batch: Batch, advantages: Advantages, responses: Sequence[TracedResponse]) -> dict[str, float]:
    means = {
        "score": float(batch.scores.mean()),
        "kl": float(batch.kl.sum(1).mean()),
        "advantage_mean": float(masked_mean(advantages.advantages, batch.mask)),
        **{name: float(value) for name, value in advantages.metrics.items()},
    }
    own = [one for one in responses if not one.pinned]
    for name in ("policy_losses", "value_losses", "clipped", "ratios"):
        found = [float(x) for one in own for x in getattr(one, name) or ()]
        if found:
            means[f"traced_{name}"] = sum(found) / len(found)
    return means
