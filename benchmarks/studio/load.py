"""Fifty annotators at once, and a server that is killed: is every label there exactly once, and how long does it take?

Simulated annotators label over HTTP at a given rate in all. In between, the server is killed with -9 and started
again; annotators go on asking with the same client ids, as the label page does. Afterwards the database is compared
with what was acknowledged. Prints JSON.

    python benchmarks/studio/load.py --labels 5000 --annotators 50 --rate 20 --kills 3
    python benchmarks/studio/load.py --db postgresql://me@127.0.0.1/empty

The database must be new. Killing the server does not kill PostgreSQL, but its half-done transactions.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.command_line import new_parser

from wukong.feedback.store.database import Store
from wukong.feedback.store.people import add_annotator, sign_in
from wukong.feedback.store.tables import Label
from wukong.feedback.store.tasks import TaskDraft, add_tasks, create_project
from wukong.records import Message

OVERLAP = 2


class Server:
    """`wukong studio`, which can be killed and started again on the same port."""

    def __init__(self, db: str) -> None:
        self.db = db
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "wukong", "studio", "--db", self.db, "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, "--no-open-browser"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout
        assert self.process.stdout.readline().startswith("http"), "the server did not start"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Annotator(threading.Thread):
    """One person's browser: fetches, judges, sends until it is heard."""

    def __init__(self, port: int, cookie: str, project: int, budget: Budget, times: dict[str, list[float]]) -> None:
        super().__init__(daemon=True)
        self.port, self.cookie, self.project, self.budget, self.times = port, cookie, project, budget, times
        self.acknowledged: list[str] = []
        self.sent: set[str] = set()
        self.refused: list[str] = []
        self.connection: http.client.HTTPConnection | None = None
        self.csrf = ""

    def ask(self, method: str, path: str, body: dict | None = None) -> tuple[int, str]:
        """The server's answer, asked for until there is one."""
        while True:
            try:
                if self.connection is None:
                    self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
                headers = {"cookie": f"wukong_session={self.cookie}", "x-csrf-token": self.csrf}
                text = json.dumps(body) if body is not None else None
                headers |= {"content-type": "application/json"} if body is not None else {}
                begin = time.perf_counter()
                self.connection.request(method, path, text, headers)
                answer = self.connection.getresponse()
                said = answer.read().decode()
                kind = "submit" if path == "/api/labels" else "fetch" if path.endswith("count=1") else "other"
                self.times[kind].append(time.perf_counter() - begin)
                if answer.status in (429, 503):
                    time.sleep(random.uniform(2, 6))
                    continue
                return answer.status, said
            except (OSError, http.client.HTTPException):
                if self.connection is not None:
                    self.connection.close()
                self.connection = None
                time.sleep(random.uniform(2, 6))  # as the label page does

    def run(self) -> None:
        _, page = self.ask("GET", f"/label/{self.project}")
        found = re.search(r'name="csrf" content="(\w+)"', page)
        assert found, page[:200]
        self.csrf = found[1]
        while self.budget.take():
            _, said = self.ask("POST", f"/api/projects/{self.project}/next?count=1", {})
            tasks = json.loads(said)["tasks"]
            if not tasks:
                return
            client_id = secrets.token_hex(16)
            self.sent.add(client_id)
            body = {"assignment": tasks[0]["assignment"], "client_id": client_id, "seconds": 1.0}
            status, said = self.ask("POST", "/api/labels", {**body, "value": {"winner": secrets.randbelow(2)}})
            if status == 200:
                self.acknowledged.append(client_id)
            else:
                self.refused.append(f"{status} {said}")


class Budget:
    """So many labels, at most so many a second in all. After an outage nobody hurries to make up for it."""

    def __init__(self, labels: int, rate: float) -> None:
        self.labels, self.seconds, self.next, self.taken = labels, 1 / rate, time.monotonic(), 0
        self.lock = threading.Lock()

    def take(self) -> bool:
        with self.lock:
            if self.taken == self.labels:
                return False
            self.taken += 1
            due = max(self.next, time.monotonic())
            self.next = due + self.seconds
        time.sleep(max(0.0, due - time.monotonic()))
        return True


def prepare(db: str, labels: int, annotators: int) -> tuple[int, list[str]]:
    """A project with tasks enough, and a signed-in cookie for each annotator."""
    store = Store(db)
    count = labels // OVERLAP + annotators
    drafts = (
        TaskDraft([Message(role="user", content=f"How to make dish {i}?")], [f"first {i} " * 40, f"second {i} " * 40])
        for i in range(count)
    )
    with store.write() as session:
        project = create_project(session, "load", "pairwise", overlap=OVERLAP)
        add_tasks(session, project, drafts)
        people = [add_annotator(session, f"annotator {i}") for i in range(annotators)]
        cookies = [sign_in(session, person) for person in people]
        found = project.id
    store.close()
    return found, cookies


def quantiles(values: list[float]) -> dict[str, float]:
    milliseconds = 1000 * np.array(values)
    return {f"p{q}_ms": round(float(np.percentile(milliseconds, q)), 1) for q in (50, 95, 99)}


def measure(db: str, labels: int, annotators: int, rate: float, kills: int) -> dict:
    """Raises AssertionError when a label is lost, doubled, or there without having been sent."""
    project, cookies = prepare(db, labels, annotators)
    server = Server(db)
    times: dict[str, list[float]] = {"fetch": [], "submit": [], "other": []}
    budget = Budget(labels, rate)
    crowd = [Annotator(server.port, cookie, project, budget, times) for cookie in cookies]
    begin = time.monotonic()
    for one in crowd:
        one.start()
    killed = 0
    try:
        while any(one.is_alive() for one in crowd):
            time.sleep(0.05)
            if killed < kills and budget.taken > labels * (killed + 1) / (kills + 1):
                server.kill()
                server.start()
                killed += 1
    finally:
        server.kill()
    seconds = time.monotonic() - begin
    store = Store(db)
    with store.read() as session:
        rows = Counter(session.scalars(sa.select(Label.client_id)))
        most = session.scalar(
            sa.select(sa.func.count()).select_from(Label).group_by(Label.task_id, Label.annotator_id).order_by(
                sa.func.count().desc()
            ).limit(1)
        )  # fmt: skip
    acknowledged = [name for one in crowd for name in one.acknowledged]
    sent = set().union(*(one.sent for one in crowd))
    refused = [line for one in crowd for line in one.refused]
    assert killed == kills, f"{killed} kills of {kills}"
    assert not refused, refused[:3]
    assert len(acknowledged) == labels
    assert all(rows[name] == 1 for name in acknowledged), "an acknowledged label is missing or doubled"
    assert set(rows) <= sent, "a label that nobody sent"
    assert most == 1, "somebody's task is labelled twice"
    kind = "sqlite" if store.is_sqlite else "postgresql"
    store.close()
    return {
        "database": kind,
        "labels": labels,
        "annotators": annotators,
        "kills": killed,
        "seconds": round(seconds, 1),
        "labels_per_second": round(labels / seconds, 1),
        "fetch": quantiles(times["fetch"]),
        "submit": quantiles(times["submit"]),
        "cpus": os.cpu_count(),
    }


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--db", help="a new SQLite file or an empty PostgreSQL database; a temporary file when absent")
    parser.add_argument("--labels", type=int, default=5000)
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--rate", type=float, default=20.0, help="labels a second, of all annotators together")
    parser.add_argument("--kills", type=int, default=3, help="how often the server is killed with -9")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        db = given.db or str(Path(directory) / "studio.db")
        print(json.dumps(measure(db, given.labels, given.annotators, given.rate, given.kills), indent=2))


if __name__ == "__main__":
    main()
