"""`wukong kto`: SFT model + thumbs up and down -> a policy, without pairs, reward model or sampling.

In:  the SFT model (policy and frozen reference start from it), votes (docs/reference/data.md) or comparisons, each
counted as one thumb up and one down.
Out: the policy's model directory, metrics.jsonl.

    wukong kto --model runs/mine/sft --data votes.jsonl --out runs/mine/policy

Kahneman-Tversky optimisation (Ethayarajh et al. 2024): a good answer's log(pi/pi_ref) is to rise above a base line, a
bad one's to fall below it, each with diminishing returns. The base line is an estimate of the KL from answers that
were given to other prompts: each prompt of a batch is joined with the next one's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from wukong.data.batches import by_length
from wukong.data.summary import ReadSummary
from wukong.errors import DataError
from wukong.model.gpt2 import GPT2
from wukong.objectives import kto_baseline, kto_loss
from wukong.processes import gathered, share, sums
from wukong.records import Message, Preference, Ranking, Vote
from wukong.require import Need
from wukong.stages.offline import (
    Answer,
    Metrics,
    OfflineOptions,
    in_parts,
    logratios,
    measure_reference,
    offline_needs,
    train_offline,
)
from wukong.stages.pairs import tokenised_answers
from wukong.tokenizer import Tokenizer
from wukong.training.compute import Compute
from wukong.training.parallel import in_step


class KTOOptions(OfflineOptions):
    """Train a policy on thumbs up and down (KTO)."""

    data: list[str]
    """Votes or comparisons: paths, globs or Hugging Face data set ids."""
    batch_size: int | None = Field(None, ge=2, json_schema_extra={"usual": 32})
    """Votes a step. When absent 32, and down to 8 where there are few."""
    good_weight: float = Field(1.0, gt=0)
    """lambda_D, the weight of a thumb up. With unequal numbers, (weight x number) of the ups should be 1 to 4/3 times
    that of the downs."""
    bad_weight: float = Field(1.0, gt=0)
    """lambda_U, the weight of a thumb down."""


@dataclass(frozen=True)
class Voted:
    """An answer, and whether it was liked."""

    answer: Answer
    good: bool


def votes_of(records: Sequence[Preference], tokenizer: Tokenizer, context: int, summary: ReadSummary) -> list[Voted]:
    """Every vote, and both sides of a comparison; what does not fit the context is dropped and counted. Votes on one
    prompt read the same prompt, cut once by the longest of its answers.

    Raises DataError for rankings, whose middle is neither good nor bad.
    """
    said: list[tuple[list[Message], str, bool]] = []
    for record in records:
        if isinstance(record, Ranking):
            raise DataError("a ranking is neither thumb up nor down", hint="`wukong dpo` learns from rankings")
        if isinstance(record, Vote):
            said.append((record.prompt, record.response, record.vote > 0))
        elif record.tie:
            summary.dropped["a tie"] += 1
        else:
            said += [(record.prompt, record.chosen, True), (record.prompt, record.rejected, False)]
    read = tokenised_answers(tokenizer, [(prompt, text) for prompt, text, _ in said], context, finished=True)
    votes = [Voted(Answer(*one), good) for one, (*_, good) in zip(read, said, strict=True) if one is not None]
    if len(votes) < len(said):
        summary.dropped[f"longer than the context of {context} tokens"] += len(said) - len(votes)
    return votes


def mismatched(batch: Sequence[Voted], context: int) -> list[Answer]:
    """Each prompt with the answer of the next vote of another prompt; its beginning is cut where it does not fit."""
    found = []
    for i, vote in enumerate(batch):
        others = (batch[(i + k) % len(batch)].answer for k in range(1, len(batch)))
        other = next((answer for answer in others if answer.prompt != vote.answer.prompt), None)
        if other is not None:
            found.append(Answer(vote.answer.prompt[-(context - len(other.response)) :], other.response))
    return found


def baseline_of(
    policy: GPT2, reference: GPT2, batch: Sequence[Voted], compute: Compute, options: KTOOptions
) -> Tensor:  # fmt: skip
    """z_0 of a batch, (); 0 where all its votes are on one prompt."""
    answers = mismatched(batch, policy.config.n_positions)
    if not answers:
        return torch.zeros((), device=compute.device)
    measure_reference(reference, answers, options.temperature, compute, options.micro_batch_tokens)
    parts = list(by_length([len(answer.ids) for answer in answers], options.micro_batch_tokens))

    @torch.no_grad()
    def measured() -> list[Tensor]:
        mine = in_step(share(parts), policy)
        return [logratios(policy, [answers[i] for i in rows], options.temperature, compute).cpu() for rows in mine]

    return kto_baseline(torch.cat(gathered(measured)).to(compute.device))


def learn(
    policy: GPT2, reference: GPT2, batch: Sequence[Voted], compute: Compute, options: KTOOptions,
    backward: Callable[[Tensor], None] | None,
) -> Metrics:  # fmt: skip
    """The loss of a batch, in parts, and what its votes look like."""
    baseline = baseline_of(policy, reference, batch, compute, options)
    total = 0.0
    rewards: dict[bool, list[float]] = {True: [], False: []}
    for part in in_step(in_parts(share(batch), lambda vote: [vote.answer], options.micro_batch_tokens), policy):
        ratios = logratios(policy, [vote.answer for vote in part], options.temperature, compute)
        good = torch.tensor([vote.good for vote in part], device=ratios.device)
        losses = kto_loss(ratios, good, baseline, options.beta, options.good_weight, options.bad_weight)
        loss = losses.sum() / len(batch)
        if backward is not None:
            backward(loss)
        total += loss.item()
        for vote, ratio in zip(part, ratios.tolist(), strict=True):
            rewards[vote.good].append(options.beta * ratio)
    of_sides = [number for side in (True, False) for number in (sum(rewards[side]), len(rewards[side]))]
    total, up, n_up, down, n_down = sums(total, *of_sides)
    above, below = up / max(1, n_up), down / max(1, n_down)
    metrics = {
        "loss": total,
        "margin": above - below,
        "chosen_reward": above,
        "rejected_reward": below,
        "kl_baseline": float(baseline),
    }
    return metrics


def needs(options: KTOOptions) -> list[Need]:
    return offline_needs(options, options.data, _votes, no=("rankings",))


def _votes(record: Preference) -> None:
    """Raises DataError for a ranking."""
    if isinstance(record, Ranking):
        raise DataError("a ranking is neither thumb up nor down", hint="`wukong dpo` learns from rankings")


def run(options: KTOOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError when the loss is not finite."""

    def learn_batch(policy: GPT2, reference: GPT2, batch: Sequence[Voted], compute: Compute, backward) -> Metrics:
        return learn(policy, reference, batch, compute, options, backward)

    train_offline("kto", options, needs(options), options.data, votes_of, lambda vote: [vote.answer], learn_batch)
