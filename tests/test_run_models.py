"""Which model of a run to talk to, and what to ask it."""

import json
import os
from pathlib import Path

import pytest

from wukong.model.architectures import REWARDS
from wukong.run_models import best_policy, example_prompts, models_in, newest_run


def make_model(run: Path, name: str, stage: str, architecture: str = "GPT2LMHeadModel") -> Path:
    directory = run / name
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    (directory / "provenance.json").write_text(json.dumps({"stage": stage}))
    return directory


def evaluate(run: Path, scores: dict[str, float | None], key: str = "score_mean") -> None:
    (run / "evaluation").mkdir(exist_ok=True)
    models = {name: {"path": f"{{run}}/{name}", key: score} for name, score in scores.items()}
    (run / "evaluation" / "evaluation.json").write_text(json.dumps({"models": models}))


@pytest.fixture
def run(tmp_path) -> Path:
    for name, stage in (("base", "pretrain"), ("sft", "sft"), ("policy", "ppo"), ("direct", "dpo")):
        make_model(tmp_path, name, stage)
    make_model(tmp_path, "reward", "reward", "GPT2ForSequenceClassification")
    make_model(tmp_path, "mine", "reward", "WukongRewardModel")
    return tmp_path


def test_models_of_a_kind(run) -> None:
    (run / "broken").mkdir()
    (run / "broken" / "config.json").write_text("{")
    assert [path.name for path in models_in(run)] == ["base", "direct", "policy", "sft"]
    assert [path.name for path in models_in(run, REWARDS)] == ["mine", "reward"]


def test_without_an_evaluation_the_last_stage_speaks(run) -> None:
    assert best_policy(run) == run / "policy"


def test_a_run_in_progress_offers_what_it_has(tmp_path) -> None:
    assert best_policy(tmp_path) is None
    make_model(tmp_path, "base", "pretrain")
    assert best_policy(tmp_path) == tmp_path / "base"
    make_model(tmp_path, "sft", "sft")
    assert best_policy(tmp_path) == tmp_path / "sft"


@pytest.mark.parametrize("key", ["score_mean", "reward_mean"])
def test_the_evaluation_decides(run, key) -> None:
    evaluate(run, {"sft": 6.0, "policy": 5.5, "direct": 7.5}, key)
    assert best_policy(run) == run / "direct"


def test_a_model_that_was_evaluated_but_is_gone_is_not_offered(run) -> None:
    evaluate(run, {"sft": 6.0, "elsewhere": 9.0})
    assert best_policy(run) == run / "sft"


def test_a_damaged_evaluation_is_no_obstacle(run) -> None:
    (run / "evaluation").mkdir()
    (run / "evaluation" / "evaluation.json").write_text("{")
    assert best_policy(run) == run / "policy"


def test_the_newest_run_has_a_model(tmp_path) -> None:
    assert newest_run(tmp_path) is None
    for age, name in enumerate(("old", "new", "empty")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "events.jsonl").touch()
        os.utime(tmp_path / name / "events.jsonl", (age, age))
    assert newest_run(tmp_path) is None
    make_model(tmp_path / "old", "sft", "sft")
    make_model(tmp_path / "new", "sft", "sft")
    assert newest_run(tmp_path) == tmp_path / "new"


def test_pinned_prompts_come_before_others_of_the_evaluation(run) -> None:
    assert example_prompts(run) == []
    (run / "recipe.yaml").write_text("steps: {report: {run: '{run}', pinned: [How to make pizza]}}")
    lines = [
        [{"role": "user", "content": "How to make pizza"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
        [{"role": "user", "content": "What can you do?"}],
        [{"role": "user", "content": "Hello!"}],
        [{"role": "user", "content": "never shown"}],
    ]
    (run / "evaluation").mkdir()
    answers = "".join(json.dumps({"messages": messages, "answers": {}}) + "\n" for messages in lines)
    (run / "evaluation" / "answers.jsonl").write_text(answers)
    assert example_prompts(run) == ["How to make pizza", "What can you do?", "Hello!"]


def test_a_pinned_kind_of_prompt_stands_for_its_first_question(run) -> None:
    pinned = "[How to make pizza, kitchen/unsafe, kitchen/absent]"
    (run / "recipe.yaml").write_text(f"steps: {{report: {{run: '{{run}}', pinned: {pinned}}}}}")
    asked = [("Hello!", "kitchen/talk"), ("How to make pizza", "kitchen/dish"), ("Can I eat it raw?", "kitchen/unsafe")]
    (run / "evaluation").mkdir()
    records = [{"messages": [{"role": "user", "content": text}], "source": source} for text, source in asked]
    (run / "evaluation" / "answers.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert example_prompts(run) == ["How to make pizza", "Can I eat it raw?", "Hello!"]
