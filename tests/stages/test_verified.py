"""Answers and columns travel from a file of prompts to every place where a reward or judge reads them."""

import json
from pathlib import Path

import pytest

from wukong.errors import DataError, UsageError
from wukong.records import Prompt, Ranking, Response, as_messages, read_records, write_records
from wukong.stages import evaluate, label, sample
from wukong.stages.evaluate import EvaluateOptions
from wukong.stages.label import LabelOptions
from wukong.stages.online import grpo
from wukong.stages.online.grpo import GRPOOptions
from wukong.stages.sample import SampleOptions
from wukong.studies import compare
from wukong.studies.compare import CompareOptions
from wukong.training.metrics import read_metrics

HERE = __name__


def length_minus_level(prompts, responses, *, answer, level):
    """A number that depends on every part of the record."""
    return [
        len(text) + 100 * len(prompt[-1].content) + 10_000 * int(right) + 1_000_000 * one
        for prompt, text, right, one in zip(prompts, responses, answer, level, strict=True)
    ]


def hard(prompts, responses, *, difficulty):
    return [0.0] * len(responses)


def expected_scores(prompts: list[Prompt], texts: list[str]) -> list[float]:
    places = zip(prompts, texts, strict=True)
    return [
        len(t)
        + 100 * len(p.messages[-1].content)
        + 10_000 * int(str(p.answer))
        + 1_000_000 * (p.columns or {})["level"]
        for p, t in places
    ]


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"question": "x" * n, "answer": n, "level": n % 3}) + "\n" for n in range(1, 5)))
    return path


def grpo_options(tmp_path: Path, asked: Path, models: Path, **changes) -> GRPOOptions:
    settings = {
        "out": tmp_path / "out", "model": str(models / "sft"), "prompts": [str(asked)], "episodes": 16,
        "batch_size": 8, "samples_per_prompt": 2, "max_new_tokens": 4, "missing_eos_score": None,
        "precision": "float32", "tensorboard": False, "rewards": [f"{HERE}:length_minus_level", "number"],
    }  # fmt: skip
    return GRPOOptions(**{**settings, **changes})


def test_a_reward_sees_the_answer_and_the_columns_of_each_prompt(tmp_path, asked, tiny_models):
    grpo.run(grpo_options(tmp_path, asked, tiny_models))
    lines = read_metrics(tmp_path / "out")
    names = (f"reward_of.{HERE}:length_minus_level", "reward_of.number")
    scored = [line for line in lines if names[0] in line]
    assert len(scored) == 2
    for line in scored:  # four prompts, each twice: all levels and answers are in the mean
        known = sum(100 * n + 10_000 * n + 1_000_000 * (n % 3) for n in range(1, 5)) / 4
        assert 0 <= line[names[0]] - known <= 4 * 4  # bytes of a response, each of which is at most one character
        assert line["reward_model_score"] == pytest.approx(line[names[0]] + line[names[1]], rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rewards": [f"{HERE}:hard"]}, "hard asks for difficulty, and no prompt of .*p.jsonl has such a field"),
        ({"rewards": ["0.5*constraints"]}, r"p\.jsonl:1: field 'instruction_id_list'.*which constraints needs"),
        ({"rewards": ["regex"]}, r"p\.jsonl:1: field 'regex': the prompt has no pattern.*which regex needs"),
        ({"columns": ["answer="]}, r"length_minus_level asks for answer|field 'answer'.*which number needs"),
        (
            {"trace_prompts": ["new"], "rewards": ["number"]},
            "--trace-prompts 'new': .*no reference answer, which number",
        ),
    ],
)
def test_a_prompt_that_lacks_something_is_one_line_before_training(tmp_path, asked, tiny_models, changes, words):
    with pytest.raises(UsageError, match=words) as caught:
        grpo.run(grpo_options(tmp_path, asked, tiny_models, **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_the_last_prompt_is_checked_too_even_where_bad_records_are_skipped(tmp_path, asked, tiny_models):
    with asked.open("a") as out:
        out.write(json.dumps({"question": "z", "answer": "none", "level": 0}) + "\n")
    with pytest.raises(UsageError, match=r"p\.jsonl:5: field 'answer': 'none' has 0 numbers.*which number needs"):
        grpo.run(grpo_options(tmp_path, asked, tiny_models, skip_bad=3))


def test_a_pinned_prompt_of_the_run_has_its_answer(tmp_path, asked, tiny_models):
    grpo.run(grpo_options(tmp_path, asked, tiny_models, trace_prompts=["xx"], rewards=["number"], trace=1))
    assert (tmp_path / "out" / "trace.jsonl").exists()


def test_samples_labels_evaluations_and_comparisons_are_judged_by_the_answer(tmp_path, asked, tiny_models):
    responses = tmp_path / "r.jsonl"
    judge = f"{HERE}:length_minus_level"
    sample.run(
        SampleOptions(
            out=responses, models=[str(tiny_models / "sft")], prompts=[str(asked)], responses_per_prompt=3,
            max_new_tokens=6, precision="float32",
        )
    )  # fmt: skip
    sampled = read_records(responses, Response)
    assert {(one.answer, (one.columns or {})["level"]) for one in sampled} == {(str(n), n % 3) for n in range(1, 5)}
    label.run(LabelOptions(out=tmp_path / "c.jsonl", responses=str(responses), judge=judge))
    for ranking in read_records(tmp_path / "c.jsonl", Ranking):
        lengths = [len(ranking.responses[group[0]]) for group in ranking.groups]
        assert lengths == sorted(lengths, reverse=True)
    options = EvaluateOptions(
        out=tmp_path / "e", models=[f"{name}={tiny_models / name}" for name in ("sft", "other")], prompts=[str(asked)],
        judge=judge, best_of=["other=2"], best_of_reward="number", max_new_tokens=6, precision="float32",
    )  # fmt: skip
    evaluate.run(options)
    lines = [json.loads(line) for line in (tmp_path / "e" / "answers.jsonl").read_text().splitlines()]
    prompts = [
        Prompt(messages=one["messages"], id=one["prompt_id"], answer=one["answer"], columns=one["columns"])
        for one in lines
    ]
    for name in ("sft", "other"):
        texts, found = ([line["answers"][name][part] for line in lines] for part in ("text", "score"))
        assert found == expected_scores(prompts, texts)
    # from the files of answers alone, without the prompts
    answers = str(tmp_path / "e" / "answers.jsonl")
    compare.run(
        CompareOptions(
            out=tmp_path / "v", models=[f"sft={answers}", f"other={answers}", f"again={responses}"], judge=judge
        )
    )
    again = [json.loads(line) for line in (tmp_path / "v" / "answers.jsonl").read_text().splitlines()]
    assert [(one["answer"], one["columns"]) for one in again] == [(one["answer"], one["columns"]) for one in lines]


def test_responses_without_answers_cannot_be_verified(tmp_path):
    asked = [Prompt(messages=as_messages("1 + 1?"))]
    responses = [
        Response(id=str(i), prompt_id=one.id, messages=one.messages, text=str(i), model="m")
        for one in asked
        for i in (1, 2)
    ]
    write_records(tmp_path / "r.jsonl", responses)
    with pytest.raises(DataError, match="field 'answer': the prompt has no reference answer"):
        label.run(LabelOptions(out=tmp_path / "c.jsonl", responses=str(tmp_path / "r.jsonl"), judge="number"))
    assert not (tmp_path / "c.jsonl").exists()


def test_a_rubric_or_schema_file_is_an_input_of_the_result(tmp_path, asked, tiny_models):
    schema = tmp_path / "schema.json"
    schema.write_text("{}")
    options = grpo_options(tmp_path, asked, tiny_models, rewards=[f"json:{schema}"], episodes=8)
    grpo.run(options)
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert any(name.endswith("/schema.json") for name in record["inputs"])
    schema.write_text('{"type": "integer"}')
    with pytest.raises(UsageError, match="made from different input files"):
        grpo.run(options)
