"""GPT-2, exactly as released (Radford et al. 2019): learned positions, pre-LayerNorm, tanh-GELU, tied embeddings.

Shape legend: B batch, T time, S cached time, N real tokens, C channels, V vocabulary.

The model returns hidden states, not logits: the 50,257-wide output layer is the most expensive part of a small GPT-2,
so each caller computes logits only at the positions it needs (`GPT2.centred_logits`, `objectives.token_logprobs`).
Padding is on the right, where causal attention never looks, so no mask is needed. If the caller passes the rows'
lengths, only attention processes padding at all (`attention.Unpadded`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wukong.model.attention import AttentionContext, KVCache, Unpadded, attend
from wukong.model.config import GPT2Config as GPT2Config  # noqa: PLC0414 (most import it from here)
from wukong.model.kernels import gelu
from wukong.model.logprobs import centred
from wukong.model.lower_states import LowerStates

PRESETS: dict[str, dict[str, int]] = {
    "test": {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2},
    "nano": {"n_positions": 512, "n_embd": 192, "n_layer": 4, "n_head": 3},
    "micro": {"n_positions": 256, "n_embd": 256, "n_layer": 4, "n_head": 4},
    "mini": {"n_positions": 256, "n_embd": 384, "n_layer": 6, "n_head": 6},
    "gpt2": {"n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12},
    "gpt2-medium": {"n_positions": 1024, "n_embd": 1024, "n_layer": 24, "n_head": 16},
    "gpt2-large": {"n_positions": 1024, "n_embd": 1280, "n_layer": 36, "n_head": 20},
    "gpt2-xl": {"n_positions": 1024, "n_embd": 1600, "n_layer": 48, "n_head": 25},
}
"""Sizes by name; the vocabulary comes from the tokenizer. `nano` learns the kitchen corpus on a laptop CPU in
minutes."""


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
        x = self.c_proj(gelu(self.c_fc(x)))
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
        result: Tensor = x + self.mlp(self.ln_2(x))
        return result


class GPT2(nn.Module):
    """The transformer. Parameter names are Hugging Face's without the `transformer.` prefix."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.output: Tensor | None = None
        """(V, C), centred; set in a copy that decodes at lower precision than its original."""
        self.checkpoint_blocks = False
        """Activation checkpointing: backward recomputes each block instead of storing its activations (Chen et al.
        2016)."""
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
        lower: LowerStates | None = None,
    ) -> Tensor:
        """Hidden states after the final LayerNorm.

        Args:
            input_ids: (B, T) int64, padded on the right.
            lengths: (B,) int64, the tokens of each row to read; the rest cost only attention, and have hidden states of
                0.
            segments: (B, T) int64, for rows that hold several sequences (packing) or padding not on the right: a token
                attends only to earlier tokens of its segment, and positions count from the segment's start. A 0/1
                attention mask is the special case of two segments.
            cache: keys and values of the preceding tokens; the caller then calls `cache.advance`.
            lower: the states above layers shared with other models that read the same batch.

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
            # Added to the scores: attention would convert a bool mask in every layer.
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
        first, x = (0, x) if lower is None else lower.resume(x)
        for layer, block in list(enumerate(self.h))[first:]:
            if self.checkpoint_blocks and torch.is_grad_enabled():
                x = checkpoint(block, x, layer, context, use_reentrant=False)
            else:
                x = block(x, layer, context)
            if lower is not None:
                lower.keep(layer + 1, x)
        x = self.ln_f(x)
        return x if unpadded is None else unpadded.put(x)

    def empty_cache(self, batch: int, slots: int) -> KVCache:
        """A cache for `batch` sequences of `slots` tokens."""
        return KVCache.empty(self.config, batch, slots, like=self.wte.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V) float32, by the transposed token embedding; equal to those of `transformers`."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.wte.weight.float())

    def centred_logits(self, hidden: Tensor) -> Tensor:
        """The logits minus their common offset (output.py), for log-probs and sampling: (..., C) -> (..., V)."""
        return F.linear(hidden, centred(self.wte.weight, hidden.dtype) if self.output is None else self.output)

    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())
