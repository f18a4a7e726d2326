"""Every stage that trains, with adapters and with frozen layers: what it writes, what it leaves alone, resuming."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.stages.tiny_data import FAST, FOODS, curves, made_files, stop_after, write_jsonl
from wukong.errors import UsageError
from wukong.files import fingerprint
from wukong.merge import MergeOptions
from wukong.merge import run as merge
from wukong.model.hub import load_policy, load_reward
from wukong.model.lora import blocks_of
from wukong.options import StageOptions
from wukong.provenance import read_record
from wukong.scoring import scores_of
from wukong.stages import reward, sft
from wukong.stages.direct import dpo, kto
from wukong.stages.direct.dpo import DPOOptions
from wukong.stages.direct.kto import KTOOptions
from wukong.stages.online import grpo, ppo
from wukong.stages.online.grpo import GRPOOptions
from wukong.stages.online.ppo import PPOOptions
from wukong.stages.reward import RewardOptions
from wukong.stages.sft import SFTOptions
from wukong.training.compute import Compute

CPU = Compute(torch.device("cpu"), torch.float32)
LORA = {"lora_rank": 2, "lr": 3e-3}
FREEZE = {"freeze_layers": 1}
ONLINE = {"prompts": ["{prompts}"], "episodes": 24, "batch_size": 8, "max_new_tokens": 8, "lr": 1e-3}
ONLINE |= {"reward_model": "{reward}", "missing_eos_score": None}
RUNS: dict[str, tuple[type[StageOptions], Callable, dict]] = {
    "sft": (SFTOptions, sft.run, {"data": ["{taught}"], "batch_size": 8, "epochs": 1}),
    "reward": (RewardOptions, reward.run, {"data": ["{pairs}"], "batch_size": 5, "epochs": 1}),
    "dpo": (DPOOptions, dpo.run, {"data": ["{pairs}"], "batch_size": 5, "epochs": 1, "lr": 1e-3}),
    "kto": (KTOOptions, kto.run, {"data": ["{pairs}"], "batch_size": 5, "epochs": 1, "lr": 1e-3}),
    "ppo": (PPOOptions, ppo.run, ONLINE | {"minibatch_size": 4, "ppo_epochs": 2}),
    "grpo": (GRPOOptions, grpo.run, ONLINE | {"samples_per_prompt": 4}),
}
TUNED = {"lora": LORA, "freeze": FREEZE, "both": LORA | FREEZE}


@pytest.fixture
def run_dir(tiny_models: Path, tmp_path: Path) -> Path:
    """A run directory with an SFT model, a reward model and data."""
    run = tmp_path / "run"
    for name in ("sft", "reward"):
        shutil.copytree(tiny_models / name, run / name)
    write_jsonl(run / "prompts.jsonl", [{"prompt": f"say {n}"} for n in range(12)])
    write_jsonl(run / "taught.jsonl", [{"prompt": f"Is {f} good?", "response": f"{f}!"} for f in FOODS * 2])
    pairs = [{"prompt": f"say {food}", "chosen": f"{food}.", "rejected": f"no {food}"} for food in FOODS]
    write_jsonl(run / "pairs.jsonl", pairs)
    return run


def options_of(stage: str, run: Path, out: str, **changes) -> tuple[StageOptions, Callable]:
    kind, start, own = RUNS[stage]
    places = {f"{{{name}}}": str(run / f"{name}.jsonl") for name in ("prompts", "taught", "pairs")}
    places["{reward}"] = str(run / "reward")
    given = {"model": str(run / "sft"), "out": run / out} | FAST | own | changes
    filled = {
        name: [places.get(v, v) for v in value]
        if isinstance(value, list)
        else places.get(value, value)
        if isinstance(value, str)
        else value
        for name, value in given.items()
    }
    return kind(**filled), start


@pytest.mark.parametrize("tuning", TUNED)
@pytest.mark.parametrize("stage", RUNS)
def test_a_stopped_run_equals_an_uninterrupted_one(run_dir, stage, tuning, monkeypatch):
    before = fingerprint(run_dir / "sft"), fingerprint(run_dir / "reward")
    once, start = options_of(stage, run_dir, "once", **TUNED[tuning])
    start(once)
    twice, _ = options_of(stage, run_dir, "twice", **TUNED[tuning])
    stop_after(1, start, twice, monkeypatch)
    start(twice)
    assert made_files(once.out) == made_files(twice.out)
    assert curves_without_times(once.out) == curves_without_times(twice.out)
    assert (fingerprint(run_dir / "sft"), fingerprint(run_dir / "reward")) == before
    file = "adapter_model.safetensors" if "lora" in tuning or tuning == "both" else "model.safetensors"
    assert (once.out / file).exists()
    assert len([f for f in once.out.iterdir() if f.suffix == ".safetensors"]) == 1


def curves_without_times(out: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if "second" not in k} for line in curves(out)]


@pytest.mark.parametrize("stage", [stage for stage in RUNS if stage != "reward"])
def test_frozen_layers_come_out_as_they_went_in(run_dir, stage):
    options, start = options_of(stage, run_dir, "out", freeze_layers=1)
    start(options)
    first, last = (load_file(place / "model.safetensors") for place in (run_dir / "sft", options.out))
    changed = {name for name in first if not torch.equal(first[name], last[name])}
    assert changed == {name for name in first if name.startswith(("transformer.h.1.", "transformer.ln_f"))}


@pytest.mark.parametrize("tuning", TUNED)
@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_ratio_and_kl_of_the_first_iteration(run_dir, stage, tuning):
    options, start = options_of(stage, run_dir, "out", **TUNED[tuning])
    start(options)
    first, *_, last = curves(options.out)
    assert first["kl"] == 0, "policy and reference are the same model"
    assert first["first_ratio_error"] < 1e-6
    assert first["sampler_logprob_gap"] < 1e-5
    assert last["kl"] != 0
    assert last["sampler_logprob_gap"] < 1e-5, "the sampler has the merged weights"


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "ppo", "grpo"])
def test_frozen_layers_train_as_with_separate_copies(run_dir, stage, monkeypatch):
    """What models share changes no number: the same run with a copy of every weight."""
    shared, start = options_of(stage, run_dir, "shared", freeze_layers=1)
    start(shared)
    separate, _ = options_of(stage, run_dir, "separate", freeze_layers=1)
    for module in ("wukong.scoring", "wukong.stages.online.train", "wukong.stages.online.rewards"):
        monkeypatch.setattr(f"{module}.share_frozen", lambda *_: None, raising=False)
    start(separate)
    assert made_files(shared.out) == made_files(separate.out)


def test_an_adapter_is_read_wherever_a_model_is(run_dir, monkeypatch):
    options, start = options_of("sft", run_dir, "adapter", **LORA)
    start(options)
    config = json.loads((options.out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "../sft"
    learnt, start_reward = options_of("reward", run_dir, "taught-reward", **LORA)
    start_reward(learnt)
    changes = {"model": str(options.out), "reward_model": str(learnt.out), "allow_chance_reward_model": True}
    online, start_ppo = options_of("ppo", run_dir, "policy", save_every=2, **LORA, **changes)
    start_ppo(online)
    assert json.loads((online.out / "adapter_config.json").read_text())["base_model_name_or_path"] == "../adapter"
    kept = online.out / "policies" / "iteration-000002"
    assert not torch.equal(*(load_policy(place)[0].h[0].mlp.c_fc.weight for place in (kept, options.out)))
    monkeypatch.chdir(run_dir.parent)
    shutil.move(run_dir, run_dir.parent / "moved")
    moved = run_dir.parent / "moved" / "policy"
    assert load_policy(moved)[1].fingerprint == load_policy(run_dir.parent / "moved" / "sft")[1].fingerprint
    assert read_record(moved)["stage"] == "ppo"


def test_an_adapter_whose_base_model_changed_is_refused(run_dir):
    options, start = options_of("sft", run_dir, "adapter", **LORA)
    start(options)
    load_policy(options.out)
    shutil.copy(run_dir / "reward" / "config.json", run_dir / "sft" / "config.json")
    with pytest.raises(UsageError, match=r"its base model .*sft is no longer the one it was trained on"):
        load_policy(options.out)


def test_merged_adapters_are_plain_models_with_the_same_answers(run_dir):
    for stage in ("sft", "reward"):
        options, start = options_of(stage, run_dir, f"{stage}-adapter", **LORA)
        start(options)
        merge(MergeOptions(adapter=options.out, out=run_dir / f"{stage}-merged"))
        names = {file.name for file in (run_dir / f"{stage}-merged").iterdir()}
        assert "model.safetensors" in names
        assert not {name for name in names if "adapter" in name}
    ids = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    hidden = [load_policy(run_dir / f"sft-{kind}")[0].eval()(ids) for kind in ("adapter", "merged")]
    torch.testing.assert_close(*hidden, atol=1e-5, rtol=1e-5)
    scores = [
        scores_of(load_reward(run_dir / f"reward-{kind}")[0], ids.tolist(), CPU, 512) for kind in ("adapter", "merged")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.parametrize(("adapter", "out", "problem"), [("sft", "new", "holds no adapter"), ("a", "sft", "exists")])
def test_what_cannot_be_merged_is_said(run_dir, adapter, out, problem):
    options, start = options_of("sft", run_dir, "a", **LORA)
    start(options)
    with pytest.raises(UsageError, match=problem):
        merge(MergeOptions(adapter=run_dir / adapter, out=run_dir / out))


@pytest.mark.parametrize("stage", RUNS)
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"lora_alpha": 4.0}, "--lora-alpha has no effect without adapters"),
        ({"lora_rank": 2, "lora_targets": ["q_proj"]}, "--lora-targets q_proj: no such linear layer"),
        ({"freeze_layers": 2}, "--freeze-layers 2 leaves no layer to train: the model has 2"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_written(run_dir, stage, changes, problem):
    options, start = options_of(stage, run_dir, "out", **changes)
    with pytest.raises(UsageError, match=problem):
        start(options)
    assert not options.out.exists()


def test_in_bfloat16_frozen_weights_are_saved_as_they_were_loaded(run_dir):
    for stage, tuning in (("sft", FREEZE), ("dpo", FREEZE), ("ppo", FREEZE | {"lora_rank": 0})):
        options, start = options_of(stage, run_dir, stage + "-16", precision="bfloat16", **tuning)
        start(options)
        first, last = (load_policy(place)[0] for place in (run_dir / "sft", options.out))
        for one, other in zip(blocks_of(first)[0].parameters(), blocks_of(last)[0].parameters(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("tuning", TUNED)
def test_in_bfloat16_the_kl_starts_at_0(run_dir, tuning):
    options, start = options_of("ppo", run_dir, "out", precision="bfloat16", **TUNED[tuning])
    start(options)
    first, *_ = curves(options.out)
    assert first["kl"] == 0
    assert first["kl_k3"] == 0


def test_a_policys_kl_to_its_reward_adapter_base_needs_no_further_copy(run_dir):
    """Policy, reference, value and reward model of one base: the reward adapter's base is the SFT model's."""
    learnt, start_reward = options_of("reward", run_dir, "learnt", **LORA)
    start_reward(learnt)
    policy = load_policy(run_dir / "sft")[0]
    unmerged = load_reward(learnt.out, merge=False)[0]
    assert torch.equal(policy.h[1].mlp.c_fc.weight, unmerged.trunk.h[1].mlp.c_fc.weight)
    assert not torch.equal(policy.h[1].mlp.c_fc.weight, load_reward(learnt.out)[0].trunk.h[1].mlp.c_fc.weight)
