"""Base classes of all stages' options. Each stage's command line is generated from its options class."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator

from wukong.console import say

LARGEST = 1 << 53
"""Upper limit of counts, sizes and seeds: beyond it, JSON numbers and floats lose integer precision."""


@functools.cache
def warn_of_old_name(old: str, new: str) -> None:
    """Warns once per process: a recipe's options are checked several times."""
    say(
        "warning: the option {old} is now called {new}; the old name will be removed in the next release",
        old=old,
        new=new,
    )


class Options(BaseModel):
    """Immutable. Unknown names are refused, as are nan, inf and text that no file can hold; the docstring under a
    field is its help text."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False, frozen=True
    )
    old_names: ClassVar[dict[str, str]] = {}
    """Old name -> new name of options renamed in this release; the old name still works, with a warning."""

    @classmethod
    def needed(cls, given: Mapping[str, Any]) -> list[str]:
        """What is missing among the options given on a command line, beside required fields: "--models or --endpoint"
        where one of several is needed. The command line then names everything that is missing at once."""
        return []

    @model_validator(mode="before")
    @classmethod
    def _accept_old_names(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for old in cls.old_names.keys() & given.keys():
            new = cls.old_names[old]
            if new in given:
                raise ValueError(f"{old} is the old name of {new}: give one of them")
            warn_of_old_name(old, new)
            given = {**{name: value for name, value in given.items() if name != old}, new: given[old]}
        return given

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_yes(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses booleans for numbers: YAML reads `yes` and `on` as true, which would become 1."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)) and {int, float} & {kind, *get_args(kind)}:
            raise ValueError(f"is {value}, expected a number")
        return value

    @field_validator("*")
    @classmethod
    def _can_be_stored(cls, value: Any) -> Any:
        for part in _parts(value):
            text = str(part) if isinstance(part, str | Path) else ""
            if "\0" in text:
                raise ValueError("contains a NUL character")
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError("contains invalid UTF-8, or half a character")
            if isinstance(part, Path) and any(character < " " or character == "\x7f" for character in text):
                raise ValueError("is a path with a line break or another control character")
            if isinstance(part, Path) and any(len(name.encode()) > 255 for name in part.parts):
                raise ValueError("is a path with a name of more than 255 bytes")
            if isinstance(part, int) and abs(part) > LARGEST:
                raise ValueError(f"is larger than {LARGEST:,}")
        return value


def _parts(value: Any) -> Iterator[Any]:
    """The texts, paths and numbers in an option (a recipe's steps are checked separately, as options)."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item)
    else:
        yield value


class StageOptions(Options):
    out: Path
    """Where the result goes: a directory for a model, a file for records."""
    seed: int = 0
    """All randomness of the stage is a function of this number."""


WITHOUT_EFFECT = {
    "out", "checkpoint_seconds", "log_every", "tensorboard", "device", "allow_chance_reward_model", "parallel",
    "trace", "trace_every", "trace_prompts",
    "insist",  # the old name of allow_chance_reward_model, in results of version 0.1
}  # fmt: skip
"""Options that change how a stage runs but not its result: a finished stage stays valid when they change."""

POLICY_STAGES = ("ppo", "reinforce", "rloo", "grpo", "bestofn", "dpo", "kto", "distill")
"""The stages that train a policy from the SFT model, one per algorithm."""


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """A hint with the most similar known name, or ""."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def complaint(error: ValidationError, options: type[Options]) -> tuple[str, str]:
    """(option, problem) of the first problem; the option is "" if several conflict."""
    first = error.errors(include_url=False)[0]
    option = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "missing":
        return option, "is required"
    if first["type"] == "extra_forbidden":
        return option, "unknown option" + nearest(option, options.model_fields)
    problem = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    given = repr(first["input"])
    return option, f"{problem}, not {given}" if option and problem.startswith("should") and len(given) < 80 else problem
