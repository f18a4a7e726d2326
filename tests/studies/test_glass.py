"""A traced iteration recomputed: as recorded, by plain loops over its numbers, and under other settings."""

from pathlib import Path

import numpy as np
import pytest

from tests.reference import losses as reference
from tests.traced_runs import RUNS, options_of, run, world
from wukong.errors import UsageError
from wukong.report.traces import TracedIteration, read_trace
from wukong.studies.glass import ALGORITHMS, recompute, settings_of
from wukong.training.metrics import read_metrics

COLUMNS = ("rewards", "advantages", "returns", "ratios", "clipped", "policy_losses", "value_losses")


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[TracedIteration]]]:
    """Of each run its directory and two iterations, the second with a moved policy; every episode is traced."""
    root = world(tmp_path_factory.mktemp("traced"))
    made = {
        name: run(options_of(root, name, name, episodes=32, trace=16, trace_every=1, kl_target=1.0)) for name in RUNS
    }
    return {name: (out, read_trace(out)) for name, out in made.items()}


@pytest.mark.parametrize("name", RUNS)
def test_without_changes_it_is_what_was_recorded(traces, name: str) -> None:
    out, iterations = traces[name]
    for one, logged in zip(iterations, read_metrics(out), strict=True):
        found = recompute(one, {})
        for ours, recorded in zip(found.responses, one.responses, strict=True):
            for column in COLUMNS:
                assert getattr(ours, column) == pytest.approx(getattr(recorded, column), abs=1e-6), column
        shared = found.means.keys() & logged.keys()
        assert shared >= {"score", "kl"}
        for metric in shared:
            assert found.means[metric] == pytest.approx(logged[metric], abs=1e-5), metric
        assert settings_of(one)["kl_coef"] == pytest.approx(logged["kl_coef"])
        own = [r for r in one.responses if not r.pinned]
        assert np.mean([r.reward for r in own]) == pytest.approx(logged["reward_model_score"], abs=1e-5)
        assert np.mean([sum(r.kl) for r in own]) == pytest.approx(logged["kl"], abs=1e-5)
        assert np.mean([x for r in own for x in r.entropies]) == pytest.approx(logged["entropy"], abs=1e-5)
        assert np.mean([len(r.tokens) for r in own]) == pytest.approx(logged["response_length"])
        assert np.mean([r.ended for r in own]) == pytest.approx(logged["termination_rate"])


def by_hand(one: TracedIteration, kl_coef: float, gamma: float, lam: float, clip_range: float) -> list[dict]:
    """PPO over the batch in plain loops, for `whiten_rewards`."""
    own = [r for r in one.responses if not r.pinned]
    shape = (len(own), max(len(r.tokens) for r in own))
    kl, values, mask = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)
    for b, response in enumerate(own):
        for t in range(len(response.tokens)):
            kl[b, t] = response.logprobs[t] - response.reference_logprobs[t]
            values[b, t], mask[b, t] = response.values[t], True
    rewards = reference.whiten(reference.token_rewards([r.score for r in own], kl, mask, kl_coef), mask, False)
    raw, returns = reference.gae(rewards, values, mask, gamma, lam)
    advantages = reference.whiten(raw, mask)
    found = []
    for b, r in enumerate(own):
        tokens = range(len(r.tokens))
        ratios = [np.exp(r.new_logprobs[t]) / np.exp(r.logprobs[t]) for t in tokens]
        losses = [
            reference.ppo_policy_loss(r.new_logprobs[t], r.logprobs[t], advantages[b, t], clip_range) for t in tokens
        ]
        of_values = [reference.ppo_value_loss(r.new_values[t], values[b, t], returns[b, t], 0.2) for t in tokens]
        found.append({
            "rewards": [rewards[b, t] for t in tokens], "advantages": [advantages[b, t] for t in tokens],
            "returns": [returns[b, t] for t in tokens], "ratios": ratios,
            "clipped": [not 1 - clip_range <= ratio <= 1 + clip_range for ratio in ratios],
            "policy_losses": losses, "value_losses": of_values,
        })  # fmt: skip
    return found


@pytest.mark.parametrize(
    "changes",
    [{}, {"kl_coef": 0.7}, {"gamma": 0.8}, {"lam": 0.3}, {"clip_range": 0.01}, {"gamma": 1.0, "lam": 1.0}],
    ids=str,
)
def test_ppo_under_other_settings_equals_plain_loops(traces, changes: dict[str, float]) -> None:
    for one in traces["ppo"][1]:
        before, settings = recompute(one, {}), settings_of(one) | changes
        found = recompute(one, changes)
        own = [r for r in found.responses if not r.pinned]
        for ours, expected in zip(own, by_hand(one, **settings), strict=True):
            for column in COLUMNS:
                assert getattr(ours, column) == pytest.approx(expected[column], abs=1e-4), column
        matters = changes and (one.step > 1 or "kl_coef" not in changes)  # the first KL is 0
        assert (found.responses == before.responses) == (not matters)


def test_the_kl_penalty_of_grpo_is_where_its_options_put_it(traces) -> None:
    """In the loss a larger beta raises the loss of tokens whose log-probs moved; in the reward, it moves advantages."""
    for name, moves in (("grpo", "policy_losses"), ("grpo-reward", "advantages")):
        one = traces[name][1][1]
        before, after = recompute(one, {}).responses, recompute(one, {"kl_coef": 5.0}).responses
        assert [r.advantages for r in before] != [r.advantages for r in after] or moves == "policy_losses"
        assert (name == "grpo") == ([r.advantages for r in before] == [r.advantages for r in after])
        assert [r.policy_losses for r in before] != [r.policy_losses for r in after]
        assert (name == "grpo") == (not any(x for r in before for x in r.rewards[:-1]))


def test_only_the_settings_of_an_algorithm_can_be_changed(traces) -> None:
    known = {name: set(settings_of(iterations[0])) for name, (_, iterations) in traces.items()}
    assert known["ppo"] == {"kl_coef", "gamma", "lam", "clip_range"}
    assert known["grpo"] == {"kl_coef", "clip_range"}
    assert known["running"] == known["rloo"] == known["bestofn"] == {"kl_coef"}
    with pytest.raises(UsageError, match="rloo has no gamma"):
        recompute(traces["rloo"][1][0], {"gamma": 0.5})
    with pytest.raises(UsageError, match=r"gamma .*less than or equal to 1, not 1.5"):
        recompute(traces["ppo"][1][0], {"gamma": 1.5})
    with pytest.raises(UsageError, match="kl_coef"):
        recompute(traces["ppo"][1][0], {"kl_coef": -1.0})
    strange = traces["ppo"][1][0].model_copy(update={"algorithm": "spo"})
    with pytest.raises(UsageError, match="knows no algorithm 'spo'"):
        recompute(strange, {})
    assert {traces[name][1][0].algorithm for name in RUNS} == set(ALGORITHMS)


def test_a_trace_that_does_not_fit_together_is_refused(traces) -> None:
    one = traces["ppo"][1][0].model_copy(deep=True)
    one.responses[-1].row = 99
    with pytest.raises(UsageError, match="does not fit together"):
        recompute(one, {})
