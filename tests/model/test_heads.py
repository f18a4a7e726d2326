"""The reward and value head: what is pooled, and that padding and rescaling do what they say."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.heads import ScalarModel, ValueHead
from wukong.scoring import frozen
from wukong.training.compute import Compute

LENGTHS = torch.tensor([9, 4, 1])
WHOLE_MODEL = {"rtol": 1e-4, "atol": 1e-4}


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 280, shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["linear", "mlp"])
def head(request) -> str:
    return request.param


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["last", "mean", "weighted"])
def test_reward_is_pooled_over_the_real_tokens_of_each_row(model, head, pooling):
    scalar_model = ScalarModel(model, head, pooling)
    ids = random_ids(3, 9)
    for b, reward in enumerate(scalar_model(ids, LENGTHS).tolist()):
        alone = scalar_model.token_scores(ids[b : b + 1, : LENGTHS[b]])[0].tolist()
        n = len(alone)
        weighted = sum(t * score for t, score in enumerate(alone, 1)) / (n * (n + 1) / 2)
        expected = {"last": alone[-1], "mean": sum(alone) / n, "weighted": weighted}[pooling]
        assert reward == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["last", "mean", "weighted"])
def test_what_stands_in_the_padding_does_not_matter(model, head, pooling):
    scalar_model = ScalarModel(model, head, pooling)
    ids = random_ids(3, 9)
    other = torch.where(torch.arange(9) < LENGTHS[:, None], ids, 5)
    torch.testing.assert_close(scalar_model(other, LENGTHS), scalar_model(ids, LENGTHS), **WHOLE_MODEL)
    torch.testing.assert_close(scalar_model(F.pad(ids, (0, 4)), LENGTHS), scalar_model(ids, LENGTHS), **WHOLE_MODEL)


@torch.no_grad()
def test_linear_head_is_a_weighted_sum_of_the_hidden_state(model):
    scalar_model = ScalarModel(model)
    scalar_model.score.bias.fill_(2.0)
    ids = random_ids(2, 5)
    expected = (model(ids) * scalar_model.score.weight[0]).sum(-1) + 2.0
    torch.testing.assert_close(scalar_model.token_scores(ids), expected, **WHOLE_MODEL)


@torch.no_grad()
def test_mlp_head_is_not_linear_in_the_hidden_state(model):
    scalar_model = ScalarModel(model, "mlp")
    hidden = model(random_ids(1, 8))[0]  # (T, C)

    def score(x):
        return scalar_model.score(scalar_model.hidden(x))

    assert not torch.allclose(score(hidden) + score(-hidden), 2 * score(torch.zeros_like(hidden)), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["last", "mean", "weighted"])
def test_rescaling_is_an_affine_map_of_the_reward(model, head, pooling):
    scalar_model = ScalarModel(model, head, pooling)
    ids = random_ids(3, 9)
    before = scalar_model(ids, LENGTHS)
    scalar_model.rescale(2.5, -1.0)
    scalar_model.rescale(2.0, 0.5)
    torch.testing.assert_close(scalar_model(ids, LENGTHS), 5.0 * before - 1.5, **WHOLE_MODEL)


@torch.no_grad()
def test_rewards_start_near_zero_with_a_spread_of_about_one():
    torch.manual_seed(0)
    trunk = GPT2(GPT2Config(vocab_size=300, n_positions=64, n_embd=128, n_layer=2, n_head=2))
    scores = torch.stack([ScalarModel(trunk).token_scores(random_ids(8, 16)) for _ in range(100)])  # 100 heads
    # A LayerNorm output has squared length C, so w.x has variance C/(C+1) over random heads w.
    assert scores.mean().item() == pytest.approx(0, abs=0.2)
    assert scores.std().item() == pytest.approx(math.sqrt(128 / 129), abs=0.2)


def test_gradient_reaches_the_pooled_tokens_in_proportion_to_their_weights(model):
    # Of four real tokens: the last one; each a quarter; 1, 2, 3 and 4 tenths.
    weights = {"last": [0, 0, 0, 1, 0, 0], "mean": [0.25] * 4 + [0, 0], "weighted": [0.1, 0.2, 0.3, 0.4, 0, 0]}
    for pooling, expected in weights.items():
        scalar_model = ScalarModel(model, "linear", pooling)
        scores: list[torch.Tensor] = []
        scalar_model.score.register_forward_hook(lambda _, __, out, s=scores: (out.retain_grad(), s.append(out))[0])
        scalar_model(random_ids(1, 6), torch.tensor([4])).sum().backward()
        assert scores[0].grad.flatten().tolist() == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------------ in bfloat16

BFLOAT16 = Compute(torch.device("cpu"), torch.bfloat16)
AS_IN_FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}  # bfloat16 keeps 3 digits only, of numbers around 1


def in_float64(scalar_model: ScalarModel, states: torch.Tensor) -> torch.Tensor:
    """The head's numbers for these hidden states, (..., C) -> (...)."""
    score, hidden = (copy.deepcopy(part).double() for part in (scalar_model.score, scalar_model.hidden))
    return score(hidden(states.double())).squeeze(-1)


@torch.no_grad()
@pytest.mark.parametrize("freeze", [False, True], ids=["trained", "frozen"])
def test_rewards_are_computed_in_float32_below_autocast(model, head, freeze):
    scalar_model, ids = ScalarModel(model, head), random_ids(3, 9)
    if freeze:
        frozen(scalar_model, BFLOAT16)
    with BFLOAT16.autocast():
        states = model(ids, lengths=LENGTHS)
        found, rewards = scalar_model.token_scores(ids, LENGTHS), scalar_model(ids, LENGTHS)
    expected = in_float64(scalar_model, states)
    assert found.dtype == rewards.dtype == torch.float32
    real = torch.arange(9) < LENGTHS[:, None]
    torch.testing.assert_close(found[real].double(), expected[real], **AS_IN_FLOAT32)
    last = expected[torch.arange(3), LENGTHS - 1]
    torch.testing.assert_close(rewards.double(), last, **AS_IN_FLOAT32)
    assert (last.bfloat16().double() - last).abs().max() > 1e-4, "the test could not tell"


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_computed_in_float32_below_autocast(dtype):
    torch.manual_seed(0)
    head, states = ValueHead(32), torch.randn(50, 32).to(dtype)
    torch.nn.init.normal_(head.score.weight)
    with BFLOAT16.autocast():
        found = head.read(states)
    expected = (states.double() * head.score.weight[0].double()).sum(-1) + head.score.bias.double()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, **AS_IN_FLOAT32)


def test_a_frozen_trunk_has_its_matrices_in_bfloat16_and_its_head_in_float32(model, head):
    scalar_model = frozen(ScalarModel(model, head), BFLOAT16)
    for name, parameter in scalar_model.named_parameters():
        in_a_layer = name.startswith("trunk.") and isinstance(
            scalar_model.get_submodule(name.rpartition(".")[0]), torch.nn.Linear
        )
        assert parameter.dtype == (torch.bfloat16 if in_a_layer else torch.float32), name
        assert not parameter.requires_grad
    of_layers = [p for p in scalar_model.trunk.parameters() if p.dtype == torch.bfloat16]
    assert len(of_layers) == 3 * 4 * 2  # four products of each of the three layers, weight and bias
