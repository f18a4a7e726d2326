"""However many wait for their turn to write, whoever only reads is answered."""

import asyncio
import contextlib
import re
import threading

import httpx
import pytest
import sqlalchemy as sa

from wukong.feedback.store.people import invite
from wukong.feedback.store.tables import Annotator
from wukong.web.access import COOKIE

WORKERS = 40
"""anyio's threads for everything that has none of its own."""
WAITING = WORKERS + 10
PATIENCE = 60


@contextlib.contextmanager
def held_writer(store):
    """Somebody writes, and does not come to an end before the block does."""
    begun, end = threading.Event(), threading.Event()

    def write():
        with store.write():
            begun.set()
            end.wait(10 * PATIENCE)

    thread = threading.Thread(target=write)
    thread.start()
    assert begun.wait(PATIENCE)
    try:
        yield
    finally:
        end.set()
        thread.join(PATIENCE)


def client_at(app, number, cookies=None):
    """A browser at an address of its own: the limits are by address too."""
    transport = httpx.ASGITransport(app, client=(f"10.0.0.{number}", 1))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", cookies=cookies, timeout=PATIENCE)


WRITES = {
    "next": ("/api/projects/{project}/next", {"json": {}}),
    "labels": ("/api/labels", {"json": {"assignment": 1, "client_id": "client-01", "value": {"winner": 0}}}),
    "skips": ("/api/skips", {"json": {"assignment": 1, "client_id": "client-01", "reason": "other"}}),
    "undo": ("/api/projects/{project}/undo", {"json": {"client_id": "client-01"}}),
    "adjudication": ("/api/tasks/1/adjudication", {"json": {"client_id": "client-01", "value": {"winner": 0}}}),
    "vote": ("/api/turns/1/vote", {"json": {"client_id": "client-01", "vote": 1}}),
    "settings": ("/projects/{project}/settings", {"data": {}}),
    "projects": ("/projects/new", {"data": {"name": "another", "kind": "pairwise"}}),
    "invitations": ("/people/invite", {"data": {}}),
    "renewals": ("/people/renew", {"data": {"invitation": "x"}}),
    "withdrawals": ("/people/withdraw", {"data": {"invitation": "x"}}),
    "accounts": ("/people/active", {"data": {"annotator": "77"}}),
}


@pytest.mark.parametrize("kind", WRITES)
def test_readers_are_answered_while_more_wait_to_write_than_there_are_workers(store, sign_in, make_project, kind):
    root, project = sign_in("Root", "admin"), make_project()
    app, cookies, token = root.app, {COOKIE: root.cookies[COOKIE]}, root.headers["x-csrf-token"]
    with store.write() as session:
        invitation = invite(session)
    path, body = WRITES[kind]
    body = {"data": {**body["data"], "csrf": token}} if "data" in body else body
    pages = ["/login", f"/invite/{invitation}", "/", f"/label/{project}", f"/projects/{project}", "/api/projects"]

    async def write(number):
        async with client_at(app, number, cookies) as client:
            answer = await client.post(path.format(project=project), headers={"x-csrf-token": token}, **body)
            return answer.status_code

    async def sign_in_as(name):
        async with client_at(app, 200) as client:
            page = (await client.get(f"/invite/{invitation}")).text
            csrf = re.search(r'<meta name="csrf" content="(\w+)">', page)[1]
            return (await client.post(f"/invite/{invitation}", data={"name": name, "csrf": csrf})).status_code

    async def go():
        with held_writer(store):
            writers = [asyncio.create_task(write(number)) for number in range(WAITING)]
            newcomer = asyncio.create_task(sign_in_as("Ann"))
            await asyncio.sleep(0.5)  # they have come to where they wait
            async with client_at(app, 201, cookies) as reader, asyncio.timeout(PATIENCE):
                for page in pages:
                    assert (await reader.get(page)).status_code == 200, page
            assert not any(one.done() for one in [*writers, newcomer])
        assert 500 not in await asyncio.gather(*writers)
        assert await newcomer == 303

    asyncio.run(go())
    with store.read() as session:
        assert set(session.scalars(sa.select(Annotator.name))) == {"Root", "Ann"}
