"""The diagnosis of a run on the terminal."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

from wukong.console import console
from wukong.report.diagnosis.diagnose import diagnose
from wukong.report.diagnosis.panel import Panel, panel_of
from wukong.report.diagnosis.records import read_records_of


def report_on(run: Path, language: str, as_json: bool) -> int:
    """Prints what the doctor says of a run. Returns the number of red findings.

    Raises UsageError or DataError for a directory that holds no run, or a damaged file in it.
    """
    diagnosis = diagnose(read_records_of(run))
    if as_json:
        print(json.dumps({"run": str(run), **diagnosis.as_json()}, indent=1, ensure_ascii=False))
    else:
        print("\n".join(_lines(panel_of(diagnosis, language), run)))
    return len(diagnosis.red)


def _lines(panel: Panel, run: Path) -> Iterator[str]:
    width = max(60, console.width) - 10
    yield f"{run}: {panel.summary}"
    for one in panel.findings:
        yield ""
        yield f"{one.severity_word.upper():<6} {one.step}: {one.title} · {one.confidence}"
        for mark, texts in (("-", one.evidence), ("->", one.advice)):
            for text in texts:
                first, *more = textwrap.wrap(text, width) or [""]
                yield f"{'':<7}{mark:<3}{first}"
                yield from (f"{'':<10}{line}" for line in more)
        yield f"{'':<10}{one.section}"
    if panel.passed:
        yield ""
        yield from textwrap.wrap(panel.passed, width + 10)
    if panel.unchecked:
        yield ""
        yield panel.not_checked
        for text in panel.unchecked:
            yield from textwrap.wrap(text, width + 8, initial_indent="  ", subsequent_indent="    ")
