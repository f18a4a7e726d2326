"""Opening the store: SQLite by path, PostgreSQL by URL, brought to the newest schema.

SQLite has one writer at a time. Within a process writers take turns in the order they came, so that one who writes
batch after batch lets the others in between; between processes `BEGIN IMMEDIATE` and a busy timeout do. The write-ahead
log lets readers go on meanwhile. A transaction that returned is on the disk (`synchronous=FULL`). PostgreSQL locks rows
(see `queue`), which SQLite need not.

An SQLite file holds the key that signs invitations, and what everybody said: only its owner may read it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Session

from wukong.console import say
from wukong.errors import RunError, UsageError, WukongError

BUSY_SECONDS = 30
"""For so long a writer waits for one of another process."""

WRITERS = 4
"""So many transactions of one process write to PostgreSQL at once. More only get in each other's way: after every
statement each would wait for the interpreter behind all the others."""

MIGRATIONS = Path(__file__).parent / "migrations"
_UPGRADE_LOCK = 0x77756B6F  # PostgreSQL's advisory lock under which one server at a time changes the schema


class Store:
    """The label store.

    Args:
        url: a path of an SQLite file, made when absent, or a URL (`sqlite:///…`, `postgresql://user@host/name`).

    Raises:
        UsageError: the URL is of another kind, the database cannot be opened, is of a newer version, or is an SQLite
            file that others can read and that is not ours to close.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = _url(str(url))
        if self.is_sqlite and self.url.database and not self.url.database.startswith((":memory:", "file:")):
            _keep_private(Path(self.url.database).resolve())
        self.engine = _engine(self.url)
        # SQLAlchemy would leave a pooled SQLite connection with the driver's own transactions switched on again.
        self._glancing = self.engine if self.is_sqlite else self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._turns = _Turns(1 if self.is_sqlite else WRITERS)
        try:
            self.migrate()
        except (sa.exc.OperationalError, sa.exc.DatabaseError) as error:
            reason = str(error.orig).strip().splitlines()[0]
            raise UsageError(f"{self}: the database cannot be opened ({reason})") from None

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A consistent view, to be read only."""
        with Session(self.engine, expire_on_commit=False) as session, _disk_errors(self):
            yield session

    @contextlib.contextmanager
    def glance(self) -> Iterator[Session]:
        """For a single statement: no transaction around it, which for PostgreSQL would be two more round trips."""
        with Session(self._glancing, expire_on_commit=False) as session, _disk_errors(self):
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction: committed when the block ends well, otherwise as if it had not been. Raises RunError for a
        full or busy database."""
        with self._turns.one(self), _disk_errors(self):
            engine = self.engine.execution_options(immediate=True)
            with Session(engine, expire_on_commit=False) as session, session.begin():
                yield session

    def close(self) -> None:
        self.engine.dispose()

    # ----------------------------------------------------------------------------------------------------- schema

    def migrate(self, revision: str = "head") -> None:
        """Brings the schema to a revision, the newest by default, in one transaction."""
        script = ScriptDirectory(str(MIGRATIONS))
        with self._turns.one(self), self.engine.execution_options(immediate=True).begin() as connection:
            if not self.is_sqlite:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
            present = MigrationContext.configure(connection).get_current_revision()
            known = [one.revision for one in script.walk_revisions()]
            if present is not None and present not in known:
                raise UsageError(f"{self}: made by a newer wukong (schema {present}, known to {known[0]}); upgrade it")
            steps = EnvironmentContext(
                Config(), script, fn=lambda at, _: script._upgrade_revs(revision, at), destination_rev=revision
            )
            with steps:
                steps.configure(connection=connection)
                steps.run_migrations()


class _Turns:
    """Lets so many in at a time, in the order in which they came."""

    def __init__(self, places: int) -> None:
        self._lock, self._free, self._waiting = threading.Lock(), places, deque[threading.Event]()

    @contextlib.contextmanager
    def one(self, store: Store) -> Iterator[None]:
        """Raises RunError when no turn comes in time."""
        with self._lock:
            mine = None if self._free else threading.Event()
            if mine is None:
                self._free -= 1
            else:
                self._waiting.append(mine)
        if mine is not None and not mine.wait(BUSY_SECONDS) and not self._came_late(mine):
            raise RunError("{store}: busy with other writers; nothing was half-written, try again", store=store)
        try:
            yield
        finally:
            with self._lock:
                if self._waiting:
                    self._waiting.popleft().set()
                else:
                    self._free += 1

    def _came_late(self, mine: threading.Event) -> bool:
        """Whether the turn came in the moment when the wait ended; otherwise it is given up."""
        with self._lock:
            if not mine.is_set():
                self._waiting.remove(mine)
            return mine.is_set()


def _keep_private(path: Path) -> None:
    """Makes the file for its owner alone, or takes the right to read one that is there from everybody else. SQLite
    gives its other files (`-wal`, `-shm`) the same mode."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        return
    except FileExistsError:
        if os.name != "posix" or not _may_be_sqlite(path):
            return
    except OSError:  # the engine fails on it too, and says why
        return
    opened = False
    for file in (path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm", "-journal")):
        with contextlib.suppress(FileNotFoundError):
            mode = file.stat().st_mode & 0o777
            if mode & 0o077:
                try:
                    file.chmod(mode & 0o600)
                except PermissionError:
                    raise UsageError(
                        f"{file}: others on this machine can read it, and it holds the studio's keys; its owner must "
                        "run chmod 600 on it"
                    ) from None
                opened = True
    if opened:
        say("{path}: others on this machine could read it; now only its owner can (mode 0600)", path=path)


def _may_be_sqlite(path: Path) -> bool:
    try:
        if not path.is_file():  # a pipe would keep its reader waiting, and a device belongs to everybody
            return False
        with path.open("rb") as file:
            return file.read(16) in (b"", b"SQLite format 3\0")
    except OSError:
        return False


def _url(text: str) -> sa.URL:
    if "://" not in text:
        if Path(text).exists() and not Path(text).is_file():
            raise UsageError(f"--db {text}: is a directory, a pipe or a device; expected a file")
        Path(text).absolute().parent.mkdir(parents=True, exist_ok=True)
        return sa.URL.create("sqlite", database=str(Path(text).absolute()))
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError:
        raise UsageError("--db: not a database's address; write a file's path or postgresql://user@host/name") from None
    if "@" in (url.host or ""):
        raise UsageError("--db: the address holds @ twice; in a password, write it as %40")
    if url.get_backend_name() == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "sqlite" and url.database:
        return url
    raise UsageError(f"--db: {url.get_backend_name()} is not known; write a file's path or postgresql://user@host/name")


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() == "postgresql":
        try:
            return sa.create_engine(url, pool_pre_ping=True, pool_size=20, max_overflow=20)
        except ImportError:
            raise UsageError("PostgreSQL needs psycopg: pip install 'wukong-rlhf[studio]'") from None
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS}, pool_size=10, max_overflow=40)

    @sa.event.listens_for(engine, "connect")
    def settings(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver's own idea of when transactions begin breaks ours
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "recursive_triggers=ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        immediate = connection.get_execution_options().get("immediate")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


@contextlib.contextmanager
def _disk_errors(store: Store) -> Iterator[None]:
    try:
        yield
    except sa.exc.StatementError as error:
        if isinstance(error.orig, WukongError):  # what a column refused (see `tables.StorableText`), wrapped
            raise error.orig from None
        if not isinstance(error, sa.exc.OperationalError):
            raise
        reason = str(error.orig).strip().splitlines()[0]
        raise RunError("{store}: {reason}; nothing was half-written, try again", store=store, reason=reason) from error


def insert_new(session: Session, table: type[DeclarativeBase], rows: Iterable[Mapping[str, Any]]) -> int:
    """Adds the rows whose key is not taken yet; returns how many those were."""
    dialect = session.get_bind().dialect.name
    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    key = table.__mapper__.primary_key[0]
    count, rows = 0, list(rows)
    for start in range(0, len(rows), 500):
        part = [dict(row) for row in rows[start : start + 500]]
        added = insert(table).values(part).on_conflict_do_nothing().returning(key)
        count += len(session.execute(added).all())
    return count
