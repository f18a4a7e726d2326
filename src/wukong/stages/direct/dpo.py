"""`wukong dpo`: SFT model + comparisons -> a policy, without a reward model and without sampling.

In:  the SFT model (policy and frozen reference start from it), comparisons or rankings (docs/reference/data.md).
Out: the policy's model directory, metrics.jsonl.

    wukong dpo --model runs/mine/sft --data comparisons.jsonl --out runs/mine/policy

Direct preference optimisation (Rafailov et al. 2023): the best policy for a reward r under a KL penalty is
pi ~ pi_ref exp(r/beta), so beta log(pi/pi_ref) is a reward, and the Bradley-Terry loss of reward models trains the
policy itself. IPO (Azar et al. 2023) and label smoothing (cDPO, Mitchell 2023) keep it from extremes.
Departure: all pairs of a prompt, by any annotator, count as one record, as in InstructGPT's reward model, and each
answer passes through the model once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from wukong.data.answers import pair_index, pairs_by_prompt
from wukong.data.summary import ReadSummary
from wukong.errors import DataError, UsageError
from wukong.model.language_model import LanguageModel
from wukong.objectives import dpo_loss, grouped_mean, ipo_loss
from wukong.processes import all_reduce_sum
from wukong.records import Comparison, Preference, Ranking, Vote
from wukong.require import Need
from wukong.stages.direct.logratios import AnswerTokens, logratios
from wukong.stages.direct.train import DirectAlgorithm, DirectOptions, Metrics, direct_needs, train
from wukong.tokenizer import Tokenizer
from wukong.training.compute import read, wide
from wukong.training.session import Session


class DPOOptions(DirectOptions):
    """Train a policy on comparisons directly (DPO, IPO, conservative DPO)."""

    data: list[str]
    """Comparisons and rankings: paths, globs or Hugging Face data set ids."""
    loss: Literal["dpo", "ipo"] = "dpo"
    """dpo (logistic), or ipo (squared distance to a margin of 1/(2 beta))."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """The assumed fraction of wrong labels (conservative DPO)."""


@dataclass(frozen=True)
class AnswerPairs:
    """The answers to one prompt and all its pairs (better, worse), by any annotator."""

    answers: list[AnswerTokens]
    pairs: list[tuple[int, int]]


def groups_of(
    records: Sequence[Preference], tokenizer: Tokenizer, context: int, summary: ReadSummary
) -> list[AnswerPairs]:
    """One group per prompt; ties and pairs that do not fit the context are dropped and counted.

    Raises DataError for votes, which compare nothing.
    """
    judged: list[Comparison | Ranking] = []
    for record in records:
        if isinstance(record, Vote):
            _refuse_votes(record)
        elif isinstance(record, Comparison) and record.tie:
            summary.dropped["a tie"] += 1
        else:
            judged.append(record)
    return [
        AnswerPairs([AnswerTokens(prompt, response) for prompt, response in one.answers], one.pairs)
        for one in pairs_by_prompt(judged, tokenizer, context, summary, finished=True)
    ]


def pair_losses(chosen: Tensor, rejected: Tensor, options: DPOOptions) -> Tensor:
    """Log-ratios of both sides, (N,) each -> (N,)."""
    if options.loss == "ipo":
        return ipo_loss(chosen, rejected, options.beta)
    return dpo_loss(chosen, rejected, options.beta, options.label_smoothing)


class DPO(DirectAlgorithm[AnswerPairs]):
    name = "dpo"

    def __init__(self, options: DPOOptions) -> None:
        self.options = options

    def items_of(
        self, records: Sequence[Preference], tokenizer: Tokenizer, context: int, summary: ReadSummary
    ) -> list[AnswerPairs]:
        return groups_of(records, tokenizer, context, summary)

    def answers_of(self, item: AnswerPairs) -> list[AnswerTokens]:
        return item.answers

    def batch_loss(
        self,
        session: Session,
        policy: LanguageModel,
        reference: LanguageModel,
        batch: Sequence[AnswerPairs],
        learn: bool,
    ) -> Metrics:
        options = self.options
        losses, hits, sides = [], [], torch.zeros(2, device=session.compute.device)
        for part in session.micro_batches(batch, self.lengths_of):
            answers = [answer for group in part for answer in group.answers]
            ratios = logratios(policy, answers, options.temperature, session.compute)  # (B,)
            better, worse, member = pair_index([(len(group.answers), group.pairs) for group in part])
            chosen, rejected, groups = ratios[better], ratios[worse], torch.tensor(member, device=ratios.device)
            weight = len(part) / len(batch)
            loss = grouped_mean(pair_losses(chosen, rejected, options), groups) * weight
            if learn:
                session.backward(loss)
            with torch.no_grad():
                losses.append(loss.detach())
                sides += weight * torch.stack([grouped_mean(side, groups) for side in (chosen, rejected)])
                hits.append(weight * wide(grouped_mean((chosen > rejected).float(), groups)))
        above, below = read([*(options.beta * sides)])
        total, right, above, below = all_reduce_sum(sum(read(losses)), sum(read(hits)), above, below)
        return {
            "loss": total,
            "accuracy": right,
            "margin": above - below,
            "chosen_reward": above,
            "rejected_reward": below,
        }


def needs(options: DPOOptions) -> list[Need]:
    if options.loss == "ipo" and options.label_smoothing:
        raise UsageError("--label-smoothing belongs to --loss dpo: ipo has a finite margin without it")
    return direct_needs(options, _refuse_votes)


def _refuse_votes(record: Preference) -> None:
    """Raises DataError for a vote."""
    if isinstance(record, Vote):
        raise DataError("a single vote compares nothing", hint="`wukong kto` learns from votes")


def run(options: DPOOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError when the loss is not finite."""
    train(DPO(options), options, needs(options))
