"""docs/guide/follow-the-article.md: all its commands run in order, and what it says about their results holds."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.named_in_docs import ROOT, SOURCE, defined
from wukong.records import Ranking, read_records
from wukong.registry import STAGES, TOOLS
from wukong.training.metrics import read_metrics

PAGE = (ROOT / "docs" / "guide" / "follow-the-article.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [block for language, block in BLOCKS if not language]


def test_files_and_functions_that_the_page_names_exist():
    files = {name for name in re.findall(r"`([\w/]+\.py)`", PAGE) if not name.startswith("examples/")}
    assert len(files) >= 8
    assert [name for name in files if not (SOURCE / name).is_file()] == []
    placed = re.findall(r"`([\w.]+)` in `([\w/]+\.py)`", PAGE)
    assert len(placed) >= 5
    assert [(name, file) for name, file in placed if name not in defined(SOURCE / file)] == []


def test_options_of_the_commands_exist():
    lines = [line.split() for block in COMMANDS for line in block.splitlines() if line.startswith("wukong ")]
    assert {line[1] for line in lines} > {
        "pretrain",
        "sft",
        "sample",
        "label",
        "labelstudio",
        "reward",
        "ppo",
        "evaluate",
    }
    for line in lines:
        options, _ = {**STAGES, **TOOLS}[line[1]].load()
        given = {word.removeprefix("--").replace("-", "_") for word in line if word.startswith("--")}
        assert given <= set(options.model_fields), line


@pytest.fixture(scope="module")
def article(tmp_path_factory) -> tuple[Path, str]:
    """The page's commands, as a reader pastes them into a shell: the run directory, and all that was printed."""
    home = tmp_path_factory.mktemp("article")
    programs = home / "bin"
    programs.mkdir()
    for name, arguments in (("wukong", "-m wukong "), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        (programs / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    script = "set -e\n" + "".join(COMMANDS)
    done = subprocess.run(
        ["bash", "-c", script], cwd=home, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return home / "runs" / "article", done.stdout


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the page's commands are for a POSIX shell")
def test_a_reader_who_pastes_all_commands_gets_what_the_page_shows(article):
    run, printed = article
    assert "[[0], [1], [2], [3]] 6 pairs" in printed
    assert [ranking.annotator for ranking in read_records(run / "by-hand.jsonl", Ranking)] == ["ann@example.org"]
    (shown,) = [block for language, block in BLOCKS if language == "json"]
    task = json.loads((run / "pairwise.json").read_text(encoding="utf-8"))[0]
    assert task.keys() == json.loads(shown).keys()
    assert task["data"].keys() == json.loads(shown)["data"].keys()
    rankings = read_records(run / "comparisons.jsonl", Ranking)
    assert max(len(list(ranking.pairs())) for ranking in rankings) == 6
    for name, pooling in (("reward", "last"), ("reward-weighted", "weighted")):
        config = json.loads((run / name / "config.json").read_text(encoding="utf-8"))
        assert config["wukong"] == {"model_type": "gpt2", "head": "mlp", "pooling": pooling}
    assert (run / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the page's commands are for a POSIX shell")
def test_every_step_of_the_article_shows_its_effect(article):
    run, _ = article
    scores = [line["score"] for line in read_metrics(run / "policy")]
    assert sum(scores[-3:]) > sum(scores[:3]), "PPO raises the reward model's score"
    evaluation = json.loads((run / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    by_rubric = {(c["a"], c["b"]): c for c in evaluation["comparisons"] if c["judge"] == "rubric"}
    assert by_rubric["sft", "base"]["interval"][0] > 0.5, "SFT answers where the base model continues"
    assert by_rubric["policy", "sft"]["win_rate"] > 0.5, "people would prefer the policy"
    assert 0 < evaluation["models"]["policy"]["kl"] < 20
