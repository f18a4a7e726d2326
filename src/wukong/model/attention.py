"""Multi-head attention and its batch state: the key-value cache and the positions of padding.

Shape legend: B batch, T time, S cached time, N real tokens, H query heads, G key-value heads (each shared by H / G
query heads), D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from wukong.model.config import ModelConfig


@dataclass
class KVCache:
    """Keys and values of the tokens so far, preallocated: one slot per token, rows of different lengths.

    `lengths[b]` is the number of valid slots of row b. A right-padded prompt leaves garbage in the slots beyond its
    length; decoding overwrites them one by one, and attention never reads past the length.

    The tensors may hold more rows than `lengths`, for sequences that are added later (`place`).

    A vacant row (`vacate`) holds no sequence until one is placed there. Its length stays 0, so that what is computed
    for it is written to its first slot and never beyond the last, however long the others become.
    """

    keys: list[Tensor]  # per layer (B or more, G, S, D)
    values: list[Tensor]  # per layer (B or more, G, S, D)
    lengths: Tensor  # (B,) int64
    longest: int = 0  # max(lengths), on the host so that decoding never waits for the device
    rows: Tensor = field(init=False)  # (B,) 0..B-1, for scattered writes
    occupied: Tensor = field(init=False)  # (B,) int64, 1, or 0 for a vacant row: what a step adds to its length

    def __post_init__(self) -> None:
        self.rows = torch.arange(len(self.lengths), device=self.lengths.device)
        self.occupied = torch.ones_like(self.lengths)

    @property
    def slots(self) -> int:
        return self.keys[0].shape[2]

    @classmethod
    def empty(cls, config: ModelConfig, batch: int, slots: int, like: Tensor) -> KVCache:
        shape = (batch, config.n_kv_head, slots, config.head_width)
        keys = [like.new_zeros(shape) for _ in range(config.n_layer)]
        values = [like.new_zeros(shape) for _ in range(config.n_layer)]
        return cls(keys, values, torch.zeros(batch, dtype=torch.int64, device=like.device))

    def select(self, rows: Tensor) -> KVCache:
        """The cache of these rows only, to drop finished sequences. rows: (B',) int64, at least one.

        Waits for the device to learn the new `longest`; a batch of B rows shrinks about log(B) times in total.
        """
        lengths = self.lengths[rows]
        keys = [k.index_select(0, rows) for k in self.keys]
        values = [v.index_select(0, rows) for v in self.values]
        fewer = KVCache(keys, values, lengths, int(lengths.max()))
        fewer.occupied = self.occupied[rows]
        return fewer

    def require_room(self, steps: int) -> None:
        """Raises ValueError if the longest row has fewer free slots than `steps`."""
        if self.longest + steps > self.slots:
            raise ValueError(f"{self.longest + steps} tokens do not fit the cache's {self.slots} slots a row")

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends k, v (B, G, T, D) to each row; returns the keys and values that attention may read."""
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
        """Copies sequences from a separate cache to `rows`: vacant ones, or new ones directly after the last.

        sources: (len(rows),) int64, which sequence of `other` each row gets; one may go to several.
        slots: how many each row will need.
        """
        count = max(*rows, len(self.rows) - 1) + 1
        self._make_room(count, slots)
        places = torch.tensor(rows, device=self.lengths.device)
        for mine, theirs in zip([*self.keys, *self.values], [*other.keys, *other.values], strict=True):
            mine[places, :, : other.longest] = theirs[sources, :, : other.longest]
        longer = F.pad(self.lengths, (0, count - len(self.rows)))
        self.lengths = longer.index_copy(0, places, other.lengths[sources])
        self.occupied = F.pad(self.occupied, (0, count - len(self.rows))).index_fill(0, places, 1)
        self.longest = max(self.longest, other.longest)
        self.rows = torch.arange(count, device=self.lengths.device)

    def _make_room(self, rows: int, slots: int) -> None:
        """Grows to at least this many rows and slots. Rows at least double, so that adding sequences one by one rarely
        copies."""
        B, G, S, D = self.keys[0].shape
        if rows <= B and slots <= S:
            return
        shape = (max(rows, 2 * B) if rows > B else B, G, max(slots, S), D)
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                tensors[layer] = old.new_zeros(shape)
                tensors[layer][:B, :, :S] = old

    def vacate(self, rows: Sequence[int], longest: int) -> None:
        """Marks these rows, whose sequences have ended, as vacant. longest: the maximum of the others' lengths."""
        places = torch.tensor(rows, device=self.lengths.device)
        self.lengths, self.occupied = self.lengths.index_fill(0, places, 0), self.occupied.index_fill(0, places, 0)
        self.longest = longest

    def advance(self, lengths: Tensor | None = None, longest: int | None = None) -> None:
        """Updates the lengths. After a prompt: its true `lengths` and their maximum; after one decoded token: no
        arguments."""
        if lengths is None:
            self.lengths = self.lengths + self.occupied
            self.longest += 1
        else:
            assert longest is not None
            self.lengths, self.longest = lengths, longest


class Unpadded:
    """The positions of the N real tokens of a padded batch. Everything except attention is computed for them alone, in
    one tensor (N, C); attention runs on groups of rows of similar length (Zeng et al. 2022, Boosting distributed
    training performance of the unpadded BERT model)."""

    GROUP_RATIO = 0.9
    """Rows with at least this fraction of the longest row's length share its group."""

    def __init__(self, lengths: Tensor, width: int, grouped: bool = True) -> None:
        """lengths: (B,) int64, the tokens of each row of `width`. grouped: False keeps all rows in one group in their
        order, for a cache."""
        self.shape, device = (len(lengths), width), lengths.device
        order = lengths.argsort(descending=True, stable=True) if grouped else torch.arange(len(lengths), device=device)
        steps = torch.arange(width, device=device)
        real = steps < lengths[order].unsqueeze(1)  # (B, T)
        self.places = (order.unsqueeze(1) * width + steps)[real]  # (N,) in the padded batch
        self.groups: list[tuple[int, int, Tensor]] = []  # rows, their width, the tokens' places in rows of that width
        found, first, like = lengths[order].tolist(), 0, self.GROUP_RATIO if grouped else 0
        while first < len(found) and found[first]:
            longest = found[first] if grouped else width
            end = next((i for i in range(first, len(found)) if found[i] < like * longest), len(found))
            places = real[first:end, :longest].flatten().nonzero().squeeze(1)
            self.groups.append((end - first, longest, places))
            first = end

    def take(self, padded: Tensor) -> Tensor:
        """(B, T, ...) -> (N, ...)."""
        return _gathered(padded, self.places)

    def put(self, tokens: Tensor) -> Tensor:
        """(N, C) -> (B, T, C), zero where there is padding."""
        return _spread(tokens, self.places, *self.shape)

    def by_group(self, compute: Callable[..., Tensor], *tokens: Tensor) -> Tensor:
        """Tensors (N, ...) -> (N, C): applies `compute` to each group's padded rows, (b, t, ...) -> (b, t, C)."""
        sizes = [len(places) for *_, places in self.groups]
        parts = zip(*(tensor.split(sizes) for tensor in tokens), strict=True)
        found = [
            _gathered(compute(*(_spread(part, places, rows, width) for part in together)), places)
            for together, (rows, width, places) in zip(parts, self.groups, strict=True)
        ]
        return found[0] if len(found) == 1 else torch.cat(found)


def _gathered(padded: Tensor, places: Tensor) -> Tensor:
    tokens = padded.flatten(0, 1)
    return tokens if len(places) == len(tokens) else tokens.index_select(0, places)


def _spread(tokens: Tensor, places: Tensor, rows: int, width: int) -> Tensor:
    if len(tokens) == rows * width:
        return tokens.view(rows, width, *tokens.shape[1:])
    padded = tokens.new_zeros(rows * width, *tokens.shape[1:])
    return padded.index_copy(0, places, tokens).view(rows, width, *tokens.shape[1:])


@dataclass
class AttentionContext:
    """A layer's arguments to attention besides its input."""

    mask: Tensor | None = None  # (B, 1, T or 1, S), bool or added to the scores; None: causal
    cache: KVCache | None = None
    unpadded: Unpadded | None = None
    rotary: tuple[Tensor, Tensor] | None = None  # of `rotary.rotary_angles`, where positions are rotary


def attend(q: Tensor, k: Tensor, v: Tensor, layer: int, context: AttentionContext, dropout: float = 0.0) -> Tensor:
    """Multi-head attention between its projections.

    Args:
        q: (B, T, H, D), or (N, H, D) unpadded.
        k, v: (B, T, G, D) or (N, G, D).
        layer: whose cache it is.

    Returns:
        (B, T, H x D), or (N, H x D).
    """
    if context.unpadded is not None:
        rows = AttentionContext(cache=context.cache)
        return context.unpadded.by_group(lambda q, k, v: attend(q, k, v, layer, rows, dropout), q, k, v)
    q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))  # (B, H or G, T, D)
    if context.cache is not None:
        k, v = context.cache.write(layer, k, v)
    y = _grouped_attention(q, k, v, context.mask, dropout)  # (B, H, T, D)
    return y.transpose(1, 2).flatten(2)


def _grouped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Scaled dot-product attention, (B, H, T, D) and (B, G, S, D) twice -> (B, H, T, D)."""
    (H, T), G = q.shape[1:3], k.shape[1]
    grouped = False
    if H != G and T == 1:  # a group's queries read their keys together, as if they were several times
        q = q.unflatten(1, (G, H // G)).flatten(2, 3)  # (B, G, H / G, D)
    elif H != G:
        # PyTorch's fused kernels know groups on CPUs; on GPUs without a mask, in half precision.
        grouped = q.device.type == "cpu" or (mask is None and q.dtype != torch.float32)
        if not grouped:
            k, v = (heads.repeat_interleave(H // G, dim=1) for heads in (k, v))
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None and T > 1, enable_gqa=grouped
    )
    return y.reshape(len(y), H, T, -1)
