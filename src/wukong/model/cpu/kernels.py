"""Our CPU kernels (kernels.cpp) for decoding and GELU, compiled for this machine on first use.

They are used on Linux with a C++ compiler and at least AVX2. Elsewhere PyTorch's kernels are used, whose results agree
up to rounding.

$WUKONG_SANITIZE names sanitizers to compile them with, for example "address,undefined"; the first needs the compiler's
libasan.so in $LD_PRELOAD (benchmarks/stress/decoder.py does both).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wukong.console import say
from wukong.files import cache_directory

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fopenmp", "-Wno-psabi", "-mtune=haswell")


_chosen: list[ctypes.CDLL | None] = []


def library() -> ctypes.CDLL | None:
    """The kernels in use: this machine's, or those of the `using` block around the call; None where there are none."""
    return _chosen[-1] if _chosen else compiled()


@contextlib.contextmanager
def using(kernels: ctypes.CDLL | None) -> Iterator[None]:
    """Within the block these kernels are used, in all threads; None: PyTorch's alone."""
    _chosen.append(kernels)
    try:
        yield
    finally:
        _chosen.pop()


@functools.cache
def compiled() -> ctypes.CDLL | None:
    """This machine's own kernels; None where they cannot be had. Says so once where only a compiler is missing."""
    if platform.system() != "Linux" or "AVX" not in torch.backends.cpu.get_cpu_capability():
        return None
    compiler = os.environ.get("CXX", "c++")
    if not shutil.which(compiler):
        say(
            "no C++ compiler ({compiler}): using PyTorch's kernels, which take up to twice as long to write responses",
            compiler=compiler,
        )
        return None
    try:
        return load(compiler, "native", os.environ.get("WUKONG_SANITIZE", ""))
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr.strip().splitlines() if isinstance(error, subprocess.CalledProcessError) else [str(error)]
        say(
            "{name} cannot be compiled ({problem}): using PyTorch's kernels",
            name=SOURCE.name,
            problem=next(iter(said), error),
        )
        return None


def load(compiler: str, processor: str, sanitizers: str = "") -> ctypes.CDLL:
    """The kernels, compiled for a processor (GCC's -march name) unless cached.

    sanitizers: comma-separated names (GCC's -fsanitize); a finding ends the process.

    Raises OSError or CalledProcessError if they cannot be compiled or loaded.
    """
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    checks = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-g"] if sanitizers else []
    sources = [path.read_text() for path in (SOURCE, *sorted(SOURCE.parent.glob("*.hpp")))]
    key = "\n".join([*sources, *FLAGS, *checks, processor, version, _instructions(), torch.__version__])
    file = cache_directory() / f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        # Linked with the OpenMP that PyTorch has loaded: two thread pools would compete.
        own = sorted(map(str, (Path(torch.__file__).parent / "lib").glob("libgomp*.so*")))
        with tempfile.TemporaryDirectory(dir=file.parent) as directory:
            objects, built = f"{directory}/kernels.o", f"{directory}/kernels.so"
            for command in (
                [compiler, *FLAGS, *checks, f"-march={processor}", "-c", str(SOURCE), "-o", objects],
                [compiler, *checks, "-shared", objects, *(own or ["-lgomp"]), "-o", built],
            ):
                subprocess.run(command, check=True, capture_output=True, text=True)
            os.replace(built, file)  # atomic: other processes may be building it too
    kernels = ctypes.CDLL(str(file))
    tensor, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    for name, arguments in {
        "width": [],
        "linear": [tensor, tensor, number, tensor, tensor, size, size, size, number],
        "scratch": [tensor, size],
        "layer": [tensor, tensor, tensor, tensor, tensor, tensor, tensor, tensor, size, size, number],
        "draw": [tensor, tensor, tensor, tensor, tensor, size, size, number],
        "gelu": [tensor, tensor, size, number],
        "gelu_backward": [tensor, tensor, tensor, size, number],
    }.items():
        function = getattr(kernels, f"wukong_{name}")
        function.argtypes, function.restype = arguments, {"width": number, "scratch": size, "layer": size}.get(name)
    return kernels


def _instructions() -> str:
    """What "native" resolves to: different machines may share a home directory."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith("flags")), "")


class _GELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: ctypes.CDLL) -> Tensor:
        ctx.kernels, x = kernels, x.contiguous()
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        kernels.wukong_gelu(x.data_ptr(), y.data_ptr(), x.numel(), torch.get_num_threads())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,), gradient = ctx.saved_tensors, gradient.contiguous()
        y = torch.empty_like(x)
        ctx.kernels.wukong_gelu_backward(
            gradient.data_ptr(), x.data_ptr(), y.data_ptr(), x.numel(), torch.get_num_threads()
        )
        return y, None


def gelu(x: Tensor) -> Tensor:
    """GELU in the tanh approximation, as in GPT-2; PyTorch's takes two to three times as long on a CPU.

    Under `torch.compile` it stays PyTorch's, which is fused with neighbouring operations.
    """
    ours = x.dtype == torch.float32 and x.device.type == "cpu" and not torch.compiler.is_compiling()
    if ours and (kernels := library()):
        result: Tensor = cast(Any, _GELU).apply(x, kernels)
        return result
    return F.gelu(x, approximate="tanh")


def draw(kernels: ctypes.CDLL, logits: Tensor, temperatures: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Samples a token for each row by inverse CDF, and its log-prob at that temperature.

    logits: (B, V) float32; temperatures: (B,), 0 for the likeliest token; u: (B,) in [0, 1). Returns (B,) int64 and
    (B,) float32. Raises ValueError for other shapes or types: the kernel would read past the end.
    """
    (B, V), logits, temperatures, u = logits.shape, *(t.contiguous() for t in (logits, temperatures, u))
    if not (logits.dtype == temperatures.dtype == u.dtype == torch.float32 and len(temperatures) == len(u) == B and V):
        given = ", ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in (logits, temperatures, u))
        raise ValueError(f"not logits (B, V), temperatures (B,) and u (B,) in float32: {given}")
    tokens, logprobs = logits.new_empty(B, dtype=torch.int64), logits.new_empty(B)
    pointers = (tensor.data_ptr() for tensor in (logits, temperatures, u, tokens, logprobs))
    kernels.wukong_draw(*pointers, B, V, torch.get_num_threads())
    return tokens, logprobs
