"""Label Studio that fails, or something else in its place: one line, no token in it, nothing lost."""

from collections import Counter
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.openai_server import PASSING, Raw, answer, patience, served
from wukong import cli
from wukong.errors import UsageError
from wukong.feedback import remote
from wukong.feedback.labelstudio import api
from wukong.feedback.labelstudio.api import LabelStudio
from wukong.feedback.labelstudio.tasks import CONFIGS
from wukong.records import Comparison, as_messages, read_records, write_records

TOKEN = "a-token-that-is-never-printed"
PROJECT = {"id": 1, "title": "Kitchen", "label_config": CONFIGS["pairwise"], "more": None}
RESULT = {"from_name": "comparison", "to_name": "answer1,answer2", "type": "pairwise", "value": {"selected": "left"}}
TASK = {"id": 1, "data": {"prompt": "Hi", "answer1": "one", "answer2": "two"}, "updated_at": "2026-01-01T00:00:00Z",
        "annotations": [{"id": 1, "result": [RESULT], "completed_by": 7}]}  # fmt: skip
GOOD = {
    "GET /api/projects/": {"count": 1, "results": [PROJECT]},
    "GET /api/users/": [{"id": 7, "email": "ann@example.org"}],
    "GET /api/tasks/": {"total": 1, "tasks": [TASK]},
    "POST /api/projects/": PROJECT,
    "POST /api/projects/1/import": {"task_count": 1},
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(remote, "LARGEST", 100_000)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)


@pytest.fixture
def label_studio():
    """A server that answers as Label Studio does, but for what is put into the dictionary; and what it was asked."""
    answers, asked = dict(GOOD), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            place = f"{self.command} {urlsplit(self.path).path}"
            asked.append((place, parse_qs(urlsplit(self.path).query), body))
            said = answers.get(place, Raw({"detail": "Not found."}, status=404))
            said = said(len([one for one in asked if one[0] == place])) if callable(said) else said
            answer(self, said if isinstance(said, Raw) else Raw(said))

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with served(Handler) as url:
        yield url, answers, asked


def pull(url, directory, *more):
    options = ["--url", url, "--project", "Kitchen", "--out", str(directory / "c.jsonl")]
    return cli.main(["labelstudio", "pull", *options, *more])


def push(url, directory, *more):
    write_records(directory / "p.jsonl", [Comparison(prompt=as_messages("Hi"), chosen="one", rejected="two")])
    options = ["--url", url, "--project", "Kitchen", "--data", str(directory / "p.jsonl")]
    return cli.main(["labelstudio", "push", *options, *more])


def test_what_the_fake_server_answers_is_pulled_and_pushed(label_studio, tmp_path):
    url, answers, asked = label_studio
    assert pull(url, tmp_path) == 0
    (record,) = read_records(tmp_path / "c.jsonl", Comparison)
    assert (record.chosen, record.annotator) == ("one", "ann@example.org")
    assert push(url, tmp_path) == 0
    assert asked[-1][0] == "POST /api/projects/1/import"
    answers["GET /api/projects/"] = {"count": 0, "results": []}
    assert push(url, tmp_path) == 0


FOREIGN = {
    "web page": Raw("<!doctype html><title>Sign in</title>", kind="text/html"),
    "null": None,
    "a list": [1],
    "a number": 5,
    "an empty object": {},
    "other JSON": {"results": [{"x": 1}], "tasks": [{"x": 1}], "count": 1, "total": 1},
    "fields of other types": {"id": "one", "title": None, "results": {"a": 1}, "tasks": "none", "access": 1},
    "a page of nothing but null": {"results": [None], "tasks": [None], "count": 1},
    "an error with 200": {"error": "no"},
    "broken JSON": Raw("{"),
    "deep nesting": Raw("[" * 50_000),
    "no UTF-8": Raw(b"\xff\xfe\xfa"),
    "the same page again": {"results": [{**PROJECT, "title": "x"}], "tasks": [TASK], "count": 9, "total": 9},
    "a huge answer": Raw("x" * 1000, endless=True),
    "redirect to another host": Raw(status=302, headers={"Location": "https://elsewhere.invalid/login"}),
    "the token itself": Raw(f"you said {TOKEN}", status=400, kind="text/plain"),
    "the token itself in JSON": Raw({"detail": f"Invalid token {TOKEN}"}, status=401),
    "gone": Raw({"detail": "Not found."}, status=404),
    "500 for ever": Raw("<h1>Server Error</h1>", status=500, kind="text/html"),
    "a reset in the middle, for ever": Raw(GOOD["GET /api/tasks/"], cut=True),
    "no moment": {"tasks": [{**TASK, "updated_at": "yesterday"}], "total": 1},
    "a task without data": {"tasks": [{**TASK, "data": None}], "total": 1},
}
PULLED = ["GET /api/projects/", "GET /api/users/", "GET /api/tasks/"]


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        (kind, place)
        for kind in FOREIGN
        for place in PULLED
        if "task" in place or kind not in ("no moment", "a task without data")
    ],
)
def test_other_answers_are_one_line_and_lose_nothing(kind, place, label_studio, tmp_path, capsys):
    url, answers, asked = label_studio
    assert pull(url, tmp_path) == 0
    before = (tmp_path / "c.jsonl").read_bytes()
    capsys.readouterr()
    asked.clear()
    answers[place] = FOREIGN[kind]
    code = pull(url, tmp_path)
    said = capsys.readouterr().err
    assert code in (1, 2), said
    assert len(said.strip().splitlines()) == 1
    assert url in said
    assert said.strip().isprintable()
    assert TOKEN not in said
    assert (tmp_path / "c.jsonl").read_bytes() == before
    assert len([one for one in asked if one[0] == place]) <= remote.ATTEMPTS


@pytest.mark.parametrize("kind", ["web page", "null", "an empty object", "broken JSON", "the token itself"])
def test_other_answers_to_a_new_project_are_one_line(kind, label_studio, tmp_path, capsys):
    url, answers, _ = label_studio
    answers["GET /api/projects/"], answers["POST /api/projects/"] = {"count": 0, "results": []}, FOREIGN[kind]
    assert push(url, tmp_path) in (1, 2)
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert TOKEN not in said


@pytest.mark.parametrize("kind", PASSING)
def test_what_passes_is_asked_for_again(kind, label_studio, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "SECONDS", patience(kind))
    url, answers, asked = label_studio
    for place in PULLED:
        answers[place] = lambda n, place=place: PASSING[kind] if n <= 2 else GOOD[place]
    assert pull(url, tmp_path) == 0
    assert Counter(place for place, *_ in asked) == dict.fromkeys(PULLED, 3)


@pytest.mark.parametrize(
    ("kind", "times"),
    [("an error of the server", 1), pytest.param("silence", 1, marks=pytest.mark.slow), ("too many requests", 3)],
)
def test_what_may_have_had_its_effect_is_not_sent_twice(kind, times, label_studio, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "SECONDS", patience(kind))
    url, answers, asked = label_studio
    place = "POST /api/projects/1/import"
    answers[place] = lambda n: PASSING[kind] if n <= 2 else GOOD[place]
    assert push(url, tmp_path) == (0 if times == 3 else 1 if kind != "silence" else 2)
    assert len([one for one in asked if one[0] == place]) == times


def test_a_bad_annotation_on_the_server_is_named_and_skipped_where_allowed(label_studio, tmp_path, capsys):
    url, answers, _ = label_studio
    bad = {"result": [{**RESULT, "value": {"selected": "up"}}]}
    answers["GET /api/tasks/"] = {"total": 1, "tasks": [{**TASK, "annotations": [bad, *TASK["annotations"], "x"]}]}
    assert pull(url, tmp_path) == 2
    assert "/projects/1:1: field 'annotations[0].result[0].value.selected': is 'up'" in capsys.readouterr().err
    assert pull(url, tmp_path, "--skip-bad", "2") == 0
    assert "left out: 2 bad item" in " ".join(capsys.readouterr().err.split())
    assert len(read_records(tmp_path / "c.jsonl", Comparison)) == 1


def test_a_project_with_two_questions_is_pulled_one_by_one(label_studio, tmp_path, capsys):
    url, answers, _ = label_studio
    config = CONFIGS["pairwise"].replace(
        '<Pairwise name="comparison"', '<Pairwise name="harmless" toName="answer1,answer2"/><Pairwise name="comparison"'
    )
    other = {**RESULT, "from_name": "harmless", "value": {"selected": "right"}}
    answers["GET /api/projects/"] = {"count": 1, "results": [{**PROJECT, "label_config": config}]}
    answers["GET /api/tasks/"] = {"total": 1, "tasks": [{**TASK, "annotations": [{"result": [RESULT, other]}]}]}
    assert pull(url, tmp_path) == 2
    assert "asks several questions: harmless, comparison (choose one with --question)" in capsys.readouterr().err
    assert pull(url, tmp_path, "--question", "harmless") == 0
    assert [r.chosen for r in read_records(tmp_path / "c.jsonl", Comparison)] == ["two"]
    assert pull(url, tmp_path, "--question", "comparison") == 2
    assert "with other options; choose another --out" in " ".join(capsys.readouterr().err.split())


def test_a_short_lived_token_is_renewed_and_neither_is_printed_or_kept(label_studio, tmp_path, capsys, monkeypatch):
    url, answers, asked = label_studio
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", f"{TOKEN}.b.c")
    answers["POST /api/token/refresh"] = {"access": f"{TOKEN}-short"}
    assert pull(url, tmp_path) == 0
    answers["GET /api/tasks/"] = Raw({"detail": f"Token {TOKEN}-short has expired"}, status=401)
    assert pull(url, tmp_path) == 2
    assert [place for place, *_ in asked].count("POST /api/token/refresh") == 3
    said = capsys.readouterr()
    assert TOKEN not in said.err + said.out
    assert "*** has expired; give a token of your account page" in said.err
    for file in tmp_path.rglob("*"):
        assert TOKEN not in file.read_text()
    answers["POST /api/token/refresh"] = {"access": None}
    assert pull(url, tmp_path) == 1


@pytest.mark.parametrize("state", ["[]", "5", '{"tasks": 1}', "{", '{"project": 1}'])
def test_a_damaged_state_is_one_line(state, label_studio, tmp_path, capsys):
    url, _, _ = label_studio
    assert pull(url, tmp_path) == 0
    (tmp_path / "c.jsonl.labelstudio.json").write_text(state)
    capsys.readouterr()
    assert pull(url, tmp_path) == 2
    assert "c.jsonl.labelstudio.json" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://me:secret@127.0.0.1:8080", "http://127.0.0.1:8080/?token=secret"])
def test_a_secret_in_the_address_is_refused(url, tmp_path, capsys):
    assert pull(url, tmp_path) == 2
    assert "secret" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_token_that_no_header_can_hold_is_refused_without_printing_it():
    with pytest.raises(UsageError, match="the token of Label Studio contains a space") as caught:
        LabelStudio("http://127.0.0.1:9", "two\nlines")
    assert "two" not in str(caught.value)
