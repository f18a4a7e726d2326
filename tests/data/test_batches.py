"""Micro-batches within their budget, and packed rows that compute what separate rows compute."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wukong.data.batches import Example, by_length, pack, pad
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.logprobs import token_logprobs

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


# ------------------------------------------------------------------------------------------------------- padding


def test_rows_are_padded_on_the_right():
    ids, lengths = pad([[5, 6, 7], [8], [9, 10]])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0], [9, 10, 0]]
    assert lengths.tolist() == [3, 1, 2]
    assert ids.dtype == lengths.dtype == torch.int64


@given(LENGTHS, st.integers(1, 400))
def test_micro_batches_hold_every_index_once_within_the_budget(lengths, max_tokens):
    batches = list(by_length(lengths, max_tokens))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= max_tokens
    for batch, following in pairwise(batches):
        assert min(lengths[i] for i in batch) >= max(lengths[i] for i in following), "like lengths share a batch"
        longest = max(lengths[i] for i in batch)
        assert (len(batch) + 1) * longest > max_tokens, "no batch is smaller than it must be"


# ------------------------------------------------------------------------------------------------------- packing


def examples_of(lengths: list[int], seed: int = 0) -> list[Example]:
    """Tokens from 1 on, so that none looks like padding; responses at random places, first tokens included."""
    generator = np.random.default_rng(seed)
    return [Example(generator.integers(1, 50, n).tolist(), (generator.random(n) < 0.5).tolist()) for n in lengths]


def unpack(packed) -> list[tuple[list[int], list[bool]]]:
    """Every segment of every row, by a plain loop."""
    found = []
    for row in range(len(packed.input_ids)):
        segments = packed.segments[row].tolist()
        for number in sorted(set(segments) - {0}):
            places = [t for t, segment in enumerate(segments) if segment == number]
            assert places == list(range(places[0], places[-1] + 1)), "a segment stands in one piece"
            ids, mask = packed.input_ids[row, places].tolist(), packed.response_mask[row, places].tolist()
            found.append((ids, mask))
    return found


@given(LENGTHS, st.integers(0, 60))
def test_packing_keeps_every_token_of_every_example(lengths, spare):
    row_tokens = max(lengths) + spare
    examples = examples_of(lengths)
    packed = pack(examples, row_tokens)
    # The first token of an example is never counted: nothing of its own stands before it.
    expected = [(e.ids, [False, *e.response[1:]]) for e in examples]
    assert sorted(unpack(packed)) == sorted(expected)
    padding = packed.segments == 0
    assert packed.input_ids[padding].eq(0).all()
    assert not packed.response_mask[padding].any()
    rows, width = packed.input_ids.shape
    assert packed.segments.shape == packed.response_mask.shape == (rows, width)
    assert width <= row_tokens
    assert (packed.segments != 0).any(0).all(), "no column is all padding"
    # First fit: at most one row is not more than half full, so twice the tokens always suffice.
    assert rows <= math.ceil(2 * sum(lengths) / row_tokens)


def test_a_row_never_begins_with_a_counted_token_and_neither_does_a_second_example():
    packed = pack([Example([1, 2], [True, True]), Example([3, 4, 5], [True, False, True])], 8)
    assert packed.input_ids.tolist() == [[3, 4, 5, 1, 2]]
    assert packed.response_mask.tolist() == [[False, False, True, False, True]]


def test_packed_rows_are_nearly_full():
    lengths = np.random.default_rng(0).lognormal(4, 0.7, 1000).clip(5, 250).astype(int).tolist()
    packed = pack(examples_of(lengths), 256)
    assert (packed.segments != 0).float().mean() > 0.97


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="an example of 9 tokens does not fit a row of 8"):
        pack(examples_of([3, 9]), 8)


def response_logprobs(model, ids, mask, segments=None):
    counted = mask[:, 1:]
    hidden = model(ids, segments=segments)[:, :-1][counted]
    return token_logprobs(hidden, model.wte.weight, ids[:, 1:][counted])[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_and_gradient_of_packed_rows_equal_those_of_separate_rows(seed):
    torch.manual_seed(seed)
    model = GPT2(GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2))
    examples = examples_of([20, 3, 9, 14, 1, 7, 32, 5], seed)
    packed = pack(examples, 32)
    assert len(packed.input_ids) == 3, "several examples should share a row"
    together = -response_logprobs(model, packed.input_ids, packed.response_mask, packed.segments).sum()
    together.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    alone = 0.0
    for example in examples:
        loss = -response_logprobs(model, torch.tensor([example.ids]), torch.tensor([example.response])).sum()
        loss.backward()
        alone += loss.item()
    assert together.item() == pytest.approx(alone, rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-4)
