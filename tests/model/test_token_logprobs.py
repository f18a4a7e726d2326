"""Log-probs of tokens, their entropy and the gradients of both, against a plain loop and numbers derived by hand."""

import pytest
import torch

from tests.numerics import FP32, close, gradient, randn
from tests.reference import losses as reference
from wukong.model import logprobs as module
from wukong.model.logprobs import token_logprobs


def test_token_logprobs_by_hand():
    # Two tokens, logits (1, 3) x hidden: hidden 1 -> logits 1, 3; p(0) = 1/(1 + e^2), log = -2.126928.
    weight = torch.tensor([[1.0], [3.0]])
    logprobs, entropy = token_logprobs(torch.ones(2, 1), weight, torch.tensor([0, 1]), with_entropy=True)
    close(logprobs, [-2.126928, -0.126928])
    # H = -(0.119203 x -2.126928 + 0.880797 x -0.126928) = 0.253534 + 0.111798
    close(entropy, [0.365334, 0.365334])
    # At temperature 2 the logits are 0.5 and 1.5: log p(0) = -log(1 + e) = -1.313262.
    logprobs, _ = token_logprobs(torch.ones(2, 1), weight, torch.tensor([0, 1]), temperature=2.0)
    close(logprobs, [-1.313262, -0.313262])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1 << 24, 50, 1], ids=["at once", "chunks", "one row a chunk"])
def test_token_logprobs_equal_a_plain_loop_however_they_are_chunked(monkeypatch, temperature, chunk):
    monkeypatch.setattr(module, "CHUNK_LOGITS", chunk)
    hidden, weight, targets = randn(23, 5), randn(11, 5, seed=1), torch.arange(23) % 11
    expected, entropies = reference.token_logprobs(hidden.numpy(), weight.numpy(), targets.numpy(), temperature)
    logprobs, entropy = token_logprobs(hidden, weight, targets, temperature=temperature, with_entropy=True)
    close(logprobs, expected)
    close(entropy, entropies)
    without, zeros = token_logprobs(hidden, weight, targets, temperature=temperature)
    close(without, expected)
    assert zeros.eq(0).all()


def plain_logprobs(hidden, weight, targets, temperature):
    """(log-probs, entropies), as one would write them down."""
    every = torch.log_softmax(hidden @ weight.T / temperature, dim=-1)
    return every[torch.arange(len(targets)), targets], -(every.exp() * every).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("kept", [1 << 20, 0], ids=["kept", "computed again"])
@pytest.mark.parametrize("chunk", [1 << 24, 50, 1], ids=["at once", "chunks", "one row a chunk"])
def test_the_written_out_gradient_is_that_of_the_plain_log_softmax(monkeypatch, temperature, with_entropy, kept, chunk):
    monkeypatch.setattr(module, "CHUNK_LOGITS", chunk)
    monkeypatch.setattr(module, "KEPT_LOGITS_BYTES", kept)
    targets, weights_of_rows = torch.arange(23) % 11, randn(2, 23, seed=2)
    gradients = []
    for ours in (True, False):
        hidden, weight = randn(23, 5).requires_grad_(), randn(11, 5, seed=1).requires_grad_()
        if ours:
            found = token_logprobs(hidden, weight, targets, temperature=temperature, with_entropy=with_entropy)
        else:
            found = plain_logprobs(hidden, weight, targets, temperature)
        # Rows weigh differently, so that a mixed-up order of chunks shows.
        loss = (found[0] * weights_of_rows[0]).sum() + with_entropy * (found[1] * weights_of_rows[1]).sum()
        loss.backward()
        gradients.append((hidden.grad, weight.grad))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, **FP32)


def test_the_gradient_of_the_entropy_alone_and_of_a_frozen_output_layer():
    hidden, weight, targets = randn(6, 5).requires_grad_(), randn(11, 5, seed=1), torch.arange(6)
    found = gradient(token_logprobs(hidden, weight, targets, with_entropy=True)[1], hidden)
    torch.testing.assert_close(found, gradient(plain_logprobs(hidden, weight, targets, 1.0)[1], hidden), **FP32)
    assert found.abs().max() > 0.1


def saved_elements(compute) -> int:
    """The most elements of one tensor that `compute` keeps for backward."""
    sizes = [0]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
        compute()
    return max(sizes)


def test_no_logits_are_kept_for_backward_when_memory_is_short(monkeypatch):
    hidden, weight, targets = randn(40, 5).requires_grad_(), randn(30, 5, seed=1), torch.zeros(40, dtype=torch.int64)
    monkeypatch.setattr(module, "CHUNK_LOGITS", 20 * 30)
    monkeypatch.setattr(module, "KEPT_LOGITS_BYTES", 40 * 30 * 4)  # they just fit
    assert saved_elements(lambda: token_logprobs(hidden, weight, targets)) == 20 * 30
    monkeypatch.setattr(module, "KEPT_LOGITS_BYTES", 40 * 30 * 4 - 1)
    assert saved_elements(lambda: token_logprobs(hidden, weight, targets)) == 40 * 5  # the hidden states


def test_logits_are_kept_in_bfloat16_and_the_gradient_of_the_weights_is_summed_in_float32(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_LOGITS", 11)  # one row a chunk: 64 terms
    hidden, weight, targets = (
        randn(64, 16).requires_grad_(),
        randn(11, 16, seed=1).requires_grad_(),
        torch.arange(64) % 11,
    )
    dtypes = []
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: (dtypes.append((t.shape, t.dtype)), t)[1], lambda t: t),
    ):
        token_logprobs(hidden, weight, targets)[0].sum().backward()
    assert ((1, 11), torch.bfloat16) in dtypes
    assert ((1, 11), torch.float32) not in dtypes
    exact = gradient(plain_logprobs(hidden, weight, targets, 1.0)[0], weight)
    assert weight.grad.dtype == torch.float32
    assert (weight.grad - exact).norm() < 1e-2 * exact.norm()


def test_logprobs_are_float32_from_a_bfloat16_product():
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, entropy = token_logprobs(randn(4, 8), randn(6, 8, seed=1), torch.arange(4), with_entropy=True)
    assert logprobs.dtype == entropy.dtype == torch.float32


def test_a_step_up_the_gradient_makes_the_target_likelier():
    hidden, weight, targets = randn(3, 5).requires_grad_(), randn(7, 5, seed=1), torch.tensor([1, 4, 6])
    logprobs, _ = token_logprobs(hidden, weight, targets)
    better, _ = token_logprobs(hidden + 0.01 * gradient(logprobs, hidden), weight, targets)
    assert (better > logprobs).all()


def test_no_positions_give_no_logprobs():
    logprobs, entropy = token_logprobs(randn(0, 5), randn(7, 5), torch.zeros(0, dtype=torch.int64), with_entropy=True)
    assert logprobs.shape == entropy.shape == (0,)


def test_a_wrong_shape_or_dtype_is_refused():
    targets = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"expected hidden \(N, C\) and targets \(N,\), not \(2, 3, 4\)"):
        token_logprobs(randn(2, 3, 4), randn(5, 4), targets)
    with pytest.raises(TypeError, match=r"targets must be int64, not torch\.float32"):
        token_logprobs(randn(2, 4), randn(5, 4), targets.float())
