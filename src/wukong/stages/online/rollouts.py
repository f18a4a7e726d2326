"""What online algorithms learn from: a policy's responses to prompts, and the other models' outputs on them.

Shape legend: B episodes, b episodes of a micro-batch, T prompt + response time, R response time, N real response
tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from wukong.console import console
from wukong.data.batches import pad
from wukong.data.prompts import PromptOptions, load_prompts
from wukong.data.split import split_by_prompt
from wukong.errors import DataError, UsageError
from wukong.model.heads import ScalarModel, ValueHead
from wukong.model.language_model import LanguageModel
from wukong.model.logprobs import token_logprobs
from wukong.objectives import kl_estimate
from wukong.processes import all_gather, all_reduce, local_part
from wukong.records import Message, Prompt
from wukong.rollout import generate, inference_copy
from wukong.scoring import response_logprobs, response_positions, response_states
from wukong.seeds import derived_seed
from wukong.tokenizer import Tokenizer
from wukong.training.compute import Compute
from wukong.training.session import TrainOptions


class OnPolicyOptions(TrainOptions, PromptOptions):
    """Which prompts to answer, and how."""

    prompts: list[str]
    """Prompts in any of the formats of docs/reference/data.md."""
    max_new_tokens: int = Field(128, ge=1)
    """Maximum response length, in tokens."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits in rollout, reference and update."""

    def cut(self, response: Sequence[int], tokenizer: Tokenizer) -> int | None:
        """The tokens after which a response is cut before it is scored; None: it is not cut."""
        return None


class RolloutOptions(OnPolicyOptions):
    """Which prompts to answer, and which part of a response is scored."""

    holdout: float = Field(0.0, ge=0, lt=1)
    """Leave out this fraction of the prompts: those that sft and reward hold out with the same --valid-fraction and
    --seed, and that evaluate uses with the same --holdout."""
    missing_eos_score: float | None = -1.0
    """The score of a response that never ended, instead of its reward; None (null in a recipe) keeps the reward."""
    missing_eos_penalty: float | None = Field(None, ge=0)
    """Subtracted from the reward of a response that never ended, instead of --missing-eos-score: on any reward scale,
    an answer then scores less than the same answer with an end."""
    truncate_at: str | None = None
    """Score the response only up to the first such token, e.g. "." (training still uses all of it)."""
    truncate_after: int = Field(16, ge=0)
    """Where --truncate-at starts searching, in tokens."""

    @model_validator(mode="before")
    @classmethod
    def _penalty_in_place_of_score(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("missing_eos_penalty") is not None:
            return {"missing_eos_score": None, **given}
        return given

    def cut(self, response: Sequence[int], tokenizer: Tokenizer) -> int | None:
        if not self.truncate_at:
            return None
        stop = tokenizer.encode(self.truncate_at)[0]
        return next((i + 1 for i, t in enumerate(response) if t == stop and i >= self.truncate_after), None)


@dataclass(frozen=True)
class TokenisedPrompt:
    messages: Sequence[Message]
    ids: list[int]
    answer: str | None = None
    columns: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Episodes:
    """A batch of answered prompts. `mask` is True on response tokens (including the closing end token)."""

    prompts: Sequence[TokenisedPrompt]
    sequences: list[list[int]]  # prompt + response
    prompt_lengths: list[int]
    response_lengths: list[int]
    scored_lengths: list[int]  # what is scored: without the end token, and cut at `truncate_at`
    ended: list[bool]
    mask: Tensor  # (B, R) bool
    sampler_logprobs: Tensor  # (B, R)

    def lengths_of(self, row: int) -> list[int]:
        """The length of an episode in tokens, for `Session.micro_batches`."""
        return [len(self.sequences[row])]

    def select(self, rows: Sequence[int]) -> Episodes:
        """Only these episodes, in this order."""
        width = max(self.response_lengths[i] for i in rows)
        chosen = torch.tensor(rows, device=self.mask.device)
        return Episodes(
            prompts=[self.prompts[i] for i in rows],
            sequences=[self.sequences[i] for i in rows],
            prompt_lengths=[self.prompt_lengths[i] for i in rows],
            response_lengths=[self.response_lengths[i] for i in rows],
            scored_lengths=[self.scored_lengths[i] for i in rows],
            ended=[self.ended[i] for i in rows],
            mask=self.mask[chosen, :width],
            sampler_logprobs=self.sampler_logprobs[chosen, :width],
        )

    @classmethod
    def joined(cls, parts: Sequence[Episodes]) -> Episodes:
        """The episodes of all parts, in order."""
        width = max(part.mask.shape[1] for part in parts)

        def rows(tensors: Sequence[Tensor]) -> Tensor:
            return torch.cat([F.pad(one, (0, width - one.shape[1])) for one in tensors])

        return cls(
            prompts=[one for part in parts for one in part.prompts],
            sequences=[one for part in parts for one in part.sequences],
            prompt_lengths=[one for part in parts for one in part.prompt_lengths],
            response_lengths=[one for part in parts for one in part.response_lengths],
            scored_lengths=[one for part in parts for one in part.scored_lengths],
            ended=[one for part in parts for one in part.ended],
            mask=rows([part.mask for part in parts]),
            sampler_logprobs=rows([part.sampler_logprobs for part in parts]),
        )

    @property
    def scored_sequences(self) -> list[list[int]]:
        """Prompt and response as rewards read them."""
        return [s[:n] for s, n in zip(self.sequences, self.scored_lengths, strict=True)]

    @property
    def responses(self) -> list[tuple[int, ...]]:
        return [tuple(s[n:]) for s, n in zip(self.sequences, self.prompt_lengths, strict=True)]


@dataclass(frozen=True)
class RolloutStats:
    """The models' outputs on a batch of episodes before any update; all (B, R) float32, zero where masked."""

    logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor  # zeros without a value model
    entropies: Tensor

    def kl(self, mask: Tensor, kind: Literal["k1", "k3"]) -> Tensor:
        """The estimate of the KL to the reference at each token (`wukong.objectives.kl_estimate`): (B, R)."""
        return torch.where(mask, kl_estimate(self.logprobs, self.reference_logprobs, kind), 0)


def tokenised_prompts(
    options: OnPolicyOptions, held_out: float, tokenizer: Tokenizer, context: int
) -> tuple[list[TokenisedPrompt], list[TokenisedPrompt]]:
    """Prompts as token ids, for training and held out; one that leaves no room for a response is dropped and counted.

    Args:
        held_out: the fraction of the prompts to hold out.

    Raises:
        UsageError or DataError: they cannot be read, or none is left for training.
    """
    read = load_prompts(options.prompts, options)
    room = context - options.max_new_tokens
    if room < 1:
        raise UsageError(f"--max-new-tokens {options.max_new_tokens} leaves no room in the context of {context}")

    def fitting(side: Sequence[Prompt]) -> Iterator[TokenisedPrompt]:
        for prompt in side:
            try:
                ids = tokenizer.prompt_ids(prompt.messages, max_tokens=room)
                yield TokenisedPrompt(prompt.messages, ids, prompt.answer, prompt.columns)
            except DataError:
                read.summary.dropped[f"longer than {room} tokens"] += 1

    prompts, others = (list(fitting(side)) for side in split_by_prompt(read.records, held_out, options.seed))
    console.print(read.summary.table("prompts read"))
    if not prompts:
        raise UsageError(f"{options.prompts[0]}: no prompt leaves room for {options.max_new_tokens} new tokens")
    return prompts, others


def roll_out(
    policy: LanguageModel,
    prompts: Sequence[TokenisedPrompt],
    tokenizer: Tokenizer,
    options: OnPolicyOptions,
    seed: int,
    compute: Compute,
) -> Episodes:
    """One response to each prompt; a prompt listed n times gets n responses.

    Each process answers its local part. Every response has its own seed, so the responses do not depend on the number
    of processes.
    """
    policy.eval()
    model, mine = inference_copy(policy, compute), local_part(range(len(prompts)))
    sampled = all_gather(
        lambda: generate(
            model,
            [prompts[i].ids for i in mine],
            eos_id=tokenizer.eos_ids,
            max_new_tokens=options.max_new_tokens,
            seeds=[derived_seed(seed, i) for i in mine],
            temperature=options.temperature,
        )
    )
    scored, ended = [], []
    for prompt, one in zip(prompts, sampled, strict=True):
        cut, real = options.cut(one.ids, tokenizer), len(one.ids) - one.finished
        scored.append(len(prompt.ids) + (min(cut, real) if cut is not None else real))
        ended.append(one.finished or cut is not None)
    lengths = torch.tensor([len(one.ids) for one in sampled])  # (B,)
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)  # (B, R)
    sampler_logprobs = torch.zeros(mask.shape)
    sampler_logprobs[mask] = torch.tensor([x for one in sampled for x in one.logprobs])
    return Episodes(
        prompts=prompts,
        sequences=[prompt.ids + one.ids for prompt, one in zip(prompts, sampled, strict=True)],
        prompt_lengths=[len(prompt.ids) for prompt in prompts],
        response_lengths=lengths.tolist(),
        scored_lengths=scored,
        ended=ended,
        mask=mask.to(compute.device),
        sampler_logprobs=sampler_logprobs.to(compute.device),
    )


def padded_rows(episodes: Episodes, rows: Sequence[int], compute: Compute) -> tuple[Tensor, Tensor, Tensor]:
    """ids (b, T), the positions that predict a response token (b, T - 1) bool, and the rows as a tensor (b,)."""
    ids, _ = pad([episodes.sequences[i] for i in rows])
    predicts = response_positions(
        [episodes.prompt_lengths[i] for i in rows], [episodes.response_lengths[i] for i in rows], ids.shape[1]
    )
    return ids.to(compute.device), predicts.to(compute.device), torch.tensor(rows, device=compute.device)


ValueModel = ScalarModel | ValueHead
"""V of the state before a response token: a separate network, or a head on the policy's trunk."""


def read_responses(
    policy: LanguageModel, value_model: ValueModel | None, ids: Tensor, predicts: Tensor, temperature: float,
    compute: Compute, with_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Log-probs, entropies (zeros unless requested) and, for a value head on the policy's trunk, the values, in one
    pass: (N,) float32 each."""
    with compute.autocast():
        states = response_states(policy, ids, predicts)  # (N, C)
        weight, targets = policy.output_weight, ids[:, 1:][predicts]
        found = token_logprobs(states, weight, targets, temperature=temperature, with_entropy=with_entropy)
        return *found, value_model.read(states) if isinstance(value_model, ValueHead) else None


def head_values(policy: LanguageModel, head: ValueHead, ids: Tensor, predicts: Tensor, compute: Compute) -> Tensor:
    """The values of a head on the policy's trunk, of which only the head gets a gradient: (N,) float32."""
    with compute.autocast():
        with torch.no_grad():
            states = response_states(policy, ids, predicts)  # (N, C)
        return head.read(states)


def response_values(model: ScalarModel, ids: Tensor, predicts: Tensor, compute: Compute) -> Tensor:
    """The values of a value model with its own trunk: (N,) float32."""
    with compute.autocast():
        return model.read(response_states(model.trunk, ids, predicts))


ScoreFunction = Callable[[Episodes], Tensor]
"""Episodes -> the reward of each response, (B,) float32, before the rule for responses that never ended."""


@torch.no_grad()
def rollout_stats(
    policy: LanguageModel, reference: LanguageModel, value_model: ValueModel | None, episodes: Episodes,
    parts: Iterable[Sequence[int]], temperature: float, compute: Compute,
) -> RolloutStats:  # fmt: skip
    """Log-probs of policy and reference, values and entropies of the response tokens.

    Args:
        parts: the rows that this process scores, in micro-batches (`Session.micro_batches`).
    """
    policy.eval()
    if value_model is not None:
        value_model.eval()
    found = {name: torch.zeros(episodes.mask.shape, device=compute.device) for name in STATS}
    for rows in parts:
        ids, predicts, index = padded_rows(episodes, rows, compute)
        mask = episodes.mask[index]  # (b, R): its True positions are in the same order as those of `predicts`
        logprobs, entropies, values = read_responses(policy, value_model, ids, predicts, temperature, compute, True)
        expected, _ = response_logprobs(reference, ids, predicts, temperature, compute)
        if isinstance(value_model, ScalarModel):
            values = response_values(value_model, ids, predicts, compute)
        for target, tokens in zip(found.values(), (logprobs, expected, values, entropies), strict=True):
            if tokens is not None:
                part = torch.zeros(mask.shape, device=compute.device)
                part[mask] = tokens
                target[index] = part
    all_reduce(*found.values())  # zero where another process scored
    return RolloutStats(**found)


STATS = ("logprobs", "reference_logprobs", "values", "entropies")


def final_scores(scores: Tensor, episodes: Episodes, options: RolloutOptions) -> Tensor:
    """The scores after the rule for endings, (B,) -> (B,): a response that never ended gets a fixed score (the "EOS
    trick"), or the penalty is subtracted from its reward."""
    ended = torch.tensor(episodes.ended, device=scores.device)
    if options.missing_eos_penalty is not None:
        return torch.where(ended, scores, scores - options.missing_eos_penalty)
    if options.missing_eos_score is not None:
        return torch.where(ended, scores, options.missing_eos_score)
    return scores


def ended_no_better(scores: Tensor, episodes: Episodes, options: RolloutOptions) -> float:
    """The fraction of ended responses whose reward, (B,), is not above the fixed score: not ending would have cost them
    nothing. 0 without a fixed score."""
    if options.missing_eos_score is None or not any(episodes.ended):
        return 0.0
    ended = scores[torch.tensor(episodes.ended, device=scores.device)]
    return float((ended <= options.missing_eos_score).float().mean())
