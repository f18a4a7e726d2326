"""Prompts + model -> responses: the sampler with its KV cache.

Each sequence draws from random numbers of its own (its seed), by the inverse of the cumulative distribution: so a
response depends on the prompt, the model and its seed, and not on which others share its batch.

Shape legend: B batch, T time, C channels, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from wukong.errors import UsageError
from wukong.model.gpt2 import GPT2, KVCache
from wukong.training.compute import Compute

COMPACT_BELOW = 0.75
"""Finished rows leave the batch once fewer than this part of it is still being written."""


@dataclass
class Sampled:
    """One response as tokens. `ids` ends with the end token when `finished`; `logprobs` are the sampler's own."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False


def uniforms(seed: int, n: int) -> np.ndarray:
    """The n random numbers in [0, 1) that a sequence with this seed draws its tokens with; float32."""
    return np.random.Generator(np.random.Philox(seed)).random(n, dtype=np.float32)


def truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Sets to -inf what top-k and top-p (Holtzman et al. 2019) exclude. (B, V) -> (B, V); 0 and 1 mean off."""
    if top_k and top_k < logits.shape[-1]:
        kth = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= top_p  # the token that crosses top_p stays
        outside[:, 0] = False  # so does the likeliest, whatever top_p is
        logits = logits.masked_fill(outside.scatter(-1, order, outside), -math.inf)
    return logits


def draw(probabilities: Tensor, u: Tensor, block: int = 64) -> Tensor:
    """Inverse-CDF sampling in two levels: first a block of tokens, then a token in it. Exact, and far cheaper than a
    cumulative sum over 50,257 entries.

    probabilities: (B, V), not necessarily normalised; u: (B,) in [0, 1). Returns (B,) int64.
    """
    B, V = probabilities.shape
    padded = torch.nn.functional.pad(probabilities, (0, -V % block)).view(B, -1, block)  # (B, V/block, block)
    blocks = padded.sum(-1)  # (B, V/block)
    sums = blocks.cumsum(-1)
    wanted = u.unsqueeze(1) * sums[:, -1:]  # (B, 1)
    chosen = torch.searchsorted(sums, wanted, right=True).clamp(max=sums.shape[1] - 1)  # (B, 1)
    # Rounding (a GPU adds in another order) can step past the last block, or token, that has any probability:
    # then that last one is taken.
    chosen = _last_positive_up_to(blocks, chosen)
    before = torch.where(chosen > 0, sums.gather(1, (chosen - 1).clamp(min=0)), 0)
    inside = padded[torch.arange(B, device=u.device), chosen.squeeze(1)]  # (B, block)
    rest = (wanted - before).clamp(min=0)
    place = torch.searchsorted(inside.cumsum(-1), rest, right=True).clamp(max=block - 1)  # (B, 1)
    return (chosen * block + _last_positive_up_to(inside, place)).squeeze(1)


def _last_positive_up_to(weights: Tensor, index: Tensor) -> Tensor:
    """The last position <= index with a positive weight; 0 when there is none. (B, N), (B, 1) -> (B, 1)."""
    positions = torch.arange(weights.shape[1], device=weights.device)
    return torch.where(weights > 0, positions, 0).cummax(-1).values.gather(1, index)


def inference_copy(model: GPT2, compute: Compute) -> GPT2:
    """The model with weights in the compute precision, for decoding; the model itself when that is float32."""
    if compute.dtype == torch.float32:
        return model
    return copy.deepcopy(model).to(compute.dtype).eval()


@torch.inference_mode()
def generate(
    model: GPT2,
    prompts: Sequence[Sequence[int]],
    *,
    eos_id: int,
    max_new_tokens: int,
    seeds: Sequence[int],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    batch_size: int = 128,
    on_finish: Callable[[int], None] | None = None,
) -> list[Sampled]:
    """Samples one response to each prompt.

    Args:
        model: in eval mode, in the precision it is to decode in.
        prompts: token ids; prompt + max_new_tokens must fit the model's context.
        eos_id: the token that ends a response.
        max_new_tokens: responses are cut there.
        seeds: one per prompt.
        temperature: the logits are divided by it; 0 takes the likeliest token (greedy).
        top_k, top_p: truncation; 0 and 1 mean none.
        batch_size: sequences decoded together. Longest prompts go first, neighbours have like lengths.
        on_finish: called with the number of responses finished since the last call.

    Returns:
        One `Sampled` per prompt, in order. Its log-probs are of the untruncated distribution at `temperature`.

    Raises:
        UsageError: a prompt is empty or does not fit.
    """
    for prompt in prompts:
        _require_room(model, prompt, max_new_tokens)
    results = [Sampled() for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        noise = np.stack([uniforms(seeds[i], max_new_tokens) for i in batch])
        steps = _decode(model, [prompts[i] for i in batch], noise, eos_id, temperature, top_k, top_p)
        for rows, tokens, logprobs in steps:
            finished = 0
            for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
                sampled = results[batch[row]]
                sampled.ids.append(token)
                sampled.logprobs.append(logprob)
                sampled.finished = token == eos_id
                finished += sampled.finished
            if on_finish and finished:
                on_finish(finished)
        if on_finish:
            on_finish(sum(not results[i].finished for i in batch))
    return results


@torch.inference_mode()
def stream(
    model: GPT2,
    prompt: Sequence[int],
    *,
    eos_id: int,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Iterator[int]:
    """The tokens of one response as they are drawn, for whoever reads along; the same ones as `generate` gives.

    Arguments and errors as for `generate`; the caller may stop at any token. The last one is `eos_id` when the model
    ended its response.
    """
    _require_room(model, prompt, max_new_tokens)
    noise = uniforms(seed, max_new_tokens)[None]  # (1, max_new_tokens)
    for _, tokens, _ in _decode(model, [prompt], noise, eos_id, temperature, top_k, top_p):
        yield tokens[0]


def _require_room(model: GPT2, prompt: Sequence[int], max_new_tokens: int) -> None:
    if not prompt:
        raise UsageError("an empty prompt cannot be continued")
    if len(prompt) + max_new_tokens > model.config.n_positions:
        raise UsageError(
            f"a prompt of {len(prompt)} tokens with --max-new-tokens {max_new_tokens} does not fit the model's "
            f"context of {model.config.n_positions}; shorten the prompt or the response"
        )


def _decode(
    model: GPT2,
    prompts: Sequence[Sequence[int]],
    noise: np.ndarray,
    eos_id: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> Iterator[tuple[list[int], list[int], list[float]]]:
    """Decodes one batch; yields after each step the rows still being written with their new tokens and log-probs.

    noise: (B, max_new_tokens) float32.
    """
    device = model.wte.weight.device
    lengths = torch.tensor([len(p) for p in prompts], device=device)  # (B,)
    longest = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)  # (B, T) padded on the right
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    cache = KVCache.empty(model.config, len(prompts), longest + noise.shape[1], like=model.wte.weight)
    hidden = model(ids.to(device), cache=cache)  # (B, T, C)
    cache.advance(lengths, longest)
    last = hidden[torch.arange(len(prompts), device=device), lengths - 1]  # (B, C)
    rows = torch.arange(len(prompts), device=device)  # which prompt each row of the cache belongs to
    u = torch.from_numpy(noise).to(device)  # (B, max_new_tokens)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    for step in range(noise.shape[1]):
        logits = model.logits(last).float()  # (B, V)
        if temperature == 0:
            logprobs = logits.log_softmax(-1)
            tokens = logits.argmax(-1)
        else:
            logprobs = (logits / temperature).log_softmax(-1)
            kept = truncate(logprobs, top_k, top_p) if top_k or top_p < 1 else logprobs
            tokens = draw(kept.exp(), u[rows, step])
        chosen = logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1)
        yield rows[alive].tolist(), tokens[alive].tolist(), chosen[alive].tolist()
        alive = alive & (tokens != eos_id)
        living = int(alive.sum())
        if living == 0 or step + 1 == noise.shape[1]:
            return
        if living < COMPACT_BELOW * len(alive):
            kept_rows = alive.nonzero().squeeze(1)
            cache, rows, tokens = cache.select(kept_rows), rows[kept_rows], tokens[kept_rows]
            alive = alive[kept_rows]
        last = model(tokens.unsqueeze(1), cache=cache).squeeze(1)
        cache.advance()
