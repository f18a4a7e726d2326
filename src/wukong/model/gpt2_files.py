"""GPT-2 as Hugging Face stores it: the content of config.json, and the names and layout of its tensors.

Each linear layer's weight is transposed (a `Conv1D`), and the tied output layer is not stored.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wukong.errors import UsageError, brief
from wukong.model.config import GPT2Config
from wukong.model.language_model import LanguageModel
from wukong.model.weights import Checkpoint, ConfigFile

# GPT-2's values of Hugging Face's options. A missing option means the first value.
_OPTIONS: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


class GPT2Files:
    """Implements `families.FamilyFiles`."""

    transposed: tuple[str, ...] = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")

    def model_type(self, config: GPT2Config) -> str:
        return "gpt2"

    def config_json(self, config: GPT2Config) -> dict[str, Any]:
        return {
            "vocab_size": config.vocab_size,
            "n_positions": config.n_positions,
            "n_embd": config.n_embd,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_inner": None,
            "layer_norm_epsilon": config.layer_norm_epsilon,
            "activation_function": "gelu_new",
            # RLHF needs train and eval mode to agree; further training sets its own dropout.
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "tie_word_embeddings": True,
        }

    def read_config(self, file: ConfigFile, dropout: float) -> GPT2Config:
        path, config = file.path, file.content
        names = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
        sizes = {name: file.size(name) for name in names}
        for name, allowed in _OPTIONS.items():
            if config.get(name, allowed[0]) not in allowed:
                raise UsageError(f"{path}: {name} is {brief(config[name])}, only GPT-2's {allowed[0]!r} is supported")
        if config.get("n_inner") not in (None, 4 * sizes["n_embd"]):
            raise UsageError(f"{path}: n_inner is {brief(config['n_inner'])}, only GPT-2's 4 x n_embd is supported")
        epsilon = file.small_number("layer_norm_epsilon", 1e-5)
        return GPT2Config(**sizes, dropout=dropout, layer_norm_epsilon=epsilon)

    def check(self, checkpoint: Checkpoint, config: GPT2Config) -> None:
        checkpoint.require("wte.weight", (config.vocab_size, config.n_embd))
        checkpoint.require("wpe.weight", (config.n_positions, config.n_embd))
        checkpoint.require_layers("h", config.n_layer, "ln_1.weight")

    def our_tensors(self, path: Path, config: ConfigFile, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Drops the mask buffers of old files, and the output layer, which must be tied."""
        ours = {n: tensor for n, tensor in tensors.items() if not re.match(r"h\.\d+\.attn\.(masked_)?bias$", n)}
        output = ours.pop("lm_head.weight", None)
        if output is not None and not torch.equal(output, ours.setdefault("wte.weight", output)):
            raise UsageError(f"{path}: lm_head differs from wte, GPT-2's output layer is tied to its embedding")
        return ours

    def fold_bias(self, trunk: LanguageModel, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        """w.(x + b w/|w|^2) = w.x + b: the bias becomes the final LayerNorm's."""
        norm = trunk.get_parameter("ln_f.bias").detach().double()
        return {"ln_f.bias": norm + bias * weight / weight.dot(weight)}
