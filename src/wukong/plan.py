"""`wukong plan`: the cost of a recipe's training steps, before anything runs.

    wukong plan kitchen

Parameters, memory and arithmetic are computed from the options by the formulas of `wukong.training.memory`, and time
from the arithmetic and a short benchmark of this machine's matrix products. The amount of text per step is counted if
its data exist (four bytes per token), and assumed otherwise: such rows are marked "~".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field
from rich.console import Console
from rich.table import Table

from wukong.console import duration
from wukong.data.comparisons import load_comparisons
from wukong.data.instructions import load_instructions
from wukong.errors import UsageError, WukongError
from wukong.language import spoken
from wukong.model.config import ModelConfig
from wukong.model.families import PRESET_CONFIGS
from wukong.model.hub import stored_config
from wukong.options import Options
from wukong.recipe import Step, load_recipe, resolve
from wukong.records import Comparison, Conversation, Ranking, Vote
from wukong.stages import pretrain, reward, sft
from wukong.stages.direct import train as direct
from wukong.stages.direct.train import DirectOptions
from wukong.stages.online import algorithm as online
from wukong.stages.online import distill
from wukong.stages.online.algorithm import OnlineOptions
from wukong.stages.online.distill import DistillOptions
from wukong.stages.online.rewards import model_inputs
from wukong.stages.pretrain import USUAL_TOKENS, PretrainOptions
from wukong.stages.reward import RewardOptions
from wukong.stages.sft import SFTOptions
from wukong.stages.tokenize import TokenizeOptions
from wukong.tokenizer import Tokenizer
from wukong.training.compute import Compute, compute_for, matrix_speed
from wukong.training.memory import (
    Workload,
    estimate,
    forward_flops,
    free_bytes,
    gigabytes,
    lower_flops,
    n_parameters,
    training_flops,
)
from wukong.training.passes import Usual
from wukong.training.session import TrainOptions
from wukong.training.tuning import trained_part

BYTES_A_TOKEN = 4
TRAINING_ROWS, DECODING_ROWS = 2048, 64
"""Tokens per matrix product in training, and in decoding."""
EFFICIENCY = 0.5
"""Approximate speed of a whole step relative to one large matrix product; measured in docs/results/benchmarks.md."""


class PlanOptions(Options):
    """Estimate a recipe's training steps: parameters, memory, arithmetic, and time on this machine."""

    recipe: Path
    """The recipe: a YAML file, or the name of one that comes along (`wukong recipes`)."""
    run_dir: Path | None = None
    """The run directory, as for `wukong run`; existing results are taken into account."""
    records: int = Field(1000, ge=1)
    """Assumed number of demonstrations or preferences of a step whose data do not exist yet."""
    record_tokens: int = Field(128, ge=2)
    """Assumed tokens of such a prompt with its answer."""
    prompt_tokens: int = Field(32, ge=1)
    """Assumed tokens of a prompt to be answered."""


@dataclass(frozen=True)
class Cost:
    """The cost of one step. `trained` and `frozen` are numbers of parameters; arithmetic is split by its speed."""

    trained: int
    frozen: int
    bytes: int
    products: float
    """Arithmetic in large matrix products: training and scoring."""
    decoding: float = 0.0
    """Arithmetic of one token per sequence at a time: decoding."""
    assumed: bool = False
    """Whether the amount of data was assumed."""


def cost_of(
    options: TrainOptions, config: ModelConfig, compute: Compute, plan: PlanOptions, teacher: ModelConfig | None = None
) -> Cost:
    """The cost of a training step with a model of this size, in one process.

    teacher: the size of a distillation's teacher.
    """
    if isinstance(options, OnlineOptions):
        return _online(options, config, compute, plan.prompt_tokens)
    if isinstance(options, DistillOptions):
        return _distillation(options, config, teacher or config, compute, plan.prompt_tokens)
    n = n_parameters(config)
    if isinstance(options, PretrainOptions):
        wanted = options.tokens or USUAL_TOKENS
        tokens = math.ceil(wanted / options.batch_tokens) * options.batch_tokens
        context = pretrain.usual_context(options, config.n_positions)
        held = _held(options, pretrain.workload(options, config), (config,), compute)
        return Cost(n, 0, held, 3 * forward_flops(config, tokens, context, tokens))
    assert isinstance(options, SFTOptions | RewardOptions | DirectOptions)
    part = trained_part(config, options)
    texts = _answers(options)
    answers = 1 if isinstance(options, SFTOptions) else 2  # per assumed record
    sizes = [answers * plan.record_tokens] * plan.records if texts is None else [sum(t) / BYTES_A_TOKEN for t in texts]
    count = answers * plan.records if texts is None else sum(map(len, texts))
    length = sum(sizes) / max(1, count)
    passes = _usual(options).passes(max(1, len(sizes)), config.n_embd, options.epochs, options.batch_size, options.lr)
    lengths = [math.ceil(size) for size in sizes] or [1]
    seen = passes.epochs * count * length
    products = training_flops(config, seen, length, 0 if isinstance(options, RewardOptions) else seen, part)
    if isinstance(options, RewardOptions):
        workload = reward.workload(lengths, passes.batch_size, part)
    elif isinstance(options, SFTOptions):
        workload = sft.workload(lengths, 1.0, passes.batch_size, part)
    else:
        workload = direct.workload(lengths, 1.0, passes.batch_size, config, part)
    held = _held(options, workload, (config,), compute)
    learnt, base = (part.parameters, n) if part else (n, 0)
    if not isinstance(options, DirectOptions):
        return Cost(learnt, base, held, products, assumed=texts is None)
    reference = forward_flops(config, count * length, length, count * length)  # computed once
    return Cost(learnt, n, held, products + reference, assumed=texts is None)


def _usual(options: SFTOptions | RewardOptions | DirectOptions) -> Usual:
    if isinstance(options, SFTOptions):
        return sft.USUAL
    return reward.USUAL if isinstance(options, RewardOptions) else direct.USUAL


def _held(options: TrainOptions, workload: Workload, trained: tuple[ModelConfig, ...], compute: Compute) -> int:
    """A stage's memory, by the estimate that the stage prints."""
    whole = replace(workload, trained=trained, checkpointing=options.gradient_checkpointing)
    return estimate(whole, compute.device, compute.dtype, options.micro_batch_tokens).total


def _online(options: OnlineOptions, config: ModelConfig, compute: Compute, prompt: int) -> Cost:
    """The cost of online RL, with responses of maximum length."""
    n, algorithm, part = n_parameters(config), options.algorithm(), trained_part(config, options)
    length = min(prompt + options.max_new_tokens, config.n_positions)
    tokens, outputs = options.episodes * length, options.episodes * options.max_new_tokens
    speak, read = (forward_flops(config, tokens, length, at) for at in (outputs, 0))
    own_value_model = algorithm.value_coef is not None and algorithm.value_model == "separate"
    rewards = len(model_inputs(options))
    scoring = 2 * speak + (own_value_model + rewards) * read - lower_flops(config, tokens, length, part)
    train_policy, train_value = (training_flops(config, tokens, length, at, part) for at in (outputs, 0))
    learning = algorithm.epochs * (train_policy + own_value_model * train_value)
    trained = (config,) * (1 + own_value_model)
    held = _held(options, online.workload(options, config, prompt), trained, compute)
    learnt, base = (part.parameters, n) if part else (n, 0)
    frozen = base * len(trained) if part else n
    return Cost(learnt * len(trained), frozen + n * rewards, held, scoring + learning, speak, assumed=True)


def _distillation(
    options: DistillOptions, config: ModelConfig, teacher: ModelConfig, compute: Compute, prompt: int
) -> Cost:
    """The cost of on-policy distillation, with responses of maximum length."""
    length = min(prompt + options.max_new_tokens, config.n_positions)
    tokens, outputs = options.episodes * length, options.episodes * options.max_new_tokens
    speak, read = (forward_flops(one, tokens, length, outputs) for one in (config, teacher))
    held = _held(options, distill.workload(options, config, teacher, prompt), (config,), compute)
    return Cost(n_parameters(config), n_parameters(teacher), held, 3 * speak + read, speak, assumed=True)


def _answers(options: SFTOptions | RewardOptions | DirectOptions) -> list[list[int]] | None:
    """Of each record the bytes of the demonstration, or of each answer with its prompt; None where the data are not
    there yet."""
    sources = options.data
    try:
        read = load_instructions if isinstance(options, SFTOptions) else load_comparisons
        records = read(sources, options).records
    except WukongError:
        return None
    sizes = []
    for record in records:
        if isinstance(record, Conversation):
            sizes.append([sum(len(message.content.encode()) for message in record.messages)])
            continue
        prompt = sum(len(message.content.encode()) for message in record.prompt)
        if isinstance(record, Comparison):
            answers = [record.chosen, record.rejected]
        elif isinstance(record, Ranking):
            answers = record.responses
        else:
            assert isinstance(record, Vote)
            answers = [record.response]
        sizes.append([prompt + len(answer.encode()) for answer in answers])
    return sizes


# ------------------------------------------------------------------------------------------- sizes along the recipe


def model_sizes(steps: list[Step]) -> dict[str, ModelConfig]:
    """step -> the size of the model it trains, traced through the recipe; steps with an unknown model (to be
    downloaded) are absent."""
    vocabularies: dict[str, int] = {}
    configs: dict[str, ModelConfig] = {}  # by directory
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
        config = configs.get(source) or stored_config(source)
        if isinstance(options, PretrainOptions) and source in PRESET_CONFIGS:
            vocabulary = _vocabulary(str(options.data), vocabularies)
            config = replace(PRESET_CONFIGS[source], vocab_size=vocabulary) if vocabulary else None
        if config is not None:
            configs[out] = found[step.name] = config
    return found


def teacher_sizes(steps: list[Step], sizes: dict[str, ModelConfig]) -> dict[str, ModelConfig]:
    """distillation step -> the size of its teacher, from an earlier step (`sizes`) or on disk; one of unknown size is
    absent."""
    made = {str(step.options.out): sizes[step.name] for step in steps if step.name in sizes}
    teachers = {step.name: step.options.teacher for step in steps if isinstance(step.options, DistillOptions)}
    found = {name: made.get(source) or stored_config(source) for name, source in teachers.items()}
    return {name: config for name, config in found.items() if config is not None}


def _vocabulary(directory: str, known: dict[str, int]) -> int | None:
    if directory in known or not Path(directory).is_dir():
        return known.get(directory)
    return Tokenizer.load(directory).vocab_size


# -------------------------------------------------------------------------------------------------------- the command


COLUMNS = ("stage", "trained", "frozen", "memory", "TFLOP", "time")
SPEED = (
    "{device} at {kind}, width {width}: {large:,.0f} GFLOP/s training, {small:,.0f} decoding; assuming {part:.0%} of it"
)
AUTO = (
    "--precision auto measured that now; a training stage measures again when it starts, and may choose the other of "
    "float32 and bfloat16"
)


def _speed(compute: Compute, rows: int, width: int) -> float:
    """The best of a few measurements, since other load may slow some down."""
    return max(matrix_speed(compute, rows, width) for _ in range(5))


def run(options: PlanOptions) -> None:
    """Raises UsageError or DataError for a recipe that `wukong run` would refuse, or that trains nothing."""
    run_dir, steps = resolve(load_recipe(options.recipe), options.run_dir)
    sizes = model_sizes(steps)
    teachers = teacher_sizes(steps, sizes)
    training = [(step.name, step.options) for step in steps if isinstance(step.options, TrainOptions)]
    if not training:
        raise UsageError("{recipe}: no step of this recipe trains a model", recipe=options.recipe)
    table = Table(title=spoken("{recipe} in {directory}", recipe=options.recipe, directory=run_dir))
    for column in COLUMNS:
        table.add_column(spoken(column), justify="left" if column == COLUMNS[0] else "right")
    total, speeds = 0.0, dict[tuple[Compute, int], tuple[float, ...]]()
    for name, stage in training:
        if name not in sizes or (isinstance(stage, DistillOptions) and name not in teachers):
            table.add_row(name, spoken("its model is not available yet"))
            continue
        config, compute = sizes[name], compute_for(stage.precision, stage.device)
        if (key := (compute, config.n_embd)) not in speeds:
            speeds[key] = tuple(_speed(compute, n, config.n_embd) for n in (TRAINING_ROWS, DECODING_ROWS))
        cost = cost_of(stage, config, compute, options, teachers.get(name))
        seconds = sum(f / (EFFICIENCY * s) for f, s in zip((cost.products, cost.decoding), speeds[key], strict=True))
        total += seconds
        about = "~" if cost.assumed else ""
        table.add_row(
            name, f"{cost.trained:,}", f"{cost.frozen:,}", gigabytes(cost.bytes),
            f"{about}{(cost.products + cost.decoding) / 1e12:,.3g}", f"{about}{spoken(duration(seconds))}",
        )  # fmt: skip
    console = Console(soft_wrap=True)
    console.print(table)
    for (compute, width), (large, small) in speeds.items():
        said = spoken(
            SPEED,
            device=compute.device,
            kind=str(compute.dtype).removeprefix("torch."),
            width=width,
            large=large / 1e9,
            small=small / 1e9,
            part=EFFICIENCY,
        )
        console.print(said)
        if compute.device.type == "cpu" and any(stage.precision == "auto" for _, stage in training):
            console.print(spoken(AUTO))
        if (free := free_bytes(compute.device)) is not None:
            console.print(spoken("{size} of memory free; micro-batches are reduced to fit", size=gigabytes(free)))
    console.print(spoken("total: about {time}, without sampling, labelling and evaluation", time=duration(total)))
