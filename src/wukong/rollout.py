"""Prompts + model -> responses: the sampler with its KV cache.

There is one sampler, `Decoder`: a batch whose sequences come and go between steps. `generate` gives it a list, `stream`
one prompt, and the server (`wukong.serve`) requests as they arrive.

Each sequence is sampled by inverse CDF from its own random numbers (its seed), so a response depends on the prompt, the
model and its seed, but not on the rest of its batch.

Shape legend: B batch, T time, C channels, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from wukong.data.batches import by_length, pad
from wukong.errors import UsageError
from wukong.model.attention import KVCache
from wukong.model.cpu import kernels
from wukong.model.decoding import decoding_copy, decoding_path
from wukong.model.language_model import LanguageModel
from wukong.model.logprobs import centred
from wukong.model.lora import merged
from wukong.training.compute import Compute
from wukong.training.parallel import full_module, full_parameter, is_sharded

COMPACT_BELOW = 0.75
"""Finished rows are removed once less than this fraction of the batch is still active."""

REFILL_AT = 1 / 16
"""Waiting prompts enter once this fraction of the batch is free: several at once cost less than one at a time."""

PREFILL_TOKENS = 4096
"""Prompts are read in chunks of about this many tokens, similar lengths together."""


@dataclass
class Sampled:
    """One response as tokens. `ids` ends with the end token when `finished`; `logprobs` are the sampler's own."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False


@dataclass(eq=False)
class Continuation:
    """A prompt to continue, the sampling settings, and the response so far.

    Attributes:
        prompt: token ids; prompt + max_new_tokens must fit the model's context.
        max_new_tokens: the maximum length of the response.
        seed: of the random numbers that sample its tokens.
        temperature: divides the logits; 0 takes the most likely token (greedy).
        top_k, top_p: truncation; 0 and 1 mean none.
        likeliest: record with each token the model's own log-probs (at temperature 1), of the sampled token and of
            this many of the most likely; None for neither.
        written: the response.
        notes: for each token of the response, the sampled (id, log-prob) followed by the most likely, if requested.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    likeliest: int | None = None
    written: Sampled = field(default_factory=Sampled)
    notes: list[list[tuple[int, float]]] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.written.finished or len(self.written.ids) >= self.max_new_tokens

    @property
    def truncates(self) -> bool:
        return bool(self.top_k) or self.top_p < 1

    @cached_property
    def noise(self) -> np.ndarray:
        return uniforms(self.seed, self.max_new_tokens)


def uniforms(seed: int, n: int) -> np.ndarray:
    """The n random numbers in [0, 1), float32, that sample the tokens of a sequence with this seed."""
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
        outside[:, 0] = False  # so does the most likely, for any top_p
        logits = logits.masked_fill(outside.scatter(-1, order, outside), -math.inf)
    return logits


def draw(probabilities: Tensor, u: Tensor, block: int = 64) -> Tensor:
    """Inverse-CDF sampling in two levels: first a block of tokens, then a token in it. Exact, and far cheaper than a
    cumulative sum over 50,257 entries.

    probabilities: (B, V), not necessarily normalised; u: (B,) in [0, 1). Returns (B,) int64.
    """
    V = probabilities.shape[1]
    whole = V - V % block
    blocks = probabilities[:, :whole].unflatten(1, (-1, block)).sum(-1)  # (B, V // block)
    if whole < V:
        blocks = torch.cat([blocks, probabilities[:, whole:].sum(-1, keepdim=True)], dim=1)
    sums = blocks.cumsum(-1)
    wanted = u.unsqueeze(1) * sums[:, -1:]  # (B, 1)
    chosen = torch.searchsorted(sums, wanted, right=True).clamp(max=sums.shape[1] - 1)  # (B, 1)
    # Rounding (a GPU adds in a different order) can step past the last block or token with any probability: take that
    # last one.
    chosen = _last_positive_up_to(blocks, chosen)
    before = torch.where(chosen > 0, sums.gather(1, (chosen - 1).clamp(min=0)), 0)
    tokens = chosen * block + torch.arange(block, device=u.device)  # (B, block)
    inside = torch.where(tokens < V, probabilities.gather(1, tokens.clamp(max=V - 1)), 0)
    rest = (wanted - before).clamp(min=0)
    place = torch.searchsorted(inside.cumsum(-1), rest, right=True).clamp(max=block - 1)  # (B, 1)
    return (chosen * block + _last_positive_up_to(inside, place)).squeeze(1)


def _last_positive_up_to(weights: Tensor, index: Tensor) -> Tensor:
    """The last position <= index with a positive weight; 0 if there is none. (B, N), (B, 1) -> (B, 1)."""
    positions = torch.arange(weights.shape[1], device=weights.device)
    return torch.where(weights > 0, positions, 0).cummax(-1).values.gather(1, index)


def inference_copy(model: LanguageModel, compute: Compute) -> LanguageModel:
    """The model in the form that decodes fastest on this machine in the compute precision. It must be in eval mode.

    The copy is stale once the model is trained further: make another after an update. Every process gets a full copy
    of a sharded model. Adapters are added into the copy's weights.
    """
    dtype, sharded = compute.dtype, is_sharded(model)
    path = decoding_path(model.config, model.device, dtype)
    if path != "PyTorch" or dtype == torch.float32:
        model = merged(full_module(model, compute.device).eval() if sharded else model)
        return decoding_copy(model, path, dtype)
    output = centred(full_parameter(model, model.output_name), dtype)
    narrow = merged(full_module(model, compute.device, dtype) if sharded else model, dtype)
    if narrow is model:  # in this precision already: the original keeps its own output
        narrow = copy.copy(model)
    narrow.output = output.to(compute.device)
    return narrow.eval()


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    eos_id: int | Sequence[int],
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
        eos_id: the token, or tokens, that end a response.
        max_new_tokens: the maximum length of a response.
        seeds: one per prompt.
        temperature: divides the logits; 0 takes the most likely token (greedy).
        top_k, top_p: truncation; 0 and 1 mean none.
        batch_size: sequences decoded together. As some end, others replace them, longest prompts first; equal prompts
            that enter together are read once.
        on_finish: called with the number of responses finished since the last call.

    Returns:
        One `Sampled` per prompt, in order. Its log-probs are of the untruncated distribution at `temperature`.

    Raises:
        UsageError: a prompt is empty or does not fit.
    """
    for prompt in prompts:
        require_room(model, prompt, max_new_tokens)
    every = [
        Continuation(prompt, max_new_tokens, seed, temperature, top_k, top_p)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    waiting = deque(sorted(every, key=lambda one: (-len(one.prompt), one.prompt)))
    decoder = Decoder(model, eos_id)
    while waiting or len(decoder):
        free = batch_size - len(decoder)
        if free >= max(1, REFILL_AT * batch_size):
            decoder.admit([waiting.popleft() for _ in range(min(free, len(waiting)))])
        over = sum(one.over for one in decoder.step())
        if on_finish and over:
            on_finish(over)
    return [one.written for one in every]


def stream(
    model: LanguageModel,
    prompt: Sequence[int],
    *,
    eos_id: int | Sequence[int],
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Iterator[int]:
    """The tokens of one response as they are sampled; the same as from `generate`.

    Arguments and errors as for `generate`; the caller may stop at any token. The last one is an end token if the model
    ended its response.
    """
    require_room(model, prompt, max_new_tokens)
    one = Continuation(prompt, max_new_tokens, seed, temperature, top_k, top_p)
    decoder = Decoder(model, eos_id)
    decoder.admit([one])
    while len(decoder):
        decoder.step()
        yield one.written.ids[-1]


def require_room(model: LanguageModel, prompt: Sequence[int], max_new_tokens: int) -> None:
    """Raises UsageError for a prompt that is empty or, with its response, does not fit the context."""
    if not prompt:
        raise UsageError("an empty prompt cannot be continued")
    if len(prompt) + max_new_tokens > model.config.n_positions:
        raise UsageError(
            f"a prompt of {len(prompt)} tokens with --max-new-tokens {max_new_tokens} does not fit the model's "
            f"context of {model.config.n_positions}; shorten the prompt or the response"
        )


class Decoder:
    """A batch that samples one token per sequence at each step; sequences come and go between steps.

    Rows of finished sequences stay in the batch, vacant, until reused or until there are too many.

    Args:
        model: in eval mode, in the precision it is to decode in.
        eos_id: the token, or tokens, that end a response.
    """

    def __init__(self, model: LanguageModel, eos_id: int | Sequence[int]) -> None:
        self.model, self.ends = model, {eos_id} if isinstance(eos_id, int) else set(eos_id)
        self.device = model.device
        self._clear()

    def _clear(self) -> None:
        self._rows: list[Continuation | None] = []  # of each row; None: vacant
        self._cache: KVCache | None = None
        # (B, C) hidden states from which the next tokens are sampled
        self._last = self.model.output_weight.new_zeros(0, self.model.config.n_embd)
        self._drawn: Tensor | None = None  # (B,) the last step's tokens, which the model has not read yet

    def __len__(self) -> int:
        """The number of active sequences."""
        return sum(one is not None for one in self._rows)

    @torch.inference_mode()
    def admit(self, new: Sequence[Continuation]) -> None:
        """Reads the prompts; the next step samples the first token of each.

        Raises UsageError, and admits none, if a prompt is empty or does not fit.
        """
        for one in new:
            require_room(self.model, one.prompt, one.max_new_tokens)
        if not (new := [one for one in new if not one.over]):
            return
        self._read()
        together: dict[tuple[int, ...], list[Continuation]] = defaultdict(list)
        for one in new:
            together[tuple(one.prompt)].append(one)
        if self._cache is None:
            slots = max(len(one.prompt) + one.max_new_tokens for one in new)
            self._cache = self.model.empty_cache(len(new), slots)
        prompts = list(together)
        for some in by_length([len(prompt) for prompt in prompts], PREFILL_TOKENS):
            self._admit([prompts[i] for i in some], [together[prompts[i]] for i in some])

    def _admit(self, prompts: Sequence[tuple[int, ...]], companies: Sequence[Sequence[Continuation]]) -> None:
        """Reads each prompt once, for all continuations sharing it."""
        assert self._cache is not None
        ids, lengths = (tensor.to(self.device) for tensor in pad(prompts))  # (N, P), (N,)
        cache = self.model.empty_cache(len(ids), ids.shape[1])
        hidden = self.model(ids, lengths=lengths, cache=cache)  # (N, P, C)
        cache.advance(lengths, ids.shape[1])
        last = hidden[torch.arange(len(ids), device=self.device), lengths - 1]  # (N, C)
        sources = torch.tensor([i for i, company in enumerate(companies) for _ in company], device=self.device)  # (M,)
        new = [one for company in companies for one in company]
        vacant = [row for row, one in enumerate(self._rows) if one is None][: len(new)]
        places = [*vacant, *range(len(self._rows), len(self._rows) + len(new) - len(vacant))]
        self._cache.place(cache, sources, places, slots=max(len(one.prompt) + one.max_new_tokens for one in new))
        self._rows += [None] * (len(new) - len(vacant))
        for row, one in zip(places, new, strict=True):
            self._rows[row] = one
        longer = last.new_zeros(len(self._rows), last.shape[1])
        longer[: len(self._last)] = self._last
        self._last = longer.index_copy_(0, torch.tensor(places, device=self.device), last[sources])

    @torch.inference_mode()
    def step(self) -> list[Continuation]:
        """Samples a token for every sequence and returns them all. Those now `over` have left the batch."""
        self._compact()
        self._read()
        writing = [(row, one) for row, one in enumerate(self._rows) if one is not None]
        if not writing:
            return []
        logits = self.model.centred_logits(self._last).float()  # (B, V)
        self._drawn, chosen = self._draw(logits)
        tokens, logprobs = self._drawn.tolist(), chosen.tolist()
        self._note(writing, logits, tokens)
        for row, one in writing:
            one.written.ids.append(tokens[row])
            one.written.logprobs.append(logprobs[row])
            one.written.finished = tokens[row] in self.ends
        self._leave([row for row, one in writing if one.over])
        return [one for _, one in writing]

    def drop(self, gone: Iterable[Continuation]) -> None:
        """Removes these sequences; any no longer in the batch are ignored."""
        out = set(map(id, gone))
        self._leave([row for row, one in enumerate(self._rows) if one is not None and id(one) in out])

    def _draw(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(B, V) -> the sampled token of each row (B,), and its log-prob (B,) at its temperature, untruncated.

        Passes over (B, V) are expensive: nothing is computed unless requested, and nothing is normalised.
        """
        temperatures = [one.temperature if one else 1.0 for one in self._rows]
        noise = np.array([one.noise[len(one.written.ids)] if one else 0.0 for one in self._rows], np.float32)
        u = torch.tensor(noise, device=self.device)
        truncates = any(one and one.truncates for one in self._rows)
        if not truncates and self.device.type == "cpu" and (own := kernels.library()):
            return kernels.draw(own, logits, torch.tensor(temperatures, dtype=torch.float32), u)
        if any(t != 1 for t in temperatures):
            logits = logits / torch.tensor([[t or 1.0] for t in temperatures], device=self.device)
        largest = logits.amax(-1, keepdim=True)  # (B, 1)
        weights = (logits - largest).exp_()  # (B, V)
        totals = weights.sum(-1)  # (B,)
        if truncates:
            weights = (self._truncated(logits) - largest).exp_()
        drawn = draw(weights, u)  # (B,)
        if not all(temperatures):
            greedy = torch.tensor([t == 0 for t in temperatures], device=self.device)
            drawn = torch.where(greedy, logits.argmax(-1), drawn)
        return drawn, logits.gather(1, drawn.unsqueeze(1)).squeeze(1) - largest.squeeze(1) - totals.log()

    def _truncated(self, logits: Tensor) -> Tensor:
        """Truncates rows with the same settings together. (B, V) -> (B, V)."""
        alike: dict[tuple[int, float], list[int]] = defaultdict(list)
        for row, one in enumerate(self._rows):
            if one and one.truncates:
                alike[one.top_k, one.top_p].append(row)
        for (top_k, top_p), rows in alike.items():
            index = torch.tensor(rows, device=self.device)
            logits = logits.index_copy(0, index, truncate(logits[index], top_k, top_p))
        return logits

    def _note(self, writing: Sequence[tuple[int, Continuation]], logits: Tensor, tokens: Sequence[int]) -> None:
        asked = [(row, one, one.likeliest) for row, one in writing if one.likeliest is not None]
        if not asked:
            return
        logprobs = logits[[row for row, _, _ in asked]].log_softmax(-1)  # (N, V)
        values, ids = (
            best.tolist() for best in logprobs.topk(min(max(count for _, _, count in asked), logits.shape[1]))
        )
        for i, (row, one, count) in enumerate(asked):
            drawn = (tokens[row], float(logprobs[i, tokens[row]]))
            one.notes.append([drawn, *zip(ids[i][:count], values[i][:count], strict=True)])

    def _leave(self, rows: Sequence[int]) -> None:
        if not rows or self._cache is None:
            return
        for row in rows:
            self._rows[row] = None
        if len(self):
            self._cache.vacate(rows, self._longest())
        else:
            self._clear()

    def _longest(self) -> int:
        """The number of tokens of the longest sequence that the model has read."""
        unread = self._drawn is not None
        return max(len(one.prompt) + max(0, len(one.written.ids) - unread) for one in self._rows if one)

    def _read(self) -> None:
        """The model reads the tokens of the last step."""
        if self._drawn is not None and self._cache is not None:
            self._last = self.model(self._drawn.unsqueeze(1), cache=self._cache).squeeze(1)
            self._cache.advance()
            self._drawn = None

    def _compact(self) -> None:
        """Removes vacant rows once there are many: they cost as much as the others."""
        if self._cache is None or len(self) >= COMPACT_BELOW * len(self._rows):
            return
        kept = torch.tensor([row for row, one in enumerate(self._rows) if one is not None], device=self.device)
        self._cache, self._rows = self._cache.select(kept), [one for one in self._rows if one is not None]
        if self._drawn is None:
            self._last = self._last[kept]
        else:
            self._drawn = self._drawn[kept]
