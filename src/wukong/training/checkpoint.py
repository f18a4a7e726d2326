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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wukong.console import say
from wukong.errors import WukongError
from wukong.files import atomic_directory, fingerprint


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


def prune_checkpoints(directory: Path, keep: int) -> None:
    for old in sorted(directory.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def load_latest(
    directory: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Any]]:
    """Loads the newest undamaged checkpoint into the modules and the optimiser.

    Returns:
        (steps done, the stage's state); (0, {}) when there is no checkpoint. A damaged one is named in a warning
        and the one before it is used.
    """
    for path in sorted(directory.glob("step-*"), reverse=True):
        try:
            saved = json.loads((path / "state.json").read_text())
            if fingerprint(path / "state.safetensors") != saved["sha256"]:
                raise WukongError("its hash does not match")
            tensors = load_file(path / "state.safetensors")
            _restore(tensors, modules, optimizer)
        except (OSError, ValueError, KeyError, RuntimeError, WukongError) as error:
            say(f"warning: checkpoint {path} is damaged ({error}); going back to the one before it")
            continue
        return saved["step"], saved["state"]
    return 0, {}


def _restore(tensors: dict[str, Tensor], modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        for module_name, module in modules.items():
            for name, parameter in module.named_parameters():
                parameter.copy_(tensors[f"weights/{module_name}/{name}"])
                moments = {}
                for key in ("step", "exp_avg", "exp_avg_sq"):
                    value = tensors.get(f"adam/{key}/{module_name}/{name}")
                    if value is not None:
                        moments[key] = value if key == "step" else value.to(parameter.device)
                if moments:
                    optimizer.state[parameter] = moments
