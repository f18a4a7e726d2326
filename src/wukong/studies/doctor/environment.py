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

from wukong.errors import Text, WukongError
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
    """A `Text`, or a name that is the same in every language."""
    advice: str = ""
    """What to do, a `Text`; "" for nothing."""


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
            yield _unchecked(check.__name__, error, f"pip install {DISTRIBUTION}")
        except (OSError, RuntimeError, WukongError) as error:
            yield _unchecked(check.__name__, f"{type(error).__name__}: {error}")


def _unchecked(subject: str, reason: object, advice: str = "") -> Finding:
    return Finding("problem", subject, Text("cannot be checked: {reason}", reason=reason), advice)


def python() -> Iterator[Finding]:
    system = f"{platform.system()} {platform.machine()}"
    yield Finding("ok", "python", Text("{version} on {system}", version=platform.python_version(), system=system))
    yield Finding("ok", "wukong", Text("{version} in {place}", version=__version__, place=Path(__file__).parents[2]))


# ------------------------------------------------------------------------------------------------------------ packages


def libraries() -> Iterator[Finding]:
    """The packages that wukong cannot do without."""
    try:
        needed = [one for one in map(Requirement, distribution(DISTRIBUTION).requires or []) if _applies(one, "")]
    except PackageNotFoundError:
        text = Text("{name} is not installed: versions are not compared", name=DISTRIBUTION)
        yield Finding("note", "libraries", text, Text("pip install -e . in the source tree"))
        needed = [Requirement("torch")]
    good = []
    for requirement in needed:
        found = installed(requirement.name)
        if found and requirement.specifier.contains(found, prereleases=True):
            if requirement.name == "torch":
                yield Finding("ok", requirement.name, found)
            else:
                good.append(f"{requirement.name} {found}")
            continue
        text = Text("is not installed")
        if found:
            text = Text("{version}, {needed} is needed", version=found, needed=requirement.specifier)
        yield Finding("problem", requirement.name, text, f"pip install '{requirement.name}{requirement.specifier}'")
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
            yield Finding("ok", "extra", Text("{name}: {purpose}", name=extra, purpose=Text(purpose)))
        else:
            text = Text(
                "{name} is not installed ({packages}): {purpose}",
                name=extra,
                packages=", ".join(missing),
                purpose=Text(purpose),
            )
            command = f"pip install '{DISTRIBUTION}[{extra}]'"
            yield Finding("note", "extra", text, Text("if you want it: {command}", command=command))


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
        text = Text(
            "auto chooses cuda: {name}, {size:.0f} GB, {n} in all",
            name=torch.cuda.get_device_name(),
            size=torch.cuda.get_device_properties(0).total_memory / 1e9,
            n=torch.cuda.device_count(),
        )
        yield Finding("ok", "device", text)
    elif compute.device.type == "mps":
        size = torch.mps.recommended_max_memory() / 1e9
        text = Text("auto chooses mps: Apple GPU, {size:.0f} GB of the machine's memory", size=size)
        yield Finding("ok", "device", text)
    else:
        able = torch.backends.cpu.get_cpu_capability()
        yield Finding("ok", "device", Text("auto chooses cpu: {name}, {able}", name=_processor(), able=able))
        if shutil.which("nvidia-smi"):
            built_without = torch.version.cuda is None
            reason = Text("this torch was built without CUDA" if built_without else "its driver may be too old")
            text = Text("there is an NVIDIA driver, but torch cannot use a GPU ({reason})", reason=reason)
            advice = Text("install the CUDA build of torch: {url}", url="https://pytorch.org/get-started/locally")
            yield Finding("note", "device", text, advice)
    kind = str(compute.dtype).removeprefix("torch.")
    yield Finding("ok", "precision", Text("auto chooses {kind}; weights stay float32 while training", kind=kind))


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

    slower = Text("PyTorch's own kernels are used, which write responses up to twice as slowly")
    if platform.system() != "Linux" or "AVX" not in torch.backends.cpu.get_cpu_capability():
        text = Text("need Linux and a processor with AVX2; {consequence}", consequence=slower)
        yield Finding("note", "kernels", text)
        return
    name = os.environ.get("CXX", "c++")
    if not (compiler := shutil.which(name)):
        text = Text("there is no {name}; {consequence}", name=name, consequence=slower)
        advice = Text("install a C++ compiler (Debian: apt install g++), or name one in $CXX")
        yield Finding("note", "compiler", text, advice)
        return
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    yield Finding("ok", "compiler", (said.splitlines() or [compiler])[0])
    if ours.library() is None:
        text = Text("cannot be compiled; {consequence}", consequence=slower)
        yield Finding("note", "kernels", text, Text("the line above says why; try another $CXX"))
        return
    x = torch.linspace(-6, 6, 10_000)
    worst = float((ours.gelu(x) - F.gelu(x, approximate="tanh")).abs().max())
    if worst < 1e-5:
        yield Finding("ok", "kernels", Text("ours are compiled and right (in {place})", place=cache_directory()))
    else:
        text = Text("ours differ from PyTorch's results by {x:.2g}", x=worst)
        advice = Text("delete {place}; if that does not help, report it", place=cache_directory())
        yield Finding("problem", "kernels", text, advice)


def threads() -> Iterator[Finding]:
    """Threads of one process, and the processors it may use."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    number = torch.get_num_threads()
    text = Text("{n} on {usable} of {all} processors", n=number, usable=usable, all=os.cpu_count())
    if number > usable:
        advice = Text("set OMP_NUM_THREADS={n}", n=usable)
        yield Finding("note", "threads", Text("{threads}: they wait for one another", threads=text), advice)
    elif "OMP_NUM_THREADS" in os.environ:
        yield Finding("ok", "threads", Text("{threads}, as OMP_NUM_THREADS says", threads=text))
    else:
        yield Finding("ok", "threads", text)


# -------------------------------------------------------------------------------------------------------------- places


def memory() -> Iterator[Finding]:
    import torch

    from wukong.training.memory import free_bytes, gigabytes

    free = free_bytes(torch.device("cpu"))
    if free is None:
        yield Finding("ok", "memory", Text("the system does not say how much is free"))
    elif free < LITTLE_MEMORY:
        advice = Text("the recipe test needs less than any other; `wukong plan RECIPE` says what a recipe needs")
        yield Finding("note", "memory", Text("{size} free, which is little", size=gigabytes(free)), advice)
    else:
        yield Finding("ok", "memory", Text("{size} free", size=gigabytes(free)))


def disk() -> Iterator[Finding]:
    """The working directory, where runs/ will be, and the cache."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    text = Text("{size:,.1f} GB free in {place}", size=free / 1e9, place=here)
    if not os.access(here, os.W_OK):
        refused = Text("{place} cannot be written to", place=here)
        yield Finding("note", "disk", refused, Text("run wukong elsewhere, or give --run-dir"))
    elif free < NO_DISK:
        yield Finding("problem", "disk", text, Text("make room, or run wukong on another disk"))
    elif free < LITTLE_DISK:
        little = Text("{room}, enough for small models only", room=text)
        yield Finding("note", "disk", little, Text("checkpoints of GPT-2 124M take 1.5 GB each"))
    else:
        yield Finding("ok", "disk", text)
    cache = cache_directory()
    above = next(place for place in (cache, *cache.parents) if place.exists())
    if not os.access(above, os.W_OK):
        text = Text("{place} cannot be written: kernels would not be kept", place=cache)
        yield Finding("note", "cache", text, Text("set XDG_CACHE_HOME to a directory that can be written"))
