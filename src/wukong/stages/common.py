"""Small pieces that several stages need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wukong import processes
from wukong.console import say
from wukong.data.batches import by_length, pad
from wukong.data.shards import TokenShards
from wukong.errors import UsageError
from wukong.files import read_json
from wukong.model.gpt2 import GPT2
from wukong.model.heads import ScalarModel
from wukong.objectives import token_logprobs
from wukong.seeds import derived_seed, permutation
from wukong.training.compute import Compute
from wukong.training.parallel import in_step


def epoch_batch(n: int, step: int, size: int, seed: int) -> np.ndarray:
    """The indices (into n records) of a step's batch: epochs follow each other without a gap, each shuffled anew.

    A function of the step alone, so that a resumed run sees the same data.
    """
    first, last = step * size, (step + 1) * size
    epochs = range(first // n, (last - 1) // n + 1)
    order = np.concatenate([permutation(n, seed, "epoch", epoch) for epoch in epochs])
    start = first - epochs[0] * n
    return order[start : start + size]


def language_model_loss(model: GPT2, ids: Tensor, compute: Compute) -> Tensor:
    """Summed negative log-likelihood (nats) of tokens 1..T given those before. ids: (B, T + 1) int64."""
    with compute.autocast():
        hidden = model(ids[:, :-1])  # (B, T, C)
        logprobs, _ = token_logprobs(hidden.flatten(0, 1), model.wte.weight, ids[:, 1:].flatten())
    return -logprobs.sum()


def response_positions(prompt_lengths: Sequence[int], response_lengths: Sequence[int], width: int) -> Tensor:
    """Which positions predict a response token, of B sequences prompt + response padded to `width`: (B, T - 1) bool.

    Position t predicts token t + 1, so the first one is the prompt's last token.
    """
    steps = torch.arange(width - 1)
    first = torch.tensor(prompt_lengths).unsqueeze(1) - 1
    return (steps >= first) & (steps < first + torch.tensor(response_lengths).unsqueeze(1))


def response_states(trunk: GPT2, ids: Tensor, predicts: Tensor) -> Tensor:
    """The hidden states before each response token, row by row: (N, C). Arguments as for `response_logprobs`."""
    steps = torch.arange(1, ids.shape[1], device=ids.device)
    # (B,) What stands behind the last of these positions is not read; of a row without any, one token is.
    lengths = F.pad(predicts * steps, (1, 0), value=1).amax(1)
    return trunk(ids, lengths=lengths)[:, :-1][predicts]


def response_logprobs(
    model: GPT2, ids: Tensor, predicts: Tensor, temperature: float, compute: Compute, with_entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of the response tokens, (N,) each, row by row: statistics of a rollout, its update and
    an evaluation share this path.

    ids: (B, T) int64; predicts: (B, T - 1) bool, of `response_positions`.
    """
    with compute.autocast():
        states = response_states(model, ids, predicts)  # (N, C)
        return token_logprobs(
            states, model.wte.weight, ids[:, 1:][predicts], temperature=temperature, with_entropy=with_entropy
        )


Module = TypeVar("Module", bound=nn.Module)


def frozen(model: Module, compute: Compute) -> Module:
    """The model for reading only: without gradients, and its matrices in the compute precision. Autocast would cast
    them there at each pass, so the numbers are the same and the memory is half (the embedding stays float32)."""
    model.requires_grad_(False).eval().to(compute.device)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.to(compute.dtype)
    return model


@torch.no_grad()
def validation_loss(
    model: GPT2, shards: TokenShards, context: int, max_tokens: int, compute: Compute, rows: int = 16
) -> float:
    """Mean negative log-likelihood (nats a token) over the shards' first max_tokens, in windows of `context`."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    length = min(len(shards) - 1, max_tokens)
    starts = list(range(0, max(1, length - context + 1), context))
    context = min(context, length)
    parts = [starts[at : at + rows] for at in range(0, len(starts), rows)]
    for part in in_step(processes.share(parts), model):
        ids = torch.from_numpy(np.stack([shards.window(s, context + 1) for s in part]))
        total += language_model_loss(model, ids.to(compute.device), compute).item()
        count += len(ids) * context
    model.train(was_training)
    loss, tokens = processes.sums(total, count)
    return loss / tokens


def distinct_n(responses: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams as a part of all n-grams of the responses (Li et al. 2016); 0 when there is none."""
    grams = [tuple(r[i : i + n]) for r in responses for i in range(len(r) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


@torch.inference_mode()
def scores_of(model: ScalarModel, sequences: Sequence[list[int]], compute: Compute, max_tokens: int) -> list[float]:
    """The reward of each token sequence (as `wukong.stages.pairs.answers_ids` makes them), in order."""
    model.eval().to(compute.device)
    scores = [0.0] * len(sequences)
    for rows in by_length([len(s) for s in sequences], max_tokens):
        ids, lengths = pad([sequences[i] for i in rows])
        with compute.autocast():
            values = model(ids.to(compute.device), lengths.to(compute.device))
        for i, value in zip(rows, values.tolist(), strict=True):
            scores[i] = value
    return scores


def bootstrap_interval(sums: np.ndarray, counts: np.ndarray, seed: int, draws: int = 2000) -> list[float]:
    """The 95 % percentile interval of sum(sums)/sum(counts), resampling prompts, whose members hang together.

    sums, counts: (prompts,). Efron 1979.
    """
    generator = np.random.Generator(np.random.Philox(derived_seed(seed, "bootstrap")))
    picks = generator.integers(len(counts), size=(draws, len(counts)))
    totals = counts[picks].sum(1)
    ratios = sums[picks].sum(1)[totals > 0] / totals[totals > 0]
    return [float(x) for x in np.percentile(ratios, [2.5, 97.5])]


def wilson_interval(hits: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion of n independent outcomes (Wilson 1927): unlike a bootstrap it does not shrink
    to a point when a few outcomes are all alike."""
    z = 1.959964
    centre, spread = (hits + z * z / 2) / (n + z * z), z * math.sqrt(hits * (n - hits) / n + z * z / 4) / (n + z * z)
    return max(0.0, centre - spread), min(1.0, centre + spread)


def chance_problem(accuracy: float, interval: Sequence[float], pairs: int) -> str | None:
    """Why a reward model with this accuracy on held-out pairs cannot be told from a coin; None when it can.

    interval: the bootstrap's 95 %, over prompts. Of a handful of pairs that are all right it is a point, so Wilson's
    interval has to lie above one half too.
    """
    low, high = min(interval[0], wilson_interval(accuracy * pairs, pairs)[0]), interval[1]
    if low > 0.5:
        return None
    return (
        f"its accuracy on {pairs:,} held-out pairs is {100 * accuracy:.0f} % [{100 * low:.0f}, {100 * high:.0f}], "
        "which cannot be told from chance"
    )


def require_better_than_chance(reward_model: str | Path, insist: bool = False) -> None:
    """Refuses to train against a reward model that cannot be told from a coin: one line in a stage that uses one.

    The numbers are those that `wukong reward` wrote into provenance.json. A model without them (from another tool, or
    trained with nothing held out) is let pass with a line that says so.

    Args:
        reward_model: its directory or hub id.
        insist: say it, but go on.

    Raises:
        UsageError: the lower end of the interval of its accuracy is at or below 50 %.
    """
    path = Path(reward_model) / "provenance.json"
    results = read_json(path).get("results", {}) if path.is_file() else {}
    if not results.get("valid_pairs"):
        say(f"{reward_model}: nobody measured its accuracy on held-out pairs; wukong reward-report does")
        return
    problem = chance_problem(results["valid_accuracy"], results["valid_accuracy_interval"], results["valid_pairs"])
    if problem and not insist:
        raise UsageError(
            f"{reward_model}: {problem}; label more, see wukong reward-report {reward_model}, or give --insist"
        )
    if problem:
        say(f"{reward_model}: {problem}; going on all the same")
