"""Opening the store: SQLite by path, PostgreSQL by URL, brought to the newest schema.

SQLite has one writer at a time. Within a process a semaphore makes writers queue up, between processes `BEGIN
IMMEDIATE` and a busy timeout do; the write-ahead log lets readers go on meanwhile. A transaction that returned is on
the disk (`synchronous=FULL`). PostgreSQL locks rows (see `queue`), which SQLite need not.
"""

from __future__ import annotations

import contextlib
import threading
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
        UsageError: the URL is of another kind, the database cannot be opened or is of a newer version.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = _url(str(url))
        self.engine = _engine(self.url)
        # SQLAlchemy would leave a pooled SQLite connection with the driver's own transactions switched on again.
        self._glancing = self.engine if self.is_sqlite else self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._writer = threading.BoundedSemaphore(1 if self.is_sqlite else WRITERS)
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
        with self._writer, _disk_errors(self):
            engine = self.engine.execution_options(immediate=True)
            with Session(engine, expire_on_commit=False) as session, session.begin():
                yield session

    def close(self) -> None:
        self.engine.dispose()

    # ----------------------------------------------------------------------------------------------------- schema

    def migrate(self, revision: str = "head") -> None:
        """Brings the schema to a revision, the newest by default, in one transaction."""
        script = ScriptDirectory(str(MIGRATIONS))
        with self._writer, self.engine.execution_options(immediate=True).begin() as connection:
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


def _url(text: str) -> sa.URL:
    if "://" not in text:
        Path(text).absolute().parent.mkdir(parents=True, exist_ok=True)
        return sa.URL.create("sqlite", database=str(Path(text).absolute()))
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError:
        raise UsageError("--db: not a database's address; write a file's path or postgresql://user@host/name") from None
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
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
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
        raise RunError(f"{store}: {reason}; nothing was half-written, try again") from error


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
