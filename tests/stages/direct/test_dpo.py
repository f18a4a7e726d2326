"""DPO on comparisons: the margins its papers predict, which tokens count, and whole runs that stop and go on."""

import json
from pathlib import Path

import pytest
import torch

from tests.reference import losses as reference
from tests.reference.losses import log_softmax
from tests.stages.tiny_data import FAST, curves, made_files, stop_after
from wukong.data.answers import tokenised_answers
from wukong.data.summary import ReadSummary
from wukong.errors import DataError, UsageError
from wukong.files import read_json
from wukong.model.hub import load_policy
from wukong.records import Comparison, Ranking, Record, Vote, as_messages, write_records
from wukong.stages.direct.dpo import DPO, DPOOptions, groups_of, run
from wukong.stages.direct.logratios import AnswerTokens, logratios, measure_reference, response_sums
from wukong.tokenizer import Tokenizer
from wukong.training.compute import Compute
from wukong.training.session import Session

CPU = Compute(torch.device("cpu"), torch.float32)


def comparison(prompt: str, chosen: str, rejected: str, **more) -> Comparison:
    return Comparison(prompt=as_messages(prompt), chosen=chosen, rejected=rejected, **more)


@pytest.fixture
def options(tiny_models: Path, tmp_path: Path):
    def make(records: list[Record], out: str = "out", **changes) -> DPOOptions:
        write_records(tmp_path / "data.jsonl", records)
        given = {"model": str(tiny_models / "sft"), "data": [str(tmp_path / "data.jsonl")], "out": tmp_path / out}
        return DPOOptions(**(given | {"lr": 1e-3, "valid_fraction": 0.0} | FAST | changes))

    return make


def answers_of(tokenizer: Tokenizer, prompt: str, *texts: str) -> list[AnswerTokens]:
    read = tokenised_answers(tokenizer, [(as_messages(prompt), text) for text in texts], 64, finished=True)
    return [AnswerTokens(*one) for one in read if one is not None]


def margin(directory: Path, sft: Path, temperature: float = 1.0) -> float:
    """h of the answers a and b to "Q", by a plain loop over the logits of whole sequences."""
    h = 0.0
    for sign, place in ((1, directory), (-1, sft)):
        model, tokenizer = load_policy(place)
        for side, text in ((1, "a"), (-1, "b")):
            prompt, answer = tokenizer.prompt_ids("Q"), tokenizer.response_ids(text, finished=True)
            with torch.no_grad():
                logits = model.logits(model.eval()(torch.tensor([prompt + answer])))[0] / temperature
            for t, token in enumerate(answer, start=len(prompt)):
                h += sign * side * log_softmax(logits[t - 1].tolist())[token]
    return h


A_WINS = comparison("Q", "a", "b")
B_WINS = comparison("Q", "b", "a", annotator="another")


@pytest.mark.parametrize(
    ("records", "changes", "expected"),
    [
        # Where a beats b in 3 of 4 comparisons, Bradley-Terry has r_a - r_b = log 3, and pi_ref exp(r/beta) a margin
        # of log 3/beta = 2.197 with beta = 0.5.
        ([A_WINS, A_WINS.model_copy(update={"annotator": "2"}), A_WINS.model_copy(update={"annotator": "3"}), B_WINS],
         {}, 2.1972),
        ([A_WINS], {"loss": "ipo"}, 1.0),  # 1/(2 beta)
        ([A_WINS], {"label_smoothing": 0.25}, 2.1972),  # logit(0.75)/beta
    ],
    ids=["dpo", "ipo", "conservative"],
)  # fmt: skip
def test_the_margin_ends_where_the_papers_say(options, tiny_models, records, changes, expected) -> None:
    made = options(records, beta=0.5, batch_size=1, epochs=400, warmup_steps=0, **changes)
    run(made)
    assert margin(made.out, tiny_models / "sft") == pytest.approx(expected, abs=0.05)
    assert margin(tiny_models / "sft", tiny_models / "sft") == pytest.approx(0, abs=1e-9)


def test_the_loss_of_a_batch_is_that_of_its_paper(options, tiny_models) -> None:
    policy, tokenizer = load_policy(tiny_models / "other")
    fixed, _ = load_policy(tiny_models / "sft")
    made = options([A_WINS], temperature=0.7, micro_batch_tokens=20, beta=0.3)
    ranking = Ranking(prompt=as_messages("And now?"), responses=["x", "yy", "zzz"], groups=[[2], [0, 1]])
    groups = groups_of([A_WINS, ranking], tokenizer, 64, ReadSummary())
    every = [answer for group in groups for answer in group.answers]
    measure_reference(fixed, every, 0.7, CPU, 4096)
    with torch.no_grad(), Session(made, {"policy": policy}, 1, "dpo", lr=1e-3) as session:
        found = DPO(made).batch_loss(session, policy, fixed, groups, learn=False)
        pi = [[float(response_sums(policy, [a], 0.7, CPU)) for a in group.answers] for group in groups]
    losses, members = [], []
    for number, group in enumerate(groups):
        for better, worse in group.pairs:
            ref = [answer.reference for answer in group.answers]
            losses.append(reference.dpo_loss(pi[number][better], pi[number][worse], ref[better], ref[worse], 0.3))
            members.append(number)
    assert members == [0, 1, 1]  # the tie of the ranking makes no pair
    assert found["loss"] == pytest.approx(reference.grouped_mean(losses, members), rel=1e-4)
    assert found["margin"] == pytest.approx(found["chosen_reward"] - found["rejected_reward"])


def test_prompt_tokens_count_for_nothing_and_the_end_token_counts(tiny_models) -> None:
    model, tokenizer = load_policy(tiny_models / "sft")
    [answer] = answers_of(tokenizer, "abc", "xy")
    assert answer.response == [*tokenizer.encode("xy"), tokenizer.eos_id]
    hidden = []
    hook = model.ln_f.register_forward_hook(lambda _, __, out: (out.retain_grad(), hidden.append(out))[0])
    response_sums(model, [answer], 1.0, CPU).sum().backward()
    hook.remove()
    reached = hidden[0].grad.abs().sum(-1) > 0  # (N,): the last token predicts nothing and is not read
    before = len(answer.prompt) - 1
    assert reached.tolist() == [False] * before + [True] * 3


def test_padding_changes_no_logratio(tiny_models) -> None:
    model, tokenizer = load_policy(tiny_models / "sft")
    answers = answers_of(tokenizer, "abc", "x", "a much longer answer")
    measure_reference(model, answers, 1.0, CPU, 4096)
    with torch.no_grad():
        assert logratios(model, answers, 1.0, CPU).abs().max() < 1e-4
        alone = torch.cat([response_sums(model, [a], 1.0, CPU) for a in answers])
        torch.testing.assert_close(response_sums(model, answers, 1.0, CPU), alone, rtol=1e-5, atol=1e-4)


def test_a_stopped_run_equals_an_uninterrupted_one(options, monkeypatch) -> None:
    records = [comparison(f"Q {i}", f"good {i}", f"bad {i}") for i in range(24)]
    more = {"batch_size": 4, "valid_fraction": 0.3, "eval_every": 2}
    once, twice = options(records, "once", **more), options(records, "twice", **more)
    run(once)
    for step in (1, 3):
        stop_after(step, run, twice, monkeypatch)
    run(twice)
    assert made_files(once.out) == made_files(twice.out)
    assert curves(once.out) == curves(twice.out)
    lines = curves(once.out)
    assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert lines[-1]["loss"] < 0.68
    results = read_json(once.out / "provenance.json")["results"]
    assert results["valid_loss"] == pytest.approx(lines[-1]["valid_loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("records", "changes", "error", "words"),
    [
        ([Vote(prompt=as_messages("Q"), response="a", vote=1)], {}, DataError, "`wukong kto` learns from votes"),
        ([comparison("Q", "a", "b", tie=True)], {}, UsageError, "nothing is left to train on"),
        ([comparison("Q", "a" * 70, "b")], {}, UsageError, "nothing is left to train on"),
        ([A_WINS], {"loss": "ipo", "label_smoothing": 0.1}, UsageError, "--label-smoothing belongs to --loss dpo"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(options, records, changes, error, words) -> None:
    with pytest.raises(error, match=words):
        run(options(records, **changes))


def test_few_comparisons_are_learnt_in_several_passes_and_the_end_says_how_far_the_policy_moved(
    options, tiny_models, capsys
) -> None:
    records = [comparison(f"Q {i}", f"good {i}", f"bad {i}") for i in range(48)]
    made = options(records, lr=None)
    run(made)
    results = json.loads((made.out / "provenance.json").read_text())["results"]
    assert results["passes"] == {"epochs": 4, "batch_size": 8, "lr": pytest.approx(5e-5), "steps": 24}
    said = capsys.readouterr().err
    assert "dpo: 48 records, 0 held out, 24 steps of 8 (4 epochs, learning rate 5e-05)" in said
    assert "dpo: warning: 24 optimiser steps may teach the model next to nothing" in said
    assert f"dpo: the model moved {results['kl_to_start']:.3g} nats per token (KL) from where it started" in said
    assert f"next: wukong evaluate --models start={tiny_models / 'sft'} dpo={made.out}" in said
    compute = json.loads((made.out / "provenance.json").read_text())["compute"]
    assert (compute["device"], compute["precision"]) == ("cpu", "float32")
    assert f"dpo: device cpu, precision float32, threads {compute['threads']}" in said
