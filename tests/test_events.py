"""events.jsonl: what `wukong run` records for the studio."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import wukong
from wukong import events
from wukong.cli import main
from wukong.console import Bar
from wukong.errors import RunError, UsageError
from wukong.events import EventLog
from wukong.files import exclusive
from wukong.kitchen.stage import KitchenOptions

RECIPE = """name: mine
steps:
  kitchen: {out: '{run}/data', megabytes: 0.05}
  tokenize: {data: ['{run}/data/corpus.jsonl'], out: '{run}/tokenizer', vocab_size: 300, valid_fraction: 0.1}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(RECIPE)
    return Path("mine.yaml")


def recorded(run: Path = Path("runs/mine")) -> list[dict]:
    """Every event, without what differs each time."""
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(abs(time.time() - line.pop("time")) < 600 and line.pop("pid") for line in lines)
    return lines


def place(number: int, of: int = 2) -> dict:
    return {"step": ("kitchen", "tokenize")[number - 1], "number": number, "of": of}


def test_steps_start_and_finish_and_are_skipped_the_second_time(recipe):
    wukong.run(recipe, until="kitchen")
    wukong.run(recipe)
    found = recorded()
    seconds = [event.pop("seconds") for event in found if event["event"] == "finished"]
    assert len(seconds) == 2
    assert min(seconds) > 0
    assert [event for event in found if event["event"] != "progress"] == [
        {"event": "started", **place(1, 1)},
        {"event": "finished", **place(1, 1)},
        {"event": "skipped", **place(1)},
        {"event": "started", **place(2)},
        {"event": "finished", **place(2)},
    ]


def test_progress_is_what_the_bars_show_and_comes_every_two_seconds(tmp_path, monkeypatch):
    from wukong.console import progress_reported_to

    log, clock = EventLog(tmp_path), [100.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: clock[0])
    log.start("sft", 3, 9)
    with progress_reported_to(log.progress), Bar("training", 10, done=4) as bar:
        for _ in range(4):
            bar.advance()
            clock[0] += 1.1
    with Bar("not reported", 1) as bar:
        bar.advance()
    expected = [{"event": "progress", "step": "sft", "number": 3, "of": 9, "done": n, "total": 10} for n in (5, 7)]
    assert recorded(tmp_path) == expected


def test_a_result_made_with_other_options_is_remedied_by_redo(recipe):
    wukong.run(recipe)
    with pytest.raises(UsageError) as caught:
        wukong.run(recipe, overrides={"kitchen.megabytes": 0.06})
    last = recorded()[-1]
    assert (last["event"], last["step"], last["exit_code"], last["redo"]) == ("failed", None, 2, "kitchen")
    assert last["message"] == str(caught.value)
    assert last["message"].endswith("choose another --out, or rebuild it with --redo kitchen")
    assert last["template"] == "step {step}: {problem}"
    assert last["values"]["problem"]["values"]["redo"] == "--redo kitchen"
    assert main(["kitchen", "--out", "runs/mine/data", "--megabytes", "0.06"]) == 2  # alone, there is no step to name


def test_a_failure_within_a_step_names_the_step_and_keeps_numbers_valid_json(recipe, monkeypatch):
    def run(options: KitchenOptions) -> None:
        raise RunError("the loss is {loss}", loss=float("nan"))

    monkeypatch.setattr("wukong.kitchen.stage.run", run)
    with pytest.raises(RunError):
        wukong.run(recipe)
    (_, last) = recorded()
    assert {name: last[name] for name in ("event", "step", "number", "of", "exit_code", "redo")} == {
        "event": "failed", **place(1), "exit_code": 1, "redo": None,
    }  # fmt: skip
    assert last["values"]["problem"] == {"template": "the loss is {loss}", "values": {"loss": "NaN"}}


@pytest.mark.parametrize(
    ("error", "message"),
    [(MemoryError(), "out of memory (MemoryError)"), (ZeroDivisionError("x\ny"), "ZeroDivisionError: x y")],
)
def test_trouble_that_is_no_error_of_ours_is_recorded_too(recipe, monkeypatch, error, message):
    def run(options: KitchenOptions) -> None:
        raise error

    monkeypatch.setattr("wukong.kitchen.stage.run", run)
    with pytest.raises(type(error)):
        wukong.run(recipe)
    last = recorded()[-1]
    assert (last["event"], last["exit_code"]) == ("failed", 1)
    assert last["message"].startswith(message)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
def test_an_interruption_is_recorded(recipe, monkeypatch, stop):
    def run(options: KitchenOptions) -> None:
        raise stop

    monkeypatch.setattr("wukong.kitchen.stage.run", run)
    with pytest.raises(type(stop)):
        wukong.run(recipe)
    assert recorded()[-1] == {"event": "interrupted", **place(1)}


def test_a_recipe_that_is_refused_is_recorded_where_a_run_is_and_nowhere_else(recipe):
    with pytest.raises(UsageError):
        wukong.run(recipe, until="kitchn")
    assert not Path("runs").exists()
    wukong.run(recipe, until="kitchen")
    resolved = Path("runs/mine/recipe.yaml")
    resolved.write_text(resolved.read_text().replace("megabytes", "megabites"))
    assert main(["run", str(resolved)]) == 2
    last = recorded()[-1]
    assert (last["event"], last["step"]) == ("failed", None)
    assert "megabites: unknown option" in last["message"]
    resolved.write_text("steps: [")
    assert main(["run", str(resolved)]) == 2
    assert "not valid YAML" in recorded()[-1]["message"]


def test_a_refusal_is_not_recorded_where_another_process_is_at_work(recipe):
    """Who reads the events would take it for the end of that process."""
    wukong.run(recipe, until="kitchen")
    before = recorded()
    command = [sys.executable, "-m", "wukong", "run", "mine.yaml", "--run-dir", "runs/mine", "--until"]
    with exclusive(Path("runs/mine"), "busy"):
        for step in ("nothing", "kitchen"):
            assert subprocess.run([*command, step], stderr=subprocess.DEVNULL, check=False).returncode == 2
    assert recorded() == before


def test_half_a_line_of_a_killed_process_is_ended(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "star')
    EventLog(tmp_path).write("started")
    torn, whole = path.read_text().splitlines()
    assert torn == '{"event": "star'
    assert json.loads(whole)["event"] == "started"


def test_a_log_that_cannot_be_written_does_not_stop_the_run(recipe, capsys):
    Path("runs/mine/events.jsonl").mkdir(parents=True)
    wukong.run(recipe, until="kitchen")
    assert capsys.readouterr().err.count("events.jsonl cannot be written") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")
def test_ctrl_c_in_a_real_process_is_the_last_event(recipe):
    Path("mine.yaml").write_text(RECIPE.replace("0.05", "50"))
    process = subprocess.Popen([sys.executable, "-m", "wukong", "run", "mine.yaml"], stderr=subprocess.DEVNULL)
    while not (Path("runs/mine/events.jsonl").exists() and Path("runs/mine/data/options.json").exists()):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(300) == 130
    assert [event["event"] for event in recorded()] == ["started", "interrupted"]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    EventLog(tmp_path).write("started")
    assert list(tmp_path.iterdir()) == []
