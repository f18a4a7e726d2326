"""The form in which a model decodes fastest on this machine.

A family that our CPU kernels or oneDNN's packed matrices can decode has a copy for them in `_NATIVE` or `_PACKED`, by
its configuration; any other model decodes with PyTorch's layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

from wukong.model.config import GPT2Config, ModelConfig
from wukong.model.cpu import kernels
from wukong.model.cpu.native import HEAD_WIDTHS, NativeGPT2
from wukong.model.cpu.packed import PackedGPT2, can_pack, multiplies_tiles
from wukong.model.language_model import LanguageModel

DecodingPath = Literal["native", "packed", "PyTorch"]

_NATIVE: Mapping[type, Callable[[Any, torch.dtype], LanguageModel]] = {GPT2Config: NativeGPT2}
_PACKED: Mapping[type, Callable[[Any, torch.dtype], LanguageModel]] = {GPT2Config: PackedGPT2}


def decoding_path(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> DecodingPath:
    """Which copy of a model of float32 weights decodes here in this precision: our kernels, oneDNN's packed matrices,
    or PyTorch's layers."""
    packs = type(config) in _PACKED and can_pack(device, dtype)
    fits = type(config) in _NATIVE and device.type == "cpu" and config.head_width in HEAD_WIDTHS
    if fits and not (packs and multiplies_tiles()) and kernels.library() is not None:
        return "native"
    return "packed" if packs else "PyTorch"


def decoding_copy(model: LanguageModel, path: DecodingPath, dtype: torch.dtype) -> LanguageModel:
    """The copy of `decoding_path`; for "PyTorch" the model itself."""
    if path == "PyTorch":
        return model
    return (_NATIVE if path == "native" else _PACKED)[type(model.config)](model, dtype)
