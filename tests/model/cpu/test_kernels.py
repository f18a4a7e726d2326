"""Our kernels against PyTorch's operations in float64, for this processor and for one with half as wide registers."""

import shutil
import subprocess

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wukong import rollout
from wukong.model.cpu import kernels
from wukong.model.cpu.kernels import gelu
from wukong.model.cpu.native import PanelLinear

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="our kernels need Linux, a C++ compiler and AVX2")

EXACT = {"rtol": 0, "atol": 0}


def integers(*shape: int, seed: int) -> torch.Tensor:
    """Small integers: sums of their products come out without rounding, from bfloat16 too."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------------------------------- products


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 9, 16, 17, 33])
@pytest.mark.parametrize("columns", [1, 16, 24, 130])
def test_a_product_is_the_product(library, dtype, rows, columns):
    weight, bias, x = integers(columns, 70, seed=0), integers(columns, seed=1), integers(rows, 70, seed=2)
    expected = x @ weight.T + bias
    torch.testing.assert_close(PanelLinear(library, weight, bias, dtype)(x), expected, **EXACT)
    torch.testing.assert_close(PanelLinear(library, weight, None, dtype)(x), expected - bias, **EXACT)


def test_leading_dimensions_and_strides_are_kept(library):
    weight, x = noise(24, 32), noise(32, 3, 5, seed=1).permute(1, 2, 0)
    torch.testing.assert_close(PanelLinear(library, weight, None, torch.float32)(x), x @ weight.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_other_rows_to_the_bit(library, dtype):
    linear, x = PanelLinear(library, noise(50, 64), noise(50, seed=1), dtype), noise(40, 64, seed=2)
    together = linear(x)
    for rows in (1, 2, 3, 4, 7, 8, 13, 16, 39):
        assert torch.equal(torch.cat([linear(part) for part in x.split(rows)]), together)


def test_bfloat16_weights_are_rounded_and_nothing_else_is(library):
    weight, x = noise(48, 64), noise(9, 64, seed=1)
    expected = x.double() @ weight.bfloat16().double().T
    torch.testing.assert_close(
        PanelLinear(library, weight, None, torch.bfloat16)(x).double(), expected, rtol=0, atol=1e-5
    )


def test_weights_and_biases_of_fewer_bits_are_read_as_what_they_are(library):
    weight, bias, x = noise(40, 32).bfloat16(), noise(40, seed=1).bfloat16(), noise(3, 32, seed=2)
    expected = x @ weight.float().T + bias.float()
    torch.testing.assert_close(PanelLinear(library, weight, bias, torch.float32)(x), expected)


def test_tensors_that_the_kernels_would_misread_are_refused(library):
    linear = PanelLinear(library, noise(24, 32), None, torch.float32)
    for x in (noise(3, 32).double(), noise(3, 32).bfloat16(), noise(3, 31)):
        with pytest.raises(ValueError, match="in float32"):
            linear(x)
    fine = noise(3, 50), torch.ones(3), torch.full((3,), 0.5)
    for place, wrong in [
        (0, fine[0].double()),
        (0, noise(3, 0)),
        (1, torch.ones(2)),
        (2, torch.ones(4)),
        (2, fine[2].half()),
    ]:
        given = [wrong if i == place else tensor for i, tensor in enumerate(fine)]
        with pytest.raises(ValueError, match="in float32"):
            kernels.draw(library, *given)


# ------------------------------------------------------------------------------------------------------------- GELU


@pytest.mark.parametrize("shape", [(), (1,), (15,), (16,), (3, 17), (200, 129)])
def test_gelu_and_its_gradient_are_those_of_float64(library, shape):
    x, gradient = 4 * noise(*shape), noise(*shape, seed=1)
    mine, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = gelu(mine), F.gelu(theirs, approximate="tanh")
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-6)
    y.backward(gradient)
    expected.backward(gradient.double())
    torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-5, atol=1e-5)
    assert torch.equal(mine, x), "the input is left alone"


def test_gelu_at_its_ends(library):
    x = torch.tensor([-1e4, -30.0, -6.0, 0.0, 6.0, 30.0, 1e4, torch.inf, torch.nan] * 3, requires_grad=True)
    y = gelu(x)
    y.sum().backward()
    torch.testing.assert_close(y[:7], torch.tensor([0.0, 0, 0, 0, 6, 30, 1e4]), rtol=0, atol=1e-6)
    assert y[7] == torch.inf
    assert torch.isnan(y[8])
    torch.testing.assert_close(x.grad[:7], torch.tensor([0.0, 0, 0, 0.5, 1, 1, 1]), rtol=0, atol=1e-5)
    assert torch.isnan(x.grad[8])


def test_gelu_takes_strided_tensors(library):
    x, weights = noise(20, 30).T.requires_grad_(), noise(30, 20, seed=1)
    (gelu(x) * weights).sum().backward()
    again = x.detach().clone().requires_grad_()
    (F.gelu(again, approximate="tanh") * weights).sum().backward()
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------------------------------- the draw


def drawn(library, logits, temperatures, u):
    return kernels.draw(library, logits, torch.as_tensor(temperatures), torch.as_tensor(u))


@pytest.mark.parametrize("size", [1, 5, 64, 70, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_equally_spaced_numbers_draw_tokens_as_often_as_they_are_probable(library, size, temperature):
    """No chance in it: of N numbers equally far apart, a token gets N times its probability, within 1."""
    N, logits = 20_000, 3 * noise(size)
    u = (np.arange(N, dtype=np.float32) + 0.5) / N
    tokens, logprobs = drawn(library, logits.expand(N, -1), torch.full((N,), temperature), u)
    expected = (logits.double() / temperature).softmax(0)
    counts = torch.bincount(tokens, minlength=size)
    assert (counts - N * expected).abs().max() < 1.05
    assert bool((tokens.diff() >= 0).all()), "by the inverse of the cumulative distribution"
    torch.testing.assert_close(logprobs.double(), expected.log()[tokens], rtol=0, atol=1e-5)


def test_it_draws_what_the_tensor_operations_draw(library):
    logits, u = 2 * noise(400, 777), torch.from_numpy(rollout.uniforms(3, 400))
    tokens, _ = drawn(library, logits, torch.ones(400), u)
    assert (tokens == rollout.draw(logits.softmax(-1), u)).sum() >= 399  # rounding may move one across a boundary


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-24])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 700])
def test_tokens_without_probability_are_never_drawn(library, size, u):
    for only in {0, size // 2, size - 1}:
        logits = torch.full((1, size), -torch.inf)
        logits[0, only] = -3.0
        tokens, logprobs = drawn(library, logits, [1.0], [u])
        assert tokens.item() == only
        assert logprobs.item() == 0.0


def test_rows_have_their_own_temperatures_and_0_takes_the_likeliest(library):
    logits, temperatures = noise(6, 100), torch.tensor([0.0, 1.0, 0.5, 0.0, 2.0, 1.0])
    tokens, logprobs = drawn(library, logits, temperatures, torch.full((6,), 0.7))
    assert torch.equal(tokens[[0, 3]], logits[[0, 3]].argmax(-1))
    scaled = logits / torch.where(temperatures == 0, 1, temperatures)[:, None]
    torch.testing.assert_close(logprobs, scaled.log_softmax(-1).gather(1, tokens[:, None])[:, 0])
    for row in (1, 2, 4, 5):
        assert tokens[row] == rollout.draw(scaled[row : row + 1].softmax(-1), torch.tensor([0.7]))


# ------------------------------------------------------------------------------------------------------ compilation


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As on a machine that has compiled nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kernels.compiled.cache_clear()
    yield tmp_path / "cache" / "wukong"
    kernels.compiled.cache_clear()


@pytest.mark.slow
def test_it_is_compiled_once(fresh, monkeypatch):
    assert kernels.library() is not None
    (built,) = fresh.iterdir()
    kernels.compiled.cache_clear()
    run = subprocess.run
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, **kw: (commands.append(command), run(command, **kw))[1])
    assert kernels.library() is not None
    assert [command[1:] for command in commands] == [["--version"]]
    assert list(fresh.iterdir()) == [built]


def test_without_a_compiler_it_says_so_once_and_goes_on(fresh, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert kernels.library() is None
    assert kernels.library() is None
    assert capsys.readouterr().err.count("no C++ compiler (no-such-compiler)") == 1
    x = noise(5).requires_grad_()
    assert torch.equal(gelu(x), F.gelu(x, approximate="tanh"))


def test_a_compiler_that_fails_is_quoted(fresh, monkeypatch, capsys, tmp_path):
    broken = tmp_path / "kernels.cpp"
    broken.write_text("int broken(")
    monkeypatch.setattr(kernels, "SOURCE", broken)
    assert kernels.library() is None
    said = capsys.readouterr().err
    assert "kernels.cpp cannot be compiled" in said
    assert "error" in said or "expected" in said
    assert not list(fresh.glob("*")), "nothing half-built stays"


@pytest.mark.slow
def test_the_compiler_is_the_one_that_is_asked_for(fresh, monkeypatch):
    monkeypatch.setenv("CXX", shutil.which("g++") or "c++")
    assert kernels.library() is not None
