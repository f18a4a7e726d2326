"""What all logits have in common costs no precision: log-probs, losses, gradients and draws, on every path."""

import gc

import pytest
import torch
from torch import nn

from wukong.model import logprobs
from wukong.model.cpu import kernels
from wukong.model.cpu.native import NativeModel
from wukong.model.cpu.packed import PackedGPT2, can_pack
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.logprobs import centred, token_logprobs
from wukong.rollout import inference_copy
from wukong.training.compute import Compute

CPU = torch.device("cpu")
N, V, C = 512, 2000, 64
OFFSET = -110.0
"""About where the logits of the released GPT-2s lie: in bfloat16 numbers there are 0.5 apart."""


def states_and_weights(offset: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states (N, C) and weights (V, C) whose logits all lie `offset` higher than they would."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, C, generator=generator)
    weight = torch.randn(V, C, generator=generator) * 0.4
    hidden[:, 0], weight[:, 0] = 1.0, offset
    return hidden, weight


def exact(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(N, V) log-probs."""
    return (hidden.double() @ weight.double().T).log_softmax(-1)


@pytest.mark.parametrize("with_entropy", [False, True])
def test_log_probs_and_gradients_in_bfloat16_do_not_feel_the_offset(with_entropy):
    errors: dict[float, list[float]] = {}
    targets = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(1))
    for offset in (0.0, OFFSET):
        hidden, weight = (tensor.requires_grad_() for tensor in states_and_weights(offset))
        with torch.autocast("cpu", torch.bfloat16):
            logprobs, entropies = token_logprobs(hidden, weight, targets, with_entropy=with_entropy)
        (logprobs + 0.1 * entropies).sum().backward()
        wide = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
        every = (wide[0] @ wide[1].T).log_softmax(-1)
        expected = every.gather(1, targets[:, None]).squeeze(1)
        entropy = -(every.exp() * every).sum(-1) * with_entropy
        (expected + 0.1 * entropy).sum().backward()
        found = [(logprobs, expected), (entropies, entropy), (hidden.grad, wide[0].grad), (weight.grad, wide[1].grad)]
        # Of the weights' common column the gradient is 0 in exact arithmetic.
        errors[offset] = [float((a.detach().double() - b.detach()).std()) for a, b in found]
    for plain, shifted in zip(errors[0.0], errors[OFFSET], strict=True):
        assert shifted <= 1.1 * plain
    assert errors[0.0][0] < 0.05


def offset_model(offset: float) -> GPT2:
    """The same model but for what it adds to all its logits."""
    torch.manual_seed(0)
    model = GPT2(GPT2Config(vocab_size=500, n_positions=32, n_embd=64, n_layer=2, n_head=4)).eval()
    with torch.no_grad():
        model.wte.weight.mul_(15)[:, 0] = -11.0
        model.ln_f.weight[0], model.ln_f.bias[0] = 0.0, offset / -11.0
    return model


def _native(model: GPT2) -> GPT2:
    return NativeModel(model, torch.bfloat16)


def _narrow(model: GPT2) -> GPT2:
    """Where neither our kernels nor oneDNN's are used: a GPU, or another processor."""
    with kernels.using(None), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        return inference_copy(model, Compute(CPU, torch.bfloat16))


@pytest.mark.parametrize("path", [_native, PackedGPT2, _narrow], ids=["native", "packed", "PyTorch"])
@torch.no_grad()
def test_no_path_of_decoding_feels_the_offset(path):
    if path is _native and kernels.library() is None:
        pytest.skip("our kernels need Linux, a C++ compiler and AVX2")
    if path is PackedGPT2 and not can_pack(CPU, torch.bfloat16):
        pytest.skip("needs bfloat16 instructions")
    ids = torch.randint(0, 500, (16, 32), generator=torch.Generator().manual_seed(0))
    errors = {}
    for offset in (0.0, OFFSET):
        model = offset_model(offset)
        hidden = model(ids).flatten(0, 1)
        wanted = exact(hidden, model.wte.weight)
        assert model.logits(hidden).mean() == pytest.approx(offset, abs=3), "the model's own logits stay what they are"
        copied = path(model)
        given = hidden if path is _native else hidden.bfloat16()
        got = copied.centred_logits(given).double().log_softmax(-1)
        errors[offset] = float((got - wanted).std())
        # The model's own logits, in float32, of the copy too (its embedding may be rounded).
        torch.testing.assert_close(copied.logits(given).mean(), model.logits(hidden).mean(), rtol=0.01, atol=0.01)
    assert errors[OFFSET] <= 1.1 * errors[0.0] < 0.1


def test_weights_are_centred_once_an_update():
    weight = nn.Parameter(states_and_weights(OFFSET)[1])
    first = centred(weight, torch.bfloat16)
    torch.testing.assert_close(first.float(), (weight - weight.mean(0)).detach(), rtol=0.01, atol=1e-4)
    assert centred(weight, torch.bfloat16) is first
    assert centred(weight, torch.float16).dtype == torch.float16
    before = centred(weight, torch.bfloat16)
    for options in ({"fused": True}, {"foreach": True}, {"foreach": False}):
        optimizer = torch.optim.AdamW([weight], lr=1e-2, **options)
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        after = centred(weight, torch.bfloat16)
        assert not torch.equal(after, before)
        torch.testing.assert_close(after.float(), (weight - weight.mean(0)).detach(), rtol=0.01, atol=1e-4)
        before = after
    with torch.no_grad():
        weight.copy_(torch.randn_like(weight))  # a checkpoint that is read
    assert not torch.equal(centred(weight, torch.bfloat16), before)


def test_a_step_of_any_optimiser_makes_it_forget():
    """FSDP refills gathered weights behind the back of their version counter."""
    weight, other = nn.Parameter(torch.randn(7, 3)), nn.Parameter(torch.zeros(1))
    first = centred(weight, torch.bfloat16)
    with torch.autograd._unsafe_preserve_version_counter(weight), torch.no_grad():
        weight.mul_(2)
    assert centred(weight, torch.bfloat16) is first
    other.grad = torch.ones(1)
    torch.optim.SGD([other]).step()
    assert torch.equal(centred(weight, torch.bfloat16), (weight - weight.mean(0)).bfloat16())


def test_what_is_kept_goes_with_the_weights():
    logprobs._kept.clear()
    weight = nn.Parameter(torch.randn(7, 3))
    centred(weight, torch.bfloat16)
    assert len(logprobs._kept) == 1
    del weight
    gc.collect()
    assert len(logprobs._kept) == 0


def test_in_float32_the_weights_stay_as_they_are():
    weight = nn.Parameter(torch.randn(7, 3))
    assert centred(weight, torch.float32).data_ptr() == weight.data_ptr()
    with torch.inference_mode():
        inside = torch.randn(7, 3)
        assert torch.equal(centred(inside, torch.bfloat16), (inside - inside.mean(0)).bfloat16())
