"""What every training stage shares: optimiser, schedule, seeding, checkpoints, metrics, progress, a clean stop.

A stage reads top to bottom as a plain loop:

    with Session(options, {"model": model}, total_steps=1000) as session:
        for step in session.steps():
            loss = ...
            session.backward(loss)
            session.optimizer_step()
            session.log(loss=loss.item())
    session.finish(run, save, results)

All randomness of a step is a function of (seed, step): no random state is carried between steps, so a resumed run
equals an uninterrupted one bit for bit without saving any.
"""

from __future__ import annotations

import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wukong import processes
from wukong.console import Bar, say
from wukong.data.batches import micro_batches
from wukong.errors import RunError, Text, UsageError
from wukong.files import atomic_directory, disk_errors, follow_umask, sync_directory, sync_file
from wukong.language import joined
from wukong.model.decoding import decoding_path
from wukong.model.language_model import LanguageModel
from wukong.options import StageOptions
from wukong.provenance import StageRun
from wukong.seeds import derived_seed
from wukong.training import parallel
from wukong.training.checkpoint import list_checkpoints, load_latest, prune_checkpoints, save_checkpoint
from wukong.training.compute import Compute, Precision, best_device, compute_for, gpu_name, read
from wukong.training.memory import Workload, estimate, fitting_tokens, free_bytes, gigabytes
from wukong.training.metrics import JsonLines, MetricsLog
from wukong.training.optimizer import Algorithm, optimizer_of
from wukong.training.parallel import Parallel
from wukong.training.tuning import hold_frozen

Item = TypeVar("Item")


class TrainOptions(StageOptions):
    """The options of every stage that trains."""

    lr: float | None = Field(None, gt=0)
    """Peak learning rate."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from 0."""
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    """The final learning rate, as a fraction of the peak."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay, on matrices and embeddings only (not on biases and LayerNorms)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the two moments."""
    adam_eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon, added outside the square root."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Maximum gradient norm, per model; 0 switches clipping off."""
    micro_batch_tokens: int = Field(8192, ge=1)
    """Maximum tokens (including padding) per forward pass; larger batches are accumulated. Reduced automatically if
    memory is short."""
    gradient_checkpointing: bool = False
    """Keep only some activations and recompute the others in the backward pass: for long contexts or little memory, at
    a third more time."""
    precision: Precision = "auto"
    """bfloat16 matrix products where they are faster, or as named; weights stay float32."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps (an Apple GPU)."""
    parallel: Parallel = "ddp"
    """With several processes (torchrun): ddp (each holds the whole model) or fsdp (each holds a shard of it)."""
    checkpoint_seconds: float = Field(60.0, ge=0)
    """Time between checkpoints; 0 writes one after every step."""
    log_every: int = Field(10, ge=1)
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = True
    """Also write TensorBoard event files."""


class Interrupted(SystemExit):
    """Stopped by SIGINT or SIGTERM, with a checkpoint. The exit code is 128 + the signal, as shells expect."""


def _compute(options: TrainOptions) -> Compute:
    """This process's device, and the precision chosen by the first process."""
    processes.join()
    if processes.world_size() == 1:
        return compute_for(options.precision, options.device)
    # gloo and NCCL do not reach an Apple GPU, of which there is one.
    several = "cpu" if options.device == "auto" and best_device() == "mps" else options.device
    compute = compute_for(options.precision, several)
    if compute.device.type == "mps":
        raise UsageError(f"--device {options.device}: several processes cannot share an Apple GPU: use --device cpu")
    if compute.device.type == "cuda":
        if compute.device.index is not None:
            raise UsageError(f"--device {options.device}: each process takes its own GPU: use --device cuda")
        gpus, place = torch.cuda.device_count(), processes.local_rank()
        if place >= gpus:
            raise UsageError(f"{place + 1} processes or more on a machine with {gpus} GPUs; start one for each GPU")
    return Compute(compute.device, processes.broadcast(compute.dtype))


def lr_factor(step: int, total: int, options: TrainOptions) -> float:
    """The learning rate at `step` (0-based) as a fraction of the peak: linear warm-up, then the schedule."""
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    progress = (step - options.warmup_steps) / max(1, total - options.warmup_steps)
    shape = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    return options.min_lr_ratio + (1 - options.min_lr_ratio) * shape[options.lr_schedule]


class Session:
    """One training run in `options.out`, new or resumed.

    Args:
        options: the stage's options.
        modules: the trained modules, by name. A parameter without gradient is frozen: not updated, not saved.
        total_steps: the number of steps in the run.
        title: the progress bar's title.
        state: what the stage keeps between steps besides the weights (JSON values), with initial values; after a
            resume `session.state` holds the checkpoint's.
        lr: the peak learning rate.
        optimizer: its algorithm.
        workload: what the stage holds besides the modules and its tokens per step, for the memory estimate.

    `micro_batch_tokens` is what fits in memory, at most the option of this name.
    """

    def __init__(
        self,
        options: TrainOptions,
        modules: dict[str, nn.Module],
        total_steps: int,
        title: str,
        state: dict[str, Any] | None = None,
        *,
        lr: float,
        optimizer: Algorithm = "adamw",
        workload: Workload | None = None,
    ) -> None:
        self.options, self.modules, self.total_steps, self.lr = options, modules, total_steps, lr
        self.compute = _compute(options)
        self.checkpoints = options.out / "checkpoints"
        for module in modules.values():
            parallel.place(module, options.parallel, self.compute.device)
        self.optimizer = optimizer_of(
            modules.values(),
            optimizer,
            lr=lr,
            weight_decay=options.weight_decay,
            betas=options.betas,
            eps=options.adam_eps,
            sharded=self.is_sharded,
        )
        if processes.is_first():
            options.out.mkdir(parents=True, exist_ok=True)
        self.start, saved = load_latest(self.checkpoints, modules, self.optimizer)
        self.state = {**(state or {}), **saved}
        if "dtype" in self.state:  # what "auto" chose at the start applies to the whole run
            self.compute = Compute(self.compute.device, getattr(torch, self.state["dtype"]))
        self.state["dtype"] = str(self.compute.dtype).removeprefix("torch.")
        for module in modules.values():
            if not self.is_sharded:  # the parts of a shard have one precision
                hold_frozen(module, self.compute.dtype)
        self.workload = self._workload(workload)
        computing = [Text("{name} {value}", name=Text(name), value=one) for name, one in self.compute_record().items()]
        say("{title}: {computing}", title=title, computing=joined(computing))
        self.micro_batch_tokens = self._fit_memory(title)
        if self.start:
            say(
                "{title}: resuming after step {start:,} of {total_steps:,}",
                title=title,
                start=self.start,
                total_steps=total_steps,
            )
        self.step = self.start
        self.metrics = MetricsLog(options.out, self.start, options.tensorboard)
        self._files: list[JsonLines] = []
        self.samples = self.lines("samples.jsonl")
        self.bar = Bar(title, total_steps, done=self.start)
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}
        self._latest: dict[str, float] = {}
        self._evaluated = False
        self._losses: list[Tensor] = []
        self.loss = 0.0
        self._tokens, self._clock, self._saved_at = 0, time.monotonic(), time.monotonic()

    def _workload(self, given: Workload | None) -> Workload:
        trunks = [m for module in self.modules.values() for m in module.modules() if isinstance(m, LanguageModel)]
        for trunk in trunks:
            trunk.checkpoint_blocks = self.options.gradient_checkpointing
        return replace(
            given or Workload(self.options.micro_batch_tokens),
            trained=tuple(trunk.config for trunk in trunks),
            processes=processes.world_size(),
            sharded=self.is_sharded,
            checkpointing=self.options.gradient_checkpointing,
        )

    def compute_record(self) -> dict[str, str | int]:
        """The device and precision of this run, with "auto" resolved: for display and for provenance.json."""
        device, dtype = self.compute.device, self.compute.dtype
        record: dict[str, str | int] = {"device": str(device), "precision": str(dtype).removeprefix("torch.")}
        if name := gpu_name(device):
            record["gpu"] = name
        record["threads"] = torch.get_num_threads()
        if processes.world_size() > 1:
            record |= {"processes": processes.world_size(), "parallel": self.options.parallel}
        if self.workload.decoding is not None:
            record["decoding"] = decoding_path(self.workload.decoding.config, device, dtype)
        return record

    def _fit_memory(self, title: str) -> int:
        """Prints the memory estimate and returns the maximum micro-batch size in tokens. A resumed run keeps its
        original size: sums in a different order differ in their last bits."""
        limit, free, compute = self.options.micro_batch_tokens, free_bytes(self.compute.device), self.compute
        most = math.inf if free is None else free
        tokens = fitting_tokens(self.workload, compute.device, compute.dtype, limit, most)
        tokens = round(-processes.all_reduce_max(-tokens)[0])  # the smallest that fits on any machine
        tokens = self.state.setdefault("micro_batch_tokens", tokens)
        found = estimate(self.workload, compute.device, compute.dtype, tokens)
        parts = {
            "weights": found.weights,
            "gradients and moments": found.gradients + found.moments,
            "frozen models": found.frozen,
            "decoding": found.decoding,
            Text("micro-batches of {tokens:,} tokens", tokens=tokens): found.step,
        }
        listed = [
            Text("{name} {value}", name=Text(name), value=gigabytes(size)) for name, size in parts.items() if size
        ]
        say(
            "{title}: about {size} of memory per process ({parts}); {free} is free",
            title=title,
            size=gigabytes(found.total),
            parts=joined(listed),
            free=Text("an unknown amount") if free is None else gigabytes(free),
        )
        if tokens < limit:
            say(
                "{title}: micro-batches of {tokens:,} tokens, {limit:,} would not fit",
                title=title,
                tokens=tokens,
                limit=limit,
            )
        result: int = tokens
        return result

    # -------------------------------------------------------------------------------------------- the loop

    def __enter__(self) -> Session:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)
        self.bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self.bar.__exit__(kind, error, trace)
        self.metrics.close()
        for file in self._files:
            file.close()

    def _on_signal(self, number: int, frame: object) -> None:
        # A second Ctrl-C stops at once, without waiting for the step. (Not with several processes: each gets the signal
        # twice, from the terminal and from torchrun, and none may leave before the others.)
        if self._signal is not None and processes.world_size() == 1:
            raise Interrupted(128 + number)
        self._signal = number
        say("stopping after this step, with a checkpoint (press Ctrl-C again to stop at once)")

    def steps(self) -> Iterator[int]:
        """The remaining 0-based step numbers."""
        for step in range(self.start, self.total_steps):
            self.step = step
            # Each process has its own dropout masks, since its rows differ.
            own = (processes.rank(),) if processes.rank() else ()
            torch.manual_seed(derived_seed(self.options.seed, "step", step, *own))
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * lr_factor(step, self.total_steps, self.options)
            yield step
            self._after_step()

    def _after_step(self) -> None:
        done = self.step + 1
        now = time.monotonic()
        if self._evaluated or done % self.options.log_every == 0 or done == self.total_steps:
            self.write_metrics()
        # A signal to one process, or the first clock to expire, acts on all after the same step.
        late = now - self._saved_at >= self.options.checkpoint_seconds
        signal_number, is_due = map(int, processes.all_reduce_max(self._signal or 0, late))
        if signal_number:
            self.checkpoint(done)
            say("stopped after step {done:,}; run the same command to resume", done=done)
            raise Interrupted(128 + signal_number)
        if is_due and done < self.total_steps:
            self.checkpoint(done)

    def write_metrics(self) -> None:
        """Writes this step's metrics; a stage about to fail calls it, so that the curve shows why."""
        now = time.monotonic()
        rate = self._tokens / max(now - self._clock, 1e-9)
        self._latest |= {"lr": self.optimizer.param_groups[0]["lr"], "tokens_per_second": rate}
        self.metrics.write(self.step + 1, self._latest)
        self._tokens, self._clock, self._latest, self._evaluated = 0, now, {}, False

    def due(self, every: int) -> bool:
        """True after every `every` steps and after the last; 0 means after the last only.

        Such a step gets its own line of metrics.jsonl, whatever `log_every` is.
        """
        done = self.step + 1
        is_due = done == self.total_steps or (every > 0 and done % every == 0)
        self._evaluated |= is_due
        return is_due

    def checkpoint(self, done: int) -> None:
        save_checkpoint(self.checkpoints, done, self.modules, self.optimizer, self.state)
        prune_checkpoints(self.checkpoints, keep=2)
        self._saved_at = time.monotonic()

    @property
    def is_sharded(self) -> bool:
        return self.options.parallel == "fsdp"

    # ------------------------------------------------------------------------------------------ one step

    def micro_batches(
        self, batch: Sequence[Item], lengths_of: Callable[[Item], Sequence[int]], only: Collection[str] | None = None
    ) -> Iterator[list[Item]]:
        """This process's local part of a batch, in micro-batches that fit in memory, similar lengths together.

        Each is one pass, with its backward pass if gradients are enabled, through each module in order.

        Args:
            lengths_of: the lengths (tokens) of the sequences of an item, which stay in one micro-batch.
            only: the modules that are passed through; all when absent.
        """
        parts = micro_batches(processes.local_part(batch), lengths_of, self.micro_batch_tokens)
        return parallel.lockstep(parts, *self._chosen(only).values())

    def _chosen(self, only: Collection[str] | None) -> dict[str, nn.Module]:
        return {name: module for name, module in self.modules.items() if only is None or name in only}

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this micro-batch's part of the loss."""
        self._losses.append(loss.detach())
        parallel.backward(loss, self.is_sharded)

    def drop_gradients(self) -> None:
        """Forgets what `backward` was given since the last update."""
        self._losses = []
        self.optimizer.zero_grad()

    def optimizer_step(self, only: Collection[str] | None = None) -> dict[str, float]:
        """Clips, updates and clears the gradients. Returns the gradient norm of each model before clipping.

        `loss` is then the sum of what `backward` was given, in this process.

        Args:
            only: the modules that are updated; all when absent. The others must not have a gradient.

        Raises RunError when a loss or a gradient is not finite.
        """
        losses, self._losses = read(self._losses), []
        if (bad := next((loss for loss in losses if not math.isfinite(loss)), None)) is not None:
            raise RunError(f"the loss is {bad} at step {self.step + 1}; {self._advice()}")
        self.loss = sum(losses)
        modules = self._chosen(only)
        parallel.all_reduce_gradients(modules.values())
        norms = {}
        for name, module in modules.items():
            norm = parallel.clip_gradients(module, self.options.max_grad_norm)
            if not math.isfinite(norm):
                raise RunError(f"the gradient of {name} is {norm} at step {self.step + 1}; {self._advice()}")
            norms["grad_norm" if len(self.modules) == 1 else f"grad_norm_{name}"] = norm
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norms

    def kept_checkpoint(self) -> str:
        """Where the last good state is, for the message of a run that stops."""
        kept = list_checkpoints(self.checkpoints)
        return f"the checkpoint {kept[-1]} is kept" if kept else "no checkpoint was written yet"

    def _advice(self) -> str:
        return f"{self.kept_checkpoint()}; try a lower --lr or --precision float32"

    def log(self, tokens: int = 0, **metrics: float) -> None:
        """Adds to the metrics of this step; `tokens` were processed in it."""
        self._tokens += tokens
        self._latest |= metrics

    def lines(self, name: str) -> JsonLines:
        """A file of JSON lines in the output directory, closed at the end of the session."""
        self._files.append(JsonLines(self.options.out / name, self.start))
        return self._files[-1]

    def sample(self, **fields: object) -> None:
        """Adds a text the model wrote at this step to samples.jsonl."""
        self.samples.write({"step": self.step + 1, **fields})

    def show(self, **notes: float) -> None:
        """Advances the progress bar by one step and shows these numbers next to it."""
        rate = self._tokens / max(time.monotonic() - self._clock, 1e-9)
        self.bar.advance(1, **notes, **{"tokens/s": round(rate)})

    # -------------------------------------------------------------------------------------- best weights

    def keep_best(self, loss: float) -> None:
        """Saves the weights if `loss` is the lowest so far."""
        if loss < self.state.get("best_loss", math.inf):
            self.state |= {"best_loss": loss, "best_step": self.step + 1}
            tensors = {
                f"{m}/{n}": p.detach()
                for m, module in self.modules.items()
                for n, p in parallel.full_module(module, "cpu").named_parameters()
                if p.requires_grad
            }
            if processes.is_first():
                with atomic_directory(self.checkpoints / "best") as staging:
                    save_file(tensors, staging / "weights.safetensors")

    def restore_best(self) -> None:
        """Restores the best weights; does nothing if `keep_best` was never called.

        Raises RunError if the file is missing.
        """
        path = self.checkpoints / "best" / "weights.safetensors"
        processes.barrier()  # waits for the first process, which writes the file
        if self.state.get("best_step", self.total_steps) != self.total_steps:
            if not path.exists():
                problem = "{path}: the best weights are missing; rebuild it with {redo}"
                raise RunError(problem, path=path, redo="--redo")
            tensors = load_file(path)
            with torch.no_grad():
                for name, module in self.modules.items():
                    for key, parameter in parallel.trained(module):
                        parameter.copy_(parallel.placed_like(tensors[f"{name}/{key}"], parameter))

    # ---------------------------------------------------------------------------------------------- the end

    def finish(
        self, work: StageRun, save: Callable[[Path], None], results: dict[str, Any], extra: Sequence[Path] = ()
    ) -> None:
        """Publishes and records the result, and deletes the checkpoints, which are no longer needed.

        Args:
            save: writes the model's directory to the given path.
            results: the result's entry in provenance.json.
            extra: other files of the result.
        """
        staged = self.options.out / ".staged"
        save(staged)
        work.finish(results, [*publish(staged, self.options.out), *extra], self.compute_record())
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def publish(staged: Path, out: Path) -> list[Path]:
    """Moves the files of a staged model directory into `out`, one atomic rename each; returns them, weights first.

    Hidden files that an interrupted save left in `staged` are deleted with it.
    """
    files = [file for file in staged.iterdir() if not file.name.startswith(".")]
    moved = []
    with disk_errors(out):
        for file in sorted(files, key=lambda f: (f.suffix != ".safetensors", f.name)):
            sync_file(file)
            follow_umask(file)  # safetensors makes its files private
            file.replace(out / file.name)
            moved.append(out / file.name)
        sync_directory(out)
        shutil.rmtree(staged)
    return moved
