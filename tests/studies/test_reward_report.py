"""The reward-model report: what it finds on a model that learnt, on labels at random, and what it refuses."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from wukong import cli, cli_parser
from wukong.errors import DataError, UsageError
from wukong.feedback.reward_models import require_better_than_chance
from wukong.provenance import read_record
from wukong.records import Comparison, Response, as_messages, prompt_id, write_records
from wukong.registry import TOOLS
from wukong.studies import reward_report
from wukong.studies.reward_report import RewardReportOptions


def response(question: str, text: str) -> Response:
    messages = as_messages(question)
    return Response(id=text, prompt_id=prompt_id(messages), messages=messages, text=text, model="m")


@pytest.fixture(scope="module")
def report(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report's directory."""
    place = tmp_path_factory.mktemp("report")
    write_records(place / "sft.jsonl", [response(f"is {n} a number", f"no {n}") for n in range(9)])
    answers = {"policy": {"text": "yes"}, "sft": {"text": "no"}}
    line = {"messages": [{"role": "user", "content": "is 4 a number"}], "answers": answers}
    (place / "answers.jsonl").write_text(json.dumps(line) + "\n")
    samples = [f"sft={place / 'sft.jsonl'}", f"policy={place / 'answers.jsonl'}"]
    out = place / "out"
    code = cli.main(
        ["reward-report", str(models / "reward"), "--samples", *samples, "--fractions", "0.1", "0.5",
         "--precision", "float32", "--out", str(out)]
    )  # fmt: skip
    assert code == 0
    return out


def test_it_agrees_with_what_training_measured(report: Path, models: Path):
    found = json.loads((report / "report.json").read_text())
    results = json.loads((models / "reward" / "provenance.json").read_text())["results"]
    assert found["accuracy"]["value"] == results["valid_accuracy"] > 0.9
    assert found["accuracy"]["pairs"] == results["valid_pairs"]
    assert found["train_pairs"] == results["train_pairs"]
    # the scale of training is found again behind the normalisation
    for own, theirs in zip(found["calibration"]["bins"], results["calibration"], strict=True):
        assert own["n"] == theirs["n"]
        assert own["predicted"] == pytest.approx(theirs["predicted"], abs=1e-4)
    assert found["preflight"] == {"passed": True, "problem": None}
    assert found["agreement"] is None


def test_slices_scores_and_learning_curve_are_there(report: Path):
    found = json.loads((report / "report.json").read_text())
    pairs = found["accuracy"]["pairs"]
    assert [row["name"] for row in found["by"]["source"]] == ["s0", "s1"]
    assert all(sum(row["pairs"] for row in rows) == pairs for rows in found["by"].values())
    sets = found["scores"]["sets"]
    assert [(name, one["n"]) for name, one in sets.items()] == [
        ("chosen", pairs), ("rejected", pairs), ("sft", 9), ("policy", 1),
    ]  # fmt: skip
    assert all(sum(one["counts"]) == one["n"] for one in sets.values())
    assert sets["chosen"]["mean"] > sets["rejected"]["mean"]
    assert sets["policy"]["mean"] > sets["sft"]["mean"]
    points = found["learning_curve"]["points"]
    assert [point["fraction"] for point in points] == [0.1, 0.5, 1.0]
    assert points[0]["prompts"] < points[1]["prompts"] < points[2]["prompts"]
    assert points[2]["accuracy"] == found["accuracy"]
    assert found["judges"]["bag_of_words"]["accuracy"]["value"] == 1.0  # "yes" against "no"
    assert found["judges"]["length"]["accuracy"]["value"] > 0.8  # "yes 1" is longer than "no 1"


class Page(HTMLParser):
    """What a page would fetch, and the places of its charts."""

    def __init__(self):
        super().__init__()
        self.fetched, self.ids = [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.fetched += [given[name] for name in ("src", "href") if name in given and not given[name].startswith("#")]
        self.ids += [given["id"]] if "id" in given else []


def test_the_page_needs_nothing_else_and_draws_every_chart_once(report: Path):
    text = (report / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.fetched == []
    assert text.count("plotly.js v") >= 1
    assert len(re.findall(r"<script>", text)) == 2  # Plotly's, once, and ours
    charts = json.loads(re.search(r'<script type="application/json" id="charts">(.*?)</script>', text, re.S)[1])
    assert len(charts) == 8  # five slices, calibration, scores, learning curve
    assert all(page.ids.count(name) == 1 for name in charts)


def test_the_fits_leave_nothing_behind_and_the_same_command_does_nothing(report: Path, models: Path, capsys):
    assert not (report / "fits").exists()
    record = read_record(report)
    assert record["results"]["preflight"]["passed"]
    before = (report / "report.json").read_bytes()
    options = RewardReportOptions.model_validate(record["options"])
    reward_report.run(options)
    assert "is complete, nothing to do" in capsys.readouterr().err
    assert (report / "report.json").read_bytes() == before


def test_given_comparisons_are_tested_without_the_prompts_it_was_trained_on(models: Path, tmp_path: Path, friendly):
    """Labels turned around: everything is a mistake, and texts of strangers do not become part of the page."""
    evil = "<script>alert(1)</script>"
    wrong = [Comparison(prompt=as_messages(f"new {n}"), chosen=f"no {n}", rejected=f"yes {n}") for n in range(200, 212)]
    wrong.append(Comparison(prompt=as_messages("new 1"), chosen=f"no {evil}", rejected=f"yes {evil}"))
    judged = [friendly(n, name) for n in range(400, 404) for name in ("ann", "bob")]
    write_records(tmp_path / "data.jsonl", [friendly(n) for n in range(160)] + wrong + judged)
    options = RewardReportOptions(
        reward_model=str(models / "reward"), data=[str(tmp_path / "data.jsonl")], fractions=[], mistakes=5,
        out=tmp_path / "out", precision="float32",
    )  # fmt: skip
    reward_report.run(options)
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert any("left out: the model was trained on their prompts" in note for note in found["notes"])
    assert found["learning_curve"] is None
    assert found["agreement"]["agreement"] == 1.0
    assert len(found["mistakes"]) == 5
    assert all(one["chosen"]["text"].startswith("no") for one in found["mistakes"])
    margins = [one["margin"] for one in found["mistakes"]]
    assert margins == sorted(margins)
    assert evil not in (tmp_path / "out" / "report.html").read_text()


def test_unusable_input_is_one_line(models: Path, tmp_path: Path):
    def refused(**changes) -> str:
        with pytest.raises(UsageError) as error:
            reward_report.run(
                RewardReportOptions(**{"reward_model": str(models / "reward"), "out": tmp_path / "out", **changes})
            )
        return str(error.value)

    assert "must be between 0 and 1" in refused(fractions=[1.0])
    assert "holds a language model" in refused(reward_model=str(models / "sft"), data=["x.jsonl"])
    assert "x.jsonl: no such file" in refused(data=["x.jsonl"], fractions=[])
    (tmp_path / "empty.jsonl").write_text('{"messages": [], "answers": {}}\n')
    line = refused(samples=[f"policy={tmp_path / 'empty.jsonl'}"], fractions=[])
    assert "contains no answer of 'policy'" in line


def test_a_bad_answer_among_the_samples_is_refused_or_left_out_and_listed(models: Path, tmp_path: Path, capsys):
    file = tmp_path / "sft.jsonl"
    write_records(file, [response(f"is {n} a number", f"no {n}") for n in range(3)])
    good = file.read_text().splitlines(keepends=True)
    broken = '{"messages": [{"role": "user", "content": "is 4 a number"}], "answers": {"sft": {}}}\n'
    file.write_text("".join([*good[:2], broken, good[2]]))
    options = RewardReportOptions(
        reward_model=str(models / "reward"), samples=[f"sft={file}"], fractions=[], out=tmp_path / "out",
        precision="float32",
    )  # fmt: skip
    problem = f"{file}:3: field 'answers.sft.text': Field required"
    with pytest.raises(DataError) as caught:
        reward_report.run(options)
    assert str(caught.value).startswith(problem)
    reward_report.run(options.model_copy(update={"skip_bad": 1}))
    assert json.loads((tmp_path / "out" / "report.json").read_text())["scores"]["sets"]["sft"]["n"] == 3
    assert f"left out: {problem}" in capsys.readouterr().err


def test_the_reward_model_is_named_first_and_no_fractions_are_possible(capsys):
    options, _ = TOOLS["reward-report"].load()
    known = cli_parser.hints(options, positional="reward_model")
    given = cli_parser.parse("wukong reward-report", known, "", ["runs/r", "--fractions", "--out", "x"])
    assert (given["reward_model"], given["fractions"]) == ("runs/r", [])
    assert cli.main(["reward-report", "--out", "x"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "REWARD_MODEL" in line.upper().replace("-", "_")


def test_preflight_lets_good_and_unknown_models_pass_and_refuses_a_coin(models: Path, tmp_path: Path, capsys):
    require_better_than_chance(models / "reward")
    require_better_than_chance(models / "sft")  # says that its accuracy is not known
    assert "no held-out accuracy recorded" in capsys.readouterr().err
    results = {"valid_accuracy": 0.52, "valid_accuracy_interval": [0.48, 0.56], "valid_pairs": 600}
    (tmp_path / "provenance.json").write_text(json.dumps({"stage": "reward", "results": results}))
    with pytest.raises(UsageError, match=r"52 % \[48, 56\], .* chance; .* --allow-chance-reward-model"):
        require_better_than_chance(tmp_path)
    require_better_than_chance(tmp_path, allow=True)
    assert "training goes on, as asked" in capsys.readouterr().err
