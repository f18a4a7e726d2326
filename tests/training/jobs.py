"""Starts a command in several processes as `torchrun` does: the same environment, a store outside of them."""

import faulthandler
import multiprocessing
import os
import signal
import subprocess
import time
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore

SECONDS = 600
"""A job that takes longer hangs; the machine may be busy."""


def work(environment: dict[str, str], arguments: list[str], log: Path, dies: tuple[int, int] | None) -> None:
    """One process of a job. dies: (step counted from 1, signal), for a process that gets this signal in that step."""
    os.environ.update(environment)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    faulthandler.enable()  # what aborts a process is seldom seen twice
    torch.set_num_threads(1)
    from wukong.cli import main
    from wukong.training.session import Session

    if dies:
        show = Session.show

        def show_and_die(self: Session, **notes: float) -> None:
            show(self, **notes)
            if self.step + 1 == dies[0]:
                os.kill(os.getpid(), dies[1])

        Session.show = show_and_die  # type: ignore[method-assign]
    raise SystemExit(main(arguments))


def environments(size: int) -> tuple[TCPStore, list[dict[str, str]]]:
    """What torchrun tells each of `size` processes, and the store that lives as long as somebody holds it."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=SECONDS))
    shared = {
        "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    if torch.cuda.device_count() < size:
        shared["CUDA_VISIBLE_DEVICES"] = ""
    return store, [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def run_programs(command: list[str], size: int) -> tuple[list[int], str]:
    """(exit codes, what they said) of a command that is started as a program in each process: these take the
    interpreter down at their end, which the forked ones of `Jobs` do not."""
    store, own = environments(size)  # the store has to live until they end
    programs = [
        subprocess.Popen(command, env=os.environ | one, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for one in own
    ]
    try:
        said = [program.communicate(timeout=SECONDS)[1] for program in programs]
        return [program.returncode for program in programs], "".join(said)
    finally:
        for program in programs:
            program.kill()
            program.wait()
        del store


class Jobs:
    """Runs jobs, one after another, and leaves no process behind."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["tests.training.warm_processes"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
            forkserver.ensure_running()

    def run(
        self, size: int, arguments: list[str], log: Path, dies: dict[int, tuple[int, int]] | None = None
    ) -> list[int]:
        """The exit codes of `size` processes. dies: by rank, see `work`."""
        store, own = environments(size)  # the store has to live until they end
        processes = [
            self.context.Process(target=work, args=(one, arguments, log, (dies or {}).get(rank)))
            for rank, one in enumerate(own)
        ]
        try:
            for process in processes:
                process.start()
            deadline = time.monotonic() + SECONDS
            for process in processes:
                process.join(max(0.0, deadline - time.monotonic()))
            codes = [process.exitcode for process in processes]
            assert None not in codes, f"a process hangs:\n{log.read_text()}"
            return [code for code in codes if code is not None]
        finally:
            for process in processes:
                if process.exitcode is None and process.pid:
                    os.kill(process.pid, signal.SIGKILL)
                    process.join()
            del store
