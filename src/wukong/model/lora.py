"""LoRA: a trained update of low rank beside each frozen matrix (Hu et al. 2021, arXiv 2106.09685).

A layer computes W x + alpha/r B A x, where only A (r, K) and B (N, r) are trained. B starts at 0, so that at the start
the adapted model is the original to the last bit. The names of the original parameters do not change, and nothing here
knows a model family: an adapter belongs to `nn.Linear` modules of the transformer's blocks.

Shape legend: K and N columns and rows of a weight matrix, r the rank.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wukong.errors import UsageError

Module = TypeVar("Module", bound=nn.Module)


class LoRALinear(nn.Linear):
    """A frozen linear layer with an adapter: (..., K) -> (..., N)."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, dropout: float = 0.0) -> None:
        """layer: its weight and bias are used, not copied. dropout: of the adapter's input, in training mode."""
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.requires_grad_(False)
        self.rank, self.alpha, self.adapter_dropout = rank, alpha, dropout
        device = layer.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, layer.in_features, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(layer.out_features, rank, dtype=torch.float32, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as nn.Linear; the paper's Gaussian has the same effect

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(F.dropout(x, self.adapter_dropout, self.training), self.lora_A)  # (..., r)
        return F.linear(x, self.weight, self.bias) + F.linear(low, self.lora_B) * (self.alpha / self.rank)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """W + alpha/r B A: (N, K) float32."""
        return self.weight.float() + (self.lora_B @ self.lora_A) * (self.alpha / self.rank)


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The transformer's blocks, from the embedding upwards."""
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


def adapted_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The layers with an adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def linear_layers(model: nn.Module) -> Iterator[tuple[str, str, int, nn.Linear]]:
    """(name in the model, name in the block, the block's number, layer) of the linear layers of the blocks."""
    blocks = blocks_of(model)
    prefix = next(name for name, module in model.named_modules() if module is blocks)
    for number, block in enumerate(blocks):
        for name, layer in block.named_modules():
            if isinstance(layer, nn.Linear):
                yield f"{prefix}.{number}.{name}", name, number, layer


def chosen_layers(model: nn.Module, targets: Sequence[str], first: int = 0) -> dict[str, nn.Linear]:
    """The linear layers of the blocks from `first` on, by name.

    Args:
        targets: names within a block, in full (attn.c_proj) or their last part (c_proj); empty for all.

    Raises:
        UsageError: a target names no layer.
    """
    layers = list(linear_layers(model))

    def names(target: str, own: str) -> bool:
        return own == target or own.endswith(f".{target}")

    for target in targets:
        if not any(names(target, own) for _, own, *_ in layers):
            known = ", ".join(dict.fromkeys(own for _, own, *_ in layers))
            raise UsageError(f"--lora-targets {target}: no such linear layer; the model's are {known}")
    return {
        name: layer
        for name, own, number, layer in layers
        if number >= first and (not targets or any(names(target, own) for target in targets))
    }


def adapt(model: nn.Module, name: str, rank: int, alpha: float, dropout: float = 0.0) -> LoRALinear:
    """Adds an adapter to one linear layer, by its name in the model."""
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"{name} is a {type(layer).__name__}, not a linear layer")
    adapted = LoRALinear(layer, rank, alpha, dropout).train(layer.training)
    model.set_submodule(name, adapted)
    return adapted


@torch.no_grad()
def merged(model: Module, dtype: torch.dtype = torch.float32) -> Module:
    """A model without adapters, which are added into the weights (in float32, then rounded), with all parameters in
    `dtype`; those that are so already are shared, not copied. The model itself if there is nothing to change."""
    layers = adapted_layers(model)
    if not layers and all(parameter.dtype == dtype for parameter in model.parameters()):
        return model
    kept = {parameter for layer in layers.values() for parameter in (layer.weight, layer.lora_A, layer.lora_B)}
    kept |= {parameter for parameter in model.parameters() if parameter.dtype == dtype}
    changed = {id(p): nn.Parameter(p.detach().to(dtype), False) for p in model.parameters() if p not in kept}
    result = copy.deepcopy(model, changed | {id(parameter): parameter for parameter in kept})
    for name, layer in adapted_layers(result).items():
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        plain.weight, plain.bias = nn.Parameter(layer.merged_weight().to(dtype), False), layer.bias
        result.set_submodule(name, plain.train(layer.training))
    return result
