"""A run of the recipe test that an earlier version made (commit d645612) is still a run: it was kept as it was."""

import io
import shutil
from pathlib import Path

import pytest

import wukong
from wukong.cli import main
from wukong.files import fingerprint

STEPS = ["kitchen", "tokenize", "pretrain", "sft", "sample", "label", "reward", "ppo", "evaluate"]


def marks(run: Path) -> dict[str, str]:
    """Of all results. The recipe is written again, as this version writes paths; report and events are not kept."""
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and not path.match("recipe.yaml")]
    return {
        str(path.relative_to(run)): fingerprint(path)
        for path in files
        if path.name not in ("report.html", "events.jsonl")
    }


def test_it_goes_on_where_it_ended(older_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only its report is left to be made."""
    before = marks(older_run)
    assert main(["run", str(older_run / "recipe.yaml")]) == 0
    said = capsys.readouterr().err
    assert said.count("is complete, nothing to do") == len(STEPS)
    assert marks(older_run) == before
    assert "How to make pizza" in (older_run / "report.html").read_text(encoding="utf-8")
    lines = said.splitlines()
    at = lines.index("the same question, answered by each model: “How to make pizza”")
    assert [line.partition(":")[0] for line in lines[at + 1 : at + 6]] == [
        "  base", "  sft", "  policy", "report", "talk to the model",
    ]  # fmt: skip


def test_it_goes_on_elsewhere(older_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move(older_run, tmp_path / "moved")
    assert main(["run", str(tmp_path / "moved" / "recipe.yaml")]) == 0
    assert capsys.readouterr().err.count("is complete, nothing to do") == len(STEPS)
    assert not older_run.exists()


def test_a_step_and_what_follows_are_made_anew(older_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = marks(older_run)
    assert main(["run", str(older_run / "recipe.yaml"), "--redo", "evaluate"]) == 0
    assert capsys.readouterr().err.count("is complete, nothing to do") == len(STEPS) - 1
    after = marks(older_run)
    changed = {name for name in before if after[name] != before[name]}
    assert changed
    assert all(name.startswith("evaluation/") for name in changed)


def test_its_models_answer(
    older_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("How to make pizza\n"))
    assert main(["chat", str(older_run / "policy"), "--max-new-tokens", "8", "--temperature", "0"]) == 0
    policy = wukong.load_policy(older_run / "policy")
    (expected,) = policy.generate(["How to make pizza"], max_new_tokens=8, temperature=0)
    assert expected.text.strip() in capsys.readouterr().out


@pytest.mark.parametrize("command", ["chat", "serve"])
def test_a_damaged_model_is_not_talked_to(command: str, older_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = older_run / "policy" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-5] ^= 1
    weights.write_bytes(raw)
    arguments = [command, str(older_run / "policy")]
    assert main([*arguments, *(["--port", "0"] if command == "serve" else ["--prompt", "How to make pizza"])]) == 2
    said = capsys.readouterr().err
    assert "model.safetensors: damaged or changed" in said
    assert "wukong accept" in said
