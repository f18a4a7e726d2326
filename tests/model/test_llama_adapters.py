"""Adapters of the Llama family: equal logits in PEFT in both directions, trained parts, shared layers, estimates."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wukong.model.families import PRESET_CONFIGS, new_model
from wukong.model.heads import ScalarModel
from wukong.model.hub import load_policy, load_reward, load_trunk, save_policy, save_reward
from wukong.model.lora import adapt, adapted_layers, chosen_layers
from wukong.model.lower_states import LowerStates
from wukong.tokenizer import Tokenizer
from wukong.training.memory import TrainedPart
from wukong.training.parallel import trained
from wukong.training.tuning import TuningOptions, hold_frozen, share_frozen, shared_layers, trained_part, tuned

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

WHOLE_MODEL = {"rtol": 1e-4, "atol": 1e-4}
IDS = torch.randint(0, 256, (3, 12), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([12, 5, 1])
TIED = replace(PRESET_CONFIGS["llama-test"], vocab_size=257)
UNTIED = replace(TIED, tied=False, qkv_bias=True)
CONFIGS = pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])


@pytest.fixture
def base(tmp_path: Path, config) -> Path:
    torch.manual_seed(0)
    model = new_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_policy(tmp_path / "base", model, Tokenizer.train([], 257, "plain"))
    return tmp_path / "base"


def with_adapters(model: torch.nn.Module) -> None:
    for name in chosen_layers(model, []):
        torch.nn.init.normal_(adapt(model, name, 4, 16.0).lora_B, std=0.1)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval().logits(model(IDS))


@CONFIGS
def test_our_adapter_gives_the_same_logits_in_peft_and_theirs_here(base: Path, config) -> None:
    model, tokenizer = load_policy(base)
    before = logits(model)
    with_adapters(model)
    assert {name.rpartition(".")[2] for name in adapted_layers(model)} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    save_policy(base.parent / "ours", model, tokenizer, base="../base")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, base.parent / "ours").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, logits(model), **WHOLE_MODEL)
    torch.testing.assert_close(logits(load_policy(base.parent / "ours")[0]), logits(model), **WHOLE_MODEL)
    assert (logits(model) - before).abs().max() > 0.1

    settings = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, target_modules=["q_proj", "v_proj"])
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.get_peft_model(plain, settings).eval()
    theirs.save_pretrained(base.parent / "theirs")
    with torch.no_grad():
        found = logits(load_policy(base.parent / "theirs")[0])
        torch.testing.assert_close(found, theirs(IDS).logits, **WHOLE_MODEL)


@CONFIGS
@pytest.mark.parametrize("bias", [0.0, 0.4])
def test_a_reward_adapter_keeps_its_scores(base: Path, config, bias: float) -> None:
    trunk, tokenizer = load_trunk(base)
    model = ScalarModel(trunk)
    with_adapters(model.trunk)
    model.rescale(1.5, bias)
    save_reward(base.parent / "reward", model, tokenizer, base="../base")
    with torch.no_grad():
        expected = model.eval()(IDS, LENGTHS)
        found = load_reward(base.parent / "reward")[0].eval()(IDS, LENGTHS)
        torch.testing.assert_close(found, expected, **WHOLE_MODEL)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    theirs.config.pad_token_id = tokenizer.eos_ids[0]
    theirs = peft.PeftModel.from_pretrained(theirs, base.parent / "reward").eval()
    padded = torch.where(torch.arange(12) < LENGTHS[:, None], IDS, tokenizer.eos_ids[0])
    with torch.no_grad():  # their head has no bias, and no place for ours
        torch.testing.assert_close(theirs(padded).logits.squeeze(1) + bias, expected, **WHOLE_MODEL)


@CONFIGS
def test_frozen_layers_share_their_states(config) -> None:
    torch.manual_seed(0)
    policy = tuned(new_model(config), TuningOptions(freeze_layers=1), 0)
    names = {name for name, _ in trained(policy)}
    assert {name.split(".")[0] for name in names} == {"layers", "norm"} | (set() if config.tied else {"lm_head"})
    torch.manual_seed(0)
    reference = new_model(config).requires_grad_(False)
    share_frozen(reference, policy)
    assert shared_layers(policy, reference) == 1
    lower = LowerStates(1)
    with torch.no_grad():
        assert torch.equal(policy(IDS, lengths=LENGTHS, lower=lower), reference(IDS, lengths=LENGTHS, lower=lower))
        assert torch.equal(policy(IDS, lengths=LENGTHS, lower=lower), policy(IDS, lengths=LENGTHS))


@CONFIGS
@pytest.mark.parametrize(
    "options", [TuningOptions(lora_rank=3), TuningOptions(freeze_layers=1)], ids=["lora", "freeze"]
)
def test_a_partly_trained_model_takes_what_is_said(config, options: TuningOptions) -> None:
    part = trained_part(config, options)
    assert isinstance(part, TrainedPart)
    for dtype in (torch.float32, torch.bfloat16):
        model = tuned(new_model(config), options, 0)
        hold_frozen(model, dtype)
        held = sum(p.numel() * p.element_size() for p in model.parameters())
        centred = 0 if dtype == torch.float32 else 2 * config.vocab_size * config.n_embd
        assert held + centred == part.weights(config, dtype)
