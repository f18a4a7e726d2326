"""Opening, migrating and guarding the store."""

import subprocess
import sys
import threading

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from wukong.errors import DataError, UsageError
from wukong.feedback.store.database import Store, insert_new
from wukong.feedback.store.labels import add_label
from wukong.feedback.store.people import add_annotator
from wukong.feedback.store.tables import Annotator, Base, Label
from wukong.feedback.store.tasks import TaskDraft, add_task, create_project
from wukong.records import Message

PROMPT = [Message(role="user", content="How to make pizza")]


def test_the_migrations_make_the_tables_that_the_code_knows(store):
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_rows_of_the_oldest_schema_survive_every_migration(database_url, monkeypatch):
    monkeypatch.setattr(
        Store, "migrate", lambda self, revision="0001", _migrate=Store.migrate: _migrate(self, revision)
    )
    old = Store(database_url)
    with old.engine.begin() as connection:
        tables = sa.inspect(connection).get_table_names()
        assert "sessions" not in tables
        for statement in (
            "INSERT INTO annotators (id, name, role, active, created_at) VALUES (7, 'Ann', 'admin', true, 1.5)",
            "INSERT INTO projects (id, name, kind, overlap, gold_rate, lease_seconds, active_selection, created_at)"
            " VALUES (3, 'old', 'pairwise', 2, 0, 60, false, 1)",
            "INSERT INTO prompts (id, messages, text, source) VALUES ('p', '[]', 'Grüße 你好', '')",
            "INSERT INTO tasks (id, project_id, prompt_id, external_id, priority, uncertainty, shuffle, is_gold,"
            " created_at, open, n_labels, disagreement, adjudicated)"
            " VALUES (5, 3, 'p', 'x', 0, 0, 9, false, 1, true, 1, 0, false)",
            "INSERT INTO labels (id, client_id, task_id, project_id, annotator_id, status, value, shown, seconds,"
            " comment, flagged, adjudicates, created_at)"
            """ VALUES (11, 'client-01', 5, 3, 7, 'given', '{"winner": 1}', '[1, 0]', 2.5, 'so', false, false, 4)""",
        ):
            connection.execute(sa.text(statement))
    old.close()
    monkeypatch.undo()
    new = Store(database_url)
    with new.read() as session:
        label = session.get_one(Label, 11)
        assert (label.value, label.shown, label.seconds, label.annotator.name) == ({"winner": 1}, [1, 0], 2.5, "Ann")
        assert label.task.prompt.text == "Grüße 你好"
        assert MigrationContext.configure(session.connection()).get_current_revision() != "0001"
    new.close()


def test_a_database_of_a_newer_version_is_refused(database_url):
    store = Store(database_url)
    with store.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    with pytest.raises(UsageError, match="made by a newer wukong"):
        Store(database_url)


@pytest.mark.parametrize("url", ["mysql://x/y", "postgresql://nobody@127.0.0.1:1/none", "://"])
def test_an_address_that_does_not_work_is_one_line(url):
    with pytest.raises(UsageError) as caught:
        Store(url)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database_is_one_line(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work " * 100)
    with pytest.raises(UsageError, match=r"thesis\.txt: the database cannot be opened"):
        Store(tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text().startswith("years of work")


@pytest.mark.parametrize("statement", ["UPDATE labels SET comment = 'forged'", "DELETE FROM labels"])
def test_the_database_refuses_to_change_or_delete_a_label(store, statement):
    with store.write() as session:
        project = create_project(session, "p", "pairwise")
        add_label(session, add_task(session, project, TaskDraft(PROMPT, ["a", "b"])), "Ann", "client-01", {"winner": 0})
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), store.write() as session:
        session.execute(sa.text(statement))
    with store.read() as session:
        assert session.scalars(sa.select(Label.comment)).all() == [""]


@pytest.mark.parametrize("text", ["a\x00b", "half \ud800"])
def test_text_that_one_database_could_not_keep_is_refused_by_both(store, text):
    with pytest.raises(DataError), store.write() as session:
        add_annotator(session, text)


def test_a_failed_block_leaves_nothing(store):
    with pytest.raises(UsageError), store.write() as session:
        add_annotator(session, add_annotator(session, "Ann").name)
    with store.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Annotator)) == 0


def test_insert_new_counts_what_was_new(store):
    with store.write() as session:
        rows = [{"name": f"n{i}", "role": "imported"} for i in range(3)]
        assert insert_new(session, Annotator, rows) == 3
        assert insert_new(session, Annotator, [*rows, {"name": "n3", "role": "imported"}]) == 1


def test_writers_of_several_threads_and_processes_wait_for_each_other(store, database_url):
    """Each adds one to a counter that it reads first: without exclusion, additions get lost."""
    program = """
import sys
import sqlalchemy as sa
from wukong.feedback.store.database import Store
store = Store(sys.argv[1])
for _ in range(10):
    with store.write() as session:
        session.execute(sa.text("UPDATE annotators SET created_at = created_at + 1 WHERE name = 'Ann'"))
"""
    with store.write() as session:
        add_annotator(session, "Ann").created_at = 0
    processes = [subprocess.Popen([sys.executable, "-c", program, database_url]) for _ in range(2)]

    def add() -> None:
        for _ in range(10):
            with store.write() as session:
                session.execute(sa.text("UPDATE annotators SET created_at = created_at + 1 WHERE name = 'Ann'"))

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    with store.read() as session:
        assert session.scalars(sa.select(Annotator.created_at)).one() == 50
