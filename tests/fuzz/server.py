"""Malformed requests to the model server: answered, or refused with OpenAI's error object of one line.

    python tests/fuzz/run.py --target server --count 10000 --seed 0

A real server with a tiny random model gets valid requests of both endpoints with one to three faults: in their values,
in their JSON, or in what HTTP says around it. Anything else than an answer or an error of four hundred and something,
a traceback in the server's log, a request of more than ten seconds or a server that is not well afterwards raises.
"""

from __future__ import annotations

import http.client
import json
import logging
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.replies import KINDS, mutated
from tests.serve.serving import CONTEXT, served
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.hub import save_policy
from wukong.serve.app import Access
from wukong.serve.service import Service, load_model
from wukong.tokenizer import Tokenizer

SECONDS = 10.0
_ASKED: dict[str, Any] = {"model": "policy", "max_tokens": 3, "temperature": 0.7, "seed": 1}
_PARTS = [{"type": "text", "text": "Boil 3 eggs"}, {"type": "text", "text": " and peel them"}]
VALID: list[tuple[str, dict[str, Any]]] = [
    *(("chat/completions", _ASKED | {"messages": messages} | more) for messages, more in [
        ([{"role": "user", "content": "Boil 3 eggs"}], {"stream": True, "stream_options": {"include_usage": True}}),
        ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": _PARTS}], {"n": 2, "top_p": 0.9}),
        ([{"role": "user", "content": "eggs"}, {"role": "assistant", "content": "yes", "refusal": None,
           "tool_calls": []}, {"role": "user", "content": "How many?"}],
         {"logprobs": True, "top_logprobs": 3, "stop": ["\n"], "max_completion_tokens": 2, "user": "ann",
          "response_format": {"type": "text"}, "logit_bias": {}}),
    ]),
    *(("completions", _ASKED | {"prompt": prompt} | more) for prompt, more in [
        ("Boil 3 eggs", {"logprobs": 2, "echo": False}), (["Boil", "Peel"], {"n": 2, "top_k": 5}),
        ([[1, 2, 3], [4]], {"stream": True}), ([5, 6, 7], {"best_of": 1, "suffix": None}),
    ]),
]  # fmt: skip

ODD_PATHS = (
    "/v1/completions/", "/v1//completions", "/v1/models/" + "x" * 3000, "/v1/models/%00", "/v1/models/%ff", "/metrics",
    "/v1/models/../../etc/passwd", "/%", "/v1/chat/completions?stream=" + "1" * 3000, "/health",
)  # fmt: skip

Exchange = dict[str, Any]
"""What is sent: method, path, headers, body."""


def _header(name: str, *values: str) -> Callable[[Exchange, random.Random], None]:
    return lambda sent, draw: sent["headers"].__setitem__(name, draw.choice(values))


def _path(sent: Exchange, draw: random.Random) -> None:
    sent["path"] = draw.choice(ODD_PATHS)


def _method(sent: Exchange, draw: random.Random) -> None:
    sent["method"] = draw.choice(("GET", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "PATCH", "BREW", "post"))


HTTP: dict[str, Callable[[Exchange, random.Random], None]] = {
    "another path": _path,
    "another method": _method,
    "another content type": _header(
        "content-type", "text/plain", "application/json; charset=utf-16", "", "\x01", "multipart/form-data", "x" * 5000
    ),
    "a content encoding": _header("content-encoding", "gzip", "br", "nothing", "gzip, gzip"),
    "another host": _header("host", "", "evil.example", "127.0.0.1:99999", "[::1", "a b", "x" * 300),
    "an origin": _header("origin", "http://evil.example", "null", "\x01", "http://[", "file://"),
    "credentials": _header("authorization", "Bearer", "Bearer \xff", "Basic ===", "", "Bearer " + "x" * 5000),
    "ranges and conditions": _header("range", "bytes=0-", "bytes=" + "0-1," * 500, "x"),
    "an expectation": _header("expect", "100-continue", "200-ok"),
}
ALL_KINDS = [*KINDS, *HTTP]


def _exchange(draw: random.Random) -> tuple[str, Exchange]:
    """The kind of the last fault, and a request with one to three of them."""
    path, body = draw.choice(VALID)
    kind, raw = mutated(body, draw)
    sent: Exchange = {
        "method": "POST",
        "path": f"/v1/{path}",
        "headers": {"content-type": "application/json"},
        "body": raw,
    }
    if draw.random() < 0.25:
        sent["body"] = json.dumps(body).encode() if draw.random() < 0.7 else raw
        kind = draw.choice(list(HTTP))
        HTTP[kind](sent, draw)
    return kind, sent


def _make(directory: Path) -> None:
    tokenizer = Tokenizer.train([f"Boil {n} eggs für {n % 9} minutes." for n in range(50)], 280, template="plain")
    torch.manual_seed(0)
    save_policy(directory, GPT2(GPT2Config(280, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2)), tokenizer)


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def outcome(port: int, sent: Exchange) -> str:
    """ "answered", "refused by HTTP or JSON" or "refused by its content". Raises AssertionError for anything else."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    begin = time.monotonic()
    try:
        connection.putrequest(sent["method"], sent["path"], skip_host="host" in sent["headers"])
        for name, value in sent["headers"].items():
            connection.putheader(name, value)
        connection.putheader("content-length", str(len(sent["body"])))
        connection.endheaders(sent["body"])
        answer = connection.getresponse()
        text = answer.read().decode()
    except (http.client.InvalidURL, ValueError):
        return "refused by the client"  # http.client sends no such line
    finally:
        connection.close()
    assert time.monotonic() - begin < SECONDS, "took too long"
    if answer.status == 200:
        return "answered"
    if answer.status == 307:  # to the same path without a slash at its end
        return "refused by HTTP or JSON"
    assert 400 <= answer.status < 500, f"status {answer.status}: {text[:500]}"
    if sent["method"] == "HEAD" or not text.startswith("{"):
        assert answer.status == 400 or sent["method"] == "HEAD", text[:500]  # what is no HTTP never reaches the program
        return "refused by HTTP or JSON"
    error = json.loads(text)["error"]
    assert set(error) == {"message", "type", "param", "code"}, text[:500]
    assert len(error["message"].splitlines()) == 1, text[:3000]
    assert len(text) < 3000, text[:3000]
    by_form = answer.status != 400 or "JSON" in error["message"]
    return "refused by HTTP or JSON" if by_form else "refused by its content"


def run(count: int, seed: int) -> Counter[str]:
    """How often each kind of fault was answered or refused; anything else is raised, with its request."""
    outcomes: Counter[str] = Counter()
    draw, log = random.Random(seed), _Log()
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio", "wukong")]
    with tempfile.TemporaryDirectory() as name:
        _make(Path(name) / "policy")
        service = Service({"policy": load_model("policy", str(Path(name) / "policy"), "float32", "cpu")})
        with served(service, Access()) as address:
            port = int(address.rpartition(":")[2])
            for logger in loggers:
                logger.addHandler(log)
            try:
                for number in range(count):
                    kind, sent = _exchange(draw)
                    try:
                        outcomes[f"{kind}: {outcome(port, sent)}"] += 1
                        assert not log.lines, log.lines
                    except Exception as error:
                        error.add_note(f"number {number} of seed {seed}, {kind}: {str(sent)[:2000]}")
                        raise
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
                connection.request("GET", "/health")
                assert connection.getresponse().status == 200, "not well afterwards"
            finally:
                for logger in loggers:
                    logger.removeHandler(log)
    return outcomes
