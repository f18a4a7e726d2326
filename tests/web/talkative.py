"""Tiny models for the chat and the arena: they know nothing, and say much."""

from pathlib import Path

import torch

from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.hub import save_policy
from wukong.tokenizer import Tokenizer

CONTEXT = 128


def save_models(run: Path, *names: str) -> None:
    """Model directories in `run`, each with random weights of its own, which never ends its turn: an answer that the
    dice make empty would fail one test in some dozens of runs."""
    tokenizer = Tokenizer.train([f"Boil {n} eggs for {n % 9} minutes." for n in range(50)], 280, template="plain")
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        model = GPT2(GPT2Config(vocab_size=280, n_positions=CONTEXT, n_embd=16, n_layer=1, n_head=2))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.1)  # so that they do not all say the same
            # The first dimension says nothing but that the end token is out of the question: -10 * 10 for its logit.
            model.wte.weight[:, 0] = 0
            model.wte.weight[tokenizer.eos_id, 0] = -10
            model.ln_f.weight[0], model.ln_f.bias[0] = 0, 10
        save_policy(run / name, model, tokenizer)
