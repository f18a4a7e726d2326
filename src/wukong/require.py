"""What a stage needs before it can start, and how it is checked before anything is trained or deleted.

A stage module has, beside `run(options)`, a function `needs(options)`: it raises UsageError for options that do not go
together and gives the list of everything else that must be there. `run` begins with `open_stage`, which hashes the
inputs among them and checks them all; a recipe does so for all its steps before the first (wukong.recipe). What an
earlier step of the same run is to make cannot be opened yet: of it only is known what kind of thing it will be
(`Planned`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wukong import processes
from wukong.data.registry import Registry
from wukong.data.sources import DataOptions
from wukong.data.summary import ReadSummary
from wukong.errors import UsageError
from wukong.feedback.annotators import load_judge
from wukong.feedback.endpoint import Endpoint
from wukong.files import numbered_lines
from wukong.model.gpt2 import PRESETS
from wukong.model.hub import load_policy, load_reward, load_trunk
from wukong.options import POLICY_STAGES, StageOptions
from wukong.provenance import Work, begin, look, verify
from wukong.records import Record, iter_records
from wukong.tokenizer import Tokenizer
from wukong.training.compute import compute_for

Kind = Literal[
    "policy", "reward model", "token shards", "responses", "rankings", "pairs", "the kitchen's files", "result"
]

KITCHEN = ("corpus.jsonl", "instructions.jsonl", "prompts-train.jsonl", "prompts-test.jsonl")


@dataclass(frozen=True)
class Product:
    """What a step will make. `context` is a model's, where it is known."""

    kind: Kind
    step: str = ""
    context: int | None = None


@dataclass
class Planned:
    """What earlier steps of the same run will make, by the absolute path of their `out`."""

    products: dict[str, Product] = field(default_factory=dict)
    opened: dict[tuple[Any, ...], int] = field(default_factory=dict)
    """The contexts of the models that were opened already, by source, kind and template."""

    def add(self, step: str, stage: str, options: StageOptions) -> None:
        self.products[os.path.abspath(options.out)] = _product(step, stage, options, self)

    def find(self, source: str | Path) -> Product | None:
        """What will lie at this place, or holds it; None where no step makes anything."""
        path = Path(os.path.abspath(os.path.expanduser(source)))
        return next((self.products[str(p)] for p in (path, *path.parents) if str(p) in self.products), None)

    def context_of(self, model: str) -> int | None:
        """A model's context: of one that will be made, or of one that is there."""
        if product := self.find(model):
            return product.context
        return next((context for key, context in self.opened.items() if key[0] == model), None)


def _product(step: str, stage: str, options: StageOptions, planned: Planned) -> Product:
    model = getattr(options, "model", None)
    context = None
    if isinstance(model, str):
        context = (
            PRESETS[model]["n_positions"] if stage == "pretrain" and model in PRESETS else planned.context_of(model)
        )
    if stage in ("pretrain", "sft", *POLICY_STAGES):
        return Product("policy", step, context)
    if stage == "reward":
        return Product("reward model", step, context)
    if stage == "label":
        return Product("pairs" if getattr(options, "shape", "") == "pairs" else "rankings", step)
    others: dict[str, Kind] = {"kitchen": "the kitchen's files", "tokenize": "token shards", "sample": "responses"}
    return Product(others.get(stage, "result"), step)


Check = Callable[[Planned], object]


@dataclass(frozen=True)
class Need:
    """`check` raises UsageError or DataError where the stage could not start. `source` is the input on disk (or hub id)
    that is hashed; None for what is none, such as a judge."""

    check: Check
    source: str | None = None


def sources(needs: Iterable[Need]) -> list[str]:
    """The inputs, in order."""
    return [need.source for need in needs if need.source is not None]


def check_needs(needs: Sequence[Need], planned: Planned | None = None) -> None:
    """Raises UsageError or DataError, one line, for an input that is damaged or the first need that is not met."""
    planned = planned or Planned()
    try:
        for need in needs:
            if need.source is not None and planned.find(need.source) is None:
                verify(need.source)
            need.check(planned)
    except OSError as error:
        raise UsageError(f"{error.filename or 'an input'}: cannot be read ({error.strerror or error})") from None


# --------------------------------------------------------------------------------------------------------- the kinds


def _made_by(product: Product) -> str:
    return f"step {product.step} makes {product.kind} there"


def _planned_kind(planned: Planned, source: str, *kinds: Kind) -> bool:
    """Whether an earlier step will make it. Raises UsageError where that makes something else."""
    product = planned.find(source)
    if product is None:
        return False
    if product.kind not in kinds:
        raise UsageError(f"{source}: {kinds[0]} is needed here, {_made_by(product)}")
    return True


def policy(source: str, template: str | None = None) -> Need:
    """A language model."""
    return Need(lambda planned: _model(planned, source, "policy", template), source)


def reward_model(source: str) -> Need:
    return Need(lambda planned: _model(planned, source, "reward model", None), source)


def any_model(source: str) -> Need:
    """A language model, or a reward model whose transformer is taken."""
    return Need(lambda planned: _model(planned, source, None, None), source)


def _model(planned: Planned, source: str, kind: Literal["policy", "reward model"] | None, template: str | None) -> None:
    if template is not None:
        Tokenizer.train([], 257, template)  # raises for one that is none
    kinds: tuple[Kind, ...] = (kind,) if kind else ("policy", "reward model")
    if _planned_kind(planned, source, *kinds) or (key := (source, kind, template)) in planned.opened:
        return
    if kind == "reward model":
        planned.opened[key] = load_reward(source)[0].config.n_positions
    else:
        load = load_policy if kind else load_trunk
        planned.opened[key] = load(source, template=template)[0].config.n_positions


def tokenizer(source: str | None, template: str | None) -> list[Need]:
    """A tokenizer that is there, or only a chat template."""

    def check(planned: Planned) -> None:
        if source is None or planned.find(source) is not None:
            if template is not None:
                Tokenizer.train([], 257, template)
        else:
            Tokenizer.load(source, template=template)

    return [Need(check, source)] if source or template else []


def shards(directory: str | Path, sides: Sequence[str] = ("train", "valid")) -> Need:
    """Token shards (and their tokenizer)."""

    def check(planned: Planned) -> None:
        if not _planned_kind(planned, str(directory), "token shards"):
            for side in sides:
                if not (Path(directory) / side / "manifest.json").is_file():
                    raise UsageError(f"{directory}/{side}: no token shards here; make them with 'wukong tokenize'")
            Tokenizer.load(directory)

    return Need(check, str(directory))


Reader = Callable[[str], Iterator[Any]]


def reader(registry: Registry[Any], options: DataOptions) -> Reader:
    """One source -> its records, lazily."""
    return lambda source: registry.iterate(source, options, ReadSummary())


def data(
    inputs: Sequence[str], read: Reader, accepts: Callable[[Any], None] | None = None, no: Sequence[Kind] = ()
) -> list[Need]:
    """Records in a format that `read` knows: the first one of each source is read.

    Args:
        read: one source -> its records, lazily.
        accepts: raises DataError for a kind of record that the stage cannot learn from.
        no: kinds of steps' results that hold no such records.
    """
    if not inputs:
        return []
    none: tuple[Kind, ...] = ("policy", "reward model", "token shards", *no)

    def check(source: str, planned: Planned) -> None:
        if (product := planned.find(source)) is not None:
            if product.kind in none:
                raise UsageError(f"{source}: data of another kind are needed here, {_made_by(product)}")
            name = Path(source).name
            if product.kind == "the kitchen's files" and "*" not in name and "." in name and name not in KITCHEN:
                raise UsageError(f"{source}: step {product.step} makes {', '.join(KITCHEN)} there")
            return
        first = next(read(source), None)
        if accepts is not None and first is not None:
            accepts(first)

    return [Need(lambda planned, source=source: check(source, planned), source) for source in inputs]  # type: ignore[misc]


def records(path: str, kind: type[Record], product: Kind, skip_bad: int = 0) -> Need:
    """A file of our own records."""

    def check(planned: Planned) -> None:
        if not _planned_kind(planned, path, product):
            next(iter_records(path, kind, skip_bad), None)

    return Need(check, path)


def some_lines(path: str) -> Need:
    """A text file that can be read."""
    return Need(lambda planned: None if planned.find(path) else _first_line(path), path)


def _first_line(path: str) -> None:
    next(numbered_lines(path), None)


def judge(name: str, model: bool = True) -> Need:
    """The name of a judge (a function is imported, a server's key looked for), or, with `model`, a reward model."""
    directory = model and Path(name).is_dir()

    def check(planned: Planned) -> None:
        if directory or (model and planned.find(name) is not None):
            _model(planned, name, "reward model", None)
        else:
            load_judge(name)

    return Need(check, name if directory else None)


def endpoint(url: str | None, model: str | None) -> list[Need]:
    """A client of an OpenAI-compatible server; it is not asked yet."""
    return [Need(lambda planned: Endpoint(url, str(model)))] if url else []


def device(name: str) -> Need:
    return Need(lambda planned: compute_for("float32", name))


def room(model: str, tokens: int) -> Need:
    """A context in which a response of so many tokens leaves room for a prompt."""

    def check(planned: Planned) -> None:
        context = planned.context_of(model)
        if context is not None and context - tokens < 1:
            raise UsageError(f"--max-new-tokens {tokens} leaves no room in the context of {context} of {model}")

    return Need(check)


def writable(out: Path, directory: bool) -> Need:
    """A place where a directory, or a file, can be made or replaced."""

    def check(planned: Planned) -> None:
        if directory and out.exists() and not out.is_dir():
            raise UsageError(f"{out}: is a file, --out is a directory")
        if not directory and out.is_dir():
            raise UsageError(f"{out}: is a directory, --out is a file")
        above = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
        if not above.is_dir() and above != out:
            raise UsageError(f"{out}: cannot be made, {above} is a file")
        if not os.access(above, os.W_OK):
            raise UsageError(f"{out}: cannot be written, there is no permission to write to {above}")

    return Need(check)


def distinct_names(named: Sequence[tuple[str, str]], option: str) -> dict[str, str]:
    """name -> path. Raises UsageError for a name given twice, one of which would be dropped."""
    found: dict[str, str] = {}
    for name, path in named:
        if name in found:
            raise UsageError(f"{option} {name}={path}: the name {name!r} is given twice; write NAME=PATH")
        found[name] = path
    return found


def open_stage(stage: str, options: StageOptions, needs: Sequence[Need], *, directory: bool = True) -> Work:
    """Opens the stage's place on disk (`provenance.begin`) and, unless its result lies there already, checks what it
    needs, before anything is read for good or trained. Of several processes the first does so."""
    writable(options.out, directory).check(Planned())
    inputs = sources(needs)
    # Before anything is recorded: what is refused, a secret in a judge's address above all, is to be written nowhere.
    if processes.is_first() and look(stage, options, inputs, directory=directory) != "done":
        check_needs(needs)
    return begin(stage, options, inputs, directory=directory)
