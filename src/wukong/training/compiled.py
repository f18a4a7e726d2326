"""torch.compile for training passes of a constant shape, where it makes them faster.

It does not always, so it is measured. Compiling takes from half a minute to minutes: only runs long enough to recover
that measure it, and the result is cached per machine, PyTorch, model and shape. A resumed run keeps its first choice,
since compiled and eager passes round differently.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from wukong import processes
from wukong.console import say
from wukong.errors import UsageError
from wukong.files import cache_directory, read_json, write_json
from wukong.model.language_model import LanguageModel
from wukong.training.compute import Compute, gpu_name, matrix_speed, synchronize
from wukong.training.parallel import is_sharded
from wukong.training.session import Session

Compile = Literal["auto", "on", "off"]
Loss = Callable[[LanguageModel, Tensor, Compute], Tensor]

LONG_SECONDS = 30 * 60.0
"""auto measures only in runs estimated to take longer than this."""


def compiled_where_faster(
    session: Session, choice: Compile, model: LanguageModel, loss: Loss, ids: Tensor, passes: int
) -> LanguageModel:
    """The model, or a compiled version with the same parameters.

    Args:
        loss: of a model and a micro-batch.
        ids: a full micro-batch, of the usual shape.
        passes: the number of passes in the run.

    Raises:
        UsageError: it should be compiled but cannot be.
    """
    if is_sharded(model):
        if choice == "on":
            raise UsageError("--compile on: a sharded model (--parallel fsdp) cannot be compiled")
        return model
    if "compiled" not in session.state:
        session.state["compiled"] = choice == "on" or (
            choice == "auto" and processes.run_on_first(lambda: _pays(session.compute, model, loss, ids, passes))
        )
    if not session.state["compiled"]:
        return model
    compiled = _compiled(model)
    try:
        _pass(compiled, loss, ids, session.compute)
    except RuntimeError as error:
        raise UsageError(f"--compile {choice}: {_reason(error)}; take --compile off") from error
    finally:
        model.zero_grad()
    return compiled


def _compiled(model: LanguageModel) -> LanguageModel:
    return cast(LanguageModel, torch.compile(model, dynamic=False))


def _pays(compute: Compute, model: LanguageModel, loss: Loss, ids: Tensor, passes: int) -> bool:
    """Whether compiling is faster, measured now or cached; False without measuring for a short run."""
    arithmetic = 6.0 * model.n_parameters() * ids.numel()
    if passes * arithmetic / matrix_speed(compute, 2048, model.config.n_embd) < LONG_SECONDS:
        return False
    file = _memory(f"{model.config} {model.checkpoint_blocks} {tuple(ids.shape)} {compute.dtype}", compute.device)
    if not file.exists():
        say("measuring whether compiled passes are faster: a minute or two, once for this and later runs")
        try:
            candidates = {"eager": model, "compiled": _compiled(model)}
            seconds = {name: _seconds(one, loss, ids, compute) for name, one in candidates.items()}
        except RuntimeError as error:
            say("no: {reason}", reason=_reason(error))
            return False
        finally:
            model.zero_grad()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, seconds)
    seconds = read_json(file)
    faster = seconds["compiled"] < seconds["eager"]
    say(
        "a pass takes {eager:.3g} s, compiled {compiled:.3g} s ({file})",
        eager=seconds["eager"],
        compiled=seconds["compiled"],
        file=file,
    )
    result: bool = faster
    return result


def _pass(model: LanguageModel, loss: Loss, ids: Tensor, compute: Compute) -> None:
    loss(model, ids, compute).backward()
    synchronize(ids.device)


def _seconds(model: LanguageModel, loss: Loss, ids: Tensor, compute: Compute) -> float:
    """The best of three passes, after one that compiles or warms up."""
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        _pass(model, loss, ids, compute)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def _memory(what: str, device: torch.device) -> Path:
    """The cache file of this measurement on this machine."""
    name = gpu_name(device) or ""
    if device.type != "cuda":
        name += f"{platform.machine()} {platform.node()}"
    key = f"{torch.__version__} {device.type} {name} {torch.get_num_threads()} {what}"
    return cache_directory() / f"compiled-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _reason(error: RuntimeError) -> str:
    return f"torch.compile does not work here ({next(iter(str(error).strip().splitlines()), type(error).__name__)})"
