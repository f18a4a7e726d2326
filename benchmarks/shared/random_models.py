"""Models with random weights: the speed of most work does not depend on what a model knows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from wukong.model.families import PRESET_CONFIGS, new_model
from wukong.model.heads import ScalarModel
from wukong.model.hub import save_policy, save_reward
from wukong.tokenizer import Tokenizer


def save_random_policy(directory: Path, tokenizer: Tokenizer, preset: str) -> None:
    """An untrained policy with the tokenizer's vocabulary."""
    directory.mkdir()
    save_policy(directory, new_model(replace(PRESET_CONFIGS[preset], vocab_size=tokenizer.vocab_size)), tokenizer)


def save_random_reward(directory: Path, tokenizer: Tokenizer, preset: str) -> None:
    """As `save_random_policy`, a reward model."""
    directory.mkdir()
    model = ScalarModel(new_model(replace(PRESET_CONFIGS[preset], vocab_size=tokenizer.vocab_size)))
    save_reward(directory, model, tokenizer)
