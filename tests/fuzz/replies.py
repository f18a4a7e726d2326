"""Malformed replies of chat servers and malformed Label Studio exports: read, or refused in one line, no traceback.

    python tests/fuzz/replies.py 10000 0

`run` mutates valid replies and exports and reads them in this process, with whatever reads them in the program.
"""

import copy
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from wukong.data import DataOptions, load_comparisons
from wukong.errors import WukongError
from wukong.feedback import remote
from wukong.feedback.endpoint import Endpoint
from wukong.feedback.labelstudio.tasks import Reading, read_exports
from wukong.records import as_messages

REPLIES = [
    {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "usage": {"completion_tokens": 3},
     "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content, **more}}]}
    for content, more in [("seven", {}), ([{"type": "text", "text": "7"}], {}), (None, {"refusal": "I cannot"}),
                          ("7 🎂", {"reasoning_content": "let me think"})]
]  # fmt: skip
_PAIR = {"from_name": "comparison", "to_name": "answer1,answer2", "type": "pairwise", "value": {"selected": "left"}}
_RANK = {"from_name": "rank", "to_name": "items", "type": "ranker", "value": {"ranker": {"rank": ["a", "b", "c"]}}}
_BUCKETS = {**_RANK, "value": {"ranker": {"good": ["a"], "bad": ["b"], "_": ["c"]}}}
_ITEMS = {"prompt": "Hi", "items": [{"id": name, "title": name, "body": f"body {name}"} for name in "abc"]}
EXPORTS = [
    [{"id": 1, "data": data, "predictions": [{"model_version": "v", "result": [result]}],
      "annotations": [{"id": 1, "completed_by": {"id": 2, "email": "a@b.c"}, "lead_time": 3.5, "result": [result]},
                      {"id": 2, "completed_by": 3, "was_cancelled": False, "result": [result]}]}]
    for data, result in [({"messages": [{"role": "user", "content": "Hi"}], "answer1": "x", "answer2": "y"}, _PAIR),
                         (_ITEMS, _RANK), (_ITEMS, _BUCKETS)]
]  # fmt: skip
ODD: list[Any] = [None, True, False, 0, -1, 2**63, 1e400, float("nan"), "", " ", "left", "\ud83c", "\x00\x1b[2J", [],
                  {}, [[]], [None], {"a": None}, {"error": 1}, "x" * 5000]  # fmt: skip


def _places(value: Any, above: tuple = ()) -> list[tuple]:
    """The path of every value inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [above, *(place for key, child in items for place in _places(child, (*above, key)))]


def _changed(value: Any, draw: random.Random, change: Callable[[Any, Any], None]) -> Any:
    """A copy in which `change` was called with a container and one of its keys."""
    places = [place for place in _places(value) if place]
    if not places:
        return value
    place = draw.choice(places)
    inside = value = copy.deepcopy(value)
    for key in place[:-1]:
        inside = inside[key]
    change(inside, place[-1])
    return value


def _renamed(inside: Any, key: Any) -> None:
    if isinstance(inside, dict):
        inside[f"{key}_"] = inside.pop(key)


def _doubled(inside: Any, key: Any) -> None:
    if isinstance(inside, list):
        inside.append(copy.deepcopy(inside[key]))


def _deep(inside: Any, key: Any, levels: int) -> None:
    for _ in range(levels):
        inside[key] = [inside[key]]


def _swapped(value: Any, draw: random.Random) -> Any:
    """Two values that change places."""
    places = [place for place in _places(value) if place]
    if len(places) < 2:
        return value
    value = copy.deepcopy(value)
    taken = []
    for place in draw.sample(places, 2):
        inside = value
        try:
            for key in place[:-1]:
                inside = inside[key]
            taken.append((inside, place[-1], copy.deepcopy(inside[place[-1]])))
        except (KeyError, IndexError, TypeError):
            return value
    (a, i, x), (b, k, y) = taken
    a[i], b[k] = y, x
    return value


VALUES: dict[str, Callable[[Any, random.Random], Any]] = {
    "value replaced": lambda v, d: _changed(v, d, lambda inside, key: inside.__setitem__(key, d.choice(ODD))),
    "value removed": lambda v, d: _changed(v, d, lambda inside, key: inside.pop(key)),
    "field renamed": lambda v, d: _changed(v, d, _renamed),
    "item doubled": lambda v, d: _changed(v, d, _doubled),
    "value wrapped in a list": lambda v, d: _changed(v, d, lambda inside, key: _deep(inside, key, 1)),
    "value nested deeply": lambda v, d: _changed(v, d, lambda inside, key: _deep(inside, key, 60)),
    "value as text": lambda v, d: _changed(v, d, lambda i, key: i.__setitem__(key, json.dumps(i[key], default=str))),
    "two values swapped": _swapped,
    "whole document wrapped": lambda v, d: d.choice([{"data": v}, [v], {"error": None, "result": v}]),
    "whole document replaced": lambda v, d: d.choice(ODD),
}
TEXTS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut off": lambda t, d: t[: d.randrange(len(t) + 1)],
    "byte flipped": lambda t, d: t[: (i := d.randrange(len(t)))] + bytes([t[i] ^ 1 << d.randrange(8)]) + t[i + 1 :],
    "half an emoji": lambda t, d: t.replace(b"a", b"\\ud83c", d.randrange(1, 4)),
    "bytes that are no UTF-8": lambda t, d: t[: (i := d.randrange(len(t)))] + b"\xff\xfe" + t[i:],
    "a web page around it": lambda t, d: b"<!doctype html><title>" + t,
    "a huge number": lambda t, d: t.replace(b"1", b"1" * 5000),
    "twice in a row": lambda t, d: t + d.choice([b"", b"\n", b","]) + t,
    "whole document nested deeply": lambda t, d: b"[" * 900 + t + b"]" * 900,
    "brackets for ever": lambda t, d: d.choice([b"[", b'{"a":', b'{"choices":[']) * 20_000,
}
KINDS = [*VALUES, *TEXTS]


def mutated(value: Any, draw: random.Random) -> tuple[str, bytes]:
    """The kind of the last mutation, and the bytes after one to three of them."""
    kind = draw.choice(KINDS)
    for name in [*draw.choices(list(VALUES), k=draw.randrange(3)), *([kind] if kind in VALUES else [])]:
        value = VALUES[name](value, draw)
    text = json.dumps(value).encode()
    return kind, TEXTS[kind](text, draw) if kind in TEXTS and text else text


def run(count: int, seed: int) -> Counter:
    """How often each mutation of `count` was read or refused in one line; anything else is raised, with its input."""
    outcomes: Counter[str] = Counter()
    draw = random.Random(seed)
    answer: list[httpx.Response] = []
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m", transport=httpx.MockTransport(lambda request: answer[0]))
    question = endpoint.request(as_messages("x"))
    first_delay, remote.FIRST_DELAY = remote.FIRST_DELAY, 0.0
    try:
        with tempfile.TemporaryDirectory() as directory:
            for number in range(count):
                is_reply = number % 2 == 0
                kind, raw = mutated(draw.choice(REPLIES if is_reply else EXPORTS), draw)
                try:
                    if is_reply:
                        kind = f"reply, {kind}"
                        status = draw.choice([200] * 8 + [204, 299, 302, 400, 429, 500])
                        answer[:] = [httpx.Response(status, content=raw, headers={"retry-after": "0"})]
                        json.dumps(endpoint.reply(question).text, ensure_ascii=False).encode()
                    else:
                        kind = f"export, {kind}"
                        path = Path(directory, "export.json")
                        path.write_bytes(raw)
                        options = DataOptions(skip_bad=draw.randrange(3))
                        if number % 4 == 1:
                            load_comparisons(path, options)
                        else:
                            read_exports([str(path)], Reading({2: "ann"}, {}, predictions=True), options)
                    outcomes[f"{kind}: read"] += 1
                except WukongError as error:
                    if len(str(error).splitlines()) != 1:
                        raise AssertionError("more than one line") from error
                    outcomes[f"{kind}: one line"] += 1
                except Exception as error:
                    error.add_note(f"number {number} of seed {seed}, {kind}: {raw[:2000]!r}")
                    raise
    finally:
        remote.FIRST_DELAY = first_delay
    return outcomes


if __name__ == "__main__":
    for name, times in sorted(run(int(sys.argv[1]), int(sys.argv[2])).items()):
        print(f"{times:8,} {name}")
