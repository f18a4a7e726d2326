"""How the modules of a training run are spread over the processes of a job.

    ddp   every process holds each module whole; after the backward passes of a step the gradients are added up.
    fsdp  each holds a part of every tensor, its gradient and its moments (FSDP2, `fully_shard`), and layers are
          gathered for the moment in which they are computed: for models whose training state does not fit one device.

Losses are divided by the count of the whole batch before `backward`, so that gradients add up, whoever had how many
rows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from wukong import processes
from wukong.errors import UsageError
from wukong.model.gpt2 import GPT2
from wukong.model.heads import ScalarModel

Parallel = Literal["ddp", "fsdp"]
Module = TypeVar("Module", bound=nn.Module)
Part = TypeVar("Part")

BUCKET = 1 << 23
"""Gradients (elements) that are added up at once."""

_skeletons: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
"""What each sharded module was, without weights. (FSDP2 takes seconds to import, so only who shards does.)"""


def place(module: nn.Module, parallel: Parallel, device: torch.device) -> None:
    """Puts a module on this process's device, whole or its part of it; all processes start from the first one's
    weights.

    Raises UsageError where there is nobody to share with.
    """
    if parallel == "ddp":
        module.to(device)
        if processes.size() > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                torch.distributed.broadcast(tensor.detach(), src=0)
        return
    if processes.size() == 1:
        raise UsageError("--parallel fsdp spreads a model over several processes: start them with torchrun")
    from torch.distributed.fsdp import fully_shard

    _skeletons[module] = copy.deepcopy(module).to("meta")
    mesh = torch.distributed.init_device_mesh(device.type, (processes.size(),))
    for root in _roots(module):
        for layers in [m for m in root.modules() if isinstance(m, nn.ModuleList)]:
            for layer in layers:
                fully_shard(layer, mesh=mesh)
        fully_shard(root, mesh=mesh)


def _roots(module: nn.Module) -> list[nn.Module]:
    """What is called: a transformer, or the trunk and the head of a model that has both."""
    if isinstance(module, GPT2):
        return [module]
    return [child for child in module.children() if any(True for _ in child.parameters())]


def is_sharded(module: nn.Module) -> bool:
    return module in _skeletons


def named_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters as the optimiser knows them: this process's parts, also where a pass without gradient has just
    gathered a layer."""
    if is_sharded(module):
        for root in _roots(module):
            cast(Any, root).reshard()
    return module.named_parameters()


def like(tensor: Tensor, example: Tensor) -> Tensor:
    """The tensor, in memory of its own, placed as the example is: on its device, and spread as it is spread."""
    placed = tensor.to(example.device, copy=True)
    if not hasattr(example, "device_mesh") or hasattr(tensor, "device_mesh"):
        return placed
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(placed, cast(Any, example).device_mesh, cast(Any, example).placements)


def whole(module: Module, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Module:
    """A plain module with all the weights; the module itself where it is not sharded. All processes call it at once.

    device, dtype: of the copy of a sharded module. Its tensors are gathered one by one.
    """
    if not is_sharded(module):
        return module
    plain = copy.deepcopy(_skeletons[module])
    tensors = {
        name: cast(Any, parameter.detach()).full_tensor().to(device, dtype)
        for name, parameter in named_parameters(module)
    }
    plain.load_state_dict(tensors, assign=True)
    return cast(Module, plain.train(module.training))


def whole_parameter(module: nn.Module, name: str) -> Tensor:
    """One parameter of a module, whole; of a sharded one all processes ask at once."""
    found = dict(named_parameters(module))[name].detach()
    return cast(Tensor, cast(Any, found).full_tensor()) if is_sharded(module) else found


def in_step(parts: Iterable[Part], *modules: nn.Module) -> Iterator[Part]:
    """The parts, and with sharded modules as many passes as the process with the most parts makes: none can compute a
    layer without the others' shares of it. A pass without a part reads one token and teaches nothing.

    A part is one pass, with its backward pass where gradients are wanted, through each of the modules in this order.
    """
    if not any(map(is_sharded, modules)):
        yield from parts
        return
    parts = list(parts)
    (most,) = processes.largest(len(parts))
    yield from parts
    for _ in range(round(most) - len(parts)):
        for module in modules:
            if is_sharded(module):
                device = next(module.parameters()).device
                nothing = torch.zeros(1, 1, dtype=torch.int64, device=device)
                out = module(nothing) if isinstance(module, GPT2) else cast(ScalarModel, module).token_scores(nothing)
                if torch.is_grad_enabled():
                    (out.sum() * 0).backward()


def backward(loss: Tensor, module_is_sharded: bool) -> None:
    """Gradients that add up over the processes. FSDP takes their mean, so it is given as many times the loss."""
    (loss * processes.size() if module_is_sharded else loss).backward()


def add_gradients(modules: Iterable[nn.Module]) -> None:
    """Adds up the gradients of modules that every process holds whole, in buckets that are the same at every step, so
    that a resumed run adds in the same order. A gradient that this process has none of counts as zero."""
    if processes.size() == 1:
        return
    pending = []
    for bucket in _buckets([p for module in modules if not is_sharded(module) for p in module.parameters()]):
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
        pending.append((bucket, flat, torch.distributed.all_reduce(flat, async_op=True)))
    for bucket, flat, work in pending:
        work.wait()
        for parameter, gradient in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            parameter.grad = gradient.view_as(parameter)


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        if bucket and sum(p.numel() for p in bucket) + parameter.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def clip(module: nn.Module, max_norm: float) -> float:
    """Scales the gradients down to this norm where they are longer. Returns what it was."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    total = nn.utils.get_total_norm(gradients)
    norm = float(cast(Any, total).full_tensor() if is_sharded(module) else total)
    if max_norm and not norm <= max_norm:  # a pass over all gradients that is most often not needed
        nn.utils.clip_grads_with_norm_(module.parameters(), max_norm, total)
    return norm
