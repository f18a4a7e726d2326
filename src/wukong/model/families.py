"""The families of language models. Whoever needs a family's parts finds them here, by its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from wukong.model import gpt2, llama
from wukong.model.config import GPT2Config, LlamaConfig, ModelConfig
from wukong.model.gpt2 import GPT2
from wukong.model.gpt2_files import GPT2Files
from wukong.model.language_model import LanguageModel
from wukong.model.llama import Llama
from wukong.model.llama_files import LlamaFiles
from wukong.model.weights import Checkpoint, ConfigFile

PRESET_CONFIGS: dict[str, ModelConfig] = {
    **{name: GPT2Config(**sizes) for name, sizes in gpt2.PRESETS.items()},
    **llama.PRESETS,
}
"""Models to train from scratch, by name; the vocabulary is replaced by the tokenizer's."""


class FamilyFiles(Protocol):
    """How Hugging Face stores the models of a family."""

    transposed: tuple[str, ...]
    """Endings of the names of matrices that are stored as (in, out)."""

    def model_type(self, config: Any) -> str:
        """Hugging Face's name of the architecture."""

    def config_json(self, config: Any) -> dict[str, Any]:
        """The content of config.json that depends on the architecture."""

    def read_config(self, file: ConfigFile, dropout: float) -> Any:
        """The configuration. Raises UsageError for what is missing or not supported, ValueError for sizes that do not
        fit each other."""

    def check(self, checkpoint: Checkpoint, config: Any) -> None:
        """Compares the sizes with tensors, before anything of those sizes is made. Raises UsageError."""

    def our_tensors(self, path: Path, config: ConfigFile, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that our model has. Raises UsageError for weights that contradict config.json."""

    def fold_bias(self, trunk: Any, weight: Tensor, bias: Tensor) -> dict[str, Tensor] | None:
        """The tensors to change so that a linear head of this weight (C,) float64 gets this bias (); None where the
        architecture has no place for it."""


@dataclass(frozen=True)
class Family:
    model: type[Any]
    files: FamilyFiles


_FAMILIES: dict[type, Family] = {GPT2Config: Family(GPT2, GPT2Files()), LlamaConfig: Family(Llama, LlamaFiles())}
_CONFIGS: dict[str, type] = {"gpt2": GPT2Config, "llama": LlamaConfig, "qwen2": LlamaConfig, "qwen3": LlamaConfig}


def new_model(config: ModelConfig) -> LanguageModel:
    """A model of these sizes with random weights."""
    model: LanguageModel = _FAMILIES[type(config)].model(config)
    return model


def files_of(config: ModelConfig) -> FamilyFiles:
    return _FAMILIES[type(config)].files


def files_of_type(model_type: str) -> FamilyFiles:
    """model_type: one of `architectures.ARCHITECTURES`."""
    return _FAMILIES[_CONFIGS[model_type]].files
