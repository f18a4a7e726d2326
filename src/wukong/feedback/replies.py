"""Replies that cost time or money: each is written to a file as it arrives, and not requested twice.

A reply is stored under a hash of everything it depends on (server, model, question, parameters), so that it is never
used for another question.
"""

from __future__ import annotations

import glob
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from wukong import processes
from wukong.errors import RunError
from wukong.feedback.remote import Remote
from wukong.files import disk_errors, sync_directory

WORKERS = 8
"""Concurrent requests."""
GRACE = 5.0
"""Seconds to wait for outstanding replies after an error or Ctrl-C."""

T = TypeVar("T")


@dataclass(frozen=True)
class Reply:
    """A model's reply; `finished`: whether the model ended it; `n_tokens`: 0 if not counted."""

    text: str
    finished: bool = True
    n_tokens: int = 0


def replies_path(out: Path, *, directory: bool) -> Path:
    """Where a stage keeps replies until its result is complete: in its directory, or next to its file; one file per
    process."""
    rank = f"-{processes.rank()}" if processes.rank() else ""
    return out / f".replies{rank}.jsonl" if directory else out.with_name(f".{out.name}.replies{rank}.jsonl")


def forget_replies(out: Path, *, directory: bool) -> None:
    """Removes the files of `replies_path`, of all processes, once the result is complete."""
    where, name = (out, "") if directory else (out.parent, f".{glob.escape(out.name)}")
    for kept in where.glob(f"{name}.replies*.jsonl"):
        kept.unlink(missing_ok=True)


class Replies:
    """Replies by key, in a JSONL file if `path` is given, else in memory only.

    A line truncated by a kill is removed, and damaged lines are ignored; their questions are asked again.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self._lock = path, threading.Lock()
        self._known: dict[str, Reply] = {}
        if path is not None and path.is_file():
            raw = path.read_bytes()
            whole = raw[: raw.rfind(b"\n") + 1]
            if len(whole) < len(raw):
                with disk_errors(path):
                    os.truncate(path, len(whole))
            for line in whole.splitlines():
                if (entry := _entry(line)) is not None:
                    self._known[entry[0]] = entry[1]

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Reply:
        return self._known[key]

    def __len__(self) -> int:
        return len(self._known)

    def keep(self, key: str, reply: Reply) -> None:
        """Stores a reply; when this returns it is on the disk. Raises RunError if the disk is full."""
        said = asdict(reply)
        line = json.dumps({"key": key, "reply": said.pop("text"), **said}, ensure_ascii=False) + "\n"
        with self._lock:
            if self.path is not None:
                with disk_errors(self.path):
                    new = not self.path.exists()
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    with self.path.open("ab") as out:
                        out.write(line.encode())
                        out.flush()
                        os.fsync(out.fileno())
                    if new:
                        sync_directory(self.path.parent)
            self._known[key] = reply


def _entry(line: bytes) -> tuple[str, Reply] | None:
    try:
        entry = json.loads(line)
        key, text = entry["key"], entry["reply"]
        finished, tokens = entry.get("finished", True), entry.get("n_tokens", 0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    whole = isinstance(key, str) and isinstance(text, str) and isinstance(finished, bool) and isinstance(tokens, int)
    return (key, Reply(text, finished, tokens)) if whole else None


def gather(
    questions: Mapping[str, T],
    ask: Callable[[T], Reply],
    replies: Replies,
    remote: Remote,
    on_reply: Callable[[str], None] = lambda key: None,
) -> None:
    """Asks the questions without a stored reply, several at a time, and stores each reply as it arrives.

    Args:
        questions: by the key under which the reply is stored.
        ask: requests one reply; called from several threads.
        remote: the server used by `ask`.
        on_reply: called with the key of every reply, stored or new.

    Raises:
        RunError: the first one raised by `ask`; no further question is asked, and the message says what was stored.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    done: queue.SimpleQueue[str | BaseException] = queue.SimpleQueue()
    for key in (new := [key for key in questions if key not in replies]):
        waiting.put(key)
    stopped = remote.stopped
    stopped.clear()

    def work() -> None:
        while not stopped.is_set():
            try:
                key = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                replies.keep(key, ask(questions[key]))
                done.put(key)
            except BaseException as error:
                stopped.set()
                done.put(error)

    # Daemon threads: Ctrl-C does not wait for an unresponsive server.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(WORKERS, len(new)))]
    for thread in threads:
        thread.start()
    try:
        for key in questions.keys() - set(new):
            on_reply(key)
        for _ in new:
            arrived = done.get()
            if isinstance(arrived, BaseException):
                raise arrived
            on_reply(arrived)
    except BaseException as error:
        stopped.set()
        end = time.monotonic() + GRACE
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        if isinstance(error, RunError) and replies.path is not None and len(replies):
            kept = f"{len(replies):,} replies are kept" if len(replies) > 1 else "one reply is kept"
            raise RunError(f"{error}; {kept}; run the same command to resume") from error
        raise
