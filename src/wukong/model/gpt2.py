"""GPT-2, exactly as released (Radford et al. 2019): learned positions, pre-LayerNorm, tanh-GELU, tied embeddings.

Shape legend: B batch, T time, S cached time, H heads, D head width, C channels (= H x D), V vocabulary.

The model returns hidden states, not logits: the 50,257-wide output layer is the dearest part of a small GPT-2,
so each caller computes logits only at the positions it needs (`GPT2.logits`, `objectives.token_logprobs`).
Padding goes on the right, where causal attention never looks; no mask is needed and none is computed. Where a caller
says how long the rows are, only attention sees padding at all (`Unpadded`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class GPT2Config:
    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    dropout: float = 0.0
    """One rate for embeddings, attention and residuals; the stages set it, a saved model does not carry it."""
    layer_norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")


PRESETS: dict[str, dict[str, int]] = {
    "test": {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2},
    "nano": {"n_positions": 256, "n_embd": 192, "n_layer": 4, "n_head": 3},
    "micro": {"n_positions": 256, "n_embd": 256, "n_layer": 4, "n_head": 4},
    "mini": {"n_positions": 256, "n_embd": 384, "n_layer": 6, "n_head": 6},
    "gpt2": {"n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12},
    "gpt2-medium": {"n_positions": 1024, "n_embd": 1024, "n_layer": 24, "n_head": 16},
    "gpt2-large": {"n_positions": 1024, "n_embd": 1280, "n_layer": 36, "n_head": 20},
    "gpt2-xl": {"n_positions": 1024, "n_embd": 1600, "n_layer": 48, "n_head": 25},
}
"""Sizes by name; the vocabulary comes from the tokenizer. `nano` learns the kitchen on a laptop CPU in minutes."""


@dataclass
class KVCache:
    """Keys and values of the tokens so far, preallocated: one slot a token, rows of different lengths.

    `lengths[b]` is the number of valid slots of row b. A prompt padded on the right leaves rubbish in the slots
    beyond its length; decoding overwrites them one by one, and attention never reads past the length.

    The tensors may hold more rows than `lengths`: room for sequences that come later (`place`).
    """

    keys: list[Tensor]  # per layer (B or more, H, S, D)
    values: list[Tensor]  # per layer (B or more, H, S, D)
    lengths: Tensor  # (B,) int64
    longest: int = 0  # max(lengths), kept on the host so that decoding never waits for the device
    rows: Tensor = field(init=False)  # (B,) 0..B-1, for scattered writes

    def __post_init__(self) -> None:
        self.rows = torch.arange(len(self.lengths), device=self.lengths.device)

    @classmethod
    def empty(cls, config: GPT2Config, batch: int, slots: int, like: Tensor) -> KVCache:
        shape = (batch, config.n_head, slots, config.n_embd // config.n_head)
        keys = [like.new_zeros(shape) for _ in range(config.n_layer)]
        values = [like.new_zeros(shape) for _ in range(config.n_layer)]
        return cls(keys, values, torch.zeros(batch, dtype=torch.int64, device=like.device))

    def select(self, rows: Tensor) -> KVCache:
        """The cache of some rows only: finished sequences leave the batch. rows: (B',) int64, at least one.

        Waits for the device to learn the new `longest`; a batch of B rows shrinks about log(B) times in all.
        """
        lengths = self.lengths[rows]
        keys = [k.index_select(0, rows) for k in self.keys]
        values = [v.index_select(0, rows) for v in self.values]
        return KVCache(keys, values, lengths, int(lengths.max()))

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k, v (B, H, T, D) behind each row's tokens; returns the keys and values attention may read."""
        steps = k.shape[2]
        if self.longest == 0:  # the prompt: all rows start at slot 0
            self.keys[layer][:, :, :steps] = k
            self.values[layer][:, :, :steps] = v
            return k, v
        self.keys[layer][self.rows, :, self.lengths] = k[:, :, 0]
        self.values[layer][self.rows, :, self.lengths] = v[:, :, 0]
        B, S = len(self.rows), self.longest + 1
        return self.keys[layer][:B, :, :S], self.values[layer][:B, :, :S]

    def place(self, other: KVCache, sources: Tensor, rows: Sequence[int], slots: int) -> None:
        """Sequences that were read into a cache of their own are copied to the places `rows`: vacant ones, or new ones
        behind the last without a gap.

        sources: (len(rows),) int64, which sequence of `other` each place gets; one may go to several.
        slots: how many each of them is going to need.
        """
        count = max(*rows, len(self.rows) - 1) + 1
        self._make_room(count, slots)
        places = torch.tensor(rows, device=self.lengths.device)
        for mine, theirs in zip([*self.keys, *self.values], [*other.keys, *other.values], strict=True):
            mine[places, :, : other.longest] = theirs[sources, :, : other.longest]
        longer = F.pad(self.lengths, (0, count - len(self.rows)))
        self.lengths = longer.index_copy(0, places, other.lengths[sources])
        self.longest = max(self.longest, other.longest)
        self.rows = torch.arange(count, device=self.lengths.device)

    def _make_room(self, rows: int, slots: int) -> None:
        """At least so many rows and slots. Rows at least double: sequences that come one by one are copied seldom."""
        B, H, S, D = self.keys[0].shape
        if rows <= B and slots <= S:
            return
        shape = (max(rows, 2 * B) if rows > B else B, H, max(slots, S), D)
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                tensors[layer] = old.new_zeros(shape)
                tensors[layer][:B, :, :S] = old

    def vacate(self, rows: Sequence[int], longest: int) -> None:
        """The sequences of these rows are over, and `longest` is the maximum of the others' lengths.

        What is computed in a vacant row is rubbish. It counts from slot 0, behind every sequence that goes on, so
        that it cannot run out of slots before they do.
        """
        self.lengths = self.lengths.index_fill(0, torch.tensor(rows, device=self.lengths.device), 0)
        self.longest = longest

    def advance(self, lengths: Tensor | None = None, longest: int | None = None) -> None:
        """After a prompt: its true `lengths` and their maximum. After one decoded token: no arguments."""
        if lengths is None:
            self.lengths = self.lengths + 1
            self.longest += 1
        else:
            assert longest is not None
            self.lengths, self.longest = lengths, longest


class Unpadded:
    """Where the N real tokens of a padded batch stand. All but attention is done for them alone, in one tensor without
    rows, (N, C), and attention for rows of like lengths together (Zeng et al. 2022, Boosting distributed training
    performance of the unpadded BERT model)."""

    LIKE = 0.9
    """Lengths above this part of the longest are like it."""

    def __init__(self, lengths: Tensor, width: int, grouped: bool = True) -> None:
        """lengths: (B,) int64, tokens of each row of `width`; grouped: or all rows as they stand, for a cache."""
        self.shape, device = (len(lengths), width), lengths.device
        order = lengths.argsort(descending=True, stable=True) if grouped else torch.arange(len(lengths), device=device)
        steps = torch.arange(width, device=device)
        real = steps < lengths[order].unsqueeze(1)  # (B, T)
        self.places = (order.unsqueeze(1) * width + steps)[real]  # (N,) in the padded batch
        self.groups: list[tuple[int, int, int, Tensor]] = []  # tokens, rows, their width, places in rows of that width
        found, first = lengths[order].tolist(), 0
        while first < len(found) and found[first]:
            longest = found[first] if grouped else width
            end = next((i for i in range(first, len(found)) if grouped and found[i] < self.LIKE * longest), len(found))
            places = real[first:end, :longest].flatten().nonzero().squeeze(1)
            self.groups.append((sum(found[first:end]), end - first, longest, places))
            first = end

    def take(self, padded: Tensor) -> Tensor:
        """(B, T, ...) -> (N, ...)."""
        return _gathered(padded, self.places)

    def put(self, tokens: Tensor) -> Tensor:
        """(N, C) -> (B, T, C), zero where there is padding."""
        return _spread(tokens, self.places, *self.shape)

    def by_group(self, tokens: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, C) -> (N, C'): what `compute` makes of each group's padded rows, (b, t, C) -> (b, t, C')."""
        parts = tokens.split([count for count, *_ in self.groups])
        found = [
            _gathered(compute(_spread(part, places, rows, width)), places)
            for part, (_, rows, width, places) in zip(parts, self.groups, strict=True)
        ]
        return found[0] if len(found) == 1 else torch.cat(found)


def _gathered(padded: Tensor, places: Tensor) -> Tensor:
    tokens = padded.flatten(0, 1)
    return tokens if len(places) == len(tokens) else tokens.index_select(0, places)


def _spread(tokens: Tensor, places: Tensor, rows: int, width: int) -> Tensor:
    if len(tokens) == rows * width:
        return tokens.view(rows, width, -1)
    return tokens.new_zeros(rows * width, tokens.shape[1]).index_copy(0, places, tokens).view(rows, width, -1)


@dataclass
class AttentionContext:
    """What a layer's attention has to know beside its input."""

    mask: Tensor | None = None  # (B, 1, T or 1, S), bool or added to the scores; None: causal
    cache: KVCache | None = None
    unpadded: Unpadded | None = None


def attend(qkv: Tensor, n_head: int, layer: int, context: AttentionContext, dropout: float = 0.0) -> Tensor:
    """Multi-head attention between its two projections: (B, T, 3C) -> (B, T, C), or (N, 3C) -> (N, C) unpadded."""
    if context.unpadded is not None:
        rows = AttentionContext(context.mask, context.cache)
        return context.unpadded.by_group(qkv, lambda padded: attend(padded, n_head, layer, rows, dropout))
    mask, cache = context.mask, context.cache
    B, T, C3 = qkv.shape
    q, k, v = qkv.view(B, T, 3, n_head, C3 // (3 * n_head)).permute(2, 0, 3, 1, 4)  # (B, H, T, D)
    if cache is not None:
        k, v = cache.write(layer, k, v)
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None and T > 1
    )  # (B, H, T, D)
    return y.transpose(1, 2).reshape(B, T, C3 // 3)


class Attention(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.n_head, self.dropout = config.n_head, config.dropout

    def forward(self, x: Tensor, layer: int, context: AttentionContext) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        y = attend(self.c_attn(x), self.n_head, layer, context, dropout)
        return F.dropout(self.c_proj(y), self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return F.dropout(x, self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, layer: int, context: AttentionContext) -> Tensor:
        x = x + self.attn(self.ln_1(x), layer, context)
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """The transformer. Parameter names are Hugging Face's without the `transformer.` prefix."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.checkpoint_blocks = False
        """Whether backward computes each block again instead of keeping what it needs (Chen et al. 2016)."""
        self.initialise()

    def initialise(self) -> None:
        """N(0, 0.02); the two projections into the residual stream of each block scaled by 1/sqrt(2 x layers)."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "ln_" in name:
                nn.init.ones_(parameter)
            else:
                residual = name.endswith("c_proj.weight")
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02)

    def forward(
        self,
        input_ids: Tensor,
        *,
        lengths: Tensor | None = None,
        segments: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Hidden states after the final LayerNorm.

        Args:
            input_ids: (B, T) int64, padded on the right.
            lengths: (B,) int64, how many tokens of each row are read; the others cost nothing but attention, and have
                hidden states of 0.
            segments: (B, T) int64 for rows that hold several sequences (packing) or padding elsewhere than on the
                right: a token attends to earlier tokens of its own segment only, and positions count from each
                segment's start. A 0/1 attention mask is the special case of two segments.
            cache: keys and values of what went before; the caller then calls `cache.advance`.

        Returns:
            (B, T, C).

        Raises:
            ValueError: T (with what is cached) is longer than the model's context, or arguments exclude each other.
        """
        T = input_ids.shape[1]
        if T + (cache.longest if cache else 0) > self.config.n_positions:
            raise ValueError(
                f"{T + (cache.longest if cache else 0)} tokens do not fit the context of {self.config.n_positions}"
            )
        if lengths is not None and (segments is not None or (cache and cache.longest)):
            raise ValueError("lengths are for rows padded on the right: no segments, and no cache that is filled")
        steps = torch.arange(T, device=input_ids.device)  # (T,)
        mask = None
        if segments is not None:
            starts = torch.ones_like(segments, dtype=torch.bool)
            starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
            positions = steps - (steps * starts).cummax(dim=1).values  # (B, T)
            same = segments[:, :, None] == segments[:, None, :]  # (B, T, T)
            mask = (same & (steps[:, None] >= steps[None, :])).unsqueeze(1)  # (B, 1, T, T)
        elif cache is not None and cache.longest:
            if T != 1:
                raise ValueError("a filled cache is extended one token at a time")
            positions = cache.lengths[:, None] + steps  # (B, 1)
            slots = torch.arange(cache.longest + 1, device=input_ids.device)  # (S,)
            # Added to the scores: attention would make that of a bool mask, in every layer anew.
            mask = torch.where(slots <= positions, 0.0, -math.inf).to(self.wpe.weight.dtype)[:, None, None]  # (B,1,1,S)
        else:
            positions = steps
        unpadded = None if lengths is None else Unpadded(lengths, T, grouped=cache is None)
        if unpadded is not None:
            input_ids = unpadded.take(input_ids)  # (N,)
            positions = unpadded.take(positions.expand(unpadded.shape))  # (N,)
        context = AttentionContext(mask, cache, unpadded)
        x = self.wte(input_ids) + self.wpe(positions)  # (B, T, C), or (N, C) from here on
        x = F.dropout(x, self.config.dropout, self.training)
        for layer, block in enumerate(self.h):
            if self.checkpoint_blocks and torch.is_grad_enabled():
                x = checkpoint(block, x, layer, context, use_reentrant=False)
            else:
                x = block(x, layer, context)
        x = self.ln_f(x)
        return x if unpadded is None else unpadded.put(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V), by the transposed token embedding."""
        return F.linear(hidden, self.wte.weight)

    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())
