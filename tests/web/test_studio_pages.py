"""What the pages and the API do, without a browser."""

import ast
import bz2
import csv
import gzip
import importlib
import io
import json
import lzma
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pyarrow
import pyarrow.parquet
import pytest
import sqlalchemy as sa

import wukong
from tests.web.studio_forms import csrf_of
from wukong.data.comparisons import read_comparisons
from wukong.errors import DataError, Text, UsageError, WukongError
from wukong.feedback.store import importing
from wukong.feedback.store.tables import Assignment, Label, Task
from wukong.feedback.store.values import FLAGS, SKIP_REASONS
from wukong.language import catalogue, translate
from wukong.language.scripts import used_in
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.heads import ScalarModel
from wukong.model.hub import save_policy, save_reward
from wukong.records import Comparison, Message, Ranking, Response, Vote, prompt_id, write_records
from wukong.tokenizer import Tokenizer
from wukong.web.language import HERE, scripts


def hand(client, project, count=1):
    return client.post(f"/api/projects/{project}/next?count={count}", json={}).json()


def judge(client, project, value, **more):
    (task, *_) = hand(client, project)["tasks"]
    body = {"assignment": task["assignment"], "client_id": f"client-{task['assignment']}-x", "value": value, **more}
    answer = client.post("/api/labels", json=body)
    assert answer.status_code == 200, answer.text
    return task, answer.json()


VALUES = {
    "pairwise": {"winner": 0, "strength": 3},
    "ranking": {"groups": [[2], [0, 1], [3]]},
    "likert": {"ratings": [{"score": n, "flags": [FLAGS[2]]} for n in (7, 1, 4, 4)]},
    "thumbs": {"vote": -1},
}


@pytest.mark.parametrize("kind", VALUES)
def test_each_kind_is_labelled_exported_and_read_back(store, sign_in, make_project, kind, tmp_path):
    root, project = sign_in("Root", "admin"), make_project(kind, overlap=2)
    task, saved = judge(root, project, VALUES[kind], seconds=2.5, comment="=HYPERLINK(1)")
    assert saved["progress"] == {"done": 1, "left": 2}
    place = {text: int(text[-1]) for text in task["responses"]}
    exported = root.get(f"/api/projects/{project}/export").text
    (tmp_path / "labels.jsonl").write_text(exported)
    (record,) = read_comparisons(tmp_path / "labels.jsonl")
    shown = task["responses"]
    match record:
        case Comparison():
            assert (record.chosen, record.rejected, record.strength, record.seconds) == (shown[0], shown[1], 3, 2.5)
        case Ranking():
            groups = [[2], [0, 1], [3]] if kind == "ranking" else [[0], [2, 3], [1]]
            found = [sorted(record.responses[i] for i in group) for group in record.groups]
            assert found == [sorted(shown[i] for i in group) for group in groups]
        case Vote():
            assert (record.response, record.vote) == (shown[0], -1)
    assert (record.annotator, len(place)) == ("Root", len(shown))
    (row,) = csv.DictReader(io.StringIO(root.get(f"/api/projects/{project}/export?form=csv").text))
    assert row["comment"] == "'=HYPERLINK(1)"  # no formula
    assert [json.loads(row["responses"])[i] for i in json.loads(row["shown"])] == shown


@pytest.mark.parametrize(("form", "kind", "count"), [("trl", "pairwise", 1), ("hh", "pairwise", 1),
                                                     ("trl", "ranking", 5), ("hh", "ranking", 5),
                                                     ("trl", "thumbs", 1)])  # fmt: skip
def test_other_tools_formats_are_read_back_as_the_same_judgment(sign_in, make_project, tmp_path, form, kind, count):
    root, project = sign_in("Root", "admin"), make_project(kind)
    task, _ = judge(root, project, VALUES[kind])
    (tmp_path / "labels.jsonl").write_text(root.get(f"/api/projects/{project}/export?form={form}").text)
    records = read_comparisons(tmp_path / "labels.jsonl")
    assert len(records) == count  # a ranking of four in which two are tied has five pairs
    assert all(record.prompt[-1].content == task["prompt"][-1]["content"] for record in records)
    if kind == "ranking":
        assert all(record.chosen == task["responses"][2] for record in records[:3])


def test_majority_and_adjudication_decide_the_export(sign_in, make_project):
    root, project = sign_in("Root", "admin"), make_project(overlap=3)
    people = [sign_in(name) for name in ("Ann", "Bob", "Eve")]
    for person, winner in zip(people, (0, 0, 1), strict=True):
        for task in hand(person, project, 3)["tasks"]:
            side = task["responses"].index(sorted(task["responses"])[winner])
            body = {
                "assignment": task["assignment"],
                "client_id": f"client-{task['assignment']}",
                "value": {"winner": side},
            }
            assert person.post("/api/labels", json=body).status_code == 200
    body = {"client_id": "decision-1", "value": {"winner": 1}}
    assert root.post("/api/tasks/1/adjudication", json=body).status_code == 200
    address = f"/api/projects/{project}/export?judgments="
    every, decided = (
        [json.loads(line) for line in root.get(address + kind).text.splitlines()] for kind in ("all", "majority")
    )
    assert len(every) == 10
    assert [(one["chosen"], one["annotator"]) for one in decided] == [
        ("answer 0.1", "Root"), ("answer 1.0", "majority of 3"), ("answer 2.0", "majority of 3")
    ]  # fmt: skip
    inbox = root.get(f"/projects/{project}/tasks?show=disagreement").text
    assert inbox.count('<td><a href="/tasks/') == 2
    figures = root.get(f"/api/projects/{project}/quality").json()
    assert figures["labels"] == 9
    assert figures["raw_agreement"] == pytest.approx(1 / 3)
    assert [row["annotator"] for row in figures["annotators"]] == ["Ann", "Bob", "Eve"]


def test_undo_skip_and_draft_over_http(store, sign_in, make_project):
    ann, project = sign_in(), make_project("ranking")
    (task,) = hand(ann, project)["tasks"]
    assert ann.put(f"/api/assignments/{task['assignment']}/draft", json={"draft": {"groups": [[1]]}}).status_code == 204
    assert hand(ann, project)["tasks"][0]["draft"] == {"groups": [[1]]}
    judge(ann, project, VALUES["ranking"])
    undone = ann.post(f"/api/projects/{project}/undo", json={"client_id": "undo-undo"}).json()
    assert undone["tasks"][0]["assignment"] == task["assignment"]
    assert undone["tasks"][0]["draft"] == VALUES["ranking"]
    body = {"assignment": task["assignment"], "client_id": "skip-skip", "reason": "other"}
    assert ann.post("/api/skips", json=body).json()["progress"] == {"done": 0, "left": 2}
    assert ann.post("/api/skips", json=body).status_code == 200  # the same again
    with store.read() as session:
        assert session.scalars(sa.select(Label.status).order_by(Label.id)).all() == ["given", "withdrawn", "skipped"]


def test_a_value_that_does_not_fit_is_one_line(store, sign_in, make_project):
    ann, project = sign_in(), make_project()
    (task,) = hand(ann, project)["tasks"]
    body = {"assignment": task["assignment"], "client_id": "client-bad", "value": {"winner": 5}}
    answer = ann.post("/api/labels", json=body)
    assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert "winner" in answer.json()["error"]
    with store.read() as session:
        assert session.scalars(sa.select(Assignment.state)).all() == ["leased"]


# ------------------------------------------------------------------------------------------------------ adding tasks


def upload(client, project, name, content, **form):
    """The import's job, when it has ended."""
    data = {"csrf": client.headers["x-csrf-token"], **form}
    answer = client.post(f"/projects/{project}/import", data=data, files={"file": (name, content)})
    assert answer.status_code == 303, answer.text
    return finished(client, project)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"prompt_id": ' + b"9" * 5000 + b"}", b"<html>", b"\xff\xfe"])
def test_a_file_that_no_reader_knows_is_refused_in_one_line(sign_in, make_project, content):
    root, project = sign_in("Root", "admin"), make_project(tasks=0)
    job = upload(root, project, "tasks.jsonl", content)
    assert (job.state, len(str(job.error).splitlines())) == ("failed", 1)


def test_files_become_tasks_gold_and_labels(store, sign_in, make_project):
    root, project = sign_in("Root", "admin"), make_project(tasks=0)
    rows = b"prompt,chosen,rejected\nHow?,good,bad\nWhy?,yes,no\n"
    for use, n_tasks, n_gold, n_labels in (
        ("tasks", 2, 0, 0),
        ("tasks", 2, 0, 0),
        ("labels", 2, 0, 2),
        ("labels", 2, 0, 2),
    ):
        assert upload(root, project, "pairs.csv", rows, use=use).state == "done"
        with store.read() as session:
            tasks = session.scalars(sa.select(Task)).all()
            assert (len(tasks), sum(task.is_gold for task in tasks)) == (n_tasks, n_gold)
            assert session.scalar(sa.select(sa.func.count()).select_from(Label)) == n_labels
    assert upload(root, project, "gold.csv", b"prompt,chosen,rejected\nWho?,a,b\n", use="gold").state == "done"
    with store.read() as session:
        (gold,) = session.scalars(sa.select(Task).where(Task.is_gold))
        assert gold.texts[gold.gold["winner"]] == "a"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"prompt": "p", "chosen": "a"}\n', "import: failed x.jsonl:1: "),
        (b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt"\n', "import: failed x.jsonl:2: "),
        (b"\xff\xfe", "import: failed x.jsonl: is UTF-16"),
        (b"", "import: failed x.jsonl: the file is empty"),
        (
            b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n'
            b'{"prompt": [{"role": "user", "content": "p"}], "response": "r", "vote": 1}\n',
            "x.jsonl:2: a vote cannot become a pairwise task (choose another kind",
        ),
        (b'{"prompt_id": "x"}\n', "import: failed x.jsonl:1: "),
    ],
)
def test_a_bad_file_says_where_and_adds_nothing(store, sign_in, make_project, content, words):
    root, project = sign_in("Root", "admin"), make_project(tasks=0)
    assert upload(root, project, "x.jsonl", content).state == "failed"
    page = root.get(f"/projects/{project}").text
    assert words in page, page
    assert "Traceback" not in page
    assert tempfile.gettempdir() not in page
    with store.read() as session:
        assert session.scalars(sa.select(Task)).all() == []


def test_an_import_goes_on_behind_the_page_which_says_how_far_it_is(sign_in, make_project, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    go_on, insert = threading.Event(), importing.insert_tasks
    monkeypatch.setattr(importing, "insert_tasks", lambda *args: (go_on.wait(60), insert(*args))[1])
    root, project = sign_in("Root", "admin"), make_project(tasks=0)
    lines = [json.dumps({"prompt": f"{i}?", "chosen": "a", "rejected": "b"}) for i in range(600)]
    content = "\n".join([*lines, "no JSON", lines[0]]).encode()
    form = {"csrf": root.headers["x-csrf-token"], "skip_bad": "1"}
    address = f"/projects/{project}"
    files = {"file": ("../my eggs.jsonl.gz", gzip.compress(content))}
    try:
        assert root.post(f"{address}/import", data=form, files=files).status_code == 303
        deadline = time.monotonic() + 60
        while "import: running… 500 records read" not in (page := root.get(address).text):
            assert time.monotonic() < deadline, page
        assert "static/job.js" in page
        assert len(list(tmp_path.glob("wukong-import-*"))) == 1
        again = root.post(f"{address}/import", data=form, files=files)
        assert (again.status_code, "something is running" in again.text) == (400, True)
        assert len(list(tmp_path.glob("wukong-import-*"))) == 1
    finally:
        go_on.set()
    assert finished(root, project).lines == [
        "600 new tasks", "602 records read", "1 dropped: bad record", "1 dropped: duplicate",
        "my_eggs.jsonl.gz:601: not valid JSON: Expecting value",
    ]  # fmt: skip
    root.headers["accept-language"] = "zh"
    page = root.get(address).text
    assert "导入：完成 新增 600 个任务；已读取 602 条记录；略去 1 条：无法使用的记录；略去 1 条：重复" in page
    assert "static/job.js" not in page
    assert list(tmp_path.glob("wukong-import-*")) == []


def columns(texts):
    return pyarrow.table({"prompt": texts, "chosen": ["a"] * len(texts), "rejected": ["b"] * len(texts)})


def arrow(table):
    sink = io.BytesIO()
    with pyarrow.ipc.new_file(sink, table.schema, options=pyarrow.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue()


def parquet(table):
    pyarrow.parquet.write_table(table, sink := io.BytesIO())
    return sink.getvalue()


ROWS = [f"{i} {'x' * 10_000}" for i in range(300)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl.gz", gzip.compress(b"".join(json.dumps({"prompt": text}).encode() + b"\n" for text in ROWS))),
        ("x.csv.bz2", bz2.compress(b"prompt,chosen,rejected\n" + b"".join(f"{t},a,b\n".encode() for t in ROWS))),
        ("x.json.xz", lzma.compress(json.dumps([{"prompt": text} for text in ROWS]).encode())),
        ("x.parquet", parquet(columns(["x" * 10_000] * 300))),
        ("x.arrow", arrow(columns(ROWS))),
    ],
)
def test_an_upload_may_not_unpack_to_more_than_the_limit(store, sign_in, make_project, monkeypatch, name, content):
    assert len(content) < 100_000
    monkeypatch.setattr("wukong.web.routes.new_tasks.LARGEST_FILE", 1 << 20)
    root, project = sign_in("Root", "admin"), make_project(tasks=0)
    job = upload(root, project, name, content)
    assert (job.state, job.lines) == ("failed", [])
    assert str(job.error) == f"{name}: unpacks to more than 1 MiB (split it into several files)"


@pytest.fixture
def run_with_models(tmp_path):
    """A run directory with a policy, two reward models and responses."""
    tokenizer = Tokenizer.train([], 257, "plain")
    config = GPT2Config(257, 64, 16, 1, 2)
    save_policy(tmp_path / "sft", GPT2(config), tokenizer)
    for name in ("reward", "reward_judge"):
        save_reward(tmp_path / name, ScalarModel(GPT2(config)), tokenizer)
    prompt = [Message(role="user", content="Eggs?")]
    records = [
        Response(id=f"r{i}", prompt_id=prompt_id(prompt), messages=prompt, text=f"{i} minutes", model="sft")
        for i in range(4)
    ]
    write_records(tmp_path / "responses.jsonl", records)
    return tmp_path


def finished(client, project, seconds=300):
    deadline = time.monotonic() + seconds
    while (job := client.app.state.studio.jobs.of(project)).state == "running":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return job


def test_models_of_the_run_answer_and_reward_models_rate(run_with_models, store, sign_in, make_project, monkeypatch):
    monkeypatch.setattr(
        "wukong.web.routes.new_tasks.now", lambda: 7.0
    )  # its seed: two answers drawn alike would make no task
    root, project = sign_in("Root", "admin"), make_project(tasks=0)
    csrf = {"csrf": root.headers["x-csrf-token"]}
    page = root.get(f"/projects/{project}").text
    assert ">responses.jsonl<" in page.replace("</option>", "<")
    assert 'value="sft"' in page
    assert root.post(f"/projects/{project}/import", data={**csrf, "run_file": "responses.jsonl"}).status_code == 303
    assert finished(root, project).lines == ["6 new tasks", "4 records read"]
    form = {**csrf, "models": "sft", "prompts": "Eggs?\nRice?", "responses": "2", "max_new_tokens": "4"}
    assert root.post(f"/projects/{project}/generate", data=form).status_code == 303
    job = finished(root, project)
    assert job.state == "done", job
    form = {**csrf, "models": ["reward", "reward_judge"]}
    assert root.post(f"/projects/{project}/uncertainty", data=form).status_code == 303
    job = finished(root, project)
    assert job.state == "done", job
    with store.read() as session:
        tasks = session.scalars(sa.select(Task)).all()
        assert len(tasks) == 8  # six pairs of the file's four answers, and one of each prompt's two
        assert all(0 <= task.uncertainty <= 1 for task in tasks)
        assert any(task.uncertainty > 0 for task in tasks)


# ------------------------------------------------------------------------------------------------- lists and languages


@pytest.mark.slow
def test_ten_thousand_tasks_stay_fast(store, sign_in, make_project):
    root, project = sign_in("Root", "admin"), make_project(tasks=10_000, overlap=2)
    pages = [f"/projects/{project}/tasks", f"/projects/{project}/tasks?page=200",
             f"/projects/{project}/tasks?q=Question+99", f"/projects/{project}/tasks?show=disagreement",
             f"/projects/{project}/tasks?show=open&page=100", f"/projects/{project}", "/", "/people"]  # fmt: skip
    for path in pages:
        root.get(path)
        times = []
        for _ in range(3):
            begin = time.process_time()
            answer = root.get(path)
            times.append(time.process_time() - begin)  # of this process: the test's machine may be busy
            assert answer.status_code == 200
        assert min(times) < 0.2, f"{path}: {times}"
    assert root.get(pages[1]).text.count('<td><a href="/tasks/') == 50
    begin = time.process_time()
    assert len(hand(root, project, 2)["tasks"]) == 2
    assert time.process_time() - begin < 0.2


SOURCE = Path(wukong.__file__).parent


def test_every_text_is_there_in_both_languages():
    files = [*(HERE / "templates").glob("*.jinja"), *scripts()]
    used = set().union(*(used_in(path) for path in files)) | set(FLAGS) | set(SKIP_REASONS)
    assert len(used) > 200
    assert used - set(catalogue("studio")) == {"token"}, "without Chinese; token is token in both"
    written = used | {
        node.value
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert set(catalogue("studio")) - written == set(), "Chinese of texts that are gone"


def module_of(path: Path) -> ModuleType:
    return importlib.import_module(".".join(("wukong", *path.relative_to(SOURCE).with_suffix("").parts)))


def texts_in(path: Path) -> Iterator[str]:
    """The template of every error and `Text` that a module makes. What is no literal must be a constant of the module,
    or come from an error or text that was made elsewhere: no text can be looked up that is only put together here."""
    module = module_of(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        made = getattr(module, node.func.id, None)
        if made is not Text and not (isinstance(made, type) and issubclass(made, WukongError)):
            continue
        for said in (node.args[0], *(keyword.value for keyword in node.keywords if keyword.arg == "hint")):
            code = ast.unparse(said)
            if isinstance(said, ast.Constant) or code in vars(module):
                yield said.value if isinstance(said, ast.Constant) else vars(module)[code]
            else:
                assert code in PASSED_ON, f"{path.name}:{node.lineno}: {code}"


PASSED_ON = {
    "error.problem", "error.hint", "problem", "found[1]", "line.template", "hint", "said.args[0]",
    "_text(content)", "template", "str(content['message'])",  # of another process's error
    "said.args[0] if said else first['msg']",  # pydantic's own words stay English
    "(done.stderr.strip().splitlines() or ['wukong sample failed'])[-1]",  # and those of another process
}  # fmt: skip


def test_every_error_of_the_studio_is_there_in_chinese():
    """Not those of its start, which are read in a terminal."""
    places = [*HERE.rglob("*.py"), *(SOURCE / "feedback" / "store").glob("*.py"), SOURCE / "serve" / "service.py"]
    files = [path for path in places if path.name not in ("command.py", "language.py", "database.py", "__init__.py")]
    found = {text for path in files for text in texts_in(path) if re.search("[A-Za-z]", re.sub("{.*?}", "", text))}
    assert len(found) > 70
    assert {text for text in found if not re.search("[\u4e00-\u9fff]", translate("zh", text))} == set()


def test_what_is_filled_in_is_translated_only_where_it_is_a_text_of_ours():
    name = "Report"  # somebody's project may be called what a page says elsewhere
    assert translate("zh", name) == "报告"
    assert translate("zh", UsageError("there is a project {name!r} already", name=name)) == "已有名为 'Report' 的项目"
    dropped = Text("{n} dropped: {reason}", n=2, reason=Text("duplicate"))
    assert translate("zh", dropped) == "略去 2 条：重复"
    bad = DataError("holds more than {n} records or tasks", n=7, file="a.csv", hint="split it into several files")
    assert translate("zh", bad) == "a.csv: 含有超过 7 条记录或任务 (请拆分成几个文件)"
    assert translate("zh", Text("left out: {record}", record=bad)) == f"略去：{translate('zh', bad)}"


def test_an_error_with_names_in_it_is_chinese_on_the_page_and_in_the_api(sign_in, make_project):
    root = sign_in("Root", "admin")
    root.headers["accept-language"] = "zh"
    form = {"csrf": root.headers["x-csrf-token"], "name": "<b>蛋</b>", "kind": "pairwise"}
    assert root.post("/projects/new", data=form).status_code == 303
    assert "已有名为 &#39;&lt;b&gt;蛋&lt;/b&gt;&#39; 的项目" in root.post("/projects/new", data=form).text
    project = make_project("ranking")
    (task,) = hand(root, project)["tasks"]
    body = {"assignment": task["assignment"], "client_id": "client-bad", "value": {"groups": [[1]]}}
    assert "4 个回答每个必须恰好出现一次" in root.post("/api/labels", json=body).json()["error"]
    root.headers["accept-language"] = "en"
    assert "each of the 4 answers once" in root.post("/api/labels", json=body).json()["error"]
    assert translate("zh", "something that nobody says") == "something that nobody says"


def test_no_template_shows_a_word_that_is_not_translated():
    for path in (HERE / "templates").glob("*.jinja"):
        text = re.sub(r"\{%.*?%\}|\{\{.*?\}\}|<[^>]*>", " ", path.read_text(encoding="utf-8"), flags=re.S)
        words = set(re.findall(r"[A-Za-z]{2,}", text)) - {"Wukong", "JSONL", "TRL", "HH", "JSON", "Esc"}
        assert not words, f"{path.name}: {words}"


def test_language_and_theme_are_chosen_and_kept(browser):
    client = browser()
    assert "登录" in client.get("/login", headers={"accept-language": "zh-CN,zh;q=0.9,en;q=0.5"}).text
    assert "Sign in" in client.get("/login", headers={"accept-language": "fr,en"}).text
    form = {"csrf": csrf_of(client), "language": "zh", "theme": "dark", "back": "/login"}
    assert client.post("/preferences", data=form).headers["location"] == "/login"
    page = client.get("/login", headers={"accept-language": "en"}).text
    assert 'lang="zh-Hans" data-theme="dark"' in page
    assert translate("zh", "{n} tasks", n=3) == "3 个任务"


def test_the_api_describes_itself(browser):
    found = browser().get("/api/openapi.json").json()
    assert "/api/labels" in found["paths"]
    assert all(path.startswith("/api/") for path in found["paths"])
    assert found["components"]["schemas"]["Judged"]["properties"]["client_id"]


def test_guidelines_are_shown_versioned_and_harmless(sign_in, make_project):
    root, project = sign_in("Root", "admin"), make_project()
    for text in ("Be **kind**.", "Be *kind* <b>x</b>."):
        form = {"csrf": root.headers["x-csrf-token"], "guidelines": text}
        assert root.post(f"/projects/{project}/settings", data=form).status_code == 303
    page = root.get(f"/label/{project}").text
    assert "<em>kind</em> &lt;b&gt;x" in page
    assert "version 2" in page
