"""How the modules of a training run are distributed over the processes of a job.

    ddp   every process holds every module in full; after a step's backward passes the gradients are all-reduced.
    fsdp  each holds a shard of every tensor, its gradient and its moments (FSDP2, `fully_shard`); layers are gathered
          only while they are computed: for models whose training state does not fit on one device.

Losses are divided by the whole batch's count before `backward`, so gradients add up however the rows are distributed.
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
from wukong.model.heads import ScalarModel
from wukong.model.language_model import LanguageModel

Parallel = Literal["ddp", "fsdp"]
Module = TypeVar("Module", bound=nn.Module)
Part = TypeVar("Part")

BUCKET = 1 << 23
"""Gradients (elements) per all-reduce."""

_skeletons: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
"""Each sharded module as it was, without weights. (FSDP2 takes seconds to import, so only sharding imports it.)"""


def place(module: nn.Module, parallel: Parallel, device: torch.device) -> None:
    """Puts a module, in full or sharded, on this process's device; all processes start from the first one's weights.

    Raises UsageError for fsdp in a job of one process.
    """
    if parallel == "ddp":
        module.to(device)
        if processes.world_size() > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                torch.distributed.broadcast(tensor.detach(), src=0)
        return
    if processes.world_size() == 1:
        raise UsageError("--parallel fsdp shards a model over several processes: start them with torchrun")
    from torch.distributed.fsdp import fully_shard

    _skeletons[module] = copy.deepcopy(module).to("meta")
    mesh = torch.distributed.init_device_mesh(device.type, (processes.world_size(),))
    for root in _roots(module):
        for layers in [m for m in root.modules() if isinstance(m, nn.ModuleList)]:
            for layer in layers:
                fully_shard(layer, mesh=mesh)
        fully_shard(root, mesh=mesh)


def _roots(module: nn.Module) -> list[nn.Module]:
    """The modules that are called: a transformer, or the trunk and the head of a model that has both."""
    if isinstance(module, LanguageModel):
        return [module]
    return [child for child in module.children() if any(True for _ in child.parameters())]


def is_sharded(module: nn.Module) -> bool:
    return module in _skeletons


def named_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters as the optimiser knows them: this process's shards, even if a pass without gradient has just
    gathered a layer."""
    if is_sharded(module):
        for root in _roots(module):
            cast(Any, root).reshard()
    return module.named_parameters()


def placed_like(tensor: Tensor, example: Tensor) -> Tensor:
    """A copy of the tensor placed like the example: on its device, and sharded the same way."""
    placed = tensor.to(example.device, copy=True)
    if not hasattr(example, "device_mesh") or hasattr(tensor, "device_mesh"):
        return placed
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(placed, cast(Any, example).device_mesh, cast(Any, example).placements)


def full_module(module: Module, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Module:
    """A plain module with all the weights; the module itself if it is not sharded. A collective.

    device, dtype: for the copy of a sharded module. Its tensors are gathered one by one.
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


def full_parameter(module: nn.Module, name: str) -> Tensor:
    """One parameter of a module in full; a collective if the module is sharded."""
    found = dict(named_parameters(module))[name].detach()
    return cast(Tensor, cast(Any, found).full_tensor()) if is_sharded(module) else found


def lockstep(parts: Iterable[Part], *modules: nn.Module) -> Iterator[Part]:
    """The parts; with sharded modules, dummy passes are added until every process makes as many passes as the one with
    the most parts, since no process can compute a layer without the others' shards. A dummy pass reads one token and
    has zero gradient.

    A part is one pass, with its backward pass if gradients are enabled, through each of the modules in this order.
    """
    if not any(map(is_sharded, modules)):
        yield from parts
        return
    parts = list(parts)
    (most,) = processes.all_reduce_max(len(parts))
    yield from parts
    for _ in range(round(most) - len(parts)):
        for module in modules:
            if is_sharded(module):
                device = next(module.parameters()).device
                nothing = torch.zeros(1, 1, dtype=torch.int64, device=device)
                read = module if isinstance(module, LanguageModel) else cast(ScalarModel, module).token_scores
                out = read(nothing)
                if torch.is_grad_enabled():
                    (out.sum() * 0).backward()


def backward(loss: Tensor, module_is_sharded: bool) -> None:
    """Computes gradients that add up over the processes. FSDP averages them, so its loss is scaled up first."""
    (loss * processes.world_size() if module_is_sharded else loss).backward()


def all_reduce_gradients(modules: Iterable[nn.Module]) -> None:
    """Sums the gradients of unsharded modules over the processes, in buckets that are the same at every step, so that
    a resumed run adds in the same order. A missing gradient counts as zero."""
    if processes.world_size() == 1:
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


def clip_gradients(module: nn.Module, max_norm: float) -> float:
    """Scales the gradients down to this norm if theirs is larger. Returns the norm before clipping."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    total = nn.utils.get_total_norm(gradients)
    norm = float(cast(Any, total).full_tensor() if is_sharded(module) else total)
    if max_norm and not norm <= max_norm:  # skips a pass over all gradients, which is rarely needed
        nn.utils.clip_grads_with_norm_(module.parameters(), max_norm, total)
    return norm
