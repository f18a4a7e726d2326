"""Writes the kitchen to files readable by any stage or other tool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from wukong.files import atomic_open
from wukong.kitchen.corpus import generate_corpus
from wukong.kitchen.instructions import generate_instructions
from wukong.kitchen.measures import measure_corpus, measure_demonstrations, measure_prompts
from wukong.kitchen.prompts import generate_prompts
from wukong.kitchen.worlds import load_world
from wukong.records import write_records

Subject = Literal["cooking", "measures"]


def write_world(
    out_dir: str | Path, seed: int = 0, megabytes: float = 3.0, language: str = "en", subject: Subject = "cooking"
) -> dict[str, Path]:
    """Writes corpus.jsonl, instructions.jsonl, prompts-train.jsonl and prompts-test.jsonl, each atomically.

    Args:
        out_dir: the directory; created if missing.
        seed: the same seed gives the same bytes on any machine.
        megabytes: size of the corpus text, in millions of bytes.
        language: of the world, see `load_world`.
        subject: all of the kitchen, or sums with one right answer.

    Returns the four paths under "corpus", "instructions", "prompts-train" and "prompts-test".
    Raises RunError if the disk is full.
    """
    world = load_world(language)
    names = ("corpus", "instructions", "prompts-train", "prompts-test")
    paths = {name: Path(out_dir) / f"{name}.jsonl" for name in names}
    measures = subject == "measures"
    with atomic_open(paths["corpus"]) as out:
        for text in (measure_corpus if measures else generate_corpus)(world, seed, megabytes):
            out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    demonstrations = measure_demonstrations(world, seed) if measures else generate_instructions(world, seed)
    write_records(paths["instructions"], demonstrations)
    train, test = (measure_prompts if measures else generate_prompts)(world, seed)
    write_records(paths["prompts-train"], train)
    write_records(paths["prompts-test"], test)
    return paths
