"""What a run tells: the change after each step, a sample, and the same question at the end."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from wukong import story
from wukong.files import write_json
from wukong.language import choose


def answered(question: str, **answers: str) -> str:
    messages = [{"role": "user", "content": question}]
    return json.dumps({"messages": messages, "answers": {name: {"text": text} for name, text in answers.items()}})


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    lines = [answered("One?", sft="1", policy="one"), answered("How to make pizza", sft="", policy="Gladly!")]
    (tmp_path / "answers.jsonl").write_text("\n".join([*lines, "no JSON at all", ""]))
    return tmp_path


def test_the_end_shows_the_pinned_question_and_reads_no_further(evaluation, capsys):
    story.tell_answers(evaluation, ["how to make PIZZA?", "One?"])
    assert capsys.readouterr().err.splitlines() == [
        "the same question, answered by each model: “How to make pizza”",
        "  sft: (empty)",
        "  policy: Gladly!",
    ]


def test_without_a_pinned_question_the_first_one_is_shown(evaluation, capsys):
    (evaluation / "answers.jsonl").write_text(answered("One?", sft="1") + "\n")
    story.tell_answers(evaluation, ["Never asked?"])
    assert "“One?”" in capsys.readouterr().err


def recorded(out: Path, results: dict, *, beside: bool = False) -> None:
    record = {"stage": "x", "options": {}, "inputs": {}, "files": {}, "version": "0", "result": "r", "results": results}
    write_json(Path(f"{out}.provenance.json") if beside else out / "provenance.json", record)


def test_a_training_step_says_where_the_loss_went(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 6.51234}\n{"step": 2, "loss": 0.51111}\n')
    recorded(tmp_path, {"valid_loss": 0.5082})
    story.tell("pretrain", SimpleNamespace(out=tmp_path), None)
    assert capsys.readouterr().err == (
        "  learned to continue text: loss 6.51 -> 0.511; on held-out text 0.508, a choice among 1.7 tokens\n"
    )


def test_labels_are_shown_by_their_best_and_worst_answer(tmp_path, capsys):
    out = tmp_path / "labels.jsonl"
    ranking = {"prompt": [], "responses": ["a", "b", "c"], "groups": [[1], [0], [2]]}
    out.write_text(json.dumps(ranking) + "\n")
    recorded(out, {"records": 1, "prompts": 3, "responses": 9}, beside=True)
    choose("zh")
    try:
        story.tell("label", SimpleNamespace(out=out), None)
    finally:
        choose(None)
    said = capsys.readouterr().err
    assert said.splitlines() == [
        "  评判了 3 个提示的回答：1 个标签，平局不计", "  较好：“b”", "  较差：“c”",
    ]  # fmt: skip


def test_a_step_without_a_record_says_nothing(tmp_path, capsys):
    story.tell("report", SimpleNamespace(out=tmp_path / "report.html"), "question")
    assert capsys.readouterr().err == ""
