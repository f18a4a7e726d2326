"""Adapters that go to PEFT and come from it, with equal logits; and what is said of those that cannot."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from wukong.errors import UsageError
from wukong.model.gpt2 import GPT2
from wukong.model.heads import ScalarModel
from wukong.model.hub import load_policy, load_reward, load_trunk, recommended_sampling, save_policy, save_reward
from wukong.model.lora import LoRALinear, adapt, adapted_layers, chosen_layers, merged
from wukong.sampling import SamplingParameters

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

WHOLE_MODEL = {"rtol": 1e-4, "atol": 1e-4}
IDS = torch.randint(0, 279, (3, 12), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([12, 5, 1])


def with_adapters(model: torch.nn.Module, targets: list[str] | None = None, first: int = 0) -> None:
    """Adapters whose B is not 0, so that leaving one out would be seen."""
    torch.manual_seed(3)
    for name in chosen_layers(model, targets or [], first):
        torch.nn.init.normal_(adapt(model, name, 4, 16.0).lora_B, std=0.1)


@pytest.fixture
def base_dir(model, tokenizer, tmp_path) -> Path:
    save_policy(tmp_path / "base", model, tokenizer, sampling=SamplingParameters(0.7))
    return tmp_path / "base"


@pytest.fixture
def adapter_dir(base_dir, tokenizer) -> Path:
    model, _ = load_policy(base_dir)
    with_adapters(model)
    save_policy(base_dir.parent / "adapter", model, tokenizer, base="../base")
    return base_dir.parent / "adapter"


def logits(model: GPT2) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().logits(model(IDS))


def their_logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def edit(directory: Path, **changes) -> None:
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# ------------------------------------------------------------------------------------------------- to and from PEFT


@pytest.mark.parametrize(("targets", "first"), [([], 0), (["c_attn"], 0), (["mlp.c_proj"], 1), ([], 1)])
def test_our_adapter_gives_the_same_logits_in_peft(base_dir, tokenizer, tmp_path, targets, first):
    model, _ = load_policy(base_dir)
    plain = logits(model)
    with_adapters(model, targets, first)
    save_policy(tmp_path / "ours", model, tokenizer, base="../base")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base_dir)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "ours")
    torch.testing.assert_close(their_logits(theirs), logits(model), **WHOLE_MODEL)
    torch.testing.assert_close(their_logits(theirs.merge_and_unload()), logits(model), **WHOLE_MODEL)
    torch.testing.assert_close(logits(load_policy(tmp_path / "ours")[0]), logits(model), **WHOLE_MODEL)
    assert (logits(model) - plain).abs().max() > 0.1


@pytest.mark.parametrize("settings", [{"target_modules": ["c_attn"]}, {"target_modules": "all-linear", "r": 2}])
def test_their_adapter_gives_the_same_logits_here(base_dir, tmp_path, settings):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base_dir)
    config = peft.LoraConfig(task_type="CAUSAL_LM", lora_alpha=12, init_lora_weights=False, **settings)
    theirs = peft.get_peft_model(theirs, config)
    theirs.save_pretrained(tmp_path / "theirs")  # it names its base by an absolute path, and has no tokenizer
    found, tokenizer = load_policy(tmp_path / "theirs")
    torch.testing.assert_close(logits(found), their_logits(theirs), **WHOLE_MODEL)
    assert not adapted_layers(found)
    assert tokenizer.fingerprint == load_policy(base_dir)[1].fingerprint
    assert recommended_sampling(tmp_path / "theirs").temperature == 0.7


@pytest.mark.parametrize("bias", [0.0, 0.3])
def test_our_reward_adapter_gives_the_same_scores_in_peft(base_dir, tokenizer, tmp_path, bias):
    torch.manual_seed(0)
    model = ScalarModel(load_trunk(base_dir)[0])
    with_adapters(model.trunk)
    model.rescale(1.7, bias)
    save_reward(tmp_path / "reward", model, tokenizer, base="../base")
    with torch.no_grad():
        expected = model.eval()(IDS, LENGTHS)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(base_dir, num_labels=1)
    theirs.config.pad_token_id = tokenizer.eos_ids[0]
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "reward").eval()
    padded = torch.where(torch.arange(12) < LENGTHS[:, None], IDS, tokenizer.eos_ids[0])
    with torch.no_grad():
        torch.testing.assert_close(theirs(padded).logits.squeeze(1), expected, **WHOLE_MODEL)
    for merge in (True, False):
        found, _ = load_reward(tmp_path / "reward", merge=merge)
        assert bool(adapted_layers(found)) is not merge
        with torch.no_grad():
            torch.testing.assert_close(found.eval()(IDS, LENGTHS), expected, **WHOLE_MODEL)


def test_their_reward_adapter_gives_the_same_scores_here(base_dir, tokenizer, tmp_path):
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(base_dir, num_labels=1)
    theirs.config.pad_token_id = tokenizer.eos_ids[0]
    config = peft.LoraConfig(task_type="SEQ_CLS", init_lora_weights=False, target_modules=["c_fc", "c_attn"])
    theirs = peft.get_peft_model(theirs, config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    padded = torch.where(torch.arange(12) < LENGTHS[:, None], IDS, tokenizer.eos_ids[0])
    with torch.no_grad():
        found = load_reward(tmp_path / "theirs")[0].eval()(IDS, LENGTHS)
        torch.testing.assert_close(found, theirs(padded).logits.squeeze(1), **WHOLE_MODEL)


@pytest.mark.parametrize(("head", "pooling"), [("mlp", "last"), ("linear", "mean")])
def test_peft_refuses_a_head_that_it_does_not_know(base_dir, tokenizer, tmp_path, head, pooling):
    model = ScalarModel(load_trunk(base_dir)[0], head, pooling)
    with_adapters(model.trunk)
    model.rescale(2.0, 0.5)
    save_reward(tmp_path / "reward", model, tokenizer, base="../base")
    with torch.no_grad():
        found = load_reward(tmp_path / "reward")[0].eval()(IDS, LENGTHS)
        torch.testing.assert_close(found, model.eval()(IDS, LENGTHS), **WHOLE_MODEL)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(base_dir, num_labels=1)
    with pytest.raises((KeyError, ValueError)):
        peft.PeftModel.from_pretrained(theirs, tmp_path / "reward")


def test_a_loaded_adapter_is_a_plain_model_that_can_be_saved(adapter_dir, tmp_path):
    model, tokenizer = load_policy(adapter_dir)
    assert all(parameter.requires_grad for parameter in model.parameters())
    save_policy(tmp_path / "merged", model, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(their_logits(theirs), logits(model), **WHOLE_MODEL)


def test_an_adapter_of_an_adapter(adapter_dir, tmp_path):
    model, tokenizer = load_policy(adapter_dir)
    with_adapters(model, ["c_fc"])
    save_policy(tmp_path / "second", model, tokenizer, base="../adapter")
    torch.testing.assert_close(logits(load_policy(tmp_path / "second")[0]), logits(model), **WHOLE_MODEL)


def test_a_run_with_an_adapter_can_be_moved(adapter_dir, tmp_path):
    expected = logits(load_policy(adapter_dir)[0])
    (tmp_path / "elsewhere").mkdir()
    for name in ("base", "adapter"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    assert torch.equal(logits(load_policy(tmp_path / "elsewhere" / "adapter")[0]), expected)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', only LORA is supported"),
        ({"use_dora": True}, "use_dora is True, only plain LoRA is supported"),
        ({"use_rslora": True}, "use_rslora is True"),
        ({"rank_pattern": {"c_attn": 8}}, "rank_pattern is {'c_attn': 8}"),
        ({"alpha_pattern": {"c_attn": 8}}, "alpha_pattern is"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"invented_in_2031": [1]}, "invented_in_2031 is [1]"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which changes the base model"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task_type is 'SEQ_2_SEQ_LM'"),
        ({"task_type": "SEQ_CLS"}, "holds an adapter of a reward model"),
        ({"r": 0}, "r is 0, not a rank"),
        ({"r": 8}, "is (4, 32) torch.float32, expected (8, 32)"),
        ({"lora_alpha": "high"}, "lora_alpha is 'high', not a positive number"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is missing"),
        ({"base_model_name_or_path": "/no/base"}, "the base model of this adapter: /no/base: no such directory"),
        ({"base_model_name_or_path": "../adapter"}, "is an adapter of itself"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(adapter_dir, changes, problem):
    edit(adapter_dir, **changes)
    with pytest.raises(UsageError) as caught:
        load_policy(adapter_dir)
    assert problem in str(caught.value)
    assert str(adapter_dir) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.pop("base_model.model.transformer.h.1.mlp.c_fc.lora_B.weight"), "c_fc.lora_B.weight is missing"),
        (lambda t: t.update({"lora_A.weight": torch.ones(1)}), "is not named as PEFT does"),
        (lambda t: t.update({"base_model.model.transformer.h.9.c.lora_A.weight": torch.ones(1)}), "has no place"),
        (lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(1)}), "lm_head.weight has no place"),
        (lambda t: t["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"].fill_(torch.nan), "NaN"),
        (dict.clear, "holds no adapter"),
    ],
)
def test_damaged_tensors_are_named(adapter_dir, change, problem):
    tensors = load_file(adapter_dir / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter_dir / "adapter_model.safetensors")
    with pytest.raises(UsageError, match=r"adapter_model.safetensors: .*" + problem.replace(".", r"\.")):
        load_policy(adapter_dir)


def test_a_policys_adapter_is_no_reward_model(adapter_dir):
    with pytest.raises(UsageError, match="holds an adapter of a language model, expected a reward model"):
        load_reward(adapter_dir)


# ----------------------------------------------------------------------------------------------------------- the layer


def test_a_new_adapter_changes_nothing_and_only_it_has_gradients(model):
    before = logits(model)
    model.requires_grad_(False)
    for name in chosen_layers(model, []):
        layer = adapt(model, name, 4, 8.0)
        layer.lora_A.requires_grad_(True)
        layer.lora_B.requires_grad_(True)
    assert torch.equal(logits(model), before)
    model(IDS).square().sum().backward()
    assert {name.rpartition(".")[2] for name, p in model.named_parameters() if p.grad is not None} == {
        "lora_A",
        "lora_B",
    }


def test_the_update_is_that_of_the_formula():
    """By hand: W = 0, A = (1, 2), B = (3, 4)', alpha/r = 5/1, x = (1, 1): B A x = (9, 12), times 5."""
    linear = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.zeros_(linear.weight)
    layer = LoRALinear(linear, 1, 5.0)
    with torch.no_grad():
        layer.lora_A.copy_(torch.tensor([[1.0, 2.0]]))
        layer.lora_B.copy_(torch.tensor([[3.0], [4.0]]))
        assert layer(torch.ones(1, 2)).tolist() == [[45.0, 60.0]]
    assert layer.merged_weight().tolist() == [[15.0, 30.0], [20.0, 40.0]]


def test_merging_shares_what_it_does_not_change(model):
    with_adapters(model, ["c_attn"])
    plain = merged(model)
    torch.testing.assert_close(logits(plain), logits(model), **WHOLE_MODEL)
    own, theirs = dict(plain.named_parameters()), dict(model.named_parameters())
    new = {name for name, parameter in own.items() if parameter is not theirs[name]}
    assert new == {name for name in own if name.endswith("c_attn.weight")}
    narrow = merged(model, torch.bfloat16)
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_unknown_targets_are_refused(model):
    with pytest.raises(UsageError, match=r"--lora-targets q_proj: no such .* attn.c_attn, attn.c_proj, mlp.c_fc, mlp"):
        chosen_layers(model, ["q_proj"])
