"""`wukong kto`: SFT model + thumbs up and down -> a policy, without pairs, reward model or sampling.

In:  the SFT model (policy and frozen reference start from it), votes (docs/reference/data.md) or comparisons; each
comparison counts as one thumb up and one down.
Out: the policy's model directory, metrics.jsonl.

    wukong kto --model runs/mine/sft --data votes.jsonl --out runs/mine/policy

Kahneman-Tversky optimisation (Ethayarajh et al. 2024): a good answer's log(pi/pi_ref) is pushed above a baseline, a
bad one's below it, each with diminishing returns. The baseline estimates the KL from mismatched answers: each prompt
of a batch is paired with the next one's answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from wukong.data.answers import tokenised_answers
from wukong.data.batches import by_length
from wukong.data.summary import ReadSummary
from wukong.errors import DataError
from wukong.model.language_model import LanguageModel
from wukong.objectives import kto_baseline, kto_loss
from wukong.processes import all_gather, all_reduce_sum, local_part
from wukong.records import Message, Preference, Ranking, Vote
from wukong.require import Need
from wukong.stages.direct.logratios import AnswerTokens, logratios, measure_reference
from wukong.stages.direct.train import DirectAlgorithm, DirectOptions, Metrics, direct_needs, train
from wukong.tokenizer import Tokenizer
from wukong.training.compute import read
from wukong.training.parallel import lockstep
from wukong.training.session import Session


class KTOOptions(DirectOptions):
    """Train a policy on thumbs up and down (KTO)."""

    data: list[str]
    """Votes or comparisons: paths, globs or Hugging Face data set ids."""
    batch_size: int | None = Field(None, ge=2, json_schema_extra={"usual": 32})
    """Votes per step. Default: 32, or down to 8 if there are few."""
    good_weight: float = Field(1.0, gt=0)
    """lambda_D, the weight of a thumb up. If the numbers differ, weight x number of the ups should be 1 to 4/3 times
    that of the downs."""
    bad_weight: float = Field(1.0, gt=0)
    """lambda_U, the weight of a thumb down."""


@dataclass(frozen=True)
class VotedAnswer:
    """An answer, and whether it was liked."""

    answer: AnswerTokens
    good: bool


def votes_of(
    records: Sequence[Preference], tokenizer: Tokenizer, context: int, summary: ReadSummary
) -> list[VotedAnswer]:
    """Every vote, and both sides of a comparison; what does not fit the context is dropped and counted. All votes on a
    prompt share the same prompt tokens, cut once to fit its longest answer.

    Raises DataError for rankings, whose middle is neither good nor bad.
    """
    said: list[tuple[list[Message], str, bool]] = []
    for record in records:
        if isinstance(record, Ranking):
            _refuse_rankings(record)
        elif isinstance(record, Vote):
            said.append((record.prompt, record.response, record.vote > 0))
        elif record.tie:
            summary.dropped["a tie"] += 1
        else:
            said += [(record.prompt, record.chosen, True), (record.prompt, record.rejected, False)]
    read = tokenised_answers(tokenizer, [(prompt, text) for prompt, text, _ in said], context, finished=True)
    votes = [
        VotedAnswer(AnswerTokens(*one), good) for one, (*_, good) in zip(read, said, strict=True) if one is not None
    ]
    if len(votes) < len(said):
        summary.dropped[f"longer than the context of {context} tokens"] += len(said) - len(votes)
    return votes


def mismatched(batch: Sequence[VotedAnswer], context: int) -> list[AnswerTokens]:
    """Each prompt with the answer of the next vote on another prompt; the start is cut if it does not fit."""
    found = []
    for i, vote in enumerate(batch):
        others = (batch[(i + k) % len(batch)].answer for k in range(1, len(batch)))
        other = next((answer for answer in others if answer.prompt != vote.answer.prompt), None)
        if other is not None:
            found.append(AnswerTokens(vote.answer.prompt[-(context - len(other.response)) :], other.response))
    return found


class KTO(DirectAlgorithm[VotedAnswer]):
    name = "kto"

    def __init__(self, options: KTOOptions) -> None:
        self.options = options

    def items_of(
        self, records: Sequence[Preference], tokenizer: Tokenizer, context: int, summary: ReadSummary
    ) -> list[VotedAnswer]:
        return votes_of(records, tokenizer, context, summary)

    def answers_of(self, item: VotedAnswer) -> list[AnswerTokens]:
        return [item.answer]

    def baseline(
        self, session: Session, policy: LanguageModel, reference: LanguageModel, batch: Sequence[VotedAnswer]
    ) -> Tensor:
        """z_0 of a batch, (); 0 if all its votes are on one prompt."""
        temperature, compute = self.options.temperature, session.compute
        answers = mismatched(batch, policy.config.n_positions)
        if not answers:
            return torch.zeros((), device=compute.device)
        measure_reference(reference, answers, temperature, compute, session.micro_batch_tokens)
        parts = by_length([len(answer.ids) for answer in answers], session.micro_batch_tokens)

        @torch.no_grad()
        def measured() -> list[Tensor]:
            mine = lockstep(local_part(parts), policy)
            return [logratios(policy, [answers[i] for i in rows], temperature, compute).cpu() for rows in mine]

        return kto_baseline(torch.cat(all_gather(measured)).to(compute.device))

    def batch_loss(
        self,
        session: Session,
        policy: LanguageModel,
        reference: LanguageModel,
        batch: Sequence[VotedAnswer],
        learn: bool,
    ) -> Metrics:
        options = self.options
        baseline = self.baseline(session, policy, reference, batch)
        losses, parts, found = [], [], []
        for part in session.micro_batches(batch, self.lengths_of):
            ratios = logratios(policy, [vote.answer for vote in part], options.temperature, session.compute)
            good = torch.tensor([vote.good for vote in part], device=ratios.device)
            loss = kto_loss(ratios, good, baseline, options.beta, options.good_weight, options.bad_weight)
            loss = loss.sum() / len(batch)
            if learn:
                session.backward(loss)
            losses.append(loss.detach())
            parts += part
            found.append(ratios.detach())
        rewards: dict[bool, list[float]] = {True: [], False: []}
        for vote, ratio in zip(parts, torch.cat(found).tolist() if found else [], strict=True):
            rewards[vote.good].append(options.beta * ratio)
        of_sides = [number for side in (True, False) for number in (sum(rewards[side]), len(rewards[side]))]
        total, up, n_up, down, n_down = all_reduce_sum(sum(read(losses)), *of_sides)
        above, below = up / max(1, n_up), down / max(1, n_down)
        return {
            "loss": total,
            "margin": above - below,
            "chosen_reward": above,
            "rejected_reward": below,
            "kl_baseline": float(baseline),
        }


def needs(options: KTOOptions) -> list[Need]:
    return direct_needs(options, _refuse_rankings, no=("rankings",))


def _refuse_rankings(record: Preference) -> None:
    """Raises DataError for a ranking."""
    if isinstance(record, Ranking):
        raise DataError("a ranking is neither a thumb up nor a thumb down", hint="`wukong dpo` learns from rankings")


def run(options: KTOOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError when the loss is not finite."""
    train(KTO(options), options, needs(options))
