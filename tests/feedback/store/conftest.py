from collections.abc import Iterator

import pytest

from wukong.feedback.store.database import Store
from wukong.feedback.store.people import add_annotator
from wukong.feedback.store.tables import Annotator, Project
from wukong.feedback.store.tasks import TaskDraft, add_tasks, create_project
from wukong.records import Message


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """An empty store, on each kind of database."""
    opened = Store(database_url)
    yield opened
    opened.close()


@pytest.fixture
def project(store: Store) -> Project:
    """Ten pairwise tasks, each to be judged by two people."""
    with store.write() as session:
        project = create_project(session, "pizza", "pairwise", overlap=2, lease_seconds=60)
        add_tasks(session, project, [TaskDraft(asked(i), [f"good {i}", f"bad {i}"]) for i in range(10)])
    return project


@pytest.fixture
def people(store: Store) -> list[Annotator]:
    """Ann, Bob and Eve."""
    with store.write() as session:
        return [add_annotator(session, name) for name in ("Ann", "Bob", "Eve")]


def asked(i: int) -> list[Message]:
    return [Message(role="user", content=f"How to make pizza {i}")]
