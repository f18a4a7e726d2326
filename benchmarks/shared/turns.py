"""Contenders that take turns: each is a process of its own, with memory of its own, that waits to be told to go.

So a change of the machine's speed meets all of them alike, and each has its own peak memory. A worker is a script
that runs `for notes in turns(): work()`, perhaps writing figures of its own into the notes.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path


def turns() -> Iterator[dict[str, float]]:
    """One turn for each line on standard input; what it took goes to standard output, with the notes made in it.

    The peak of memory is the GPU's where one is used.
    """
    import torch

    for _ in sys.stdin:
        begin, processor, notes = time.perf_counter(), time.process_time(), {}
        yield notes
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        took = {"seconds": time.perf_counter() - begin, "processor": time.process_time() - processor}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kB to GiB
        if torch.cuda.is_initialized():
            peak = torch.cuda.max_memory_allocated() / 2**30
        print(json.dumps({**took, "peak": peak, **notes}), flush=True)


class Contender:
    """A worker process, started and waiting for its turns.

    Args:
        name: as it stands in the table.
        command: what is run.
        directory: where its log goes.
        threads: of its matrix products.
        path: directories for PYTHONPATH, before those that are there.
    """

    def __init__(
        self, name: str, command: Sequence[str], directory: Path, threads: int, path: Sequence[str] = ()
    ) -> None:
        self.name, self.results = name, list[dict[str, float]]()
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "THP_MEM_ALLOC_ENABLE": "1", "HF_HUB_OFFLINE": "1"}
        if path:
            environment["PYTHONPATH"] = os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")])
        self.log = (directory / f"{name}.log").open("w+")
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
        )

    def step(self) -> dict[str, float]:
        """One turn. Raises SystemExit with the end of its log when the worker died."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{"seconds"'):
                return json.loads(line)
        self.log.seek(0)
        raise SystemExit(f"{self.name} died:\n{self.log.read()[-3000:]}")

    def median(self, name: str) -> float:
        return statistics.median(result[name] for result in self.results)

    def finish(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compete(contenders: Sequence[Contender], rounds: int) -> None:
    """Lets all take `rounds` turns each, after one that does not count, and ends them."""
    try:
        for number in range(rounds + 1):
            for contender in contenders:
                found = contender.step()
                print(contender.name, {name: round(value, 3) for name, value in found.items()}, file=sys.stderr)
                if number:
                    contender.results.append(found)
    finally:
        for contender in contenders:
            contender.finish()


def precisions_here(device: str) -> list[str]:
    """float32, and bfloat16 where its products are faster."""
    import torch

    from wukong.training.compute import compute_for

    return ["float32", "bfloat16"] if compute_for("auto", device).dtype == torch.bfloat16 else ["float32"]


def peak_speeds(precisions: Sequence[str], width: int, threads: int, device: str) -> dict[str, float]:
    """Precision -> operations a second of a large matrix product here and now."""
    import torch

    from wukong.training.compute import compute_for, matrix_speed

    torch.set_num_threads(threads)
    return {p: matrix_speed(compute_for(p, device), 2048, width) for p in precisions}
