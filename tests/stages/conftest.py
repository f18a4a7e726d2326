"""A tiny policy and reward model on disk, for tests of stages."""

from pathlib import Path

import pytest
import torch

from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.heads import ScalarModel
from wukong.model.hub import save_policy, save_reward
from wukong.tokenizer import Tokenizer

TINY = GPT2Config(vocab_size=257, n_positions=64, n_embd=32, n_layer=2, n_head=2)


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """The 256 bytes and the end token; prompts are continued as they stand."""
    return Tokenizer.train([], 257, "plain")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Tokenizer) -> Path:
    """A directory with `sft/`, `other/` (policies) and `reward/`."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("sft", "other", "reward")):
        (root / name).mkdir()
        torch.manual_seed(seed)
        model = GPT2(TINY)
        if name == "reward":
            save_reward(root / name, ScalarModel(model), byte_tokenizer)
        else:
            save_policy(root / name, model, byte_tokenizer)
    return root
