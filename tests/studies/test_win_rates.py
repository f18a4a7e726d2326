"""Win rates, ratings, and the sentences about them, against hand-derived values."""

import math

import numpy as np
import pytest

from wukong.studies.win_rates import compared, in_words, prompts_needed, ratings, with_people


def entry(wins: int, ties: int, losses: int) -> dict:
    n = wins + ties + losses
    outcome = np.array([1.0] * wins + [0.5] * ties + [0.0] * losses)
    return compared({("A", "B"): outcome}, {"A": np.zeros(n), "B": np.zeros(n)}, seed=0)[0]


def test_prompts_that_nobody_judged_do_not_count():
    outcome = np.array([1.0, np.nan, 0.0, 1.0, 0.75])
    lengths = {"A": np.array([9, 1, 9, 9, 9]), "B": np.array([9, 99, 9, 9, 9])}
    found = compared({("A", "B"): outcome, ("A", "C"): np.full(5, np.nan)}, lengths, seed=0)
    assert len(found) == 1
    assert (found[0]["n"], found[0]["wins"], found[0]["ties"], found[0]["losses"]) == (4, 3, 0, 1)
    assert found[0]["win_rate"] == pytest.approx(2.75 / 4)


def test_two_models_have_the_odds_as_ratings():
    """30 wins of 40 and the tie given beforehand: odds 30.5 to 10.5, so 400 log10(30.5 / 10.5) points apart."""
    found = ratings(["A", "B"], {("A", "B"): np.array([1.0] * 30 + [0.0] * 10)}, seed=0)
    assert found["A"]["rating"] - found["B"]["rating"] == pytest.approx(400 * math.log10(30.5 / 10.5), abs=1e-3)
    assert found["A"]["rating"] + found["B"]["rating"] == pytest.approx(2000)
    low, high = found["A"]["interval"]
    assert 1000 < low < found["A"]["rating"] < high


def test_ratings_follow_the_strengths_that_made_the_games_and_their_intervals_hold_them():
    """Three models with odds 4 : 2 : 1; 2000 prompts."""
    strengths, generator = {"A": 4.0, "B": 2.0, "C": 1.0}, np.random.default_rng(0)
    outcomes = {
        (a, b): (generator.random(2000) < strengths[a] / (strengths[a] + strengths[b])).astype(float)
        for a, b in (("A", "B"), ("A", "C"), ("B", "C"))
    }
    found = ratings(["A", "B", "C"], outcomes, seed=0)
    step = 400 * math.log10(2)
    for name, expected in (("A", 1000 + step), ("B", 1000.0), ("C", 1000 - step)):
        low, high = found[name]["interval"]
        assert low < expected < high
        assert high - low < 40


def test_a_model_that_always_wins_has_a_finite_rating():
    found = ratings(["A", "B"], {("A", "B"): np.ones(50)}, seed=0)
    assert found["A"]["rating"] - found["B"]["rating"] == pytest.approx(400 * math.log10(50.5 / 0.5), abs=1e-3)


def test_agreement_with_people_counts_clear_human_verdicts_only():
    people = {("A", "B"): np.array([1.0, 0.0, 0.5, np.nan, 1.0])}
    judge = {("A", "B"): np.array([1.0, 1.0, 1.0, 1.0, 0.5])}
    found = with_people(judge, people, seed=0)
    assert (found["value"], found["judgments"]) == (pytest.approx(1.5 / 3), 3)
    assert with_people({("A", "B"): np.full(5, np.nan)}, people, seed=0) is None


def test_how_many_prompts_it_takes():
    """Without ties the standard deviation is 1/2: (2.8016 x 0.5 / 0.05)^2 = 784.9, rounded up to two digits."""
    assert prompts_needed(0.5) == 790
    assert prompts_needed(0.5, points=0.1) == 200  # 196.2
    assert prompts_needed(0.05) == 8


def test_a_difference_that_is_to_be_seen_with_the_number_said_is_usually_seen():
    """Power by simulation: of win rates of 55 %, four in five have an interval above one half."""
    generator, n = np.random.default_rng(0), prompts_needed(math.sqrt(0.55 * 0.45))
    rates = generator.binomial(n, 0.55, size=4000) / n
    seen = rates - 1.96 * np.sqrt(rates * (1 - rates) / n) > 0.5
    assert seen.mean() == pytest.approx(0.8, abs=0.02)


def test_words_say_who_is_better_or_that_nothing_can_be_said():
    assert in_words(entry(63, 0, 37)).startswith("A is better than B: 63 % [53, ")
    assert in_words(entry(10, 0, 90)).startswith("B is better than A: 90 % [")
    line = in_words(entry(52, 0, 48))
    assert line.startswith("no difference between A and B can be seen with 100 prompts (52 % [42, 62])")
    assert line.endswith("; about 790 would show 5 points")
    assert in_words(entry(500, 0, 500)).endswith("; about 790 would show 5 points") is False
    assert in_words(entry(500, 0, 500)).endswith("; one of 5 points would probably have shown")
    assert in_words(entry(0, 20, 0)).endswith(": they are tied on all of them")
