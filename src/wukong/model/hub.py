"""Hugging Face import and export: our models are directories that `transformers` loads, and theirs load here.

What differs between the families is in `gpt2_files` and `llama_files`. A reward model with a linear head read at the
last token is their `...ForSequenceClassification` with one label; one with an MLP head or another pooling has no
counterpart there, so it is stored under a separate model type, which `transformers` refuses instead of giving wrong
scores.

Saving only writes files: the caller provides a staging directory (`wukong.files.atomic_directory`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from wukong.errors import UsageError, brief
from wukong.files import disk_errors, write_json
from wukong.model.architectures import ARCHITECTURES, OWN_REWARD, OWN_TYPE, Architecture
from wukong.model.config import ModelConfig
from wukong.model.families import PRESET_CONFIGS, files_of, files_of_type, new_model
from wukong.model.heads import HeadKind, Pooling, ScalarModel
from wukong.model.language_model import LanguageModel
from wukong.model.weights import WEIGHTS, Checkpoint, ConfigFile, read_weights
from wukong.sampling import SamplingParameters
from wukong.tokenizer import TOKENIZER_FILES, Tokenizer, local_directory
from wukong.tokenizer_files import read_object

_SAFE_FILES = (
    *TOKENIZER_FILES,  # config.json and generation_config.json among them
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
)
_PICKLED_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")


# ------------------------------------------------------------------------------------------------------------ saving


def save_policy(
    directory: str | Path,
    model: LanguageModel,
    tokenizer: Tokenizer,
    *,
    dtype: torch.dtype = torch.float32,
    sampling: SamplingParameters | None = None,
) -> None:
    """Writes a model that `transformers.AutoModelForCausalLM` loads.

    Args:
        dtype: of the stored weights.
        sampling: the default sampling parameters, here and in `transformers` (`recommended_sampling`).
    """
    directory, kind = Path(directory), _architecture(model.config)
    config = _config_json(model.config, tokenizer, dtype) | {"architectures": [kind.policy]}
    _save(directory, config, _their_tensors(model), tokenizer, model.config.n_positions)
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(directory / "generation_config.json", {**ids, **(sampling.as_generation_config() if sampling else {})})


def save_reward(
    directory: str | Path, model: ScalarModel, tokenizer: Tokenizer, *, dtype: torch.dtype = torch.float32
) -> None:
    """Writes a reward (or value) model; with a linear head and last pooling, `transformers` loads it.

    Their head has no bias. Where the architecture has another place for ours (`FamilyFiles.fold_bias`), it is folded
    into that. Otherwise config.json keeps it, as wukong.score_bias: it is added to scores here, and scores there are
    lower by this constant.
    """
    kind, files = _architecture(model.config), files_of(model.config)
    config = _config_json(model.config, tokenizer, dtype)
    tensors = _their_tensors(model.trunk) | {"score.weight": model.score.weight.detach()}
    bias = model.score.bias.detach().double()  # ()
    if model.head_kind == "linear" and model.pooling == "last":
        config |= {"architectures": [kind.reward], "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
        if bias.item() != 0:
            weight = model.score.weight.detach().double().squeeze(0)  # (C,)
            if not weight.any():
                raise UsageError("the reward head's weights are all zero, so its score does not depend on the text")
            folded = files.fold_bias(model.trunk, weight, bias)
            if folded is None:
                config["wukong"] = {"score_bias": model.score.bias.item()}
            else:
                tensors |= {f"{kind.prefix}{name}": tensor for name, tensor in folded.items()}
    else:
        config |= {
            "architectures": [OWN_REWARD],
            "model_type": OWN_TYPE,
            "wukong": {"model_type": kind.model_type, "head": model.head_kind, "pooling": model.pooling},
        }
        tensors |= {"score.bias": model.score.bias.detach()}
        tensors |= {f"hidden.{name}": tensor.detach() for name, tensor in model.hidden.named_parameters()}
    _save(Path(directory), config, tensors, tokenizer, model.config.n_positions)


def _architecture(config: ModelConfig) -> Architecture:
    return ARCHITECTURES[files_of(config).model_type(config)]


def _config_json(config: ModelConfig, tokenizer: Tokenizer, dtype: torch.dtype) -> dict[str, Any]:
    if tokenizer.vocab_size > config.vocab_size:
        raise UsageError(_mismatch(tokenizer, config))
    return {
        "model_type": _architecture(config).model_type,
        **files_of(config).config_json(config),
        "initializer_range": 0.02,
        "bos_token_id": tokenizer.role_id("bos_token"),
        "eos_token_id": tokenizer.eos_ids[0] if len(tokenizer.eos_ids) == 1 else list(tokenizer.eos_ids),
        "pad_token_id": tokenizer.role_id("pad_token"),
        "dtype": str(dtype).removeprefix("torch."),
    }


def _their_tensors(model: LanguageModel) -> dict[str, Tensor]:
    prefix, transposed = _architecture(model.config).prefix, files_of(model.config).transposed
    return {
        name if name == "lm_head.weight" else f"{prefix}{name}": (
            tensor.detach().t() if name.endswith(transposed) else tensor.detach()
        )
        for name, tensor in model.named_parameters()
    }


def _save(
    directory: Path, config: dict[str, Any], tensors: dict[str, Tensor], tokenizer: Tokenizer, n_positions: int
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config)
    dtype = getattr(torch, config["dtype"])
    stored = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    with disk_errors(directory):
        save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(directory, model_max_length=n_positions)


# ----------------------------------------------------------------------------------------------------------- loading


def load_policy(
    source: str | Path, *, dropout: float = 0.0, template: str | Path | None = None
) -> tuple[LanguageModel, Tokenizer]:
    """A language model and its tokenizer, from a directory or a Hugging Face hub id such as "gpt2".

    Args:
        dropout: the rate for training; it is not saved with a model.
        template: a chat template to use instead of the stored one.

    Returns:
        The model in float32 on the CPU, in training mode, and the tokenizer.

    Raises:
        UsageError: names the invalid file and the problem in one line.
    """
    directory = _download(source)
    checkpoint = _open(directory)
    if checkpoint.config.is_reward:
        raise UsageError(f"{checkpoint.config.path}: holds a reward model, expected a language model")
    model = _empty_model(checkpoint, dropout)
    checkpoint.fill(model)
    checkpoint.finish()
    return model, _load_tokenizer(directory, model, template)


def load_reward(
    source: str | Path, *, dropout: float = 0.0, template: str | Path | None = None
) -> tuple[ScalarModel, Tokenizer]:
    """A reward model and its tokenizer: ours, or anyone's `...ForSequenceClassification` with one label.

    Arguments, result and errors as for `load_policy`.
    """
    directory = _download(source)
    checkpoint = _open(directory)
    if not checkpoint.config.is_reward:
        raise UsageError(f"{checkpoint.config.path}: holds a language model, expected a reward model")
    head, pooling, bias = _head_of(checkpoint.config)
    with torch.device("meta"):
        model = ScalarModel(_empty_model(checkpoint, dropout), head, pooling)
    score = checkpoint.tensors.get("score.weight")
    if score is not None and score.ndim == 2 and len(score) != 1:
        raise UsageError(f"{checkpoint.file}: a classifier of {len(score)} labels, a reward model has one")
    checkpoint.tensors.setdefault("score.bias", torch.tensor([bias]))  # their classes have none
    checkpoint.fill(model.trunk)
    head_parameters = {name: p for name, p in model.named_parameters() if not name.startswith("trunk.")}
    state = {name: checkpoint.take(name, parameter.shape) for name, parameter in head_parameters.items()}
    model.load_state_dict(state, strict=False, assign=True)
    checkpoint.finish()
    return model, _load_tokenizer(directory, model.trunk, template)


def load_trunk(
    source: str | Path, *, dropout: float = 0.0, template: str | Path | None = None
) -> tuple[LanguageModel, Tokenizer]:
    """The transformer of a policy (without an output layer of its own) or of a reward model (without its head), e.g. to
    attach a new head.

    Arguments, result and errors as for `load_policy`.
    """
    directory = _download(source)
    if _read_config(directory / "config.json").is_reward:
        reward_model, tokenizer = load_reward(directory, dropout=dropout, template=template)
        return reward_model.trunk, tokenizer
    model, tokenizer = load_policy(directory, dropout=dropout, template=template)
    model.drop_output_layer()
    return model, tokenizer


def stored_config(source: str) -> ModelConfig | None:
    """The configuration of a model directory, or of a released GPT-2 by its hub id; None if it is not here (yet).

    Raises UsageError for a configuration that is not supported.
    """
    name = source.removeprefix("openai-community/")
    if name.startswith("gpt2") and name in PRESET_CONFIGS and not Path(source).exists():
        return PRESET_CONFIGS[name]
    path = Path(source) / "config.json"
    return _model_config(_read_config(path), dropout=0.0) if path.is_file() else None


def _download(source: str | Path) -> Path:
    directory = local_directory(source, _SAFE_FILES)
    if not Path(source).is_dir() and not any((directory / name).is_file() for name in WEIGHTS):
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


def _open(directory: Path) -> Checkpoint:
    config = _read_config(directory / "config.json")
    file, tensors = read_weights(directory)
    files, prefix = files_of_type(config.architecture.model_type), config.architecture.prefix
    unprefixed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if (own := name.removeprefix(prefix)) in unprefixed:
            raise UsageError(f"{file}: tensor {own} is stored twice, with and without the prefix {prefix}")
        unprefixed[own] = tensor
    return Checkpoint(config, file, files.our_tensors(file, config, unprefixed), files.transposed)


def recommended_sampling(source: str | Path) -> SamplingParameters:
    """A model's recommended sampling parameters: its generation_config.json, else its untruncated distribution.

    Raises UsageError for values of wrong types.
    """
    file = local_directory(source, _SAFE_FILES) / "generation_config.json"
    return SamplingParameters.of_generation_config(file, read_object(file) if file.is_file() else {})


def _read_config(file: Path) -> ConfigFile:
    if file.parent.is_dir() and not file.exists():
        raise _no_model(file.parent)
    content = read_object(file)
    kind, own = content.get("model_type"), content.get("wukong")
    if kind == OWN_TYPE:  # the first of them were all GPT-2s, and did not say so
        kind = own.get("model_type", "gpt2") if isinstance(own, dict) else "gpt2"
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise UsageError(f"{file}: model_type is {brief(kind)}, only these can be loaded: {supported}")
    architecture = ARCHITECTURES[kind]
    classes: tuple[str, ...] = (architecture.policy, architecture.base, architecture.reward)
    if content["model_type"] == OWN_TYPE:
        classes = (OWN_REWARD,)
    named = content.get("architectures") or [classes[0]]
    if not isinstance(named, list) or named[0] not in classes:
        found = named[0] if isinstance(named, list) else named
        raise UsageError(f"{file}: architecture {brief(found, str)} is not one of {', '.join(classes)}")
    return ConfigFile(file, content, architecture, named[0] in (architecture.reward, OWN_REWARD))


def _model_config(file: ConfigFile, dropout: float) -> ModelConfig:
    try:
        config: ModelConfig = files_of_type(file.architecture.model_type).read_config(file, dropout)
        return config
    except ValueError as error:
        raise UsageError(f"{file.path}: {error}") from None


def _empty_model(checkpoint: Checkpoint, dropout: float) -> LanguageModel:
    """The model on the meta device, its sizes checked against the tensors. Raises UsageError."""
    config = _model_config(checkpoint.config, dropout)
    files_of(config).check(checkpoint, config)
    with torch.device("meta"):
        return new_model(config)


def _head_of(file: ConfigFile) -> tuple[HeadKind, Pooling, float]:
    """Head, pooling, and the bias where config.json keeps it (`save_reward`)."""
    own = file.content.get("wukong", {})
    own = own if isinstance(own, dict) else {}
    if file.content["model_type"] != OWN_TYPE:
        bias = own.get("score_bias", 0.0)
        if not isinstance(bias, float) or not math.isfinite(bias):
            raise UsageError(f"{file.path}: wukong.score_bias is {brief(bias)}, not a number")
        return "linear", "last", bias
    head, pooling = own.get("head"), own.get("pooling")
    if head not in get_args(HeadKind) or pooling not in get_args(Pooling):
        raise UsageError(f"{file.path}: wukong.head or wukong.pooling is missing or unknown")
    return cast(HeadKind, head), cast(Pooling, pooling), 0.0


def _load_tokenizer(directory: Path, model: LanguageModel, template: str | Path | None) -> Tokenizer:
    """The tokenizer. Embedding rows without a token (vocabularies are padded to round numbers) are removed from the
    model: they could be sampled, and affect every log-prob."""
    tokenizer = Tokenizer.load(directory, template=template)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UsageError(f"{directory}: {_mismatch(tokenizer, model.config)}")
    if tokenizer.vocab_size < model.config.vocab_size:
        model.keep_tokens(tokenizer.vocab_size)
    return tokenizer


def _mismatch(tokenizer: Tokenizer, config: ModelConfig) -> str:
    return f"tokenizer does not match the model: {tokenizer.vocab_size} tokens, {config.vocab_size} embeddings"
