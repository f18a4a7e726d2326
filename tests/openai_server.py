"""A server that speaks as much of OpenAI's protocol as a judge needs, over real HTTP, and misbehaves in many ways."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Raw:
    """An answer as a broken or foreign server gives it.

    Args:
        body: text or bytes, sent as they are; anything else is sent as JSON.
        seconds: how long it takes before it says anything.
        cut: the connection is reset in the middle of the body.
        endless: the body is repeated until the client has had enough.
    """

    body: object = ""
    status: int = 200
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    cut: bool = False
    endless: bool = False


Reply = Callable[[dict], str | int | Raw]
"""What the server makes of a request: the text it answers, an HTTP error, or something foreign."""


def completion(content: object = "7", **more: object) -> dict:
    """A chat completion with this content; `more` are fields of its message."""
    message = {"role": "assistant", "content": content, **more}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


HALF = json.dumps(completion("7 ?")).replace("?", "\\ud83c")
FOREIGN: dict[str, tuple[Raw, str | None]] = {
    "web page": (Raw("<!doctype html>\n<title>A web page</title>", kind="text/html"),
                 "not JSON (text/html): <!doctype html> <title>A web page</title>"),
    "JSON called text": (Raw(completion(), kind="text/plain"), None),
    "error with 200": (Raw({"error": {"message": "Provider returned error"}}), "answered with an error: "),
    "error as text with 200": (Raw({"error": "no credit"}), 'answered with an error: {"error": "no credit"}'),
    "null choices": (Raw(completion() | {"choices": None}), "has no choices: "),
    "empty choices": (Raw(completion() | {"choices": []}), "has no choices: "),
    "choices of text": (Raw(completion() | {"choices": ["7"]}), "choice is an error: "),
    "choice with an error": (Raw({"choices": [{"error": {"code": 502}}]}), "choice is an error: "),
    "null message": (Raw({"choices": [{"message": None}]}), 'has no message: {"choices": [{"message": null}]}'),
    "null content": (Raw(completion(None)), "has no text: "),
    "content of another type": (Raw(completion(7)), "text is of type int: "),
    "no text among the parts": (Raw(completion([{"type": "image_url", "image_url": {}}])), "is not text: "),
    "only reasoning": (Raw(completion(None, reasoning_content="hm")), "reasoned but did not answer"),
    "broken JSON": (Raw("{not json"), "not JSON (application/json): {not json"),
    "a list": (Raw([1]), "has no choices: [1]"),
    "a number": (Raw("1"), "has no choices: 1"),
    "deep nesting": (Raw("[" * 100_000), "not JSON (application/json): [[["),
    "a huge number": (Raw("1" * 10_000), "not JSON (application/json): 111"),
    "no UTF-8": (Raw(b'{"choices": "\xff"}'), "not JSON (application/json): "),
    "nothing": (Raw(""), "not JSON (application/json): (empty)"),
    "control characters": (Raw("\x1b[31mred\x07\n\nx", kind="text/plain"), "not JSON (text/plain): [31mred x"),
    "a stream": (Raw('data: {"choices": []}\n\n', kind="text/event-stream"), "not JSON (text/event-stream): data: "),
    "damaged gzip": (Raw("x" * 40, headers={"Content-Encoding": "gzip"}), "cannot be unpacked"),
    "redirect to another host": (Raw(status=307, headers={"Location": "http://other.invalid/v1"}),
                                 "redirects to http://other.invalid/v1; give that address"),
    "redirect that turns POST into GET": (Raw(status=302, headers={"Location": "/elsewhere"}), "redirects to http://"),
    "redirect in a circle": (Raw(status=307, headers={"Location": "/v1/chat/completions"}), "more than 3 redirects"),
    "no such model": (Raw({"error": {"message": "no such model"}}, status=404), "status 404: "),
    "wrong key": (Raw({"error": {"message": "bad key"}}, status=401), "check the key"),
    "parts": (Raw(completion([{"type": "text", "text": "7"}])), None),
    "parts with reasoning": (Raw(completion([{"type": "thinking"}, {"type": "text", "text": "7"}])), None),
    "reasoning beside the text": (Raw(completion("7", reasoning_content="hm")), None),
    "null usage": (Raw(completion() | {"usage": {"completion_tokens": None}}), None),
    "no usage": (Raw({"choices": [{"message": {"content": "7"}, "finish_reason": "stop"}]}), None),
    "half an emoji": (Raw(HALF), None),
    "a refusal": (Raw(completion(None, refusal="7")), None),
    "null error": (Raw(completion() | {"error": None}), None),
}  # fmt: skip
"""What foreign servers answer, and the words of the error; None where the answer holds a text, which begins with 7."""

PASSING: dict[str, Raw] = {
    "too many requests": Raw({"error": {"message": "slow down"}}, status=429),
    "too many requests, with a wait": Raw("", status=429, headers={"Retry-After": "0.01"}),
    "too many requests, until a date": Raw("", status=429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "too many requests, with nonsense": Raw("", status=503, headers={"Retry-After": "soon"}),
    "too many requests under 200": Raw({"error": {"message": "Provider returned error", "code": 429}}),
    "an error of the server": Raw("<h1>Bad gateway</h1>", status=502, kind="text/html"),
    "a reset in the middle": Raw(completion(), cut=True),
    "silence": Raw(completion(), seconds=60.0),
}
"""What is worth another attempt."""


def patience(kind: str) -> float:
    """Seconds to wait for an answer: so few that a busy machine might exceed them where silence is answered only."""
    return 1.5 if kind == "silence" else 60.0


@contextmanager
def openai_server(reply: Reply) -> Iterator[tuple[str, list[tuple[str, dict]]]]:
    """The base URL, and the requests so far: path and body."""
    asked: list[tuple[str, dict]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, body))
            said = reply(body)
            if isinstance(said, int):
                said = Raw({"error": {"message": "no such model"}}, status=said)
            elif isinstance(said, str):
                said = Raw(completion(said))
            answer(self, said)

        def log_message(self, *_: object) -> None:
            pass

    with served(Handler) as url:
        yield f"{url}/v1", asked


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server with this handler."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.daemon_threads = True
    http.block_on_close = False
    http.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up are part of the tests
    threading.Thread(target=http.serve_forever, daemon=True, kwargs={"poll_interval": 0.02}).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        http.server_close()


def answer(handler: BaseHTTPRequestHandler, said: Raw) -> None:
    """Sends it, as badly as it asks for."""
    time.sleep(said.seconds)
    payload = said.body if isinstance(said.body, bytes | str) else json.dumps(said.body)
    payload = payload.encode() if isinstance(payload, str) else payload
    handler.send_response(said.status)
    handler.send_header("Content-Type", said.kind)
    if not said.endless:
        handler.send_header("Content-Length", str(len(payload)))
    for name, value in said.headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    if said.cut:
        handler.wfile.write(payload[: len(payload) // 2])
        handler.wfile.flush()
        linger = struct.pack("ii", 1, 0)  # closing sends a reset
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        handler.close_connection = True
        return
    handler.wfile.write(payload)
    while said.endless:
        handler.wfile.write(payload)
