"""`wukong kitchen`: writes the built-in world as ordinary files for the other stages.

Out: corpus.jsonl, instructions.jsonl, prompts-train.jsonl and prompts-test.jsonl in a directory.

    wukong kitchen --out runs/mine/data
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from wukong.kitchen.world import Subject, write_world
from wukong.kitchen.worlds import Language
from wukong.options import StageOptions
from wukong.provenance import open_run


class KitchenOptions(StageOptions):
    """Write the kitchen world: corpus, demonstrations, training and test prompts."""

    megabytes: float = Field(3.0, gt=0, le=1e5)
    """Size of the pretraining corpus."""
    world: Language = "en"
    """The kitchen's language: en, or zh for the Chinese kitchen, which has other dishes."""
    subject: Subject = "cooking"
    """All of the kitchen, or only measures: sums with one right answer, which the verifier `number` checks."""


def needs(options: KitchenOptions) -> list[Any]:
    """Nothing."""
    return []


def run(options: KitchenOptions) -> None:
    work = open_run("kitchen", options)
    if not work.done:
        files = write_world(options.out, options.seed, options.megabytes, options.world, options.subject)
        work.finish({}, list(files.values()))
