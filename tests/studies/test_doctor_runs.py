"""`wukong doctor RUN` on runs as they lie on disk."""

import json
import shutil
from pathlib import Path

import pytest

from tests.report.made_up_steps import HEALTHY, noisy
from wukong.cli import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one finished policy, whose KL ran away."""
    policy = tmp_path / "run" / "policy"
    policy.mkdir(parents=True)
    curves = HEALTHY | {"kl": noisy(0, 70, 2)}
    lines = [{"step": i + 1, **{name: values[i] for name, values in curves.items()}} for i in range(len(curves["kl"]))]
    (policy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (policy / "provenance.json").write_text(json.dumps({"stage": "ppo", "options": {"lr": 0.01}, "finished": "2026"}))
    return policy.parent


@pytest.mark.parametrize("place", ["", "policy"])
def test_a_run_and_a_single_stage_are_diagnosed(run, capsys, place):
    assert main(["doctor", str(run / place)]) == 0
    said = capsys.readouterr().out
    assert "1 red and 0 amber findings" in said
    assert "RED    policy: The KL runs away · confidence: high" in said
    assert "docs/tools/doctor.md#kl-runaway" in said
    assert "The reward model does not read the prompt: no step that it concerns" in said


def test_strict_fails_and_json_is_complete(run, capsys):
    assert main(["doctor", str(run), "--strict", "--as-json"]) == 1
    said = capsys.readouterr()
    assert said.err == f"wukong: error: 1 red findings in {run}\n"
    (found,) = json.loads(said.out)["findings"]
    assert (found["code"], found["severity"], found["step"]) == ("kl-runaway", "red", "policy")
    assert found["evidence"]
    assert found["link"].endswith("tools/doctor.html#kl-runaway")


def test_it_speaks_chinese(run, capsys):
    assert main(["doctor", str(run), "--language", "zh"]) == 0
    assert "policy：KL 失控 · 把握：高" in capsys.readouterr().out


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert main(["doctor", str(tmp_path / "absent")]) == 2
    assert main(["doctor", str(tmp_path)]) == 2
    assert main(["doctor", "--strict"]) == 2
    assert "about a run" in capsys.readouterr().err


def test_a_damaged_file_is_named(run, capsys):
    (run / "policy" / "metrics.jsonl").write_text("{\n{}\n")
    assert main(["doctor", str(run)]) == 2
    assert "metrics.jsonl:1: not valid JSON" in capsys.readouterr().err


def test_a_run_too_small_to_learn_is_told_so(older_run, capsys):
    """The recipe test: its reward model is no better than chance, and its answers are cut."""
    assert main(["doctor", str(older_run), "--as-json"]) == 0
    found = {one["code"]: one["severity"] for one in json.loads(capsys.readouterr().out)["findings"]}
    assert found["never-ends"] == "red"
    assert found["reward-at-chance"] == "amber"
    assert found["too-little"] == "red"
    labels = older_run / "comparisons.jsonl"
    shutil.copy(labels, labels.with_name("copy.jsonl"))
    assert main(["doctor", str(labels)]) == 0
    assert "no pair was judged twice" in capsys.readouterr().out
