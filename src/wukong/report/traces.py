"""trace.jsonl: real responses of a training run, token by token. The online algorithms write it (`--trace`), report and
studio read it.

A line is one iteration. Numbers have nine significant digits, so that a float32 is read as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from wukong.errors import DataError
from wukong.records import Message
from wukong.training.metrics import read_json_lines

FILE = "trace.jsonl"
SETTINGS = ("kl_coef", "gamma", "lam", "clip_range")
"""What can be changed afterwards (`wukong.studies.glass`), where the algorithm has it."""


class _TraceModel(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class TracedResponse(_TraceModel):
    """One response. Lists have one entry per token, its end token included; None where the algorithm has no such
    quantity."""

    messages: list[Message]
    """The prompt."""
    text: str
    row: int
    """Its place in the batch, from 0; for a response to a pinned prompt, its place among those."""
    pinned: bool
    """Whether it answers a prompt of --trace-prompts, beside the batch: nothing is learnt from it. Its advantages are
    those that it would have had in the batch."""
    trained: bool
    """Whether the policy was trained on it."""
    ended: bool
    """Whether it ended by itself."""
    scored_tokens: int
    """The rewards read this many of its tokens."""
    reward: float
    """Of the whole response, before the rule for responses that never ended;"""
    score: float
    """and after it."""
    tokens: list[str]
    # Before the update:
    logprobs: list[float]
    reference_logprobs: list[float]
    entropies: list[float]
    kl: list[float]
    """log pi - log pi_ref (k1)."""
    values: list[float] | None = None
    rewards: list[float]
    advantages: list[float]
    """As the loss takes them."""
    returns: list[float] | None = None
    # After the update:
    new_logprobs: list[float]
    new_values: list[float] | None = None
    ratios: list[float]
    """pi / pi_old."""
    clipped: list[bool] | None = None
    """Whether the ratio is outside 1 +- the clip range."""
    policy_losses: list[float]
    value_losses: list[float] | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> TracedResponse:
        for name, value in self:
            if isinstance(value, list) and name != "messages" and len(value) != len(self.tokens):
                raise ValueError(f"{name} has {len(value)} entries for {len(self.tokens)} tokens")
        if not self.tokens:
            raise ValueError("a response without a token")
        return self


class TracedBatch(_TraceModel):
    """What advantages are computed from, for all episodes of the batch."""

    scores: list[float]
    kl: list[list[float]]
    """Of each token of each response."""
    values: list[list[float]] | None = None


class TracedIteration(_TraceModel):
    """One iteration. `options` are the algorithm's own, such as gamma and clip_range."""

    step: int
    algorithm: str
    kl_coef: float
    """beta in this iteration."""
    temperature: float
    baseline: float | None = None
    """REINFORCE: the running mean that rewards were compared with."""
    options: dict[str, Any]
    batch: TracedBatch
    responses: list[TracedResponse]

    @property
    def settings(self) -> dict[str, float]:
        """Those of `SETTINGS` that the algorithm has."""
        known = {**self.options, "kl_coef": self.kl_coef}
        return {name: float(known[name]) for name in SETTINGS if name in known}


def token_means(responses: Sequence[TracedResponse]) -> dict[str, float]:
    """Means over the tokens of the traced responses of the batch, after the update."""
    own = [one for one in responses if not one.pinned]
    means = {}
    for name in ("policy_losses", "value_losses", "ratios", "clipped"):
        found = [float(x) for one in own for x in getattr(one, name) or ()]
        if found:
            means[f"traced_{name}"] = sum(found) / len(found)
    return means


def has_trace(directory: Path) -> bool:
    return (directory / FILE).is_file()


def read_trace(directory: Path) -> list[TracedIteration]:
    """The traced iterations of a step's directory; none if it has no trace. Raises DataError for a bad line."""
    return [parsed(line, directory) for line in read_json_lines(directory / FILE)]


def parsed(line: dict[str, Any], directory: Path) -> TracedIteration:
    """Raises DataError for anything but a line of trace.jsonl."""
    try:
        return TracedIteration.model_validate(line)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or None
        raise DataError(first["msg"], file=directory / FILE, field=place) from None


def traced_lines(directory: Path) -> dict[int, dict[str, Any]]:
    """The lines of a trace by iteration, not yet `parsed`: a page shows one of them. Raises DataError for a file that
    holds anything but JSON lines."""
    return {int(line["step"]): line for line in read_json_lines(directory / FILE)}
