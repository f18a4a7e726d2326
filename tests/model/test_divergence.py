"""The exact KL between two models and its gradient, against numbers derived by hand and a plain softmax."""

import math

import pytest
import torch

from tests.numerics import FP32, close, gradient, randn
from wukong.model import logprobs as module
from wukong.model.divergence import reverse_kl


def test_reverse_kl_and_its_gradient_by_hand():
    # Hidden states of 1: the student's logits are 0, 0, so p = 1/2, 1/2; the teacher's log 4, 0, so q = 4/5, 1/5.
    # KL = 1/2 log(5/8) + 1/2 log(5/2) = 0.223144; the entropy of p is log 2.
    weight = torch.zeros(2, 1).requires_grad_()
    teacher = torch.tensor([[math.log(4)], [0.0]]).requires_grad_()
    divergence, entropy = reverse_kl(torch.ones(1, 1), weight, torch.ones(1, 1), teacher)
    close(divergence, [0.223144])
    close(entropy, [math.log(2)])
    # dKL/dz_0 = 1/2 (log(5/8) - 0.223144) = -0.346574: the first token is to become likelier. With hidden states of 1
    # that is the gradient of the weights too.
    divergence.sum().backward()
    close(weight.grad, [[-0.346574], [0.346574]])
    assert teacher.grad is None
    # At temperature 2 the teacher's logits are log 2, 0: q = 2/3, 1/3; KL = 1/2 log(3/4) + 1/2 log(3/2).
    halved, _ = reverse_kl(torch.ones(1, 1), weight, torch.ones(1, 1), teacher, temperature=2.0)
    close(halved, [(math.log(3 / 4) + math.log(3 / 2)) / 2])


def plain(hidden, weight, teacher_hidden, teacher_weight, temperature):
    ours = (hidden @ weight.T / temperature).log_softmax(-1)
    theirs = (teacher_hidden @ teacher_weight.T / temperature).log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum(-1), -(ours.exp() * ours).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1 << 24, 50, 1], ids=["at once", "chunks", "one row a chunk"])
def test_value_and_gradients_are_those_of_a_plain_softmax_however_they_are_chunked(monkeypatch, temperature, chunk):
    monkeypatch.setattr(module, "CHUNK_LOGITS", chunk)
    teacher, rows = (randn(23, 7, seed=3), randn(11, 7, seed=4)), randn(23, seed=2)
    gradients = []
    for function in (reverse_kl, plain):
        hidden, weight = randn(23, 5).requires_grad_(), randn(11, 5, seed=1).requires_grad_()
        divergences, entropies = function(hidden, weight, *teacher, temperature=temperature)
        (divergences * rows).sum().backward()  # rows weigh differently, so that a mixed-up order of chunks shows
        gradients.append((divergences.detach(), entropies.detach(), hidden.grad, weight.grad))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, **FP32)


def test_a_step_down_the_gradient_brings_the_student_closer_and_equal_models_have_none():
    hidden, weight, teacher = randn(6, 5).requires_grad_(), randn(11, 5, seed=1), randn(11, 5, seed=4)
    divergences, _ = reverse_kl(hidden, weight, hidden.detach(), teacher)
    nearer, _ = reverse_kl(hidden - 0.01 * gradient(divergences, hidden), weight, hidden.detach(), teacher)
    assert (nearer < divergences).all()
    same, _ = reverse_kl(hidden, weight, hidden.detach(), weight)
    close(same, torch.zeros(6))
    close(gradient(same, hidden), torch.zeros(6, 5))


def test_nothing_of_the_size_of_the_logits_is_kept_for_backward(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_LOGITS", 60)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
        reverse_kl(randn(40, 5).requires_grad_(), randn(30, 5, seed=1), randn(40, 3), randn(30, 3))
    assert max(sizes) == 40 * 5


def test_the_divergence_is_float32_from_bfloat16_products():
    given = randn(64, 16).requires_grad_(), randn(11, 16, seed=1), randn(64, 16, seed=2), randn(11, 16, seed=3)
    exact, _ = plain(*given, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        found, entropies = reverse_kl(*given)
    assert found.dtype == entropies.dtype == torch.float32
    assert (found - exact).norm() < 1e-2 * exact.norm()


def test_other_vocabularies_or_numbers_of_positions_are_refused():
    with pytest.raises(ValueError, match=r"not \(2, 4\), \(5, 4\), \(2, 3\), \(6, 3\)"):
        reverse_kl(randn(2, 4), randn(5, 4), randn(2, 3), randn(6, 3))
    with pytest.raises(ValueError, match="expected"):
        reverse_kl(randn(2, 4), randn(5, 4), randn(3, 3), randn(5, 3))
