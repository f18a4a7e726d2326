"""Small pieces that several stages need."""

from __future__ import annotations

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
from wukong.intervals import FEWEST_PROMPTS, exact_interval, shown
from wukong.model.gpt2 import GPT2
from wukong.model.heads import ScalarModel
from wukong.objectives import token_logprobs
from wukong.seeds import permutation
from wukong.training.compute import Compute
from wukong.training.parallel import lockstep


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
    """The model for reading only: without gradients, and its layers' matrices in the compute precision. Autocast would
    cast them there at each pass, so the numbers are the same and the memory is half (embedding and head stay
    float32)."""
    model.requires_grad_(False).eval().to(compute.device)
    for trunk in model.modules():
        if isinstance(trunk, GPT2):
            for layer in trunk.modules():
                if isinstance(layer, nn.Linear):
                    layer.to(compute.dtype)
    return model


MEASURED_ANSWERS = 32
"""Answers at which the distance to the starting model is measured."""


@torch.no_grad()
def kl_to_start(model: GPT2, start: GPT2, answers: Sequence[tuple[list[int], Sequence[bool]]]) -> float:
    """KL(model || start) in nats a token, exact at each response token of the first few answers (token ids, and which
    of them are a response), given what the answer says before it."""
    total, count = 0.0, 0
    for ids, is_response in answers[:MEASURED_ANSWERS]:
        device, places = model.wte.weight.device, torch.tensor(is_response[1:])
        tokens = torch.tensor([ids[:-1]], device=device)
        for some in zip(*(one.eval()(tokens)[0][places.to(device)].split(256) for one in (model, start)), strict=True):
            ours, theirs = (
                one.logits(states).log_softmax(-1) for one, states in zip((model, start), some, strict=True)
            )  # (n, V) each
            total += float((ours.exp() * (ours - theirs)).sum())
            count += len(ours)
    return total / max(1, count)


def say_how_far(stage: str, kl: float, remedy: str, next_command: str) -> None:
    """The last words of a stage whose result answers: its distance to the model it began with, in nats a token."""
    hardly = f": it hardly moved; {remedy}" if kl < HARDLY_MOVED else ""
    say(f"{stage}: the model moved {kl:.3g} nats a token (KL) from where it began{hardly}")
    say(f"next: {next_command}")


def evaluation_of(stage: str, start: str, out: Path) -> str:
    """The command that shows what a policy is worth beside the model it began as."""
    models = f"start={start} {stage}={out}"
    return f"wukong evaluate --models {models} --reference start --prompts UNSEEN_PROMPTS --out {out}-evaluation"


HARDLY_MOVED = 0.005
"""Nats a token: over a hundred tokens an answer is then as likely as before, but for a factor of less than two."""


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
    for part in lockstep(processes.local_part(parts), model):
        ids = torch.from_numpy(np.stack([shards.window(s, context + 1) for s in part]))
        total += language_model_loss(model, ids.to(compute.device), compute).item()
        count += len(ids) * context
    model.train(was_training)
    loss, tokens = processes.all_reduce_sum(total, count)
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


def chance_problem(accuracy: float, interval: Sequence[float], pairs: int, prompts: int | None = None) -> str | None:
    """Why a reward model with this accuracy on held-out pairs cannot be told from a coin; None when it can.

    interval: its 95 %, over prompts. Results of earlier versions have a bootstrap's, which is a point for a handful of
    pairs that are all right, and do not say of how many prompts they are: the exact interval of so many independent
    pairs has to lie above one half too.
    """
    low, high = min(interval[0], exact_interval(accuracy * pairs, pairs)[0]), interval[1]
    if shown([low, high], pairs if prompts is None else prompts) > 0:
        return None
    few = f" of {prompts:,} prompts" if prompts is not None and prompts < FEWEST_PROMPTS else ""
    return (
        f"its accuracy on {pairs:,} held-out pairs{few} is {100 * accuracy:.0f} % [{100 * low:.0f}, {100 * high:.0f}], "
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
    measured = results["valid_accuracy"], results["valid_accuracy_interval"], results["valid_pairs"]
    problem = chance_problem(*measured, prompts=results.get("valid_prompts"))
    if problem and not insist:
        raise UsageError(
            f"{reward_model}: {problem}; label more, see wukong reward-report {reward_model}, or give --insist"
        )
    if problem:
        say(f"{reward_model}: {problem}; going on all the same")
