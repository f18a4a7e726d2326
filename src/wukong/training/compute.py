"""The device and precision of the computation."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import time
from collections.abc import Sequence
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


def read(values: Sequence[torch.Tensor]) -> list[float]:
    """Scalars as numbers, read together, since each read waits for the device."""
    return (
        torch.stack([value.detach().to(values[0].device, torch.float64) for value in values]).tolist() if values else []
    )


def _reuse_memory() -> None:
    """Tells glibc to keep freed memory: by default it maps and unmaps each large tensor, and the page faults take a
    large part of a small model's training time."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of <malloc.h>
        libc.mallopt(trim_threshold, ctypes.c_int(2**31 - 1))
        libc.mallopt(mmap_max, 0)


def matrix_speed(compute: Compute, rows: int, width: int) -> float:
    """Floating-point operations per second of the product (rows, width) x (width, 4 width), the best of a few."""
    x, w = (torch.ones(n, width, dtype=compute.dtype, device=compute.device) for n in (rows, 4 * width))
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        x @ w.T
        if compute.device.type == "cuda":
            torch.cuda.synchronize(compute.device)
        times.append(time.perf_counter() - begin)
    return 8 * rows * width**2 / min(times)


def _seconds(dtype: torch.dtype) -> float:
    """Seconds for a billion operations on the CPU."""
    return 1e9 / matrix_speed(Compute(torch.device("cpu"), dtype), 2048, 256)


@cache
def _bfloat16_pays(device: str) -> bool:
    """On a GPU, if it has bf16 instructions: before Ampere bf16 is emulated, and slow. A CPU that has them may still be
    slower with bf16 than with float32 (both cases were measured), so there one product of each is timed, and bf16 must
    win by a clear margin."""
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            result: bool = torch.cuda.is_bf16_supported(including_emulation=False)
            return result
    return device == "cpu" and _seconds(torch.bfloat16) < 0.7 * _seconds(torch.float32)


def compute_for(precision: Precision = "auto", device: str = "auto") -> Compute:
    """Resolves "auto": a GPU if there is one, and bf16 where it is faster.

    Raises UsageError for a device unknown to PyTorch or absent from this machine.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an assertion: this PyTorch was built without CUDA
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {device} cannot be used here: {reason}") from None
    if device == "cpu":
        _reuse_memory()
    bfloat16 = precision == "bfloat16" or (precision == "auto" and _bfloat16_pays(device))
    return Compute(torch.device(device), torch.bfloat16 if bfloat16 else torch.float32)
