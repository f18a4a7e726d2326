"""The doctor on real runs of PPO with tiny models, one of which is broken in one thing each."""

from pathlib import Path

import pytest

from wukong.records import Prompt, as_messages, write_records
from wukong.report.diagnosis.diagnose import diagnose
from wukong.report.diagnosis.records import read_records_of
from wukong.stages.online import ppo
from wukong.stages.online.ppo import PPOOptions


def letters(prompts, texts):
    """A reward that a byte model can learn: the share of letters."""
    return [sum(character.isalpha() for character in text) / 16 for text in texts]


def severities(tmp_path: Path, models: Path, **changes) -> dict[str, str]:
    prompts = tmp_path / "prompts.jsonl"
    write_records(prompts, [Prompt(messages=as_messages(f"question {n}")) for n in range(64)])
    settings = {
        "model": str(models / "sft"), "prompts": [str(prompts)], "rewards": [f"{__name__}:letters"], "episodes": 640,
        "batch_size": 64, "ppo_epochs": 2, "max_new_tokens": 16, "missing_eos_score": None, "lr": 2e-3, "kl_coef": 0.02,
        "tensorboard": False, "precision": "float32", "out": tmp_path / "run" / "policy",
    }  # fmt: skip
    ppo.run(PPOOptions.model_validate(settings | changes))
    return {one.code: one.severity for one in diagnose(read_records_of(tmp_path / "run")).findings}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("lr-too-low", {"lr": 1e-8}),
        ("lr-too-high", {"lr": 0.1, "max_kl": 1e6}),
        ("kl-coefficient-too-high", {"kl_coef": 20.0}),
    ],
)
def test_a_broken_run_is_named(tmp_path, tiny_models, code, changes):
    assert severities(tmp_path, tiny_models, **changes)[code] == "red"


@pytest.mark.slow
def test_a_healthy_run_is_not(tmp_path, tiny_models):
    assert "red" not in severities(tmp_path, tiny_models).values()
