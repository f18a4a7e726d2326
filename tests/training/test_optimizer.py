"""Muon by its definition on singular values, and beside AdamW in a training run."""

import pytest
import torch

from wukong.errors import UsageError
from wukong.model.config import LlamaConfig
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.llama import Llama
from wukong.training.checkpoint import load_latest, save_checkpoint
from wukong.training.optimizer import Muon, hidden_matrices, optimizer_of, orthogonalised

ADAMW = {"lr": 0.1, "weight_decay": 0.5, "betas": (0.9, 0.95), "eps": 1e-8}


def tiny_gpt2(seed: int = 0) -> GPT2:
    torch.manual_seed(seed)
    return GPT2(GPT2Config(vocab_size=30, n_positions=8, n_embd=8, n_layer=2, n_head=1))


def by_svd(matrix: torch.Tensor) -> torch.Tensor:
    """What five steps make of a matrix: the polynomial acts on its singular values and leaves the vectors alone."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ v


@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (9, 4), (1, 6)])
def test_the_iteration_acts_on_singular_values_alone(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(orthogonalised(matrix).double(), by_svd(matrix), rtol=0, atol=1e-4)


def test_a_zero_gradient_moves_nothing():
    assert orthogonalised(torch.zeros(3, 4)).abs().max() == 0


def test_two_steps_by_hand():
    weight = torch.nn.Parameter(torch.randn(3, 5, generator=torch.Generator().manual_seed(2)))
    optimizer = Muon([weight], lr=0.1, weight_decay=0.5)
    expected, average = weight.detach().double().clone(), torch.zeros(3, 5).double()
    for seed in (3, 4):
        weight.grad = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))
        gradient = weight.grad.double()
        average = 0.95 * average + 0.05 * gradient
        direction = by_svd(0.05 * gradient + 0.95 * average)
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 5**0.5 * direction
        optimizer.step()
    torch.testing.assert_close(weight.detach().double(), expected, rtol=0, atol=1e-4)


def test_it_agrees_with_that_of_torch_up_to_bfloat16():
    start, gradient = torch.randn(6, 8), torch.randn(6, 8)
    moved = []
    for kind, more in ((Muon, {}), (torch.optim.Muon, {"adjust_lr_fn": "match_rms_adamw"})):
        weight = torch.nn.Parameter(start.clone())
        weight.grad = gradient.clone()
        kind([weight], lr=0.1, **more).step()
        moved.append(weight.detach() - start)
    torch.testing.assert_close(moved[0], moved[1], rtol=0.05, atol=2e-3)


def test_muon_gets_the_matrices_of_the_blocks_and_adamw_the_rest():
    model = tiny_gpt2()
    hidden = {name for name, p in model.named_parameters() if p in hidden_matrices(model)}
    kinds = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert hidden == {f"h.{layer}.{kind}.weight" for layer in (0, 1) for kind in kinds}
    optimizer = optimizer_of([model], "muon", **ADAMW, sharded=False)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        assert set(optimizer.state[p]) == ({"momentum_buffer"} if name in hidden else {"step", "exp_avg", "exp_avg_sq"})
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(model.parameters()))
    decayed = {p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {p for p in model.parameters() if p.ndim == 2}


def test_muon_gets_a_llamas_matrices_but_neither_its_embedding_nor_its_output_layer():
    sizes = {"n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_kv_head": 1, "head_width": 4, "n_inner": 12}
    model = Llama(LlamaConfig(vocab_size=30, **sizes, tied=False, qk_norm=True))
    hidden = {name for name, p in model.named_parameters() if p in hidden_matrices(model)}
    attention, mlp = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
    expected = {*(f"self_attn.{name}" for name in attention), *(f"mlp.{name}" for name in mlp)}
    assert hidden == {f"layers.0.{name}.weight" for name in expected}


def test_a_resumed_run_of_both_is_the_same_bit_for_bit(tmp_path):
    def train(model, optimizer, steps):
        for step in steps:
            ids = torch.randint(30, (2, 8), generator=torch.Generator().manual_seed(step))
            model(ids).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    whole = tiny_gpt2()
    train(whole, optimizer_of([whole], "muon", **ADAMW, sharded=False), range(6))
    first = tiny_gpt2()
    optimizer = optimizer_of([first], "muon", **ADAMW, sharded=False)
    train(first, optimizer, range(3))
    save_checkpoint(tmp_path, 3, {"model": first}, optimizer, {})
    second = tiny_gpt2(seed=1)
    optimizer = optimizer_of([second], "muon", **ADAMW, sharded=False)
    assert load_latest(tmp_path, {"model": second}, optimizer)[0] == 3
    train(second, optimizer, range(3, 6))
    for (name, found), expected in zip(second.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_sharded_matrices_are_refused():
    with pytest.raises(UsageError, match="--optimizer muon needs whole matrices"):
        optimizer_of([tiny_gpt2()], "muon", **ADAMW, sharded=True)
