"""A GGUF file: its metadata and its tensors, read by llama.cpp's own package `gguf`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wukong.errors import UsageError, brief


@dataclass(frozen=True)
class GGUFFile:
    """An opened file.

    Attributes:
        metadata: key -> value, such as {"llama.block_count": 30}.
        tensors: name -> the package's view of a tensor, not dequantised yet.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Any]

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """A value of the metadata. Raises UsageError for one of another type, or a missing one without a default."""
        value = self.metadata.get(key, default)
        if kind is float and type(value) is int:
            value = float(value)
        if value is None or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            problem = "is missing" if key not in self.metadata else f"is {brief(value)}, expected {kind.__name__}"
            raise UsageError(f"{self.path}: {key} {problem}")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A positive number."""
        value: int = self.get(key, int, default)
        if value < 1:
            raise UsageError(f"{self.path}: {key} is {value}, not a size")
        return value

    def values(self, name: str) -> np.ndarray[Any, Any]:
        """A tensor in float32, shaped as in PyTorch.

        Raises UsageError for a quantisation that the package cannot undo, or a damaged tensor."""
        from gguf import dequantize

        tensor = self.tensors[name]
        try:
            return np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        except NotImplementedError:
            kind = tensor.tensor_type.name
            raise UsageError(
                f"{self.path}: {name} is quantised as {kind}, which the package gguf cannot undo; take a file of "
                "another quantisation (Q8_0, Q4_K_M, F16)"
            ) from None
        except Exception as error:  # arbitrary bytes make NumPy raise anything
            raise UsageError(f"{self.path}: {name} is damaged ({_reason(error)})") from None


def open_gguf(path: Path) -> GGUFFile:
    """Raises UsageError where the package is missing, and for a file that is not GGUF, or is cut off."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UsageError("reading GGUF needs the package gguf: pip install 'wukong-rlhf[gguf]'") from None
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    with path.open("rb") as start:
        if start.read(4) != b"GGUF":
            raise UsageError(f"{path}: not a GGUF file")
    try:
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except Exception as error:  # arbitrary bytes make NumPy raise anything
        raise UsageError(f"{path}: damaged, or cut off while it was copied ({_reason(error)})") from None
    return GGUFFile(path, metadata, tensors)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
