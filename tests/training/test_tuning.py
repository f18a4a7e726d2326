"""What is trained of a model, what is frozen, and what models share."""

from pathlib import Path

import pytest
import torch

from wukong.errors import UsageError
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.heads import ScalarModel
from wukong.model.lora import adapted_layers, blocks_of
from wukong.model.lower_states import LowerStates
from wukong.scoring import frozen
from wukong.training.checkpoint import save_checkpoint
from wukong.training.compute import Compute
from wukong.training.optimizer import optimizer_of
from wukong.training.parallel import trained
from wukong.training.tuning import (
    DropoutTuningOptions,
    TuningOptions,
    as_loaded,
    check_tuning,
    hold_frozen,
    share_frozen,
    shared_layers,
    tuned,
)

CONFIG = GPT2Config(vocab_size=50, n_positions=32, n_embd=32, n_layer=4, n_head=2)
IDS = torch.randint(0, 50, (3, 10), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([10, 7, 2])


NOISE = torch.randn(3, 10, 32, generator=torch.Generator().manual_seed(1))


def loss_of(model: torch.nn.Module) -> torch.Tensor:
    """Not a norm, which the last LayerNorm would make constant."""
    return (model(IDS, lengths=LENGTHS) * NOISE).sum()


def gpt2(seed: int = 0) -> GPT2:
    torch.manual_seed(seed)
    return GPT2(CONFIG)


def names(model: torch.nn.Module) -> set[str]:
    return {name for name, _ in trained(model)}


# ------------------------------------------------------------------------------------------------------ what is trained


def test_by_default_everything_is_trained():
    assert names(tuned(gpt2(), TuningOptions(), 0)) == {name for name, _ in gpt2().named_parameters()}


def test_frozen_layers_are_counted_from_the_bottom_and_the_embeddings_are_frozen_too():
    found = names(tuned(gpt2(), TuningOptions(freeze_layers=3), 0))
    assert found == {name for name, _ in gpt2().named_parameters() if name.startswith(("h.3.", "ln_f."))}


def test_adapters_alone_are_trained_and_a_head_in_full():
    model = tuned(ScalarModel(gpt2(), "mlp"), TuningOptions(lora_rank=3, lora_targets=["c_proj"]), 0)
    layers = {f"trunk.h.{n}.{part}.c_proj" for n in range(4) for part in ("attn", "mlp")}
    assert set(adapted_layers(model)) == layers
    heads = {"score.weight", "score.bias", "hidden.0.weight", "hidden.0.bias"}
    assert names(model) == {f"{layer}.{part}" for layer in layers for part in ("lora_A", "lora_B")} | heads
    assert all(layer.alpha / layer.rank == 2 for layer in adapted_layers(model).values()), "twice the rank"


def test_adapters_above_frozen_layers():
    model = tuned(gpt2(), TuningOptions(lora_rank=2, freeze_layers=2), 0)
    assert {name.split(".")[1] for name in names(model)} == {"2", "3"}


def test_adapters_start_the_same_for_the_same_seed():
    one, same, other = (dict(trained(tuned(gpt2(), TuningOptions(lora_rank=2), seed))) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["h.0.attn.c_attn.lora_A"], other["h.0.attn.c_attn.lora_A"])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"lora_alpha": 8}, "--lora-alpha has no effect without adapters: give a --lora-rank"),
        ({"lora_dropout": 0.1}, "--lora-dropout has no effect"),
        ({"lora_targets": ["c_attn"]}, "--lora-targets has no effect"),
        ({"lora_rank": 2, "lora_targets": ["q_proj"]}, "--lora-targets q_proj: no such linear layer"),
        ({"freeze_layers": 4}, "--freeze-layers 4 leaves no layer to train: the model has 4"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, problem):
    with pytest.raises(UsageError, match=problem):
        check_tuning(DropoutTuningOptions(**options), gpt2())


# ------------------------------------------------------------------------------------------------ losses and gradients


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_above_frozen_layers_are_those_of_the_whole_model(checkpointing):
    whole, part = gpt2(), tuned(gpt2(), TuningOptions(freeze_layers=2), 0)
    whole.checkpoint_blocks = part.checkpoint_blocks = checkpointing
    losses = [loss_of(model) for model in (whole, part)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    expected = dict(whole.named_parameters())
    assert names(part)
    for name, parameter in part.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, expected[name].grad), name
        else:
            assert parameter.grad is None, name


def test_an_adapters_gradient_is_that_of_the_merged_weight():
    """By the chain rule for W + s B A: dL/dB = s dL/dW A', dL/dA = s B' dL/dW."""
    model = tuned(gpt2(), TuningOptions(lora_rank=3), 0)
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.lora_B.normal_(std=0.1)
    plain = gpt2()
    with torch.no_grad():
        for name, layer in adapted_layers(model).items():
            plain.get_submodule(name).weight.copy_(layer.merged_weight())
    for one in (model, plain):
        loss_of(one).backward()
    for name, layer in adapted_layers(model).items():
        whole = plain.get_submodule(name).weight.grad
        assert whole.abs().max() > 1e-3
        torch.testing.assert_close(layer.lora_B.grad, 2 * whole @ layer.lora_A.T, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(layer.lora_A.grad, 2 * layer.lora_B.T @ whole, atol=1e-4, rtol=1e-4)


def test_optimiser_and_checkpoint_hold_only_what_is_trained(tmp_path: Path):
    model = tuned(gpt2(), TuningOptions(lora_rank=2), 0)
    optimizer = optimizer_of([model], "adamw", lr=1e-3, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8, sharded=False)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    loss_of(model).backward()
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed
    assert all(name.endswith("lora_B") for name in changed), "B is 0, so A has no gradient at the first step"
    assert len(optimizer.state) == len(names(model))
    saved = save_checkpoint(tmp_path, 1, {"policy": model}, optimizer, {})
    whole = sum(parameter.numel() for parameter in model.parameters()) * 4
    assert (saved / "state.safetensors").stat().st_size < whole / 2


# ------------------------------------------------------------------------------------------------------- what is shared


def reference_to(policy: GPT2, dtype: torch.dtype = torch.float32) -> GPT2:
    reference = gpt2().requires_grad_(False)
    share_frozen(reference, policy)
    return frozen(reference, Compute(torch.device("cpu"), dtype))


def own_bytes(model: torch.nn.Module, other: torch.nn.Module) -> int:
    theirs = {parameter.data_ptr() for parameter in other.parameters()}
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.data_ptr() not in theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_adapters_the_reference_takes_no_memory_and_the_kl_starts_at_0(dtype):
    policy = tuned(gpt2(), TuningOptions(lora_rank=2), 0).eval()
    hold_frozen(policy, dtype)
    reference = reference_to(policy, dtype)
    assert own_bytes(reference, policy) == 0

    def differ() -> bool:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), torch.no_grad():
            return not torch.equal(policy(IDS, lengths=LENGTHS), reference(IDS, lengths=LENGTHS))

    assert not differ()
    with torch.no_grad():
        adapted_layers(policy)["h.0.mlp.c_fc"].lora_B.add_(1)
    assert differ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_frozen_layers_the_reference_is_a_copy_of_those_above(dtype):
    policy = tuned(gpt2(), TuningOptions(freeze_layers=3), 0).eval()
    hold_frozen(policy, dtype)
    reference = reference_to(policy, dtype)
    upper = [*blocks_of(gpt2())[3].parameters(), *gpt2().ln_f.parameters()]
    assert own_bytes(reference, policy) <= sum(p.numel() for p in upper) * 4
    assert shared_layers(policy, reference) == 3
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), torch.no_grad():
        assert torch.equal(policy(IDS, lengths=LENGTHS), reference(IDS, lengths=LENGTHS))


def test_weights_held_in_bfloat16_change_no_bit_under_autocast():
    plain, held = (tuned(gpt2(), TuningOptions(lora_rank=2, freeze_layers=1), 0) for _ in range(2))
    hold_frozen(held, torch.bfloat16)
    assert held.h[1].mlp.c_fc.weight.dtype == torch.bfloat16
    assert held.h[1].mlp.c_fc.lora_A.dtype == held.wte.weight.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(IDS), held(IDS))


def test_only_equal_and_frozen_weights_are_shared():
    policy, value = tuned(gpt2(), TuningOptions(freeze_layers=2), 0), ScalarModel(gpt2())
    with torch.no_grad():
        value.trunk.h[1].mlp.c_fc.bias.add_(1e-3)
    tuned(value, TuningOptions(freeze_layers=2), 0)
    share_frozen(value, policy)
    assert value.trunk.h[0].mlp.c_fc.weight is policy.h[0].mlp.c_fc.weight
    assert value.trunk.h[1].mlp.c_fc.bias is not policy.h[1].mlp.c_fc.bias
    assert value.trunk.h[2].mlp.c_fc.weight is not policy.h[2].mlp.c_fc.weight, "equal, but trained"
    assert shared_layers(policy, value) == 1


def test_shared_layers_are_computed_once_for_all_models(monkeypatch):
    policy, value = (tuned(one, TuningOptions(freeze_layers=3), 0) for one in (gpt2(), ScalarModel(gpt2())))
    share_frozen(value, policy)
    expected = policy(IDS, lengths=LENGTHS), value.trunk(IDS, lengths=LENGTHS)
    passes = []
    for block in policy.h[:3]:
        block.register_forward_hook(lambda *_: passes.append("policy"))
    for block in value.trunk.h[:3]:
        block.register_forward_hook(lambda *_: passes.append("value"))
    lower = LowerStates(shared_layers(policy, value))
    found = [model(IDS, lengths=LENGTHS, lower=lower) for model in (policy, value.trunk)]
    assert passes == ["policy"] * 3
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    found[1].sum().backward()
    assert value.trunk.h[3].mlp.c_fc.weight.grad.any()
    with pytest.raises(ValueError, match="are not of"):
        policy(IDS[:, :4], lower=lower)


def test_a_model_is_saved_as_it_was_loaded_though_it_was_trained_in_bfloat16():
    def start() -> GPT2:
        return tuned(gpt2(), TuningOptions(lora_rank=2, freeze_layers=2), 0)

    model = start()
    hold_frozen(model, torch.bfloat16)
    with torch.no_grad():
        for _, parameter in trained(model):
            parameter.add_(1)
    found = as_loaded(model, start)
    for name, parameter in found.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, dict(start().named_parameters())[name] + (name in names(model))), name
    assert as_loaded(found, start) is found
