"""What the options of all stages share. Each stage has one options class; the command line is made from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

LARGEST = 1 << 53
"""No count, size or seed is larger: beyond it, numbers in JSON and floats lose units."""


class Options(BaseModel):
    """Unknown names are refused, and so are nan, inf and text that no file can hold; the docstring under a field is its
    help text."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_yes(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes` and `on` as true, which would count as 1."""
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
                raise ValueError("holds a NUL character")
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError("holds bytes that are not UTF-8, or half a character")
            if isinstance(part, Path) and any(character < " " or character == "\x7f" for character in text):
                raise ValueError("is a path with a line break or another control character")
            if isinstance(part, Path) and any(len(name.encode()) > 255 for name in part.parts):
                raise ValueError("is a path with a name of more than 255 bytes")
            if isinstance(part, int) and abs(part) > LARGEST:
                raise ValueError(f"is larger than {LARGEST:,}")
        return value


def _parts(value: Any) -> Iterator[Any]:
    """The texts, paths and numbers in an option (a recipe's steps are checked as the options that they are)."""
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


WITHOUT_EFFECT = {"out", "checkpoint_seconds", "log_every", "tensorboard", "device", "insist", "parallel"}
"""Options that change how a stage runs and not what it makes: a finished stage stays valid when they change."""

POLICY_STAGES = ("ppo", "reinforce", "rloo", "grpo", "bestofn", "dpo", "kto")
"""The stages that make a policy out of the SFT model, each by an algorithm of its own."""
