"""A private PostgreSQL server in a temporary directory, on a free port of the loopback."""

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

import psycopg


def find_postgres() -> Path | None:
    """The directory of the server's programs: on the path, or where Debian puts them."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).parent
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


class PostgresServer:
    """Runs between `with` and its end, as the user "postgres" where we are root, which the server refuses to be."""

    def __init__(self, programs: Path) -> None:
        self.programs = programs
        self.user = "postgres" if hasattr(os, "geteuid") and os.geteuid() == 0 else None
        self._names = itertools.count()

    def __enter__(self) -> "PostgresServer":
        self.home = Path(tempfile.mkdtemp(prefix="wukong-postgres-"))
        if self.user:
            shutil.chown(self.home, self.user)
        self.port = _free_port()
        data = str(self.home / "data")
        command = [str(self.programs / "initdb"), "-D", data, "-U", "wukong", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(command, check=True, capture_output=True, user=self.user, cwd=self.home)
        self.log = (self.home / "log").open("wb")
        command = [str(self.programs / "postgres"), "-D", data, "-p", str(self.port), "-h", "127.0.0.1", "-k", ""]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, user=self.user, cwd=self.home)
        self._wait()
        return self

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self._address("postgres")).close()
                return
            except psycopg.OperationalError:
                assert self.process.poll() is None, (self.home / "log").read_text()
                assert time.monotonic() < deadline, "PostgreSQL does not answer"
                time.sleep(0.1)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.process.send_signal(2)  # SIGINT: ends the connections and stops
        self.process.wait(timeout=300)
        self.log.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def _address(self, database: str) -> str:
        return f"postgresql://wukong@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        name = f"studio_{next(self._names)}"
        with psycopg.connect(self._address("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        return self._address(name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
