"""A model directory being read: its config.json, and its tensors from safetensors or PyTorch's .bin, in one file or
shards. Everything is checked before use."""

from __future__ import annotations

import json
import math
import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from wukong.errors import UsageError, brief
from wukong.model.architectures import Architecture
from wukong.tokenizer_files import read_object

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""In the order in which they are preferred."""
LARGEST_HEADER = 1 << 24
"""Bytes of a safetensors file's header; GPT-2 XL's has 70,000."""


@dataclass(frozen=True)
class ConfigFile:
    """A model's config.json."""

    path: Path
    content: dict[str, Any]
    architecture: Architecture
    is_reward: bool

    def size(self, name: str) -> int:
        """A positive integer. Raises UsageError if it is missing or not one."""
        value = self.content.get(name)
        if type(value) is not int or value < 1:
            missing = "missing" if name not in self.content else f"{brief(value)}, not a size"
            raise UsageError(f"{self.path}: {name} is {missing}")
        return value

    def small_number(self, name: str, default: float) -> float:
        """A number between 0 and 1. Raises UsageError if it is not one."""
        value = self.content.get(name, default)
        if not isinstance(value, float) or not 0 < value < 1:
            raise UsageError(f"{self.path}: {name} is {brief(value)}, not a small number")
        return value


@dataclass
class Checkpoint:
    """Tensors are removed from `tensors` as they are used; none may remain."""

    config: ConfigFile
    file: Path
    """The file of weights to name in errors."""
    tensors: dict[str, Tensor]
    transposed: tuple[str, ...]
    """Endings of the names of matrices stored as (in, out)."""

    def require_layers(self, prefix: str, count: int, first: str) -> None:
        """Raises UsageError if tensors `prefix`.0 to `prefix`.(count - 1) are not all there. first: of a layer's
        tensors, for the message."""
        numbers = (re.match(rf"{prefix}\.(\d{{1,9}})\.", name) for name in self.tensors)
        layers = {int(match[1]) for match in numbers if match}
        if (missing := next(i for i in range(len(layers) + 1) if i not in layers)) < count:
            raise UsageError(f"{self.file}: tensor {prefix}.{missing}.{first} is missing")

    def require(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor as stored, in our orientation. Raises UsageError for an unexpected shape or type."""
        if name not in self.tensors:
            raise UsageError(f"{self.file}: tensor {name} is missing")
        tensor = self.tensors[name]
        if name.endswith(self.transposed) and tensor.ndim == 2:
            tensor = tensor.t()
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            found = f"{tuple(tensor.shape)} {tensor.dtype}".replace("torch.", "")
            raise UsageError(f"{self.file}: tensor {name} is {found}, {self.config.path} says {shape}")
        return tensor

    def take(self, name: str, shape: torch.Size) -> Tensor:
        """The tensor in float32, copied from the mapped file."""
        tensor = self.require(name, tuple(shape))
        del self.tensors[name]
        tensor = tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if not all(math.isfinite(extreme) for extreme in torch.aminmax(tensor)):
            raise UsageError(f"{self.file}: tensor {name} contains NaN or infinite values; the model is broken")
        return tensor

    def fill(self, module: nn.Module) -> None:
        """Loads the weights of a module on the meta device, by their names in the module."""
        state = {name: self.take(name, parameter.shape) for name, parameter in module.named_parameters()}
        module.load_state_dict(state, assign=True)

    def finish(self) -> None:
        if self.tensors:
            raise UsageError(f"{self.file}: tensor {min(self.tensors)} has no place in this model")


def read_weights(directory: Path) -> tuple[Path, dict[str, Tensor]]:
    """(the file to name in errors, all tensors), from safetensors or else .bin, in one file or shards."""
    for name in WEIGHTS:
        file = directory / name
        if not file.is_file():
            continue
        if file.suffix != ".json":
            return file, _read_tensors(file)
        index = read_object(file)
        shards = index.get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise UsageError(f"{file}: not an index of shards (weight_map is missing)")
        tensors: dict[str, Tensor] = {}
        for shard in sorted(set(shards.values())):
            if Path(shard).name != shard or Path(shard).suffix != Path(name.removesuffix(".index.json")).suffix:
                raise UsageError(f"{file}: shard {brief(shard)} is not a weights file in the same directory")
            found = _read_tensors(directory / shard)
            if twice := found.keys() & tensors.keys():
                raise UsageError(f"{directory / shard}: tensor {brief(min(twice), str)} is in another shard too")
            tensors |= found
        if absent := shards.keys() - tensors.keys():
            raise UsageError(f"{file}: tensor {brief(min(absent), str)} is in none of its shards")
        return file, tensors
    raise UsageError(f"{directory}: no weights here ({WEIGHTS[0]} or {WEIGHTS[2]})")


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        found = file.is_file()
    except (OSError, ValueError):  # a name that is too long or not valid for a file
        found = False
    if not found:
        raise UsageError(f"{file.parent}/{brief(file.name, str)}: no such file")
    try:
        if file.suffix == ".safetensors":
            _check_header(file)
            return load_file(file)
        _check_archive(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True)  # does not execute code from the file
    except UsageError:
        raise
    except pickle.UnpicklingError:
        raise UsageError(f"{file}: damaged, or contains more than weights, which is not loaded for safety") from None
    except Exception as error:  # arbitrary bytes make the readers raise anything: IndexError, RuntimeError, ...
        reason = (str(error).splitlines() or ["it is empty"])[0]
        raise UsageError(f"{file}: damaged weights file ({reason[:200]})") from None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise UsageError(f"{file}: not a dictionary of tensors")
    for name, tensor in tensors.items():
        # A view can be larger than its storage: one number expanded to a terabyte.
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or not _is_stored_whole(tensor):
            raise UsageError(f"{file}: tensor {brief(name, str)} is not stored as plain numbers")
    return tensors


def _is_stored_whole(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _check_header(file: Path) -> None:
    """Checks a safetensors file's header before the library reads it. Raises UsageError."""
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > LARGEST_HEADER:
            raise UsageError(f"{file}: damaged weights file (its header has {length:,} bytes)")
        header = json.loads(handle.read(length))
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if isinstance(metadata, dict) and metadata.get("format", "pt") != "pt":
        raise UsageError(f"{file}: weights of another framework ({brief(metadata['format'])}), expected PyTorch")


def _check_archive(file: Path) -> None:
    """Raises UsageError for a .bin with compressed parts: a megabyte could unpack to a terabyte."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise UsageError(f"{file}: its tensors are compressed, which PyTorch never does")
