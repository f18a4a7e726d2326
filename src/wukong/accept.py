"""`wukong accept`: accepts a result that was edited by hand and would otherwise be reported as damaged.

In:  the directory or file of a complete result.
Out: the current hashes of its files, in its provenance record.

    wukong accept runs/mine/responses.jsonl

Steps already made from it report the change; rerun them with --redo.
"""

from __future__ import annotations

from pathlib import Path

from wukong import provenance
from wukong.console import say
from wukong.options import Options


class AcceptOptions(Options):
    """Accept a result that was changed on purpose."""

    result: Path
    """The result: a directory such as runs/mine/sft, or a file such as runs/mine/responses.jsonl."""


def run(options: AcceptOptions) -> None:
    """Raises UsageError if there is no complete result."""
    changed = provenance.accept(options.result)
    for name in changed:
        say("accept: {name} accepted as it is now", name=name)
    if not changed:
        say("accept: {result} is unchanged, nothing to do", result=options.result)
