"""GPT-2, exactly as released (Radford et al. 2019): learned positions, pre-LayerNorm, tanh-GELU, tied embeddings.

Shape legend: B batch, T time, N real tokens, H heads, D head width, C channels (= H x D), V vocabulary.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from wukong.model.attention import AttentionContext, attend
from wukong.model.config import GPT2Config as GPT2Config  # noqa: PLC0414 (most import it from here)
from wukong.model.cpu.kernels import gelu
from wukong.model.language_model import LanguageModel

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
        y = attend(*split_heads(self.c_attn(x), self.n_head), layer, context, dropout)
        return F.dropout(self.c_proj(y), self.dropout, self.training)


def split_heads(qkv: Tensor, n_head: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values from one projection: (B, T, 3C) -> three of (B, T, H, D)."""
    q, k, v = qkv.unflatten(-1, (3, n_head, -1)).unbind(-3)
    return q, k, v


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


class GPT2(LanguageModel):
    """The transformer. Parameter names are Hugging Face's without the `transformer.` prefix."""

    config: GPT2Config
    embedding_name = output_name = "wte.weight"

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.initialise()

    @property
    def embedding(self) -> nn.Embedding:
        return self.wte

    @property
    def blocks(self) -> nn.ModuleList:
        return self.h

    @property
    def final_norm(self) -> nn.Module:
        return self.ln_f

    def embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        embedded: Tensor = self.wte(input_ids) + self.wpe(positions)
        return embedded
