"""Tiny models on disk: two policies, and a reward model that learnt to prefer a friendly answer."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.hub import save_policy
from wukong.records import Comparison, as_messages, write_records
from wukong.stages import reward
from wukong.tokenizer import Tokenizer

TINY = GPT2Config(vocab_size=257, n_positions=64, n_embd=32, n_layer=2, n_head=2)


def friendly_pair(n: int, annotator: str = "ann") -> Comparison:
    """People prefer yes to no; both have one length in every fifth pair."""
    other = f"no! {n}" if n % 5 == 0 else f"no {n}"
    prompt = as_messages(f"is {n} a number")
    return Comparison(prompt=prompt, chosen=f"yes {n}", rejected=other, annotator=annotator, source=f"s{n % 2}")


@pytest.fixture(scope="session")
def friendly() -> Callable[..., Comparison]:
    return friendly_pair


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `sft/`, `other/` (policies), `comparisons.jsonl` and `reward/`, which learnt from them."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = Tokenizer.train([], 257, "plain")
    for seed, name in enumerate(("sft", "other")):
        (root / name).mkdir()
        torch.manual_seed(seed)
        save_policy(root / name, GPT2(TINY), tokenizer)
    write_records(root / "comparisons.jsonl", [friendly_pair(n) for n in range(160)])
    settings = {"model": str(root / "sft"), "data": [str(root / "comparisons.jsonl")], "valid_fraction": 0.25}
    reward.run(
        reward.RewardOptions(out=root / "reward", lr=5e-3, epochs=2, tensorboard=False, precision="float32", **settings)
    )
    return root
