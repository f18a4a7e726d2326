"""Checks the environment that wukong runs in. What may be missing is imported by the check that needs it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from wukong.errors import WukongError
from wukong.files import cache_directory
from wukong.version import __version__

DISTRIBUTION = "wukong-rlhf"
EXTRAS = {
    "lexicon": "the judge `lexicon`, which scores sentiment (recipe sentiment)",
    "studio": "`wukong studio`, the web application where people label",
    "serve": "`wukong serve`, models behind an OpenAI-compatible API",
    "gguf": "`wukong import`, models from GGUF files",
    "rl": "the Gymnasium environment and Stable-Baselines3",
    "docs": "the documentation as a site (`make site`)",
    "course": "the lessons of the course, as notebooks (`make course`)",
    "dev": "tests and checks of wukong itself",
}
"""The optional parts of the installation, and what each is for."""

LITTLE_MEMORY, LITTLE_DISK, NO_DISK = 2e9, 5e9, 2e8
"""Bytes. The kitchen takes 0.9 GB of memory; its run directory and checkpoints take less than 0.2 GB."""

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """What a check found: `note` where it works but could be better, `problem` where something needed is missing."""

    level: Level
    subject: str
    text: str
    advice: str = ""
    """What to do; "" for nothing."""


def check_environment() -> Iterator[Finding]:
    """Every check's findings, one after the other. A check that fails itself is a problem too."""
    checks: list[Callable[[], Iterable[Finding]]] = [
        python,
        libraries,
        device,
        kernels,
        threads,
        memory,
        disk,
        extras,
    ]
    for check in checks:
        try:
            yield from check()
        except ImportError as error:
            yield Finding("problem", check.__name__, f"cannot be checked: {error}", f"pip install {DISTRIBUTION}")
        except (OSError, RuntimeError, WukongError) as error:
            yield Finding("problem", check.__name__, f"cannot be checked: {type(error).__name__}: {error}")


def python() -> Iterator[Finding]:
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("ok", "wukong", f"{__version__} in {Path(__file__).parents[2]}")


# ------------------------------------------------------------------------------------------------------------ packages


def libraries() -> Iterator[Finding]:
    """The packages that wukong cannot do without."""
    try:
        needed = [one for one in map(Requirement, distribution(DISTRIBUTION).requires or []) if _applies(one, "")]
    except PackageNotFoundError:
        advice = "pip install -e . in the source tree"
        yield Finding("note", "libraries", f"{DISTRIBUTION} is not installed: versions are not compared", advice)
        needed = [Requirement("torch")]
    good = []
    for requirement in needed:
        found = installed(requirement.name)
        if found is None:
            text, is_good = "is not installed", False
        else:
            text, is_good = found, requirement.specifier.contains(found, prereleases=True)
        if is_good and requirement.name != "torch":
            good.append(f"{requirement.name} {found}")
            continue
        needs = "" if is_good else f", {requirement.specifier} is needed" if found else ""
        advice = "" if is_good else f"pip install '{requirement.name}{requirement.specifier}'"
        yield Finding("ok" if is_good else "problem", requirement.name, f"{text}{needs}", advice)
    if good:
        yield Finding("ok", "libraries", ", ".join(good))


def installed(package: str) -> str | None:
    """Its version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def extras() -> Iterator[Finding]:
    """The optional parts of the installation."""
    try:
        everything = list(map(Requirement, distribution(DISTRIBUTION).requires or []))
    except PackageNotFoundError:
        return
    for extra, purpose in EXTRAS.items():
        missing = sorted(set(_missing(everything, extra)))
        if not missing:
            yield Finding("ok", "extra", f"{extra}: {purpose}")
        else:
            text = f"{extra} is not installed ({', '.join(missing)}): {purpose}"
            yield Finding("note", "extra", text, f"if you want it: pip install '{DISTRIBUTION}[{extra}]'")


def _missing(everything: list[Requirement], extra: str) -> Iterator[str]:
    """The packages of an extra that are not installed, or are too old."""
    for requirement in everything:
        if not _applies(requirement, extra) or _applies(requirement, ""):
            continue
        if requirement.name == DISTRIBUTION:
            for other in requirement.extras:
                yield from _missing(everything, other)
        elif not requirement.specifier.contains(installed(requirement.name) or "0", prereleases=True):
            yield requirement.name


# ----------------------------------------------------------------------------------------------------------- computing


def device() -> Iterator[Finding]:
    """What --device auto and --precision auto choose."""
    import torch

    from wukong.training.compute import compute_for

    compute = compute_for()
    if compute.device.type == "cuda":
        name, size = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
        yield Finding(
            "ok", "device", f"auto chooses cuda: {name}, {size / 1e9:.0f} GB, {torch.cuda.device_count()} in all"
        )
    elif compute.device.type == "mps":
        size = torch.mps.recommended_max_memory()
        yield Finding("ok", "device", f"auto chooses mps: Apple GPU, {size / 1e9:.0f} GB of the machine's memory")
    else:
        yield Finding("ok", "device", f"auto chooses cpu: {_processor()}, {torch.backends.cpu.get_cpu_capability()}")
        if shutil.which("nvidia-smi"):
            reason = "this torch was built without CUDA" if torch.version.cuda is None else "its driver may be too old"
            advice = "install the CUDA build of torch: https://pytorch.org/get-started/locally"
            yield Finding("note", "device", f"there is an NVIDIA driver, but torch cannot use a GPU ({reason})", advice)
    kind = str(compute.dtype).removeprefix("torch.")
    yield Finding("ok", "precision", f"auto chooses {kind}; weights stay float32 while training")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def kernels() -> Iterator[Finding]:
    """Whether our kernels build and give PyTorch's results."""
    import torch
    import torch.nn.functional as F

    from wukong.model.cpu import kernels as ours

    slower = "PyTorch's own kernels are used, which write responses up to twice as slowly"
    if platform.system() != "Linux" or "AVX" not in torch.backends.cpu.get_cpu_capability():
        yield Finding("note", "kernels", f"need Linux and a processor with AVX2; {slower}")
        return
    name = os.environ.get("CXX", "c++")
    if not (compiler := shutil.which(name)):
        advice = "install a C++ compiler (Debian: apt install g++), or name one in $CXX"
        yield Finding("note", "compiler", f"there is no {name}; {slower}", advice)
        return
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    yield Finding("ok", "compiler", (said.splitlines() or [compiler])[0])
    if ours.library() is None:
        yield Finding("note", "kernels", f"cannot be compiled; {slower}", "the line above says why; try another $CXX")
        return
    x = torch.linspace(-6, 6, 10_000)
    worst = float((ours.gelu(x) - F.gelu(x, approximate="tanh")).abs().max())
    if worst < 1e-5:
        yield Finding("ok", "kernels", f"ours are compiled and right (in {cache_directory()})")
    else:
        advice = f"delete {cache_directory()}; if that does not help, report it"
        yield Finding("problem", "kernels", f"ours differ from PyTorch's results by {worst:.2g}", advice)


def threads() -> Iterator[Finding]:
    """Threads of one process, and the processors it may use."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    number = torch.get_num_threads()
    text = f"{number} on {usable} of {os.cpu_count()} processors"
    if number > usable:
        yield Finding("note", "threads", f"{text}: they wait for one another", f"set OMP_NUM_THREADS={usable}")
    elif "OMP_NUM_THREADS" in os.environ:
        yield Finding("ok", "threads", f"{text}, as OMP_NUM_THREADS says")
    else:
        yield Finding("ok", "threads", text)


# -------------------------------------------------------------------------------------------------------------- places


def memory() -> Iterator[Finding]:
    import torch

    from wukong.training.memory import free_bytes, gigabytes

    free = free_bytes(torch.device("cpu"))
    if free is None:
        yield Finding("ok", "memory", "the system does not say how much is free")
    elif free < LITTLE_MEMORY:
        advice = "the recipe test needs less than any other; `wukong plan RECIPE` says what a recipe needs"
        yield Finding("note", "memory", f"{gigabytes(free)} free, which is little", advice)
    else:
        yield Finding("ok", "memory", f"{gigabytes(free)} free")


def disk() -> Iterator[Finding]:
    """The working directory, where runs/ will be, and the cache."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    text = f"{free / 1e9:,.1f} GB free in {here}"
    if not os.access(here, os.W_OK):
        yield Finding("note", "disk", f"{here} cannot be written to", "run wukong elsewhere, or give --run-dir")
    elif free < NO_DISK:
        yield Finding("problem", "disk", text, "make room, or run wukong on another disk")
    elif free < LITTLE_DISK:
        yield Finding(
            "note", "disk", f"{text}, enough for small models only", "checkpoints of GPT-2 124M take 1.5 GB each"
        )
    else:
        yield Finding("ok", "disk", text)
    cache = cache_directory()
    above = next(place for place in (cache, *cache.parents) if place.exists())
    if not os.access(above, os.W_OK):
        advice = "set XDG_CACHE_HOME to a directory that can be written"
        yield Finding("note", "cache", f"{cache} cannot be written: kernels would not be kept", advice)
