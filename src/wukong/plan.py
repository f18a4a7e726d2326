"""`wukong plan`: what the training steps of a recipe cost, before anything runs.

    wukong plan recipes/kitchen.yaml

Parameters, memory and arithmetic follow from the options by the formulas of `wukong.training.memory`; the time from
the arithmetic and a short measurement of this machine's matrix products. How much text a step reads is counted where
its data are there already (four bytes a token), and assumed otherwise: such rows carry a "~".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from rich.console import Console
from rich.table import Table

from wukong.data.comparisons import load_comparisons
from wukong.data.instructions import load_instructions
from wukong.errors import UsageError, WukongError
from wukong.files import read_json
from wukong.model.gpt2 import PRESETS, GPT2Config
from wukong.options import Options
from wukong.recipe import Step, duration, load_recipe, resolve
from wukong.records import Comparison, Conversation, Ranking, Vote
from wukong.stages.offline import OfflineOptions
from wukong.stages.online import OnlineOptions
from wukong.stages.pretrain import PretrainOptions
from wukong.stages.reward import RewardOptions
from wukong.stages.rewards import ensemble_of
from wukong.stages.sft import SFTOptions
from wukong.stages.tokenize import TokenizeOptions
from wukong.tokenizer import Tokenizer
from wukong.training.compute import Compute, compute_for, matrix_speed
from wukong.training.memory import (
    TRAINED_BYTES,
    forward_flops,
    free_bytes,
    frozen_bytes,
    gigabytes,
    n_parameters,
    step_bytes,
)
from wukong.training.session import TrainOptions

BYTES_A_TOKEN = 4
TRAINING_ROWS, DECODING_ROWS = 2048, 64
"""Tokens in a matrix product while training, and while writing responses."""
EFFICIENCY = 0.5
"""How much of the speed of one large matrix product a whole step reaches, roughly; docs/benchmarks.md has figures."""


class PlanOptions(Options):
    """What the training steps of a recipe cost: parameters, memory, arithmetic, and the time to expect here."""

    recipe: Path
    """The recipe, a YAML file."""
    run_dir: Path | None = None
    """The run directory, as of `wukong run`; what is there already is looked at."""
    records: int = Field(1000, ge=1)
    """How many demonstrations or preferences a step is taken to have whose data are not there yet."""
    record_tokens: int = Field(128, ge=2)
    """How many tokens such a prompt with its answer has."""
    prompt_tokens: int = Field(32, ge=1)
    """How many tokens a prompt has that is to be answered."""


@dataclass(frozen=True)
class Cost:
    """What one step takes. `trained` and `frozen` are parameters; arithmetic is split by how fast it can be done."""

    trained: int
    frozen: int
    bytes: int
    products: float
    """Arithmetic in large matrix products: training and scoring."""
    decoding: float = 0.0
    """Arithmetic of one token a sequence at a time: writing responses."""
    assumed: bool = False
    """Whether the amount of data was assumed."""


def cost_of(options: TrainOptions, config: GPT2Config, dtype: torch.dtype, plan: PlanOptions) -> Cost:
    """The cost of a training step with a model of this size."""
    n = n_parameters(config)
    training = TRAINED_BYTES * n
    step = step_bytes(config, dtype, options.micro_batch_tokens, options.gradient_checkpointing)
    if isinstance(options, PretrainOptions):
        tokens = math.ceil(options.tokens / options.batch_tokens) * options.batch_tokens
        context = options.context or config.n_positions
        return Cost(n, 0, training + step, 3 * forward_flops(config, tokens, context, tokens))
    if isinstance(options, OnlineOptions):
        return _online(options, config, dtype, plan.prompt_tokens, training + step)
    assert isinstance(options, SFTOptions | RewardOptions | OfflineOptions)
    texts = _answers(options)
    count = plan.records * (1 if isinstance(options, SFTOptions) else 2) if texts is None else len(texts)
    length: float = plan.record_tokens if texts is None else sum(texts) / BYTES_A_TOKEN / max(1, count)
    seen = options.epochs * count * length
    passes = 3 * forward_flops(config, seen, length, 0 if isinstance(options, RewardOptions) else seen)
    if not isinstance(options, OfflineOptions):
        return Cost(n, 0, training + step, passes, assumed=texts is None)
    reference = forward_flops(config, count * length, length, count * length)  # measured once
    return Cost(n, n, training + frozen_bytes(config, dtype) + step, passes + reference, assumed=texts is None)


def _online(options: OnlineOptions, config: GPT2Config, dtype: torch.dtype, prompt: int, held: int) -> Cost:
    """Responses as long as they may be."""
    n, algorithm = n_parameters(config), options.algorithm()
    length = min(prompt + options.max_new_tokens, config.n_positions)
    tokens, outputs = options.episodes * length, options.episodes * options.max_new_tokens
    speak, read = (forward_flops(config, tokens, length, at) for at in (outputs, 0))
    own_value_model = algorithm.value_coef is not None and algorithm.value_model == "separate"
    rewards = len(ensemble_of(options))
    scoring = 2 * speak + (own_value_model + rewards) * read
    learning = 3 * algorithm.epochs * (speak + own_value_model * read)
    trained = n * (1 + own_value_model)
    frozen = (1 + rewards) * frozen_bytes(config, dtype)
    memory = held + own_value_model * TRAINED_BYTES * n + frozen
    return Cost(trained, n * (1 + rewards), memory, scoring + learning, speak, assumed=True)


def _answers(options: SFTOptions | RewardOptions | OfflineOptions) -> list[int] | None:
    """The bytes of each demonstration, or of each answer with its prompt; None where the data are not there yet."""
    sources: list[str] = options.data  # type: ignore[union-attr]
    try:
        read = load_instructions if isinstance(options, SFTOptions) else load_comparisons
        records = read(sources, options).records
    except WukongError:
        return None
    sizes = []
    for record in records:
        if isinstance(record, Conversation):
            sizes.append(sum(len(message.content.encode()) for message in record.messages))
            continue
        prompt = sum(len(message.content.encode()) for message in record.prompt)
        if isinstance(record, Comparison):
            answers = [record.chosen, record.rejected]
        elif isinstance(record, Ranking):
            answers = record.responses
        else:
            assert isinstance(record, Vote)
            answers = [record.response]
        sizes += [prompt + len(answer.encode()) for answer in answers]
    return sizes


# ------------------------------------------------------------------------------------------- sizes along the recipe


def model_sizes(steps: list[Step]) -> dict[str, GPT2Config]:
    """Step -> the size of the model it trains, followed through the recipe; steps whose model nobody knows yet (one to
    be downloaded) are absent."""
    vocabularies: dict[str, int] = {}
    configs: dict[str, GPT2Config] = {}  # by directory
    found = {}
    for step in steps:
        options, out = step.options, str(step.options.out)
        if isinstance(options, TokenizeOptions):
            own = _vocabulary(options.tokenizer, vocabularies) if options.tokenizer else options.vocab_size
            if own is not None:
                vocabularies[out] = own
            continue
        source = getattr(options, "model", None)
        if not isinstance(source, str):
            continue
        config = configs.get(source) or _stored(source)
        if isinstance(options, PretrainOptions) and source in PRESETS:
            vocabulary = _vocabulary(str(options.data), vocabularies)
            config = GPT2Config(**{**PRESETS[source], "vocab_size": vocabulary}) if vocabulary else None
        if config is not None:
            configs[out] = found[step.name] = config
    return found


def _vocabulary(directory: str, known: dict[str, int]) -> int | None:
    if directory in known or not Path(directory).is_dir():
        return known.get(directory)
    return Tokenizer.load(directory).vocab_size


def _stored(source: str) -> GPT2Config | None:
    """Of a model directory, or of a released GPT-2 by its hub id."""
    name = source.removeprefix("openai-community/")
    if name.startswith("gpt2") and name in PRESETS and not Path(source).exists():
        return GPT2Config(**PRESETS[name])
    path = Path(source) / "config.json"
    if not path.is_file():
        return None
    stored = read_json(path)
    return GPT2Config(**{k: stored[k] for k in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")})


# -------------------------------------------------------------------------------------------------------- the command


def _speed(compute: Compute, rows: int, width: int) -> float:
    """The best of a few, since a machine that is busy otherwise may be slow for a moment."""
    return max(matrix_speed(compute, rows, width) for _ in range(5))


def run(options: PlanOptions) -> None:
    """Raises UsageError or DataError for a recipe that `wukong run` would refuse too, or that trains nothing."""
    run_dir, steps = resolve(load_recipe(options.recipe), options.run_dir)
    sizes = model_sizes(steps)
    training = [(step.name, step.options) for step in steps if isinstance(step.options, TrainOptions)]
    if not training:
        raise UsageError(f"{options.recipe}: no step of this recipe trains a model")
    table = Table(title=f"{options.recipe} in {run_dir}")
    for column in ("step", "trained", "frozen", "memory", "TFLOP", "time"):
        table.add_column(column, justify="left" if column == "step" else "right")
    total, speeds = 0.0, dict[tuple[Compute, int], tuple[float, ...]]()
    for name, stage in training:
        if name not in sizes:
            table.add_row(name, "its model is not here yet")
            continue
        config, compute = sizes[name], compute_for(stage.precision, stage.device)
        if (key := (compute, config.n_embd)) not in speeds:
            speeds[key] = tuple(_speed(compute, n, config.n_embd) for n in (TRAINING_ROWS, DECODING_ROWS))
        cost = cost_of(stage, config, compute.dtype, options)
        seconds = sum(f / (EFFICIENCY * s) for f, s in zip((cost.products, cost.decoding), speeds[key], strict=True))
        total += seconds
        about = "~" if cost.assumed else ""
        table.add_row(
            name, f"{cost.trained:,}", f"{cost.frozen:,}", gigabytes(cost.bytes),
            f"{about}{(cost.products + cost.decoding) / 1e12:,.3g}", f"{about}{duration(seconds)}",
        )  # fmt: skip
    console = Console(soft_wrap=True)
    console.print(table)
    for (compute, width), (large, small) in speeds.items():
        kind = str(compute.dtype).removeprefix("torch.")
        products = f"{large / 1e9:,.0f} GFLOP/s training, {small / 1e9:,.0f} decoding"
        console.print(f"{compute.device} at {kind}, width {width}: {products}; {EFFICIENCY:.0%} of it is reckoned with")
        if (free := free_bytes(compute.device)) is not None:
            console.print(f"{gigabytes(free)} of memory are free; micro-batches are lowered to what fits")
    console.print(f"in all about {duration(total)}, without sampling, labelling and evaluation")
