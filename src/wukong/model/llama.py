"""The Llama family (Touvron et al. 2023, arXiv 2302.13971): RMSNorm, rotary positions, SwiGLU, grouped queries.

With the switches of `LlamaConfig` it is Llama 2 and 3, SmolLM2, Qwen2 and 2.5 (biases of queries, keys and values) and
Qwen3 (RMSNorm of queries and keys, a head width of its own).

Shape legend: B batch, T time, N real tokens, H query heads, G key-value heads, D head width, C channels, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wukong.model.attention import AttentionContext, attend
from wukong.model.config import LlamaConfig
from wukong.model.language_model import LanguageModel
from wukong.model.rms_norm import RMSNorm
from wukong.model.rotary import rotary_angles, rotate

PRESETS = {
    "llama-test": LlamaConfig(n_positions=64, n_embd=32, n_layer=2, n_head=2, n_kv_head=1, head_width=16, n_inner=96),
    "llama-nano": LlamaConfig(
        n_positions=512, n_embd=192, n_layer=4, n_head=3, n_kv_head=1, head_width=64, n_inner=576
    ),
    "llama-124m": LlamaConfig(
        n_positions=1024, n_embd=768, n_layer=12, n_head=12, n_kv_head=4, head_width=64, n_inner=2432
    ),
}
"""Sizes by name, each with about as many parameters as GPT-2's test, nano and gpt2; the vocabulary comes from the
tokenizer."""


def _narrowed(x: Tensor) -> Tensor:
    """x in autocast's precision: each matrix that reads it would make, and keep, a copy of its own."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


class GroupedAttention(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        C, D = config.n_embd, config.head_width
        self.q_proj = nn.Linear(C, config.n_head * D, bias=config.qkv_bias)
        self.k_proj = nn.Linear(C, config.n_kv_head * D, bias=config.qkv_bias)
        self.v_proj = nn.Linear(C, config.n_kv_head * D, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.n_head * D, C, bias=False)
        self.q_norm = RMSNorm(D, config.rms_norm_epsilon) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(D, config.rms_norm_epsilon) if config.qk_norm else nn.Identity()
        self.head_width, self.dropout = D, config.dropout

    def forward(self, x: Tensor, layer: int, context: AttentionContext) -> Tensor:
        x = _narrowed(x)
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_width))  # (B, T, H, D), (B, T, G, D) twice
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        assert context.rotary is not None
        q, k = rotate(self.q_norm(q), context.rotary), rotate(self.k_norm(k), context.rotary)
        y = attend(q, k, v, layer, context, self.dropout if self.training else 0.0)
        return F.dropout(self.o_proj(y), self.dropout, self.training)


class SwiGLU(nn.Module):
    """silu(x G) * (x U), projected down (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.n_inner, bias=False)
        self.up_proj = nn.Linear(config.n_embd, config.n_inner, bias=False)
        self.down_proj = nn.Linear(config.n_inner, config.n_embd, bias=False)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        x = _narrowed(x)
        x = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return F.dropout(x, self.dropout, self.training)


class LlamaBlock(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.n_embd, config.rms_norm_epsilon)
        self.self_attn = GroupedAttention(config)
        self.post_attention_layernorm = RMSNorm(config.n_embd, config.rms_norm_epsilon)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, layer: int, context: AttentionContext) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), layer, context)
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return result


class Llama(LanguageModel):
    """The transformer. Parameter names are Hugging Face's without the `model.` prefix."""

    config: LlamaConfig
    embedding_name = "embed_tokens.weight"

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList(LlamaBlock(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.n_embd, config.rms_norm_epsilon)
        if not config.tied:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.output_name = self.embedding_name if config.tied else "lm_head.weight"
        self.initialise()

    @property
    def embedding(self) -> nn.Embedding:
        return self.embed_tokens

    @property
    def blocks(self) -> nn.ModuleList:
        return self.layers

    @property
    def final_norm(self) -> nn.Module:
        return self.norm

    def embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        embedded: Tensor = self.embed_tokens(input_ids)
        return embedded

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return rotary_angles(self.config, positions)

    def drop_output_layer(self) -> None:
        if not self.config.tied:
            del self.lm_head
            self.config, self.output_name = replace(self.config, tied=True), self.embedding_name
