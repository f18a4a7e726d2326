"""`wukong report`: a run directory -> one self-contained HTML page.

In:  what the stages wrote under the directory: provenance files, metrics.jsonl, samples.jsonl, evaluations.
Out: a single HTML file to open, print or send, with charts, styles and scripts inside.

    wukong report --run runs/mine --out runs/mine/report.html

A report is a view, not a result: it is redrawn each time (in about a second), also while a run is in progress, and
shows missing steps as not run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from wukong.console import say
from wukong.errors import UsageError, WukongError
from wukong.files import atomic_open
from wukong.language import counted
from wukong.options import StageOptions
from wukong.report.contents import AnsweredPrompt, read_run
from wukong.report.inspected import AnsweringModel, Inspect
from wukong.report.page import View, render


class ReportOptions(StageOptions):
    """Show a run on one HTML page."""

    run: Path
    """The run directory."""
    title: str | None = None
    """The page's title. Default: the run's name."""
    pinned: list[str] = []
    """Prompts of the evaluation to show first; a kind of prompts (their source) stands for the first of that kind."""
    language: Literal["en", "zh"] | None = None
    """The language in which the page opens; it holds both, and the reader can switch. Default: the terminal's."""
    prompts_shown: int = Field(12, ge=0)
    """Number of prompts shown with every model's answer, including pinned ones; the others are drawn by --seed."""
    tokens: bool = False
    """Let each shown answer be opened as tokens: log-prob, KL, score if it ended there. Loads the evaluated models."""


def needs(options: ReportOptions) -> list[Any]:
    """Nothing: any run can be shown. Raises UsageError if the page would overwrite anything else."""
    if options.out.is_dir():
        raise UsageError(f"{options.out}: is a directory, --out is the HTML file")
    if options.out.exists() and not is_page(options.out):
        raise UsageError(f"{options.out}: is not a page of wukong report; move it away or choose another --out")
    return []


def is_page(file: Path) -> bool:
    """Whether a file begins like our pages, so that a new one may replace it."""
    if not file.is_file():
        return False
    with file.open("rb") as handle:
        return handle.read(15).lower() == b"<!doctype html>"


def run(options: ReportOptions) -> None:
    """Raises UsageError for a directory without a run, DataError for a damaged file in it."""
    needs(options)
    contents = read_run(options.run)
    inspect = token_reader() if options.tokens else None
    view = View(options.title, options.pinned, options.prompts_shown, options.seed, options.language, inspect)
    page = render(contents, view)
    with atomic_open(options.out) as out:
        out.write(page)
    say(
        "report: {out} ({megabytes:.1f} MB), {steps}",
        out=options.out,
        megabytes=len(page.encode()) / 1e6,
        steps=counted(len(contents.steps), "{n:,} step", "{n:,} steps"),
    )


def token_reader() -> Inspect:
    """Reads answers as tokens with the models of their evaluation, each loaded once. One that cannot be read is said,
    and left out."""
    from wukong.inspection import Inspector, load_inspector  # torch takes seconds, and other reports do without

    loaded: dict[AnsweringModel, Inspector | None] = {}

    def load(model: AnsweringModel, name: str) -> Inspector | None:
        try:
            return load_inspector(model.source, model.reference, model.reward_model, raw=model.raw)
        except WukongError as error:
            say("report: the answers of {name} cannot be opened as tokens: {error}", name=name, error=error)
            return None

    def inspect(model: AnsweringModel, prompt: AnsweredPrompt, name: str) -> dict[str, Any] | None:
        if model not in loaded:
            loaded[model] = load(model, name)
        inspector, answer = loaded[model], prompt.answers[name]
        if inspector is None:
            return None
        try:
            finished = answer.finish_reason == "stop"
            found = inspector(prompt.messages, answer.text, finished=finished, temperature=model.temperature)
        except WukongError as error:
            say("report: an answer of {name} cannot be opened as tokens: {error}", name=name, error=error)
            return None
        return found.shown(name)

    return inspect
