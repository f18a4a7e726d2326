"""Every loss, advantage and KL formula against a plain loop (tests/reference/losses.py) and numbers derived by hand.

Each loss is tested for its value, for the sign of its gradient and for what masked tokens may do: nothing.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.numerics import close, gradient, randn
from tests.reference import losses as reference
from wukong.objectives import (
    adapted_kl_coef,
    best_of_groups,
    best_of_n_kl,
    dpo_loss,
    equal_groups,
    gae,
    group_advantages,
    grouped_mean,
    ipo_loss,
    kl_estimate,
    kto_baseline,
    kto_loss,
    leave_one_out_advantages,
    loss_average,
    masked_mean,
    outside_clip_range,
    pairwise_loss,
    policy_gradient_loss,
    ppo_policy_loss,
    ppo_value_loss,
    sequence_rewards,
    token_rewards,
    truncated_importance_weights,
    whiten,
)


def prefix_mask(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


# ------------------------------------------------------------------------------------------- masked statistics


def test_masked_mean_counts_true_positions_only():
    values, mask = torch.tensor([[1.0, 5.0], [9.0, math.nan]]), torch.tensor([[True, True], [True, False]])
    close(masked_mean(values, mask), 5.0)  # (1 + 5 + 9) / 3; the masked NaN does not count
    random, some = randn(4, 6), randn(4, 6, seed=1) > 0
    close(masked_mean(random, some), reference.masked_mean(random.numpy(), some.numpy()))


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="the mask is empty"):
        masked_mean(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool))


def test_whitening_uses_the_biased_variance():
    # Values 1, 3: mean 2, biased variance ((-1)^2 + 1^2)/2 = 1 (the unbiased one is 2). The 100 is masked.
    values, mask = torch.tensor([[1.0, 3.0, 100.0]]), torch.tensor([[True, True, False]])
    close(whiten(values, mask), [[-1.0, 1.0, 0.0]])
    close(whiten(values, mask, shift_mean=False), [[1.0, 3.0, 0.0]])
    # 0, 4: deviation 2 -> -1, 1; keeping the mean 2 -> 1, 3.
    close(whiten(torch.tensor([[0.0, 4.0]]), torch.ones(1, 2, dtype=torch.bool), shift_mean=False), [[1.0, 3.0]])


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_equals_a_plain_loop(shift_mean):
    values, mask = 3 * randn(5, 7) + 2, prefix_mask([7, 1, 3, 6, 2], 7)
    expected = reference.whiten(values.numpy(), mask.numpy(), shift_mean)
    close(whiten(values, mask, shift_mean), expected)
    close(whiten(torch.where(mask, values, 1e6), mask, shift_mean), expected)  # masked tokens do nothing


def test_equal_values_whiten_to_zero_not_to_infinity():
    close(whiten(torch.full((1, 3), 7.0), torch.ones(1, 3, dtype=torch.bool)), [[0.0, 0.0, 0.0]])


# ---------------------------------------------------------------------------------------------------------- KL


def test_kl_estimates_by_hand():
    # pi = 1/2, pi_ref = 1/4: d = log 2 = 0.693147; k1 = d, k2 = d^2/2 = 0.240227, k3 = 1/2 - 1 + d = 0.193147.
    # pi = 1/4, pi_ref = 1/2: d = -0.693147; k2 = 0.240227, k3 = 2 - 1 - 0.693147 = 0.306853.
    logprobs, reference_logprobs = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log()
    close(kl_estimate(logprobs, reference_logprobs, "k1"), [0.693147, -0.693147])
    close(kl_estimate(logprobs, reference_logprobs, "k2"), [0.240227, 0.240227])
    close(kl_estimate(logprobs, reference_logprobs, "k3"), [0.193147, 0.306853])


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_estimates_equal_a_plain_loop(kind):
    a, b = -randn(3, 4).abs(), -randn(3, 4, seed=1).abs()
    expected = [
        [reference.kl_estimate(x, y, kind) for x, y in zip(*rows, strict=True)]
        for rows in zip(a.tolist(), b.tolist(), strict=True)
    ]
    close(kl_estimate(a, b, kind), expected)
    assert kind == "k1" or kl_estimate(a, b, kind).ge(0).all()


def test_k1_and_k3_have_the_true_kl_as_their_mean_and_k2_has_not():
    policy, other = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    true = float((policy * (policy / other).log()).sum())
    means = {kind: float((policy * kl_estimate(policy.log(), other.log(), kind)).sum()) for kind in ("k1", "k2", "k3")}
    assert means["k1"] == pytest.approx(true, abs=1e-6)
    assert means["k3"] == pytest.approx(true, abs=1e-6)
    assert abs(means["k2"] - true) > 0.01


def test_an_unknown_kl_estimator_is_refused():
    with pytest.raises(ValueError, match="unknown KL estimator 'k4'"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.15),  # on target: unchanged
        (6.6, 0.15 * (1 + 0.1 * 512 / 10_000)),  # 10 % above: 0.150768
        (60.0, 0.15 * (1 + 0.2 * 512 / 10_000)),  # far above: the error is clipped at 0.2: 0.151536
        (0.0, 0.15 * (1 - 0.2 * 512 / 10_000)),  # far below: clipped at -0.2: 0.148464
    ],
)
def test_the_adaptive_controller_moves_beta_towards_the_target(kl, expected):
    assert adapted_kl_coef(0.15, kl, target=6.0, episodes=512, horizon=10_000) == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------------------------------------- reward model


def test_pairwise_loss_by_hand():
    # -log sigmoid(0) = log 2; -log sigmoid(2) = log(1 + e^-2) = 0.126928; of -2: 2.126928.
    close(pairwise_loss(torch.tensor([0.0, 2.0, -2.0])), [0.693147, 0.126928, 2.126928])
    # Ties want probability 1/2: at margin 0 log 2; at +-2 (0.126928 + 2.126928)/2 = 1.126928.
    margins = torch.tensor([0.0, 2.0, -2.0, 2.0])
    ties = torch.tensor([True, True, True, False])
    close(pairwise_loss(margins, ties), [0.693147, 1.126928, 1.126928, 0.126928])
    # A margin of 2 wanted: r_chosen - r_rejected = 2 is only just even. Ties take no margin.
    close(pairwise_loss(margins, ties, torch.full((4,), 2.0)), [0.693147, 1.126928, 1.126928, 0.693147])


def test_pairwise_loss_equals_a_plain_loop():
    margins, ties, wanted = 3 * randn(20), torch.arange(20) % 3 == 0, randn(20, seed=1).abs()
    rows = list(zip(margins.tolist(), ties.tolist(), wanted.tolist(), strict=True))
    close(pairwise_loss(margins, ties, wanted), [reference.pairwise_loss(*row) for row in rows])
    close(pairwise_loss(margins), [reference.pairwise_loss(margin) for margin, _, _ in rows])


def test_pairwise_gradient_pushes_the_chosen_up_and_ties_together():
    margins = torch.tensor([-3.0, 0.0, 3.0, 3.0, -3.0]).requires_grad_()
    ties = torch.tensor([False, False, False, True, True])
    found = gradient(pairwise_loss(margins, ties), margins)
    # d/dx -log sigmoid(x) = sigmoid(x) - 1; of a tie: sigmoid(x) - 1/2.
    close(found, [-0.952574, -0.5, -0.047426, 0.452574, -0.452574])


def test_pairwise_loss_stays_finite_for_extreme_margins():
    margins = torch.tensor([-1e4, 1e4]).requires_grad_()
    losses = pairwise_loss(margins)
    close(losses, [1e4, 0.0])
    assert gradient(losses, margins).isfinite().all()


def test_pairs_of_one_ranking_weigh_as_one():
    # Group 7: (1 + 2 + 3)/3 = 2; group 3: 10. Mean over groups: 6; a mean over pairs would be 4.
    losses = torch.tensor([1.0, 10.0, 2.0, 3.0]).requires_grad_()
    groups = torch.tensor([7, 3, 7, 7])
    close(grouped_mean(losses, groups), 6.0)
    close(gradient(grouped_mean(losses, groups), losses), [1 / 6, 1 / 2, 1 / 6, 1 / 6])
    random, members = randn(12), torch.arange(12) ** 2 % 5
    close(grouped_mean(random, members), reference.grouped_mean(random.tolist(), members.tolist()))


# ---------------------------------------------------------------------------------------------------------- PPO


def test_the_score_is_added_at_the_last_real_token():
    mask = prefix_mask([1, 3, 2], 3)
    kl = torch.tensor([[1.0, 9.0, 9.0], [1.0, 2.0, -3.0], [0.5, 0.0, 9.0]])
    rewards = token_rewards(torch.tensor([10.0, 20.0, -5.0]), kl, mask, kl_coef=0.1)
    # Row 1: -0.1 x 1 + 10 at index 0. Row 2: the score at index 2, on top of +0.3. Row 3: at index 1. Masked: 0.
    close(rewards, [[9.9, 0.0, 0.0], [-0.1, -0.2, 20.3], [-0.05, -5.0, 0.0]])


def test_token_rewards_equal_a_plain_loop():
    scores, kl, mask = randn(4), randn(4, 6, seed=1), prefix_mask([6, 1, 4, 2], 6)
    expected = reference.token_rewards(scores.numpy(), kl.numpy(), mask.numpy(), 0.3)
    close(token_rewards(scores, kl, mask, 0.3), expected)
    close(token_rewards(scores, torch.where(mask, kl, math.nan), mask, 0.3), expected)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([False, False, False], "a response without a token"),
        ([True, False, True], "a gap or starts late"),
        ([False, True, True], "a gap or starts late"),
    ],
)
def test_a_mask_that_would_misplace_the_score_is_refused(row, message):
    with pytest.raises(ValueError, match=message):
        token_rewards(torch.ones(1), torch.zeros(1, 3), torch.tensor([row]), 0.1)


def test_gae_by_hand():
    # One episode of two tokens, gamma 0.5, lambda 0.5; V after the last token is 0.
    # delta_1 = 2 + 0 - 1 = 1; delta_0 = 1 + 0.5 x 1 - 3 = -1.5; A_1 = 1, A_0 = -1.5 + 0.25 x 1 = -1.25.
    rewards, values = torch.tensor([[1.0, 2.0, 50.0]]), torch.tensor([[3.0, 1.0, 70.0]])
    advantages, returns = gae(rewards, values, prefix_mask([2], 3), gamma=0.5, lam=0.5)
    close(advantages, [[-1.25, 1.0, 0.0]])
    close(returns, [[1.75, 2.0, 0.0]])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_gae_equals_a_plain_loop(gamma, lam):
    rewards, values, mask = randn(5, 8), randn(5, 8, seed=1), prefix_mask([8, 1, 5, 3, 7], 8)
    expected = reference.gae(rewards.numpy(), values.numpy(), mask.numpy(), gamma, lam)
    for found in (
        gae(rewards, values, mask, gamma, lam),
        gae(torch.where(mask, rewards, math.nan), torch.where(mask, values, math.nan), mask, gamma, lam),
    ):
        close(found[0], expected[0])
        close(found[1], expected[1])


def test_with_lambda_1_and_gamma_1_the_advantage_is_what_is_still_to_come_less_the_value():
    rewards, values, mask = randn(3, 5), randn(3, 5, seed=1), prefix_mask([5, 2, 4], 5)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_come = torch.where(mask, rewards, 0).flip(1).cumsum(1).flip(1)
    close(advantages, torch.where(mask, to_come - values, 0))
    close(returns, torch.where(mask, to_come, 0))


def test_with_lambda_0_the_advantage_is_the_td_error():
    rewards, values, mask = randn(3, 5), randn(3, 5, seed=1), prefix_mask([5, 2, 4], 5)
    advantages, _ = gae(rewards, values, mask, gamma=0.9, lam=0.0)
    inside = torch.where(mask, values, 0)
    following = torch.cat([inside[:, 1:], torch.zeros(3, 1)], dim=1)
    close(advantages, torch.where(mask, rewards + 0.9 * following - values, 0))


def test_ppo_policy_loss_by_hand():
    # Ratios 1.5, 0.5 and 1 with clip 0.2, each with a good (A = 2) and a bad (A = -2) action;
    # loss = max(-A r, -A clip(r)).
    ratio = torch.tensor([1.5, 0.5, 1.0, 1.5, 0.5, 1.0])
    advantages = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0, -2.0])
    logprobs = ratio.log().requires_grad_()
    found = ppo_policy_loss(logprobs, torch.zeros(6), advantages, 0.2)
    close(found, [-2.4, -1.0, -2.0, 3.0, 1.6, 2.0])
    # d(-A r)/dlogp = -A r where the unclipped term is the larger, 0 where clipping has taken the gradient away: a
    # good action is made likelier until 1.2, a bad one less likely until 0.8.
    close(gradient(found, logprobs), [0.0, -1.0, -2.0, 3.0, 0.0, 2.0])


def test_ppo_policy_loss_equals_a_plain_loop():
    logprobs, old, advantages = -randn(40).abs(), -randn(40, seed=1).abs(), randn(40, seed=2)
    rows = zip(logprobs.tolist(), old.tolist(), advantages.tolist(), strict=True)
    close(ppo_policy_loss(logprobs, old, advantages, 0.2), [reference.ppo_policy_loss(*row, 0.2) for row in rows])
    rows = zip(logprobs.tolist(), old.tolist(), advantages.tolist(), strict=True)
    expected = [reference.ppo_policy_loss(*row, 0.2, 0.5) for row in rows]
    close(ppo_policy_loss(logprobs, old, advantages, 0.2, 0.5), expected)


def test_a_higher_upper_clip_range_leaves_a_good_action_its_gradient_for_longer():
    # Ratios 1.25, 1.35 and 0.75 with eps 0.2 and eps_high 0.3. A good action (A = 2) is clipped at 1.3, not at 1.2; a
    # bad one (A = -2) still at 0.8.
    ratio = torch.tensor([1.25, 1.35, 0.75, 1.25, 0.75])
    advantages = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0])
    logprobs = ratio.log().requires_grad_()
    found = ppo_policy_loss(logprobs, torch.zeros(5), advantages, 0.2, 0.3)
    close(found, [-2.5, -2.6, -1.5, 2.5, 1.6])
    close(gradient(found, logprobs), [-2.5, 0.0, -1.5, 2.5, 0.0])


def test_a_ratio_is_outside_the_clip_range_below_and_above():
    ratio = torch.tensor([[0.7, 0.81], [1.25, 1.35]])
    assert outside_clip_range(ratio, 0.2).tolist() == [[True, False], [True, True]]
    assert outside_clip_range(ratio, 0.2, 0.3).tolist() == [[True, False], [False, True]]


# ------------------------------------------------------------------------------------------- the sampler's mismatch


def test_importance_weights_are_capped_probability_ratios_without_gradient():
    # 0.5/0.25 = 2, capped at 1.5; 0.2/0.4 = 0.5; 0.3/0.3 = 1.
    logprobs = torch.tensor([0.5, 0.2, 0.3]).log().requires_grad_()
    found = truncated_importance_weights(logprobs, torch.tensor([0.25, 0.4, 0.3]).log(), 1.5)
    close(found, [1.5, 0.5, 1.0])
    assert not found.requires_grad
    with pytest.raises(ValueError, match="sampler_logprobs has shape"):
        truncated_importance_weights(logprobs, torch.zeros(2), 2.0)


def test_weighted_gradients_of_another_samplers_draws_are_those_of_the_policys_own():
    """The expectation over 4 actions, written out: sum_a q(a) w(a) grad(-A log pi) with w = pi/q is the policy gradient
    sum_a pi(a) grad(-A log pi); without weights it is another. With the cap no weight exceeds it."""
    logits, advantages = randn(4).requires_grad_(), randn(4, seed=1)
    sampler = (logits.detach() + randn(4, seed=2)).softmax(0)

    def expected(probabilities: Tensor, weights: Tensor) -> Tensor:
        loss = (probabilities * weights * policy_gradient_loss(logits.log_softmax(0), advantages)).sum()
        return torch.autograd.grad(loss, logits)[0]

    own = logits.detach().softmax(0)
    weights = truncated_importance_weights(own.log(), sampler.log(), 1e9)
    close(expected(sampler, weights), expected(own, torch.ones(4)))
    assert (expected(sampler, torch.ones(4)) - expected(own, torch.ones(4))).abs().max() > 0.05  # the test can fail
    assert truncated_importance_weights(own.log(), sampler.log(), 1.1).max() <= 1.1 < weights.max()


def test_groups_are_equal_if_all_their_rewards_are_up_to_rounding():
    rewards = torch.tensor([1.0, 1.0, 0.0, 1.0, -2.0, -2.0000002, 5.0, 5.1])
    assert equal_groups(rewards, 2).tolist() == [True, False, True, False]
    assert equal_groups(rewards, 4).tolist() == [False, False]
    with pytest.raises(ValueError, match="do not form groups of 3"):
        equal_groups(rewards, 3)


def test_at_ratio_1_the_policy_loss_is_the_policy_gradient():
    logprobs, advantages = -randn(10).abs(), randn(10, seed=1)
    logprobs.requires_grad_()
    loss = ppo_policy_loss(logprobs, logprobs.detach(), advantages, 0.2)
    close(loss, -advantages)
    close(gradient(loss, logprobs), -advantages)


def test_ppo_value_loss_by_hand():
    # old value 0, clip 0.2. V = 1, target 2: unclipped (1 - 2)^2 = 1, clipped (0.2 - 2)^2 = 3.24 is the larger: 1.62,
    # without gradient. V = 1, target -1: 4 against (0.2 + 1)^2 = 1.44: 2, gradient V - target = 2.
    # V = 0.1 (not clipped), target 1: 0.81/2 = 0.405, gradient -0.9.
    values = torch.tensor([1.0, 1.0, 0.1]).requires_grad_()
    found = ppo_value_loss(values, torch.zeros(3), torch.tensor([2.0, -1.0, 1.0]), 0.2)
    close(found, [1.62, 2.0, 0.405])
    close(gradient(found, values), [0.0, 2.0, -0.9])


def test_ppo_value_loss_equals_a_plain_loop():
    values, old, returns = randn(40), randn(40, seed=1), randn(40, seed=2)
    rows = zip(values.tolist(), old.tolist(), returns.tolist(), strict=True)
    close(ppo_value_loss(values, old, returns, 0.2), [reference.ppo_value_loss(*row, 0.2) for row in rows])


def test_a_masked_mean_gives_masked_tokens_no_gradient():
    logprobs, mask = (-randn(3, 4).abs()).requires_grad_(), prefix_mask([4, 1, 2], 4)
    losses = torch.zeros(3, 4)
    losses[mask] = ppo_policy_loss(logprobs[mask], logprobs.detach()[mask], torch.ones(7), 0.2)
    found = gradient(masked_mean(losses, mask), logprobs)
    close(found, torch.where(mask, -1 / 7, 0.0))


# ---------------------------------------------------------------------------- policy gradient: REINFORCE, RLOO, GRPO


def test_the_reward_of_a_response_is_its_score_less_the_price_of_its_kl():
    mask = prefix_mask([1, 3], 3)
    kl = torch.tensor([[1.0, 9.0, math.nan], [1.0, 2.0, -4.0]])
    # 10 - 0.5 x 1 = 9.5; 2 - 0.5 x (1 + 2 - 4) = 2.5. What is masked does not count.
    close(sequence_rewards(torch.tensor([10.0, 2.0]), kl, mask, 0.5), [9.5, 2.5])
    scores, kl, mask = randn(4), randn(4, 6, seed=1), prefix_mask([6, 1, 4, 2], 6)
    expected = reference.sequence_rewards(scores.numpy(), kl.numpy(), mask.numpy(), 0.3)
    close(sequence_rewards(scores, kl, mask, 0.3), expected)
    close(token_rewards(scores, kl, mask, 0.3).sum(1), expected)


def test_policy_gradient_loss_and_its_gradient_by_hand():
    logprobs = torch.tensor([-1.0, -2.0, -0.5]).requires_grad_()
    advantages = torch.tensor([2.0, -3.0, 0.0])
    found = policy_gradient_loss(logprobs, advantages)
    close(found, [2.0, -6.0, 0.0])
    close(gradient(found, logprobs), [-2.0, 3.0, 0.0])  # a step down the loss makes the good likelier, the bad less so


def test_masked_tokens_get_no_policy_gradient():
    logprobs, mask = (-randn(3, 4).abs()).requires_grad_(), prefix_mask([4, 1, 2], 4)
    loss = policy_gradient_loss(logprobs[mask], torch.ones(7)).sum() / 7
    close(gradient(loss, logprobs), torch.where(mask, -1 / 7, 0.0))


def test_the_leave_one_out_baseline_by_hand():
    # 1, 2, 6: the others' means are 4, 3.5, 1.5. 5, 5, 5: no response is better than the others.
    rewards = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    close(leave_one_out_advantages(rewards, 3), [-3.0, -1.5, 4.5, 0.0, 0.0, 0.0])
    close(leave_one_out_advantages(randn(12), 4), reference.leave_one_out_advantages(randn(12).tolist(), 4))


def test_leaving_one_out_is_centring_with_another_scale():
    # R_i - (sum - R_i)/(k-1) = k/(k-1) (R_i - mean): Dr. GRPO's advantage but for a constant.
    rewards = randn(20)
    close(leave_one_out_advantages(rewards, 5), 5 / 4 * group_advantages(rewards, 5, "none"))


def test_group_advantages_by_hand():
    # Group 1, 3: mean 2, unbiased deviation sqrt(2). Group 0, 0: no difference, advantage 0 and not 0/0.
    rewards = torch.tensor([1.0, 3.0, 0.0, 0.0])
    close(group_advantages(rewards, 2, "none"), [-1.0, 1.0, 0.0, 0.0])
    close(group_advantages(rewards, 2, "group"), [-1 / 1.4143136, 1 / 1.4143136, 0.0, 0.0])
    # All four: mean 1, squares 0 + 4 + 1 + 1 = 6, deviation sqrt(6/3) = 1.4142136.
    close(group_advantages(rewards, 2, "batch"), [-1 / 1.4143136, 1 / 1.4143136, 0.0, 0.0])
    close(group_advantages(torch.tensor([1.0, 3.0, 0.0, 8.0]), 2, "batch")[:2], [-0.280976, 0.280976])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages_equal_a_plain_loop(scale):
    rewards = 3 * randn(24) + 1
    close(group_advantages(rewards, 6, scale), reference.group_advantages(rewards.tolist(), 6, scale))


def test_only_dividing_by_the_groups_deviation_makes_a_small_difference_as_weighty_as_a_large_one():
    rewards = torch.tensor([0.0, 0.01, 0.0, 10.0])
    small, large = group_advantages(rewards, 2, "group").view(2, 2)[:, 1]
    assert small / large > 0.9
    for scale in ("batch", "none"):
        small, large = group_advantages(rewards, 2, scale).view(2, 2)[:, 1]
        assert small / large == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize(
    ("average", "expected"),
    [
        ("token", 3.0),  # (1 + 2 + 3 + 4 + 5)/5
        ("sequence", 2.25),  # (1 + (2 + 3 + 4 + 5)/4)/2
        ("constant", 0.75),  # 15/(2 x 10)
    ],
)
def test_averages_of_losses_by_hand(average, expected):
    losses = [[1.0], [2.0, 3.0, 4.0, 5.0]]
    weights, divisor = loss_average(torch.tensor([1, 4]), average, max_length=10)
    found = sum(w * sum(row) for w, row in zip(weights.tolist(), losses, strict=True)) / divisor
    assert found == pytest.approx(expected if average != "sequence" else (1 + 3.5) / 2)
    assert found == pytest.approx(reference.averaged_loss(losses, average, 10))


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_the_pieces_of_grpo_make_the_objective_of_its_paper(beta):
    lengths = [3, 1, 4, 2]
    mask = prefix_mask(lengths, 4)
    new, old, ref = (-randn(4, 4, seed=i).abs() for i in range(3))
    new.requires_grad_()
    rewards = torch.tensor([1.0, 0.0, 0.5, 2.0])
    advantages = group_advantages(rewards, 4, "group")
    weights, divisor = loss_average(torch.tensor(lengths), "sequence", 4)
    losses = ppo_policy_loss(new[mask], old[mask], advantages.unsqueeze(1).expand(4, 4)[mask], 0.2)
    losses = losses + beta * kl_estimate(new[mask], ref[mask], "k3")
    loss = (losses * weights.unsqueeze(1).expand(4, 4)[mask]).sum() / divisor
    rows = [[row[:n] for row, n in zip(t.detach().tolist(), lengths, strict=True)] for t in (new, old, ref)]
    by_hand = reference.group_advantages(rewards.tolist(), 4, "group")
    close(loss, -reference.grpo_objective(*rows, by_hand, 0.2, beta))
    assert not gradient(loss, new)[~mask].any()


# ---------------------------------------------------------------------------------------------------------- best of n


def test_the_best_of_each_group_by_hand():
    rewards = torch.tensor([1.0, 3.0, 2.0, -1.0, -5.0, -1.0])
    assert best_of_groups(rewards, 3).tolist() == [1, 3]  # of equals the first


def test_the_kl_of_best_of_n():
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(16) == pytest.approx(2.772589 - 15 / 16)
    # Checked by the law itself: of n draws without ties the best has density n F^(n-1), and
    # KL = int_0^1 n u^(n-1) log(n u^(n-1)) du.
    u = (np.arange(200_000) + 0.5) / 200_000
    density = 4 * u**3
    assert best_of_n_kl(4) == pytest.approx(float(np.mean(density * np.log(density))), abs=1e-6)
    with pytest.raises(ValueError, match="best of 0"):
        best_of_n_kl(0)


# ---------------------------------------------------------------------------------------------- DPO, IPO, KTO


def test_dpo_loss_by_hand():
    # h = 1 - (-1) = 2, beta 0.5: -log sigmoid(1) = 0.313262; smoothed by 0.1: 0.9 x 0.313262 + 0.1 x 1.313262.
    chosen, rejected = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])
    close(dpo_loss(chosen, rejected, 0.5), [0.313262, 0.693147])
    close(dpo_loss(chosen, rejected, 0.5, 0.1), [0.413262, 0.693147])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_and_ipo_equal_the_formulas_of_their_papers(smoothing):
    pc, pr, rc, rr = (-3 * randn(15, seed=i).abs() for i in range(4))
    rows = list(zip(pc.tolist(), pr.tolist(), rc.tolist(), rr.tolist(), strict=True))
    close(dpo_loss(pc - rc, pr - rr, 0.3, smoothing), [reference.dpo_loss(*row, 0.3, smoothing) for row in rows])
    close(ipo_loss(pc - rc, pr - rr, 0.3), [reference.ipo_loss(*row, 0.3) for row in rows])


def test_dpo_pushes_the_chosen_up_and_the_rejected_down_most_where_it_is_wrong():
    chosen = torch.tensor([-2.0, 0.0, 2.0]).requires_grad_()
    rejected = torch.tensor([2.0, 0.0, -2.0]).requires_grad_()
    loss = dpo_loss(chosen, rejected, 0.5)
    up, down = torch.autograd.grad(loss.sum(), (chosen, rejected))
    # -beta sigmoid(-beta h) for h = -4, 0, 4
    close(up, [-0.440399, -0.25, -0.059601])
    close(down, [0.440399, 0.25, 0.059601])


def test_smoothed_labels_have_their_optimum_at_a_finite_margin():
    # logit(1 - 0.2)/0.5 = log(4)/0.5 = 2.772589: there the gradient is 0, beyond it the margin shrinks again.
    chosen = torch.tensor([2.772589, 5.0, 1.0]).requires_grad_()
    close(gradient(dpo_loss(chosen, torch.zeros(3), 0.5, 0.2), chosen).sign()[1:], [1.0, -1.0])
    close(gradient(dpo_loss(chosen, torch.zeros(3), 0.5, 0.2), chosen)[0], 0.0)


def test_ipo_loss_and_gradient_by_hand():
    # beta 0.25: the wanted margin is 2. h = 3: (3 - 2)^2 = 1, gradient 2 on the chosen; h = 0: 4, gradient -4.
    chosen, rejected = torch.tensor([2.0, 0.0]).requires_grad_(), torch.tensor([-1.0, 0.0]).requires_grad_()
    loss = ipo_loss(chosen, rejected, 0.25)
    close(loss, [1.0, 4.0])
    up, down = torch.autograd.grad(loss.sum(), (chosen, rejected))
    close(up, [2.0, -4.0])
    close(down, [-2.0, 4.0])


def test_dpo_stays_finite_for_extreme_margins():
    chosen = torch.tensor([-1e4, 1e4]).requires_grad_()
    losses = dpo_loss(chosen, torch.zeros(2), 1.0)
    close(losses, [1e4, 0.0])
    assert gradient(losses, chosen).isfinite().all()


def test_kto_loss_and_gradient_by_hand():
    # z0 = 1, beta 0.5. Good, r = 3: 1 - sigmoid(1) = 0.268941. Bad, r = 3: 1 - sigmoid(-1) = 0.731059, times 2.
    logratios = torch.tensor([3.0, 3.0, 1.0]).requires_grad_()
    good = torch.tensor([True, False, True])
    loss = kto_loss(logratios, good, torch.tensor(1.0), 0.5, bad_weight=2.0)
    close(loss, [0.268941, 1.462117, 0.5])
    # d/dr w (1 - sigmoid(b (r - z))) = -w b s (1 - s); s(1 - s) = 0.196612 at +-1, 0.25 at 0.
    close(gradient(loss, logratios), [-0.098306, 0.196612, -0.125])


def test_kto_equals_the_formula_of_its_paper():
    logratios, good = 3 * randn(20), torch.arange(20) % 3 == 0
    baseline = kto_baseline(randn(9, seed=1) + 0.5)
    close(baseline, reference.kto_baseline((randn(9, seed=1) + 0.5).tolist()))
    rows = zip(logratios.tolist(), good.tolist(), strict=True)
    expected = [reference.kto_loss(r, g, float(baseline), 0.3, 1.2, 0.8) for r, g in rows]
    close(kto_loss(logratios, good, baseline, 0.3, 1.2, 0.8), expected)


def test_the_baseline_of_kto_is_never_negative_and_gets_no_gradient():
    mismatched = torch.tensor([-3.0, 1.0]).requires_grad_()
    assert kto_baseline(mismatched).item() == 0
    found = kto_baseline(mismatched + 4)
    assert found.item() == 3
    assert not found.requires_grad


# --------------------------------------------------------------------------------------------- wrong arguments


NO, SOME = torch.zeros(1), torch.zeros(2)
BOOL = torch.ones(2, dtype=torch.bool)
LONG = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: masked_mean(SOME, SOME), TypeError, "response_mask must be torch.bool"),
        (lambda: masked_mean(torch.ones(2, 2), BOOL), ValueError, "response_mask must have rank 2"),
        (lambda: masked_mean(SOME, BOOL[:1]), ValueError, r"response_mask has shape \(1,\), expected \(2,\)"),
        (lambda: kl_estimate(torch.ones(2, 2), SOME, "k1"), ValueError, "reference_logprobs has shape"),
        (lambda: pairwise_loss(SOME.double()), TypeError, "margins must be torch.float32"),
        (lambda: pairwise_loss(SOME, BOOL[:1]), ValueError, "ties has shape"),
        (lambda: pairwise_loss(SOME, None, NO), ValueError, "target_margins has shape"),
        (lambda: grouped_mean(SOME, LONG[:1]), ValueError, "groups has shape"),
        (lambda: token_rewards(NO, torch.zeros(2, 1), prefix_mask([1, 1], 1), 0.1), ValueError, "scores has shape"),
        (lambda: gae(SOME, SOME, BOOL, 1.0, 0.95), ValueError, "rewards must have rank 2"),
        (lambda: ppo_policy_loss(SOME, NO, SOME, 0.2), ValueError, "old_logprobs has shape"),
        (lambda: ppo_policy_loss(SOME, SOME.bfloat16(), SOME, 0.2), TypeError, "old_logprobs must be torch.float32"),
        (lambda: ppo_value_loss(SOME, SOME, NO, 0.2), ValueError, "returns has shape"),
        (lambda: sequence_rewards(NO, torch.zeros(2, 1), prefix_mask([1, 1], 1), 0.1), ValueError, "scores has shape"),
        (lambda: policy_gradient_loss(SOME, NO), ValueError, "advantages has shape"),
        (lambda: leave_one_out_advantages(SOME, 1), ValueError, "a group needs at least two"),
        (lambda: leave_one_out_advantages(torch.zeros(3), 2), ValueError, "do not form groups of 2"),
        (lambda: group_advantages(torch.zeros(2, 2), 2, "none"), ValueError, "rewards must have rank 1"),
        (lambda: group_advantages(SOME, 2, "std"), ValueError, "unknown scale 'std'"),
        (lambda: loss_average(LONG + 1, "mean", 4), ValueError, "unknown average 'mean'"),
        (lambda: loss_average(SOME, "token", 4), TypeError, "lengths must be torch.int64"),
        (lambda: dpo_loss(SOME, NO, 0.1), ValueError, "rejected has shape"),
        (lambda: ipo_loss(SOME.double(), SOME, 0.1), TypeError, "chosen must be torch.float32"),
        (lambda: kto_loss(SOME, SOME, torch.tensor(0.0), 0.1), TypeError, "good must be torch.bool"),
        (lambda: kto_loss(SOME, BOOL, NO, 0.1), ValueError, "baseline must have rank 0"),
        (lambda: kto_baseline(torch.zeros(2, 2)), ValueError, "mismatched must have rank 1"),
    ],
)
def test_a_wrong_shape_or_dtype_is_refused_and_never_broadcast(call, error, message):
    with pytest.raises(error, match=message):
        call()
