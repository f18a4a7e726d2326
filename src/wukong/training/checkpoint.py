"""Checkpoints that are complete or absent, contain no pickle, and reveal damage.

`checkpoints/step-000123/` holds `state.safetensors` (the trained weights and Adam's moments; frozen weights are those
of the model that the stage started from) and `state.json` (the step, the stage's state between steps, and the hash of
the tensors, written last). If modules are sharded, each process writes its parts of the tensors to its own file
(torch.distributed.checkpoint, as safetensors).
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wukong import processes
from wukong.console import say
from wukong.errors import UsageError, WukongError
from wukong.files import atomic_directory, fingerprint, read_json, remove_leftovers, remove_set_aside
from wukong.training.optimizer import MOMENTS, Optimizer
from wukong.training.parallel import is_sharded, placed_like, trained

ONE_FILE = "state.safetensors"
DAMAGE = (OSError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError, SafetensorError)
"""Errors that reading a corrupted checkpoint may raise."""


def _tensors(modules: Mapping[str, nn.Module], optimizer: Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for module_name, module in modules.items():
        for name, parameter in trained(module):
            tensors[f"weights/{module_name}/{name}"] = parameter.detach()
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"adam/{key}/{module_name}/{name}"] = value
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def save_checkpoint(
    directory: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizer: Optimizer,
    state: dict[str, Any],
) -> Path:
    """Writes `step-NNNNNN/` atomically. `step` is the number of steps done. A collective."""
    target, tensors = directory / f"step-{step:06d}", _tensors(modules, optimizer)
    sharded = any(map(is_sharded, modules.values()))
    with atomic_directory(target) if processes.is_first() else contextlib.nullcontext(target) as staging:
        if sharded:
            _save_shards(tensors, processes.broadcast(staging))
        elif processes.is_first():
            save_file(tensors, staging / ONE_FILE)
        if processes.is_first():
            hashes = {file.name: fingerprint(file) for file in sorted(staging.glob("*.safetensors"))}
            state = {"step": step, "state": state, "sha256": hashes if sharded else hashes[ONE_FILE]}
            (staging / "state.json").write_text(json.dumps(state, indent=2))
    return target


def _save_shards(tensors: dict[str, Tensor], directory: Path) -> None:
    """Writes each process's parts of the tensors to its own safetensors file, with the metadata to join them."""
    import torch.distributed.checkpoint as dcp

    dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(directory), save_distributed=True))
    processes.barrier()


def list_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in `directory`, oldest first."""
    numbered = (path for path in directory.glob("step-*") if path.name.removeprefix("step-").isdecimal())
    return sorted(numbered, key=lambda path: int(path.name.removeprefix("step-")))


def prune_checkpoints(directory: Path, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints, and the remains of interrupted saves."""
    if not processes.is_first():
        return
    for old in list_checkpoints(directory)[:-keep]:
        shutil.rmtree(old)
    remove_leftovers(directory, "step-*")
    remove_set_aside(directory, "step-*")


def load_latest(directory: Path, modules: Mapping[str, nn.Module], optimizer: Optimizer) -> tuple[int, dict[str, Any]]:
    """Loads the newest undamaged checkpoint into the modules and the optimiser, for any number of processes and any
    sharding, then and now.

    Returns:
        (steps done, the stage's state); (0, {}) without a checkpoint. A damaged one is reported in a warning and
        renamed `damaged-step-NNNNNN`, and the previous one is used.

    Raises:
        UsageError: an undamaged checkpoint is of a different model than `modules`.
    """
    path = processes.run_on_first(lambda: _newest_undamaged(directory))
    if path is None:
        return 0, {}
    saved = read_json(path / "state.json")
    found = _shapes(path)
    _check_fits(path, found, modules)
    whole = path / ONE_FILE
    tensors = load_file(whole) if whole.exists() else _load_shards(path, found, modules)
    _restore(tensors, modules, optimizer)
    return int(saved["step"]), dict(saved["state"])


def _newest_undamaged(directory: Path) -> Path | None:
    for path in reversed(list_checkpoints(directory)):
        try:
            saved = read_json(path / "state.json")
            hashes = saved["sha256"] if isinstance(saved["sha256"], dict) else {ONE_FILE: saved["sha256"]}
            for name, expected in hashes.items():
                if fingerprint(path / name) != expected:
                    raise WukongError("its hash does not match")
            _shapes(path), int(saved["step"]), dict(saved["state"])
            return path
        except (*DAMAGE, WukongError) as error:
            say(
                "warning: checkpoint {path} is damaged ({error}); going back to the one before it",
                path=path,
                error=error,
            )
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
    return None


Shapes = dict[str, torch.Size]
"""The shapes of a checkpoint's tensors, by name."""


def _shapes(directory: Path) -> Shapes:
    if (directory / ONE_FILE).exists():
        with safe_open(directory / ONE_FILE, framework="pt") as opened:
            return {name: torch.Size(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    import torch.distributed.checkpoint as dcp

    metadata = dcp.HuggingFaceStorageReader(str(directory)).read_metadata()
    return {name: tensor.size for name, tensor in metadata.state_dict_metadata.items()}  # type: ignore[union-attr]


def _load_shards(directory: Path, found: Shapes, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors, sharded like the modules' parameters: each process reads the parts it needs."""
    import torch.distributed.checkpoint as dcp

    tensors: dict[str, Tensor] = {}
    for module_name, module in modules.items():
        for name, parameter in trained(module):
            tensors[f"weights/{module_name}/{name}"] = torch.empty_like(parameter)
            for key in MOMENTS:
                if (place := f"adam/{key}/{module_name}/{name}") in found:
                    tensors[place] = torch.empty(()) if key == "step" else torch.empty_like(parameter)
    with torch.no_grad():
        reader = dcp.HuggingFaceStorageReader(str(directory))
        dcp.load(tensors, storage_reader=reader, no_dist=processes.world_size() == 1)
    return tensors


def _check_fits(path: Path, shapes: Shapes, modules: Mapping[str, nn.Module]) -> None:
    """Checks before anything is overwritten: a half-restored model would silently train on."""
    wanted = {f"weights/{m}/{n}": p.shape for m, module in modules.items() for n, p in trained(module)}
    found = {name: shape for name, shape in shapes.items() if name.startswith("weights/")}
    if found != wanted:
        name = min(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
        raise UsageError(
            "{path}: a checkpoint of another model (tensor {tensor} does not fit); "
            "choose another --out, or rebuild it with {redo}",
            path=path,
            tensor=name.removeprefix("weights/"),
            redo="--redo",
        )


def _restore(tensors: dict[str, Tensor], modules: Mapping[str, nn.Module], optimizer: Optimizer) -> None:
    with torch.no_grad():
        for module_name, module in modules.items():
            for name, parameter in trained(module):
                parameter.copy_(placed_like(tensors[f"weights/{module_name}/{name}"], parameter))
                moments = {}
                for key in MOMENTS:
                    value = tensors.get(f"adam/{key}/{module_name}/{name}")
                    if value is not None:  # a copy: the loaded tensor is the mapped file
                        moments[key] = (
                            value.to(parameter.device, copy=True) if key == "step" else placed_like(value, parameter)
                        )
                if moments:
                    optimizer.state[parameter] = moments
