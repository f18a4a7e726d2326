"""What is said of the Llama family's files that cannot be used, and which of their variants mean the same."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from wukong.errors import UsageError
from wukong.model.config import LlamaConfig, RotaryScaling
from wukong.model.hub import load_policy, save_policy
from wukong.model.llama import Llama

SIZES = {"vocab_size": 280, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_inner": 56}


@pytest.fixture
def policy_dir(tokenizer, tmp_path) -> Path:
    torch.manual_seed(0)
    save_policy(tmp_path / "policy", Llama(LlamaConfig(**SIZES, head_width=8)), tokenizer)
    return tmp_path / "policy"


def edit(directory: Path, **changes) -> None:
    config = json.loads((directory / "config.json").read_text())
    config.update(changes)
    config = {key: value for key, value in config.items() if value != "(absent)"}
    (directory / "config.json").write_text(json.dumps(config))


def edit_tensors(directory: Path, change) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
OLD_ROTARY = {"rope_parameters": "(absent)", "rope_theta": 5e5}

REFUSED = {
    "a mixture of experts": ({"model_type": "qwen3_moe"}, "model_type is 'qwen3_moe', only these can be loaded"),
    "a sliding window": (
        QWEN3 | {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
        "sliding_window 16 is in use, only full attention is supported",
    ),
    "a sliding window of some layers": (
        QWEN3
        | {"use_sliding_window": True, "sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]},
        "sliding_window 16 is in use",
    ),
    "another scaling": (
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
        "rotary positions scaled by 'yarn', only 'default' and 'llama3' are supported",
    ),
    "another scaling, as written before": (OLD_ROTARY | {"rope_scaling": {"type": "linear"}}, "scaled by 'linear'"),
    "a scaling without its factor": (
        {"rope_parameters": {key: value for key, value in LLAMA3.items() if key != "factor"}},
        "rope_parameters.factor is None, not a number above 0",
    ),
    "a scaling that shortens": ({"rope_parameters": LLAMA3 | {"factor": 0.5}}, "does not lengthen a context"),
    "rotary parameters of a list": ({"rope_parameters": [1]}, "rope_parameters is [1], not an object"),
    "a base of a text": ({"rope_parameters": {"rope_theta": "1e6"}}, "rope_theta is '1e6', not a number above 1"),
    "half of a head": ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    "more biases": ({"attention_bias": True}, "attention_bias is True, only False is supported"),
    "biases of the MLP": ({"mlp_bias": True}, "mlp_bias is True, only False is supported"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'silu' is supported"),
    "an odd head": ({"head_dim": 7}, "head_width 7 is odd"),
    "groups that do not divide": ({"num_key_value_heads": 3}, "n_head 4 is not a multiple of n_kv_head 3"),
    "no layers": ({"num_hidden_layers": "(absent)"}, "num_hidden_layers is missing"),
    "text for a size": ({"intermediate_size": "56"}, "intermediate_size is '56', not a size"),
    "text for tied": ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', neither true nor false"),
    "epsilon of zero": ({"rms_norm_eps": 0.0}, "rms_norm_eps is 0.0"),
    "untied by config": ({"tie_word_embeddings": False}, "tensor lm_head.weight is missing"),
    "another width": ({"intermediate_size": 10**9}, "tensor layers.0.mlp.up_proj.weight is (56, 32) float32"),
    "another head": ({"head_dim": 16}, "tensor layers.0.self_attn.q_proj.weight is (32, 32) float32"),
    "more layers": ({"num_hidden_layers": 10**8}, "tensor layers.2.input_layernorm.weight is missing"),
    "Qwen3's norms": (QWEN3, "tensor layers.0.self_attn.q_norm.weight is missing"),
    "another family's class": (
        {"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel is not one of LlamaForCausalLM, ",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_supported_is_refused_in_one_line(policy_dir, changes, message):
    edit(policy_dir, **changes)
    with pytest.raises(UsageError) as error:
        load_policy(policy_dir)
    assert message in str(error.value)
    assert str(policy_dir) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_output_layer_that_only_claims_to_be_tied_is_refused(policy_dir):
    edit_tensors(policy_dir, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    with pytest.raises(UsageError, match=r"model\.safetensors: lm_head differs from embed_tokens"):
        load_policy(policy_dir)


def test_a_tied_output_layer_may_be_stored_as_either(policy_dir):
    expected, _ = load_policy(policy_dir)
    edit_tensors(policy_dir, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert torch.equal(load_policy(policy_dir)[0].output_weight, expected.output_weight)
    edit_tensors(policy_dir, lambda t: t.pop("model.embed_tokens.weight"))
    assert torch.equal(load_policy(policy_dir)[0].output_weight, expected.output_weight)


SAME = {
    "rotary buffers of old files": ({}, "buffer"),
    "sizes left to their defaults": ({"head_dim": "(absent)", "attention_bias": "(absent)"}, None),
    "no default rotary parameters": ({"rope_parameters": "(absent)", "rope_scaling": None}, None),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "buffer"), SAME.values(), ids=SAME)
def test_files_that_say_the_same_in_other_words(policy_dir, changes, buffer):
    expected, _ = load_policy(policy_dir)
    edit(policy_dir, **changes)
    if buffer:
        edit_tensors(policy_dir, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    found, _ = load_policy(policy_dir)
    assert found.config == expected.config
    ids = torch.arange(20).reshape(1, 20)
    assert torch.equal(found(ids), expected(ids))


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": False, "sliding_window": 16},
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 16, "layer_types": ["full_attention"] * 2},
    ],
)
def test_a_sliding_window_without_effect_is_no_obstacle(tokenizer, tmp_path, changes):
    """Not used, used by layers above the last, as long as the context, or listed as full attention."""
    torch.manual_seed(0)
    expected = Llama(LlamaConfig(**SIZES, head_width=8, qkv_bias=True))
    save_policy(tmp_path, expected, tokenizer)
    edit(tmp_path, **changes)
    ids = torch.arange(20).reshape(1, 20)
    assert torch.equal(load_policy(tmp_path)[0](ids), expected(ids))


def test_llama3s_scaling_is_read_as_written_before_and_now(policy_dir):
    expected = RotaryScaling(8.0, 1.0, 4.0, 32)
    edit(policy_dir, rope_parameters=LLAMA3)
    assert load_policy(policy_dir)[0].config.rotary_scaling == expected
    older = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    edit(policy_dir, **OLD_ROTARY, rope_scaling=older)
    config = load_policy(policy_dir)[0].config
    assert (config.rotary_scaling, config.rotary_base) == (expected, 5e5)
