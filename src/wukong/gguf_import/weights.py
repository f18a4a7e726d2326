"""The configuration and the weights of a GGUF file, in the names and the layout of Hugging Face.

llama.cpp stores the rows of the query and key projections of the architecture `llama` in another order (rotary pairs
side by side instead of half a head apart); that of `qwen2` and `qwen3` is the usual one. Llama 3's scaling of the
rotary positions is stored as a tensor of factors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from wukong.errors import UsageError, brief
from wukong.gguf_import.container import GGUFFile

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
ROPE_FACTORS = "rope_freqs.weight"
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def config_of(file: GGUFFile) -> dict[str, Any]:
    """The content of config.json, without token ids and dtype. Raises UsageError for what it cannot express."""
    kind = file.get("general.architecture", str)
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UsageError(f"{file.path}: the architecture is {brief(kind)}, only {known} can be imported")
    for key in ("expert_count", "attention.sliding_window"):
        if file.metadata.get(f"{kind}.{key}"):
            raise UsageError(f"{file.path}: {kind}.{key} is {file.metadata[f'{kind}.{key}']}, which is not supported")
    heads, width = file.size(f"{kind}.attention.head_count"), file.size(f"{kind}.embedding_length")
    if "token_embd.weight" not in file.tensors:
        raise UsageError(f"{file.path}: tensor token_embd.weight is missing")
    head_width = file.size(f"{kind}.attention.key_length", width // heads)
    if file.size(f"{kind}.rope.dimension_count", head_width) != head_width or head_width % 2:
        raise UsageError(f"{file.path}: rotary positions on a part of each head only, which is not supported")
    epsilon = file.get(f"{kind}.attention.layer_norm_rms_epsilon", float)
    theta = float(file.get(f"{kind}.rope.freq_base", float, 10000.0))
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": int(file.tensors["token_embd.weight"].shape[-1]),  # GGUF names the axes from the last
        "hidden_size": width,
        "intermediate_size": file.size(f"{kind}.feed_forward_length"),
        "num_hidden_layers": file.size(f"{kind}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.size(f"{kind}.attention.head_count_kv", heads),
        "head_dim": head_width,
        "max_position_embeddings": file.size(f"{kind}.context_length"),
        "rms_norm_eps": float(str(np.float32(epsilon))),  # 1e-05, not the 9.999999747378752e-06 of its float32
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(file, kind, head_width, theta),
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **({"use_sliding_window": False} if kind == "qwen2" else {"attention_bias": False}),
        **({"mlp_bias": False} if kind == "llama" else {}),
    }


def _rope_scaling(file: GGUFFile, kind: str, head_width: int, theta: float) -> dict[str, Any] | None:
    """Llama 3's scaling from its tensor of factors, None without one. Raises UsageError for any other scaling."""
    if (scaling := file.metadata.get(f"{kind}.rope.scaling.type")) not in (None, "none"):
        raise UsageError(f"{file.path}: rotary positions scaled by {brief(scaling)}, which is not supported")
    if ROPE_FACTORS not in file.tensors:
        return None
    factors = file.values(ROPE_FACTORS).ravel()
    factor = float(factors.max(initial=1.0))
    found = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = _llama3_factors(head_width, theta, factor)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise UsageError(f"{file.path}: {ROPE_FACTORS} are not Llama 3's factors, which is not supported")
    return found


def _llama3_factors(head_width: int, theta: float, factor: float) -> np.ndarray[Any, Any]:
    """What Llama 3 divides each rotary frequency by: 1 for short waves, `factor` for long ones, smoothly between."""
    waves = 2 * math.pi * theta ** (np.arange(0, head_width, 2) / head_width)  # (head_width / 2,), in tokens
    smooth = np.clip((8192 / waves - 1.0) / (4.0 - 1.0), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth), dtype=np.float32)


def names_of(file: GGUFFile, config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(the name in the file, Hugging Face's name) of each tensor; UsageError for one missing or without a place."""
    expected = dict(_expected(config))
    known = {*expected, ROPE_FACTORS}
    if missing := sorted(expected.keys() - file.tensors.keys()):
        raise UsageError(f"{file.path}: tensor {missing[0]} is missing")
    if extra := sorted(file.tensors.keys() - known):
        raise UsageError(f"{file.path}: tensor {extra[0]} has no place in a {config['model_type']} model")
    yield from expected.items()


def _expected(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, theirs in _OUTSIDE.items():
        if name != "output.weight" or not config["tie_word_embeddings"]:
            yield name, theirs
    for layer in range(config["num_hidden_layers"]):
        for name, theirs in _INSIDE.items():
            if name.endswith(("q_norm", "k_norm")) and config["model_type"] != "qwen3":
                continue
            yield f"blk.{layer}.{name}.weight", f"model.layers.{layer}.{theirs}.weight"
            if name in ("attn_q", "attn_k", "attn_v") and config["model_type"] == "qwen2":
                yield f"blk.{layer}.{name}.bias", f"model.layers.{layer}.{theirs}.bias"


def tensor_of(file: GGUFFile, name: str, config: dict[str, Any]) -> np.ndarray[Any, Any]:
    """A tensor in float32, in Hugging Face's layout. Raises UsageError for another shape than the configuration's."""
    values = file.values(name)
    if (expected := _shape(name, config)) != values.shape:
        raise UsageError(f"{file.path}: tensor {name} is {values.shape}, the metadata say {expected}")
    if config["model_type"] == "llama" and (found := re.search(r"\.attn_(q|k)\.", name)):
        heads = config["num_attention_heads"] if found[1] == "q" else config["num_key_value_heads"]
        values = unpermuted(values, heads)
    return values


def unpermuted(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of a query or key projection (heads * head_width, in) in the usual order: llama.cpp stores row i of the
    first half of a head beside row i of the second half."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _shape(name: str, config: dict[str, Any]) -> tuple[int, ...]:
    width, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    part = name.split(".")[-2]
    out = {"attn_q": queries, "attn_k": keys, "attn_v": keys}
    if name.endswith(".bias"):
        return (out[part],)
    if part in ("attn_q_norm", "attn_k_norm"):
        return (config["head_dim"],)
    shapes = {
        "token_embd": (config["vocab_size"], width),
        "output": (config["vocab_size"], width),
        "attn_output": (width, queries),
        "ffn_gate": (inner, width),
        "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }
    return shapes.get(part, (out[part], width) if part in out else (width,))
