"""examples/ppo_in_one_file.py is `wukong ppo`: the same tokens are drawn, and the same weights come out."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from wukong.model.gpt2 import GPT2, PRESETS, GPT2Config
from wukong.model.heads import ScalarModel
from wukong.model.hub import load_policy, load_reward, save_policy, save_reward
from wukong.stages.online import collect, ppo
from wukong.stages.online.rollouts import Episodes
from wukong.tokenizer import Tokenizer

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "ppo_in_one_file.py"
PROMPTS = [f"Boil {n} eggs{' gently' * (n % 4)}" for n in range(20)]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ppo_in_one_file", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """An SFT model that ends some of its answers, a reward model, and prompts of several lengths."""
    tokenizer = Tokenizer.train(PROMPTS, 262, template="plain")
    config = GPT2Config(vocab_size=262, **PRESETS["test"])
    torch.manual_seed(0)
    policy = GPT2(config)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
        policy.wte.weight[tokenizer.eos_id] += 0.3 * policy.ln_f.bias  # likelier than most
    save_policy(tmp_path / "sft", policy, tokenizer)
    save_reward(tmp_path / "reward", ScalarModel(GPT2(config)), tokenizer)
    (tmp_path / "data").mkdir()
    lines = [json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n" for text in PROMPTS]
    (tmp_path / "data" / "prompts-train.jsonl").write_text("".join(lines))
    return tmp_path


def test_it_draws_the_tokens_and_learns_the_weights_of_the_library(
    example: ModuleType, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = example.Config(iterations=3, batch_size=16, minibatch_size=8, max_new_tokens=12, lr=1e-3)
    drawn: list[list[list[int]]] = []

    def watched(*arguments: object) -> Episodes:
        episodes = roll_out(*arguments)
        drawn.append(episodes.sequences)
        return episodes

    roll_out = collect.roll_out
    monkeypatch.setattr(collect, "roll_out", watched)
    ppo.run(
        ppo.PPOOptions(
            model=str(models / "sft"), reward_model=str(models / "reward"), out=models / "ppo",
            allow_chance_reward_model=True, prompts=[str(models / "data" / "prompts-train.jsonl")],
            episodes=3 * config.batch_size, batch_size=config.batch_size,
            minibatch_size=config.minibatch_size, ppo_epochs=config.ppo_epochs,
            max_new_tokens=config.max_new_tokens, temperature=config.temperature, lr=config.lr,
            kl_coef=config.kl_coef, precision="float32", tensorboard=False, device="cpu",
        )
    )  # fmt: skip
    policy, tokenizer = load_policy(models / "sft")
    reward_model, _ = load_reward(models / "reward")
    begun = policy.wte.weight.detach().clone()
    prompts = [tokenizer.prompt_ids(text) for text in PROMPTS]
    sampled = example.train(policy, reward_model, tokenizer.eos_id, prompts, config)
    assert len(sampled) == len(drawn) == 3
    lengths = set()
    for ids, sequences in zip(sampled, drawn, strict=True):
        for row, sequence in zip(ids.tolist(), sequences, strict=True):
            assert row[: len(sequence)] == sequence
            assert not any(row[len(sequence) :]), "padding"
            lengths.add(len(sequence))
    assert len(lengths) > 5, "some end early, some late"
    learnt, _ = load_policy(models / "ppo")
    for (name, ours), theirs in zip(policy.named_parameters(), learnt.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert (policy.wte.weight - begun).abs().max() > 1e-3, "there was something to learn"


def test_it_runs_on_a_run(example: ModuleType, models: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["x", str(models), "--iterations", "2", "--max-new-tokens", "8"])
    example.main()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("iteration   1: score ")
    assert "KL  0.000" in first
    assert "KL  0.000" not in second
