"""What a GPT-2 costs before it runs: parameters, memory and arithmetic, by formula; and what the machine has.

Tests hold the formulas against real models. Sizes are in bytes, arithmetic in floating-point operations (a multiply
and an add are two). Shape legend: C channels, H heads, L layers, P positions, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from wukong.model.gpt2 import GPT2, GPT2Config

KEPT_LOGITS_BYTES = 1 << 29
"""Logits that may be kept for backward; where they would be more they are computed a second time there."""
CHUNK_LOGITS = 1 << 24
"""Logits (elements) that exist in float32 at once."""
SPARE = 0.1
"""The part of the free memory that is left to everything else."""


def n_parameters(config: GPT2Config) -> int:
    """V C + P C for the embeddings, 12 C^2 + 13 C a layer, 2 C for the last LayerNorm."""
    C = config.n_embd
    return (config.vocab_size + config.n_positions) * C + config.n_layer * (12 * C * C + 13 * C) + 2 * C


def frozen_bytes(config: GPT2Config, dtype: torch.dtype) -> int:
    """A model that is only read: matrices and their biases in the compute precision, the rest in float32."""
    C = config.n_embd
    matrices = config.n_layer * (12 * C * C + 9 * C)
    return 4 * (n_parameters(config) - matrices) + dtype.itemsize * matrices


TRAINED_BYTES = 16
"""Of a parameter that is trained: weight, gradient and Adam's two moments, all float32."""


def activation_bytes(config: GPT2Config, dtype: torch.dtype, checkpointing: bool) -> int:
    """What a token leaves for backward in the trunk, without dropout.

    A layer keeps the input of each LayerNorm (float32, and mean and deviation) and, in the compute precision, the
    inputs of the four matrices (C, C, C, 4 C), queries, keys and values (3 C) and the input of the GELU (4 C); where
    the compute precision is float32, an input is kept once. Checkpointed, it keeps its own input alone, and one
    layer's at a time is computed again.
    """
    C, L = config.n_embd, config.n_layer
    layer = 2 * 4 * C + 14 * dtype.itemsize * C + 4 * (config.n_head + 4)
    return (L * 4 * C + layer if checkpointing else L * layer) + 2 * 4 * C


def logits_bytes(config: GPT2Config, dtype: torch.dtype, tokens: int) -> int:
    """Logits at so many tokens: those kept for backward, and three float32 chunks while they are worked on."""
    logits = tokens * config.vocab_size
    kept = logits * dtype.itemsize if logits * dtype.itemsize <= KEPT_LOGITS_BYTES else 0
    return kept + 3 * 4 * min(logits, CHUNK_LOGITS)


def step_bytes(config: GPT2Config, dtype: torch.dtype, tokens: int, checkpointing: bool) -> int:
    """Forward and backward over a micro-batch: activations, logits, and the matrices in the compute precision."""
    cast = 0 if dtype == torch.float32 else dtype.itemsize * n_parameters(config)
    return tokens * activation_bytes(config, dtype, checkpointing) + logits_bytes(config, dtype, tokens) + cast


def forward_flops(config: GPT2Config, tokens: float, length: float, outputs: float) -> float:
    """One forward pass; backward costs twice as much (Kaplan et al. 2020, section 2.1, with attention and outputs).

    Args:
        tokens: how many are read.
        length: of the sequences they stand in; a token attends to half of it on average.
        outputs: at how many tokens the logits are computed.
    """
    C = config.n_embd
    trunk = tokens * config.n_layer * (24 * C * C + 2 * length * C)
    return trunk + 2 * outputs * config.vocab_size * C


# ------------------------------------------------------------------------------------------------------- the machine


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had; None where the system does not say."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    known = []
    if (meminfo := Path("/proc/meminfo")).is_file():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        known.append(int(fields["MemAvailable"].split()[0]) * 1024)
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
        known.append(int(text) - int(used.read_text()))
    if not known and "SC_AVPHYS_PAGES" in os.sysconf_names:
        known.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(known, default=None)


def fitting_tokens(
    modules: Iterable[nn.Module], dtype: torch.dtype, checkpointing: bool, limit: int, free: float
) -> tuple[int, int, int]:
    """The largest micro-batch, halved from `limit` until it fits into the free memory, but no smaller than 64 tokens.

    Args:
        modules: what is trained; their weights are in memory already, gradients and moments are still to come. They
            learn one after another, so that the activations of the largest count.
        free: of `free_bytes`.

    Returns:
        (tokens, bytes of gradients and moments, bytes of the micro-batch). Their sum may still be more than what is
        free.
    """
    modules = list(modules)
    configs = [trunk.config for module in modules for trunk in module.modules() if isinstance(trunk, GPT2)]
    fixed = (TRAINED_BYTES - 4) * sum(p.numel() for module in modules for p in module.parameters())

    def needed(tokens: int) -> int:
        return max((step_bytes(config, dtype, tokens, checkpointing) for config in configs), default=0)

    tokens = limit
    while tokens > 64 and fixed + needed(tokens) > (1 - SPARE) * free:
        tokens = max(64, tokens // 2)
    return tokens, fixed, needed(tokens)


def gigabytes(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"
