"""Text for pretraining: documents from text files, or from records with a text field."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import Field

from wukong.data.formats import MEDIA, Format, Found
from wukong.data.formats import TEXT as IS_TEXT
from wukong.data.registry import Registry
from wukong.data.row import Row
from wukong.data.sources import Columns, DataOptions, Sources
from wukong.data.summary import Read, ReadSummary
from wukong.files import numbered_lines, whole_text


class TextOptions(DataOptions):
    """How text is read."""

    document_separator: str = Field(default="file", min_length=1)
    """What separates documents in a text file: "file" (each file is one document), "line" (each line is one), "newline"
    (a single newline; a blank line only ends a paragraph), "blank" (a blank line), or any other text, such as
    "<|endoftext|>"."""


def load_text(src: Sources, options: DataOptions | None = None) -> Read[str]:
    """Documents from one or more sources, with a summary of what was left out.

    Raises DataError for a record that cannot be used (file, line, field), UsageError for a missing source.
    """
    summary = ReadSummary()
    return Read(list(iter_text(src, options, summary)), summary)


def iter_text(src: Sources, options: DataOptions | None = None, summary: ReadSummary | None = None) -> Iterator[str]:
    """As `load_text`, one document at a time, for corpora larger than memory; `summary` is filled meanwhile."""
    options = options or TextOptions()
    separator = options.document_separator if isinstance(options, TextOptions) else "file"

    def documents(path: Path, encoding: str) -> Iterator[Row]:
        return (Row(str(path), line, {"text": text}) for line, text in _split(path, encoding, separator))

    return TEXT.iterate(src, options, ReadSummary() if summary is None else summary, text_reader=documents)


def read_text(
    src: Sources,
    *,
    format: str = "auto",
    columns: Columns = (),
    encoding: str = "utf-8",
    skip_bad: int = 0,
    document_separator: str = "file",
) -> list[str]:
    """As `load_text`, without the summary.

    Args:
        src: a path, glob, directory or Hugging Face data set id, or a list of them.
        format: a format's name; "auto" detects it, record by record.
        columns: other names for fields: {"text": "body"}, or ["text=body"].
        encoding: of text files.
        skip_bad: how many unusable records may be left out before reading stops with an error.
        document_separator: what separates documents in a text file: "file", "line", "newline", "blank" or any text.
    """
    options = TextOptions(
        format=format,
        columns=columns,  # type: ignore[arg-type]
        encoding=encoding,
        skip_bad=skip_bad,
        document_separator=document_separator,
    )
    return load_text(src, options).records


def _split(path: Path, encoding: str, separator: str) -> Iterator[tuple[int, str]]:
    """The documents of a text file, each with its first line's number; empty ones are skipped."""
    if separator == "line":
        yield from ((number, line) for number, line in numbered_lines(path, encoding) if line.strip())
        return
    text = whole_text(path, encoding)
    if separator == "file":
        yield 1, text
        return
    pattern = {"blank": r"\n[^\S\n]*\n", "newline": r"(?<!\n)\n(?!\n)"}.get(separator, re.escape(separator))
    line, start = 1, 0
    for match in [*re.finditer(pattern, text), None]:
        part = text[start : match.start() if match else len(text)]
        if part.strip():
            leading = len(part) - len(part.lstrip("\n"))
            yield line + leading, part.strip("\n")
        if match:
            line += text.count("\n", start, match.end())
            start = match.end()


def _convert(name: str) -> Callable[[Row], Found[str]]:
    return lambda row: [row.text(name)]


TEXT: Registry[str] = Registry("texts", lambda text: None if text.strip() else "empty text", lambda text: text)


# Titles, years and labels next to a text are ignored; images are not.
TEXT.add(
    *(
        Format(name, {name: "Once."}, {name: IS_TEXT}, _convert(name), meaning=MEDIA, yields="text")
        for name in ("text", "content")
    )
)


def normalised(text: str) -> str:
    """Text without differences in case, white space, Unicode form and trailing punctuation."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return re.sub(r"[\s?!.。]+$", "", plain) or plain
