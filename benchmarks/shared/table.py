"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def markdown_heading(columns: Sequence[str], left: int = 1) -> str:
    """The first two lines of a table. The first `left` columns are aligned to the left, the others to the right."""
    return f"{markdown_row(columns)}\n{markdown_row(['---'] * left + ['---:'] * (len(columns) - left))}"


def markdown_table(columns: Sequence[str], rows: Iterable[Iterable[object]], left: int = 1) -> str:
    return "\n".join([markdown_heading(columns, left), *map(markdown_row, rows)])
