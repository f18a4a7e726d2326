"""How often a stage goes through its data where nobody said."""

import pytest

from wukong.stages import reward, sft
from wukong.stages.direct import train as direct
from wukong.training.advice import warn_of_few_steps
from wukong.training.passes import Passes, Usual

USUAL = Usual(epochs=1.0, batch_size=16, lr=5e-5, most_epochs=6.0, small_lr=5e-4)


@pytest.mark.parametrize(
    ("records", "epochs", "batch_size", "steps"),
    [
        (53, 6, 8, 40),  # ceil(150 x 8 / 53) = 23 epochs would be 150 steps: 6 are the most
        (200, 6, 8, 150),
        (400, 3, 8, 150),
        (1200, 1, 8, 150),
        (2000, 1, 13, 154),  # 2000 / 150
        (2400, 1, 16, 150),
        (100_000, 1, 16, 6250),
    ],
)
def test_few_records_are_passed_more_often_in_smaller_batches(records, epochs, batch_size, steps) -> None:
    found = USUAL.passes(records, 192, None, None, None)
    assert (found.epochs, found.batch_size, found.steps(records)) == (epochs, batch_size, steps)


@pytest.mark.parametrize("usual", [sft.USUAL, reward.USUAL, direct.USUAL])
def test_much_data_is_passed_as_ever(usual: Usual) -> None:
    assert usual.passes(10_000, 192, None, None, None) == Passes(usual.epochs, usual.batch_size, usual.lr)


@pytest.mark.parametrize("width", [32, 192, 384, 768, 1600])
def test_the_learning_rate_of_small_data_lies_between_the_kitchens_and_gpt2s(width: int) -> None:
    # half-way between 192 and 768 on a logarithmic scale: the geometric mean of 5e-4 and 5e-5
    expected = {32: 5e-4, 192: 5e-4, 384: (5e-4 * 5e-5) ** 0.5, 768: 5e-5, 1600: 5e-5}[width]
    assert USUAL.passes(53, width, None, None, None).lr == pytest.approx(expected)


def test_what_was_given_stays() -> None:
    assert USUAL.passes(53, 192, 1.0, 16, 1e-5) == Passes(1.0, 16, 1e-5)
    assert USUAL.passes(53, 192, 2.0, None, None).epochs == 2
    assert USUAL.passes(53, 192, None, 16, None) == Passes(6.0, 16, 5e-4)


def test_no_batch_is_larger_than_all_passes() -> None:
    assert USUAL.passes(30, 192, 2.0, 99_999_999, None).batch_size == 60
    assert USUAL.passes(30, 192, None, 99_999_999, None) == Passes(6.0, 180, 5e-4)
    assert USUAL.passes(1, 192, 1.0, 99_999_999, None).batch_size == 2  # KTO compares the votes of a batch
    assert USUAL.passes(30, 192, 1e300, 16, None).batch_size == 16


def test_a_handful_of_steps_is_warned_of(capsys: pytest.CaptureFixture) -> None:
    warn_of_few_steps("reward", 30, "label more")
    assert capsys.readouterr().err == ""
    warn_of_few_steps("reward", 29, "label more")
    warn_of_few_steps("dpo", 1, "label more")
    said = capsys.readouterr().err
    assert "reward: warning: 29 optimiser steps may teach the model next to nothing" in said
    assert "dpo: warning: 1 optimiser step may teach the model next to nothing" in said
    assert "label more" in said
