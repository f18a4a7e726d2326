"""Win rates, ratings, and the sentences about them, against hand-derived values."""

import math

import numpy as np
import pytest

from wukong.stats import prompts_needed
from wukong.studies.win_rates import compared, ratings, with_people


def test_prompts_that_nobody_judged_do_not_count():
    outcome = np.array([1.0, np.nan, 0.0, 1.0, 0.75])
    lengths = {"A": np.array([9, 1, 9, 9, 9]), "B": np.array([9, 99, 9, 9, 9])}
    found = compared({("A", "B"): outcome, ("A", "C"): np.full(5, np.nan)}, lengths)
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
    found = with_people(judge, people)
    assert (found["value"], found["judgments"]) == (pytest.approx(1.5 / 3), 3)
    assert with_people({("A", "B"): np.full(5, np.nan)}, people) is None


def test_a_difference_that_is_to_be_seen_with_the_number_said_is_usually_seen():
    """Power by simulation: of win rates of 55 %, four in five have an interval above one half."""
    generator, n = np.random.default_rng(0), prompts_needed(math.sqrt(0.55 * 0.45))
    rates = generator.binomial(n, 0.55, size=4000) / n
    seen = rates - 1.96 * np.sqrt(rates * (1 - rates) / n) > 0.5
    assert seen.mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("games", [1, 3, 50])
def test_ratings_of_a_few_games_that_are_all_won_are_not_certain(games):
    """With the tie that is given beforehand A has p = (n + 1/2) / (n + 1) of n + 1 games; log odds then have the
    standard error 1 / sqrt((n + 1) p (1 - p)), and each rating moves by half of their difference."""
    found = ratings(["A", "B"], {("A", "B"): np.ones(games)}, seed=0)
    p = (games + 0.5) / (games + 1)
    reach = 1.959964 * 400 / math.log(10) / math.sqrt((games + 1) * p * (1 - p)) / 2
    for one in found.values():
        assert one["interval"] == pytest.approx([one["rating"] - reach, one["rating"] + reach], abs=0.1)
    if games < 6:
        assert found["A"]["interval"][0] < found["B"]["interval"][1], "so few show nothing"
