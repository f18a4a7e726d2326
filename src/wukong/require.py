"""A stage's requirements, checked before anything is trained or deleted.

Besides `run(options)`, a stage module has a function `needs(options)`: it raises UsageError for incompatible options
and returns the list of all other requirements. `run` begins with `open_stage`, which hashes the inputs and checks all
requirements; a recipe does so for all steps before the first one starts (wukong.recipe). Results of earlier steps of
the same run do not exist yet; only their kind is known (`Planned`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from wukong import processes
from wukong.data.prompts import PROMPTS, PromptOptions
from wukong.data.registry import Registry
from wukong.data.row import Row
from wukong.data.sources import DataOptions
from wukong.data.summary import ReadSummary
from wukong.errors import DataError, UsageError
from wukong.feedback.annotators import judge_file, load_judge, prompt_needs
from wukong.feedback.endpoint import Endpoint
from wukong.feedback.functions import column_values
from wukong.feedback.grader import is_rubric_file, written_rubric
from wukong.feedback.reward_models import is_model
from wukong.files import numbered_lines
from wukong.model.families import PRESET_CONFIGS, new_model
from wukong.model.hub import load_policy, load_reward, load_trunk, stored_config
from wukong.options import POLICY_STAGES, StageOptions
from wukong.provenance import StageRun, open_run, stage_state, verify
from wukong.records import Prompt, Record, iter_records
from wukong.tokenizer import Tokenizer
from wukong.training.compute import compute_for
from wukong.training.tuning import TuningOptions, check_tuning

Kind = Literal[
    "policy", "reward model", "token shards", "responses", "rankings", "pairs", "the kitchen's files", "result"
]

KITCHEN = ("corpus.jsonl", "instructions.jsonl", "prompts-train.jsonl", "prompts-test.jsonl")


@dataclass(frozen=True)
class Product:
    """The future result of a step. `context` is a model's, if known."""

    kind: Kind
    step: str = ""
    context: int | None = None


@dataclass
class Planned:
    """The future results of earlier steps of the same run, by the absolute path of their `out`."""

    products: dict[str, Product] = field(default_factory=dict)
    opened: dict[tuple[Any, ...], int] = field(default_factory=dict)
    """Contexts of models opened so far, by source, kind and template."""

    def add(self, step: str, stage: str, options: StageOptions) -> None:
        self.products[os.path.abspath(options.out)] = _product(step, stage, options, self)

    def find(self, source: str | Path) -> Product | None:
        """The future result at, or containing, this path; None if no step makes one."""
        path = Path(os.path.abspath(os.path.expanduser(source)))
        return next((self.products[str(p)] for p in (path, *path.parents) if str(p) in self.products), None)

    def context_of(self, model: str) -> int | None:
        """The context of a future or existing model."""
        if product := self.find(model):
            return product.context
        return next((context for key, context in self.opened.items() if key[0] == model), None)


def _product(step: str, stage: str, options: StageOptions, planned: Planned) -> Product:
    model = getattr(options, "model", None)
    context = None
    if isinstance(model, str):
        preset = PRESET_CONFIGS.get(model) if stage == "pretrain" else None
        context = preset.n_positions if preset else planned.context_of(model)
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
    """A requirement. `check` raises UsageError or DataError if the stage could not start. `source` is the input on disk
    (or hub id) to hash; None for anything else, such as a judge."""

    check: Check
    source: str | None = None


def sources(needs: Iterable[Need]) -> list[str]:
    """The inputs among the requirements, in order."""
    return [need.source for need in needs if need.source is not None]


def check_needs(needs: Sequence[Need], planned: Planned | None = None) -> None:
    """Raises UsageError or DataError for a damaged input or the first unmet requirement."""
    planned = planned or Planned()
    try:
        for need in needs:
            if need.source is not None and planned.find(need.source) is None:
                verify(need.source)
            need.check(planned)
    except OSError as error:
        raise UsageError(f"{error.filename or 'an input'}: cannot be read ({error.strerror or error})") from None


# --------------------------------------------------------------------------------------------------------- kinds of
# requirements


def _made_by(product: Product) -> str:
    return f"step {product.step} makes {product.kind} there"


def _planned_kind(planned: Planned, source: str, *kinds: Kind) -> bool:
    """Whether an earlier step will make it. Raises UsageError if that step makes another kind."""
    product = planned.find(source)
    if product is None:
        return False
    if product.kind not in kinds:
        raise UsageError(f"{source}: expected {kinds[0]}, but {_made_by(product)}")
    return True


def policy(source: str, template: str | None = None) -> Need:
    """A language model."""
    return Need(lambda planned: _model(planned, source, "policy", template), source)


def reward_model(source: str) -> Need:
    return Need(lambda planned: _model(planned, source, "reward model", None), source)


def any_model(source: str) -> Need:
    """A language model, or a reward model of which only the transformer is used."""
    return Need(lambda planned: _model(planned, source, None, None), source)


def _model(planned: Planned, source: str, kind: Literal["policy", "reward model"] | None, template: str | None) -> None:
    if template is not None:
        Tokenizer.train([], 257, template)  # raises for an invalid template
    kinds: tuple[Kind, ...] = (kind,) if kind else ("policy", "reward model")
    if _planned_kind(planned, source, *kinds) or (key := (source, kind, template)) in planned.opened:
        return
    if kind == "reward model":
        planned.opened[key] = load_reward(source)[0].config.n_positions
    else:
        load = load_policy if kind else load_trunk
        planned.opened[key] = load(source, template=template)[0].config.n_positions


def tokenizer(source: str | None, template: str | None) -> list[Need]:
    """An existing tokenizer, or only a chat template."""

    def check(planned: Planned) -> None:
        if source is None or planned.find(source) is not None:
            if template is not None:
                Tokenizer.train([], 257, template)
        else:
            Tokenizer.load(source, template=template)

    return [Need(check, source)] if source or template else []


def same_tokenizer(student: str, teacher: str) -> Need:
    """Two models that read and write the same tokens, with the same chat template."""

    def check(planned: Planned) -> None:
        if planned.find(student) is None and planned.find(teacher) is None:
            ours, theirs = (Tokenizer.load(source).fingerprint for source in (student, teacher))
            if ours != theirs:
                raise UsageError(f"{teacher}: its tokenizer or chat template is not that of {student}")

    return Need(check)


def shards(directory: str | Path, sides: Sequence[str] = ("train", "valid")) -> Need:
    """Token shards with their tokenizer."""

    def check(planned: Planned) -> None:
        if not _planned_kind(planned, str(directory), "token shards"):
            for side in sides:
                if not (Path(directory) / side / "manifest.json").is_file():
                    raise UsageError(f"{directory}/{side}: no token shards here; create them with 'wukong tokenize'")
            Tokenizer.load(directory)

    return Need(check, str(directory))


Reader = Callable[[str], Iterator[Any]]


def reader(registry: Registry[Any], options: DataOptions) -> Reader:
    """Returns a function: source -> its records, lazily."""
    return lambda source: registry.iterate(source, options, ReadSummary())


def data(
    inputs: Sequence[str], read: Reader, accepts: Callable[[Any], None] | None = None, no: Sequence[Kind] = ()
) -> list[Need]:
    """Records readable by `read`; the first one of each source is checked.

    Args:
        read: source -> its records, lazily.
        accepts: raises DataError for a kind of record that the stage cannot be trained on.
        no: kinds of results that contain no such records.
    """
    if not inputs:
        return []
    none: tuple[Kind, ...] = ("policy", "reward model", "token shards", *no)

    def check(source: str, planned: Planned) -> None:
        if (product := planned.find(source)) is not None:
            if product.kind in none:
                raise UsageError(f"{source}: expected another kind of data, but {_made_by(product)}")
            name = Path(source).name
            if product.kind == "the kitchen's files" and "*" not in name and "." in name and name not in KITCHEN:
                raise UsageError(f"{source}: step {product.step} makes {', '.join(KITCHEN)} there")
            return
        first = next(read(source), None)
        if accepts is not None and first is not None:
            accepts(first)

    return [Need(lambda planned, source=source: check(source, planned), source) for source in inputs]  # type: ignore[misc]


def records(path: str, kind: type[Record], product: Kind, skip_bad: int = 0) -> Need:
    """A file of our records."""

    def check(planned: Planned) -> None:
        if not _planned_kind(planned, path, product):
            next(iter_records(path, kind, skip_bad), None)

    return Need(check, path)


def some_lines(path: str) -> Need:
    """A readable text file."""
    return Need(lambda planned: None if planned.find(path) else _first_line(path), path)


def _first_line(path: str) -> None:
    next(numbered_lines(path), None)


def judge(name: str, model: bool = True) -> Need:
    """A judge (a function is imported, a server's key must be set), or, with `model`, a reward model."""
    directory = model and is_model(name)

    def check(planned: Planned) -> None:
        if directory or (model and planned.find(name) is not None):
            _model(planned, name, "reward model", None)
        else:
            load_judge(name)

    return Need(check, name if directory else judge_file(name))


def judged_prompts(inputs: Sequence[str], options: PromptOptions, judges: Sequence[str]) -> list[Need]:
    """Prompts to which all judges of these names can judge answers: verifiers need something of every prompt, functions
    columns that at least one has. Prompts that an earlier step will make are checked when their step starts."""

    def check(planned: Planned) -> None:
        if any(planned.find(source) is not None for source in inputs):
            return
        needs = {name: prompt_needs(name) for name in judges if not is_model(name) and planned.find(name) is None}
        checks = {name: of.check for name, of in needs.items() if of.check is not None}
        lacking = {name: set(of.columns) for name, of in needs.items()}

        def finish(row: Row, prompt: Prompt) -> Prompt:
            for name, one in checks.items():
                try:
                    one(prompt)
                except DataError as error:  # --skip-bad does not leave it out: it is a good prompt
                    raise UsageError(
                        "{place}, which {judge} needs", place=row.error(str(error.problem), error.field), judge=name
                    ) from None
            return prompt

        for source in inputs if checks or any(lacking.values()) else ():
            for prompt in PROMPTS.iterate(source, options, ReadSummary(), finish):
                for columns in lacking.values():
                    columns.difference_update(column_values(prompt))
                if not checks and not any(lacking.values()):
                    return
        for name, columns in lacking.items():
            if columns:
                asked = ", ".join(sorted(columns))
                raise UsageError(f"{name} asks for {asked}, and no prompt of {', '.join(inputs)} has such a field; "
                                 "--columns NAME=COLUMN reads another column under this name")  # fmt: skip

    return [Need(check)] if inputs and judges else []


def rubric(given: str) -> list[Need]:
    """A written rubric: text, or a file with it."""
    file = given if given and is_rubric_file(given) else None
    return [Need(lambda planned: written_rubric(given), file)] if given else []


def endpoint(url: str | None, model: str | None) -> list[Need]:
    """An OpenAI-compatible server; it is not contacted yet."""
    return [Need(lambda planned: Endpoint(url, str(model)))] if url else []


def tuning(model: str, options: TuningOptions) -> Need:
    """A model that the choice of trained parameters fits. Raises UsageError for incompatible options."""
    check_tuning(options)

    def check(planned: Planned) -> None:
        config = stored_config(model) if planned.find(model) is None else None
        if config is not None:
            with torch.device("meta"):
                check_tuning(options, new_model(config))

    return Need(check)


def device(name: str) -> Need:
    return Need(lambda planned: compute_for("float32", name))


def room(model: str, tokens: int) -> Need:
    """A model whose context fits a response of this many tokens and a prompt."""

    def check(planned: Planned) -> None:
        context = planned.context_of(model)
        if context is not None and context - tokens < 1:
            raise UsageError(f"--max-new-tokens {tokens} leaves no room in the context of {context} of {model}")

    return Need(check)


def writable(out: Path, directory: bool) -> Need:
    """A path at which a directory or file can be created or replaced."""

    def check(planned: Planned) -> None:
        if directory and out.exists() and not out.is_dir():
            raise UsageError(f"{out}: is a file, but --out must be a directory")
        if not directory and out.is_dir():
            raise UsageError(f"{out}: is a directory, but --out must be a file")
        above = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
        if not above.is_dir() and above != out:
            raise UsageError(f"{out}: cannot be created: {above} is a file")
        if not os.access(above, os.W_OK):
            raise UsageError(f"{out}: cannot be written: no permission to write to {above}")

    return Need(check)


def distinct_names(named: Sequence[tuple[str, str]], option: str) -> dict[str, str]:
    """name -> path. Raises UsageError for a name given twice."""
    found: dict[str, str] = {}
    for name, path in named:
        if name in found:
            raise UsageError(f"{option} {name}={path}: the name {name!r} is given twice; use NAME=PATH")
        found[name] = path
    return found


def open_stage(stage: str, options: StageOptions, needs: Sequence[Need], *, directory: bool = True) -> StageRun:
    """Opens the stage's result on disk (`provenance.open_run`) and, unless it is complete, checks the requirements
    before anything is read or trained. Runs on the first process."""
    writable(options.out, directory).check(Planned())
    inputs = sources(needs)
    # Before anything is recorded: refused options, above all a secret in a judge's address, must not be written.
    if processes.is_first() and stage_state(stage, options, inputs, directory=directory) != "done":
        check_needs(needs)
    return open_run(stage, options, inputs, directory=directory)
