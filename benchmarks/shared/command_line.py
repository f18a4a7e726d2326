"""Options that several benchmarks have, and where their tables go."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent


def new_parser(documentation: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring."""
    return argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)


def run_argument(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    parser.add_argument("run", type=Path, nargs="?" if optional else None, help="a finished run, such as runs/kitchen")


def speed_options(parser: argparse.ArgumentParser, rounds: int) -> None:
    """The options of a comparison whose contenders take turns (`turns.py`)."""
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--precisions", nargs="+", help="float32, and bfloat16 where it is faster, when absent")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])


def this_command() -> str:
    """The command that runs this script, with its path below the repository."""
    script = Path(sys.argv[0]).resolve()
    return " ".join(["python", script.relative_to(ROOT).as_posix(), *sys.argv[1:]])


def publish(text: str, out: Path | None) -> None:
    """Prints a text, and writes it to `out` where one is given."""
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
