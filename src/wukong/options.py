"""What the options of all stages share. Each stage has one options class; the command line is made from it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Unknown names are refused; the docstring under a field is its help text."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True)


class StageOptions(Options):
    out: Path
    """Where the result goes: a directory for a model, a file for records."""
    seed: int = 0
    """All randomness of the stage is a function of this number."""


WITHOUT_EFFECT = {"out", "checkpoint_seconds", "log_every", "tensorboard", "device", "insist", "parallel"}
"""Options that change how a stage runs and not what it makes: a finished stage stays valid when they change."""

POLICY_STAGES = ("ppo", "reinforce", "rloo", "grpo", "bestofn", "dpo", "kto")
"""The stages that make a policy out of the SFT model, each by an algorithm of its own."""
