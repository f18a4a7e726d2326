"""Formulas for a model's parameters, memory and arithmetic before it runs; and the machine's free memory.

Tests check the formulas against real models. Sizes are in bytes, arithmetic in floating-point operations (a multiply
and an add are two). Shape legend: C channels, L layers, V vocabulary.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from wukong import processes
from wukong.model.config import ModelConfig
from wukong.model.decoding import decoding_path
from wukong.model.logprobs import CHUNK_LOGITS, KEPT_LOGITS_BYTES

SPARE = 0.1
"""The fraction of free memory left for everything else."""


def n_parameters(config: ModelConfig) -> int:
    return config.outside_blocks + config.n_layer * config.block.total


def _layers(config: ModelConfig) -> int:
    """The numbers in the blocks' linear layers: their matrices and biases."""
    return config.n_layer * (config.block.matrices + config.block.biases)


def frozen_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """A frozen model: the blocks' matrices and biases in the compute precision, the rest in float32; and its output
    weights, centred, in the compute precision (model/logprobs.py)."""
    layers = _layers(config)
    output = 0 if dtype == torch.float32 else dtype.itemsize * config.vocab_size * config.n_embd
    return 4 * (n_parameters(config) - layers) + dtype.itemsize * layers + output


TRAINED_BYTES = 16
"""Per trained parameter: weight, gradient and Adam's two moments, all float32."""


def activation_bytes(config: ModelConfig, dtype: torch.dtype, checkpointing: bool) -> int:
    """What the trunk keeps per token for the backward pass, without dropout.

    A layer keeps the input of each normalisation (float32, and its mean or deviation) and, in the compute precision,
    the inputs of matrices, activation functions and attention; if the compute precision is float32, an input is kept
    once. Checkpointed, it keeps only its own input, and the rest is recomputed one layer at a time.
    """
    C, L, kept = config.n_embd, config.n_layer, config.kept_by_block
    layer = 4 * kept.normalised + dtype.itemsize * kept.computed + 4 * (config.n_head + 4)
    return (L * 4 * C + layer if checkpointing else L * layer) + 2 * 4 * C


def logits_bytes(config: ModelConfig, dtype: torch.dtype, tokens: int) -> int:
    """Bytes of the logits at this many tokens: those kept for the backward pass, and three float32 chunks in use."""
    logits = tokens * config.vocab_size
    kept = logits * dtype.itemsize if logits * dtype.itemsize <= KEPT_LOGITS_BYTES else 0
    return kept + 3 * 4 * min(logits, CHUNK_LOGITS)


@dataclass(frozen=True)
class TrainedPart:
    """The trained part of a model of which the rest is frozen (training/tuning.py)."""

    parameters: int
    matrices: int
    """How many of them are in matrices of the blocks, which a frozen model holds in the compute precision."""
    adapters: bool
    """Whether they are adapters, beside a model that is frozen as a whole."""
    frozen_layers: int = 0
    """Layers below all that is trained: no activations, no backward pass."""

    def frozen_copy_bytes(self, dtype: torch.dtype) -> int:
        """Another model that differs only in the trained part, frozen; without adapters there is no such part."""
        return 0 if self.adapters else dtype.itemsize * self.matrices + 4 * (self.parameters - self.matrices)

    def weights(self, config: ModelConfig, dtype: torch.dtype) -> int:
        """Bytes of the model: the trained part in float32, the rest as a frozen model."""
        return 4 * self.parameters + frozen_bytes(config, dtype) - self.frozen_copy_bytes(dtype)


def step_bytes(
    config: ModelConfig, dtype: torch.dtype, tokens: int, checkpointing: bool, outputs: int | None = None,
    part: TrainedPart | None = None,
) -> int:  # fmt: skip
    """Forward and backward pass of a micro-batch: activations, logits (at `outputs` tokens, or all), and the trained
    matrices in the compute precision. part: what is trained, if not everything."""
    cast = 0 if dtype == torch.float32 else dtype.itemsize * (part.parameters if part else n_parameters(config))
    logits = logits_bytes(config, dtype, tokens if outputs is None else outputs)
    return tokens * activation_bytes(_with_gradients(config, part), dtype, checkpointing) + logits + cast


def _with_gradients(config: ModelConfig, part: TrainedPart | None) -> ModelConfig:
    """The size of the model above its frozen layers."""
    return replace(config, n_layer=config.n_layer - part.frozen_layers) if part else config


SCATTERED, SCATTERED_LOGITS = 0.8, 0.25
"""What the C heap holds beyond the activations and logits in use: it keeps freed memory (`compute._reuse_memory`), and
micro-batches of other shapes do not fit into the gaps. Measured over ten steps with micro-batches of 8,192 tokens; a
GPU's allocator leaves fewer gaps."""
FEW_GAPS = 0.45
"""The fraction of these gaps if all passes are alike: all micro-batches have one shape, or a step has one and computes
nothing else."""


@dataclass(frozen=True)
class Decoding:
    """Responses decoded during training."""

    config: ModelConfig
    rows: int
    """Sequences decoded together on one process."""
    slots: int
    """Tokens of the longest sequence, prompt and response."""


DECODED_TOGETHER = 128
"""Maximum number of sequences that `rollout.generate` decodes together."""


def cache_bytes(config: ModelConfig, rows: int, slots: int, itemsize: int) -> int:
    """Keys and values of each layer's key-value heads."""
    return rows * slots * 2 * config.n_layer * config.n_kv_head * config.head_width * itemsize


def decoding_bytes(
    decoding: Decoding, device: torch.device, dtype: torch.dtype, sharded: bool = False, merged: bool = False
) -> int:
    """The decoding copy, if any, its cache, and the logits of a step.

    merged: whether adapters are added into a copy of the matrices first, in float32 on a CPU.

    The cache takes 1.75 times its size while finished rows are removed (`rollout.COMPACT_BELOW`). Every process gets a
    full copy of a sharded model.
    """
    config = decoding.config
    path = decoding_path(config, device, dtype)
    output_layer = config.vocab_size * config.n_embd
    products = _layers(config) + output_layer
    if path == "native":
        copy = dtype.itemsize * products + 4 * n_parameters(config) * sharded
    elif path == "packed":
        copy = dtype.itemsize * (products + n_parameters(config) - config.n_layer * config.block.matrices)
        copy += 4 * n_parameters(config) * sharded
    else:
        output = 0 if dtype == torch.float32 else output_layer
        copy = dtype.itemsize * (n_parameters(config) + output) if sharded or dtype != torch.float32 else 0
    if merged and not sharded and (path == "native" or dtype == torch.float32):
        copy += 4 * _layers(config)
    logits = 3 * 4 * decoding.rows * config.vocab_size
    return copy + round(1.75 * cache_bytes(config, decoding.rows, decoding.slots, dtype.itemsize)) + logits


@dataclass(frozen=True)
class Workload:
    """What determines the memory of one process of a stage."""

    tokens: int
    """Tokens per step; a forward pass takes at most a micro-batch of them."""
    outputs: float = 1.0
    """The fraction of tokens at which logits are computed."""
    trained: tuple[ModelConfig, ...] = ()
    """The trained models, which take turns on a micro-batch."""
    frozen: tuple[ModelConfig, ...] = ()
    """Reference and reward models, which every process holds in full."""
    decoding: Decoding | None = None
    processes: int = 1
    sharded: bool = False
    """Whether the trained models are sharded over the processes."""
    checkpointing: bool = False
    one_shape: bool = False
    """Whether all micro-batches have the same shape."""
    part: TrainedPart | None = None
    """What is trained of each trained model, if not everything."""
    one_base: bool = False
    """Whether the trained models have the same frozen weights, which are then held once."""
    frozen_copies: int = 0
    """Further frozen models, which share all but the trained part with a trained model (unless that is sharded)."""


def step_tokens(lengths: Sequence[int], batch_size: int) -> int:
    """The tokens that 39 of 40 batches of such sequences do not exceed: the mean of `batch_size` of them plus two
    standard deviations. One process reads its part of them."""
    n = min(batch_size, len(lengths))
    mean = sum(lengths) / len(lengths)
    variance = sum((length - mean) ** 2 for length in lengths) / len(lengths)
    most = min(n * mean + 2 * math.sqrt(n * variance), n * max(lengths))
    return math.ceil(most / processes.world_size())


@dataclass(frozen=True)
class Estimate:
    """Bytes on one process."""

    weights: int
    """Of the trained models: all, or this process's part."""
    gradients: int
    moments: int
    frozen: int
    decoding: int
    step: int
    """Per micro-batch: activations, logits, matrices in the compute precision, gathered layers."""
    adding: int
    """Buckets of gradients during the all-reduce."""

    @property
    def total(self) -> int:
        """The peak: there are no gradients while responses are decoded, and no activations while gradients are
        reduced."""
        passing = max(self.decoding, self.gradients + max(self.step, self.adding))
        return self.weights + self.moments + self.frozen + passing


def estimate(workload: Workload, device: torch.device, dtype: torch.dtype, micro_batch: int) -> Estimate:
    """The memory of a stage on one process beyond the idle program, in micro-batches of at most this many tokens."""
    n, together, part = sum(map(n_parameters, workload.trained)), workload.processes, workload.part
    learnt = part.parameters * len(workload.trained) if part else n
    share = together if workload.sharded else 1  # of a sharded model, every process holds this part of everything
    weights = sum(part.weights(config, dtype) for config in workload.trained) if part else 4 * n
    if part and workload.one_base:
        weights = part.weights(workload.trained[0], dtype) + 4 * part.parameters * (len(workload.trained) - 1)
    if part and workload.sharded:  # its frozen weights stay in float32, and no other model can share them
        weights = 4 * (n + learnt * part.adapters)
    copies = [config for config in workload.trained[:1] for _ in range(workload.frozen_copies)]
    at_once = min(workload.tokens, micro_batch)
    outputs = math.ceil(at_once * workload.outputs)

    def step(config: ModelConfig) -> int:
        passes = step_bytes(config, dtype, at_once, workload.checkpointing, outputs, part)
        if device.type == "cpu":
            alike = workload.one_shape or (workload.tokens <= micro_batch and workload.decoding is None)
            gaps = FEW_GAPS if alike else 1.0
            kept = activation_bytes(_with_gradients(config, part), dtype, workload.checkpointing)
            passes += round(gaps * SCATTERED * at_once * kept)
            passes += round(gaps * SCATTERED_LOGITS * logits_bytes(config, dtype, outputs))
        return passes + (gathered_bytes(config) if workload.sharded else 0)

    decoding = workload.decoding
    return Estimate(
        weights=math.ceil(weights / share),
        gradients=4 * math.ceil(learnt / share),
        moments=8 * math.ceil(learnt / share),
        frozen=sum(frozen_bytes(config, dtype) for config in workload.frozen)
        + sum(
            frozen_bytes(config, dtype) if part is None or workload.sharded else part.frozen_copy_bytes(dtype)
            for config in copies
        ),
        decoding=decoding_bytes(decoding, device, dtype, workload.sharded, bool(part and part.adapters))
        if decoding
        else 0,
        step=max(map(step, workload.trained), default=0),
        adding=4 * learnt if together > 1 and not workload.sharded else 0,
    )


def gathered_bytes(config: ModelConfig) -> int:
    """What a sharded model gathers while it computes: the embeddings and two layers in full, and their gradients."""
    return 2 * 4 * (min(2, config.n_layer) * config.block.total + config.outside_blocks)


def forward_flops(config: ModelConfig, tokens: float, length: float, outputs: float) -> float:
    """One forward pass; backward costs twice as much (Kaplan et al. 2020, section 2.1, with attention and outputs).

    Args:
        tokens: the number read.
        length: of their sequences; a token attends to half of it on average.
        outputs: the number of tokens at which logits are computed.
    """
    attention = 2 * length * config.n_head * config.head_width
    trunk = tokens * config.n_layer * (2 * config.block.matrices + attention)
    return trunk + 2 * outputs * config.vocab_size * config.n_embd


def lower_flops(config: ModelConfig, tokens: float, length: float, part: TrainedPart | None) -> float:
    """Of a forward pass, the layers below all that is trained, which policy and reference compute once."""
    return forward_flops(replace(config, n_layer=part.frozen_layers), tokens, length, 0) if part else 0.0


def training_flops(
    config: ModelConfig, tokens: float, length: float, outputs: float, part: TrainedPart | None = None
) -> float:
    """Forward and backward pass. Backward costs a forward pass for the gradients of the activations, and another one
    for those of the weights, of which adapters have next to none; neither exists below what is trained.

    part: what is trained, if not everything; other arguments as for `forward_flops`.
    """
    forward = forward_flops(config, tokens, length, outputs)
    if part is None:
        return 3 * forward
    logits = forward - forward_flops(config, tokens, length, 0)  # of frozen embeddings: they have no gradient
    upper = forward - logits - lower_flops(config, tokens, length, part)
    return forward + logits + (1 if part.adapters else 2) * upper


# ------------------------------------------------------------------------------------------------------- the machine


def free_bytes(device: torch.device) -> int | None:
    """Memory still available to this process; None if the system does not say. The processes of a job that run on one
    machine's CPU share its free memory."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "mps":  # it shares the memory of the machine
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    known = []
    if (meminfo := Path("/proc/meminfo")).is_file():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        known.append(int(fields["MemAvailable"].split()[0]) * 1024)
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
        known.append(int(text) - int(used.read_text()))
    if not known and "SC_AVPHYS_PAGES" in os.sysconf_names:
        known.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(known) // processes.local_world_size() if known else None


def fitting_tokens(workload: Workload, device: torch.device, dtype: torch.dtype, limit: int, free: float) -> int:
    """The largest micro-batch: `limit` halved until it fits the free memory, but at least 64 tokens, even if that does
    not fit.

    free: of `free_bytes`, with the trained weights loaded already and nothing else.
    """
    tokens = limit
    while tokens > 64:
        found = estimate(workload, device, dtype, tokens)
        if found.total - found.weights <= (1 - SPARE) * free:
            break
        tokens = max(64, tokens // 2)
    return tokens


def gigabytes(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.0f} MB"
