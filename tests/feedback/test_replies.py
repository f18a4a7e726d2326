"""Foreign servers and their replies: failures are one line, passing ones tried again, nothing is paid twice."""

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.fuzz import replies as fuzz
from tests.openai_server import FOREIGN, PASSING, Raw, completion, openai_server, patience
from wukong import cli
from wukong.errors import RunError, UsageError
from wukong.feedback import remote, replies
from wukong.feedback.annotators import load_judge
from wukong.feedback.endpoint import Endpoint
from wukong.feedback.pairwise_judge import PairwiseJudge
from wukong.feedback.remote import ServerError
from wukong.feedback.replies import Replies, Reply
from wukong.records import Prompt, Response, as_messages, prompt_id, read_records, write_records
from wukong.stages import label, sample
from wukong.stages.label import LabelOptions
from wukong.stages.sample import SampleOptions

KEY = "sk-this-is-never-printed"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Back-off and limits at a scale at which tests can wait for them; time-outs that no busy machine comes near."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(remote, "SECONDS", 60.0)
    monkeypatch.setattr(remote, "LARGEST", 100_000)
    monkeypatch.setattr(replies, "GRACE", 60.0)


def by_sample(url: str, directory: Path) -> list[str]:
    write_records(directory / "p.jsonl", [Prompt(messages=as_messages("say 7"))])
    options = {"endpoint": url, "endpoint_model": "m", "responses_per_prompt": 1}
    sample.run(SampleOptions(out=directory / "r.jsonl", prompts=[str(directory / "p.jsonl")], **options))
    return [response.text for response in read_records(directory / "r.jsonl", Response)]


def by_label(url: str, directory: Path) -> list[str]:
    asked = as_messages("say 7")
    own = [
        Response(id=text, prompt_id=prompt_id(asked), messages=asked, text=text, model="m") for text in ("7", "eight")
    ]
    write_records(directory / "r.jsonl", own)
    options = {"responses": str(directory / "r.jsonl"), "judge": f"openai:m@{url}", "shape": "pairs"}
    label.run(LabelOptions(out=directory / "c.jsonl", **options))
    return ["7"]


def by_grader(url: str, directory: Path) -> list[str]:
    judge = load_judge(f"openai:m@{url}", directory / "grades.jsonl")
    return [f"{judge([Prompt(messages=as_messages('say 7'))], ['7'])[0].score:g}"]


def by_pairs(url: str, directory: Path) -> list[str]:
    return PairwiseJudge(url, "m", directory / "verdicts.jsonl").ask(["7 or 8?"], lambda n: None)


CALLERS: dict[str, Callable[[str, Path], list[str]]] = {
    "sample": by_sample,
    "label": by_label,
    "grader": by_grader,
    "pairs": by_pairs,
}


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_a_foreign_server_answers_is_text_or_one_line(kind, caller, tmp_path):
    answer, words = FOREIGN[kind]
    with openai_server(lambda body: answer) as (url, asked):
        if words is None:
            assert [text[0] for text in CALLERS[caller](url, tmp_path)] == ["7"]
            return
        with pytest.raises(RunError) as caught:
            CALLERS[caller](url, tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{url}/chat/completions: ")
    assert words in said
    assert said.isprintable()
    assert len(said) < 250
    assert KEY not in said
    assert len(asked) <= 2 * (remote.REDIRECTS + 1), "what would not help is not tried again"


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("kind", PASSING)
def test_what_passes_is_tried_again(kind, caller, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "SECONDS", patience(kind))
    times = Counter()

    def twice_in_vain(body: dict) -> str | Raw:
        question = json.dumps(body)
        times[question] += 1
        return PASSING[kind] if times[question] <= 2 else "7"

    with openai_server(twice_in_vain) as (url, asked):
        assert CALLERS[caller](url, tmp_path) == ["7"]
    assert set(times.values()) == {3}
    assert len(asked) == 3 * len(times)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Raw("down", status=500), "status 500: down (6 attempts)"),
        (Raw({"error": {"code": 429}}), "answered with an error: {\"error\": {\"code\": 429}} (6 attempts)"),
        (Raw(completion(), cut=True), "the connection broke ("),
        (Raw(completion(), seconds=60), "no answer within 0.3 s (6 attempts)"),
    ],
)  # fmt: skip
def test_what_does_not_pass_ends_after_a_bounded_number_of_attempts(answer, words, monkeypatch):
    if answer.seconds:
        monkeypatch.setattr(remote, "SECONDS", 0.3)
    with openai_server(lambda body: answer) as (url, asked):
        endpoint = Endpoint(url, "m")
        with pytest.raises(ServerError) as caught:
            endpoint.reply(endpoint.request(as_messages("x")))
        end = time.monotonic() + 60
        while len(asked) < remote.ATTEMPTS and time.monotonic() < end:  # it may read later than we gave up
            time.sleep(0.01)
    assert words in str(caught.value)
    assert len(asked) == remote.ATTEMPTS


def test_a_wait_longer_than_the_bound_is_said_and_not_waited_for():
    with openai_server(lambda body: Raw("", status=429, headers={"Retry-After": "3600"})) as (url, asked):
        endpoint = Endpoint(url, "m")
        with pytest.raises(ServerError, match=r"status 429.*asks to wait 3,600 s"):
            endpoint.reply(endpoint.request(as_messages("x")))
    assert len(asked) == 1


def test_retry_after_is_honoured():
    waited = []

    def once(body: dict) -> str | Raw:
        waited.append(time.monotonic())
        return "7" if len(waited) > 1 else Raw("", status=429, headers={"Retry-After": "0.3"})

    with openai_server(once) as (url, _):
        endpoint = Endpoint(url, "m")
        assert endpoint.reply(endpoint.request(as_messages("x"))) == Reply("7", True, 2)
    assert waited[1] - waited[0] >= 0.3


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}])
def test_an_endless_answer_is_not_read_to_its_end(headers):
    body = gzip.compress(b"x" * 10_000_000) if headers else "x" * 10_000
    with openai_server(lambda _: Raw(body, headers=headers, endless=not headers)) as (url, _):
        endpoint = Endpoint(url, "m")
        with pytest.raises(ServerError, match=r"the answer is longer than 0 MiB: x{80}…"):
            endpoint.reply(endpoint.request(as_messages("x")))


def test_an_answer_that_drips_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    monkeypatch.setattr(remote, "SECONDS", 0.5)

    def slowly():
        while True:
            time.sleep(0.05)
            yield b" "

    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=slowly()))
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m", transport=transport)
    begin = time.monotonic()
    with pytest.raises(ServerError, match=r"no answer within 0.5 s \(2 attempts\)"):
        endpoint.reply(endpoint.request(as_messages("x")))
    assert time.monotonic() - begin < 30


def test_a_server_that_is_not_there_is_said_at_once():
    endpoint = Endpoint("http://127.0.0.1:9/v1", "m")
    with pytest.raises(ServerError, match=r"http://127.0.0.1:9/v1/chat/completions: no answer .*is the server running"):
        endpoint.reply(endpoint.request(as_messages("x")))


def test_a_redirect_within_the_server_is_followed():
    def moved(body: dict) -> str | Raw:
        return "7" if len(asked) > 1 else Raw(status=308, headers={"Location": "/elsewhere"})

    with openai_server(moved) as (url, asked):
        endpoint = Endpoint(url, "m")
        assert endpoint.reply(endpoint.request(as_messages("x"))).text == "7"
    assert [path for path, _ in asked] == ["/v1/chat/completions", "/elsewhere"]
    assert asked[0][1] == asked[1][1]


def test_a_key_that_the_server_repeats_is_not_printed():
    with openai_server(lambda body: Raw({"error": f"{KEY} is wrong"}, status=401)) as (url, _):
        endpoint = Endpoint(url, "m")
        with pytest.raises(ServerError, match=r"\*\*\* is wrong.*check the key"):
            endpoint.reply(endpoint.request(as_messages("x")))


@pytest.mark.parametrize("key", ["two\nlines", "“quoted”", "a b"])
def test_a_key_that_no_header_can_hold_is_refused_without_printing_it(key, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UsageError, match="OPENAI_API_KEY contains a space, a line break") as caught:
        Endpoint("http://127.0.0.1:9/v1", "m")
    assert key not in str(caught.value)


@pytest.mark.parametrize("url", ["http://me:secret@127.0.0.1/v1", "http://127.0.0.1/v1?key=secret", "me:secret@host"])
@pytest.mark.parametrize("stage", ["sample", "label", "compare", "evaluate", "frontier"])
def test_a_secret_in_an_address_is_refused_and_recorded_nowhere(url, stage, tmp_path, capsys):
    judge = ["--judge", f"openai:m@{url}"]
    arguments = {
        "sample": ["--prompts", "p.jsonl", "--endpoint", url, "--endpoint-model", "m"],
        "label": ["--responses", "r.jsonl", *judge],
        "compare": ["a=x", "b=x", "--prompts", "p.jsonl", "--endpoint", url, "--endpoint-model", "m"],
        "evaluate": ["--models", "a=x", "--prompts", "p.jsonl", "--best-of", "a=2", "--best-of-reward", judge[1]],
        "frontier": ["a=x", "--reference", "x", "--proxy", "lexicon", "--gold", judge[1], "--prompts", "p.jsonl"],
    }[stage]
    assert cli.main([stage, *arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "secret" not in said
    assert "without a user, password, query" in " ".join(said.split())
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------- nothing is paid twice


def twelve(directory: Path) -> dict:
    write_records(directory / "p.jsonl", [Prompt(messages=as_messages(f"say {i}")) for i in range(6)])
    return {"prompts": [str(directory / "p.jsonl")], "endpoint_model": "m", "responses_per_prompt": 2}


def echo(body: dict) -> str:
    return f"{body['messages'][-1]['content']} {body['seed']}"


def test_answers_got_so_far_are_kept_and_the_rest_is_asked_for(tmp_path):
    failing = threading.Event()

    def reply(body: dict) -> str | Raw:
        return Raw({"choices": []}) if failing.is_set() and body["messages"][-1]["content"] == "say 4" else echo(body)

    with openai_server(reply) as (url, asked):
        options = twelve(tmp_path) | {"endpoint": url}
        sample.run(SampleOptions(out=tmp_path / "whole.jsonl", **options))
        asked.clear()
        failing.set()
        with pytest.raises(RunError, match=r"has no choices.*(replies are kept|reply is kept); run the same command"):
            sample.run(SampleOptions(out=tmp_path / "r.jsonl", **options))
        assert not (tmp_path / "r.jsonl").exists()
        failing.clear()
        sample.run(SampleOptions(out=tmp_path / "r.jsonl", **options))
    assert (tmp_path / "r.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    paid = Counter(json.dumps(body) for _, body in asked if body["messages"][-1]["content"] != "say 4")
    assert set(paid.values()) == {1}
    assert [file.name for file in tmp_path.iterdir() if "replies" in file.name] == []


def test_other_options_never_take_anothers_answers(tmp_path):
    failing = threading.Event()
    failing.set()

    def reply(body: dict) -> str | Raw:
        if failing.is_set() and body["messages"][-1]["content"] == "say 5":
            return Raw({"choices": []})
        return f"{echo(body)} {body['max_tokens']}"

    with openai_server(reply) as (url, _):
        options = twelve(tmp_path) | {"endpoint": url}
        with pytest.raises(RunError, match="the same command"):
            sample.run(SampleOptions(out=tmp_path / "r.jsonl", **options))
        failing.clear()
        sample.run(SampleOptions(out=tmp_path / "r.jsonl", **options, max_new_tokens=9))
    assert {r.text.split()[-1] for r in read_records(tmp_path / "r.jsonl", Response)} == {"9"}


def test_labels_of_a_stopped_run_are_not_paid_twice(tmp_path):
    failing = threading.Event()
    failing.set()

    def grade(body: dict) -> str | Raw:
        text = body["messages"][-1]["content"].split("<answer>\n")[1]
        return Raw(status=400) if failing.is_set() and text.startswith("two") else str(2 if "one" in text else 3)

    asked_of = [as_messages(f"q{i}") for i in range(3)]
    own = [
        Response(id=f"{i}{text}", prompt_id=prompt_id(m), messages=m, text=text, model="m")
        for i, m in enumerate(asked_of)
        for text in ("one", "two")
    ]
    write_records(tmp_path / "r.jsonl", own)
    with openai_server(grade) as (url, asked):
        options = {"responses": str(tmp_path / "r.jsonl"), "judge": f"openai:m@{url}"}
        with pytest.raises(RunError, match="status 400"):
            label.run(LabelOptions(out=tmp_path / "c.jsonl", **options))
        failing.clear()
        label.run(LabelOptions(out=tmp_path / "c.jsonl", **options))
    paid = Counter(json.dumps(body) for _, body in asked if "one" in body["messages"][-1]["content"])
    assert set(paid.values()) == {1}
    assert {file.name for file in tmp_path.iterdir()} == {"r.jsonl", "c.jsonl", "c.jsonl.provenance.json"}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_command_goes_on_without_paying_twice(how, tmp_path):
    enough, go_on = threading.Event(), threading.Event()

    def reply(body: dict) -> str:
        with lock:
            answered.append(json.dumps(body))
            if len(answered) >= 20:
                enough.set()
        if enough.is_set():
            go_on.wait(300)
        return echo(body)

    answered, lock = [], threading.Lock()
    write_records(tmp_path / "p.jsonl", [Prompt(messages=as_messages(f"say {i}")) for i in range(30)])
    with openai_server(reply) as (url, _):
        arguments = ["sample", "--prompts", "p.jsonl", "--endpoint", url, "--endpoint-model", "m", "--out"]
        # the shell that started the tests may have had SIGINT ignored, which children inherit
        start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); " \
                "from wukong import cli; sys.exit(cli.main(sys.argv[1:]))"  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-c", start, *arguments, "r.jsonl"], cwd=tmp_path, env=dict(os.environ),
            stderr=subprocess.PIPE,
        )  # fmt: skip
        if not enough.wait(300):
            process.kill()
            pytest.fail(process.communicate()[1].decode())
        kept = tmp_path / ".r.jsonl.replies.jsonl"
        while len(kept.read_bytes().splitlines()) < 12:  # the others are under way
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(how)
        _, said = process.communicate(timeout=300)
        assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130)
        assert b"Traceback" not in said
        there = len(kept.read_bytes().splitlines())
        kept.write_bytes(kept.read_bytes() + b'{"key": "cut off in the mid')
        go_on.set()
        before = len(answered)
        sample.run(
            SampleOptions(out=tmp_path / "r.jsonl", prompts=[str(tmp_path / "p.jsonl")], endpoint=url,
                          endpoint_model="m")
        )  # fmt: skip
        assert len(answered) - before == 120 - there
        sample.run(
            SampleOptions(out=tmp_path / "whole.jsonl", prompts=[str(tmp_path / "p.jsonl")], endpoint=url,
                          endpoint_model="m")
        )  # fmt: skip
    assert (tmp_path / "r.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_damaged_lines_are_asked_for_again(tmp_path):
    kept = Replies(tmp_path / "kept.jsonl")
    for name in "abcd":
        kept.keep(name, Reply(f"said {name}\u2028", False, 3))
    lines = (tmp_path / "kept.jsonl").read_bytes().split(b"\n")
    lines[1], lines[2] = b"\xff" + lines[1], b'{"key": "c", "reply": null}'
    (tmp_path / "kept.jsonl").write_bytes(b"\n".join(lines))
    again = Replies(tmp_path / "kept.jsonl")
    assert [name for name in "abcd" if name in again] == ["a", "d"]
    assert again["d"] == Reply("said d\u2028", False, 3)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with openai_server(lambda body: "7") as (url, _), pytest.raises(RunError, match="cannot write"):
        load_judge(f"openai:m@{url}", tmp_path / "file" / "kept.jsonl")([Prompt(messages=as_messages("x"))], ["x"])


# ------------------------------------------------------------------------------------------------------------ fuzzing


def test_mutated_replies_and_exports_are_read_or_refused_in_one_line():
    outcomes = fuzz.run(1000, 0)
    assert outcomes.total() == 1000
    assert {name.split(": ")[0] for name in outcomes} == {
        f"{what}, {kind}" for what in ("reply", "export") for kind in fuzz.KINDS
    }
    assert len(fuzz.KINDS) >= 12
    assert sum(times for name, times in outcomes.items() if name.endswith("read")) > 100
