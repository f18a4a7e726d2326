"""`--trace`: real responses of a run, token by token, in OUT/trace.jsonl (schema: wukong.report.traces).

At each traced iteration it records responses of the batch, and answers to pinned prompts, which the policy gives with
the same random numbers each time. Nothing of this reaches the training: weights and metrics are those of a run without
a trace, bit for bit.

Shape legend: B episodes, P pinned episodes, R response time, N real response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wukong.model.language_model import LanguageModel
from wukong.records import as_messages, prompt_id
from wukong.report.traces import FILE
from wukong.seeds import derived_seed
from wukong.stages.online.algorithm import Advantages, Algorithm, Batch, OnlineOptions
from wukong.stages.online.rewards import require_judged
from wukong.stages.online.rollouts import (
    Episodes,
    RolloutStats,
    ScoreFunction,
    TokenisedPrompt,
    ValueModel,
    final_scores,
    roll_out,
    rollout_stats,
)
from wukong.tokenizer import Tokenizer
from wukong.training.session import Session

TRACED_ITERATIONS = 10
"""Of a run, unless --trace-every says otherwise."""


def traced_steps(options: OnlineOptions) -> set[int]:
    """The 0-based iterations to trace."""
    if not options.trace and not options.trace_prompts:
        return set()
    last = options.iterations - 1
    if options.trace_every:
        return {*range(0, last, options.trace_every), last}
    return {round(i * last / (TRACED_ITERATIONS - 1)) for i in range(TRACED_ITERATIONS)}


def pinned_prompts(
    options: OnlineOptions, prompts: Sequence[TokenisedPrompt], tokenizer: Tokenizer, context: int
) -> list[TokenisedPrompt]:
    """The prompts of --trace-prompts, by default the first one of the run, each as often as prompts of a batch are. One
    that is a prompt of the run has its answer and columns.

    Raises DataError for one that leaves no room for a response, or lacks what a reward needs.
    """
    room = context - options.max_new_tokens
    known = {prompt_id(prompt.messages): prompt for prompt in prompts} if options.trace_prompts else {}
    pinned = []
    for text in options.trace_prompts:
        messages = as_messages(text)
        new = TokenisedPrompt(messages, tokenizer.prompt_ids(messages, max_tokens=room))
        pinned.append(known.get(prompt_id(messages), new))
        require_judged(options, pinned[-1], f"--trace-prompts {text!r}")
    return [prompt for prompt in pinned or prompts[:1] for _ in range(options.samples_per_prompt)]


def own_options(options: OnlineOptions) -> dict[str, Any]:
    """The options that only this algorithm has, and those that `Algorithm` needs besides."""
    own = set(type(options).model_fields) - set(OnlineOptions.model_fields) | {"samples_per_prompt"}
    return options.model_dump(mode="json", include=own)


# ------------------------------------------------------------------------------------------------------------ formulas


def joined(batch: Batch, scores: Tensor, kl: Tensor, mask: Tensor, values: Tensor, baseline: float | None) -> Batch:
    """The batch with the pinned episodes, (P,) and (P, R), behind its own: what they would have been worth in it.

    baseline: of REINFORCE, as the batch was compared with it.
    """
    width = max(batch.kl.shape[1], kl.shape[1])

    def rows(first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([F.pad(one, (0, width - one.shape[1])) for one in (first, second)])

    return Batch(
        torch.cat([batch.scores, scores]), rows(batch.kl, kl), rows(batch.mask, mask), rows(batch.values, values),
        batch.kl_coef, {} if baseline is None else {"baseline": baseline},
    )  # fmt: skip


@dataclass(frozen=True)
class UpdateTerms:
    """What an update did to tokens and what they contribute to the loss after it; all (N,)."""

    ratios: Tensor
    clipped: Tensor | None  # bool
    policy_losses: Tensor
    value_losses: Tensor | None


def update_terms(
    algorithm: Algorithm, kl_coef: float, *, logprobs: Tensor, new_logprobs: Tensor, reference_logprobs: Tensor,
    advantages: Tensor, values: Tensor | None = None, new_values: Tensor | None = None, returns: Tensor | None = None,
) -> UpdateTerms:  # fmt: skip
    """All (N,) float32; values and returns only of an algorithm with a value model."""
    ratios = (new_logprobs - logprobs).exp()
    clipped = algorithm.clipped(ratios)
    losses = algorithm.token_losses(new_logprobs, logprobs, advantages, reference_logprobs, kl_coef)
    of_values = None
    if values is not None and new_values is not None and returns is not None:
        of_values = algorithm.value_losses(new_values, values, returns)
    return UpdateTerms(ratios, clipped, losses, of_values)


# ----------------------------------------------------------------------------------------------------------- recording


@dataclass(frozen=True)
class Traced:
    """Some episodes before the update. `rows` are those of them that are recorded; the tensors are of all, (B, R)."""

    episodes: Episodes
    stats: RolloutStats
    kl: Tensor
    rewards: Tensor  # (B,) of whole responses
    scores: Tensor  # (B,)
    token_rewards: Tensor
    advantages: Tensor
    returns: Tensor | None
    trained: set[int]
    rows: Sequence[int]
    pinned: bool


@dataclass(frozen=True)
class Pending:
    """A traced iteration that waits for its update."""

    batch: Batch
    baseline: float | None
    parts: list[Traced]


@dataclass
class Tracer:
    """Records the iterations `steps`; made by `tracer_of`. Every process takes part, as the models' passes are shared;
    the first one writes.

    Args:
        score: of episodes, without logging anything.
        pinned: the prompts that are answered at each of these iterations.
    """

    session: Session
    options: OnlineOptions
    policy: LanguageModel
    reference: LanguageModel
    value_model: ValueModel | None
    score: ScoreFunction
    tokenizer: Tokenizer
    pinned: Sequence[TokenisedPrompt]
    steps: set[int]

    def __post_init__(self) -> None:
        self.algorithm, self.file = self.options.algorithm(), self.session.lines(FILE)

    def before_update(
        self, episodes: Episodes, rewards: Tensor, stats: RolloutStats, batch: Batch, advantages: Advantages
    ) -> Pending | None:
        """What can be said before the update; None if this iteration is not traced. Arguments: those of the step."""
        if self.session.step not in self.steps:
            return None
        found = advantages.metrics.get("baseline")
        pending = Pending(batch, None if found is None else float(found), [])
        kept = advantages.rows
        trained = set(range(len(episodes.sequences)) if kept is None else kept.tolist())
        recorded = min(self.options.trace, self.options.prompts_per_batch) * self.options.samples_per_prompt
        token_rewards = self.algorithm.rewards(batch)
        of_batch = Traced(
            episodes, stats, batch.kl, rewards, batch.scores, token_rewards, advantages.advantages,
            advantages.returns, trained, range(recorded), pinned=False,
        )  # fmt: skip
        pending.parts.extend([self._answer_pinned(pending), of_batch])
        return pending

    def _answer_pinned(self, pending: Pending) -> Traced:
        options, compute = self.options, self.session.compute
        seed = derived_seed(options.seed, "trace")
        episodes = roll_out(self.policy, self.pinned, self.tokenizer, options, seed, compute)
        rewards, stats = self.score(episodes), self._stats(episodes)
        scores, kl = final_scores(rewards, episodes, options), stats.kl(episodes.mask, "k1")
        B, R = len(pending.batch.scores), kl.shape[1]
        both = joined(pending.batch, scores, kl, episodes.mask, stats.values, pending.baseline)
        advantages = self.algorithm.advantages(both)
        returns = None if advantages.returns is None else advantages.returns[B:, :R]
        return Traced(
            episodes, stats, kl, rewards, scores, self.algorithm.rewards(both)[B:, :R],
            advantages.advantages[B:, :R], returns, set(), range(len(self.pinned)), pinned=True,
        )  # fmt: skip

    def _stats(self, episodes: Episodes) -> RolloutStats:
        parts = self.session.micro_batches(range(len(episodes.sequences)), episodes.lengths_of)
        temperature, compute = self.options.temperature, self.session.compute
        return rollout_stats(self.policy, self.reference, self.value_model, episodes, parts, temperature, compute)

    def after_update(self, pending: Pending) -> None:
        """Records the iteration, with what the models say of the same tokens now."""
        batch = pending.batch
        values = self.algorithm.value_coef is not None
        record = {
            "step": self.session.step + 1,
            "algorithm": self.algorithm.name,
            "kl_coef": batch.kl_coef,
            "temperature": self.options.temperature,
            "baseline": pending.baseline,
            "options": own_options(self.options),
            "batch": {
                "scores": numbers(batch.scores),
                "kl": rows_of(batch.kl, batch.mask),
                "values": rows_of(batch.values, batch.mask) if values else None,
            },
            "responses": [one for part in pending.parts if part.rows for one in self._responses(part, batch.kl_coef)],
        }
        self.file.write(record)

    def _responses(self, part: Traced, kl_coef: float) -> list[dict[str, Any]]:
        chosen = part.episodes.select(part.rows)
        after = self._stats(chosen)
        rows, mask = torch.tensor(part.rows, device=chosen.mask.device), chosen.mask
        with_values = self.algorithm.value_coef is not None

        def tokens(tensor: Tensor | None) -> Tensor:  # (B, R) -> (N,) of the chosen rows
            assert tensor is not None
            return tensor[rows, : mask.shape[1]][mask]

        before = {name: tokens(getattr(part.stats, name)) for name in ("logprobs", "reference_logprobs", "entropies")}
        before |= {"kl": tokens(part.kl), "rewards": tokens(part.token_rewards), "advantages": tokens(part.advantages)}
        of_values = {}
        if with_values:
            of_values = {"values": tokens(part.stats.values), "returns": tokens(part.returns)}
            of_values["new_values"] = after.values[mask]
        new = after.logprobs[mask]
        terms = update_terms(
            self.algorithm, kl_coef, logprobs=before["logprobs"], new_logprobs=new,
            reference_logprobs=before["reference_logprobs"], advantages=before["advantages"], **of_values,
        )  # fmt: skip
        columns = before | of_values | {"new_logprobs": new} | {k: v for k, v in vars(terms).items() if v is not None}
        split = {name: column.split(chosen.response_lengths) for name, column in columns.items()}
        return [
            self._described(part, row) | {name: numbers(column[place]) for name, column in split.items()}
            for place, row in enumerate(part.rows)
        ]

    def _described(self, part: Traced, row: int) -> dict[str, Any]:
        episodes, ids = part.episodes, part.episodes.responses[row]
        messages = [message.model_dump() for message in episodes.prompts[row].messages]
        return {
            "messages": messages,
            "text": self.tokenizer.decode(ids),
            "row": row,
            "pinned": part.pinned,
            "trained": row in part.trained,
            "ended": episodes.ended[row],
            "scored_tokens": episodes.scored_lengths[row] - episodes.prompt_lengths[row],
            "reward": _number(float(part.rewards[row])),
            "score": _number(float(part.scores[row])),
            "tokens": self.tokenizer.token_texts(ids),
        }


def tracer_of(
    session: Session, options: OnlineOptions, policy: LanguageModel, reference: LanguageModel,
    value_model: ValueModel | None, score: ScoreFunction, tokenizer: Tokenizer, prompts: Sequence[TokenisedPrompt],
) -> Tracer | None:  # fmt: skip
    """What records this run; None if nothing is to be traced. prompts: of the run. Errors: see `pinned_prompts`."""
    steps = traced_steps(options)
    if not steps:
        return None
    pinned = pinned_prompts(options, prompts, tokenizer, policy.config.n_positions)
    return Tracer(session, options, policy, reference, value_model, score, tokenizer, pinned, steps)


def _number(value: float) -> float:
    return float(f"{value:.9g}")


def numbers(tensor: Tensor) -> list[Any]:
    """(N,) -> with nine significant digits, from which a float32 is read back as it was; bools as they are."""
    values: list[Any] = tensor.tolist()
    return values if tensor.dtype == torch.bool else [_number(value) for value in values]


def rows_of(tensor: Tensor, mask: Tensor) -> list[list[float]]:
    """(B, R) -> the real tokens of each response."""
    return [numbers(row[real]) for row, real in zip(tensor.cpu(), mask.cpu(), strict=True)]
