"""Comparing policies: models, files of answers, judges of every kind, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.openai_server import openai_server
from wukong import cli
from wukong.errors import DataError, UsageError
from wukong.records import Comparison, Prompt, Ranking, Response, as_messages, prompt_id, write_records
from wukong.stages import evaluate
from wukong.stages.evaluate import EvaluateOptions
from wukong.studies import compare
from wukong.studies.compare import CompareOptions

QUESTIONS = [f"say {n}" for n in range(12)]


def responses(path: Path, answers: dict[str, str], model: str = "m") -> Path:
    """A responses.jsonl with one answer to each question."""
    records = []
    for question, text in answers.items():
        messages = as_messages(question)
        records.append(Response(id=question, prompt_id=prompt_id(messages), messages=messages, text=text, model=model))
    write_records(path, records)
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """good beats poor on 9 of 12 questions by the number of exclamation marks, ties on 2 and loses 1; fair lies
    between."""
    good = {q: "!!!" if n < 9 else "!" if n < 11 else "" for n, q in enumerate(QUESTIONS)}
    made = {"good": {q: f"yes{text}" for q, text in good.items()}, "poor": dict.fromkeys(QUESTIONS, "no!"),
            "fair": dict.fromkeys(QUESTIONS, "well!!")}  # fmt: skip
    return [f"{name}={responses(tmp_path / f'{name}.jsonl', made[name])}" for name in ("good", "poor", "fair")]


def marks(prompts, texts) -> list[float]:
    return [float(text.count("!")) for text in texts]


def compared(tmp_path: Path, models: list[str], **changes) -> dict:
    options = {"models": models, "judge": f"{__name__}:marks", "out": tmp_path / "out", "precision": "float32"}
    options |= changes
    compare.run(CompareOptions(**options))
    return json.loads((options["out"] / "comparison.json").read_text())


def test_files_of_answers_are_compared_and_said_in_words(tmp_path: Path, files: list[str], capsys):
    found = compared(tmp_path, files)
    judged = found["judges"][f"{__name__}:marks"]
    by_pair = {(one["a"], one["b"]): one for one in judged["comparisons"]}
    assert list(by_pair) == [("good", "poor"), ("good", "fair"), ("poor", "fair")]
    first = by_pair["good", "poor"]
    assert (first["wins"], first["ties"], first["losses"]) == (9, 2, 1)
    assert first["win_rate"] == pytest.approx(10 / 12)
    assert first["words"].startswith("good is better than poor: 83 % [")
    ratings = {name: one["rating"] for name, one in judged["ratings"].items()}
    assert ratings["good"] > ratings["fair"] > ratings["poor"]
    said = " ".join(capsys.readouterr().err.split())
    assert first["words"] in said
    assert f"could not check whether any of the {len(QUESTIONS)} prompts were used in training" in said
    assert found["overlap"]["seen"] == 0


@pytest.mark.parametrize("line", [1, 5])
def test_a_bad_answer_is_refused_or_left_out_and_listed(tmp_path: Path, files: list[str], line: int, capsys):
    expected = compared(tmp_path, files, out=tmp_path / "expected")
    file = tmp_path / "poor.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    lines.insert(line - 1, '{"id": "x", "text": "no"}\n')
    file.write_text("".join(lines))
    problem = f"{file}:{line}: field 'prompt_id': Field required"
    with pytest.raises(DataError) as caught:
        compared(tmp_path, files)
    assert str(caught.value).startswith(problem)
    capsys.readouterr()
    found = compared(tmp_path, files, skip_bad=1)
    assert found["judges"] == expected["judges"]
    assert f"left out: {problem}" in capsys.readouterr().err


def test_its_own_answers_can_be_compared_again(tmp_path: Path, files: list[str]):
    before = compared(tmp_path, files)
    answers = tmp_path / "out" / "answers.jsonl"
    again = compared(tmp_path, [f"good={answers}", f"poor={answers}", f"fair={answers}"], out=tmp_path / "again")
    assert again["judges"] == before["judges"]


def test_models_answer_as_in_an_evaluation(tmp_path: Path, models: Path):
    """The same seeds, so the same answers and the same win rates by the judge and the reward model."""
    write_records(tmp_path / "p.jsonl", [Prompt(messages=as_messages(q)) for q in QUESTIONS])
    named = [f"sft={models / 'sft'}", f"policy={models / 'other'}"]
    shared = {
        "prompts": [str(tmp_path / "p.jsonl")], "judge": f"{__name__}:marks", "max_new_tokens": 6, "limit": 8,
        "reward_model": str(models / "reward"), "precision": "float32",
    }  # fmt: skip
    evaluate.run(EvaluateOptions(out=tmp_path / "evaluation", models=named, **shared))
    expected = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["comparisons"]
    found = compared(tmp_path, list(reversed(named)), **shared)
    for one in expected:
        [own] = found["judges"][one["judge"]]["comparisons"]
        assert (own["a"], own["b"], own["n"]) == ("policy", "sft", 8)
        assert (own["wins"], own["ties"], own["losses"]) == (one["wins"], one["ties"], one["losses"])
        assert own["interval"] == one["interval"]


def test_a_model_and_a_file_share_the_prompts_that_the_file_answers(tmp_path: Path, models: Path, files, capsys):
    write_records(tmp_path / "p.jsonl", [Prompt(messages=as_messages(q)) for q in [*QUESTIONS[:4], "another"]])
    prompts = [str(tmp_path / "p.jsonl")]
    found = compared(tmp_path, [f"sft={models / 'sft'}", files[0]], prompts=prompts, max_new_tokens=4)
    assert found["n_prompts"] == 4
    assert "1 of 5 prompts left out" in capsys.readouterr().err


def test_people_judge_by_a_file_and_the_judge_is_held_against_them(tmp_path: Path, files: list[str]):
    """People agree with the marks on 4 questions, disagree on one, tie on one; a ranking judges all three models."""
    human = [Comparison(prompt=as_messages(q), chosen="yes!!!", rejected="no!") for q in QUESTIONS[:4]]
    human.append(Comparison(prompt=as_messages(QUESTIONS[4]), chosen="no!", rejected="yes!!!"))
    human.append(Comparison(prompt=as_messages(QUESTIONS[5]), chosen="no!", rejected="yes!!!", tie=True))
    three = ["yes!!!", "no!", "well!!"]
    human.append(Ranking(prompt=as_messages(QUESTIONS[6]), responses=three, groups=[[0], [1, 2]]))
    human.append(Comparison(prompt=as_messages("elsewhere"), chosen="x", rejected="y"))
    write_records(tmp_path / "human.jsonl", human)
    found = compared(tmp_path, files, human=[str(tmp_path / "human.jsonl")])["judges"]
    people = {(one["a"], one["b"]): one for one in found["people"]["comparisons"]}
    first = people["good", "poor"]
    assert (first["n"], first["wins"], first["ties"], first["losses"]) == (7, 5, 1, 1)
    assert people["good", "fair"]["n"] == people["poor", "fair"]["n"] == 1
    assert people["poor", "fair"]["win_rate"] == 0.5
    together = found[f"{__name__}:marks"]["agreement_with_people"]
    # clear verdicts: 6 on good and poor, 5 of them alike, and good over fair, which the marks say too
    assert (together["judgments"], together["value"]) == (7, pytest.approx(6 / 7))


@pytest.fixture
def endpoint():
    """An OpenAI-compatible server over real HTTP: counts exclamation marks, but takes the first answer when they are
    equally many, and says nothing useful about "say 3"."""

    def first_unless_fewer(request: dict) -> str:
        text = request["messages"][-1]["content"]
        first, second = text.partition("[answer A]")[2].split("[answer B]")
        reply = f"[[{'A' if first.count('!') >= second.count('!') else 'B'}]]"
        return "Hm." if "say 3\n" in text else reply

    with openai_server(first_unless_fewer) as (url, _):
        yield url


def test_a_language_model_judges_in_both_orders(tmp_path: Path, files: list[str], endpoint: str, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    found = compared(tmp_path, files[:2], judge=None, endpoint=endpoint, endpoint_model="m")["judges"]["m"]
    [pair] = found["comparisons"]
    # as by the marks, without say 3; the two ties are what the order would else decide
    assert (pair["n"], pair["wins"], pair["ties"], pair["losses"]) == (11, 8, 2, 1)
    assert (found["verdicts"], found["without_verdict"]) == (24, 2)
    assert found["same_in_both_orders"] == pytest.approx(9 / 11)
    assert found["first_in_both_orders"] == pytest.approx(2 / 11)
    assert len((tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()) == 24


def test_unusable_input_is_one_line(tmp_path: Path, files: list[str], models: Path, capsys):
    def refused(*arguments: str) -> str:
        assert cli.main(["compare", *arguments, "--out", str(tmp_path / "x")]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    rubric = ["--judge", "rubric"]
    assert "two or more models with different names" in refused(files[0], *rubric)
    assert "the name 'good' is given twice" in refused(files[0], files[0], *rubric)
    assert "a judge (--judge, --reward-model, --endpoint or --human) is required" in refused(*files)
    assert "--endpoint and --endpoint-model go together" in refused(*files, "--endpoint", "http://127.0.0.1:9/v1")
    assert "--prompts is required" in refused(files[0], f"sft={models / 'sft'}", *rubric)
    assert "MODELS and a judge (" in refused()
    other = responses(tmp_path / "other.jsonl", {"another question": "x"})
    assert "no prompt has answers in all files" in refused(files[0], f"other={other}", *rubric)
    write_records(tmp_path / "h.jsonl", [Comparison(prompt=as_messages("q"), chosen="a", rejected="b")])
    assert "no judgment compares two of these answers" in refused(*files, "--human", str(tmp_path / "h.jsonl"))
    (tmp_path / "bad.jsonl").write_text('{"text": "no prompt"}\n')
    assert "bad.jsonl:1: field 'id'" in refused(files[0], f"bad={tmp_path / 'bad.jsonl'}", *rubric)
    assert not (tmp_path / "x" / "comparison.json").exists()


def test_the_same_command_does_nothing_and_another_one_is_refused(tmp_path: Path, files: list[str], capsys):
    compared(tmp_path, files)
    compared(tmp_path, files)
    assert "is complete, nothing to do" in capsys.readouterr().err
    with pytest.raises(UsageError, match="made with other options"):
        compared(tmp_path, files[:2])


def test_equal_answers_are_ties_for_everybody(tmp_path: Path):
    same = dict.fromkeys(QUESTIONS, "yes")
    pair = [f"a={responses(tmp_path / 'a.jsonl', same)}", f"b={responses(tmp_path / 'b.jsonl', same)}"]
    [found] = compared(tmp_path, pair)["judges"][f"{__name__}:marks"]["comparisons"]
    assert np.isclose(found["win_rate"], 0.5)
    assert "they are tied on all of them" in found["words"]
