"""Weights packed for oneDNN: the same model up to bfloat16's rounding. In float32, which needs no special instructions,
the same code is tested on every processor."""

import pytest
import torch
from torch import nn

from wukong.model.attention import KVCache
from wukong.model.cpu.packed import PackedGPT2, PackedLinear, can_pack
from wukong.model.gpt2 import GPT2, GPT2Config

CPU = torch.device("cpu")
EXACT = {"rtol": 0, "atol": 0}


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request) -> torch.dtype:
    if request.param == torch.bfloat16 and not can_pack(CPU, torch.bfloat16):
        pytest.skip("needs bfloat16 instructions")
    return request.param


def integers(*shape: int, seed: int) -> torch.Tensor:
    """Small integers: bfloat16 holds them, and sums of their products, without rounding."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("rows", [(1,), (5,), (64,), (3, 7)])
def test_a_packed_product_is_the_product(rows, dtype):
    weight, bias, x = integers(24, 16, seed=0), integers(24, seed=1), integers(*rows, 16, seed=2).to(dtype)
    expected = torch.einsum("...i,oi->...o", x.double(), weight.double()) + bias.double()
    assert expected.abs().max() <= 256, "integers up to there are exact in bfloat16"
    packed = PackedLinear(weight, bias, dtype)
    torch.testing.assert_close(packed(x).double(), expected, **EXACT)
    residual = integers(*rows, 24, seed=3).to(dtype)
    torch.testing.assert_close(packed(x, residual=residual).double(), expected + residual, **EXACT)
    torch.testing.assert_close(PackedLinear(weight, None, dtype)(x).double(), expected - bias, **EXACT)
    gelu = nn.functional.gelu(expected, approximate="tanh")
    torch.testing.assert_close(packed(x, gelu=True).double(), gelu, rtol=2**-8, atol=1e-2)


@pytest.fixture(scope="module")
def pair(dtype) -> tuple[GPT2, PackedGPT2]:
    torch.manual_seed(0)
    model = GPT2(GPT2Config(vocab_size=300, n_positions=40, n_embd=64, n_layer=3, n_head=2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))  # biases too
    return model, PackedGPT2(model, dtype)


def mean_logprob(logits: torch.Tensor, ids: torch.Tensor) -> float:
    return logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None]).mean().item()


@torch.no_grad()
def test_it_is_the_same_model_in_loss(pair):
    """Against float32, and no further from it than the ordinary bfloat16 model is allowed to be."""
    model, packed = pair
    ids = torch.randint(0, 300, (16, 40))
    expected = mean_logprob(model.logits(model(ids)), ids)
    found = mean_logprob(packed.logits(packed(ids)), ids)
    assert found == pytest.approx(expected, abs=5e-3)
    other = GPT2(model.config).eval()
    assert abs(mean_logprob(other.logits(other(ids)), ids) - expected) > 2e-2, "another model would be noticed"


@torch.no_grad()
def test_cached_decoding_equals_the_full_forward_pass_in_loss(pair):
    _, packed = pair
    ids = torch.randint(0, 300, (8, 40))
    cache = KVCache.empty(packed.config, 8, 40, like=packed.wte.weight)
    hidden = [packed(ids[:, :10], cache=cache)]
    cache.advance(torch.full((8,), 10), 10)
    for step in range(10, 40):
        hidden.append(packed(ids[:, step : step + 1], cache=cache))
        cache.advance()
    cached, full = packed.logits(torch.cat(hidden, dim=1)), packed.logits(packed(ids))
    assert mean_logprob(cached, ids) == pytest.approx(mean_logprob(full, ids), abs=2e-3)
    assert (cached - full).float().abs().mean() < 1e-2


@torch.no_grad()
def test_the_copy_keeps_the_weights_it_was_made_of(pair, dtype):
    model, _ = pair
    packed, ids = PackedGPT2(model, dtype), torch.randint(0, 300, (2, 10))
    before, original = packed.logits(packed(ids)), [p.clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.mul_(1.5)
    assert torch.equal(packed.logits(packed(ids)), before)
    assert not torch.allclose(PackedGPT2(model, dtype).logits(PackedGPT2(model, dtype)(ids)), before, atol=1e-2)
    for parameter, value in zip(model.parameters(), original, strict=True):
        parameter.copy_(value)


def test_only_bfloat16_on_a_cpu_is_packed():
    assert not can_pack(CPU, torch.float32)
    assert not can_pack(torch.device("cuda"), torch.bfloat16)
