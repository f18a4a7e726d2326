"""The reward model: pairs of a prompt in one group, learning, normalisation, what is reported."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from wukong.data.answers import answers_ids
from wukong.data.summary import ReadSummary
from wukong.errors import DataError, UsageError
from wukong.model.hub import load_reward
from wukong.records import Comparison, Ranking, Response, Vote, as_messages, prompt_id, write_records
from wukong.scoring import scores_of
from wukong.stages import reward
from wukong.stages.reward import RewardOptions, forward_pairs, groups_of, off_prompt_groups
from wukong.training.compute import Compute

CPU = Compute(torch.device("cpu"), torch.float32)


def options(tmp_path: Path, models: Path, **changes) -> RewardOptions:
    data = str(tmp_path / "data.jsonl")
    fixed = {"out": tmp_path / "reward", "model": str(models / "sft"), "data": [data], "tensorboard": False}
    return RewardOptions(**{**fixed, "precision": "float32", **changes})


def comparisons(n: int) -> list[Comparison]:
    """The better answer says yes, the worse says no."""
    return [Comparison(prompt=as_messages(f"is {i} a number"), chosen=f"yes {i}", rejected=f"no {i}") for i in range(n)]


def test_a_ranking_becomes_one_group_with_all_pairs_and_each_answer_once(tmp_path, tiny_models, byte_tokenizer) -> None:
    ranking = Ranking(prompt=as_messages("q"), responses=["a", "b", "c", "d"], groups=[[2], [0], [1], [3]])
    [group] = groups_of([ranking], byte_tokenizer, 64, options(tmp_path, tiny_models), ReadSummary())
    assert len(group.answers) == 4
    named = [(group.texts[b], group.texts[w]) for b, w in group.pairs]
    assert named == [("c", "a"), ("c", "b"), ("c", "d"), ("a", "b"), ("a", "d"), ("b", "d")]


def test_comparisons_of_one_prompt_share_a_group_and_ties_are_dropped_or_kept(
    tmp_path, tiny_models, byte_tokenizer
) -> None:
    prompt = as_messages("q")
    records = [
        Comparison(prompt=prompt, chosen="a", rejected="b", strength=2.0),
        Comparison(prompt=prompt, chosen="a", rejected="c"),
        Comparison(prompt=prompt, chosen="b", rejected="c", tie=True),
    ]
    summary = ReadSummary()
    [group] = groups_of(records, byte_tokenizer, 64, options(tmp_path, tiny_models, margin=0.5), summary)
    assert (len(group.answers), group.pairs, group.margins) == (3, [(0, 1), (0, 2)], [1.0, 0.5])
    assert summary.dropped.total() == 1
    [group] = groups_of(records, byte_tokenizer, 64, options(tmp_path, tiny_models, ties="half"), ReadSummary())
    assert group.ties == [False, False, True]


def test_every_second_off_prompt_answer_is_as_long_and_no_rewording(tmp_path, tiny_models, byte_tokenizer) -> None:
    """Ten short answers and ten long ones; two of the long ones are the same answer in another order of words."""
    short = [chr(97 + i) * 4 for i in range(10)]
    long = ["word " * 2 + chr(107 + i) * 30 for i in range(9)] + [" ".join(("k" * 30, "word", "word"))]
    rankings = [
        Ranking(prompt=as_messages(f"q{i}"), responses=[text, "?"], groups=[[0], [1]])
        for i, text in enumerate(short + long)
    ]
    groups = groups_of(rankings, byte_tokenizer, 128, options(tmp_path, tiny_models), ReadSummary())
    for seed in range(5):
        once = off_prompt_groups(groups, byte_tokenizer, 128, count=1, seed=seed)
        twice = off_prompt_groups(groups, byte_tokenizer, 128, count=2, seed=seed)
        assert twice[: len(once)] == once
        unlike = [(len(own) < 10) != (len(strange) < 10) for own, strange in (group.texts for group in once)]
        assert sum(unlike) >= 4, "at random, about half"
        matched = [group.texts for group in twice[len(once) :]]
        # In a cycle by length only its two ends differ: the shortest answer and the longest, and the step between.
        assert sum((len(own) < 10) != (len(strange) < 10) for own, strange in matched) == 2
        assert not any({own, strange} == {long[0], long[9]} for own, strange in matched)


def test_off_prompt_pairs_prefer_the_own_best_answer_to_that_of_another_prompt(
    tmp_path, tiny_models, byte_tokenizer
) -> None:
    rankings = [
        Ranking(prompt=as_messages(f"q{i}"), responses=[f"bad {i}", f"good {i}", f"fair {i}"], groups=[[1], [2], [0]])
        for i in range(5)
    ]
    groups = groups_of(rankings, byte_tokenizer, 64, options(tmp_path, tiny_models), ReadSummary())
    found = off_prompt_groups(groups, byte_tokenizer, 64, count=2, seed=3)
    assert len(found) == 10
    for group in found:
        number = group.prompt[0].content.removeprefix("q")
        own, strange = group.texts
        assert group.pairs == [(0, 1)]
        assert own == f"good {number}"
        assert strange.startswith("good")
        assert strange != own
        assert group.answers == answers_ids(byte_tokenizer, [(group.prompt, own), (group.prompt, strange)], 64)
    assert off_prompt_groups(groups, byte_tokenizer, 64, count=2, seed=3) == found
    assert off_prompt_groups(groups[:1], byte_tokenizer, 64, count=2, seed=3) == []  # no other prompt


def test_off_prompt_pairs_are_no_pairs_between_equal_answers(tmp_path, tiny_models, byte_tokenizer) -> None:
    records = [Comparison(prompt=as_messages(f"q{i}"), chosen="yes", rejected=f"no {i}") for i in range(4)]
    groups = groups_of(records, byte_tokenizer, 64, options(tmp_path, tiny_models), ReadSummary())
    assert off_prompt_groups(groups, byte_tokenizer, 64, count=1, seed=0) == []


def test_every_record_that_teaches_nothing_is_counted_once_with_its_reason(
    tmp_path, tiny_models, byte_tokenizer
) -> None:
    long, q = "x" * 200, as_messages("q")
    records = [
        Comparison(prompt=q, chosen=long, rejected=long + "y"),
        Comparison(prompt=q, chosen="a", rejected=long),
        Ranking(prompt=q, responses=[long, long + "y"], groups=[[0], [1]]),
        Ranking(prompt=q, responses=["a", "b"], groups=[[0, 1]]),
        Ranking(prompt=q, responses=["a", long, "b"], groups=[[0], [1], [2]]),
    ]
    summary = ReadSummary()
    [group] = groups_of(records, byte_tokenizer, 64, options(tmp_path, tiny_models), summary)
    assert (group.texts, group.pairs) == (["a", "b"], [(0, 1)]), "what fits of the last ranking"
    assert summary.dropped == {"longer than the context of 64 tokens": 3, "a ranking of equals": 1}


def test_a_vote_is_refused(tmp_path, tiny_models, byte_tokenizer) -> None:
    vote = Vote(prompt=as_messages("q"), response="a", vote=1)
    with pytest.raises(DataError, match="compares nothing"):
        groups_of([vote], byte_tokenizer, 64, options(tmp_path, tiny_models), ReadSummary())


def test_margins_equal_the_difference_of_single_unpadded_scores(tmp_path, tiny_models, byte_tokenizer) -> None:
    model, _ = load_reward(tiny_models / "reward")
    config = options(tmp_path, tiny_models)
    groups = groups_of(comparisons(3), byte_tokenizer, 64, config, ReadSummary())
    with torch.no_grad():
        margins, member = forward_pairs(model.eval(), groups, CPU)
        for margin, of_group, group in zip(margins, member, groups, strict=True):
            alone = [model(torch.tensor([a]), torch.tensor([len(a)]))[0] for a in group.answers]
            assert torch.allclose(margin, alone[0] - alone[1], atol=1e-5)
            assert groups[of_group] is group


def test_it_learns_normalises_and_reports(tmp_path: Path, tiny_models: Path, byte_tokenizer) -> None:
    write_records(tmp_path / "data.jsonl", comparisons(200))
    answers = [("yes 1", "q 1"), ("no 2", "q 2"), ("yes no", "q 3"), ("perhaps", "q 4")]
    responses = [
        Response(id=text, prompt_id=prompt_id(as_messages(q)), messages=as_messages(q), text=text, model="sft")
        for text, q in answers
    ]
    write_records(tmp_path / "responses.jsonl", responses)
    config = options(tmp_path, tiny_models, lr=5e-3, epochs=3, reference_responses=str(tmp_path / "responses.jsonl"))
    reward.run(config)
    results = json.loads((tmp_path / "reward" / "provenance.json").read_text())["results"]
    assert results["valid_accuracy"] == 1.0
    # all n pairs of n prompts are right: the lowest accuracy that gives that in 2.5 % of all samples is 0.025^(1/n)
    n = results["valid_pairs"]
    assert results["valid_prompts"] == n
    assert results["valid_accuracy_interval"] == pytest.approx([0.025 ** (1 / n), 1.0])
    # "yes 7" is a character longer than "no 7": length alone decides every pair here
    assert results["length_accuracy"] == 1.0
    assert sum(bin_["n"] for bin_ in results["calibration"]) == results["valid_pairs"]
    # It reads "yes" or "no" and no prompt, and all best answers begin with "yes".
    low, high = results["off_prompt_interval"]
    assert low < 0.5 < high
    assert results["off_prompt_prompts"] == n
    model, tokenizer = load_reward(tmp_path / "reward")
    ids = answers_ids(tokenizer, [(r.messages, r.text) for r in responses], 64)
    scores = scores_of(model, ids, CPU, 1000)
    assert np.mean(scores) == pytest.approx(0, abs=1e-4)
    assert np.std(scores) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("line", [1, 3])
def test_a_bad_reference_response_is_refused_before_training_or_left_out_and_listed(
    tmp_path: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch, capsys, line: int
) -> None:
    write_records(tmp_path / "data.jsonl", comparisons(8))
    identity = {"prompt_id": prompt_id(as_messages("q")), "messages": as_messages("q"), "model": "sft"}
    file = tmp_path / "r.jsonl"
    write_records(file, [Response(id=str(n), text="yes" * n, **identity) for n in range(5)])
    config = options(tmp_path, tiny_models, reference_responses=str(file), valid_fraction=0.0)
    reward.run(config.model_copy(update={"out": tmp_path / "expected"}))
    lines = file.read_text().splitlines(keepends=True)
    lines.insert(line - 1, '{"id": "x", "text": "yes"}\n')
    file.write_text("".join(lines))
    problem = f"{file}:{line}: field 'prompt_id': Field required"
    with pytest.raises(DataError) as caught:
        reward.run(config)
    assert str(caught.value) == problem
    assert not (config.out / "metrics.jsonl").exists(), "training may take hours"
    reward.run(config.model_copy(update={"skip_bad": 1}))
    weights = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("expected", "reward")]
    assert weights[0] == weights[1]
    assert f"left out: {problem}\n" in capsys.readouterr().err


def test_reference_responses_of_which_none_fits_are_refused_before_training(
    tmp_path: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(tmp_path / "data.jsonl", comparisons(8))
    identity = {"prompt_id": prompt_id(as_messages("q")), "messages": as_messages("q"), "model": "sft"}
    write_records(tmp_path / "r.jsonl", [Response(id="x", text="x" * 99, **identity)])
    config = options(tmp_path, tiny_models, reference_responses=str(tmp_path / "r.jsonl"))
    with pytest.raises(UsageError, match=r"r\.jsonl: no answer fits the context of 64 tokens"):
        reward.run(config)
    assert not (config.out / "metrics.jsonl").exists()


def test_the_two_halves_share_no_prompt_and_one_split(tmp_path: Path, tiny_models: Path, monkeypatch) -> None:
    write_records(tmp_path / "data.jsonl", comparisons(60))
    seen = []
    original = reward.groups_of
    monkeypatch.setattr(reward, "groups_of", lambda records, *rest: seen.append(records) or original(records, *rest))
    for half in ("first", "second"):
        reward.run(options(tmp_path, tiny_models, out=tmp_path / half, half=half, valid_fraction=0.3))
    (first, test, second, test_again) = seen
    assert test == test_again
    prompts = [{prompt_id(r.prompt) for r in part} for part in (first, second, test)]
    assert all(prompts)
    assert not prompts[0] & prompts[1]
    assert not (prompts[0] | prompts[1]) & prompts[2]


def test_a_policy_in_place_of_comparisons_is_one_clear_error(tmp_path: Path, tiny_models: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        reward.run(options(tmp_path, tiny_models, data=[str(tmp_path / "absent.jsonl")]))
