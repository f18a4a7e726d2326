"""The frontier of tiny policies: what is measured, which policy is picked, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from wukong.errors import UsageError
from wukong.model.hub import load_policy, save_policy
from wukong.objectives import best_of_n_kl
from wukong.records import Prompt, as_messages, write_records
from wukong.stages.online.rloo import RLOOOptions
from wukong.stages.online.rloo import run as rloo
from wukong.studies import frontier
from wukong.studies.frontier import FrontierOptions, in_words, policies_of


def gold(prompts, texts) -> list[float]:
    """Gold wants letters e, less every letter z: what the runs below move along."""
    return [float(text.count("e") - text.count("z")) for text in texts]


def letters(prompts, texts) -> list[float]:
    return [float(text.count("e") + text.count("z")) for text in texts]


@pytest.fixture(scope="module")
def course(models: Path, tmp_path_factory) -> Path:
    """A run whose policies write ever more letters: first e, which gold likes, at last z, which it does not."""
    run = tmp_path_factory.mktemp("runs") / "run"
    policy, tokenizer = load_policy(models / "sft")
    places = {1: ("e", 3.0), 2: ("e", 1.5), 3: ("z", 6.0)}
    for iteration, (letter, push) in places.items():
        out = run if iteration == 3 else run / "policies" / f"iteration-{iteration:06d}"
        with torch.no_grad():  # every hidden state moves towards the letter's embedding: its logit grows by `push`
            towards = policy.wte.weight[tokenizer.encode(letter)[0]]
            policy.ln_f.bias += push * towards / towards.square().sum()
        out.mkdir(parents=True, exist_ok=True)
        save_policy(out, policy, tokenizer)
    (run / "metrics.jsonl").write_text('{"step": 3}\n')
    return run


@pytest.fixture
def given(models: Path, course: Path, tmp_path: Path):
    write_records(tmp_path / "prompts.jsonl", [Prompt(messages=as_messages(f"say {n}")) for n in range(24)])

    def options(**changes) -> FrontierOptions:
        settings = {
            "runs": [f"mine={course}"], "reference": str(models / "sft"), "proxy": f"{__name__}:letters",
            "gold": f"{__name__}:gold", "prompts": [str(tmp_path / "prompts.jsonl")], "max_new_tokens": 16,
            "out": tmp_path / "out", "precision": "float32", "best_of": 4,
        }  # fmt: skip
        return FrontierOptions(**{**settings, **changes})

    return options


def test_the_curve_that_turns_down_is_found_and_said(given, course, capsys):
    options = given()
    frontier.run(options)
    report = json.loads((options.out / "frontier.json").read_text())
    mine, best = report["curves"]
    points = mine["runs"][0]["points"]
    assert [point["iteration"] for point in points] == [1, 2, 3]
    assert 0 < points[0]["kl"] < points[1]["kl"]
    assert points[0]["gold_gain"] < points[1]["gold_gain"] > points[2]["gold_gain"], "gold rises, then falls"
    assert points[0]["proxy"] < points[1]["proxy"]
    assert (mine["picked"][0]["iteration"], mine["picked"][0]["last_iteration"]) == (2, 3)
    assert mine["picked"][0]["path"] == str(course / "policies" / "iteration-000002")
    assert mine["verdict"]["last_interval"][1] < 0
    assert mine["verdict"]["picked_less_best"] == 0, "gold picked"
    assert mine["words"].startswith("over-optimised: the last policy is worse than iteration 2: gold")
    assert mine["words"] in " ".join(capsys.readouterr().err.split())
    assert mine["fit"]["points"] == 3
    assert [point["n"] for point in best["runs"][0]["points"]] == [2, 4]
    assert [point["kl"] for point in best["runs"][0]["points"]] == pytest.approx([best_of_n_kl(2), best_of_n_kl(4)])
    assert best["runs"][0]["points"][1]["proxy_gain"] > best["runs"][0]["points"][0]["proxy_gain"] > 0
    page = (options.out / "frontier.html").read_text()
    assert mine["words"].split(":")[0] in page
    assert "unseen" not in page
    assert "Overlap with training: could not check whether any of the 24 prompts were used in training" in page
    assert "best-of-n" in page


def test_the_reference_is_taken_where_training_only_did_harm(given):
    options = given(gold=f"{__name__}:letters", proxy=f"{__name__}:gold", best_of=0)
    frontier.run(options)
    liked = json.loads((options.out / "frontier.json").read_text())["curves"][0]
    assert liked["picked"][0]["iteration"] in (2, 3), "by this gold, z is as good as e"
    worse = given(gold=f"{__name__}:fewer", out=options.out.with_name("worse"), best_of=0)
    frontier.run(worse)
    report = json.loads((worse.out / "frontier.json").read_text())
    assert report["curves"][0]["picked"][0]["iteration"] == 0
    assert report["curves"][0]["picked"][0]["path"] == worse.reference
    assert "worse than the reference" in report["curves"][0]["words"]


def fewer(prompts, texts) -> list[float]:
    return [-score for score in letters(prompts, texts)]


def test_another_judge_picks_and_gold_only_tells_what_that_was_good_for(given):
    options = given(gold=f"{__name__}:gold", pick_by=f"{__name__}:fewer", best_of=0)
    frontier.run(options)
    report = json.loads((options.out / "frontier.json").read_text())
    assert report["pick_by"] == f"{__name__}:fewer"
    assert report["curves"][0]["picked"][0]["iteration"] == 0
    assert f"{__name__}:fewer picks the reference, clearly worse" in report["curves"][0]["words"]


def test_a_judge_that_is_deceived_too_does_not_hide_the_fall(given):
    options = given(pick_by=f"{__name__}:letters", best_of=0)
    frontier.run(options)
    mine = json.loads((options.out / "frontier.json").read_text())["curves"][0]
    assert (mine["picked"][0]["iteration"], mine["picked"][0]["best_iteration"]) == (3, 2), "it takes the last"
    assert mine["words"].startswith("over-optimised: the last policy is worse than iteration 2: gold")
    assert f"{__name__}:letters picks iteration 3, clearly worse: gold" in mine["words"]
    assert mine["verdict"]["picked_less_best"] == mine["verdict"]["last_less_best"] < 0


def test_seeds_of_one_name_are_one_curve_and_an_interrupted_study_goes_on(given, course, monkeypatch):
    options = given(runs=[f"mine={course}", f"mine={course / 'policies' / 'iteration-000002'}"], best_of=0)
    real, calls = frontier.answer_all, []

    def dies(*args, **kwargs):
        calls.append(args[0])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(frontier, "answer_all", dies)
    with pytest.raises(KeyboardInterrupt):
        frontier.run(options)
    monkeypatch.setattr(frontier, "answer_all", lambda *args, **kwargs: calls.append(args[0]) or real(*args, **kwargs))
    frontier.run(options)
    assert calls == ["the reference", "mine 1", "mine 2", "mine 3", "mine 3", "mine 1"], "three were kept"
    curve = json.loads((options.out / "frontier.json").read_text())["curves"][0]
    assert [len(one["points"]) for one in curve["runs"]] == [3, 1]
    assert curve["runs"][1]["points"][0]["gold"] == curve["runs"][0]["points"][1]["gold"], "the same policy twice"
    assert len(curve["picked"]) == 2


def test_it_reads_what_an_online_algorithm_keeps(models, given, tmp_path):
    settings = {"model": str(models / "sft"), "reward_model": str(models / "reward"), "tensorboard": False}
    settings |= {"prompts": [str(tmp_path / "prompts.jsonl")], "precision": "float32", "max_new_tokens": 8, "lr": 1e-3}
    given()
    rloo(
        RLOOOptions(out=tmp_path / "rloo", episodes=32, batch_size=8, save_every=2, missing_eos_score=None, **settings)
    )
    assert [policy.iteration for policy in policies_of(tmp_path / "rloo")] == [2, 4]
    options = given(runs=[f"rloo={tmp_path / 'rloo'}"], proxy=str(models / "reward"))
    frontier.run(options)
    points = json.loads((options.out / "frontier.json").read_text())["curves"][0]["runs"][0]["points"]
    assert [point["iteration"] for point in points] == [2, 4]
    assert all(np.isfinite(point["kl"]) for point in points)


VERDICT = {
    "policies": 4, "prompts": 40, "last_less_best": -0.5, "last_interval": [-0.9, 0.1], "last_prompts": 30,
    "proxy": 0.3, "pick": 0.2, "picked_less_best": -0.25, "picked_interval": [-0.5, 0.0], "picked_prompts": 30,
    "gain": 0.4, "gain_interval": [0.1, 0.7], "gain_prompts": 60, "proxy_gain": 1.5,
}  # fmt: skip
LAST = {"iteration": 8, "best_iteration": 8, "last_iteration": 8}
FALLEN = {"gain": -1.25, "gain_interval": [-1.5, -0.5]}


@pytest.mark.parametrize("policies", [1, 2])
def test_fewer_than_three_policies_show_no_course(policies):
    words = in_words(VERDICT | {"policies": policies}, [LAST])
    many = "one policy" if policies == 1 else "2 policies"
    assert words.startswith(f"over-optimisation cannot be seen in {many} of a run, keep 3 or more with --save-every")
    assert words.endswith("from the reference to the last policy: gold 0.4 [0.1, 0.7]")
    assert "no sign" not in words
    assert "no sign" in in_words(VERDICT | {"policies": 3}, [LAST])


@pytest.mark.parametrize("policies", [1, 4])
@pytest.mark.parametrize("run", [LAST, LAST | {"best_iteration": 0}])
@pytest.mark.parametrize(("pick_by", "pick"), [(None, 0.0), ("X", 0.7), ("X", -0.7)])
def test_gold_that_fell_below_the_reference_is_said_whatever_another_judge_says(policies, run, pick_by, pick):
    words = in_words(VERDICT | FALLEN | {"policies": policies, "pick": pick}, [run], pick_by)
    worse = "the last policy is worse than the reference: gold −1.25 [−1.5, −0.5]"
    assert words.startswith(f"over-optimised: {worse}, while the proxy rose by 1.5")
    assert "no sign" not in words
    assert ("X is exploited as well: it rose by 0.7" in words) == (pick > 0)


def test_gold_that_fell_with_the_proxy_is_no_over_optimisation():
    words = in_words(VERDICT | FALLEN | {"proxy_gain": -0.5}, [LAST])
    assert words.startswith("gold fell: the last policy is worse than the reference: gold −1.25 [−1.5, −0.5], and the")
    assert words.endswith("proxy fell by 0.5 as well")


def test_few_prompts_show_nothing_of_over_optimisation():
    few = {"prompts": 5, "last_prompts": 5, "gain_prompts": 5, "last_interval": [-0.9, -0.1]}
    assert in_words(VERDICT | few, [LAST]) == (
        "over-optimisation cannot be seen with 5 prompts: gold −0.5 [−0.9, −0.1]"
    )
    assert "cannot be seen with 1 prompts" in in_words(VERDICT | few | {"prompts": 1, "last_interval": None}, [LAST])


def test_a_reward_model_taken_for_gold_may_be_deceived_itself():
    words = in_words(VERDICT, [LAST], gold_model="runs/judge")
    assert words.endswith("no sign of over-optimisation (by runs/judge, itself a reward model, which the same answers "
                          "may exploit)")  # fmt: skip
    assert "may exploit" not in in_words(VERDICT | FALLEN, [LAST], gold_model="runs/judge"), "it saw the fall"


def test_a_single_policy_is_no_course(given, course):
    """Gold rose to the only policy measured: nothing is known of a turn. Where gold fell to it, that is said."""
    one = str(course / "policies" / "iteration-000002")
    options = given(runs=[f"mine={one}"], best_of=0)
    frontier.run(options)
    words = json.loads((options.out / "frontier.json").read_text())["curves"][0]["words"]
    assert words.startswith("over-optimisation cannot be seen in one policy of a run")
    fallen = given(runs=[f"mine={one}"], gold=f"{__name__}:fewer", pick_by=f"{__name__}:letters", best_of=0,
                   out=options.out.with_name("fallen"))  # fmt: skip
    frontier.run(fallen)
    words = json.loads((fallen.out / "frontier.json").read_text())["curves"][0]["words"]
    assert words.startswith("over-optimised: the last policy is worse than the reference: gold −")
    assert f"{__name__}:letters is exploited as well" in words


def test_the_words_follow_the_intervals():
    run = {"iteration": 6, "best_iteration": 4, "last_iteration": 8}
    verdict = VERDICT
    unclear = "the last policy is not clearly worse than the best, iteration 4: gold −0.5 [−0.9, 0.1]"
    assert in_words(verdict, [run]) == unclear
    clear = in_words(verdict | {"last_interval": [-0.9, -0.1]}, [run, run | {"best_iteration": 0}])
    said = "over-optimised: the last policy is worse than iteration 4 and the reference: gold −0.5 [−0.9, −0.1]"
    assert clear == f"{said}, while the proxy rose by 0.3"
    assert "no sign" in in_words(verdict, [run | {"best_iteration": 8}])
    picked = f"{unclear}; X picks iteration 6: gold −0.25 [−0.5, 0] compared with gold's own choice"
    assert in_words(verdict, [run], "X") == picked
    worse = in_words(verdict | {"picked_interval": [-0.5, -0.1]}, [run], "X")
    assert "; X picks iteration 6, clearly worse: gold −0.25 [−0.5, −0.1]" in worse


def test_what_cannot_be_compared_is_refused(given, tmp_path, models):
    with pytest.raises(UsageError, match="greedy answers have no KL"):
        frontier.run(given(temperature=0))
    with pytest.raises(UsageError, match="--raw mine: policies answer through the chat template"):
        frontier.run(given(raw=["mine"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="contains no policy"):
        frontier.run(given(runs=[f"mine={tmp_path / 'empty'}"]))
    with pytest.raises(UsageError, match="give name=directory"):
        frontier.run(given(runs=[]))
    with pytest.raises(UsageError, match="too few to pick"):
        frontier.run(given(limit=1))
