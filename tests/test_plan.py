"""`wukong plan`: sizes followed through a recipe, and sums that a person can check."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wukong import plan
from wukong.cli import main
from wukong.errors import UsageError
from wukong.model.families import PRESET_CONFIGS
from wukong.model.gpt2 import PRESETS, GPT2Config
from wukong.plan import Cost, PlanOptions, cost_of, model_sizes, teacher_sizes
from wukong.recipe import load_recipe, resolve
from wukong.records import Comparison, Ranking, as_messages, write_records
from wukong.stages.online.distill import DistillOptions
from wukong.stages.online.ppo import PPOOptions
from wukong.stages.pretrain import PretrainOptions
from wukong.stages.reward import RewardOptions
from wukong.training.compute import Compute
from wukong.training.memory import (
    TRAINED_BYTES,
    Decoding,
    Workload,
    estimate,
    forward_flops,
    frozen_bytes,
    n_parameters,
)

KITCHEN = "kitchen"
CONFIG = GPT2Config(vocab_size=300, **PRESETS["test"])
ASSUMED = PlanOptions(recipe=KITCHEN, records=10, record_tokens=20, prompt_tokens=8)
N = n_parameters(CONFIG)
FLOAT32 = Compute(torch.device("cpu"), torch.float32)


def test_the_sizes_of_the_kitchen_follow_from_its_preset_and_its_vocabulary(tmp_path: Path) -> None:
    _, steps = resolve(load_recipe(KITCHEN), tmp_path / "nothing")
    expected = GPT2Config(**{**PRESETS["nano"], "vocab_size": 3072})
    assert model_sizes(steps) == dict.fromkeys(("pretrain", "sft", "reward", "ppo"), expected)


def test_a_llama_is_followed_like_a_gpt2(tmp_path: Path) -> None:
    _, steps = resolve(load_recipe("test"), tmp_path / "nothing", overrides={"pretrain.model": "llama-test"})
    expected = replace(PRESET_CONFIGS["llama-test"], vocab_size=1536)
    assert model_sizes(steps) == dict.fromkeys(("pretrain", "sft", "reward", "ppo"), expected)
    (options,) = (step.options for step in steps if isinstance(step.options, PretrainOptions))
    assert cost_of(options, expected, FLOAT32, ASSUMED).trained == n_parameters(expected)


def test_pretraining_is_three_forward_passes_over_its_tokens() -> None:
    options = PretrainOptions(out=Path("o"), data=Path("d"), model="test", tokens=1000, batch_tokens=256, context=64)
    cost = cost_of(options, CONFIG, FLOAT32, ASSUMED)
    # A batch of 256 tokens is less than a micro-batch; the first sample prompt is continued at validations.
    workload = Workload(256, trained=(CONFIG,), decoding=Decoding(CONFIG, 1, 64), one_shape=True)
    held = estimate(workload, FLOAT32.device, torch.float32, 8192).total
    assert cost == Cost(N, 0, held, 3 * forward_flops(CONFIG, 1024, 64, 1024))  # whole batches


def test_distillation_writes_and_learns_while_its_teacher_reads(tmp_path: Path) -> None:
    teacher = GPT2Config(vocab_size=300, **PRESETS["nano"])
    options = DistillOptions(
        out=Path("o"), model="sft", teacher="big", prompts=["p"], episodes=128, batch_size=32, max_new_tokens=16
    )
    cost = cost_of(options, CONFIG, FLOAT32, ASSUMED, teacher)
    speak, read = (forward_flops(config, 128 * 24, 24, 128 * 16) for config in (CONFIG, teacher))
    assert (cost.trained, cost.frozen) == (N, n_parameters(teacher))
    assert (cost.products, cost.decoding) == (3 * speak + read, speak)
    workload = Workload(32 * 24, 16 / 24, (CONFIG,), (teacher,), Decoding(CONFIG, 32, 24))
    assert cost.bytes == estimate(workload, FLOAT32.device, torch.float32, options.micro_batch_tokens).total
    path = tmp_path / "recipe.yaml"
    made = "  distill: {model: '{run}/base', teacher: '{run}/big', prompts: [p], out: '{run}/d'}\n"
    steps = "".join(
        f"  pretrain{name}: {{data: '{{run}}/tokens', model: {preset}, out: '{{run}}/{out}'}}\n"
        for name, preset, out in (("", "test", "base"), ("_big", "nano", "big"))
    )
    path.write_text(f"name: x\nsteps:\n  tokenize: {{data: [c], out: '{{run}}/tokens'}}\n{steps}{made}")
    _, resolved = resolve(load_recipe(path), tmp_path / "run")
    sizes = model_sizes(resolved)
    assert teacher_sizes(resolved, sizes) == {"distill": sizes["pretrain_big"]}
    assert sizes["distill"] == sizes["pretrain"] != sizes["pretrain_big"]


@pytest.mark.parametrize("kind", ["separate", "shared"])
def test_ppo_writes_scores_and_learns(kind: str) -> None:
    options = PPOOptions(
        out=Path("o"), model="sft", reward_model="reward", prompts=["p"], episodes=128, ppo_epochs=2,
        max_new_tokens=16, value_model=kind, batch_size=32,
    )  # fmt: skip
    cost = cost_of(options, CONFIG, FLOAT32, ASSUMED)
    own = kind == "separate"
    speak, read = (forward_flops(CONFIG, 128 * 24, 24, outputs) for outputs in (128 * 16, 0))
    assert cost.decoding == speak
    # policy and reference, the value model, the reward model; then two epochs of forward and (twice) backward
    assert cost.products == pytest.approx(2 * speak + own * read + read + 2 * 3 * (speak + own * read))
    assert (cost.trained, cost.frozen) == ((1 + own) * N, 2 * N)
    trained, frozen = (CONFIG,) * (1 + own), (CONFIG, CONFIG)
    workload = Workload(32 * 24, 16 / 24, trained, frozen, Decoding(CONFIG, 32, 24))
    found = estimate(workload, FLOAT32.device, torch.float32, 8192)
    assert cost.bytes == found.total
    assert found.weights + found.gradients + found.moments == (1 + own) * TRAINED_BYTES * N
    assert found.frozen == 2 * frozen_bytes(CONFIG, torch.float32)


def test_data_that_are_there_are_counted_and_others_assumed(tmp_path: Path) -> None:
    prompt, answers = as_messages("x" * 12), ["y" * 8, "z" * 28, "w" * 20]
    rank = Ranking(prompt=prompt, responses=answers, groups=[[0], [1], [2]])
    path = tmp_path / "there.jsonl"
    write_records(path, [rank, Comparison(prompt=prompt, chosen="u" * 4, rejected="v" * 8)])
    for data, answers, tokens in ((path, 5, 12 * 5 + 8 + 28 + 20 + 4 + 8), (tmp_path / "not", 20, 4 * 20 * 20)):
        options = RewardOptions(out=tmp_path / "o", model="sft", data=[str(data)], epochs=2)
        cost = cost_of(options, CONFIG, FLOAT32, ASSUMED)
        length = tokens / 4 / answers
        assert cost.products == pytest.approx(3 * forward_flops(CONFIG, 2 * tokens / 4, length, 0))
        assert cost.assumed is (data != path)


def test_the_command_prints_a_table(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(plan, "free_bytes", lambda device: 5 * 10**9)
    assert main(["plan", str(KITCHEN), "--run-dir", str(tmp_path / "none")]) == 0
    out = capsys.readouterr().out
    kitchen = GPT2Config(**{**PRESETS["nano"], "vocab_size": 3072})
    for words in ("pretrain", "sft", "reward", "ppo", f"{n_parameters(kitchen):,}", "5.00 GB of memory free"):
        assert words in out
    assert "evaluate " not in out


def test_the_table_and_the_total_are_chinese(capsys, tmp_path: Path) -> None:
    assert main(["plan", str(KITCHEN), "--run-dir", str(tmp_path / "none"), "--language", "zh"]) == 0
    out = capsys.readouterr().out
    for words in ("阶段", "训练", "冻结", "内存", "时间", "按其 50% 估算", "合计：约", "不含采样、标注和评测"):
        assert words in out
    for words in ("memory free", "total: ", "assuming", " min "):
        assert words not in out


def test_a_recipe_that_trains_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text('name: data\nsteps:\n  kitchen: {out: "{run}/data"}\n')
    with pytest.raises(UsageError, match="trains a model"):
        plan.run(PlanOptions(recipe=path))
