"""The process that works on a run, when the studio started it.

It is the command that a person would type, `wukong run RECIPE --until STEP`, in a separate session: it continues when
the studio ends, and a studio that is started later knows it again. `process.json` in the run directory says which
process it is and when that began, so that a number which the system gave to another process is never taken for ours;
`run.log` has what it says, one start below the other. That no two work on one run is seen to by the lock that
`wukong run` holds, however it was started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from wukong.errors import RunError, UsageError, WukongError
from wukong.files import exclusive, is_locked, read_json, write_json
from wukong.places import read_recipe
from wukong.web.state import SECRET

BUSY = "something is at work on this run already; wait for its end, or stop it"


@dataclass(frozen=True)
class RunProcess:
    """The last process that was started for a run."""

    pid: int
    born: str
    """When it began, in the system's own words."""
    step: str | None
    """The last step it was to run; None for all."""
    log_from: int
    """Where in run.log its part begins, in bytes."""
    by: str
    """Who started it."""
    started: float
    """Seconds since 1970."""
    signals: int = 0
    """How often it was asked to stop."""

    @property
    def alive(self) -> bool:
        return born(self.pid) == self.born


def born(pid: int) -> str | None:
    """When a process began; with its number this names it for good. None when it has ended."""
    if os.path.isdir("/proc/self"):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        return None if fields[0] == "Z" else f"{boot} {fields[19]}"  # fields 3 and 22 of proc(5): state, starttime
    said = subprocess.run(["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, when = said.stdout.strip().partition(" ")
    return " ".join(when.split()) if when and not state.startswith("Z") else None


def process_of(run: Path) -> RunProcess | None:
    """The last process that a studio started here, alive or not; None if there was none, or the file cannot be read."""
    try:
        return RunProcess(**read_json(run / "process.json"))
    except (WukongError, TypeError):
        return None


def living(run: Path) -> RunProcess | None:
    """The process that a studio started here, while it is alive."""
    process = process_of(run)
    return process if process is not None and process.alive else None


def is_running(run: Path) -> bool:
    """Whether something is at work on the run, started here or in a terminal."""
    return living(run) is not None or is_locked(run)


def start(run: Path, step: str | None, by: str) -> RunProcess:
    """Starts the run's recipe, up to a step or to its end.

    Raises:
        UsageError: the run has no recipe or has been moved, or something is at work on it. RunError: no process.
    """
    directory, run_dir = _where(run)
    command = [sys.executable, "-m", "wukong", "run", f"{run_dir}/recipe.yaml", "--run-dir", run_dir]
    command += ["--until", step] if step else []
    environment = {name: value for name, value in os.environ.items() if name != SECRET}  # the run does not need it
    environment |= {"NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
    with exclusive(
        run, BUSY
    ):  # the new process takes this lock as soon as it can; until then process.json marks the run as busy
        if living(run) is not None:
            raise UsageError(BUSY)
        with (run / "run.log").open("ab") as log:
            begin = log.tell()
            shown = " ".join(["wukong", *command[3:]])
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {by}: {shown}\n".encode())
            log.flush()
            try:
                child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory, env=environment,
                    start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise RunError("{run}: cannot start a process ({reason})", run=run, reason=error.strerror) from None
        process = RunProcess(child.pid, born(child.pid) or "", step, begin, by, time.time())
        write_json(run / "process.json", asdict(process))
    threading.Thread(target=child.wait, name=f"wukong-{child.pid}", daemon=True).start()  # leaves no zombie
    return process


def _where(run: Path) -> tuple[Path, str]:
    """The directory in which the run's recipe was run (paths of a recipe are relative to it), and what the run is
    called there. Where that directory is gone, this process's own.

    Raises UsageError for a run without a recipe.
    """
    recipe = read_recipe(run)
    if not recipe["steps"]:
        raise UsageError("{run}: has no recipe.yaml, so there is nothing to start", run=run.name)
    place = run.absolute()
    directory = Path(os.path.normpath(place / recipe["called_from"])) if recipe["called_from"] else Path.cwd()
    if not directory.is_dir():
        directory = Path.cwd()
    inside = place.is_relative_to(directory)
    return directory, str(place.relative_to(directory) if inside else place)


def stop(run: Path) -> RunProcess:
    """Asks the process to stop: the first time with a checkpoint (SIGINT), then at once (SIGTERM).

    Raises:
        UsageError: no process that the studio started is at work here.
    """
    process = living(run)
    if process is None:
        raise UsageError("no process that the studio started is at work on this run")
    number = signal.SIGTERM if process.signals else signal.SIGINT
    process = replace(process, signals=process.signals + 1)
    write_json(run / "process.json", asdict(process))
    if hasattr(os, "pidfd_open"):  # so that what is signalled is what was looked at
        try:
            handle = os.pidfd_open(process.pid)
        except OSError:
            return process
        try:
            if process.alive:
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)
    elif process.alive:
        os.kill(process.pid, number)
    return process
