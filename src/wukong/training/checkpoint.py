"""Checkpoints that are complete or absent, hold no pickle, and are noticed when damaged.

`checkpoints/step-000123/` holds `state.safetensors` (weights and Adam's moments) and `state.json` (the step, what
the stage keeps between steps, and the hash of the tensors, written last).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wukong.console import say
from wukong.errors import UsageError, WukongError
from wukong.files import atomic_directory, fingerprint, remove_leftovers


def _tensors(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for module_name, module in modules.items():
        for name, parameter in module.named_parameters():
            tensors[f"weights/{module_name}/{name}"] = parameter.detach()
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"adam/{key}/{module_name}/{name}"] = value
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def save_checkpoint(
    directory: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> Path:
    """Writes `step-NNNNNN/` atomically. `step` is the number of steps done."""
    target = directory / f"step-{step:06d}"
    with atomic_directory(target) as staging:
        save_file(_tensors(modules, optimizer), staging / "state.safetensors")
        state = {"step": step, "state": state, "sha256": fingerprint(staging / "state.safetensors")}
        (staging / "state.json").write_text(json.dumps(state, indent=2))
    return target


def list_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in `directory`, the oldest first."""
    return sorted(directory.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))


def prune_checkpoints(directory: Path, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints, and what saves that were killed left behind."""
    for old in list_checkpoints(directory)[:-keep]:
        shutil.rmtree(old)
    remove_leftovers(directory, "step-*")


def load_latest(
    directory: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Any]]:
    """Loads the newest undamaged checkpoint into the modules and the optimiser.

    Returns:
        (steps done, the stage's state); (0, {}) when there is no checkpoint. A damaged one is named in a warning
        and set aside (as `damaged-step-NNNNNN`), and the one before it is used.

    Raises:
        UsageError: an undamaged checkpoint holds another model than `modules`.
    """
    for path in reversed(list_checkpoints(directory)):
        try:
            saved = json.loads((path / "state.json").read_text())
            if fingerprint(path / "state.safetensors") != saved["sha256"]:
                raise WukongError("its hash does not match")
            step, state = int(saved["step"]), dict(saved["state"])
            tensors = load_file(path / "state.safetensors")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, WukongError) as error:
            say(f"warning: checkpoint {path} is damaged ({error}); going back to the one before it")
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            continue
        _check_fits(path, tensors, modules)
        _restore(tensors, modules, optimizer)
        return step, state
    return 0, {}


def _check_fits(path: Path, tensors: dict[str, Tensor], modules: Mapping[str, nn.Module]) -> None:
    """Before anything is overwritten: a half restored model would train on without a word."""
    wanted = {f"weights/{m}/{n}": p.shape for m, module in modules.items() for n, p in module.named_parameters()}
    found = {name: tensor.shape for name, tensor in tensors.items() if name.startswith("weights/")}
    if found != wanted:
        name = min(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
        raise UsageError(
            f"{path}: a checkpoint of another model (tensor {name.removeprefix('weights/')} does not fit); "
            "use another --out, or make it anew with --redo"
        )


def _restore(tensors: dict[str, Tensor], modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        for module_name, module in modules.items():
            for name, parameter in module.named_parameters():
                parameter.copy_(tensors[f"weights/{module_name}/{name}"])
                moments = {}
                for key in ("step", "exp_avg", "exp_avg_sq"):
                    value = tensors.get(f"adam/{key}/{module_name}/{name}")
                    if value is not None:  # a copy, in memory of its own: the loaded tensor is the mapped file
                        moments[key] = value.to(parameter.device, copy=True)
                if moments:
                    optimizer.state[parameter] = moments
