"""What all language models have in common: tokens in, hidden states out.

Shape legend: B batch, T time, S cached time, N real tokens, C channels, V vocabulary.

A model returns hidden states, not logits: with 50,000 tokens the output layer is the most expensive part of a small
model, so each caller computes logits only at the positions it needs (`LanguageModel.centred_logits`,
`logprobs.token_logprobs`). Padding is on the right, where causal attention never looks, so no mask is needed. If the
caller passes the rows' lengths, only attention processes padding at all (`attention.Unpadded`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wukong.model.attention import AttentionContext, KVCache, Unpadded
from wukong.model.config import ModelConfig
from wukong.model.logprobs import centred


class LanguageModel(nn.Module, ABC):
    """A decoder-only transformer. A family says how tokens are embedded, what a block is, and where its parts are;
    parameter names are Hugging Face's without the prefix of the base model."""

    embedding_name: str
    """Name of the token embedding's weight."""
    output_name: str
    """Name of the output layer's weight; the same if it is tied to the embedding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.output: Tensor | None = None
        """(V, C), centred; set in a copy that decodes at lower precision than its original."""
        self.checkpoint_blocks = False
        """Activation checkpointing: backward recomputes each block instead of storing its activations (Chen et al.
        2016)."""

    @property
    @abstractmethod
    def embedding(self) -> nn.Embedding:
        """The token embedding, (V, C)."""

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, from the bottom up; each is called as block(x, layer, context)."""

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module:
        """The normalisation after the last block."""

    @property
    def output_weight(self) -> Tensor:
        """The weight of the output layer, (V, C)."""
        return self.get_parameter(self.output_name)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @abstractmethod
    def embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """The input of the first block: ids and positions (B, T) or (N,) -> (B, T, C) or (N, C)."""

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        """What attention needs to know of the positions (`rotary.rotary_angles`); None if the embedding says it all."""
        return None

    def initialise(self) -> None:
        """N(0, 0.02); the two projections into the residual stream of each block scaled by 1/sqrt(2 x layers), as in
        GPT-2; biases 0, normalisations 1."""
        residual = {
            parameter
            for block in self.blocks
            for name, parameter in block.named_parameters()
            if name.endswith(("c_proj.weight", "o_proj.weight", "down_proj.weight"))
        }
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 1:
                nn.init.ones_(parameter)
            else:
                scaled = 0.02 / math.sqrt(2 * self.config.n_layer) if parameter in residual else 0.02
                nn.init.normal_(parameter, std=scaled)

    def forward(
        self,
        input_ids: Tensor,
        *,
        lengths: Tensor | None = None,
        segments: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Hidden states after the final normalisation.

        Args:
            input_ids: (B, T) int64, padded on the right.
            lengths: (B,) int64, the tokens of each row to read; the rest cost only attention, and have hidden states of
                0.
            segments: (B, T) int64, for rows that hold several sequences (packing) or padding not on the right: a token
                attends only to earlier tokens of its segment, and positions count from the segment's start. A 0/1
                attention mask is the special case of two segments.
            cache: keys and values of the preceding tokens; the caller then calls `cache.advance`.

        Returns:
            (B, T, C).

        Raises:
            ValueError: T (plus cached tokens) exceeds the model's context or the cache, or arguments are incompatible.
        """
        T = input_ids.shape[1]
        if T + (cache.longest if cache else 0) > self.config.n_positions:
            raise ValueError(
                f"{T + (cache.longest if cache else 0)} tokens do not fit the context of {self.config.n_positions}"
            )
        if cache is not None:
            cache.require_room(T)
        if lengths is not None and (segments is not None or (cache and cache.longest)):
            raise ValueError("lengths are for rows padded on the right: no segments, and no cache that is filled")
        positions, mask = self._positions(T, segments, cache)
        unpadded = None if lengths is None else Unpadded(lengths, T, grouped=cache is None)
        if unpadded is not None:
            input_ids = unpadded.take(input_ids)  # (N,)
            positions = unpadded.take(positions.expand(unpadded.shape))  # (N,)
        context = AttentionContext(mask, cache, unpadded, self.rotary(positions))
        x = self.embed(input_ids, positions)  # (B, T, C), or (N, C) from here on
        x = F.dropout(x, self.config.dropout, self.training)
        for layer, block in enumerate(self.blocks):
            if self.checkpoint_blocks and torch.is_grad_enabled():
                x = checkpoint(block, x, layer, context, use_reentrant=False)
            else:
                x = block(x, layer, context)
        x = self.final_norm(x)
        return x if unpadded is None else unpadded.put(x)

    def _positions(self, T: int, segments: Tensor | None, cache: KVCache | None) -> tuple[Tensor, Tensor | None]:
        """The position of each token, (T,), (B, T) or (B, 1), and the mask of attention (`AttentionContext.mask`)."""
        steps = torch.arange(T, device=self.device)  # (T,)
        if segments is not None:
            starts = torch.ones_like(segments, dtype=torch.bool)
            starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
            positions = steps - (steps * starts).cummax(dim=1).values  # (B, T)
            same = segments[:, :, None] == segments[:, None, :]  # (B, T, T)
            return positions, (same & (steps[:, None] >= steps[None, :])).unsqueeze(1)  # (B, 1, T, T)
        if cache is not None and cache.longest:
            if T != 1:
                raise ValueError("a filled cache is extended one token at a time")
            positions = cache.lengths[:, None] + steps  # (B, 1)
            slots = torch.arange(cache.longest + 1, device=self.device)  # (S,)
            # Added to the scores: attention would convert a bool mask in every layer.
            mask = torch.where(slots <= positions, 0.0, -math.inf).to(self.embedding.weight.dtype)  # (B, S)
            return positions, mask[:, None, None]  # (B, 1, 1, S)
        return steps, None

    def empty_cache(self, batch: int, slots: int) -> KVCache:
        """A cache for `batch` sequences of `slots` tokens."""
        return KVCache.empty(self.config, batch, slots, like=self.embedding.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V) float32; equal to those of `transformers`."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.output_weight.float())

    def centred_logits(self, hidden: Tensor) -> Tensor:
        """The logits minus their common offset (logprobs.py), for log-probs and sampling: (..., C) -> (..., V)."""
        return F.linear(hidden, centred(self.output_weight, hidden.dtype) if self.output is None else self.output)

    @torch.no_grad()
    def keep_tokens(self, count: int) -> None:
        """Removes all tokens but the first `count` from the embedding and the output layer."""
        self.config = replace(self.config, vocab_size=count)
        for name in dict.fromkeys([self.embedding_name, self.output_name]):
            layer = self.get_submodule(name.removesuffix(".weight"))
            layer.weight = nn.Parameter(self.get_parameter(name)[:count].clone())
            setattr(layer, "num_embeddings" if isinstance(layer, nn.Embedding) else "out_features", count)

    def drop_output_layer(self) -> None:
        """Removes an output layer that is not the embedding: a reward or value model has no use for it."""

    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())
