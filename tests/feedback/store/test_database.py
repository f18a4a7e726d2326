"""Opening, migrating and guarding the store."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from itsdangerous import URLSafeSerializer

from wukong.errors import DataError, UsageError
from wukong.feedback.store.database import Store, insert_new
from wukong.feedback.store.labels import add_label
from wukong.feedback.store.people import accept, add_annotator, needing_renewal, renew
from wukong.feedback.store.tables import Annotator, Assignment, Base, Label
from wukong.feedback.store.tasks import TaskDraft, add_task, create_project
from wukong.records import Message

PROMPT = [Message(role="user", content="How to make pizza")]


class OldStore(Store):
    """A store whose schema stays at a revision."""

    def __init__(self, database: str, revision: str) -> None:
        self.revision = revision
        super().__init__(database)

    def migrate(self, revision: str = "") -> None:
        super().migrate(revision or self.revision)


def test_the_migrations_make_the_tables_that_the_code_knows(store):
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_rows_of_the_oldest_schema_survive_every_migration(database_url):
    old = OldStore(database_url, "0001")
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
    new = Store(database_url)
    with new.read() as session:
        label = session.get_one(Label, 11)
        assert (label.value, label.shown, label.seconds, label.annotator.name) == ({"winner": 1}, [1, 0], 2.5, "Ann")
        assert label.task.prompt.text == "Grüße 你好"
        assert MigrationContext.configure(session.connection()).get_current_revision() != "0001"
    new.close()


def test_what_an_older_schema_let_in_is_put_right(database_url):
    """Of schema 3: an invitation whose link whoever read the database could make, a draft that no page can show."""
    old = OldStore(database_url, "0003")
    with old.engine.begin() as connection:
        for statement in (
            "INSERT INTO settings (name, value) VALUES ('signing_key', 'the old key')",
            "INSERT INTO annotators (id, name, role, active, created_at) VALUES (7, 'Ann', 'admin', true, 1)",
            "INSERT INTO projects (id, name, kind, overlap, gold_rate, lease_seconds, active_selection, created_at)"
            " VALUES (1, 'old', 'pairwise', 2, 0, 60, false, 1)",
            "INSERT INTO prompts (id, messages, text, source) VALUES ('p', '[]', '', '')",
            "INSERT INTO invitations (id, role, note, created_at, expires_at, used_at) VALUES"
            " ('waits', 'admin', 'for Bob', 1, 9e9, NULL), ('used', 'annotator', '', 1, 9e9, 2)",
        ):
            connection.execute(sa.text(statement))
        for number, draft in enumerate((r'{"comment": "half \ud800"}', '{"score": NaN}', '{"winner": 1}'), start=1):
            values = {"id": number, "draft": draft}
            connection.execute(sa.text(
                "INSERT INTO tasks (id, project_id, prompt_id, external_id, priority, uncertainty, shuffle, is_gold,"
                " created_at, open, n_labels, disagreement, adjudicated)"
                " VALUES (:id, 1, 'p', :external, 0, 0, 9, false, 1, true, 1, 0, false)"
            ), {"id": number, "external": str(number)})  # fmt: skip
            if "NaN" in draft and old.url.get_backend_name() == "postgresql":  # whose JSON has none
                continue
            connection.execute(sa.text(
                "INSERT INTO assignments (id, task_id, project_id, annotator_id, state, shown, draft, leased_at,"
                " expires_at) VALUES (:id, :id, 1, 7, 'leased', '[0, 1]', :draft, 1, 2)"
            ), values)  # fmt: skip
    old.close()
    new = Store(database_url)
    with new.write() as session:
        drafts = session.execute(sa.select(Assignment.id, Assignment.draft)).all()
        assert [draft for number, draft in drafts if number != 3] == [None] * (len(drafts) - 1)
        assert (3, {"winner": 1}) in drafts
        assert needing_renewal(session) == 1
        with pytest.raises(UsageError, match="older version; ask an admin for a new one"):
            accept(session, URLSafeSerializer("the old key", salt="invitation").dumps(["waits", 9e9]), "Eve")
        assert accept(session, renew(session, "waits"), "Bob").role == "admin"
        assert needing_renewal(session) == 0
    new.close()


@pytest.mark.parametrize("mode", [None, 0o644, 0o666])
@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_only_the_owner_can_read_the_database_and_its_log(tmp_path, capfd, mode, mask):
    """It holds the key that signs invitations. One that others could read is closed at the start, and that is said."""
    path = tmp_path / "studio.db"
    before = os.umask(mask)
    try:
        if mode is not None:
            Store(path).close()
            capfd.readouterr()
            path.chmod(mode)
        store = Store(path)
        with store.write() as session:
            add_annotator(session, "Ann")
        modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
        store.close()
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("studio.db", "studio.db-wal", "studio.db-shm"), 0o600)
    assert ("others on this machine could read it" in capfd.readouterr().err) == (mode is not None)


def test_a_log_that_a_killed_server_left_is_closed_too(tmp_path):
    program = """
import os, sys
from wukong.feedback.store.database import Store
from wukong.feedback.store.people import accept, add_annotator, needing_renewal, renew
store = Store(sys.argv[1])
with store.write() as session:
    add_annotator(session, "Ann")
os._exit(1)
"""
    path = tmp_path / "studio.db"
    subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    files = [path, path.with_name("studio.db-wal"), path.with_name("studio.db-shm")]
    for file in files:
        file.chmod(0o644)
    store = Store(path)
    with store.read() as session:
        assert session.scalars(sa.select(Annotator.name)).all() == ["Ann"]
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    store.close()


def test_a_database_of_a_newer_version_is_refused(database_url):
    store = Store(database_url)
    with store.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    with pytest.raises(UsageError, match="made by a newer wukong"):
        Store(database_url)


@pytest.mark.parametrize(
    "url", ["mysql://x/y", "postgresql://nobody@127.0.0.1:1/none", "://", "postgresql://a:b@se@h/x"]
)
def test_an_address_that_does_not_work_is_one_line(url):
    with pytest.raises(UsageError) as caught:
        Store(url)
    assert "\n" not in str(caught.value)
    assert "se@h" not in str(caught.value)


def test_what_is_no_file_is_no_store_and_keeps_its_mode(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o666)
    (tmp_path / "pipe").chmod(0o666)
    for place in ("pipe", "."):
        with pytest.raises(UsageError, match="expected a file"):
            Store(tmp_path / place)
    assert (tmp_path / "pipe").stat().st_mode & 0o777 == 0o666


def test_a_file_that_is_no_database_is_one_line(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work " * 100)
    with pytest.raises(UsageError, match=r"thesis\.txt: the database cannot be opened"):
        Store(tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text().startswith("years of work")


COLUMNS = "task_id, project_id, annotator_id, status, value, shown, comment, flagged, adjudicates, created_at"
FORGED = f"SELECT {{}}, {COLUMNS.replace('comment', chr(39) + 'forged' + chr(39))} FROM labels WHERE id = 1"
REPLACING = {
    "its number": f"INTO labels (id, client_id, {COLUMNS}) " + FORGED.format("1, 'client-99'"),
    "its client id": f"INTO labels (client_id, {COLUMNS}) " + FORGED.format("'client-01'"),
    "what it supersedes": f"INTO labels (client_id, supersedes, {COLUMNS}) " + FORGED.format("'client-99', 1"),
}


def two_labels(store) -> None:
    with store.write() as session:
        project = create_project(session, "p", "pairwise")
        task = add_task(session, project, TaskDraft(PROMPT, ["a", "b"]))
        for client_id, winner in (("client-01", 0), ("client-02", 1)):
            add_label(session, task, "Ann", client_id, {"winner": winner})


@pytest.mark.parametrize("statement", ["UPDATE labels SET comment = 'forged'", "DELETE FROM labels"])
def test_the_database_refuses_to_change_or_delete_a_label(store, statement):
    two_labels(store)
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), store.write() as session:
        session.execute(sa.text(statement))
    with store.read() as session:
        assert session.scalars(sa.select(Label.comment)).all() == ["", ""]


@pytest.mark.parametrize("conflict", REPLACING)
@pytest.mark.parametrize("verb", ["REPLACE", "INSERT OR REPLACE"])
def test_no_sql_replaces_a_label(tmp_path, conflict, verb):
    """By a connection of SQLite's own, with its own settings."""
    store = Store(tmp_path / "studio.db")
    two_labels(store)
    with contextlib.closing(sqlite3.connect(tmp_path / "studio.db")) as connection:
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(f"{verb} {REPLACING[conflict]}")
        assert connection.execute("SELECT client_id, comment FROM labels ORDER BY id").fetchall() == [
            ("client-01", ""), ("client-02", "")
        ]  # fmt: skip
    store.close()


def test_no_sql_replaces_a_vote(tmp_path):
    store = Store(tmp_path / "studio.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "studio.db")) as connection:
        row = "INTO votes (id, client_id, response_id, annotator_id, vote, reason, created_at) VALUES"
        connection.execute(f"INSERT {row} (1, 'client-01', 'r', 1, 1, '', 0)")
        for replacing in ("(1, 'client-99', 'r', 1, -1, '', 0)", "(2, 'client-01', 'r', 1, -1, '', 0)"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(f"REPLACE {row} {replacing}")
    store.close()


def test_postgresql_empties_no_table_of_judgments(postgres):
    store = Store(postgres.new_database())
    two_labels(store)
    for table in ("labels", "votes"):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), store.write() as session:
            session.execute(sa.text(f"TRUNCATE {table} CASCADE"))
    store.close()


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


def test_writers_take_turns_in_the_order_they_came(tmp_path):
    """One who writes again at once, as an import does batch by batch, comes behind those who wait already."""
    store, order = Store(tmp_path / "studio.db"), []
    threads: list[threading.Thread] = []

    def write(name: str) -> None:
        with store.write():
            order.append(name)

    with store.write():
        for name in ("a", "b", "c"):
            threads.append(threading.Thread(target=write, args=(name,)))
            threads[-1].start()
            while len(store._turns._waiting) < len(threads):  # it has come, and waits
                time.sleep(0.001)
    with store.write():
        order.append("again")
    for thread in threads:
        thread.join()
    assert order == ["a", "b", "c", "again"]
    store.close()


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
