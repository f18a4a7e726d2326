"""`wukong accept`: keeps a result that somebody changed by hand, and would otherwise be taken for a damaged one.

In:  the directory or file of a complete result.
Out: the hashes of its files as they are now, in its record.

    wukong accept runs/mine/responses.jsonl

Steps that were made from it before say so, and are made again with --redo.
"""

from __future__ import annotations

from pathlib import Path

from wukong import provenance
from wukong.console import say
from wukong.options import Options


class AcceptOptions(Options):
    """Record that a result which differs from what was written is meant to be so."""

    result: Path
    """The result: a directory such as runs/mine/sft, or a file such as runs/mine/responses.jsonl."""


def run(options: AcceptOptions) -> None:
    """Raises UsageError where no complete result lies."""
    changed = provenance.accept(options.result)
    for name in changed:
        say(f"accept: {name} is taken as it is now")
    if not changed:
        say(f"accept: {options.result} is what was written, nothing to do")
