"""A world of a few hundred sentences, and what the tests of the training stages share."""

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wukong.stages.tokenize import TokenizeOptions
from wukong.stages.tokenize import run as tokenize
from wukong.training.metrics import read_metrics
from wukong.training.session import Interrupted, Session

FOODS = ("eggs", "rice", "beans", "carrots", "noodles", "potatoes", "lentils", "peas", "beets", "leeks")


def documents() -> list[str]:
    return [
        f"Boil {food} for {minutes} minutes. Then serve the {food} with {other} and salt."
        for food in FOODS
        for other in FOODS
        for minutes in (3, 5, 8)
    ]


def demonstrations() -> list[dict]:
    """Questions and answers; every fifth has a second turn."""
    found = []
    for i, food in enumerate(FOODS * 3):
        turns = [("user", f"How long do {food} take, question {i}?"), ("assistant", f"{food} take {3 + i} minutes.")]
        if i % 5 == 0:
            turns += [("user", "And with salt?"), ("assistant", f"Also {3 + i}.")]
        found.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    return found


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def tokenised(directory: Path) -> Path:
    """The directory of `wukong tokenize` on the documents; demonstrations, too, become few tokens."""
    data = write_jsonl(directory / "corpus.jsonl", [{"text": text} for text in documents()])
    taught = write_jsonl(directory / "taught.jsonl", demonstrations())
    options = {"data": [str(data)], "instructions": [str(taught)], "vocab_size": 400, "valid_fraction": 0.1}
    tokenize(TokenizeOptions(out=directory / "tokens", **options))
    return directory / "tokens"


FAST = {"tensorboard": False, "precision": "float32", "checkpoint_seconds": 1e9, "log_every": 1}


def made_files(out: Path) -> dict[str, bytes]:
    """What a stage made for others to use: everything but its logs."""
    logs = ("metrics.jsonl", "samples.jsonl", "trace.jsonl", "provenance.json", "options.json")
    return {p.name: p.read_bytes() for p in out.iterdir() if p.is_file() and p.name not in logs}


def written(out: Path) -> dict[Path, tuple[int, int]]:
    """Which file each path is, and when it was written: a file that is written again differs, whatever it holds."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.rglob("*")}


def curves(out: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in read_metrics(out)]


class Dies(BaseException):
    """Stands for the process being killed: nothing of ours catches it."""


def stop_after(step: int, run: Callable, options, monkeypatch) -> None:
    """Runs the stage until SIGTERM arrives in that step (counted from 1)."""
    show = Session.show

    def show_and_stop(self, **notes):
        show(self, **notes)
        if self.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "show", show_and_stop)
        with pytest.raises(Interrupted):
            run(options)


_fatal: list[Path] = []


def _die_before_a_fatal_file(event: str, arguments: tuple) -> None:
    if event == "os.rename" and _fatal and Path(os.fsdecode(arguments[1])) in _fatal:
        raise Dies


@functools.cache
def _watch() -> None:
    sys.addaudithook(_die_before_a_fatal_file)  # once: Python cannot remove it


def die_before(name: str, run: Callable, options) -> None:
    """Runs the stage until a file or directory of this name, within its output, is about to be put in its place."""
    _watch()
    _fatal.append(options.out / name)
    try:
        with pytest.raises(Dies):
            run(options)
    finally:
        _fatal.clear()
