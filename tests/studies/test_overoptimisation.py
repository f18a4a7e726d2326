"""Fits of Gao's forms and the estimate of best-of-n, against sums made by hand and by enumeration."""

import math
from itertools import combinations

import numpy as np
import pytest

from wukong.studies.overoptimisation import Trajectory, best_of_n_weights, curve, fit, fitted, peak

D = np.array([0.5, 1.0, 1.5, 2.0, 3.0])


def test_the_forms_by_hand():
    # best-of-n at d = 2: 2 (3 - 0.5 * 2) = 4; RL at d = e: e (3 - 0.5 * 1) = 2.5 e; both are 0 at 0.
    assert curve(np.array([0.0, 2.0]), 3.0, 0.5, "best-of-n") == pytest.approx([0, 4])
    assert curve(np.array([0.0, math.e]), 3.0, 0.5, "rl") == pytest.approx([0, 2.5 * math.e])


@pytest.mark.parametrize("form", ["best-of-n", "rl"])
def test_a_fit_finds_the_form_that_made_the_points(form):
    assert fitted(D, curve(D, 1.7, 0.6, form), form) == pytest.approx((1.7, 0.6))
    assert fitted(D, curve(D, -0.3, -0.2, form), form) == pytest.approx((-0.3, -0.2))


@pytest.mark.parametrize("form", ["best-of-n", "rl"])
@pytest.mark.parametrize(("alpha", "beta"), [(1.7, 0.6), (0.4, 0.5), (2.0, 1.0)])
def test_the_peak_is_where_the_curve_is_highest(form, alpha, beta):
    fine = np.linspace(0, 12, 120_001)
    highest = fine[curve(fine, alpha, beta, form).argmax()]
    assert peak(alpha, beta, form) == pytest.approx(highest**2, rel=1e-3)


@pytest.mark.parametrize("form", ["best-of-n", "rl"])
def test_what_never_falls_has_no_peak(form):
    assert peak(1.0, 0.0, form) == math.inf
    assert peak(1.0, -0.1, form) == math.inf
    assert peak(-1.0, 0.5, form) < 1e-2  # it falls (all but) from the beginning


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_best_of_n_is_the_mean_over_all_choices_of_n(n):
    draw = np.random.default_rng(0)
    proxy, gold = draw.normal(size=(2, 4, 5))  # (P, N)
    ranks = proxy.argsort(1).argsort(1)
    expected = [
        np.mean([own[max(chosen, key=lambda i, p=p: p[i])] for chosen in combinations(range(5), n)])
        for p, own in zip(proxy, gold, strict=True)
    ]
    weights = best_of_n_weights(ranks, n)
    assert weights.sum(1) == pytest.approx(1)
    assert (weights * gold).sum(1) == pytest.approx(expected)
    with pytest.raises(ValueError, match="the best of 6 of 5"):
        best_of_n_weights(ranks, 6)


def trajectories(runs: int, noise: float, prompts: int = 200) -> tuple[list[Trajectory], np.ndarray]:
    """Runs along the RL form with alpha 1.7 and beta 0.6, seen through prompts that vary, and the reference's gold."""
    draw = np.random.default_rng(1)
    easy = draw.normal(5, 1, prompts)
    made = []
    for _ in range(runs):
        kl = np.repeat((D**2)[:, None], prompts, 1) + draw.normal(0, noise, (len(D), prompts))
        gold = easy + curve(D, 1.7, 0.6, "rl")[:, None] + draw.normal(0, noise, (len(D), prompts))
        made.append(Trajectory(kl, gold, gold))
    return made, easy


def test_intervals_hold_the_truth_and_shrink_with_the_noise():
    noisy, clear = (fit(*trajectories(3, noise), "rl", seed=0) for noise in (0.5, 0.05))
    for found in (noisy, clear):
        for name, truth in (("alpha", 1.7), ("beta", 0.6), ("peak_kl", math.exp(2 * (1.7 / 0.6 - 1)))):
            low, high = found[f"{name}_interval"]
            assert low <= truth <= high, name
            assert low <= found[name] <= high
    width = [found["beta_interval"][1] - found["beta_interval"][0] for found in (noisy, clear)]
    assert width[1] < width[0] / 4
    assert clear["r2"] > 0.99
    assert clear["points"] == 15


def test_runs_that_differ_widen_the_interval():
    alike, reference = trajectories(3, 0.05)
    other = [Trajectory(one.kl, one.gold + shift * D[:, None], one.proxy)
             for one, shift in zip(alike, (-1, 0, 1), strict=True)]  # fmt: skip
    width = [np.diff(fit(of, reference, "rl", seed=0)["alpha_interval"])[0] for of in (alike, other)]
    assert width[1] > 3 * width[0]


def test_two_points_are_not_fitted():
    one, reference = trajectories(1, 0.05)
    short = Trajectory(one[0].kl[:2], one[0].gold[:2], one[0].proxy[:2])
    assert fit([short], reference, "rl", seed=0) is None
