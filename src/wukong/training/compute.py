"""The device and precision of the computation."""

from __future__ import annotations

import contextlib
import ctypes
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from wukong.errors import UsageError

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Compute:
    """A device and the precision of its matrix products; weights stay float32 in training."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def wide_type(device: torch.device) -> torch.dtype:
    """The type in which sums are kept: float64, or float32 on an Apple GPU, which has no wider one."""
    return torch.float32 if device.type == "mps" else torch.float64


def wide(value: torch.Tensor) -> torch.Tensor:
    return value.to(wide_type(value.device))


def read(values: Sequence[torch.Tensor]) -> list[float]:
    """Scalars as numbers, read together, since each read waits for the device."""
    if not values:
        return []
    device = values[0].device
    return torch.stack([value.detach().to(device, wide_type(device)) for value in values]).tolist()


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def gpu_name(device: torch.device) -> str | None:
    """None for a processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple GPU" if device.type == "mps" else None


def _reuse_memory() -> None:
    """Tells glibc to keep freed memory: by default it maps and unmaps each large tensor, and the page faults take a
    large part of a small model's training time."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of <malloc.h>
        libc.mallopt(trim_threshold, ctypes.c_int(2**31 - 1))
        libc.mallopt(mmap_max, 0)


def matrix_speed(compute: Compute, rows: int, width: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Floating-point operations per second of the product (rows, width) x (width, 4 width), the best of a few."""
    x, w = (torch.ones(n, width, dtype=compute.dtype, device=compute.device) for n in (rows, 4 * width))
    times = []
    for _ in range(4):
        begin = clock()
        x @ w.T
        synchronize(compute.device)
        times.append(clock() - begin)
    return 8 * rows * width**2 / min(times)


def _clock(device: str) -> Callable[[], float]:
    """Processor time on a CPU: wall time includes what other programs take, so that chance would pick the precision of
    a run. Wall time on a GPU, and where processor time is too coarse (16 ms on Windows)."""
    fine = time.get_clock_info("process_time").resolution < 1e-4
    return time.process_time if device == "cpu" and fine else time.perf_counter


def _seconds(dtype: torch.dtype, device: str = "cpu") -> float:
    """Seconds for a billion operations; infinitely many where the device lacks the type."""
    try:
        return 1e9 / matrix_speed(Compute(torch.device(device), dtype), 2048, 256, _clock(device))
    except (RuntimeError, TypeError):  # bfloat16 on an Apple GPU before macOS 14
        return math.inf


@cache
def _bfloat16_pays(device: str) -> bool:
    """On a GPU, if it has bf16 instructions: before Ampere bf16 is emulated, and slow. A CPU that has them may still be
    slower with bf16 than with float32 (both cases were measured), so there, and on an Apple GPU, one product of each is
    timed, and bf16 must win by a clear margin."""
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            result: bool = torch.cuda.is_bf16_supported(including_emulation=False)
            return result
    if torch.device(device).type not in ("cpu", "mps"):
        return False
    return _seconds(torch.bfloat16, device) < 0.7 * _seconds(torch.float32, device)


def best_device() -> str:
    """What "auto" means here: CUDA, else an Apple GPU, else the processor."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def compute_for(precision: Precision = "auto", device: str = "auto") -> Compute:
    """Resolves "auto": a GPU if there is one, and bf16 where it is faster.

    Raises UsageError for a device unknown to PyTorch or absent from this machine.
    """
    if device == "auto":
        device = best_device()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an assertion: this PyTorch was built without CUDA
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {device} cannot be used here: {reason}") from None
    if device == "cpu":
        _reuse_memory()
    bfloat16 = precision == "bfloat16" or (precision == "auto" and _bfloat16_pays(device))
    return Compute(torch.device(device), torch.bfloat16 if bfloat16 else torch.float32)
