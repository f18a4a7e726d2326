"""Log-probabilities, losses and scores of token sequences, shared by stages, API, studio and studies.

Shape legend: B rows, T time, N response tokens, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wukong import processes
from wukong.data.batches import by_length, pad
from wukong.data.shards import TokenShards
from wukong.model.heads import ScalarModel
from wukong.model.language_model import LanguageModel
from wukong.model.logprobs import token_logprobs
from wukong.training.compute import Compute
from wukong.training.parallel import lockstep

Module = TypeVar("Module", bound=nn.Module)


def frozen(model: Module, compute: Compute) -> Module:
    """The model without gradients, with its blocks' matrices in the compute precision. Autocast would cast them on
    every pass anyway: same numbers, half the memory (embedding, output layer and head stay float32)."""
    model.requires_grad_(False).eval().to(compute.device)
    for trunk in model.modules():
        if isinstance(trunk, LanguageModel):
            for layer in trunk.blocks.modules():
                if isinstance(layer, nn.Linear):
                    layer.to(compute.dtype)
    return model


def language_model_loss(model: LanguageModel, ids: Tensor, compute: Compute) -> Tensor:
    """Summed negative log-likelihood (nats) of tokens 1..T given the preceding ones. ids: (B, T + 1) int64."""
    with compute.autocast():
        hidden = model(ids[:, :-1])  # (B, T, C)
        logprobs, _ = token_logprobs(hidden.flatten(0, 1), model.output_weight, ids[:, 1:].flatten())
    return -logprobs.sum()


@torch.no_grad()
def validation_loss(
    model: LanguageModel, shards: TokenShards, context: int, max_tokens: int, compute: Compute
) -> float:
    """Mean negative log-likelihood (nats per token) over the shards' first max_tokens, in windows of `context`, 16
    windows together if they are no longer than 1,024 tokens."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    length = min(len(shards) - 1, max_tokens)
    starts = list(range(0, max(1, length - context + 1), context))
    context = min(context, length)
    rows = max(1, min(16, 16 * 1024 // context))
    parts = [starts[at : at + rows] for at in range(0, len(starts), rows)]
    for part in lockstep(processes.local_part(parts), model):
        ids = torch.from_numpy(np.stack([shards.window(s, context + 1) for s in part]))
        total += language_model_loss(model, ids.to(compute.device), compute).item()
        count += len(ids) * context
    model.train(was_training)
    loss, tokens = processes.all_reduce_sum(total, count)
    return loss / tokens


def response_positions(prompt_lengths: Sequence[int], response_lengths: Sequence[int], width: int) -> Tensor:
    """The positions that predict a response token, in B sequences prompt + response padded to `width`: (B, T - 1) bool.

    Position t predicts token t + 1, so the first is the prompt's last token.
    """
    steps = torch.arange(width - 1)
    first = torch.tensor(prompt_lengths).unsqueeze(1) - 1
    return (steps >= first) & (steps < first + torch.tensor(response_lengths).unsqueeze(1))


def response_states(trunk: LanguageModel, ids: Tensor, predicts: Tensor) -> Tensor:
    """The hidden states before each response token, row by row: (N, C). Arguments as for `response_logprobs`."""
    steps = torch.arange(1, ids.shape[1], device=ids.device)
    # (B,) Tokens after the last of these positions are not read; in a row without any, one token is.
    lengths = F.pad(predicts * steps, (1, 0), value=1).amax(1)
    result: Tensor = trunk(ids, lengths=lengths)[:, :-1][predicts]
    return result


def response_logprobs(
    model: LanguageModel,
    ids: Tensor,
    predicts: Tensor,
    temperature: float,
    compute: Compute,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of the response tokens, (N,) each, row by row: rollout statistics, updates and
    evaluations share this code path.

    ids: (B, T) int64; predicts: (B, T - 1) bool, of `response_positions`.
    """
    with compute.autocast():
        states = response_states(model, ids, predicts)  # (N, C)
        return token_logprobs(
            states, model.output_weight, ids[:, 1:][predicts], temperature=temperature, with_entropy=with_entropy
        )


@torch.inference_mode()
def scores_of(model: ScalarModel, sequences: Sequence[list[int]], compute: Compute, max_tokens: int) -> list[float]:
    """The reward of each token sequence (as `wukong.data.answers.answers_ids` makes them), in order."""
    model.eval().to(compute.device)
    scores = [0.0] * len(sequences)
    for rows in by_length([len(s) for s in sequences], max_tokens):
        ids, lengths = pad([sequences[i] for i in rows])
        with compute.autocast():
            values = model(ids.to(compute.device), lengths.to(compute.device))
        for i, value in zip(rows, values.tolist(), strict=True):
            scores[i] = value
    return scores


@torch.inference_mode()
def prefix_scores(model: ScalarModel, ids: list[int], first: int, compute: Compute, max_tokens: int) -> list[float]:
    """The rewards of ids[:first], ids[:first + 1], ..., ids: what a response would score if it ended there."""
    if model.pooling == "last":  # a position's score does not depend on what follows
        model.eval().to(compute.device)
        with compute.autocast():
            scores: list[float] = model.token_scores(torch.tensor([ids], device=compute.device))[
                0, first - 1 :
            ].tolist()
        return scores
    return scores_of(model, [ids[:n] for n in range(first, len(ids) + 1)], compute, max_tokens)


MEASURED_ANSWERS = 32
"""Number of answers used to measure the distance to the starting model."""


@torch.no_grad()
def kl_to_start(
    model: LanguageModel, start: LanguageModel, answers: Sequence[tuple[list[int], Sequence[bool]]]
) -> float:
    """KL(model || start) in nats per token, exact at each response token of the first `MEASURED_ANSWERS` answers (token
    ids, and which of them are the response), given the preceding tokens."""
    total, count = 0.0, 0
    for ids, is_response in answers[:MEASURED_ANSWERS]:
        device, places = model.device, torch.tensor(is_response[1:])
        tokens = torch.tensor([ids[:-1]], device=device)
        for some in zip(*(one.eval()(tokens)[0][places.to(device)].split(256) for one in (model, start)), strict=True):
            ours, theirs = (
                one.logits(states).log_softmax(-1) for one, states in zip((model, start), some, strict=True)
            )  # (n, V) each
            total += float((ours.exp() * (ours - theirs)).sum())
            count += len(ours)
    return total / max(1, count)
