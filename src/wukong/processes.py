"""The processes of a job that `torchrun` started, and how they agree.

Every process runs the same program on the same batches, so each knows the whole of every batch; `share` says which
rows of it are its own to put through a model, and the rest of this file brings the results together. A command that
was started by itself is a job of one process: then each function here is a matter of course, and torch is not
imported.

Only the first process writes files and speaks to the person (`is_first`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from wukong.errors import RunError

PATIENCE = timedelta(days=7)
"""How long one process waits for another, which may be reading a corpus: torchrun notices by itself when one dies."""

T = TypeVar("T")
_alone = False


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def size() -> int:
    """How many processes work together just now."""
    return int(os.environ["WORLD_SIZE"]) if launched() and not _alone else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ["RANK"]) if size() > 1 else 0


def local_rank() -> int:
    """Which of the processes on this machine this is, from 0."""
    return int(os.environ["LOCAL_RANK"]) if size() > 1 else 0


def local_size() -> int:
    """How many of the processes are on this machine; all, where the launcher does not say."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", size())) if size() > 1 else 1


def is_first() -> bool:
    return rank() == 0


def _distributed() -> Any:
    """torch.distributed, joined. Numbers and objects travel by gloo, what lies on a GPU by NCCL."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        gpus = torch.cuda.device_count()
        if local_rank() < gpus:
            torch.cuda.set_device(local_rank())
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
    return dist


def join() -> None:
    """Meets the other processes; from then on "cuda" is this process's own GPU."""
    if size() > 1:
        _distributed()


def leave() -> None:
    """The end of a job that went well."""
    if size() > 1:
        wait()
        _distributed().destroy_process_group()


def end(code: int) -> None:
    """Ends a process of a job at once, with this exit code; does nothing where there is no job.

    The threads of gloo may still hold tensors of the last exchange. One that lets go of a tensor while the interpreter
    is taken down aborts the process, and torchrun would take a job that went well for one that failed.
    """
    if size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# ------------------------------------------------------------------------------------------------- who does what


def share(items: Any) -> Any:
    """This process's part of a sequence or of a tensor's rows: neighbours stay together, parts differ by one at most.

    Empty where there are fewer items than processes.
    """
    n = len(items)
    return items[rank() * n // size() : (rank() + 1) * n // size()]


@contextlib.contextmanager
def _working_alone() -> Iterator[None]:
    global _alone  # noqa: PLW0603
    _alone = True
    try:
        yield
    finally:
        _alone = False


def by_first(work: Callable[[], T]) -> T:
    """The first process works as if there were no others, while these wait; its result is everybody's."""
    if size() == 1:
        return work()
    result: list[Any] = [None]
    if is_first():
        with _working_alone():
            result[0] = work()
    _distributed().broadcast_object_list(result)
    return result[0]


def from_first(value: T) -> T:
    """What the first process has, for everybody."""
    return by_first(lambda: value)


def together(run: Callable[[Any], None], trains: bool) -> Callable[[Any], None]:
    """A stage as a job of several processes runs it: all of them train, anything else is done by the first. None goes
    on before its files are there."""

    def call(options: Any) -> None:
        if trains:
            run(options)
            wait()
        else:
            by_first(lambda: run(options))

    return call


# ------------------------------------------------------------------------------------------------- bringing together


def wait() -> None:
    """Until all have come here."""
    if size() > 1:
        gathered(list)


def sums(*values: float) -> list[float]:
    """The sum over all processes of each value."""
    return list(values) if size() == 1 else [sum(column) for column in _columns(values)]


def largest(*values: float) -> list[float]:
    """The maximum over all processes of each value."""
    return list(values) if size() == 1 else [max(column) for column in _columns(values)]


def _columns(values: tuple[float, ...]) -> Iterator[tuple[float, ...]]:
    """What each process gave, value by value. Exact, and added up in the same order everywhere."""
    import torch

    mine = torch.tensor(values, dtype=torch.float64)
    rows = [torch.empty_like(mine) for _ in range(size())]
    _distributed().all_gather(rows, mine)
    return zip(*(row.tolist() for row in rows), strict=True)


def add_up(*tensors: Any) -> None:
    """Each tensor becomes the sum of all processes' tensors."""
    if size() > 1:
        for tensor in tensors:
            _distributed().all_reduce(tensor)


def gathered(work: Callable[[], list[T]]) -> list[T]:
    """What all processes made, the first one's items first.

    Raises:
        RunError: in all of them, when it was raised in any: none waits for one that has failed.
    """
    if size() == 1:
        return work()
    made: tuple[list[T], str | None]
    try:
        made = work(), None
    except RunError as error:
        made = [], str(error)
    found: list[Any] = [None] * size()
    _distributed().all_gather_object(found, made)
    for _, problem in found:
        if problem is not None:
            raise RunError(problem)
    return [item for items, _ in found for item in items]


# ---------------------------------------------------------------------------------------------------------- failing


def is_lost(error: BaseException) -> bool:
    """Whether this error says that another process of the job is no longer there."""
    if size() == 1 or not isinstance(error, RuntimeError):
        return False
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def speaks_of_failure() -> bool:
    """Whether this process is the first of the job to report a failure: one line is enough, and those who only
    notice that another one is gone have nothing to add."""
    if size() == 1:
        return True
    import torch.distributed as dist

    try:  # torchrun's own store, which outlives the processes
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
        return store.add(f"wukong/failure/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except (RuntimeError, ValueError):  # no store, nobody to ask
        return True
