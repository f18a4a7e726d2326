"""Models with random weights: the speed of most work does not depend on what a model knows."""

from __future__ import annotations

from pathlib import Path

from wukong.model.gpt2 import GPT2, PRESETS, GPT2Config
from wukong.model.heads import ScalarModel
from wukong.model.hub import save_policy, save_reward
from wukong.tokenizer import Tokenizer


def save_random_policy(directory: Path, tokenizer: Tokenizer, preset: str, vocab_size: int | None = None) -> None:
    """An untrained policy, with the tokenizer's vocabulary size unless another is given."""
    directory.mkdir()
    save_policy(directory, GPT2(_config(tokenizer, preset, vocab_size)), tokenizer)


def save_random_reward(directory: Path, tokenizer: Tokenizer, preset: str, vocab_size: int | None = None) -> None:
    """As `save_random_policy`, a reward model."""
    directory.mkdir()
    save_reward(directory, ScalarModel(GPT2(_config(tokenizer, preset, vocab_size))), tokenizer)


def _config(tokenizer: Tokenizer, preset: str, vocab_size: int | None) -> GPT2Config:
    return GPT2Config(vocab_size=vocab_size or tokenizer.vocab_size, **PRESETS[preset])
