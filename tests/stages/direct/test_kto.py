"""KTO on votes: the loss of its paper, which answers make the base line, and whole runs that stop and go on."""

from pathlib import Path

import pytest
import torch

from tests.reference import losses as reference
from tests.stages.tiny_data import FAST, curves, made_files, stop_after
from wukong.data.summary import ReadSummary
from wukong.errors import DataError, UsageError
from wukong.model.hub import load_policy
from wukong.records import Comparison, Ranking, Record, Vote, as_messages, write_records
from wukong.stages.direct.kto import KTO, KTOOptions, mismatched, run, votes_of
from wukong.stages.direct.logratios import AnswerTokens, measure_reference, response_sums
from wukong.training.compute import Compute
from wukong.training.session import Session

CPU = Compute(torch.device("cpu"), torch.float32)


def vote(prompt: str, response: str, up: bool) -> Vote:
    return Vote(prompt=as_messages(prompt), response=response, vote=1 if up else -1)


VOTES = [vote(f"question {i}", f"{'yes' if i % 2 else 'no'} {i}", i % 2 == 1) for i in range(24)]


@pytest.fixture
def options(tiny_models: Path, tmp_path: Path):
    def make(records: list[Record], out: str = "out", **changes) -> KTOOptions:
        write_records(tmp_path / "data.jsonl", records)
        given = {"model": str(tiny_models / "sft"), "data": [str(tmp_path / "data.jsonl")], "out": tmp_path / out}
        return KTOOptions(**(given | {"lr": 1e-3, "valid_fraction": 0.0, "batch_size": 8} | FAST | changes))

    return make


def test_the_loss_of_a_batch_is_that_of_its_paper(options, tiny_models) -> None:
    policy, tokenizer = load_policy(tiny_models / "other")
    fixed, _ = load_policy(tiny_models / "sft")
    made = options(VOTES, micro_batch_tokens=60, beta=0.3, good_weight=1.3, bad_weight=0.8)
    votes = votes_of(VOTES[:5], tokenizer, 64, ReadSummary())
    measure_reference(fixed, [v.answer for v in votes], 1.0, CPU, 4096)
    with torch.no_grad(), Session(made, {"policy": policy}, 1, "kto", lr=1e-3) as session:
        found = KTO(made).batch_loss(session, policy, fixed, votes, learn=False)

        def ratio(answer: AnswerTokens) -> float:
            return float(response_sums(policy, [answer], 1.0, CPU) - response_sums(fixed, [answer], 1.0, CPU))

        swapped = [
            AnswerTokens(a.answer.prompt, b.answer.response) for a, b in zip(votes, [*votes[1:], votes[0]], strict=True)
        ]
        z0 = reference.kto_baseline([ratio(answer) for answer in swapped])
        losses = [reference.kto_loss(ratio(v.answer), v.good, z0, 0.3, 1.3, 0.8) for v in votes]
    assert found["kl_baseline"] == pytest.approx(z0, rel=1e-4)
    assert found["loss"] == pytest.approx(sum(losses) / 5, rel=1e-4)


def test_the_base_line_is_of_answers_to_other_prompts(tiny_models) -> None:
    _, tokenizer = load_policy(tiny_models / "sft")
    records = [vote("a", "1", True), vote("a", "2", False), vote("b", "3", True)]
    votes = votes_of(records, tokenizer, 64, ReadSummary())
    responses = [v.answer.response for v in votes]
    found = mismatched(votes, 64)
    assert [answer.prompt for answer in found] == [v.answer.prompt for v in votes]
    assert [answer.response for answer in found] == [responses[2], responses[2], responses[0]]
    assert mismatched(votes[:2], 64) == []  # one prompt alone has no other's answer
    long = votes_of([vote("x" * 55, "y", True), vote("z", "w" * 40, False)], tokenizer, 64, ReadSummary())
    assert len(mismatched(long, 64)[0].ids) == 64  # its beginning is cut


def test_a_comparison_is_a_thumb_up_and_a_thumb_down(tiny_models) -> None:
    _, tokenizer = load_policy(tiny_models / "sft")
    record = Comparison(prompt=as_messages("Q"), chosen="good", rejected="bad")
    assert [v.good for v in votes_of([record], tokenizer, 64, ReadSummary())] == [True, False]


def test_what_is_liked_becomes_likelier_than_what_is_not(options, tiny_models) -> None:
    made = options(VOTES, epochs=20.0, lr=3e-3, beta=0.5)
    run(made)
    lines = curves(made.out)
    assert lines[0]["loss"] == pytest.approx(0.5, abs=1e-3)  # nothing has moved: sigmoid(0)
    assert lines[-1]["loss"] < 0.3
    assert lines[-1]["chosen_reward"] > 0.2
    assert lines[-1]["rejected_reward"] < -0.2


def test_a_stopped_run_equals_an_uninterrupted_one(options, monkeypatch) -> None:
    more = {"valid_fraction": 0.3, "eval_every": 1}
    once, twice = options(VOTES, "once", **more), options(VOTES, "twice", **more)
    run(once)
    stop_after(1, run, twice, monkeypatch)
    run(twice)
    assert made_files(once.out) == made_files(twice.out)
    assert curves(once.out) == curves(twice.out)
    assert "valid_margin" in curves(once.out)[-1]


def test_what_cannot_be_learnt_from_is_refused(options) -> None:
    ranking = Ranking(prompt=as_messages("Q"), responses=["a", "b"], groups=[[0], [1]])
    with pytest.raises(DataError, match="`wukong dpo` learns from rankings"):
        run(options([ranking]))
    with pytest.raises(UsageError, match="nothing is left"):
        run(options([vote("Q", "a" * 70, True)]))
