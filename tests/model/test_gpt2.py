"""What must hold of GPT-2 whatever its weights are; tests/model/test_families.py compares it with `transformers`."""

import math

import pytest
import torch
import torch.nn.functional as F

from wukong.model.attention import KVCache
from wukong.model.gpt2 import GPT2, PRESETS, GPT2Config

WHOLE_MODEL = {"rtol": 1e-4, "atol": 1e-4}


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 280, shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------ invariants


@torch.no_grad()
def test_cached_decoding_equals_the_full_forward_pass(model):
    lengths = torch.tensor([5, 9, 1])
    rows = random_ids(3, 20)
    cache = KVCache.empty(model.config, 3, 20, like=model.wte.weight)
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


@torch.no_grad()
def test_rows_that_leave_the_cache_do_not_change_the_others(model):
    ids = random_ids(4, 6)
    cache = KVCache.empty(model.config, 4, 12, like=model.wte.weight)
    model(ids, cache=cache)
    cache.advance(torch.full((4,), 6), 6)
    step = random_ids(4, 1, seed=1)
    stay = torch.tensor([2, 0])
    fewer = cache.select(stay)
    torch.testing.assert_close(model(step[stay], cache=fewer), model(step, cache=cache)[stay], **WHOLE_MODEL)


@torch.no_grad()
def test_a_filled_cache_takes_one_token_at_a_time(model):
    cache = KVCache.empty(model.config, 1, 12, like=model.wte.weight)
    model(random_ids(1, 4), cache=cache)
    cache.advance(torch.tensor([4]), 4)
    with pytest.raises(ValueError, match="one token at a time"):
        model(random_ids(1, 2), cache=cache)


@torch.no_grad()
def test_padding_on_the_right_changes_nothing(model):
    ids = random_ids(2, 10)
    padded = F.pad(ids, (0, 6), value=3)
    torch.testing.assert_close(model(padded)[:, :10], model(ids), **WHOLE_MODEL)


LENGTHS = torch.tensor([7, 16, 1, 15, 0, 7, 3])


def test_rows_of_given_lengths_are_read_as_if_alone_with_the_same_gradients(model):
    ids = random_ids(len(LENGTHS), 16)
    real = torch.arange(16) < LENGTHS.unsqueeze(1)  # (B, T)
    weights = torch.randn(*ids.shape, model.config.n_embd, generator=torch.Generator().manual_seed(1))
    gradients = []
    for lengths in (None, LENGTHS):
        model.zero_grad()
        hidden = model(ids, lengths=lengths)
        (hidden * weights)[real].sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert hidden[~real].eq(0).all()
    for row, n in zip(range(len(ids)), LENGTHS.tolist(), strict=True):
        if n:
            torch.testing.assert_close(hidden[row, :n], model(ids[row : row + 1, :n])[0], **WHOLE_MODEL)
    for found, expected in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_cache_filled_from_rows_of_given_lengths_is_that_of_the_padded_rows(model):
    ids, lengths, following = random_ids(3, 8), torch.tensor([8, 2, 5]), random_ids(3, 1, seed=1)
    found = []
    for given in (None, lengths):
        cache = KVCache.empty(model.config, 3, 12, like=model.wte.weight)
        model(ids, lengths=given, cache=cache)
        cache.advance(lengths, 8)
        found.append(model(following, cache=cache))
    torch.testing.assert_close(*found, **WHOLE_MODEL)


@torch.no_grad()
def test_padding_costs_attention_a_tenth_and_the_products_nothing(model, monkeypatch):
    lengths = torch.randint(1, 41, (64,), generator=torch.Generator().manual_seed(0))
    products, attended, attention = [], [], F.scaled_dot_product_attention

    def counted(q, *rest, **more):
        attended.append(q.shape[0] * q.shape[2])
        return attention(q, *rest, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    for block in model.h:
        block.mlp.c_fc.register_forward_hook(lambda _, inputs, __: products.append(inputs[0].shape[:-1].numel()))
    model(random_ids(64, 40), lengths=lengths)
    layers = model.config.n_layer
    assert products == [int(lengths.sum())] * layers
    assert int(lengths.sum()) * layers <= sum(attended) < 1.1 * int(lengths.sum()) * layers
    assert len(attended) < layers * 32  # like lengths together


def test_lengths_exclude_segments_and_a_filled_cache(model):
    ids = random_ids(2, 4)
    with pytest.raises(ValueError, match="no segments"):
        model(ids, lengths=torch.tensor([4, 2]), segments=torch.zeros_like(ids))


@torch.no_grad()
def test_padding_on_the_left_changes_nothing_with_segments(model):
    ids = random_ids(2, 10)
    padded = F.pad(ids, (6, 0), value=3)
    segments = F.pad(torch.ones_like(ids), (6, 0), value=0)
    torch.testing.assert_close(model(padded, segments=segments)[:, 6:], model(ids), **WHOLE_MODEL)
    assert not torch.allclose(model(padded)[:, 6:], model(ids), atol=1e-2), "without segments it must matter"


@torch.no_grad()
def test_packed_segments_equal_separate_rows(model):
    parts = [random_ids(1, n, seed=n) for n in (5, 1, 9, 3)]
    segments = torch.repeat_interleave(torch.arange(4), torch.tensor([5, 1, 9, 3])).unsqueeze(0)  # (1, T)
    packed = model(torch.cat(parts, dim=1), segments=segments)
    expected = torch.cat([model(part) for part in parts], dim=1)
    torch.testing.assert_close(packed, expected, **WHOLE_MODEL)


def test_no_gradient_flows_between_segments(model):
    embedded = []
    model.wte.register_forward_hook(lambda _, __, out: (out.retain_grad(), embedded.append(out))[0])
    segments = torch.tensor([[0, 0, 0, 1, 1]])
    model(random_ids(1, 5), segments=segments)[0, 3:].square().sum().backward()
    reach = embedded[0].grad[0].abs().sum(-1)  # (T,)
    assert reach[:3].eq(0).all()
    assert reach[3:].gt(0).all()


@torch.no_grad()
@pytest.mark.parametrize("with_segments", [False, True])
def test_a_future_token_cannot_change_a_past_hidden_state(model, with_segments):
    ids = random_ids(2, 12)
    changed = ids.clone()
    changed[:, 7:] = random_ids(2, 5, seed=9)
    segments = torch.zeros_like(ids) if with_segments else None
    before, after = model(ids, segments=segments), model(changed, segments=segments)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:], atol=1e-2)


def test_too_many_tokens_are_refused(model):
    with pytest.raises(ValueError, match="65 tokens do not fit the context of 64"):
        model(random_ids(1, 65))
    cache = KVCache.empty(model.config, 1, 65, like=model.wte.weight)
    model(random_ids(1, 64), cache=cache)
    cache.advance(torch.tensor([64]), 64)
    with pytest.raises(ValueError, match="65 tokens do not fit"):
        model(random_ids(1, 1), cache=cache)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    model = GPT2(GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=2, dropout=0.5))
    ids = random_ids(2, 8)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


# ------------------------------------------------------------------------------------------------ sizes and start


def test_initialisation_follows_the_paper():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=1000, n_positions=256, n_embd=128, n_layer=8, n_head=4)
    for name, parameter in GPT2(config).named_parameters():
        if name.endswith("bias"):
            assert parameter.eq(0).all()
        elif "ln_" in name:
            assert parameter.eq(1).all()
        else:
            residual = name.endswith("c_proj.weight")
            expected = 0.02 / math.sqrt(16) if residual else 0.02
            # The sample deviation of n normal numbers scatters by 1/sqrt(2n) of itself; 5 of that is no accident.
            assert parameter.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * parameter.numel())), name
            assert abs(parameter.mean().item()) < 5 * expected / math.sqrt(parameter.numel()), name


def test_untrained_loss_is_that_of_a_uniform_guess():
    torch.manual_seed(0)
    model = GPT2(GPT2Config(vocab_size=300, **PRESETS["test"]))
    ids = random_ids(8, 64)
    loss = F.cross_entropy(model.logits(model(ids))[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(300), abs=0.05)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    # From the released checkpoints: 124M, 355M, 774M, 1.5B with 50,257 tokens.
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_released_sizes_have_their_parameter_counts(preset, parameters):
    with torch.device("meta"):
        assert GPT2(GPT2Config(**PRESETS[preset])).n_parameters() == parameters


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="n_embd 30 is not a multiple of n_head 4"):
        GPT2Config(n_embd=30, n_head=4)
