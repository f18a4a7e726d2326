"""What the online algorithms learn from: a policy's responses to prompts, and what the other models say of them.

Shape legend: B episodes, T prompt + response time, R response time, N real response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from wukong.console import console
from wukong.data.batches import by_length, pad
from wukong.data.prompts import PromptOptions, load_prompts
from wukong.data.split import split_by_prompt
from wukong.errors import DataError, UsageError
from wukong.model.gpt2 import GPT2
from wukong.model.heads import ScalarModel, ValueHead
from wukong.objectives import token_logprobs
from wukong.processes import add_up, gathered, share
from wukong.records import Message
from wukong.rollout import generate, inference_copy
from wukong.seeds import derived_seed
from wukong.stages.common import response_logprobs, response_positions, response_states
from wukong.tokenizer import Tokenizer
from wukong.training.compute import Compute
from wukong.training.parallel import in_step
from wukong.training.session import TrainOptions


class RolloutOptions(TrainOptions, PromptOptions):
    """Which prompts are answered, and how."""

    prompts: list[str]
    """Prompts in any of the formats of docs/reference/data.md."""
    holdout: float = Field(0.0, ge=0, lt=1)
    """Leave out this part of the prompts: the part that sft and reward hold out with the same --valid-fraction and
    --seed, and that evaluate takes with the same --holdout."""
    max_new_tokens: int = Field(128, ge=1)
    """Responses are cut there."""
    temperature: float = Field(1.0, gt=0)
    """Logits are divided by it in rollout, reference and update alike."""
    missing_eos_score: float | None = -1.0
    """The score of a response that never ended, in place of the reward; None (null in a recipe) keeps it."""
    missing_eos_penalty: float | None = Field(None, ge=0)
    """Taken off the reward of a response that never ended, in place of --missing-eos-score: whatever the scale of the
    rewards, an answer then scores less than the same answer with an end."""
    truncate_at: str | None = None
    """Score the response only up to the first such token, e.g. "." (it is trained on untruncated all the same)."""
    truncate_after: int = Field(16, ge=0)
    """Where --truncate-at begins to look, in tokens."""

    @model_validator(mode="after")
    def _penalty_in_place_of_score(self) -> Self:
        if self.missing_eos_penalty is not None and "missing_eos_score" not in self.model_fields_set:
            self.missing_eos_score = None
        return self


@dataclass(frozen=True)
class TokenisedPrompt:
    messages: list[Message]
    ids: list[int]


@dataclass
class Episodes:
    """A batch of answered prompts. `mask` is True on response tokens (the closing end token included)."""

    sequences: list[list[int]]  # prompt + response
    prompt_lengths: list[int]
    response_lengths: list[int]
    scored_lengths: list[int]  # what is scored: without end token, and cut at `truncate_at`
    ended: list[bool]
    mask: Tensor  # (B, R) bool
    sampler_logprobs: Tensor  # (B, R)

    @property
    def scored_sequences(self) -> list[list[int]]:
        """Prompt and response as the reward reads them."""
        return [s[:n] for s, n in zip(self.sequences, self.scored_lengths, strict=True)]

    @property
    def responses(self) -> list[tuple[int, ...]]:
        return [tuple(s[n:]) for s, n in zip(self.sequences, self.prompt_lengths, strict=True)]


@dataclass
class Judged:
    """What the models say of a batch of episodes, before any update. All (B, R) float32 but the scores."""

    logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor  # zeros without a value model
    entropies: Tensor
    scores: Tensor  # (B,)


def tokenised_prompts(options: RolloutOptions, tokenizer: Tokenizer, context: int) -> list[TokenisedPrompt]:
    """Prompts as token ids; one that leaves no room for a response is dropped and counted."""
    read = load_prompts(options.prompts, options)
    room = context - options.max_new_tokens
    if room < 1:
        raise UsageError(f"--max-new-tokens {options.max_new_tokens} leaves no room in the context of {context}")
    prompts = []
    for prompt in split_by_prompt(read.records, options.holdout, options.seed)[0]:
        try:
            ids = tokenizer.prompt_ids(prompt.messages, max_tokens=room)
            prompts.append(TokenisedPrompt(prompt.messages, ids))
        except DataError:
            read.summary.dropped[f"longer than {room} tokens"] += 1
    console.print(read.summary.table("prompts"))
    if not prompts:
        raise UsageError(f"{options.prompts[0]}: no prompt leaves room for {options.max_new_tokens} new tokens")
    return prompts


def roll_out(
    policy: GPT2, prompts: Sequence[list[int]], tokenizer: Tokenizer, options: RolloutOptions, seed: int,
    compute: Compute,
) -> Episodes:  # fmt: skip
    """One response to each prompt; a prompt that stands there n times gets n responses. Of several processes each
    writes its share; the seeds are the prompts' own, so the responses are those of one process."""
    policy.eval()
    model, mine = inference_copy(policy, compute), share(range(len(prompts)))
    sampled = gathered(
        lambda: generate(
            model,
            [prompts[i] for i in mine],
            eos_id=tokenizer.eos_ids,
            max_new_tokens=options.max_new_tokens,
            seeds=[derived_seed(seed, i) for i in mine],
            temperature=options.temperature,
        )
    )
    stop = tokenizer.encode(options.truncate_at)[0] if options.truncate_at else None
    responses, logprobs, scored, ended = [], [], [], []
    for prompt, one in zip(prompts, sampled, strict=True):
        cut = next((i for i, t in enumerate(one.ids) if t == stop and i >= options.truncate_after), None)
        real = len(one.ids) - one.finished
        scored.append(len(prompt) + (min(cut + 1, real) if cut is not None else real))
        ended.append(one.finished or cut is not None)
        responses.append(one.ids)
        logprobs.append(one.logprobs)
    lengths = torch.tensor([len(r) for r in responses])  # (B,)
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)  # (B, R)
    sampler = torch.zeros(mask.shape)
    sampler[mask] = torch.tensor([x for row in logprobs for x in row])
    return Episodes(
        sequences=[p + r for p, r in zip(prompts, responses, strict=True)],
        prompt_lengths=[len(p) for p in prompts],
        response_lengths=lengths.tolist(),
        scored_lengths=scored,
        ended=ended,
        mask=mask.to(compute.device),
        sampler_logprobs=sampler.to(compute.device),
    )


def micro_batch(episodes: Episodes, rows: Sequence[int], compute: Compute) -> tuple[Tensor, Tensor, Tensor]:
    """ids (b, T), which positions predict a response token (b, T - 1) bool, and the rows as a tensor (b,)."""
    ids, _ = pad([episodes.sequences[i] for i in rows])
    predicts = response_positions(
        [episodes.prompt_lengths[i] for i in rows], [episodes.response_lengths[i] for i in rows], ids.shape[1]
    )
    return ids.to(compute.device), predicts.to(compute.device), torch.tensor(rows, device=compute.device)


ValueModel = ScalarModel | ValueHead
"""V of the state before a response token: a network of its own, or a head on the policy's trunk."""


def read_responses(
    policy: GPT2, value_model: ValueModel | None, ids: Tensor, predicts: Tensor, temperature: float, compute: Compute,
    with_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Log-probs, entropies (zeros unless asked for) and, of a value model that shares the policy's trunk, the values:
    (N,) float32 each, out of one pass."""
    with compute.autocast():
        states = response_states(policy, ids, predicts)  # (N, C)
        targets = ids[:, 1:][predicts]
        found = token_logprobs(states, policy.wte.weight, targets, temperature=temperature, with_entropy=with_entropy)
        return *found, value_model.read(states) if isinstance(value_model, ValueHead) else None


def response_values(model: ScalarModel, ids: Tensor, predicts: Tensor, compute: Compute) -> Tensor:
    """The values of a value model with a trunk of its own: (N,) float32."""
    with compute.autocast():
        return model.read(response_states(model.trunk, ids, predicts))


ScoreFunction = Callable[[Episodes], Tensor]
"""Episodes -> the reward of each response, (B,) float32, before the rule for responses that never ended."""


@torch.no_grad()
def judge(
    policy: GPT2, reference: GPT2, value_model: ValueModel | None, score: ScoreFunction, episodes: Episodes,
    options: RolloutOptions, compute: Compute,
) -> Judged:  # fmt: skip
    """Log-probs of policy and reference, values, entropies, scores; of several processes each judges its share."""
    policy.eval()
    modules = [policy, *([] if value_model is None else [value_model.eval()])]
    logprobs, reference_logprobs, values, entropies = (
        torch.zeros(episodes.mask.shape, device=compute.device) for _ in range(4)
    )
    mine = share(range(len(episodes.sequences)))
    parts = [
        [mine[i] for i in part]
        for part in by_length([len(episodes.sequences[i]) for i in mine], options.micro_batch_tokens)
    ]
    for rows in in_step(parts, *modules):
        ids, predicts, index = micro_batch(episodes, rows, compute)
        mask = episodes.mask[index]  # (b, R): its True positions stand in the same order as those of `predicts`
        *found, foreseen = read_responses(
            policy, value_model, ids, predicts, options.temperature, compute, with_entropy=True
        )
        expected, _ = response_logprobs(reference, ids, predicts, options.temperature, compute)
        targets = [(logprobs, found[0]), (entropies, found[1]), (reference_logprobs, expected)]
        if isinstance(value_model, ScalarModel):
            foreseen = response_values(value_model, ids, predicts, compute)
        if foreseen is not None:
            targets.append((values, foreseen))
        for target, value in targets:
            part = torch.zeros(mask.shape, device=compute.device)
            part[mask] = value
            target[index] = part
    add_up(logprobs, reference_logprobs, values, entropies)  # zero where another process judged
    return Judged(logprobs, reference_logprobs, values, entropies, score(episodes))


def final_scores(scores: Tensor, episodes: Episodes, options: RolloutOptions) -> Tensor:
    """What ending is learnt from, (B,) -> (B,): a response that never ended gets a fixed score (the "EOS trick"), or
    the penalty is taken off its reward."""
    ended = torch.tensor(episodes.ended, device=scores.device)
    if options.missing_eos_penalty is not None:
        return torch.where(ended, scores, scores - options.missing_eos_penalty)
    if options.missing_eos_score is not None:
        return torch.where(ended, scores, options.missing_eos_score)
    return scores


def ended_no_better(scores: Tensor, episodes: Episodes, options: RolloutOptions) -> float:
    """The part of the ended responses whose reward, (B,), is not above the fixed score: for those not ending would
    have cost nothing. 0 without a fixed score."""
    if options.missing_eos_score is None or not any(episodes.ended):
        return 0.0
    ended = scores[torch.tensor(episodes.ended, device=scores.device)]
    return float((ended <= options.missing_eos_score).float().mean())
