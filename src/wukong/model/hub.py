"""Hugging Face import and export: our models are directories that `transformers` loads, and theirs load here.

Their GPT-2 stores each linear layer's weight transposed (a `Conv1D`), under a `transformer.` prefix, and the tied
output layer not at all. A reward model with a linear head read at the last token is their
`GPT2ForSequenceClassification`; one with an MLP head or another pooling has no counterpart there, so it is
stored under a separate model type, which `transformers` refuses instead of giving wrong scores.

Saving only writes files: the caller provides a staging directory (`wukong.files.atomic_directory`).
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wukong.errors import UsageError, brief
from wukong.files import disk_errors, write_json
from wukong.model.adapters import (
    ADAPTER_FILES,
    Family,
    StoredAdapter,
    attach,
    is_adapter,
    open_adapter,
    peft_names,
    save_adapter,
    taken,
)
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.heads import HeadKind, Pooling, ScalarModel
from wukong.model.lora import adapted_layers, merged
from wukong.provenance import changed_since, read_record
from wukong.sampling import SamplingParameters
from wukong.tokenizer import TOKENIZER_FILES, Tokenizer, local_directory
from wukong.tokenizer_files import read_object

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_SAFE_FILES = (
    *TOKENIZER_FILES,  # config.json and generation_config.json among them
    *ADAPTER_FILES,
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
)
_PICKLED_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")
_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_POLICIES = ("GPT2LMHeadModel", "GPT2Model")
_REWARDS = ("GPT2ForSequenceClassification", "WukongRewardModel")
_OWN_TYPE = "wukong_reward"
_FAMILY = Family(prefix="transformer.", transposed=True, last_norm="ln_f")
_PREFIXES = ("transformer.",)
LARGEST_HEADER = 1 << 24
"""Bytes of a safetensors file's header; GPT-2 XL's has 70,000."""

# GPT-2's values of Hugging Face's options. A missing option means the first value.
_GPT2_OPTIONS: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


# ------------------------------------------------------------------------------------------------------------ saving


def save_policy(
    directory: str | Path,
    model: GPT2,
    tokenizer: Tokenizer,
    *,
    dtype: torch.dtype = torch.float32,
    sampling: SamplingParameters | None = None,
    base: str = "",
) -> None:
    """Writes a model that `transformers.AutoModelForCausalLM` loads, or, of a model with adapters, these alone in
    PEFT's format.

    Args:
        dtype: of the stored weights.
        sampling: the default sampling parameters, here and in `transformers` (`recommended_sampling`).
        base: of a model with adapters, the model they belong to (`adapters.base_name`).
    """
    directory = Path(directory)
    config = _config_json(model.config, tokenizer, dtype) | {"architectures": ["GPT2LMHeadModel"]}
    if adapted_layers(model):
        save_adapter(directory, model, base, _FAMILY, {}, None)
        _save_description(directory, config, tokenizer)
    else:
        _save(directory, config, _trunk_tensors(model), tokenizer, dtype)
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(directory / "generation_config.json", {**ids, **(sampling.as_generation_config() if sampling else {})})


def save_reward(
    directory: str | Path,
    model: ScalarModel,
    tokenizer: Tokenizer,
    *,
    dtype: torch.dtype = torch.float32,
    base: str = "",
) -> None:
    """Writes a reward (or value) model; with a linear head and last pooling, `transformers` loads it. Of a model with
    adapters, these and the head are written in PEFT's format; `base` as for `save_policy`.

    Their head has no bias, so ours is folded into the final LayerNorm's: w.(x + b w/|w|^2) = w.x + b.
    """
    config = _config_json(model.config, tokenizer, dtype)
    has_adapters, known = bool(adapted_layers(model)), model.head_kind == "linear" and model.pooling == "last"
    tensors = {} if has_adapters else _trunk_tensors(model.trunk)
    tensors["score.weight"] = model.score.weight.detach()
    if known:
        config |= {
            "architectures": ["GPT2ForSequenceClassification"],
            "id2label": {"0": "reward"},
            "label2id": {"reward": 0},
        }
        bias, weight = model.score.bias.detach().double(), model.score.weight.detach().double().squeeze(0)  # (), (C,)
        if bias.item() != 0:
            if not weight.any():
                raise UsageError("the reward head's weights are all zero, so its score does not depend on the text")
            ln_f = model.trunk.ln_f.bias.detach().double()
            tensors["transformer.ln_f.bias"] = ln_f + bias * weight / weight.dot(weight)
            tensors["transformer.ln_f.weight"] = model.trunk.ln_f.weight.detach()  # PEFT replaces whole modules
    else:
        config |= {
            "architectures": ["WukongRewardModel"],
            "model_type": _OWN_TYPE,
            "wukong": {"head": model.head_kind, "pooling": model.pooling},
        }
        tensors |= {"score.bias": model.score.bias.detach()}
        tensors |= {f"hidden.{name}": tensor.detach() for name, tensor in model.hidden.named_parameters()}
    if has_adapters:
        head = {name: tensor.float() for name, tensor in tensors.items()}
        save_adapter(Path(directory), model.trunk, base, _FAMILY, head, known)
        _save_description(Path(directory), config, tokenizer)
    else:
        _save(Path(directory), config, tensors, tokenizer, dtype)


def _config_json(config: GPT2Config, tokenizer: Tokenizer, dtype: torch.dtype) -> dict[str, Any]:
    if tokenizer.vocab_size > config.vocab_size:
        raise UsageError(_mismatch(tokenizer, config))
    return {
        "model_type": "gpt2",
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
        "initializer_range": 0.02,
        "bos_token_id": tokenizer.role_id("bos_token"),
        "eos_token_id": tokenizer.eos_ids[0] if len(tokenizer.eos_ids) == 1 else list(tokenizer.eos_ids),
        "pad_token_id": tokenizer.role_id("pad_token"),
        "tie_word_embeddings": True,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _trunk_tensors(model: GPT2) -> dict[str, Tensor]:
    return {
        f"transformer.{name}": tensor.detach().t() if name.endswith(_TRANSPOSED) else tensor.detach()
        for name, tensor in model.named_parameters()
    }


def _save(
    directory: Path, config: dict[str, Any], tensors: dict[str, Tensor], tokenizer: Tokenizer, dtype: torch.dtype
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    with disk_errors(directory):
        save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    _save_description(directory, config, tokenizer)


def _save_description(directory: Path, config: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Everything but the weights."""
    write_json(directory / "config.json", config)
    tokenizer.save(directory, model_max_length=config["n_positions"])


# ----------------------------------------------------------------------------------------------------------- loading


@dataclass
class _Checkpoint:
    """A model directory being read. Tensors are removed from `tensors` as they are used; none may remain."""

    config_file: Path
    config: dict[str, Any]
    is_reward: bool
    weights_file: Path
    tensors: dict[str, Tensor]

    def require(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor as stored, in our orientation. Raises UsageError for an unexpected shape or type."""
        if name not in self.tensors:
            raise UsageError(f"{self.weights_file}: tensor {name} is missing")
        tensor = self.tensors[name]
        if name.endswith(_TRANSPOSED) and tensor.ndim == 2:
            tensor = tensor.t()
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            found = f"{tuple(tensor.shape)} {tensor.dtype}".replace("torch.", "")
            raise UsageError(f"{self.weights_file}: tensor {name} is {found}, {self.config_file} says {shape}")
        return tensor

    def take(self, name: str, shape: torch.Size) -> Tensor:
        """The tensor in float32, copied from the mapped file."""
        tensor = self.require(name, tuple(shape))
        del self.tensors[name]
        tensor = tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if not all(math.isfinite(extreme) for extreme in torch.aminmax(tensor)):
            raise UsageError(f"{self.weights_file}: tensor {name} contains NaN or infinite values; the model is broken")
        return tensor

    def fill(self, module: nn.Module) -> None:
        """Loads the weights of a module on the meta device, by their names in the module."""
        state = {name: self.take(name, parameter.shape) for name, parameter in module.named_parameters()}
        module.load_state_dict(state, assign=True)

    def finish(self) -> None:
        if self.tensors:
            raise UsageError(f"{self.weights_file}: tensor {min(self.tensors)} has no place in this GPT-2")


def load_policy(
    source: str | Path, *, dropout: float = 0.0, template: str | Path | None = None
) -> tuple[GPT2, Tokenizer]:
    """A language model and its tokenizer, from a directory or a Hugging Face hub id such as "gpt2".

    An adapter in PEFT's format is loaded with its base model, which it names, and merged into it.

    Args:
        dropout: the rate for training; it is not saved with a model.
        template: a chat template to use instead of the stored one.

    Returns:
        The model in float32 on the CPU, in training mode, and the tokenizer.

    Raises:
        UsageError: names the invalid file and the problem in one line.
    """
    directory = _download(source)
    if is_adapter(directory):
        adapter = _open_adapter(directory)
        if adapter.is_reward:
            raise UsageError(f"{directory}: holds an adapter of a reward model, expected a language model")
        model, tokenizer = _base(adapter, load_policy, dropout)
        tensors = _adapter_tensors(adapter)
        attach(adapter, model, tensors, _PREFIXES)
        _refuse_unused(adapter, tensors)
        return merged(model).requires_grad_(True), _adapter_tokenizer(adapter, tokenizer, template)
    checkpoint = _open(directory)
    if checkpoint.is_reward:
        raise UsageError(f"{checkpoint.config_file}: holds a reward model, expected a language model")
    with torch.device("meta"):
        model = GPT2(_gpt2_config(checkpoint, dropout))
    checkpoint.fill(model)
    checkpoint.finish()
    return model, _load_tokenizer(directory, model, template)


def load_reward(
    source: str | Path, *, dropout: float = 0.0, template: str | Path | None = None, merge: bool = True
) -> tuple[ScalarModel, Tokenizer]:
    """A reward model and its tokenizer: ours, or anyone's `GPT2ForSequenceClassification` with one label.

    Arguments, result and errors as for `load_policy`; `merge=False` keeps an adapter separate from its base model's
    weights, to train it further or to share these with other models.
    """
    directory = _download(source)
    if is_adapter(directory):
        return _load_reward_adapter(_open_adapter(directory), dropout, template, merge)
    checkpoint = _open(directory)
    if not checkpoint.is_reward:
        raise UsageError(f"{checkpoint.config_file}: holds a language model, expected a reward model")
    head, pooling = _head_of(checkpoint)
    with torch.device("meta"):
        model = ScalarModel(GPT2(_gpt2_config(checkpoint, dropout)), head, pooling)
    score = checkpoint.tensors.get("score.weight")
    if score is not None and score.ndim == 2 and len(score) != 1:
        raise UsageError(f"{checkpoint.weights_file}: a classifier of {len(score)} labels, a reward model has one")
    checkpoint.tensors.setdefault("score.bias", torch.zeros(1))  # neither theirs nor ours has one after folding
    checkpoint.fill(model.trunk)
    head_parameters = {name: p for name, p in model.named_parameters() if not name.startswith("trunk.")}
    state = {name: checkpoint.take(name, parameter.shape) for name, parameter in head_parameters.items()}
    model.load_state_dict(state, strict=False, assign=True)
    checkpoint.finish()
    return model, _load_tokenizer(directory, model.trunk, template)


def load_trunk(
    source: str | Path, *, dropout: float = 0.0, template: str | Path | None = None
) -> tuple[GPT2, Tokenizer]:
    """The transformer of a policy or of a reward model (without its head), e.g. to attach a new head.

    Arguments, result and errors as for `load_policy`.
    """
    directory = _download(source)
    is_reward = (
        open_adapter(directory).is_reward if is_adapter(directory) else _read_config(directory / "config.json")[1]
    )
    if is_reward:
        reward_model, tokenizer = load_reward(directory, dropout=dropout, template=template)
        return reward_model.trunk, tokenizer
    return load_policy(directory, dropout=dropout, template=template)


def _load_reward_adapter(
    adapter: StoredAdapter, dropout: float, template: str | Path | None, merge: bool
) -> tuple[ScalarModel, Tokenizer]:
    if not adapter.is_reward:
        raise UsageError(f"{adapter.directory}: holds an adapter of a language model, expected a reward model")
    file, tensors = adapter.weights_file, _adapter_tensors(adapter)
    trunk, tokenizer = _base(adapter, load_trunk, dropout)
    attach(adapter, trunk, tensors, _PREFIXES)
    for name, parameter in trunk.get_submodule(_FAMILY.last_norm).named_parameters():
        if (stored := f"{_FAMILY.prefix}{_FAMILY.last_norm}.{name}") in tensors:
            parameter.data.copy_(taken(file, tensors, stored, parameter.shape))
    head: HeadKind = "linear"
    pooling: Pooling = "last"
    if adapter.config["peft_type"] != "LORA":
        head, pooling = _stored_head(adapter.directory / "config.json", read_object(adapter.directory / "config.json"))
    model = ScalarModel(trunk, head, pooling)
    tensors.setdefault("score.bias", torch.zeros(1))
    for name, parameter in model.named_parameters():
        if not name.startswith("trunk."):
            parameter.data.copy_(taken(file, tensors, name, parameter.shape))
    _refuse_unused(adapter, tensors)
    model.trunk = merged(trunk) if merge else trunk
    return model.requires_grad_(True), _adapter_tokenizer(adapter, tokenizer, template)


def _open_adapter(directory: Path) -> StoredAdapter:
    """The adapter. Raises UsageError if its chain of base models, which may be adapters too, does not end, or if its
    base model has changed since `wukong` trained the adapter."""
    result = adapter = open_adapter(directory)
    inputs = (read_record(directory) or {"inputs": {}})["inputs"]
    for name, recorded in inputs.items():
        if os.path.realpath(name) == os.path.realpath(result.base) and changed_since(name, recorded):
            raise UsageError(f"{directory}: its base model {result.base} is no longer the one it was trained on; "
                             "restore that model, or train the adapter again (--redo)")  # fmt: skip
    seen = {directory.resolve()}
    while is_adapter(Path(adapter.base)):
        adapter = open_adapter(Path(adapter.base))
        if adapter.directory.resolve() in seen:
            raise UsageError(f"{directory}: its base model {result.base} is an adapter of itself")
        seen.add(adapter.directory.resolve())
    return result


Loaded = TypeVar("Loaded")


def _base(
    adapter: StoredAdapter, load: Callable[..., tuple[Loaded, Tokenizer]], dropout: float
) -> tuple[Loaded, Tokenizer]:
    try:
        return load(adapter.base, dropout=dropout)
    except UsageError as error:
        raise UsageError(f"{adapter.directory}: the base model of this adapter: {error}") from None


def _adapter_tensors(adapter: StoredAdapter) -> dict[str, Tensor]:
    return peft_names(adapter.weights_file, _read_tensors(adapter.weights_file))


def _refuse_unused(adapter: StoredAdapter, tensors: dict[str, Tensor]) -> None:
    if tensors:
        raise UsageError(f"{adapter.weights_file}: tensor {brief(min(tensors), str)} has no place in this model")


def _adapter_tokenizer(adapter: StoredAdapter, of_base: Tokenizer, template: str | Path | None) -> Tokenizer:
    """The adapter's tokenizer if it has one, else its base model's. Raises UsageError if the two differ in tokens."""
    has_own = (adapter.directory / "tokenizer_config.json").is_file()
    tokenizer = Tokenizer.load(adapter.directory if has_own else adapter.base, template=template)
    if tokenizer.vocab_size != of_base.vocab_size:
        raise UsageError(
            f"{adapter.directory}: its tokenizer has {tokenizer.vocab_size} tokens, that of its base model "
            f"{of_base.vocab_size}"
        )
    return tokenizer


def _download(source: str | Path) -> Path:
    directory = local_directory(source, _SAFE_FILES)
    if is_adapter(directory):
        return directory
    if not Path(source).is_dir() and not any((directory / name).is_file() for name in _WEIGHTS):
        directory = local_directory(source, _PICKLED_FILES)
    return directory


def _no_model(directory: Path) -> UsageError:
    """For a directory without a model, which may be a run that has some."""
    inside = sorted(str(file.parent) for file in directory.glob("*/config.json"))
    if inside:
        return UsageError("{directory}: holds no model itself; choose one in it: {models}", directory=directory,
                          models=", ".join(inside))  # fmt: skip
    return UsageError("{directory}: holds no model (config.json is missing); give the directory of a trained one",
                      directory=directory)  # fmt: skip


def _open(directory: Path) -> _Checkpoint:
    config, is_reward = _read_config(directory / "config.json")
    weights_file, tensors = _read_weights(directory)
    return _Checkpoint(directory / "config.json", config, is_reward, weights_file, _our_names(weights_file, tensors))


def recommended_sampling(source: str | Path) -> SamplingParameters:
    """A model's recommended sampling parameters: its generation_config.json, else its untruncated distribution.

    Raises UsageError for values of wrong types.
    """
    directory = local_directory(source, _SAFE_FILES)
    file = directory / "generation_config.json"
    if not file.is_file() and is_adapter(directory):
        return recommended_sampling(_open_adapter(directory).base)
    return SamplingParameters.of_generation_config(file, read_object(file) if file.is_file() else {})


def _read_config(file: Path) -> tuple[dict[str, Any], bool]:
    """(config.json, whether the model is a reward model)."""
    if file.parent.is_dir() and not file.exists():
        raise _no_model(file.parent)
    config = read_object(file)
    if config.get("model_type") not in ("gpt2", _OWN_TYPE):
        raise UsageError(f"{file}: model_type is {brief(config.get('model_type'))}, only GPT-2 can be loaded")
    default = _POLICIES[0] if config["model_type"] == "gpt2" else _REWARDS[-1]
    architectures = config.get("architectures") or [default]
    if not isinstance(architectures, list) or architectures[0] not in _POLICIES + _REWARDS:
        found = architectures[0] if isinstance(architectures, list) else architectures
        raise UsageError(f"{file}: architecture {brief(found, str)} is not one of {', '.join(_POLICIES + _REWARDS)}")
    return config, architectures[0] in _REWARDS


def _gpt2_config(checkpoint: _Checkpoint, dropout: float) -> GPT2Config:
    """The sizes, each checked against the tensors before use. Raises UsageError."""
    file, config = checkpoint.config_file, checkpoint.config
    sizes: dict[str, int] = {}
    for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
        value = config.get(name)
        if type(value) is not int or value < 1:
            raise UsageError(f"{file}: {name} is {'missing' if name not in config else f'{brief(value)}, not a size'}")
        sizes[name] = value
    for name, allowed in _GPT2_OPTIONS.items():
        if config.get(name, allowed[0]) not in allowed:
            raise UsageError(f"{file}: {name} is {brief(config[name])}, only GPT-2's {allowed[0]!r} is supported")
    if config.get("n_inner") not in (None, 4 * sizes["n_embd"]):
        raise UsageError(f"{file}: n_inner is {brief(config['n_inner'])}, only GPT-2's 4 x n_embd is supported")
    epsilon = config.get("layer_norm_epsilon", 1e-5)
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise UsageError(f"{file}: layer_norm_epsilon is {brief(epsilon)}, not a small number")
    checkpoint.require("wte.weight", (sizes["vocab_size"], sizes["n_embd"]))
    checkpoint.require("wpe.weight", (sizes["n_positions"], sizes["n_embd"]))
    layers = {int(m[1]) for name in checkpoint.tensors if (m := re.match(r"h\.(\d{1,9})\.", name))}
    if (first_missing := next(i for i in range(len(layers) + 1) if i not in layers)) < sizes["n_layer"]:
        raise UsageError(f"{checkpoint.weights_file}: tensor h.{first_missing}.ln_1.weight is missing")
    try:
        return GPT2Config(**sizes, dropout=dropout, layer_norm_epsilon=epsilon)
    except ValueError as error:
        raise UsageError(f"{file}: {error}") from None


def _head_of(checkpoint: _Checkpoint) -> tuple[HeadKind, Pooling]:
    if checkpoint.config["model_type"] == "gpt2":
        return "linear", "last"
    return _stored_head(checkpoint.config_file, checkpoint.config)


def _stored_head(file: Path, config: dict[str, Any]) -> tuple[HeadKind, Pooling]:
    own = config.get("wukong")
    head, pooling = (own.get("head"), own.get("pooling")) if isinstance(own, dict) else (None, None)
    if head not in get_args(HeadKind) or pooling not in get_args(Pooling):
        raise UsageError(f"{file}: wukong.head or wukong.pooling is missing or unknown")
    return cast(HeadKind, head), cast(Pooling, pooling)


def _read_weights(directory: Path) -> tuple[Path, dict[str, Tensor]]:
    """(the file to name in errors, all tensors), from safetensors or else .bin, in one file or shards."""
    for name in _WEIGHTS:
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
    raise UsageError(f"{directory}: no weights here ({_WEIGHTS[0]} or {_WEIGHTS[2]})")


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


def _our_names(file: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drops the `transformer.` prefix, the mask buffers of old files, and the output layer, which must be tied."""
    ours: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if re.search(r"\bh\.\d+\.attn\.(masked_)?bias$", name):
            continue
        if (own := name.removeprefix("transformer.")) in ours:
            raise UsageError(f"{file}: tensor {own} is stored twice, with and without the prefix transformer.")
        ours[own] = tensor
    output = ours.pop("lm_head.weight", None)
    if output is not None and not torch.equal(output, ours.setdefault("wte.weight", output)):
        raise UsageError(f"{file}: lm_head differs from wte, GPT-2's output layer is tied to its embedding")
    return ours


def _load_tokenizer(directory: Path, model: GPT2, template: str | Path | None) -> Tokenizer:
    """The tokenizer. Embedding rows without a token (vocabularies are padded to round numbers) are removed from the
    model: they could be sampled, and affect every log-prob."""
    tokenizer = Tokenizer.load(directory, template=template)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UsageError(f"{directory}: {_mismatch(tokenizer, model.config)}")
    if tokenizer.vocab_size < model.config.vocab_size:
        model.config = replace(model.config, vocab_size=tokenizer.vocab_size)
        rows = model.wte.weight.detach()[: tokenizer.vocab_size].clone()
        model.wte = nn.Embedding.from_pretrained(rows, freeze=False)
    return tokenizer


def _mismatch(tokenizer: Tokenizer, config: GPT2Config) -> str:
    return f"tokenizer does not match the model: {tokenizer.vocab_size} tokens, {config.vocab_size} embeddings"
