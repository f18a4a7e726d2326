"""Tiny random GPT-2s, ours and `transformers`', with the same weights. Everything is offline."""

import pytest
import torch

from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.tokenizer import Tokenizer

SIZES = {"vocab_size": 280, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}


def shake(module: torch.nn.Module, seed: int = 0) -> None:
    """Gives every parameter, biases and LayerNorms too, a value that a wrong mapping could not keep by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([f"Boil {n} eggs for {n % 9} minutes, then peel the eggs." for n in range(50)], 280)


@pytest.fixture
def model() -> GPT2:
    torch.manual_seed(0)
    gpt2 = GPT2(GPT2Config(**SIZES))
    shake(gpt2)
    return gpt2


@pytest.fixture(scope="session")
def theirs_dir(tokenizer, tmp_path_factory):
    """A policy as `transformers` writes it, with our tokenizer's files beside it."""
    transformers = pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("theirs")
    torch.manual_seed(1)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES, bos_token_id=279, eos_token_id=279))
    shake(theirs, seed=1)
    with torch.no_grad():
        theirs.transformer.wpe.weight.mul_(4)  # so that greedy decoding does not settle on one token at once
    theirs.save_pretrained(directory)
    tokenizer.save(directory)
    return directory
