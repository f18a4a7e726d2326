"""What is bounded for everybody: numbers, rates, guesses, and the time that a request may take to arrive."""

import contextlib
import json
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
import uvicorn
from fastapi.testclient import TestClient
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from tests.web.studio_forms import csrf_of
from tests.web.test_studio_access import routes
from wukong.feedback.store.people import invite
from wukong.feedback.store.tables import Annotator, Label
from wukong.serve.connections import http_protocol
from wukong.web.access import COOKIE
from wukong.web.app import MODULES, create_app
from wukong.web.guard import SAFE
from wukong.web.limits import RateLimiter
from wukong.web.state import Settings

# ------------------------------------------------------------------------------------------------------------- numbers

NUMBERS = [str(2**63), str(-(2**63) - 1), str(2**31), "1" + "0" * 400, "NaN", "Infinity", "-Infinity", "1e400", "-1"]
"""None is the number of a row, or a count of anything; all of them are numbers for Python's JSON reader."""
PARTS = [router for module in MODULES for router in module.ROUTERS]
EVERY = [(method, route.path) for part in PARTS for route in routes(part) for method in sorted(route.methods)]
OF_A_ROW = re.compile(r"\{(project|task|turn|assignment)_id\}")
QUERIES = {
    "/api/projects/{project_id}/next": "count",
    "/projects/{project_id}/tasks": "page",
    "/people": "page",
    "/api/chats": "page",
    "/runs": "page",
    "/runs/{run}/results/{place:path}": "page",
    "/api/runs/{run}/events": "at",
    "/api/runs/{run}/glass/{step:path}": "iteration",
}
CLIENT = {"client_id": "client-of-numbers"}
BODIES = {
    "/api/labels": [{"assignment": "?", "value": {"winner": 0}}, {"assignment": 1, "value": {"winner": "?"}},
                    {"assignment": 1, "value": {"winner": 0, "strength": "?"}},
                    {"assignment": 1, "value": {"winner": 0}, "seconds": "?"}],
    "/api/skips": [{"assignment": "?", "reason": "other"}, {"assignment": 1, "reason": "other", "seconds": "?"}],
    "/api/assignments/{assignment_id}/draft": [],  # a draft is the page's own: what JSON has is kept
    "/api/projects/{project_id}/next": [],
    "/api/projects/{project_id}/undo": [],
    "/api/tasks/{task_id}/adjudication": [{"value": {"winner": "?"}}],
    "/api/chats/{conversation}/answers": [
        {"model": "sft", "content": "x", name: "?"}
        for name in ("parent", "against", "temperature", "top_p", "top_k", "max_new_tokens", "seed")
    ],
    "/api/turns/{turn_id}/vote": [{"vote": "?"}],
    "/api/turns/{turn_id}/tokens": [],
    "/api/arena/battles/{assignment_id}/tokens": [],
    "/api/runs/{run}/evaluations/{place:path}/tokens": [{"line": "?", "model": "sft"}],
    "/api/runs/{run}/glass/{step:path}": [
        {"iteration": "?"}, *({"iteration": 1, name: "?"} for name in ("kl_coef", "gamma", "lam", "clip_range"))
    ],
    "/api/answers/{client_id}/stop": [],
    "/api/arena/battles": [],
    "/projects/new": ["overlap", "gold_percent", "lease_minutes"],
    "/projects/{project_id}/settings": ["overlap", "gold_percent", "lease_minutes"],
    "/projects/{project_id}/import": ["per_prompt", "skip_bad"],
    "/projects/{project_id}/generate": ["responses", "max_new_tokens", "temperature"],
    "/projects/{project_id}/uncertainty": [],
    "/people/invite": ["annotator", "days"],
    "/people/renew": [],
    "/people/withdraw": [],
    "/people/active": ["annotator"],
    "/invite/{token}": [],
    "/login": [],
    "/logout": [],
    "/preferences": [],
    "/runs/{run}/start": [],
    "/runs/{run}/stop": [],
}  # fmt: skip
"""Of each route that changes something, the numbers that it reads: "?" in JSON, or the names of a form's fields."""
FORM = {"name": "another", "kind": "pairwise", "models": "sft", "prompts": "x", "run_file": "x.jsonl"}


def test_the_numbers_of_every_route_are_tried(store):
    """One that is added later has to say here which numbers it reads."""
    app = create_app(store)
    assert {(method, route.path) for route in routes(app) for method in route.methods} == set(EVERY)
    assert {path for method, path in EVERY if method not in SAFE} == set(BODIES)
    numeric = {route.path for part in PARTS for route in routes(part)
               for one in route.dependant.query_params if one.name in ("count", "page", "at", "iteration")}  # fmt: skip
    assert numeric == set(QUERIES)
    named = {name for _, path in EVERY for name in re.findall(r"\{(\w+_id)\}", path)}
    assert named == {"project_id", "task_id", "turn_id", "assignment_id", "client_id"}


def requests(method, path):
    """Requests with "?" for a number, each as (path, query, JSON, form)."""
    plain = path.replace("{conversation}", "a" * 32).replace("{client_id}", "c" * 20)
    whole = re.sub(r"\{\w+(:path)?\}", "1", plain)
    if OF_A_ROW.search(path):
        yield OF_A_ROW.sub("?", plain), {}, {**CLIENT, "value": {}, "draft": {}, "vote": 1}, dict(FORM)
    if path in QUERIES:
        yield whole, {QUERIES[path]: "?"}, {}, dict(FORM)
    for item in BODIES[path] if method not in SAFE else []:
        json_body = {**CLIENT, **item} if isinstance(item, dict) else {}
        yield whole, {}, json_body, {**FORM, item: "?"} if isinstance(item, str) else dict(FORM)


TRIED = [one for one in EVERY if list(requests(*one))]


@pytest.fixture
def any_rate(monkeypatch):
    monkeypatch.setattr(RateLimiter, "allows", lambda *_: True)


@pytest.mark.parametrize(("method", "path"), TRIED, ids=[" ".join(one) for one in TRIED])
def test_no_number_is_too_odd_for_a_refusal(store, sign_in, make_project, any_rate, method, path):
    root, project = sign_in("Root", "admin"), make_project()
    assert project == 1
    assert root.post("/api/projects/1/next", json={}).status_code == 200  # assignment 1
    for address, query, body, form in requests(method, path):
        for number in NUMBERS:
            filled = {name: value.replace("?", number) for name, value in query.items()}
            sent = {"params": filled} if filled else {}
            if method not in SAFE and path.startswith("/api"):
                sent["content"] = json.dumps(body).replace('"?"', number)
                sent["headers"] = {"content-type": "application/json"}
            elif method not in SAFE:
                fields = {name: value.replace("?", number) for name, value in form.items()}
                sent["data"] = {"csrf": root.headers["x-csrf-token"], **fields}
            answer = root.request(method, address.replace("?", number), **sent)
            allowed = {400, 404, 422}
            if filled and number in ("-1", str(2**31)):
                allowed.add(200)  # the nearest page there is
            if "seconds" in body and number.isdigit():
                allowed |= {200, 409}  # a long time, kept as a day
            assert answer.status_code in allowed, f"{number} {address} {sent}: {answer.status_code} {answer.text[:300]}"
    with store.read() as session:
        assert {label.seconds for label in session.scalars(sa.select(Label))} <= {86400.0}


# --------------------------------------------------------------------------------------------------------------- rates


def test_a_cookie_that_is_none_has_no_rate_of_its_own(browser, sign_in, stopped_clock):
    ann, stranger = sign_in("Ann"), browser()
    found = []
    for _ in range(150):
        stranger.cookies.set(COOKIE, secrets.token_urlsafe(32))
        found.append(stranger.get("/login").status_code)
    assert found.count(200) <= 100
    assert found[-1] == 429
    assert ann.get("/api/projects").status_code == 200  # at the same address, with a session


@pytest.fixture
def behind_a_proxy(store):
    """Browsers behind a proxy on this machine, which hands on whatever address they claim to have."""
    app = create_app(store, Settings(hosts=None, admin_secret="correct horse battery"))
    proxied = ProxyHeadersMiddleware(app, trusted_hosts="127.0.0.1")
    addresses = iter(range(10**6))

    def post(path: str, **form: str):
        number = next(addresses)
        headers = {"x-forwarded-for": f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"}
        client = TestClient(proxied, base_url="http://studio.example", client=("127.0.0.1", 5), follow_redirects=False)
        client.headers.update(headers)
        return client.post(path, data={**form, "csrf": csrf_of(client)})

    return post


def test_whoever_guesses_the_secret_from_ever_new_addresses_is_stopped(store, behind_a_proxy, stopped_clock):
    with store.write() as session:
        root = invite(session, "admin")
    right = {"name": "Root", "secret": "correct horse battery"}
    assert behind_a_proxy(f"/invite/{root}", **right).status_code == 303
    found = [behind_a_proxy("/login", name="Root", secret=f"guess {n}").status_code for n in range(40)]
    assert (found.count(403), found[-1]) == (30, 429)
    assert behind_a_proxy("/login", **right).status_code == 429  # who guesses learns nothing
    with store.write() as session:
        other = invite(session, "admin")
    guesses = [behind_a_proxy(f"/invite/{other}", name="Eve", secret=f"{n}").status_code for n in range(40)]
    assert (guesses.count(429), 303 in guesses) == (10, False)
    with store.read() as session:
        assert session.scalars(sa.select(Annotator.name)).all() == ["Root"]


def test_whoever_guesses_links_from_ever_new_addresses_is_stopped_and_others_get_in(
    store, behind_a_proxy, stopped_clock
):
    found = [behind_a_proxy(f"/invite/guess-{n}", name="Eve").status_code for n in range(40)]
    assert (found.count(403), found[-1]) == (30, 429)
    with store.write() as session:
        good = invite(session)
    assert behind_a_proxy(f"/invite/{good}", name="Ann").status_code == 303


# ------------------------------------------------------------------------------------------------------------ arriving


@pytest.fixture
def running(store, settings, sign_in) -> Iterator[tuple[int, str, list[int]]]:
    """A studio on a port: (the port, an admin's cookie, the status of each answer so far)."""
    app, statuses = create_app(store, settings), []
    cookie = f"{COOKIE}={sign_in('Root', 'admin').cookies[COOKIE]}"

    async def counted(scope, receive, send):
        async def noted(message):
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            await send(message)

        await app(scope, receive, noted if scope["type"] == "http" else send)

    config = uvicorn.Config(counted, http=http_protocol(), log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield listener.getsockname()[1], cookie, statuses
        server.should_exit = True
        thread.join(60)


def begun(port, cookie, path, kind, first):
    """A connection on which a request has begun, and no more of it comes."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    head = ["Host: 127.0.0.1", f"Cookie: {cookie}", f"Content-Type: {kind}", "Content-Length: 1000"]
    connection.sendall("\r\n".join([f"POST {path} HTTP/1.1", *head, "", first]).encode())
    return connection


BEGINNINGS = [
    ("/login", "application/x-www-form-urlencoded", "name=A"),
    ("/projects/1/import", "multipart/form-data; boundary=b", "--b\r\n"),
    ("/api/labels", "application/json", '{"cl'),
    (f"/api/chats/{'a' * 32}/answers", "application/json", '{"cl'),
]


def no_traceback(caplog):
    return not [record for record in caplog.records if record.exc_info or "Traceback" in record.getMessage()]


@pytest.mark.parametrize("request_begun", BEGINNINGS)
def test_a_body_that_does_not_arrive_ends(running, caplog, monkeypatch, request_begun):
    for name in ("BODY_SECONDS", "FILE_SECONDS"):
        monkeypatch.setattr(f"wukong.web.guard.{name}", 0.3)
    port, cookie, _ = running
    with begun(port, cookie, *request_begun) as connection:
        said = b""
        while part := connection.recv(1 << 16):  # until the server closes it
            said += part
    assert said.split()[1] == b"408", said[:300]
    assert no_traceback(caplog)


@pytest.mark.parametrize("request_begun", BEGINNINGS)
def test_a_client_that_hangs_up_in_the_middle_leaves_no_traceback(running, caplog, request_begun):
    port, cookie, statuses = running
    with begun(port, cookie, *request_begun):
        pass
    deadline = time.monotonic() + 60
    while not statuses:
        assert time.monotonic() < deadline, "the server did not notice"
        time.sleep(0.01)
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=60)) as connection:
        connection.sendall(b"GET /login HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert connection.recv(100).split()[1] == b"200"
    assert statuses[0] < 500
    assert no_traceback(caplog)
