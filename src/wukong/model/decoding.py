"""The form in which a model decodes fastest on this machine.

Our CPU kernels decode both families, in the sizes that they support (`native.fits`). A family that oneDNN's packed
matrices can decode has a copy for them in `_PACKED`. Any other model decodes with PyTorch's layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

from wukong.model.config import GPT2Config, ModelConfig
from wukong.model.cpu import kernels
from wukong.model.cpu.native import NativeModel, fits
from wukong.model.cpu.packed import PackedGPT2, can_pack, multiplies_tiles
from wukong.model.language_model import LanguageModel

DecodingPath = Literal["native", "packed", "PyTorch"]

_PACKED: Mapping[type, Callable[[Any, torch.dtype], LanguageModel]] = {GPT2Config: PackedGPT2}


def decoding_path(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> DecodingPath:
    """Which copy of a model of float32 weights decodes here in this precision: our kernels, oneDNN's packed matrices,
    or PyTorch's layers."""
    packs = type(config) in _PACKED and can_pack(device, dtype)
    ours = device.type == "cpu" and fits(config) and kernels.library() is not None
    if ours and not (packs and multiplies_tiles()):
        return "native"
    return "packed" if packs else "PyTorch"


def decoding_copy(model: LanguageModel, path: DecodingPath, dtype: torch.dtype) -> LanguageModel:
    """The copy of `decoding_path`; for "PyTorch" the model itself."""
    if path == "native":
        return NativeModel(model, dtype)
    return _PACKED[type(model.config)](model, dtype) if path == "packed" else model
