"""A studio without a network: the application, and browsers' worth of people signed in to it."""

import shutil
from collections.abc import Callable, Iterator
from itertools import count
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, sync_playwright

from tests.web.studio_forms import csrf_of
from wukong.feedback.store.database import Store
from wukong.feedback.store.people import invite
from wukong.feedback.store.tasks import TaskDraft, add_tasks, create_project
from wukong.records import Message
from wukong.web.app import create_app
from wukong.web.state import Settings

CLIENT_IDS = (f"client-{number:06}" for number in count())


@pytest.fixture
def stopped_clock(monkeypatch) -> None:
    """For what counts by the minute: no minute passes, however long a busy machine takes."""
    monkeypatch.setattr("wukong.web.limits.time", SimpleNamespace(monotonic=lambda: 1000.0))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def store(tmp_path) -> Iterator[Store]:
    opened = Store(tmp_path / "studio.db")
    yield opened
    opened.close()


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(run_dir=tmp_path)


@pytest.fixture
def browser(store, settings) -> Callable[[], TestClient]:
    """A new browser at the studio's door."""
    app = create_app(store, settings)
    return lambda: TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)


@pytest.fixture
def sign_in(store, browser) -> Callable[..., TestClient]:
    """A browser in which an invitation was accepted; its headers carry the CSRF token."""

    def do(name: str = "Ann", role: str = "annotator") -> TestClient:
        client = browser()
        with store.write() as session:
            token = invite(session, role)
        form = {"name": name, "csrf": csrf_of(client)}
        answer = client.post(f"/invite/{token}", data=form)
        assert answer.status_code == 303, answer.text
        client.headers["x-csrf-token"] = csrf_of(client)
        return client

    return do


@pytest.fixture
def make_project(store) -> Callable[..., int]:
    """The id of a new project with tasks."""

    def do(kind: str = "pairwise", tasks: int = 3, **settings) -> int:
        size = {"pairwise": 2, "thumbs": 1}.get(kind, 4)
        drafts = (
            TaskDraft([Message(role="user", content=f"Question {i}")], [f"answer {i}.{n}" for n in range(size)])
            for i in range(tasks)
        )
        with store.write() as session:
            project = create_project(session, f"{kind} {next(CLIENT_IDS)}", kind, **settings)
            add_tasks(session, project, drafts)
            return project.id

    return do
