"""Malformed files to all four readers: each is read or refused in one line; anything else is a failure."""

from __future__ import annotations

import random
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import grammar
from wukong.data import (
    DataOptions,
    PromptOptions,
    TextOptions,
    load_comparisons,
    load_instructions,
    load_prompts,
    load_text,
)
from wukong.data.comparisons import COMPARISONS
from wukong.data.instructions import INSTRUCTIONS
from wukong.data.prompts import PROMPTS
from wukong.data.registry import Registry
from wukong.data.sources import open_rows
from wukong.data.text import TEXT
from wukong.errors import WukongError

READERS = {
    "instructions": (load_instructions, DataOptions, INSTRUCTIONS),
    "comparisons": (load_comparisons, DataOptions, COMPARISONS),
    "prompts": (load_prompts, PromptOptions, PROMPTS),
    "text": (load_text, TextOptions, TEXT),
}
READ, UNKNOWN, REFUSED, FAILED = "read", "refused by detection", "refused after detection", "failed"
SECONDS = 10.0


@dataclass(frozen=True)
class Outcome:
    """What became of one case in one reader."""

    case: int
    format: str
    mutation: str
    reader: str
    result: str
    detail: str = ""


def outcome_of(path: Path, reader: str, skip_bad: int) -> tuple[str, str]:
    """(result, what was said)."""
    load, options, registry = READERS[reader]
    began = time.monotonic()
    try:
        read = load(path, options(skip_bad=skip_bad))
        result, line = READ, ""
        if not (read.records and read.summary.kept == len(read.records)):
            return FAILED, f"the account says {read.summary.kept} of {len(read.records)}"
    except WukongError as error:
        line = str(error)
        result = REFUSED if _is_known(path, registry) else UNKNOWN
        if "\n" in line or len(line) > 4000 or "Traceback" in line or not line.startswith(str(path)):
            return FAILED, f"not one clear line: {line[:500]!r}"
    except BaseException:  # a traceback is exactly what is looked for
        return FAILED, traceback.format_exc()
    took = time.monotonic() - began
    return (result, line) if took < SECONDS else (FAILED, f"took {took:.1f} s")


def _is_known(path: Path, registry: Registry) -> bool:
    """Whether at least one record of the file is of a format that the reader knows."""
    try:
        return any(row.bad is None and registry.recognise(row.fields) is not None for row in open_rows(path))
    except WukongError:
        return False


def run(count: int, seed: int) -> Iterator[Outcome]:
    """The outcomes of `count` files, each given to every reader."""
    with tempfile.TemporaryDirectory() as directory:
        for format, mutation, number in grammar.cases(count, seed):
            rng = random.Random(number)
            one = grammar.case(format, mutation, rng)
            path = Path(directory, one.name)
            path.write_bytes(one.content)
            for reader in READERS:
                result, said = outcome_of(path, reader, rng.choice([0, 0, 100]))
                yield Outcome(number, format, mutation, reader, result, said)
            path.unlink()
