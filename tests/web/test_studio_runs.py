"""Runs in the studio: the disk becomes states, curves and results; processes are started, stopped, never mixed up."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

from wukong.errors import DataError, Text, UsageError
from wukong.files import exclusive, write_json
from wukong.language import catalogue, translate
from wukong.places import read_recipe
from wukong.training.metric_definitions import METRICS
from wukong.web.runs import processes
from wukong.web.runs.events import last_event
from wukong.web.runs.processes import RunProcess
from wukong.web.runs.states import overview, step_or_404
from wukong.web.runs.tails import Tail, Watch, curves, json_lines
from wukong.web.state import Settings

XSS = "<script>alert(1)</script><img src=x onerror=alert(1)>"
PAGES = ["/runs", "/runs/one", "/runs/one/steps/pretrain", "/runs/one/results/evaluation", "/runs/one/results/versus",
         "/runs/one/reports/report.html", "/runs/one/reports/judged/report.html", "/api/runs",
         "/api/runs/one/steps/pretrain/curves", "/api/runs/one/steps/pretrain/samples"]  # fmt: skip


def record(stage: str, **results) -> dict:
    return {"stage": stage, "options": {}, "inputs": {}, "results": results, "files": {}, "seconds": 12.5,
            "finished": "2026-11-23T01:00:00Z"}  # fmt: skip


def write_lines(path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run(tmp_path):
    """A run of which tokenize is done and pretrain stopped half-way, with results that were put there by hand."""
    root = tmp_path / "runs" / "one"
    steps = {"tokenize": {"out": "tokenizer"}, "pretrain": {"out": "base"}, "sft": {"out": "sft"}}
    recipe = {
        "name": "one",
        "run_dir": str(root),
        "steps": {k: {"out": str(root / v["out"])} for k, v in steps.items()},
    }
    root.mkdir(parents=True)
    (root / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    won = {"a": "sft", "b": "base", "n": 12, "win_rate": 0.75, "interval": [0.5, 0.9]}
    rated = {"sft": {"rating": 1095.4, "interval": [1000, 1200]}}
    for place, content in {
        "tokenizer/provenance.json": record("tokenize"),
        "base/options.json": record("pretrain"),
        "judged/provenance.json": record("reward-report"),
        "versus/provenance.json": record("compare"),
        "evaluation/evaluation.json": {
            "n_prompts": 12,
            "models": {"base": {"score_mean": 0.25}, "sft": {}},
            "comparisons": [won | {"judge": "rubric", "wins": 9, "ties": 0, "losses": 3}],
        },
        "versus/comparison.json": {
            "n_prompts": 12,
            "judges": {"rubric": {"comparisons": [won | {"words": "sft is better " + XSS}], "ratings": rated}},
        },
    }.items():
        (root / place).parent.mkdir(exist_ok=True)
        write_json(root / place, content)
    write_lines(root / "base" / "metrics.jsonl", [{"step": i, "loss": 5 - i / 10} for i in range(1, 21)])
    write_lines(
        root / "base" / "samples.jsonl", [{"step": i, "prompt": "How", "text": f"{i} {XSS}"} for i in range(1, 21)]
    )
    answers = [
        {"messages": [{"role": "user", "content": f"Question {i}"}], "source": "even" if i % 2 == 0 else "odd",
         "answers": {name: {"text": f"{name} says {i} {XSS}"} for name in ("base", "sft", "policy")}}
        for i in range(25)
    ]  # fmt: skip
    write_lines(root / "evaluation" / "answers.jsonl", answers)
    write_lines(root / "versus" / "answers.jsonl", answers)
    for place in ("report.html", "judged/report.html"):
        (root / place).write_text(f"<!doctype html><title>the report</title><script>1</script>{place}")
    (tmp_path / "runs" / "secret.html").write_text("the hidden text")
    (tmp_path / "runs" / "nothing").mkdir()
    return root


@pytest.fixture
def settings(run):
    return Settings(run_dir=run)


@pytest.fixture
def root(sign_in):
    return sign_in("Root", "admin")


def states(run) -> dict[str, str]:
    return {step.name: step.state for step in overview(run).steps}


# ------------------------------------------------------------------------------------------------------------- access


@pytest.mark.parametrize("path", [*PAGES, "/api/runs/one/events"])
def test_only_admins_see_runs(run, sign_in, browser, path):
    assert sign_in("Ann").get(path).status_code == 403
    assert browser().get(path).status_code in (303, 401)


@pytest.mark.parametrize("path", PAGES)
def test_admins_see_them(run, root, path):
    assert root.get(path).status_code == 200


@pytest.mark.parametrize("name", ["%2e%2e", "%2e%2e%2f%2e%2e", "..%2f..", "%2fetc", "%2fetc%2fpasswd", "one%2f..",
                                  "%2e", "nothing", "one%00", "..\\one", "secret.html"])  # fmt: skip
def test_no_name_of_a_run_leads_out(run, root, name):
    csrf = {"csrf": root.headers["x-csrf-token"]}
    for path in ("/runs/{}", "/runs/{}/steps/pretrain", "/api/runs/{}/steps/pretrain/curves", "/api/runs/{}/events",
                 "/runs/{}/reports/report.html", "/runs/{}/results/evaluation"):  # fmt: skip
        answer = root.get(path.format(name))
        assert answer.status_code in (404, 307), f"{path} {name}"
        assert "the hidden text" not in answer.text
    for action in ("start", "stop"):
        assert root.post(f"/runs/{name}/{action}", data=csrf).status_code in (404, 405, 307)
    assert not (run / "process.json").exists()


@pytest.mark.parametrize("name", ["..%2fsecret.html", "%2e%2e/secret.html", "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
                                  "/etc/passwd", "base%2f..%2f..%2fsecret.html", "recipe.yaml"])  # fmt: skip
def test_no_name_inside_a_run_leads_out(run, root, name):
    for path in ("/runs/one/reports/", "/runs/one/results/", "/runs/one/steps/", "/api/runs/one/steps/"):
        answer = root.get(path + name + ("/curves" if path.startswith("/api") else ""))
        assert (answer.status_code, "the hidden text" in answer.text) == (404, False), path + name
    form = {"csrf": root.headers["x-csrf-token"], "step": name}
    assert root.post("/runs/one/start", data=form).status_code == 404


def test_a_link_that_leads_out_of_the_run_is_no_report(run, root):
    (run / "link.html").symlink_to(run.parent / "secret.html")
    assert root.get("/runs/one/reports/link.html").status_code == 404


def test_annotators_start_and_stop_nothing(run, sign_in):
    ann = sign_in("Ann")
    for action in ("start", "stop"):
        assert ann.post(f"/runs/one/{action}", data={"csrf": ann.headers["x-csrf-token"]}).status_code == 403
    assert not (run / "process.json").exists()


def test_reports_stand_outside_of_the_studio(run, root):
    answer = root.get("/runs/one/reports/judged/report.html")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts")
    assert "allow-same-origin" not in policy
    assert "default-src 'none'" in policy
    assert "connect-src" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    for path in ("/runs", "/runs/one", "/runs/one/steps/pretrain", "/plotly.js"):
        assert "unsafe" not in root.get(path).headers["content-security-policy"], path


def test_what_models_wrote_is_text(run, root):
    for path in PAGES[:5]:
        text = root.get(path).text
        assert "<img src=x" not in text, path
        assert not re.search(r"<script(?![^>]*src=\"/)[^>]*>", text), path
        assert not re.search(r"\sstyle=|<style|\son\w+=\"", text), path


# -------------------------------------------------------------------------------------------------------- what is shown


def test_states_follow_the_disk(run):
    assert states(run) == {
        "tokenize": "done",
        "pretrain": "stopped",
        "sft": "waiting",
        "judged": "done",
        "versus": "done",
    }
    with exclusive(run, "busy"):  # as a `wukong run` in a terminal does
        assert states(run)["pretrain"] == "running"
        assert overview(run).process is None, "it was not started here, so it is not stopped here"
    write_json(run / "base" / "provenance.json", record("pretrain"))
    assert states(run)["pretrain"] == "done"


EVENT = {"time": 1000.5, "pid": 7, "step": "pretrain", "number": 2, "of": 3}


def write_events(run, *events) -> None:
    write_lines(run / "events.jsonl", [EVENT | event for event in events])


@pytest.mark.parametrize(
    ("last", "state"),
    [
        ({"event": "finished", "step": "tokenize", "number": 1, "seconds": 2.0}, "stopped"),
        ({"event": "skipped", "step": "tokenize", "number": 1}, "stopped"),
        ({"event": "interrupted"}, "stopped"),
        ({"event": "started"}, "failed"),
        ({"event": "progress", "done": 3, "total": 9}, "failed"),
    ],
)
def test_what_a_run_said_last_tells_how_it_ended(run, last, state):
    write_events(run, {"event": "started"}, last)
    (step,) = [step for step in overview(run).steps if step.name == "pretrain"]
    assert step.state == state, "a process that is gone in the middle of a step was killed"
    assert (step.problem is not None) == (state == "failed")
    with exclusive(run, "busy"):
        assert states(run)["pretrain"] == "running"


def test_the_step_that_runs_is_the_one_that_was_said(run):
    write_events(run, {"event": "started", "step": "sft", "number": 3})
    with exclusive(run, "busy"):
        assert states(run) | {"pretrain": "stopped", "sft": "running"} == states(run)


def test_a_failure_is_told_in_both_languages(run, root):
    said = Text("{run}: has no recipe.yaml, so there is nothing to start", run="one")
    failed = {"event": "failed", "message": str(said), **said.as_json(), "exit_code": 2, "redo": None}
    write_events(run, failed)
    state = {step["name"]: step for step in root.get("/api/runs").json()[0]["steps"]}
    assert (state["pretrain"]["state"], state["pretrain"]["problem"]) == ("failed", str(said))
    root.headers["accept-language"] = "zh"
    for path in ("/runs/one", "/runs/one/steps/pretrain"):
        assert translate("zh", said) in root.get(path).text
    write_events(run, failed | {"step": None, "number": None, "of": None})
    assert states(run)["pretrain"] == "failed", "what was refused before the first step is told of the next one"
    write_json(run / "base" / "provenance.json", record("pretrain"))
    write_events(run, failed)
    assert states(run)["pretrain"] == "done"


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The first two steps of the test recipe, run by the command itself."""
    directory = tmp_path_factory.mktemp("runs") / "real"
    command = [sys.executable, "-m", "wukong", "run", "test", "--run-dir", str(directory), "--until", "tokenize"]
    subprocess.run(command, check=True, capture_output=True)
    return directory


def test_what_the_command_writes_is_what_the_studio_reads(real):
    last = last_event(real)
    assert last is not None
    assert (last.event, last.step, last.error) == ("finished", "tokenize", None)
    assert states(real) | {"kitchen": "done", "tokenize": "done", "pretrain": "waiting"} == states(real)


def test_a_failure_of_the_command_is_shown_in_the_words_that_it_printed(real, tmp_path):
    run = shutil.copytree(real, tmp_path / "failed")
    (run / "data" / "instructions.jsonl").write_text("{}\n")
    command = [sys.executable, "-m", "wukong", "run", str(run / "recipe.yaml"), "--until", "pretrain"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    assert ended.returncode == 2
    (failed,) = [step for step in overview(run).steps if step.state == "failed"]
    assert "".join(str(failed.problem).split()) in "".join(ended.stderr.split())
    assert translate("zh", failed.problem).startswith("步骤 kitchen：")


def test_an_error_of_a_bad_record_keeps_its_parts(run):
    error = DataError("unknown flag {flag!r}", file="a.jsonl", line=3, field="x", hint="remove it", flag="{y}")
    write_events(run, {"event": "failed", "message": str(error), **error.text.as_json()})
    (step,) = [step for step in overview(run).steps if step.state == "failed"]
    assert str(step.problem) == str(error)
    assert translate("zh", step.problem) == "a.jsonl:3: 字段 'x'：未知的标记 '{y}' (请删除它)"


@pytest.mark.parametrize(
    ("template", "values"),
    [
        ("{a.__class__}", {"a": 1}),
        ("{a[0]}", {"a": "b"}),
        ("{a:>99999999}", {"a": "b"}),
        ("{a:{b}}", {"a": "b", "b": 9}),
        ("{b}", {"a": 1}),
        ("{a:q}", {"a": 1}),
        ("{", {"a": 1}),
        ("{a}", [1]),
        ("{a}", {"a": {"template": "x"}}),
        ("{a}", {"a": {"template": "{b.real}", "values": {"b": 1}}}),
    ],
)
def test_a_template_that_is_none_of_ours_is_not_filled_in(run, template, values):
    write_events(run, {"event": "failed", "message": "as printed", "template": template, "values": values})
    (step,) = [step for step in overview(run).steps if step.state == "failed"]
    assert translate("zh", step.problem) == "as printed"


@pytest.mark.parametrize("torn", ['{"time": 1001, "pid": 7, "ev', "5\n", "[]\n", '{"event": "failed"}\n', "\xff\n", ""])
def test_a_torn_or_damaged_line_of_events_is_ignored(run, torn):
    write_events(run, {"event": "interrupted"})
    with (run / "events.jsonl").open("ab") as file:
        file.write(torn.encode("latin-1"))
    assert states(run)["pretrain"] == "stopped"


def test_what_an_earlier_process_said_is_not_said_of_this_one(run, sleeper):
    write_events(run, {"event": "started", "step": "sft", "number": 3}, {"event": "interrupted"})
    write_process(run, sleeper.pid, processes.born(sleeper.pid))
    assert states(run)["pretrain"] == "running"
    write_process(run, sleeper.pid, "gone")
    assert states(run)["pretrain"] == "failed", "it ended before it said anything"


def test_a_damaged_run_says_so_and_the_others_are_shown(run, root):
    other = run.parent / "other"
    other.mkdir()
    (other / "recipe.yaml").write_text("steps: [")
    page = root.get("/runs").text
    assert "not valid YAML" in page
    assert 'href="/runs/one"' in page
    assert root.get("/runs/other").status_code == 200


def test_results_are_readable_paged_and_filtered(run, root):
    page = root.get("/runs/one/results/evaluation").text
    assert "75.0 %" in page
    assert page.count("<article") == 10
    assert all(f"{name} says 0" in page for name in ("base", "sft", "policy"))
    assert root.get("/runs/one/results/evaluation?page=3").text.count("<article") == 5
    assert root.get("/runs/one/results/evaluation?q=question+24").text.count("<article") == 1
    assert root.get("/runs/one/results/evaluation?source=odd&page=2").text.count("<article") == 2
    versus = root.get("/runs/one/results/versus").text
    assert "sft is better" in versus
    assert "1095" in versus
    (run / "versus" / "comparison.json").write_text('{"judges": 1}')
    assert root.get("/runs/one/results/versus").status_code == 400


def test_what_the_doctor_says_is_beside_the_run_in_both_languages(run, root):
    assert "checks could be made" in root.get("/runs/one").text
    kl = [0.0, 20.0, *[70.0] * 10]
    write_lines(run / "sft" / "metrics.jsonl", [{"step": i + 1, "kl": value} for i, value in enumerate(kl)])
    (run / "sft" / "options.json").write_text(json.dumps({"stage": "ppo", "options": {}}))
    page = root.get("/runs/one").text
    assert "The KL runs away" in page
    assert "tools/doctor.html#kl-runaway" in page
    page = root.get("/runs/one", headers={"accept-language": "zh"}).text
    assert "KL 失控" in page
    assert "zh/tools/doctor.html#kl-runaway" in page


def test_every_curve_has_its_definition_in_both_languages(run, root):
    (loss,) = root.get("/api/runs/one/steps/pretrain/curves").json()["charts"]
    assert loss["metrics"][0]["definition"] == METRICS["loss"].definition
    assert (loss["metrics"][0]["x"][-1], loss["metrics"][0]["y"][-1]) == (20, 3)
    (loss,) = root.get("/api/runs/one/steps/pretrain/curves", headers={"accept-language": "zh"}).json()["charts"]
    assert re.search("[\u4e00-\u9fff]", loss["metrics"][0]["definition"])
    assert root.get("/api/runs/one/steps/sft/curves").json()["charts"] == [], "nothing yet is no error"
    texts = {
        text for name, metric in METRICS.items() if not name.startswith("evaluate/") for text in metric[1:] if text
    }
    assert texts - set(catalogue("metrics")) == set(), "definitions without Chinese in language/zh/metrics.json"


def test_ten_thousand_lines_stay_fast_and_small(run):
    names = ["loss", "lr", "grad_norm", "tokens_per_second", "perplexity"]
    lines = [{"step": i, **dict.fromkeys(names, i + 0.123456)} for i in range(1, 10_001)]
    for line in lines[::100]:
        line["valid_loss"] = 1.0
    write_lines(run / "base" / "metrics.jsonl", lines)
    times = []
    for _ in range(3):
        begin = time.process_time()
        found = curves(step_or_404(run, "pretrain"))
        times.append(time.process_time() - begin)  # of this process: the test's machine may be busy
    assert min(times) < 0.5, times
    metrics = [metric for chart in found["charts"] for metric in chart["metrics"]]
    assert {metric["name"]: len(metric["x"]) for metric in metrics} == {**dict.fromkeys(names, 400), "valid_loss": 100}
    assert all(metric["x"][-1] >= 9901 for metric in metrics)
    assert len(json.dumps(found)) < 60_000


def test_a_watch_tells_what_is_new_once(run):
    step = step_or_404(run, "pretrain")
    watch = Watch(run, step, curves(step)["at"])
    assert list(watch.grown()) == []
    ((kind, state),) = watch.changed()
    assert (kind, state["steps"][1]["state"]) == ("state", "stopped")
    assert list(watch.changed()) == []
    metrics, log = run / "base" / "metrics.jsonl", run / "run.log"
    with metrics.open("a") as file:
        file.write('{"step": 21, "loss": 1}\n{"step": 22, "lo')
        file.flush()
        log.write_text("a line\nhalf a l")
        assert list(watch.grown()) == [
            ("lines", [{"step": 21, "loss": 1}]),
            ("log", {"new": False, "text": "a line\n"}),
        ]
        file.write('ss": 2}\n')
    again = Watch(run, step, watch.place)  # as a browser does that lost its connection
    assert list(again.grown()) == [("lines", [{"step": 22, "loss": 2}])]
    metrics.rename(run / "old.jsonl")  # as a resumed run does: the file is written anew
    write_lines(metrics, [{"step": 1, "loss": 1}])
    assert [kind for kind, _ in again.grown()] == ["reset"]
    assert list(again.grown()) == []


@pytest.mark.parametrize("place", ["", "x", "-", "9-9-9", "-5-1", "1e9-2", "٣-٣"])
def test_a_forged_place_reads_from_the_beginning_or_nothing(run, place):
    _, data = Tail(run / "base" / "metrics.jsonl", place).read()
    assert data.startswith(b'{"step": 1,')


# ---------------------------------------------------------------------------------------------------------- processes


def wait_until(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_step_that_fails_says_why(run, root, monkeypatch):
    monkeypatch.setenv("WUKONG_ADMIN_SECRET", "a secret of the studio")
    given = {}
    popen = subprocess.Popen
    monkeypatch.setattr(processes.subprocess, "Popen", lambda *a, **k: (given.update(k), popen(*a, **k))[1])
    form = {"csrf": root.headers["x-csrf-token"], "step": "pretrain", "from": "pretrain"}
    answer = root.post("/runs/one/start", data=form)
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs/one/steps/pretrain")
    assert states(run)["pretrain"] == "running"
    assert root.post("/runs/one/start", data=form).status_code == 400, "never two at a time"
    assert "WUKONG_ADMIN_SECRET" not in given["env"]
    wait_until(lambda: not processes.is_running(run))
    (failed,) = [step for step in overview(run).steps if step.state == "failed"]
    assert failed.name == "pretrain"
    assert "recipe.yaml" in str(failed.problem)  # the recipe of the fixture lacks options that are required
    log = (run / "run.log").read_text()
    assert " Root: wukong run " in log
    assert "Traceback" not in log
    assert "a secret" not in log


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def write_process(run, pid, born, signals=0):
    write_json(run / "process.json", asdict(RunProcess(pid, born, "pretrain", 0, "Root", time.time(), signals)))


def test_a_foreign_process_with_the_same_number_is_never_signalled(run, root, sleeper):
    write_process(run, sleeper.pid, "the process that had this number before")
    assert states(run)["pretrain"] == "failed"
    assert root.post("/runs/one/stop", data={"csrf": root.headers["x-csrf-token"]}).status_code == 400
    with pytest.raises(UsageError, match="no process"):
        processes.stop(run)
    assert sleeper.poll() is None


@pytest.mark.parametrize("content", ["{", "[]", '{"pid": 1}', '{"pid": "1; rm"}', "null"])
def test_a_damaged_process_file_is_no_process(run, root, content):
    (run / "process.json").write_text(content)
    assert processes.process_of(run) is None
    assert root.get("/runs/one").status_code == 200
    with pytest.raises(UsageError):
        processes.stop(run)


GENTLE = """
import signal, time
signal.signal(signal.SIGINT, lambda *_: print("int", flush=True))
print("up", flush=True)
time.sleep(600)
"""


def test_the_first_stop_is_gentle_and_the_second_is_not(run, root, sleeper):
    process = subprocess.Popen([sys.executable, "-c", GENTLE], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "up\n"
        write_process(run, process.pid, processes.born(process.pid))
        assert overview(run).running
        csrf = {"csrf": root.headers["x-csrf-token"]}
        assert root.post("/runs/one/stop", data=csrf).status_code == 303
        assert process.stdout.readline() == "int\n"
        assert root.post("/runs/one/stop", data=csrf).status_code == 303
        assert process.wait(60) == -signal.SIGTERM
        assert states(run)["pretrain"] == "stopped", "what was asked to stop has not failed"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_zombie_is_not_at_work(run):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    born = processes.born(process.pid)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and nobody has asked for its exit code
    write_process(run, process.pid, born or "")
    assert not overview(run).running
    process.wait()


def test_a_moved_run_is_started_in_its_new_place(run, tmp_path, monkeypatch):
    """Recipes of older versions name the place of then; those of today none."""
    monkeypatch.chdir(tmp_path)
    moved = run.rename(tmp_path / "runs" / "two")
    assert processes._where(moved) == (tmp_path, "runs/two")
    assert read_recipe(moved)["steps"]["sft"]["out"] == str(moved / "sft")
    monkeypatch.chdir("/")
    called_from = {"run_dir": "{here}", "called_from": "../..", "steps": {"sft": {"out": "{run}/sft"}}}
    (moved / "recipe.yaml").write_text(json.dumps({"name": "one", **called_from}))
    assert processes._where(moved) == (tmp_path, "runs/two")
    assert next(step.name for step in overview(moved).steps) == "sft"


def test_nothing_starts_in_a_run_that_has_no_recipe(run):
    (run / "recipe.yaml").unlink()
    moved = run
    with pytest.raises(UsageError, match=r"recipe\.yaml"):
        processes.start(moved, None, "Root")
    assert not (moved / "process.json").exists()


def test_a_recipe_with_relative_paths_runs_where_it_was_made(run, tmp_path, monkeypatch):
    steps = {"tokenize": {"out": "runs/one/tokenizer"}}
    (run / "recipe.yaml").write_text(json.dumps({"name": "one", "run_dir": "runs/one", "steps": steps}))
    monkeypatch.chdir("/")
    assert processes._where(run) == (tmp_path, "runs/one")


def test_nothing_starts_beside_a_run_in_a_terminal(run):
    with exclusive(run, "busy"), pytest.raises(UsageError, match="already"):
        processes.start(run, None, "Root")
    assert not (run / "process.json").exists()


def test_a_run_of_an_earlier_version_is_shown(older_run, root):
    page = root.get(f"/runs/{older_run.name}")
    assert (page.status_code, page.text.count('class="state done"')) == (200, 9)
    (loss, *_) = root.get(f"/api/runs/{older_run.name}/steps/pretrain/curves").json()["charts"]
    assert loss["metrics"][0]["y"]


@pytest.mark.parametrize("line", [b"[" * 100_000, b"5", b"[]", b'{"step": ' + b"9" * 5000 + b"}", b"{"])
def test_a_damaged_line_of_metrics_is_one_error(tmp_path, line):
    with pytest.raises(DataError, match=r"metrics\.jsonl: "):
        json_lines(b'{"step": 1}\n' + line, tmp_path / "metrics.jsonl")
