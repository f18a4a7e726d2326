"""Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors, in both directions.

PEFT names a tensor `base_model.model.` + the module's name in `transformers` + `.lora_A.weight`. Its A and B are laid
out as ours, also beside GPT-2's transposed matrices (`fan_in_fan_out` only tells PEFT how to merge). What an adapter
does beyond plain LoRA is refused by name, since leaving it out would change every result.

The directory also has config.json and the tokenizer, as for a full model, so that tools can tell what it is; it has no
model weights. The base model is named relative to the adapter's directory if both lie in one run, which can then be
moved.

Saving only writes files: the caller provides a staging directory (`wukong.files.atomic_directory`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wukong.errors import UsageError, brief
from wukong.files import disk_errors, write_json
from wukong.model.lora import adapt, adapted_layers, blocks_of
from wukong.places import run_of
from wukong.tokenizer_files import read_object

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
OWN_PEFT_TYPE = "WUKONG_REWARD"
"""Of a reward model whose head PEFT does not know: PEFT refuses the adapter instead of giving wrong scores."""
_PREFIX = "base_model.model."

_WITHOUT_EFFECT = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "ensure_weight_tying", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "modules_to_save", "peft_type",
    "peft_version", "qalora_group_size", "r", "revision", "runtime_config", "target_modules", "task_type",
})  # fmt: skip
"""Fields that do not change what a stored adapter computes, and those that are read or checked one by one."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that also change the base model's weights, which an adapter does not hold."""


# ------------------------------------------------------------------------------------------------------------ saving


def base_name(source: str | Path, out: str | Path, inside: str = ".") -> str:
    """The base model as an adapter in `out`, or in a directory inside it, names it: relative to that directory if the
    model is in the same run, else an absolute path; a hub id as it is."""
    path = Path(source)
    if not path.is_dir():
        return str(source)
    if os.path.abspath(run_of(path)) == os.path.abspath(run_of(Path(out))):
        return os.path.relpath(path, os.path.join(out, inside))
    return os.path.abspath(path)


def save_adapter(
    directory: Path, trunk: nn.Module, base: str, prefix: str, transposed: bool, head: dict[str, Tensor],
    reward: bool | None,
) -> None:  # fmt: skip
    """Writes the adapters of a transformer as PEFT does.

    Args:
        base: as of `base_name`.
        prefix: before the names of the transformer's modules in `transformers`.
        transposed: whether its linear layers are stored transposed there (Conv1D).
        head: other tensors that are trained or changed, under their names in `transformers`.
        reward: None for a language model; else whether PEFT knows the head of this reward model.
    """
    layers = adapted_layers(trunk)
    first = next(iter(layers.values()))
    depth = len(blocks_of(trunk))
    places = [name.split(".", 2) for name in layers]  # h, number, name in the block
    numbers = sorted({int(number) for _, number, _ in places})
    tensors = {
        f"{_PREFIX}{prefix}{name}.{part}.weight": getattr(layer, part).detach().to("cpu").contiguous()
        for name, layer in layers.items()
        for part in ("lora_A", "lora_B")
    }
    tensors |= {f"{_PREFIX}{name}": tensor.detach().to("cpu").contiguous() for name, tensor in head.items()}
    saved = sorted({name.rpartition(".")[0].rpartition(".")[2] for name in head})
    config = {
        "peft_type": OWN_PEFT_TYPE if reward is False else "LORA",
        "task_type": "CAUSAL_LM" if reward is None else "SEQ_CLS",
        "base_model_name_or_path": base,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": first.adapter_dropout,
        "target_modules": sorted({name for *_, name in places}),
        "layers_to_transform": None if len(numbers) == depth else numbers,
        "layers_pattern": None if len(numbers) == depth else places[0][0],
        "fan_in_fan_out": transposed,
        "modules_to_save": saved or None,
        "bias": "none",
        "inference_mode": True,
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / ADAPTER_CONFIG, config)
    with disk_errors(directory):
        save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})


# ----------------------------------------------------------------------------------------------------------- loading


@dataclass
class StoredAdapter:
    """An adapter directory being read. `tensors` have PEFT's names without its prefix."""

    directory: Path
    config: dict[str, Any]
    base: str
    """A directory or hub id."""

    @property
    def is_reward(self) -> bool:
        return self.config.get("task_type") == "SEQ_CLS"

    @property
    def weights_file(self) -> Path:
        return self.directory / ADAPTER_WEIGHTS


def is_adapter(directory: Path) -> bool:
    return (directory / ADAPTER_CONFIG).is_file()


def open_adapter(directory: Path) -> StoredAdapter:
    """Reads and checks adapter_config.json. Raises UsageError for anything but plain LoRA."""
    file = directory / ADAPTER_CONFIG
    config = read_object(file)
    kind = config.get("peft_type")
    if kind not in ("LORA", OWN_PEFT_TYPE):
        raise UsageError(f"{file}: peft_type is {brief(kind)}, only LORA is supported")
    if config.get("task_type") not in ("CAUSAL_LM", "SEQ_CLS", None):
        raise UsageError(f"{file}: task_type is {brief(config['task_type'])}, neither CAUSAL_LM nor SEQ_CLS")
    for name, value in config.items():
        if name not in _WITHOUT_EFFECT and value and not (name == "bias" and value == "none"):
            raise UsageError(f"{file}: {brief(name, str)} is {brief(value)}, only plain LoRA is supported; merge this "
                             "adapter with PEFT (merge_and_unload) and load the result")  # fmt: skip
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise UsageError(f"{file}: init_lora_weights is {brief(start)}, which changes the base model too; merge this "
                         "adapter with PEFT (merge_and_unload) and load the result")  # fmt: skip
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise UsageError(f"{file}: r is {brief(rank)}, not a rank")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e6:
        raise UsageError(f"{file}: lora_alpha is {brief(alpha)}, not a positive number")
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UsageError(f"{file}: base_model_name_or_path is missing")
    beside = directory / base
    return StoredAdapter(directory, config, os.path.normpath(beside) if beside.is_dir() else base)


def attach(adapter: StoredAdapter, trunk: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    """Adds the stored adapters to a transformer; what they use is removed from `tensors`.

    Args:
        tensors: the stored ones, by PEFT's names.
        prefix: what may precede the transformer's own names.

    Raises:
        UsageError: a tensor is missing, of another shape, or has no place in this model.
    """
    file, rank = adapter.weights_file, adapter.config["r"]
    modules = dict(trunk.named_modules())
    own: dict[str, str] = {}  # name in the model -> the stored name before .lora_A
    for name in tensors:
        if name.endswith(".lora_A.weight"):
            stored = name.removesuffix(".lora_A.weight")
            found = stored.removeprefix(prefix)
            if not isinstance(modules.get(found), nn.Linear):
                raise UsageError(f"{file}: tensor {brief(name, str)} has no place in the base model {adapter.base}")
            own[found] = stored
    if not own:
        raise UsageError(f"{file}: holds no adapter (no tensor named ...lora_A.weight)")
    for name, stored in own.items():
        layer = adapt(trunk, name, rank, float(adapter.config["lora_alpha"]))
        for part in ("lora_A", "lora_B"):
            place = getattr(layer, part)
            place.data.copy_(taken(file, tensors, f"{stored}.{part}.weight", place.shape))


def taken(file: Path, tensors: dict[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    """Removes a tensor from `tensors`. Raises UsageError if it is missing or damaged."""
    tensor = tensors.pop(name, None)
    if tensor is None:
        raise UsageError(f"{file}: tensor {name} is missing")
    if tensor.shape != shape or not tensor.is_floating_point():
        raise UsageError(f"{file}: tensor {name} is {tuple(tensor.shape)} {tensor.dtype}, expected {tuple(shape)}")
    if not bool(tensor.isfinite().all()):
        raise UsageError(f"{file}: tensor {name} contains NaN or infinite values; the adapter is broken")
    return tensor.float()


def peft_names(file: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names without PEFT's prefix. Raises UsageError for one that has none."""
    for name in tensors:
        if not name.startswith(_PREFIX):
            raise UsageError(f"{file}: tensor {brief(name, str)} is not named as PEFT does ({_PREFIX}...)")
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
