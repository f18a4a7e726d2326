"""Scalar heads: the reward model and the value model, with a separate GPT-2 trunk or on the policy's.

The reward of a response is read at its last real token (`pooling="last"`), as the mean over its real tokens, or as
their mean weighted by position: token t of n weighs t / (1 + ... + n), as in SGPT (Muennighoff 2022, arXiv 2202.08904),
because a later token has read more of the text.
The reward model reads prompt + response *without* the closing end-of-text token: Hugging Face's
`GPT2ForSequenceClassification` skips the padding token, which for GPT-2 is the end-of-text token, so only this
convention gives an exported model the same scores there.

Shape legend: B batch, T time, C channels, N any positions.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from wukong.model.config import ModelConfig
from wukong.model.language_model import LanguageModel

HeadKind = Literal["linear", "mlp"]
Pooling = Literal["last", "mean", "weighted"]


class ScalarModel(nn.Module):
    """Reward model (pooled over the sequence) and value model (one value per token)."""

    def __init__(self, trunk: LanguageModel, head: HeadKind = "linear", pooling: Pooling = "last") -> None:
        super().__init__()
        width = trunk.config.n_embd
        self.trunk, self.head_kind, self.pooling = trunk, head, pooling
        # Small weights and no bias (lm-human-preferences): scores start near 0 with a standard deviation of about 1.
        self.score = nn.Linear(width, 1)
        nn.init.normal_(self.score.weight, std=1 / math.sqrt(width + 1))
        nn.init.zeros_(self.score.bias)
        self.hidden = nn.Sequential(nn.Linear(width, width), nn.ReLU()) if head == "mlp" else nn.Identity()

    @property
    def config(self) -> ModelConfig:
        return self.trunk.config

    def token_scores(self, input_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """A score per token: (B, T) -> (B, T) float32. Arguments as for the trunk."""
        return self.read(self.trunk(input_ids, lengths=lengths))

    def read(self, states: Tensor) -> Tensor:
        """A score for each of the trunk's hidden states: (..., C) -> (...) float32, computed in float32."""
        with torch.autocast(states.device.type, enabled=False):
            result: Tensor = self.score(self.hidden(states.float())).squeeze(-1)
            return result

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """The reward of each row: (B, T) int64, right-padded, and (B,) lengths -> (B,) float32."""
        scores = self.token_scores(input_ids, lengths)
        if self.pooling == "last":
            return scores.gather(1, (lengths - 1).unsqueeze(1)).squeeze(1)
        places = torch.arange(1, scores.shape[1] + 1, device=scores.device)  # (T,)
        real = places <= lengths.unsqueeze(1)  # (B, T)
        weights = real * places if self.pooling == "weighted" else real
        return (scores * weights).sum(1) / weights.sum(1)

    @torch.no_grad()
    def rescale(self, gain: float, bias: float) -> None:
        """Folds gain x reward + bias into the head's weights."""
        self.score.weight.mul_(gain)
        self.score.bias.mul_(gain).add_(bias)


class ValueHead(nn.Module):
    """A value model that shares the policy's trunk: a linear layer on the policy's hidden states, as in Ziegler et al.
    2019. It starts at 0, so that initially the returns are the advantages."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def read(self, states: Tensor) -> Tensor:
        """(N, C) -> (N,) float32, computed in float32."""
        with torch.autocast(states.device.type, enabled=False):
            result: Tensor = self.score(states.float()).squeeze(-1)
            return result
