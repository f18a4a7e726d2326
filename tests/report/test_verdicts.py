"""The verdicts on curves: made-up courses of which the answer is known."""

import math

import pytest

from wukong.report.verdicts import RULES, WITHOUT, verdict, worst
from wukong.training.metric_definitions import METRICS


def line(first: float, last: float, n: int = 20) -> list[float]:
    return [first + (last - first) * i / (n - 1) for i in range(n)]


def level(stage: str, name: str, values: list[float], **others: list[float]) -> str:
    return verdict(stage, name, {name: values, **others}).level


CASES = [
    ("pretrain", "loss", [5 * math.exp(-i / 5) + 2 for i in range(20)], "green"),
    ("pretrain", "loss", line(3, 3), "amber"),
    ("pretrain", "loss", line(3, 5), "red"),
    ("sft", "valid_loss", [2, 1.5, 1.2, 1.1, 1.1], "green"),
    ("sft", "valid_loss", [2, 1.2, 1.1, 1.4, 1.8], "amber"),
    ("reward", "valid_loss", [0.6, 0.5, 0.45], "green"),
    ("reward", "valid_loss", [0.6, 0.7, 0.8], "red"),
    ("reward", "accuracy", line(0.5, 0.85), "green"),
    ("reward", "accuracy", [0.6] * 5 + [1.0] * 15, "amber"),
    ("reward", "accuracy", line(0.5, 0.5), "red"),
    ("reward", "valid_accuracy", [0.8], "green"),
    ("reward", "valid_accuracy", [0.51], "red"),
    ("reward", "margin", line(0, 2), "green"),
    ("reward", "margin", line(1, 1), "amber"),
    ("ppo", "kl", [10 * (1 - math.exp(-i / 5)) for i in range(20)], "green"),
    ("ppo", "kl", line(0, 0.1), "amber"),
    ("ppo", "kl", [2.0**i for i in range(10)], "red"),
    ("ppo", "entropy", line(2, 1.2), "green"),
    ("ppo", "entropy", [2.0] * 5 + [0.01] * 15, "red"),
    ("ppo", "approx_kl", line(0.001, 0.003), "green"),
    ("ppo", "approx_kl", line(0.2, 0.3), "red"),
    ("ppo", "clip_fraction", line(0.05, 0.1), "green"),
    ("ppo", "clip_fraction", [0.0] * 9, "amber"),
    ("ppo", "explained_variance", line(0, 0.8), "green"),
    ("ppo", "explained_variance", line(0, -0.5), "red"),
    ("ppo", "response_length", line(40, 44), "green"),
    ("ppo", "response_length", line(40, 110), "red"),
    ("ppo", "distinct_2", line(0.4, 0.38), "green"),
    ("ppo", "distinct_2", line(0.4, 0.1), "red"),
    ("ppo", "repetition", line(0.02, 0.03), "green"),
    ("ppo", "repetition", line(0.02, 0.4), "red"),
    ("ppo", "top_phrase_share", line(0.1, 0.6), "green"),
    ("ppo", "top_phrase_share", line(0.1, 1.0), "amber"),
    ("ppo", "termination_rate", line(0.97, 0.99), "green"),
    ("ppo", "termination_rate", line(0.97, 0.3), "red"),
    ("ppo", "grad_norm_policy", line(1, 1.2), "green"),
    ("ppo", "grad_norm_policy", [1.0] * 12 + [30.0] * 8, "red"),
    ("ppo", "value_loss", line(0.3, 0.1), "green"),
    ("ppo", "value_loss", line(0.1, 0.9), "red"),
    ("dpo", "accuracy", line(0.5, 0.7), "green"),
    ("ppo", "lr", line(1, 0), "none"),
    ("pretrain", "loss", [3.0, 2.0], "none"),
]


@pytest.mark.parametrize(("stage", "name", "values", "expected"), CASES)
def test_a_course_gets_its_verdict(stage, name, values, expected):
    found = verdict(stage, name, {name: values})
    assert found.level == expected, found.why
    assert found.why.endswith("."), "one sentence says why"


def test_the_score_is_judged_by_its_spread():
    assert level("ppo", "score", line(0, 0.5), score_std=[1.0] * 20) == "green"
    assert level("ppo", "score", line(0, 0.5), score_std=[9.0] * 20) == "amber"
    assert level("ppo", "score", line(0, -0.5), score_std=[1.0] * 20) == "red"


def test_a_curve_is_read_against_another():
    kl = line(0, 10)
    assert level("ppo", "kl_k3", line(0, 11), kl=kl) == "green"
    assert level("ppo", "kl_k3", line(0, 60), kl=kl) == "amber"
    assert level("ppo", "return_mean", line(0, -1), score=line(0, 1)) == "amber"
    assert level("ppo", "return_mean", line(0, -1), score=line(0, -1)) == "red"
    assert level("ppo", "kl_penalty_std", line(0, 0.5), score_std=[1.0] * 20) == "green"
    assert level("ppo", "kl_penalty_std", line(0, 2), score_std=[1.0] * 20) == "amber"
    assert level("ppo", "score_length_correlation", [0.6] * 20, response_length=line(40, 42)) == "green"
    assert level("ppo", "score_length_correlation", [0.6] * 20, response_length=line(40, 90)) == "amber"
    assert level("ppo", "ratio_max", [20.0] * 9, approx_kl=[0.001] * 9) == "amber", "single tokens only"
    assert level("ppo", "ratio_max", [20.0] * 9, approx_kl=[0.2] * 9) == "red"


def test_every_metric_has_a_rule_or_has_no_right_or_wrong():
    names = {name for name in METRICS if not name.startswith("evaluate/")}
    plain = {name.partition("/")[2] or name for name in names}
    assert {name for name in plain if verdict_key(name) is None} == WITHOUT
    known = {*names, *plain, "reward_of"}
    assert set(RULES) <= known, "rules of metrics that are not logged"


def verdict_key(name: str) -> str | None:
    keys = (name, name.partition(".")[0], *(f"{stage}/{name}" for stage in ("reward", "dpo", "kto")))
    return next((key for key in keys if key in RULES), None)


def test_the_worst_of_a_chart_counts():
    assert worst(["green", "red", "amber"]) == "red"
    assert worst(["none", "green"]) == "green"
    assert worst([]) == "none"
