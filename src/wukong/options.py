"""Base classes of all stages' options. Each stage has one options class, from which its command line is generated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

LARGEST = 1 << 53
"""Upper limit of counts, sizes and seeds: beyond it, JSON numbers and floats lose integer precision."""


class Options(BaseModel):
    """Refuses unknown names, nan, inf and text that cannot be stored in a file; the docstring under a field is its help
    text."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False)

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


WITHOUT_EFFECT = {"out", "checkpoint_seconds", "log_every", "tensorboard", "device", "insist", "parallel"}
"""Options that change how a stage runs but not its result: a finished stage stays valid if they change."""

POLICY_STAGES = ("ppo", "reinforce", "rloo", "grpo", "bestofn", "dpo", "kto")
"""The stages that train a policy from the SFT model, one per algorithm."""
