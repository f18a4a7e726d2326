"""The processes of a job started by `torchrun`, and their collectives.

Every process runs the same program on the same batches, so each knows the whole of every batch; `local_part` says
which rows this process puts through a model, and the collectives combine the results. A command started without
torchrun is a job of one process: every function is then a no-op, and torch is not imported.

Only the first process writes files and prints (`is_first`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from wukong.errors import RunError

TIMEOUT = timedelta(days=7)
"""How long one process waits for another, which may be reading a corpus; torchrun itself notices when one dies."""

T = TypeVar("T")
_alone = False


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def world_size() -> int:
    """The number of processes; 1 inside `run_on_first`."""
    return int(os.environ["WORLD_SIZE"]) if launched() and not _alone else 1


def rank() -> int:
    """The rank of this process, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def local_rank() -> int:
    """The rank of this process among those on this machine, from 0."""
    return int(os.environ["LOCAL_RANK"]) if world_size() > 1 else 0


def local_world_size() -> int:
    """The number of processes on this machine; all of them if the launcher does not say."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) if world_size() > 1 else 1


def is_first() -> bool:
    return rank() == 0


def _distributed() -> Any:
    """torch.distributed, initialised. CPU tensors and objects use gloo, GPU tensors NCCL."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        gpus = torch.cuda.device_count()
        if local_rank() < gpus:
            torch.cuda.set_device(local_rank())
        dist.Backend.register_backend(GLOO, _gloo_of_one_thread, devices=["cpu"])
        dist.init_process_group(f"cpu:{GLOO},cuda:nccl" if gpus else GLOO, timeout=TIMEOUT)
    return dist


GLOO = "gloo_of_one_thread"
"""Our name for the backend of CPU tensors."""


def _gloo_of_one_thread(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    """Gloo as torch makes it, but for one thread that runs the collectives instead of two.

    Of two threads each notes the name of its collective in one string without a lock (`ProcessGroupGloo::runLoop`,
    PyTorch 2.13). A name of more than 15 characters lies on the heap, such as that of the gathers of a sharded tensor:
    when the threads meet, they free it twice or write into what is freed.
    """
    from torch.distributed import ProcessGroupGloo

    gloo: Any = ProcessGroupGloo
    options = gloo._Options()
    interfaces = [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    options._devices = [gloo.create_device(interface=name) for name in interfaces] or [gloo.create_default_device()]
    options._timeout, options._threads = timeout, 1
    return gloo(store, rank, size, options)


def join() -> None:
    """Joins the process group; from then on "cuda" is this process's GPU."""
    if world_size() > 1:
        _distributed()


def leave() -> None:
    """Leaves the process group after a successful run."""
    if world_size() > 1:
        barrier()
        _distributed().destroy_process_group()


def exit_now(code: int) -> None:
    """Exits a process of a job at once with this code; does nothing in a job of one process.

    Gloo's threads may still hold tensors of the last collective. One that frees a tensor during interpreter shutdown
    aborts the process, and torchrun would report a successful job as failed.
    """
    if world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# ------------------------------------------------------------------------------------------------- dividing work


def local_part(items: Any) -> Any:
    """This process's contiguous part of a sequence or of a tensor's rows; part sizes differ by at most one.

    May be empty if there are fewer items than processes.
    """
    n = len(items)
    return items[rank() * n // world_size() : (rank() + 1) * n // world_size()]


@contextlib.contextmanager
def _working_alone() -> Iterator[None]:
    global _alone  # noqa: PLW0603
    _alone = True
    try:
        yield
    finally:
        _alone = False


def run_on_first(work: Callable[[], T]) -> T:
    """Runs `work` on the first process, as a job of one, while the others wait; all return its result."""
    if world_size() == 1:
        return work()
    result: list[Any] = [None]
    if is_first():
        with _working_alone():
            result[0] = work()
    _distributed().broadcast_object_list(result)
    value: T = result[0]
    return value


def broadcast(value: T) -> T:
    """The first process's value, on all processes."""
    return run_on_first(lambda: value)


def distributed(run: Callable[[Any], None], trains: bool) -> Callable[[Any], None]:
    """A stage for a job of several processes: training runs on all of them, anything else on the first. No process
    continues until the stage's files are written."""

    def call(options: Any) -> None:
        if trains:
            run(options)
            barrier()
        else:
            run_on_first(lambda: run(options))

    return call


# ------------------------------------------------------------------------------------------------- collectives


def barrier() -> None:
    """Waits until all processes arrive."""
    if world_size() > 1:
        all_gather(list)


def all_reduce_sum(*values: float) -> list[float]:
    """The sum of each value over all processes."""
    return list(values) if world_size() == 1 else [sum(column) for column in _columns(values)]


def all_reduce_max(*values: float) -> list[float]:
    """The maximum of each value over all processes."""
    return list(values) if world_size() == 1 else [max(column) for column in _columns(values)]


def _columns(values: tuple[float, ...]) -> Iterator[tuple[float, ...]]:
    """Each value from all processes, in rank order, so that every process adds in the same order."""
    import torch

    mine = torch.tensor(values, dtype=torch.float64)
    rows = [torch.empty_like(mine) for _ in range(world_size())]
    _distributed().all_gather(rows, mine)
    return zip(*(row.tolist() for row in rows), strict=True)


def all_reduce(*tensors: Any) -> None:
    """Sums each tensor over all processes, in place."""
    if world_size() > 1:
        for tensor in tensors:
            _distributed().all_reduce(tensor)


def all_gather(work: Callable[[], list[T]]) -> list[T]:
    """The items from all processes, in rank order.

    Raises:
        RunError: on all processes if `work` raised it on any, so that none waits for one that failed.
    """
    if world_size() == 1:
        return work()
    made: tuple[list[T], str | None]
    try:
        made = work(), None
    except RunError as error:
        made = [], str(error)
    found: list[Any] = [None] * world_size()
    _distributed().all_gather_object(found, made)
    for _, problem in found:
        if problem is not None:
            raise RunError(problem)
    return [item for items, _ in found for item in items]


# ---------------------------------------------------------------------------------------------------------- failures


def is_peer_loss(error: BaseException) -> bool:
    """Whether this error says that another process of the job is gone."""
    if world_size() == 1 or not isinstance(error, RuntimeError):
        return False
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def reports_failure() -> bool:
    """Whether this process is the first of the job to report a failure. One line is enough: processes that only
    notice the loss of another have nothing to add."""
    if world_size() == 1:
        return True
    import torch.distributed as dist

    try:  # torchrun's own store, which outlives the processes
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
        return store.add(f"wukong/failure/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except (RuntimeError, ValueError):  # no store left to ask
        return True
