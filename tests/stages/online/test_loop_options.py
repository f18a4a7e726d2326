"""Options of the loop that are off by default: dynamic sampling, a higher upper clip range, importance weights, the
value model's warm-up, the limit of an update's KL. Off, or without anything to do, they change nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.reference import losses as reference
from tests.stages.tiny_data import stop_after
from wukong.data.batches import epoch_batch
from wukong.errors import UsageError
from wukong.files import fingerprint
from wukong.model.hub import load_policy
from wukong.records import Prompt, as_messages, write_records
from wukong.report.traces import read_trace
from wukong.stages.online import collect, grpo, ppo
from wukong.stages.online.algorithm import OnlineOptions
from wukong.stages.online.grpo import GRPO, GRPOOptions
from wukong.stages.online.ppo import PPO, PPOOptions
from wukong.stages.online.update import Tokens, minibatch_loss
from wukong.training.metrics import read_metrics

ALGORITHMS: dict[str, tuple[type[OnlineOptions], Callable, dict]] = {
    "ppo": (PPOOptions, ppo.run, {"ppo_epochs": 2, "minibatch_size": 8}),
    "shared": (PPOOptions, ppo.run, {"ppo_epochs": 2, "value_model": "shared"}),
    "grpo": (GRPOOptions, grpo.run, {"samples_per_prompt": 4, "epochs": 2, "minibatch_size": 8}),
}
PROMPTS = [f"say {n}" for n in range(12)]
Make = Callable[..., tuple[OnlineOptions, Callable]]


@pytest.fixture
def small(tiny_models: Path, tmp_path: Path) -> Make:
    """A function that makes the options of a small run and gives its runner too."""
    asked = tmp_path / "prompts.jsonl"
    write_records(asked, [Prompt(messages=as_messages(text)) for text in PROMPTS])

    def make(name: str, out: str, **changes) -> tuple[OnlineOptions, Callable]:
        kind, run, own = ALGORITHMS[name]
        given = {"model": str(tiny_models / "sft"), "reward_model": str(tiny_models / "reward"), "lr": 1e-3}
        given |= {"prompts": [str(asked)], "episodes": 48, "batch_size": 16, "max_new_tokens": 8, "tensorboard": False}
        given |= {"precision": "float32", "missing_eos_score": None}
        return kind(out=tmp_path / out, **(given | own | changes)), run

    return make


def finished(made: tuple[OnlineOptions, Callable]) -> tuple[str, list[dict]]:
    """Of a run: the hash of its weights, and its metrics but for the clock's."""
    options, run = made
    run(options)
    lines = [{k: v for k, v in line.items() if "second" not in k} for line in read_metrics(options.out)]
    return fingerprint(options.out / "model.safetensors"), lines


# ---------------------------------------------------------------------------------------- what must change nothing

NEUTRAL = [
    ("ppo", {"clip_range_high": 0.2}, {"clip_fraction_high"}),
    ("ppo", {"max_update_kl": 1e6}, {"passes"}),
    ("shared", {"max_update_kl": 1e6}, {"passes"}),
    ("grpo", {"clip_range_high": 0.2}, {"clip_fraction_high"}),
    # The reward model gives no two responses the same score, so that there is nothing to replace.
    ("grpo", {"dynamic_sampling": 5}, {"further_batches", "equal_groups", "equal_groups_kept"}),
]


@pytest.mark.parametrize(("name", "changes", "logged"), NEUTRAL)
def test_an_option_that_finds_nothing_to_do_gives_the_same_bits(small: Make, name, changes, logged) -> None:
    weights, expected = finished(small(name, "off"))
    again, found = finished(small(name, "on", **changes))
    assert again == weights
    for one, other in zip(expected, found, strict=True):
        assert other.keys() - one.keys() == logged
        assert {key: other[key] for key in one} == pytest.approx(one, rel=1e-7), "only sums in another order"


def test_options_that_are_off_log_nothing(small: Make) -> None:
    own = {"clip_fraction_high", "passes", "further_batches", "equal_groups", "equal_groups_kept", "importance_weight"}
    for name in ("ppo", "grpo"):
        assert not own & finished(small(name, name, episodes=16))[1][0].keys()


# ----------------------------------------------------------------------------------------------- dynamic sampling


def solvable(prompts, texts):
    """Every response to an even number is right; to an odd one, some are more than others."""
    numbers = [int(prompt[-1].content.split()[-1]) for prompt in prompts]
    return [sum(map(ord, text)) % 7 / 7 if n % 2 else 1.0 for n, text in zip(numbers, texts, strict=True)]


def equal(prompts, texts):
    return [1.0] * len(texts)


def dapo(small: Make, out: str, function: str, **changes) -> tuple[OnlineOptions, Callable]:
    given = {"reward_model": None, "rewards": [f"{__name__}:{function}"], "dynamic_sampling": 4, "kl_coef": 0.0}
    return small("grpo", out, **(given | {"trace": 4, "trace_every": 1, "average": "token"} | changes))


def test_groups_with_equal_scores_are_replaced_by_those_of_further_prompts(small: Make) -> None:
    """The order of the prompts is that of the run, batch after batch; a plain loop fills each batch with the odd
    numbers among them."""
    options, run = dapo(small, "out", "solvable")
    run(options)
    number = 0
    for iteration, line in zip(read_trace(options.out), read_metrics(options.out), strict=True):
        expected, sampled = [], []
        while len(expected) < 4:
            asked = [PROMPTS[i] for i in epoch_batch(12, number, 4, options.seed)]
            sampled.append(asked)
            expected += [text for text in asked if int(text.split()[-1]) % 2]
            number += 1
        trained = [one.messages[-1].content for one in iteration.responses if not one.pinned]
        assert trained == [text for text in expected[:4] for _ in range(4)]
        assert line["further_batches"] == len(sampled) - 1
        even = sum(int(text.split()[-1]) % 2 == 0 for asked in sampled for text in asked)
        assert line["equal_groups"] == pytest.approx(even / (4 * len(sampled)))
        assert line["equal_groups_kept"] == 0
    assert number > 3, "the test can fail"


def test_the_score_is_that_of_all_sampled_responses(small: Make) -> None:
    """1 for each response to an even number, as many as were sampled; the batch itself holds none of them."""
    options, run = dapo(small, "out", "solvable", episodes=16)
    run(options)
    (iteration,), (line,) = read_trace(options.out), read_metrics(options.out)
    own = iteration.batch.scores
    assert line["reward_model_score"] == line["score"]
    assert line["score"] > sum(own) / len(own) + 0.1
    assert len(own) == 16


def test_the_bound_on_further_batches_leaves_equal_groups_in_the_batch(small: Make, tiny_models: Path) -> None:
    options, run = dapo(small, "out", "equal", dynamic_sampling=2)
    run(options)
    for line in read_metrics(options.out):
        assert (line["further_batches"], line["equal_groups"], line["equal_groups_kept"]) == (2, 1, 1)
        assert line["advantage_std"] == line["grad_norm"] == 0
    before, after = load_policy(tiny_models / "sft")[0], load_policy(options.out)[0]
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_a_stopped_run_with_dynamic_sampling_equals_an_uninterrupted_one(small: Make, monkeypatch) -> None:
    weights, numbers = finished(dapo(small, "once", "solvable"))
    assert sum(line["further_batches"] for line in numbers[:2]) > 0, "the place in the prompts has to be kept"
    options, run = dapo(small, "twice", "solvable")
    stop_after(2, run, options, monkeypatch)
    assert finished((options, run)) == (weights, numbers)


# ------------------------------------------------------------------------------------------------------- clipping


def tokens(advantages: list[float], importance: list[float] | None = None) -> Tokens:
    n = len(advantages)
    return Tokens(
        old_logprobs=torch.zeros(n), reference_logprobs=torch.zeros(n), advantages=torch.tensor(advantages),
        weights=torch.ones(n), old_values=torch.zeros(n), returns=None, divisor=n, n_tokens=n,
        importance=None if importance is None else torch.tensor(importance),
    )  # fmt: skip


@pytest.mark.parametrize(("algorithm", "options"), [(PPO, PPOOptions), (GRPO, GRPOOptions)])
def test_both_sides_of_the_clip_range_reach_the_loss_and_the_metrics(algorithm, options) -> None:
    ratios, advantages = [1.25, 1.4, 0.75, 1.0], [1.0, 1.0, -1.0, -1.0]
    given = {"out": Path("x"), "model": "", "prompts": [], "clip_range": 0.2, "clip_range_high": 0.3}
    made, logprobs = algorithm(options(**given)), torch.tensor(ratios).log()
    loss, metrics = minibatch_loss(made, tokens(advantages), logprobs, torch.zeros(4), None, 0.0, 0.0)
    rows = zip(logprobs.tolist(), advantages, strict=True)
    expected = [reference.ppo_policy_loss(x, 0.0, a, 0.2, 0.3) for x, a in rows]
    assert float(loss) == pytest.approx(sum(expected) / 4)
    assert float(metrics["clip_fraction"]) == 0.5  # 1.4 and 0.75
    assert float(metrics["clip_fraction_high"]) == 0.25  # 1.4


# ---------------------------------------------------------------------------------------------- importance weights


def test_importance_weights_multiply_the_loss_of_each_token() -> None:
    made = PPO(PPOOptions(out=Path("x"), model="", prompts=[]))
    advantages, weights = [1.0, -2.0, 3.0], [0.5, 2.0, 1.0]
    given = tokens(advantages, weights)
    loss, metrics = minibatch_loss(made, given, torch.zeros(3), torch.zeros(3), None, 0.0, 0.0)
    assert float(loss) == pytest.approx((-0.5 * 1 + 2 * 2 - 3) / 3)  # at ratio 1 a token's loss is -A
    assert float(metrics["importance_weight"]) == pytest.approx(3.5 / 3)


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_a_sampler_that_is_off_is_corrected_up_to_the_cap(small: Make, monkeypatch, name: str) -> None:
    """The sampler says of every token that it was half as likely as it is: each weight is 2, or the cap."""

    def off(*given):
        episodes = original(*given)
        episodes.sampler_logprobs.sub_(torch.tensor(2.0).log())
        return episodes

    original = collect.roll_out
    monkeypatch.setattr(collect, "roll_out", off)
    found = {}
    for cap in (None, 3.0, 1.5):
        once = {"ppo_epochs" if name == "ppo" else "epochs": 1, "episodes": 16, "minibatch_size": None}
        options, run = small(name, f"cap-{cap}", importance_cap=cap, max_grad_norm=0, **once)
        run(options)
        (found[cap],) = read_metrics(options.out)
    assert "importance_weight" not in found[None]
    for cap, weight in ((3.0, 2.0), (1.5, 1.5)):
        assert found[cap]["importance_weight"] == pytest.approx(weight, rel=1e-4)
        norm = "grad_norm_policy" if name == "ppo" else "grad_norm"
        assert found[cap][norm] == pytest.approx(weight * found[None][norm], rel=1e-3)


# ----------------------------------------------------------------------------------------------- value warm-up


@pytest.mark.parametrize("name", ["ppo", "shared"])
def test_only_the_value_model_learns_while_it_warms_up(small: Make, tiny_models: Path, name: str) -> None:
    options, run = small(name, "out", value_warmup=2, save_every=1, kl_target=2.0, weight_decay=0.1)
    run(options)
    start = fingerprint(tiny_models / "sft" / "model.safetensors")
    kept = [fingerprint(options.out / "policies" / f"iteration-00000{n}" / "model.safetensors") for n in (1, 2)]
    assert kept == [start, start]
    assert fingerprint(options.out / "model.safetensors") != start
    first, second, third = read_metrics(options.out)
    for line in (first, second):
        assert line["kl"] == 0
        assert not {"policy_loss", "approx_kl", "grad_norm_policy"} & line.keys()
        assert line["value_loss"] > 0
        assert line["kl_coef"] == options.kl_coef, "the controller waits"
    assert second["value_mean"] != first["value_mean"]
    assert third["policy_loss"] != 0
    assert third["kl_coef"] == options.kl_coef


@pytest.mark.parametrize("name", ["ppo", "shared"])
def test_a_run_stopped_in_the_warm_up_equals_an_uninterrupted_one(small: Make, monkeypatch, name: str) -> None:
    expected = finished(small(name, "once", value_warmup=2))
    options, run = small(name, "twice", value_warmup=2)
    stop_after(1, run, options, monkeypatch)
    assert finished((options, run)) == expected


def test_a_warm_up_that_leaves_the_policy_no_iteration_is_refused(small: Make) -> None:
    options, run = small("ppo", "out", value_warmup=3)
    with pytest.raises(UsageError, match="--value-warmup 3 leaves the policy none of the 3 iterations"):
        run(options)


# ------------------------------------------------------------------------------------------- the limit of an update


def test_the_passes_over_a_batch_stop_when_the_policy_has_moved_too_far(small: Make) -> None:
    """approx_kl is logged as the mean over the passes, one update each, so that of the nth pass is n times the mean of
    n passes less n - 1 times that of n - 1. With a limit between the second's and the third's, a run of up to four
    passes is one of two."""
    once = {"episodes": 16, "minibatch_size": None}
    runs = {n: finished(small("ppo", f"of-{n}", ppo_epochs=n, **once)) for n in (1, 2, 3, 4)}
    means = {n: lines[0]["approx_kl"] for n, (_, lines) in runs.items()}
    second, third = 2 * means[2] - means[1], 3 * means[3] - 2 * means[2]
    assert third > 1.5 * second > 0
    weights, (line,) = finished(small("ppo", "limited", ppo_epochs=4, max_update_kl=(second + third) / 2, **once))
    assert weights == runs[2][0]
    assert weights not in (runs[1][0], runs[3][0], runs[4][0])
    assert line["passes"] == 2
    assert {key: line[key] for key in runs[2][1][0]} == runs[2][1][0]


def test_a_batch_is_learnt_from_at_least_once_and_the_schedule_goes_on(small: Make) -> None:
    """However low the limit, before the first update nothing has moved. The rate follows the iterations."""
    limited, _ = small("ppo", "limited", ppo_epochs=3, minibatch_size=8, max_update_kl=1e-12)
    ppo.run(limited)
    whole, _ = small("ppo", "whole", ppo_epochs=3, minibatch_size=8)
    ppo.run(whole)
    found, expected = read_metrics(limited.out), read_metrics(whole.out)
    assert [line["passes"] for line in found] == [0.5] * 3
    assert [line["lr"] for line in found] == [line["lr"] for line in expected]


def test_a_stopped_run_with_a_limit_equals_an_uninterrupted_one(small: Make, monkeypatch) -> None:
    changes = {"ppo_epochs": 4, "max_update_kl": 1e-4}
    expected = finished(small("ppo", "once", **changes))
    assert any(0.5 < line["passes"] < 4 for line in expected[1]), [line["passes"] for line in expected[1]]
    options, run = small("ppo", "twice", **changes)
    stop_after(2, run, options, monkeypatch)
    assert finished((options, run)) == expected
