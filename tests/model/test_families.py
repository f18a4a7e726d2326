"""Every family of language models against `transformers` on tiny random weights: logits, loss, gradients, a step of
AdamW, decoding, files in both directions."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.model.conftest import shake
from wukong.model.config import GPT2Config, LlamaConfig, ModelConfig, RotaryScaling
from wukong.model.families import new_model
from wukong.model.heads import ScalarModel
from wukong.model.hub import load_policy, load_reward, load_trunk, save_policy, save_reward, stored_config
from wukong.model.language_model import LanguageModel

WHOLE_MODEL = {"rtol": 1e-4, "atol": 1e-4}


@dataclass(frozen=True)
class Sample:
    """A small model of a family: theirs by the name of its classes, and the configuration that ours must have."""

    theirs: str
    options: dict[str, Any]
    ours: ModelConfig


SIZES = {
    "vocab_size": 280, "max_position_embeddings": 64, "hidden_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 56,
}  # fmt: skip
OURS = {"vocab_size": 280, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_inner": 56}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip

FAMILIES = {
    "GPT-2": Sample(
        "GPT2",
        {"vocab_size": 280, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4},
        GPT2Config(vocab_size=280, n_positions=64, n_embd=32, n_layer=3, n_head=4),
    ),
    "Llama 3.2": Sample(
        "Llama",
        {**SIZES, "tie_word_embeddings": True, "rope_parameters": LLAMA3, "rms_norm_eps": 1e-5},
        LlamaConfig(
            **OURS, head_width=8, rotary_base=5e5, rotary_scaling=RotaryScaling(8.0, 1.0, 4.0, 32)
        ),
    ),
    "Llama 2": Sample(
        "Llama",
        {**SIZES, "tie_word_embeddings": False, "num_key_value_heads": 4, "rms_norm_eps": 1e-6},
        LlamaConfig(**{**OURS, "n_kv_head": 4}, head_width=8, tied=False, rms_norm_epsilon=1e-6),
    ),
    "SmolLM2": Sample(
        "Llama",
        {**SIZES, "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 48, "tie_word_embeddings": True,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}, "rms_norm_eps": 1e-5},
        LlamaConfig(**{**OURS, "n_head": 3, "n_kv_head": 1, "n_embd": 48}, head_width=16, rotary_base=1e5),
    ),
    "Qwen2.5": Sample(
        "Qwen2",
        {**SIZES, "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
         "use_sliding_window": False, "sliding_window": 16},
        LlamaConfig(**OURS, head_width=8, qkv_bias=True, rotary_base=1e6, rms_norm_epsilon=1e-6),
    ),
    "Qwen3": Sample(
        "Qwen3",
        {**SIZES, "tie_word_embeddings": False, "head_dim": 16,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        LlamaConfig(**OURS, head_width=16, qk_norm=True, tied=False, rotary_base=1e6, rms_norm_epsilon=1e-6),
    ),
}  # fmt: skip


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 280, shape, generator=torch.Generator().manual_seed(seed))


def theirs_of(sample: Sample):
    """With plain attention, without dropout, every parameter far from its initial value."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{sample.theirs}Config")(**sample.options, bos_token_id=279, eos_token_id=279)
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    shake(model, seed=1)
    return model


def in_our_names(theirs, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the prefix, and GPT-2's Conv1D, which keeps (in, out), as nn.Linear keeps it."""
    found = {}
    for name, tensor in tensors.items():
        ours = name.removeprefix(f"{theirs.base_model_prefix}.")
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            tensor = tensor.t()
        if not (ours == "lm_head.weight" and theirs.config.tie_word_embeddings):
            found[ours] = tensor
    return found


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def sample(request) -> Sample:
    return request.param


@pytest.fixture
def directory(sample, tokenizer, tmp_path) -> Path:
    """A model as `transformers` saves it, with our tokenizer's files beside it."""
    theirs_of(sample).save_pretrained(tmp_path / "theirs")
    tokenizer.save(tmp_path / "theirs")
    return tmp_path / "theirs"


@pytest.fixture
def both(sample, directory):
    """(ours, theirs) with the same weights."""
    return load_policy(directory)[0], theirs_of(sample)


def language_loss(ours: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    logits = ours.logits(ours(ids))[:, :-1]  # (B, T-1, V)
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def test_logits_loss_and_every_gradient_equal_transformers(both):
    ours, theirs = both
    ids = random_ids(3, 64)
    expected = theirs(ids, labels=ids)
    torch.testing.assert_close(ours.logits(ours(ids)), expected.logits, **WHOLE_MODEL)
    loss = language_loss(ours, ids)
    torch.testing.assert_close(loss, expected.loss)
    loss.backward()
    expected.loss.backward()
    gradients = in_our_names(theirs, {name: p.grad for name, p in theirs.named_parameters()})
    assert {name for name, _ in ours.named_parameters()} == gradients.keys()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5)
        if not name.endswith("k_proj.bias"):  # softmax ignores it
            assert parameter.grad.abs().max() > 1e-4, f"{name}: a gradient of nothing compares nothing"


def test_one_adamw_step_equals_transformers(both):
    ours, theirs = both
    ids = random_ids(3, 32)
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    # A key's bias has no true gradient (softmax ignores it), only rounding noise, which the usual eps of 1e-8
    # would blow up to a full step: hence the larger eps.
    options = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-3}
    optimizers = torch.optim.AdamW(ours.parameters(), **options), torch.optim.AdamW(theirs.parameters(), **options)
    language_loss(ours, ids).backward()
    theirs(ids, labels=ids).loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    expected = in_our_names(theirs, theirs.state_dict())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-5)
        if not name.endswith("k_proj.bias"):
            assert (parameter - before[name]).abs().max() > 1e-3


def greedy_cached(model: LanguageModel, prompts: list[list[int]], steps: int) -> list[list[int]]:
    """All prompts in one batch padded on the right, one token at a time."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    ids = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts])  # (B, P)
    cache = model.empty_cache(len(prompts), longest + steps)
    hidden = model(ids, lengths=lengths, cache=cache)[torch.arange(len(prompts)), lengths - 1]  # (B, C)
    cache.advance(lengths, longest)
    tokens = []
    for _ in range(steps):
        tokens.append(model.logits(hidden).argmax(-1))  # (B,)
        hidden = model(tokens[-1].unsqueeze(1), cache=cache)[:, 0]
        cache.advance()
    return torch.stack(tokens, dim=1).tolist()


@torch.no_grad()
def test_greedy_decoding_equals_transformers_token_for_token(both):
    ours, theirs = both
    theirs.generation_config.eos_token_id = None
    prompts = [random_ids(n, seed=n).tolist() for n in (1, 7, 20)]
    for prompt, found in zip(prompts, greedy_cached(ours, prompts, 24), strict=True):
        ids = torch.tensor([prompt])  # with a mask, or a token 0 in the prompt would be taken for padding
        out = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=0
        )
        expected = out[0, len(prompt) :].tolist()
        assert len(expected) == 24
        assert found == expected


# ------------------------------------------------------------------------------------------------ files


def test_the_configuration_is_read(sample, directory):
    assert load_policy(directory)[0].config == sample.ours
    assert stored_config(str(directory)) == sample.ours


def assert_same_weights(left: torch.nn.Module, right: torch.nn.Module) -> None:
    tensors = dict(right.named_parameters())
    assert dict(left.named_parameters()).keys() == tensors.keys()
    for name, parameter in left.named_parameters():
        assert torch.equal(parameter, tensors[name]), name


@torch.no_grad()
def test_transformers_opens_what_we_save_and_we_open_what_it_saves(both, tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours, theirs = both
    save_policy(tmp_path / "ours", ours, tokenizer)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(again) is type(theirs)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = random_ids(2, 30)
    torch.testing.assert_close(again.eval()(ids).logits, theirs(ids).logits, **WHOLE_MODEL)
    again.save_pretrained(tmp_path / "back", max_shard_size="20KB")
    assert len(list((tmp_path / "back").glob("model-*.safetensors"))) > 2
    tokenizer.save(tmp_path / "back")
    for directory in ("ours", "back"):
        loaded, _ = load_policy(tmp_path / directory)
        assert loaded.config == ours.config
        assert_same_weights(loaded, ours)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_read_in_float32(both, tokenizer, tmp_path, dtype):
    ours, theirs = both
    theirs.to(dtype).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    for loaded, original in zip(load_policy(tmp_path)[0].parameters(), ours.parameters(), strict=True):
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded, original.to(dtype).float())


@torch.no_grad()
@pytest.mark.parametrize("bias", [0.0, -2.0])
def test_reward_models_in_both_directions(sample, directory, tokenizer, tmp_path, bias):
    """Their head has no bias. GPT-2's final LayerNorm can hold ours; RMSNorm cannot: scores there differ by it."""
    transformers = pytest.importorskip("transformers")
    lengths = torch.tensor([12, 5, 1])
    ids = torch.where(torch.arange(12) < lengths[:, None], random_ids(3, 12) % 279, tokenizer.eos_id)
    mask = (torch.arange(12) < lengths[:, None]).long()
    torch.manual_seed(0)
    ours = ScalarModel(load_trunk(directory)[0])
    ours.rescale(3.0, bias)
    save_reward(tmp_path / "reward", ours, tokenizer)
    theirs, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "reward", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    kept = bias if isinstance(sample.ours, LlamaConfig) else 0
    assert json.loads((tmp_path / "reward/config.json").read_text()).get("wukong", {}).get("score_bias", 0) == kept
    expected = ours(ids, lengths)
    assert expected.std() > 0.05
    found = theirs.eval()(ids, attention_mask=mask).logits.squeeze(1)
    torch.testing.assert_close(found + kept, expected, **WHOLE_MODEL)
    torch.testing.assert_close(load_reward(tmp_path / "reward")[0](ids, lengths), expected, **WHOLE_MODEL)
    theirs.save_pretrained(tmp_path / "back")
    tokenizer.save(tmp_path / "back")
    torch.testing.assert_close(load_reward(tmp_path / "back")[0](ids, lengths), expected, **WHOLE_MODEL)


@torch.no_grad()
def test_a_classifier_of_others_loads_as_reward_model(directory, tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(directory, num_labels=1).eval()
    theirs.config.pad_token_id = tokenizer.eos_id
    theirs.save_pretrained(tmp_path / "classifier")
    tokenizer.save(tmp_path / "classifier")
    lengths = torch.tensor([12, 5, 1])
    ids = torch.where(torch.arange(12) < lengths[:, None], random_ids(3, 12) % 279, tokenizer.eos_id)
    found = load_reward(tmp_path / "classifier")[0](ids, lengths)
    torch.testing.assert_close(found, theirs(ids).logits.squeeze(1), **WHOLE_MODEL)


@torch.no_grad()
def test_heads_unknown_to_transformers_come_back(sample, directory, tokenizer, tmp_path):
    ours = ScalarModel(load_trunk(directory)[0], "mlp", "mean")
    ours.rescale(2.0, 1.0)
    save_reward(tmp_path / "reward", ours, tokenizer)
    loaded, _ = load_reward(tmp_path / "reward")
    assert (loaded.head_kind, loaded.pooling) == ("mlp", "mean")
    assert type(loaded.config) is type(sample.ours)
    assert_same_weights(ours, loaded)


def test_a_trunk_has_no_output_layer(sample, directory):
    trunk, _ = load_trunk(directory)
    assert "lm_head.weight" not in dict(trunk.named_parameters())
    assert trunk.output_weight is trunk.embedding.weight


@torch.no_grad()
def test_embeddings_without_a_token_leave_the_model(sample, tokenizer, tmp_path):
    """They could be drawn, and count in every log-prob."""
    padded = new_model(replace(sample.ours, vocab_size=300))
    save_policy(tmp_path / "padded", padded, tokenizer)
    model, _ = load_policy(tmp_path / "padded")
    assert model.config.vocab_size == len(model.output_weight) == model.embedding.num_embeddings == 280
    assert model.output_weight.requires_grad
    ids = random_ids(2, 9)
    torch.testing.assert_close(model.logits(model(ids)), padded.logits(padded(ids))[..., :280])
    save_policy(tmp_path / "again", model, tokenizer)
    assert_same_weights(load_policy(tmp_path / "again")[0], model)


# ------------------------------------------------------------------------------------------------ invariants


@torch.no_grad()
def test_cached_decoding_equals_the_full_forward_pass(both):
    model, _ = both
    lengths, rows = torch.tensor([5, 9, 1]), random_ids(3, 20)
    cache = model.empty_cache(3, 20)
    prompt = torch.where(torch.arange(9) < lengths[:, None], rows[:, :9], 7)  # (B, P) padded with rubbish
    hidden = model(prompt, cache=cache)
    cache.advance(lengths, 9)
    for b, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(hidden[b, :length], model(rows[b : b + 1, :length])[0], **WHOLE_MODEL)
    for step in range(8):
        at = lengths + step  # (B,)
        hidden = model(rows[torch.arange(3), at].unsqueeze(1), cache=cache)  # (B, 1, C)
        cache.advance()
        for b, position in enumerate(at.tolist()):
            expected = model(rows[b : b + 1, : position + 1])[0, -1]
            torch.testing.assert_close(hidden[b, 0], expected, **WHOLE_MODEL)


def test_rows_of_given_lengths_are_read_as_if_alone_with_the_same_gradients(both):
    model, _ = both
    lengths = torch.tensor([7, 16, 1, 15, 0, 7, 3])
    ids = random_ids(len(lengths), 16)
    real = torch.arange(16) < lengths.unsqueeze(1)  # (B, T)
    weights = torch.randn(*ids.shape, model.config.n_embd, generator=torch.Generator().manual_seed(1))
    gradients = []
    for given in (None, lengths):
        model.zero_grad()
        hidden = model(ids, lengths=given)
        (hidden * weights)[real].sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert hidden[~real].eq(0).all()
    for row, n in zip(range(len(ids)), lengths.tolist(), strict=True):
        if n:
            torch.testing.assert_close(hidden[row, :n], model(ids[row : row + 1, :n])[0], **WHOLE_MODEL)
    for found, expected in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_packed_segments_equal_separate_rows(both):
    model, _ = both
    parts = [random_ids(1, n, seed=n) for n in (5, 1, 9, 3)]
    segments = torch.repeat_interleave(torch.arange(4), torch.tensor([5, 1, 9, 3])).unsqueeze(0)  # (1, T)
    packed = model(torch.cat(parts, dim=1), segments=segments)
    torch.testing.assert_close(packed, torch.cat([model(part) for part in parts], dim=1), **WHOLE_MODEL)


@torch.no_grad()
def test_a_future_token_cannot_change_a_past_hidden_state(both):
    model, _ = both
    ids = random_ids(2, 12)
    changed = ids.clone()
    changed[:, 7:] = random_ids(2, 5, seed=9)
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:], atol=1e-2)


def test_checkpointed_blocks_have_the_same_gradients(both):
    model, _ = both
    gradients = []
    for checkpointed in (False, True):
        model.zero_grad()
        model.checkpoint_blocks = checkpointed
        language_loss(model, random_ids(2, 12)).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for found, expected in zip(*gradients, strict=True):
        assert torch.equal(found, expected)
