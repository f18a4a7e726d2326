"""What is checked before any work: sizes, times, counts; on every route."""

import asyncio
import json
import socket
import threading
import time

import httpx
import pytest

from tests.fuzz import server
from tests.serve.serving import served, until, value
from wukong.chat import named_sources
from wukong.errors import UsageError
from wukong.serve import connections
from wukong.serve.app import Access
from wukong.serve.service import BusyError, Drawing, TooLongError
from wukong.tokenizer import Tokenizer

ASKED = {"role": "user", "content": "Boil 3 eggs"}
CHAT = {"model": "policy", "messages": [ASKED], "max_tokens": 2}


@pytest.fixture
def no_tokenizing(monkeypatch):
    """Whoever tokenizes fails the test: the request was to be refused before."""

    def refuse(self, *_):
        raise AssertionError("a prompt was tokenized")

    for name in ("encode", "encode_batch", "prompt_ids"):
        monkeypatch.setattr(Tokenizer, name, refuse)


def post(address, path, body, **options):
    return httpx.post(f"{address}/v1/{path}", json=body, timeout=120, **options)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("completions", {"model": "policy", "prompt": [""] * 20_000, "n": 128}, "2560000 answers in one request"),
        ("completions", {"model": "policy", "prompt": ["x"] * 300}, "300 answers in one request"),
        ("completions", {"model": "policy", "prompt": [[1]] * 300}, "300 answers in one request"),
        ("completions", {"model": "policy", "prompt": "x" * 500_000}, "context is 96 tokens"),
        ("completions", {"model": "policy", "prompt": "x", "max_tokens": 97}, "an answer of 97"),
        ("chat/completions", {**CHAT, "max_tokens": 2**31 - 1}, "context is 96 tokens"),
        ("chat/completions", {**CHAT, "messages": [{**ASKED, "content": "x" * 500_000}]}, "context is 96 tokens"),
        ("chat/completions", {**CHAT, "messages": [{**ASKED, "content": ""}] * 10_000}, "10,000 messages"),
    ],
)  # fmt: skip
def test_what_cannot_fit_is_refused_before_it_is_read(address, no_tokenizing, path, body, words):
    answer = post(address, path, body)
    assert (answer.status_code, words in answer.json()["error"]["message"]) == (400, True), answer.text


def test_a_full_queue_refuses_before_it_reads(new_service, no_tokenizing):
    async def ask(**drawing) -> None:
        service = new_service(max_batch=1, max_waiting=1)
        with pytest.raises(UsageError, match="3 answers in one request are more than the 2"):
            await service.complete("policy", ["x"] * 3, Drawing(**drawing))
        with pytest.raises(TooLongError):
            await service.chat("policy", "x", Drawing(max_new_tokens=1000))
        service._closing = True
        with pytest.raises(BusyError):
            await service.chat("policy", "x")

    asyncio.run(ask())


@pytest.mark.parametrize("item", [1.5, None, {}, ["x"], [1.5], True])
@pytest.mark.parametrize("field", ["prompt", "messages", "stop"])
def test_a_long_list_of_nonsense_costs_little(address, field, item):
    """An error was made for each item and each type that it could have been: gigabytes, for a megabyte of zeros."""
    body = {"model": "policy", field: [item] * 100_000}
    begin = time.process_time()
    answer = post(address, "completions" if field == "prompt" else "chat/completions", body)
    assert answer.status_code == 400
    assert len(answer.content) < 1000
    assert time.process_time() - begin < 5  # the processor's time: the machine may be busy


HUGE = "9" * 400
BAD_JSON = [
    '{"model": "policy", "prompt": "x", "seed": ' + HUGE + "}",
    '{"model": "policy", "prompt": "x", "temperature": NaN}',
    '{"model": "policy", "prompt": "x", "temperature": 1e999}',
    '{"model": "policy", "prompt": "x", "top_k": Infinity}',
    '{"model": "policy", "prompt": "half \\ud800"}', '{"model": "policy", "\\udfff": 1}', '{"\\ud800": "x"}',
    '{"model": "\\ud800", "prompt": "x"}', '{"model": "policy", "prompt": "x", "user": "\\ud800"}',
    "[" * 5000, '{"a":' * 5000, '{"model": "policy", "prompt": "x", "user": ' + "[" * 200 + "]" * 200 + "}",
    "9" * 5000, "nul", '"', '{"model": "policy",}', "\xff",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_JSON, ids=range(len(BAD_JSON)))
def test_json_that_no_reply_could_repeat_is_refused(address, text):
    headers = {"content-type": "application/json"}
    for path in ("completions", "chat/completions"):
        answer = httpx.post(f"{address}/v1/{path}", content=text.encode("latin-1"), headers=headers, timeout=120)
        assert answer.status_code == 400, answer.text
        assert "\n" not in answer.json()["error"]["message"]


# ------------------------------------------------------------------------------------------------- size and time


ROUTES = ["GET /health", "GET /metrics", "GET /v1/models", "GET /v1/models/x", "POST /v1/chat/completions",
          "POST /v1/completions", "POST /health", "POST /nowhere", "PUT /v1/models"]  # fmt: skip


@pytest.mark.parametrize("route", ROUTES)
def test_a_body_that_is_announced_too_large_is_refused_at_once_on_every_route(new_service, route):
    with served(new_service(), Access(max_body=1000)) as address:
        for length in ("1001", "9" * 18):
            method, _, path = route.partition(" ")
            head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n"
            assert talk(address, head.encode()).startswith(b"HTTP/1.1 413 ")


def talk(address: str, sent: bytes, then: bytes = b"") -> bytes:
    """What the server says to these bytes until it closes the connection."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=120) as connection:
        connection.sendall(sent)
        if then:
            connection.sendall(then)
        found = b""
        while part := connection.recv(65536):
            found += part
    return found


@pytest.mark.parametrize("drip", [False, True], ids=["silent", "byte by byte"])
def test_a_body_that_does_not_arrive_ends(new_service, drip):
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: 1000\r\n\r\n{"
    )
    with served(new_service(), Access(body_seconds=1)) as address:  # the last request's own body has to come within it
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=120) as connection:
            connection.sendall(head)
            stop = threading.Event()

            def send() -> None:
                while drip and not stop.wait(0.05):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

            thread = threading.Thread(target=send)
            thread.start()
            found = b""
            while b"request_timeout" not in found and (part := connection.recv(65536)):  # it may come in pieces
                found += part
            stop.set()
            thread.join()
        assert found.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request_timeout"' in found
        assert post(address, "chat/completions", CHAT).status_code == 200


@pytest.mark.parametrize("sent", [
    b"", b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ",
    b"POST /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{",
], ids=["nothing", "half a head", "a body that nobody reads"])  # fmt: skip
def test_a_connection_on_which_nothing_comes_to_an_end_is_closed(new_service, monkeypatch, sent):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    with served(new_service()) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=0.05) as connection:
            connection.sendall(sent)
            end = time.monotonic() + 60
            while time.monotonic() < end:  # a byte now and then would keep uvicorn's own limit away
                try:
                    connection.sendall(b"x" if sent else b"")
                    if connection.recv(65536) == b"":
                        return
                except TimeoutError:
                    continue
                except OSError:
                    return
            pytest.fail("it stayed open")


def test_a_client_that_hangs_up_in_the_middle_leaves_no_traceback(new_service, caplog):
    service = new_service()
    with served(service) as address:
        host, port = address.removeprefix("http://").split(":")
        for path in ("chat/completions", "completions"):
            with socket.create_connection((host, int(port)), timeout=120) as connection:
                connection.sendall(
                    f"POST /v1/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                    "Content-Length: 1000\r\n\r\n{".encode()
                )
        until(lambda: sum(
            value(service, "wukong_requests_total", endpoint=f"/v1/{path}", status="499")
            for path in ("chat/completions", "completions")
        ) == 2)  # fmt: skip
        assert post(address, "chat/completions", CHAT).status_code == 200
    assert not [record for record in caplog.records if record.exc_info or "Traceback" in record.getMessage()]


@pytest.mark.parametrize("host", ["[", "[::1", "a b", "\xb2", "127.0.0.1:x", ""])
def test_a_broken_host_name_is_refused(new_service, host):
    for access in (Access(), Access(api_key="secret-key")):
        with served(new_service(), access) as address:
            head = f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("latin-1")
            assert talk(address, head).split()[1] in (b"400", b"401", b"403")


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("models", [["a=X", "a=Y"], ["a=X", "a=X"], ["a=X", "b=Y", "a=Z"]])
def test_a_name_that_is_given_twice_is_refused(models):
    """Both were renamed to their directories, and clients that asked for the name got an error."""
    with pytest.raises(UsageError, match="--models: the name 'a' is given twice"):
        named_sources(models)


def test_a_given_name_stays_beside_a_directory_called_the_same():
    assert named_sources(["a=X", "runs/a"]) == {"a": "X", "runs/a": "runs/a"}
    assert named_sources(["one/sft", "two/sft", "x=y"]) == {"one/sft": "one/sft", "two/sft": "two/sft", "x": "y"}


def test_an_answer_is_as_json_as_its_question(address):
    """Text outside of the first plane, and control characters, come back whole."""
    text = json.dumps({**CHAT, "messages": [{**ASKED, "content": "\U0001f95a\x00\x7f"}]})
    answer = httpx.post(f"{address}/v1/chat/completions", content=text, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text


def test_malformed_requests_are_answered_or_refused_in_one_line():
    """A small part of them; `python tests/fuzz/run.py --target server` makes any number."""
    outcomes = server.run(400, 0)
    assert outcomes.total() == 400
    assert len(server.ALL_KINDS) >= 12
    for result in ("answered", "refused by its content", "refused by HTTP or JSON"):
        assert sum(times for name, times in outcomes.items() if name.endswith(result)) > 50
