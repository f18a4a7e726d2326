"""The round trip through a real Label Studio, installed from PyPI and started here on loopback.

It lives in a virtual environment of its own (about 1 GB, two minutes to make; `environments.environment`), or
$WUKONG_LABEL_STUDIO names an existing `label-studio`.
"""

import datetime
import json
import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from tests.environments import environment
from wukong.data import read_comparisons
from wukong.data.sources import open_rows
from wukong.errors import DataError, UsageError
from wukong.feedback.labelstudio import command
from wukong.feedback.labelstudio.api import LabelStudio
from wukong.feedback.labelstudio.command import LabelStudioOptions, run
from wukong.records import Comparison, Message, Ranking, read_records, write_records

VERSION = "1.23.2"
TOKEN = "0123456789abcdef0123456789abcdef01234567"
PERSON = "ann@example.org"
SHARED = Path(os.environ.get("WUKONG_SHARED", Path(__file__).resolve().parents[4] / "shared")) / "data"

pytestmark = pytest.mark.interop


def installed() -> str:
    """The `label-studio` command, installed at the first call."""
    if named := os.environ.get("WUKONG_LABEL_STUDIO"):
        return named
    return str(environment("label-studio", [f"label-studio=={VERSION}"]) / "label-studio")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a fresh server."""
    program, home = installed(), tmp_path_factory.mktemp("label-studio")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DATABASE_URL")},
        "LABEL_STUDIO_USERNAME": PERSON,
        "LABEL_STUDIO_PASSWORD": "a-password-for-tests",
        "LABEL_STUDIO_USER_TOKEN": TOKEN,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LABEL_STUDIO_BASE_DATA_DIR": str(home),
        "LATEST_VERSION_CHECK": "false",  # nothing is to be asked of the network
        "COLLECT_ANALYTICS": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    start = [program, "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with (home / "log.txt").open("wb") as log:
        process = subprocess.Popen(start, env=environment, cwd=home, stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 900  # half a minute on an idle machine
        while not answers(url):
            assert process.poll() is None, (home / "log.txt").read_text()[-2000:]
            assert time.monotonic() < end, (home / "log.txt").read_text()[-2000:]
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


def answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/health", timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture
def api(server) -> LabelStudio:
    return LabelStudio(server, TOKEN)


@pytest.fixture
def hh(tmp_path) -> Path:
    """50 comparisons in HH's format: real ones where they are, else made up, some of several turns."""
    path, real = tmp_path / "hh.jsonl", SHARED / "hh-rlhf" / "harmless-base.jsonl.gz"
    if real.exists():
        usable = (row.fields for row in open_rows(real) if usable_alone(row.fields, tmp_path))
        rows = [next(usable) for _ in range(50)]
    else:
        rows = []
        for n in range(50):
            before = "\n\nHuman: Hello\n\nAssistant: What shall we cook?" * (n % 3)
            asked = f"{before}\n\nHuman: How long do I boil {n} eggs <b>?\n\nAssistant:"
            rows.append({"chosen": f"{asked} {n} minutes & a bit.", "rejected": f"{asked} Who knows, {n}?"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(read_comparisons(path)) == 50
    return path


def usable_alone(fields: dict, directory: Path) -> bool:
    (directory / "one.jsonl").write_text(json.dumps(fields) + "\n")
    try:
        return len(read_comparisons(directory / "one.jsonl")) == 1
    except DataError:
        return False


def go(action: str, server: str, **options) -> None:
    run(LabelStudioOptions(action=action, url=server, api_key=TOKEN, **options))


def click(api: LabelStudio, task: dict, side: str) -> dict:
    """What the labelling page sends when a person chooses a side and submits."""
    result = {"id": f"click-{task['id']}", "from_name": "comparison", "to_name": "answer1,answer2", "type": "pairwise",
              "origin": "manual", "value": {"selected": side}}  # fmt: skip
    body = {"result": [result], "lead_time": 2.5, "draft_id": 0, "parent_prediction": None, "started_at": None}
    return api.call("POST", f"/api/tasks/{task['id']}/annotations/", body)


def said(record: Comparison) -> tuple:
    return tuple((m.role, m.content) for m in record.prompt), record.chosen, record.rejected


def test_50_comparisons_go_there_are_labelled_and_come_back_once(server, api, hh, tmp_path, capsys, monkeypatch):
    expected = {said(record) for record in read_comparisons(hh)}
    out, options = tmp_path / "comparisons.jsonl", {"project": "Fifty comparisons"}
    go("push", server, data=[str(hh)], **options)
    go("push", server, data=[str(hh)], **options)  # the second time there is nothing new
    assert "push: 0 pairwise tasks (50 were there already)" in " ".join(capsys.readouterr().err.split())
    project = api.project(options["project"])
    tasks = list(api.tasks(project["id"]))
    assert len(tasks) == 50

    go("pull", server, out=out, **options)
    assert out.read_text() == "", "nobody has labelled anything yet"
    chosen = {(prompt, frozenset((good, bad))): good for prompt, good, bad in expected}
    annotations = []
    for number, task in enumerate(tasks):
        data = task["data"]
        prompt = tuple((m["role"], m["content"]) for m in data["messages"])
        better = chosen[prompt, frozenset((data["answer1"], data["answer2"]))]
        annotations.append(click(api, task, "left" if data["answer1"] == better else "right"))
        if number == 19:  # some of it is fetched while the work goes on
            go("pull", server, out=out, **options)
            assert len(read_records(out, Comparison)) == 20
    go("pull", server, out=out, **options)
    records = read_records(out, Comparison)
    assert len(records) == 50
    assert {said(record) for record in records} == expected
    assert {(r.annotator, r.seconds, r.tie) for r in records} == {(PERSON, 2.5, False)}
    before = out.read_bytes()
    go("pull", server, out=out, **options)
    assert out.read_bytes() == before, "twice gives no duplicates"
    assert len(read_comparisons(out)) == 50, "as `wukong reward` reads them"

    # A person changes her mind, takes another judgment back, and skips a task.
    flipped = {"left": "right", "right": "left"}[annotations[7]["result"][0]["value"]["selected"]]
    result = [{**annotations[7]["result"][0], "value": {"selected": flipped}}]
    api.call("PATCH", f"/api/annotations/{annotations[7]['id']}/", {"result": result})
    api.call("PATCH", f"/api/annotations/{annotations[8]['id']}/", {"result": [], "was_cancelled": True})
    fetched, tasks_since = [], LabelStudio.tasks
    monkeypatch.setattr(command, "OVERLAP", datetime.timedelta(0))
    monkeypatch.setattr(
        LabelStudio, "tasks", lambda *args: (fetched.append(task) or task for task in tasks_since(*args))
    )
    go("pull", server, out=out, **options)
    assert {task["id"] for task in fetched} == {tasks[7]["id"], tasks[8]["id"]}, "only what has changed"
    after = read_records(out, Comparison)
    assert len(after) == 49
    assert {said(r) for r in after} - expected == {(said(records[7])[0], records[7].rejected, records[7].chosen)}
    assert "1 cancelled annotation" in " ".join(capsys.readouterr().err.split())

    go("pull", server, out=tmp_path / "afresh.jsonl", **options)
    assert (tmp_path / "afresh.jsonl").read_bytes() == out.read_bytes()


def test_rankings_predictions_and_ground_truth(server, api, tmp_path):
    prompts = [[Message(role="user", content=f"Question {n}")] for n in range(3)]
    known = [Ranking(prompt=p, responses=["a", "b", "c"], groups=[[1], [2], [0]], annotator="rm-1") for p in prompts]
    write_records(tmp_path / "known.jsonl", known)
    data, out = [str(tmp_path / "known.jsonl")], tmp_path / "out.jsonl"
    go("push", server, data=data, project="Ranked with predictions", labels="predictions")
    project = api.project("Ranked with predictions")
    for task in api.tasks(project["id"]):
        ids = {item["body"]: item["id"] for item in task["data"]["items"]}
        ranker = {"rank": [ids["c"], ids["a"], ids["b"]]}
        result = {"from_name": "rank", "to_name": "answers", "type": "ranker", "value": {"ranker": ranker}}
        api.call("POST", f"/api/tasks/{task['id']}/annotations/", {"result": [result]})
    go("pull", server, out=out, project=str(project["id"]))
    ranked = read_records(out, Ranking)
    assert [(r.prompt, r.responses, r.annotator) for r in ranked] == [(p, ["c", "a", "b"], PERSON) for p in prompts]
    with pytest.raises(UsageError, match="with other options; choose another --out"):
        go("pull", server, out=out, project=str(project["id"]), predictions=True)
    go("pull", server, out=tmp_path / "both.jsonl", project=str(project["id"]), predictions=True)
    both = read_records(tmp_path / "both.jsonl", Ranking)
    assert [(r.responses, r.annotator) for r in both] == [(["c", "a", "b"], PERSON), (["b", "c", "a"], "rm-1")] * 3

    go("push", server, data=data, project="Ranked with truth", labels="ground-truth")
    go("pull", server, out=tmp_path / "truth.jsonl", project="Ranked with truth")
    truth = read_records(tmp_path / "truth.jsonl", Ranking)
    assert [(r.responses, r.source.endswith(", ground truth")) for r in truth] == [(["b", "c", "a"], True)] * 3


def test_other_projects_and_tokens_are_refused(server, api, hh, tmp_path):
    config = '<View><Text name="t" value="$t"/><Choices name="c" toName="t"><Choice value="x"/></Choices></View>'
    api.create("Foreign choices", config)
    with pytest.raises(
        DataError, match=r"/projects/\d+: has only Choices; Pairwise or Ranker is needed to compare answers"
    ):
        go("pull", server, out=tmp_path / "x.jsonl", project="Foreign choices")
    with pytest.raises(UsageError, match="has no Pairwise in its labelling configuration"):
        go("push", server, data=[str(hh)], project="Foreign choices")
    with pytest.raises(UsageError, match="there is no project 'Nowhere'"):
        go("pull", server, out=tmp_path / "x.jsonl", project="Nowhere")
    with pytest.raises(UsageError, match="Invalid token; give a token of your account page"):
        run(LabelStudioOptions(action="pull", url=server, api_key="wrong", project="abc", out=tmp_path / "x.jsonl"))
    (tmp_path / "mine.jsonl").write_text("{}")
    with pytest.raises(UsageError, match="was not written by pull"):
        go("pull", server, out=tmp_path / "mine.jsonl", project="Foreign choices")
