"""Intervals against published and hand-derived values and by simulation, and which statements they allow."""

from functools import cache

import numpy as np
import pytest

from wukong.stats import (
    FEWEST_PROMPTS,
    correlation,
    decisive,
    exact_interval,
    in_words,
    mean_interval,
    prompts_needed,
    rate_interval,
    repeated_n,
    shown,
    top_phrase_share,
)


def outcomes(wins: int, ties: int, losses: int) -> np.ndarray:
    return np.array([1.0] * wins + [0.5] * ties + [0.0] * losses)


def entry(wins: int, ties: int, losses: int) -> dict:
    values = outcomes(wins, ties, losses)
    return {"a": "A", "b": "B", "n": len(values), "wins": wins, "ties": ties, "losses": losses,
            "win_rate": float(values.mean()), "interval": rate_interval(values)}  # fmt: skip


@pytest.mark.parametrize(
    ("hits", "n", "expected"),
    [(81, 263, (0.2527, 0.3676)), (15, 148, (0.0578, 0.1617)), (0, 20, (0.0, 0.1684)), (1, 29, (0.0009, 0.1776))],
)
def test_the_exact_interval_against_its_published_examples(hits, n, expected):
    """Newcombe 1998 (Statistics in Medicine 17:857), table I, the method of Clopper and Pearson."""
    assert exact_interval(hits, n) == pytest.approx(expected, abs=1e-4)
    assert rate_interval(outcomes(hits, 0, n - hits)) == pytest.approx(expected, abs=1e-4)


def test_small_samples_by_hand():
    """n of n: the lowest rate that gives it in 2.5 % of all samples is 0.025^(1/n)."""
    for n in (1, 2, 5, 6, 30):
        low, high = rate_interval(np.ones(n))
        assert (low, high) == (pytest.approx(0.025 ** (1 / n)), 1.0)
        assert rate_interval(np.zeros(n)) == pytest.approx([0.0, 1 - low])
    # Nothing but ties: up to 1 - 0.025^(1/20) of prompts may be won, or lost, for all that 20 ties tell.
    hidden = 1 - 0.025 ** (1 / 20)
    assert rate_interval(np.full(20, 0.5)) == pytest.approx([0.5 - hidden / 2, 0.5 + hidden / 2])
    assert rate_interval(np.array([])) == [0.0, 1.0]


@pytest.mark.parametrize("losses", [0, 1])
def test_no_five_prompts_show_anything_and_six_of_six_do(losses):
    """Two-sided sign test: 2 (1/2)^5 = 6.25 % for 5 of 5, 3.1 % for 6 of 6; 2 x 7 / 64 = 21.9 % for 5 of 6."""
    for ties in (0, 3, 500):
        for wins in range(1, 6):
            interval = rate_interval(outcomes(wins, ties, losses))
            assert interval[0] <= 0.5, (wins, ties)
            assert shown(interval, wins + losses) == 0
            assert "is better" not in in_words(entry(wins, ties, losses))
            assert "is better" not in in_words(entry(losses, ties, wins))
    interval = rate_interval(outcomes(6, 0, 0))
    assert (interval[0] > 0.5, shown(interval, 6)) == (True, 1)
    assert shown(rate_interval(outcomes(0, 0, 6)), 6) == -1


def test_one_win_of_one_shows_nothing():
    won = entry(1, 0, 0)
    assert won["interval"] == pytest.approx([0.025, 1.0])
    assert in_words(won) == (
        "no difference between A and B can be seen with 1 prompt (100 % [3, 100]): 1 decided, and fewer than 6 show "
        "nothing"
    )


def test_pairs_of_one_prompt_are_one_observation():
    """30 right pairs of 5 prompts are five of five, of 6 prompts six of six."""
    assert rate_interval(np.full(5, 6.0), np.full(5, 6)) == pytest.approx([min(0.5, 0.025 ** (1 / 5)), 1.0])
    assert rate_interval(np.full(6, 5.0), np.full(6, 5)) == pytest.approx([0.025 ** (1 / 6), 1.0])
    whole = rate_interval(np.array([10.0] * 8 + [0.0] * 4), np.full(12, 10))  # all or nothing: twelve observations
    assert whole[0] < exact_interval(8, 12)[0] + 1e-6
    assert whole[1] > exact_interval(8, 12)[1] - 1e-6
    wide, narrow = (np.diff(rate_interval(sums, np.full(100, 10)))[0] for sums in
                    (np.repeat([10.0, 0.0], [60, 40]), np.full(100, 6.0) + np.tile([1.0, -1.0], 50)))  # fmt: skip
    assert wide > 2 * narrow
    assert rate_interval(np.array([3.0, 0.0]), np.array([3, 0])) == rate_interval(np.array([3.0]), np.array([3]))


@cache
def of_outcomes(wins: int, losses: int, n: int) -> list[float]:
    return rate_interval(outcomes(wins, n - wins - losses, losses))


@pytest.mark.parametrize("n", [1, 5, 12, 60])
@pytest.mark.parametrize(
    ("won", "lost"), [(0.5, 0.5), (0.95, 0.05), (0.4, 0.4), (0.05, 0.05), (0.3, 0.1), (0.6, 0.1), (0.02, 0.0)]
)
def test_intervals_hold_the_truth_in_95_of_100_samples(n, won, lost):
    """And of equal models at most one in twenty is said to be better or worse."""
    draws = np.random.default_rng(0).multinomial(n, [won, lost, max(0.0, 1 - won - lost)], size=1000)
    truth = 0.5 + (won - lost) / 2
    found = np.array([of_outcomes(int(w), int(k), n) for w, k, _ in draws])
    assert ((found[:, 0] <= truth) & (truth <= found[:, 1])).mean() > 0.935
    if won == lost:
        said = [shown(of_outcomes(int(w), int(k), n), int(w + k)) for w, k, _ in draws]
        assert np.mean(np.abs(said)) < 0.065


@pytest.mark.parametrize(("prompts", "alike"), [(8, 0.0), (8, 0.5), (40, 0.5), (40, 0.9)])
def test_intervals_of_clustered_pairs_hold_the_truth(prompts, alike):
    draw, held, truth = np.random.default_rng(1), [], 0.7
    for _ in range(400):
        rates = draw.beta(truth * (1 / alike - 1), (1 - truth) * (1 / alike - 1), prompts) if alike else truth
        counts = draw.integers(1, 7, prompts)
        low, high = rate_interval(draw.binomial(counts, rates), counts)
        held.append(low <= truth <= high)
    assert np.mean(held) > 0.92


def test_the_interval_of_a_mean_by_hand():
    """1, 2, 3: mean 2, standard error 1 / sqrt(3), t of two degrees of freedom 4.3027."""
    assert mean_interval(np.array([1.0, 2.0, 3.0])) == pytest.approx(
        [2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5], abs=1e-4
    )
    assert mean_interval(np.array([5.0])) is None, "one prompt says nothing of its spread"
    # two prompts of 2 and 4 numbers, means 1 and 2.5: 12 / 6 = 2; residuals 2 - 4 and 10 - 8
    error = (2 * (4 + 4)) ** 0.5 / 6
    assert mean_interval(np.array([2.0, 10.0]), np.array([2, 4])) == pytest.approx(
        [2 - 12.7062 * error, 2 + 12.7062 * error], abs=1e-4
    )


def test_claims_need_an_interval_and_prompts():
    assert shown([0.55, 0.9], FEWEST_PROMPTS) == 1
    assert shown([0.1, 0.45], FEWEST_PROMPTS) == -1
    assert shown([0.5, 0.9], 100) == 0, "at one half is not above it"
    assert shown([0.9, 1.0], FEWEST_PROMPTS - 1) == 0
    assert shown(None, 100) == 0
    assert shown([-2.0, -1.0], 10, than=0) == -1
    assert decisive(np.array([1.0, 0.5, 0.0, 2.0]), np.array([1, 1, 1, 4])) == 2


def test_how_many_prompts_it_takes():
    """Without ties the standard deviation is 1/2: (2.8016 x 0.5 / 0.05)^2 = 784.9, rounded up to two digits."""
    assert prompts_needed(0.5) == 790
    assert prompts_needed(0.5, points=0.1) == 200  # 196.2
    assert prompts_needed(0.05) == 8
    assert prompts_needed(0.001) == FEWEST_PROMPTS


def test_words_say_who_is_better_or_that_nothing_can_be_said():
    assert in_words(entry(63, 0, 37)).startswith("A is better than B: 63 % [53, ")
    assert in_words(entry(10, 0, 90)).startswith("B is better than A: 90 % [")
    line = in_words(entry(52, 0, 48))
    assert line.startswith("no difference between A and B can be seen with 100 prompts (52 % [42, 62])")
    assert line.endswith("; about 790 would show 5 points")
    assert in_words(entry(500, 0, 500)).endswith("; one of 5 points would probably have shown")
    assert in_words(entry(0, 20, 0)).endswith(": they are tied on all of them")
    assert in_words(entry(4, 16, 0)).endswith(": 4 decided, and fewer than 6 show nothing")


def test_repetition_within_and_between_responses():
    once, thrice = [1, 2, 3, 4, 5], [1, 2, 1, 2, 1, 2]
    assert repeated_n([once], 2) == 0
    assert repeated_n([thrice], 2) == pytest.approx(3 / 5)  # 12 21 12 21 12: three of five were there before
    assert repeated_n([once, thrice, [7]], 2) == pytest.approx(1 / 5)
    assert repeated_n([], 2) == 0
    assert top_phrase_share([[1, 2, 3], [0, 1, 2], [2, 1], [9]], 2) == 0.5  # "1 2"; a response counts once
    assert top_phrase_share([[1, 2, 1, 2], [3]], 2) == 0.5
    assert top_phrase_share([[1]], 2) == 0


def test_correlation():
    """Deviations -1 0 1 and -1 1 0: 1 / sqrt(2 x 2)."""
    assert correlation([1, 2, 3], [0, 2, 1]) == pytest.approx(0.5)
    assert correlation([1, 2, 3], [-2, -4, -6]) == pytest.approx(-1)
    assert correlation([1, 1, 1], [0, 2, 1]) == 0
