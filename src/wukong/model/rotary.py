"""Rotary positions (Su et al. 2021, arXiv 2104.09864): pairs of a head's numbers are turned by an angle that grows with
the position, so that a query's product with a key depends on their distance.

As in the released Llamas' Hugging Face files, a pair is number i and number i + D/2 of a head.

Shape legend: B batch, T time, N real tokens, H heads, D head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wukong.model.config import LlamaConfig


def rotary_frequencies(config: LlamaConfig, device: torch.device | None = None) -> Tensor:
    """The angle, in radians, by which each pair turns from one position to the next: (D / 2,) float32."""
    exponents = torch.arange(0, config.head_width, 2, device=device, dtype=torch.float32) / config.head_width
    frequencies = config.rotary_base**-exponents
    if (scaling := config.rotary_scaling) is None:
        return frequencies
    # How often a pair turns in the original context: 0 up to `low` times, 1 from `high` times on, linear in between.
    turns = scaling.original_positions * frequencies / (2 * math.pi)
    kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


@torch.no_grad()
def rotary_angles(config: LlamaConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each pair's angle, for `rotate`: positions (T,), (B, T) or (N,) -> two of (..., 1, D / 2)."""
    angles = positions[..., None, None].float() * rotary_frequencies(config, positions.device)
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Turns each pair by its position's angle, in float32: (..., H, D) -> (..., H, D)."""
    (cos, sin), (first, second) = angles, heads.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(heads.dtype)
