"""Malformed input, in bulk: a table of outcomes, and exit code 1 if anything but a result or one line came back.

    python tests/fuzz/run.py --target readers --count 10000 --seed 0

A target is a module beside this one with `run(count, seed)`. That of the readers yields outcomes with the fields
`format`, `mutation`, `case`, `result` and `detail`. The result is "refused by detection" for what was not even
recognised, and "failed" for a traceback, a hang or an error of several lines. An input may have several outcomes, one
a `reader`. The others return how often there was which outcome, and raise at the first failure.
"""

from __future__ import annotations

import argparse
import importlib
import resource
import sys
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

TARGETS = {
    "readers": "refused by detection",
    "recipes": "by the loader",
    "checkpoints": "refused",
    "server": "by HTTP or JSON",
    "replies": "one line",
}
"""Each target, and how an outcome is called that did not get past detection."""
GROWTH = 1 << 30
"""Bytes of memory above the idle process, which no input may take."""


def table(title: str, counts: dict[str, Counter[str]], results: list[str]) -> Table:
    shown = Table(title=title)
    for name in (title.rpartition(" ")[2], *results, "total"):
        shown.add_column(name, justify="left" if name not in results else "right")
    for name, count in sorted(counts.items()):
        shown.add_row(name, *(str(count[result]) for result in results), str(count.total()))
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    target = importlib.import_module(f"tests.fuzz.{options.target}")
    began, idle = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    by: dict[str, dict[str, Counter[str]]] = {"format": {}, "mutation": {}, "reader": {}}
    total: Counter[str] = Counter()
    failures, past = [], set()
    found = target.run(options.count, options.seed)
    if isinstance(found, Counter):
        for name, times in sorted(found.items()):
            print(f"{times:8,} {name}")
        through = sum(times for name, times in found.items() if TARGETS[options.target] not in name)
        growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - idle
        print(f"{options.count} inputs, seed {options.seed}: each gave a result or one line")
        print(f"{through} inputs ({100 * through / options.count:.1f} %) got past detection")
        print(f"{time.monotonic() - began:.0f} s, memory grew by {growth / 1e6:.0f} MB with what is imported")
        return 1 if growth > GROWTH else 0
    for outcome in found:
        for key, counts in by.items():
            if (name := getattr(outcome, key, None)) is not None:
                counts.setdefault(name, Counter())[outcome.result] += 1
        total[outcome.result] += 1
        if outcome.result != "refused by detection":
            past.add(outcome.case)
        if outcome.result == "failed":
            failures.append(outcome)
    console = Console(width=120)
    results = sorted(total)
    for key, counts in by.items():
        if counts:
            console.print(table(f"{options.target} by {key}", counts, results))
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - idle
    for failure in failures[:20]:
        where = f"case {failure.case}, {failure.format}, {failure.mutation}"
        console.print(f"{where}: {failure.detail}", markup=False, soft_wrap=True)
    shares = ", ".join(f"{result} {count} ({100 * count / total.total():.1f} %)" for result, count in total.items())
    console.print(f"{options.count} inputs, seed {options.seed}: {shares}", soft_wrap=True)
    console.print(f"{len(past)} inputs ({100 * len(past) / options.count:.1f} %) got past detection")
    console.print(f"{time.monotonic() - began:.0f} s, memory grew by {growth / 1e6:.0f} MB")
    return 1 if failures or growth > GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
