"""The Llama family as Hugging Face stores it: the content of config.json, and the names of its tensors.

Llama, Qwen2 and Qwen3 differ in `model_type` and in what that type implies: Qwen2 has biases of queries, keys and
values, Qwen3 normalises queries and keys. Anything that would change the computation and is not supported is refused:
sliding windows in use, other scalings of the rotary positions, further biases, other activations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wukong.errors import UsageError, brief
from wukong.model.config import LlamaConfig, RotaryScaling
from wukong.model.language_model import LanguageModel
from wukong.model.weights import Checkpoint, ConfigFile

_ONLY = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
"""The supported value of an option that may be missing."""
_SIZES = {
    "vocab_size": "vocab_size",
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
}
_SCALING = {
    "factor": "factor",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "original_positions": "original_max_position_embeddings",
}


class LlamaFiles:
    """Implements `families.FamilyFiles`."""

    transposed: tuple[str, ...] = ()

    def model_type(self, config: LlamaConfig) -> str:
        return "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"

    def config_json(self, config: LlamaConfig) -> dict[str, Any]:
        rotary: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rotary_base}
        if config.rotary_scaling is not None:
            rotary["rope_type"] = "llama3"
            rotary |= {theirs: getattr(config.rotary_scaling, ours) for ours, theirs in _SCALING.items()}
        own = {"use_sliding_window": False} if self.model_type(config) != "llama" else {"mlp_bias": False}
        return {
            **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
            "num_key_value_heads": config.n_kv_head,
            "head_dim": config.head_width,
            "hidden_act": "silu",
            "rms_norm_eps": config.rms_norm_epsilon,
            "rope_theta": config.rotary_base,  # transformers 4 reads this and rope_scaling, 5 also rope_parameters
            "rope_scaling": None if config.rotary_scaling is None else rotary,
            "rope_parameters": rotary,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": config.tied,
            **own,
        }

    def read_config(self, file: ConfigFile, dropout: float) -> LlamaConfig:
        content, kind = file.content, file.architecture.model_type
        sizes = {ours: file.size(theirs) for ours, theirs in _SIZES.items()}
        for name, only in _ONLY.items():
            if (value := content.get(name, only)) != only or type(value) is not type(only):
                raise UsageError(f"{file.path}: {name} is {brief(value)}, only {only!r} is supported")
        _refuse_sliding_windows(file, sizes["n_layer"], sizes["n_positions"])
        tied = content.get("tie_word_embeddings", False)
        if not isinstance(tied, bool):
            raise UsageError(f"{file.path}: tie_word_embeddings is {brief(tied)}, neither true nor false")
        base, scaling = _rotary_of(file)
        # Qwen3's class has 128 where the file says nothing.
        width = 128 if kind == "qwen3" else max(1, sizes["n_embd"] // sizes["n_head"])
        kv_heads, width = (
            default if content.get(name) is None else file.size(name)
            for name, default in (("num_key_value_heads", sizes["n_head"]), ("head_dim", width))
        )
        return LlamaConfig(
            **sizes, n_kv_head=kv_heads, head_width=width, tied=tied or file.is_reward,
            qkv_bias=kind == "qwen2", qk_norm=kind == "qwen3", rotary_base=base, rotary_scaling=scaling,
            rms_norm_epsilon=file.small_number("rms_norm_eps", 1e-6), dropout=dropout,
        )  # fmt: skip

    def check(self, checkpoint: Checkpoint, config: LlamaConfig) -> None:
        C, D = config.n_embd, config.head_width
        checkpoint.require("embed_tokens.weight", (config.vocab_size, C))
        checkpoint.require("layers.0.mlp.up_proj.weight", (config.n_inner, C))
        checkpoint.require("layers.0.self_attn.q_proj.weight", (config.n_head * D, C))
        checkpoint.require("layers.0.self_attn.k_proj.weight", (config.n_kv_head * D, C))
        checkpoint.require_layers("layers", config.n_layer, "input_layernorm.weight")

    def our_tensors(self, path: Path, config: ConfigFile, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Drops the rotary buffers of old files, and an output layer that is tied to the embedding."""
        ours = {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
        if config.content.get("tie_word_embeddings") is True:
            output = ours.pop("lm_head.weight", None)
            if output is not None and not torch.equal(output, ours.setdefault("embed_tokens.weight", output)):
                raise UsageError(f"{path}: lm_head differs from embed_tokens, but {config.path} ties them")
        return ours

    def fold_bias(self, trunk: LanguageModel, weight: Tensor, bias: Tensor) -> None:
        """RMSNorm has no bias that could hold it."""


def _refuse_sliding_windows(file: ConfigFile, n_layer: int, n_positions: int) -> None:
    """Llama's class has none; Qwen's may say a window that no layer uses, or one as long as the context."""
    content, window = file.content, file.content.get("sliding_window", 4096)
    if file.architecture.model_type == "llama" or content.get("use_sliding_window", False) is False or window is None:
        return
    kinds, first = content.get("layer_types"), content.get("max_window_layers", 28)
    full = kinds if isinstance(kinds, list) else ["full_attention"] * (first if type(first) is int else 0)
    in_use = len(full) < n_layer or any(kind != "full_attention" for kind in full)
    if in_use and not (type(window) is int and window >= n_positions):
        raise UsageError(f"{file.path}: sliding_window {brief(window)} is in use, only full attention is supported")


def _rotary_of(file: ConfigFile) -> tuple[float, RotaryScaling | None]:
    """The base and the scaling, from `rope_parameters` or its older form, `rope_theta` and `rope_scaling`."""
    path, content = file.path, file.content
    name = next((n for n in ("rope_parameters", "rope_scaling") if content.get(n) is not None), "rope_parameters")
    given = content.get(name) or {}
    if not isinstance(given, dict):
        raise UsageError(f"{path}: {name} is {brief(given)}, not an object")
    base = given.get("rope_theta", content.get("rope_theta", 10_000.0))
    if not _is_between(base, 1, 1e12):
        raise UsageError(f"{path}: rope_theta is {brief(base)}, not a number above 1")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UsageError(f"{path}: rotary positions scaled by {brief(kind)}, only 'default' and 'llama3' are supported")
    partial = given.get("partial_rotary_factor", content.get("partial_rotary_factor", 1))
    if partial != 1:
        raise UsageError(f"{path}: partial_rotary_factor is {brief(partial)}, only 1 is supported")
    if kind == "default":
        return float(base), None
    values: dict[str, Any] = {ours: given.get(theirs) for ours, theirs in _SCALING.items()}
    for ours, value in values.items():
        if not _is_between(value, 0, 1e9):
            raise UsageError(f"{path}: {name}.{_SCALING[ours]} is {brief(value)}, not a number above 0")
    return float(base), RotaryScaling(**{**values, "original_positions": int(values["original_positions"])})


def _is_between(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low < value < high
