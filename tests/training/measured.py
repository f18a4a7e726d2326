"""Runs one command of wukong and writes down what memory it took beyond the idle program, for test_memory.py:

python measured.py OUT COMMAND...
"""

import importlib
import resource
import sys
from pathlib import Path

import torch

from wukong import processes
from wukong.cli import main
from wukong.stages import pretrain, reward, sft  # noqa: F401 read now, so that they count as idle


def resident() -> int:
    """Bytes in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(out: str, *command: str) -> int:
    torch.set_num_threads(1)
    x = torch.ones(64, 64, requires_grad=True)
    (torch.nn.functional.gelu(x @ x).sum()).backward()  # reads PyTorch's kernels and starts its threads
    if processes.world_size() > 1:
        processes.join()
        importlib.import_module("torch.distributed.fsdp")
    idle = resident()
    code = main(list(command))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # of Linux, in KiB
    Path(f"{out}.{processes.rank()}").write_text(str(peak - idle))
    return code


if __name__ == "__main__":
    code = measure(*sys.argv[1:])
    processes.exit_now(code)
    raise SystemExit(code)
