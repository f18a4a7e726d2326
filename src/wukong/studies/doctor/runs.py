"""The diagnosis of a run on the terminal."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

from wukong.console import console
from wukong.errors import Text
from wukong.language import current, spoken
from wukong.report.diagnosis.diagnose import diagnose
from wukong.report.diagnosis.panel import Panel, panel_of
from wukong.report.diagnosis.records import read_records_of
from wukong.wide_text import narrowed, widened


def report_on(run: Path, as_json: bool) -> int:
    """Prints what the doctor says of a run. Returns the number of red findings.

    Raises UsageError or DataError for a directory that holds no run, or a damaged file in it.
    """
    diagnosis = diagnose(read_records_of(run))
    if as_json:
        print(json.dumps({"run": str(run), **diagnosis.as_json()}, indent=1, ensure_ascii=False))
    else:
        print("\n".join(_lines(panel_of(diagnosis), run)))
    return len(diagnosis.red)


def _lines(panel: Panel, run: Path) -> Iterator[str]:
    width = max(60, console.width) - 10
    yield spoken("{what}: {name}", what=run, name=panel.summary)
    for one in panel.findings:
        yield ""
        severity = widened(spoken(one.severity).upper())
        title = spoken("{what}: {name}", what=one.step, name=one.title)
        yield f"{narrowed(f'{severity:<6}')} {title} · {spoken(one.certainty)}"
        for mark, texts in (("-", one.evidence), ("->", one.advice)):
            for text in texts:
                first, *more = _wrapped(text, width) or [""]
                yield f"{'':<7}{mark:<3}{first}"
                yield from (f"{'':<10}{line}" for line in more)
        yield f"{'':<10}{one.section(current())}"
    if panel.passed:
        yield ""
        yield from _wrapped(panel.passed, width + 10)
    if panel.unchecked:
        yield ""
        yield spoken("Not checked")
        for text in panel.unchecked:
            first, *more = _wrapped(text, width + 6)
            yield f"  {first}"
            yield from (f"    {line}" for line in more)


def _wrapped(text: Text, width: int) -> list[str]:
    return [narrowed(line) for line in textwrap.wrap(widened(spoken(text)), width)]
