"""`wukong studio` as a process of its own, on a free port."""

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType


class RunningStudio:
    """Runs between `with` and its end. `invitation` is the admin's link that it printed."""

    def __init__(self, db: str, *options: str, port: int = 0, log: Path | None = None) -> None:
        self.command = [sys.executable, "-m", "wukong", "studio", "--db", db, "--port", str(port), *options]
        self.command.append("--no-open-browser")
        self.log = log or Path(os.devnull)

    def __enter__(self) -> "RunningStudio":
        self.errors = self.log.open("ab")
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        assert self.process.stdout
        self.invitation = self.process.stdout.readline().strip()
        assert self.invitation.startswith("http://127.0.0.1:"), self.log.read_text()
        self.address = self.invitation.split("/invite/")[0]
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=60)
        assert self.process.stdout
        self.process.stdout.close()
        self.errors.close()
