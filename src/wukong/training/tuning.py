"""What of a model is trained: everything, adapters beside its matrices (LoRA), or only its upper layers.

Frozen weights have no gradient and no optimiser state, and models that start from the same weights share them in
memory. So the reference is the policy without its adapters: no second copy; with frozen layers, a copy of the layers
above them. In bfloat16 the frozen matrices are held in bfloat16: autocast would round them so in every pass anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from wukong.errors import UsageError
from wukong.model.config import ModelConfig
from wukong.model.families import new_model
from wukong.model.heads import ScalarModel
from wukong.model.lora import adapt, adapted_layers, blocks_of, chosen_layers, linear_layers
from wukong.options import Options
from wukong.seeds import derived_seed
from wukong.training.memory import TrainedPart
from wukong.training.parallel import trained

Module = TypeVar("Module", bound=nn.Module)


class TuningOptions(Options):
    """Which parameters are trained."""

    lora_rank: int = Field(0, ge=0)
    """Train adapters of this rank (LoRA) beside the frozen weights, and save them in PEFT's format; 0 trains the
    weights."""
    lora_alpha: float | None = Field(None, gt=0)
    """The adapters' updates are scaled by alpha/rank. Default: twice the rank."""
    lora_targets: list[str] = []
    """The linear layers with adapters, by their names within a block (c_attn, mlp.c_proj, q_proj). Default: all."""
    freeze_layers: int = Field(0, ge=0)
    """Freeze the embeddings and this many layers, counted from the bottom: backward passes stop above them, and models
    that share them compute them once."""

    @property
    def adapter_dropout(self) -> float:
        """Reinforcement learning and DPO compare log-probs of two passes, which must not differ by dropout."""
        return 0.0


class DropoutTuningOptions(TuningOptions):
    """What supervised stages add."""

    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate of the adapters' inputs."""

    @property
    def adapter_dropout(self) -> float:
        return self.lora_dropout


def check_tuning(options: TuningOptions, model: nn.Module | None = None) -> None:
    """Raises UsageError for incompatible options, or for options that do not fit the model (weights are not read)."""
    given = {"--lora-alpha": options.lora_alpha, "--lora-dropout": options.adapter_dropout}
    for name, value in (given | {"--lora-targets": options.lora_targets}).items():
        if value and not options.lora_rank:
            raise UsageError(f"{name} has no effect without adapters: give a --lora-rank")
    if model is None:
        return
    if options.lora_rank:
        chosen_layers(model, options.lora_targets)
    if options.freeze_layers >= (count := len(blocks_of(model))):
        raise UsageError(f"--freeze-layers {options.freeze_layers} leaves no layer to train: the model has {count}")


def trunk_of(model: nn.Module) -> nn.Module:
    """The transformer of a reward or value model; any other model itself."""
    return model.trunk if isinstance(model, ScalarModel) else model


def tuned(model: Module, options: TuningOptions, seed: int) -> Module:
    """The model itself, ready to be trained: with adapters, and with frozen parameters. Heads are always trained.

    A model that was loaded with an adapter keeps it, with its rank, and it is trained further.

    Raises UsageError for options that do not fit the model.
    """
    check_tuning(options, model)
    trunk = trunk_of(model)
    if options.lora_rank:
        trunk.requires_grad_(False)
        torch.manual_seed(derived_seed(seed, "lora"))
        alpha = options.lora_alpha or 2.0 * options.lora_rank
        own = adapted_layers(trunk)
        if not own:
            for name in chosen_layers(trunk, options.lora_targets, options.freeze_layers):
                own[name] = adapt(trunk, name, options.lora_rank, alpha)
        for layer in own.values():
            layer.adapter_dropout = options.adapter_dropout
            layer.lora_A.requires_grad_(True)
            layer.lora_B.requires_grad_(True)
    if options.freeze_layers:
        for module in trunk.modules():
            if isinstance(module, nn.Embedding):
                module.requires_grad_(False)
        for block in list(blocks_of(trunk))[: options.freeze_layers]:
            block.requires_grad_(False)
    return model


def trained_part(config: ModelConfig, options: TuningOptions) -> TrainedPart | None:
    """What is trained of a transformer of this size, for estimates; None for everything."""
    if not options.lora_rank and not options.freeze_layers:
        return None
    with torch.device("meta"):
        model = tuned(new_model(config), options, 0)
    of_matrices = (p for _, _, _, layer in linear_layers(model) for p in layer.parameters())
    return TrainedPart(
        sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        sum(parameter.numel() for parameter in of_matrices if parameter.requires_grad),
        bool(options.lora_rank),
        options.freeze_layers,
    )


def hold_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Casts the frozen matrices of the blocks, and their biases, to the compute precision. Embeddings, norms and heads
    stay in float32, as autocast leaves them: the results are the same to the bit."""
    for blocks in model.modules():
        for layer in blocks.modules() if isinstance(blocks, nn.ModuleList) else ():
            if isinstance(layer, nn.Linear):
                for parameter in (layer.weight, layer.bias):
                    if parameter is not None and not parameter.requires_grad:
                        parameter.data = parameter.data.to(dtype)


def share_frozen(model: nn.Module, holder: nn.Module) -> None:
    """Replaces frozen parameters of the model by the holder's equal frozen ones, so that they exist once."""
    theirs = {name: p for name, p in trunk_of(holder).named_parameters() if not p.requires_grad}
    for name, module in trunk_of(model).named_modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            other = theirs.get(f"{name}.{key}" if name else key)
            if other is not None and not parameter.requires_grad and _equal(parameter, other):
                setattr(module, key, other)


def _equal(parameter: Tensor, other: Tensor) -> bool:
    same_shape = parameter.shape == other.shape
    return parameter is other or (same_shape and torch.equal(parameter.to(other.device, other.dtype), other))


def shared_layers(model: nn.Module, other: nn.Module) -> int:
    """The number of layers from the bottom that both models compute with the same parameters; 0 if the embeddings
    differ."""
    embeddings = [[m.weight for m in trunk_of(one).modules() if isinstance(m, nn.Embedding)] for one in (model, other)]
    if not all(ours is theirs for ours, theirs in zip(*embeddings, strict=True)):
        return 0
    layers = [[list(block.parameters()) for block in blocks_of(one)] for one in (model, other)]
    for number, (ours, theirs) in enumerate(zip(*layers, strict=True)):
        if len(ours) != len(theirs) or any(p is not q for p, q in zip(ours, theirs, strict=True)):
            return number
    return len(layers[0])


@torch.no_grad()
def as_loaded(model: Module, start: Callable[[], Module]) -> Module:
    """The trained model with its frozen weights as they were loaded, for saving: training may hold them in bfloat16.

    start: loads the model again, `tuned` in the same way.
    """
    if all(parameter.dtype == torch.float32 for parameter in model.parameters()):
        return model
    fresh = start()
    places = dict(fresh.named_parameters())
    for name, parameter in trained(model):
        places[name].copy_(parameter)
    return fresh.train(model.training)
