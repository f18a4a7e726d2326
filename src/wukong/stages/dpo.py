"""`wukong dpo`: SFT model + comparisons -> a policy, without a reward model and without sampling.

In:  the SFT model (policy and frozen reference start from it), comparisons or rankings (docs/reference/data.md).
Out: the policy's model directory, metrics.jsonl.

    wukong dpo --model runs/mine/sft --data comparisons.jsonl --out runs/mine/policy

Direct preference optimisation (Rafailov et al. 2023): the best policy for a reward r under a KL penalty is
pi ~ pi_ref exp(r/beta), so beta log(pi/pi_ref) is a reward, and the Bradley-Terry loss of reward models trains the
policy itself. IPO (Azar et al. 2023) and label smoothing (cDPO, Mitchell 2023) keep it from going to extremes.
Departure: all pairs of a prompt, whoever judged them, weigh as one record, as in InstructGPT's reward model, and each
answer passes through the model once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from wukong.data.summary import ReadSummary
from wukong.errors import DataError, UsageError
from wukong.model.gpt2 import GPT2
from wukong.objectives import dpo_loss, grouped_mean, ipo_loss
from wukong.processes import share, sums
from wukong.records import Comparison, Preference, Ranking, Vote
from wukong.require import Need
from wukong.stages.offline import (
    Answer,
    Metrics,
    OfflineOptions,
    in_parts,
    logratios,
    offline_needs,
    train_offline,
)
from wukong.stages.pairs import pairs_by_prompt
from wukong.tokenizer import Tokenizer
from wukong.training.compute import Compute
from wukong.training.parallel import in_step


class DPOOptions(OfflineOptions):
    """Train a policy on comparisons directly (DPO, IPO, conservative DPO)."""

    data: list[str]
    """Comparisons and rankings: paths, globs or Hugging Face data set ids."""
    loss: Literal["dpo", "ipo"] = "dpo"
    """dpo (logistic), or ipo (squared distance to a margin of 1/(2 beta))."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """The part of the labels taken to be wrong: conservative DPO."""


@dataclass(frozen=True)
class Group:
    """The answers to one prompt and its pairs (better, worse), whoever judged them."""

    answers: list[Answer]
    pairs: list[tuple[int, int]]


def groups_of(
    records: Sequence[Preference], tokenizer: Tokenizer, context: int, summary: ReadSummary
) -> list[Group]:  # fmt: skip
    """A group for each prompt; ties, and what does not fit the context, are dropped and counted.

    Raises DataError for votes, which compare nothing.
    """
    judged: list[Comparison | Ranking] = []
    for record in records:
        if isinstance(record, Vote):
            raise DataError("a single vote compares nothing", hint="`wukong kto` learns from votes")
        if isinstance(record, Comparison) and record.tie:
            summary.dropped["a tie"] += 1
        else:
            judged.append(record)
    return [
        Group([Answer(prompt, response) for prompt, response in one.answers], one.pairs)
        for one in pairs_by_prompt(judged, tokenizer, context, summary, finished=True)
    ]


def pair_losses(chosen: Tensor, rejected: Tensor, options: DPOOptions) -> Tensor:
    """(N,) log-ratios of both sides -> (N,)."""
    if options.loss == "ipo":
        return ipo_loss(chosen, rejected, options.beta)
    return dpo_loss(chosen, rejected, options.beta, options.label_smoothing)


def learn(
    policy: GPT2, batch: Sequence[Group], compute: Compute, options: DPOOptions,
    backward: Callable[[Tensor], None] | None,
) -> Metrics:  # fmt: skip
    """The loss of a batch, in parts, and what its pairs look like."""
    total, sides, right = 0.0, torch.zeros(2), 0.0
    for part in in_step(in_parts(share(batch), lambda group: group.answers, options.micro_batch_tokens), policy):
        ratios = logratios(policy, [a for group in part for a in group.answers], options.temperature, compute)
        better, worse, member, start = [], [], [], 0
        for number, group in enumerate(part):
            better += [start + b for b, _ in group.pairs]
            worse += [start + w for _, w in group.pairs]
            member += [number] * len(group.pairs)
            start += len(group.answers)
        chosen, rejected, groups = ratios[better], ratios[worse], torch.tensor(member, device=ratios.device)
        weight = len(part) / len(batch)
        loss = grouped_mean(pair_losses(chosen, rejected, options), groups) * weight
        if backward is not None:
            backward(loss)
        total += loss.item()
        with torch.no_grad():
            sides += weight * torch.stack([grouped_mean(side, groups) for side in (chosen, rejected)]).cpu()
            right += weight * float(grouped_mean((chosen > rejected).float(), groups))
    total, right, above, below = sums(total, right, *(options.beta * sides).tolist())
    metrics = {
        "loss": total,
        "accuracy": right,
        "margin": above - below,
        "chosen_reward": above,
        "rejected_reward": below,
    }
    return metrics


def needs(options: DPOOptions) -> list[Need]:
    if options.loss == "ipo" and options.label_smoothing:
        raise UsageError("--label-smoothing belongs to --loss dpo: ipo has a finite margin without it")
    return offline_needs(options, options.data, _compares)


def _compares(record: Preference) -> None:
    """Raises DataError for a vote."""
    if isinstance(record, Vote):
        raise DataError("a single vote compares nothing", hint="`wukong kto` learns from votes")


def run(options: DPOOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError when the loss is not finite."""

    def learn_batch(policy: GPT2, reference: GPT2, batch: Sequence[Group], compute: Compute, backward) -> Metrics:
        return learn(policy, batch, compute, options, backward)

    train_offline("dpo", options, needs(options), options.data, groups_of, lambda group: group.answers, learn_batch)
