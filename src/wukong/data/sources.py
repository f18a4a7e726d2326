"""Where records come from: files of any public shape, or a Hugging Face data set, one `Row` at a time.

What a file holds is decided by looking into it, because names lie: `.json` files often hold one object a
line, and `.jsonl` files sometimes one array. A row knows its file and line, so that whoever finds something
wrong in it can say where it stands.
"""

from __future__ import annotations

import codecs
import csv
import glob
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator

from wukong.errors import DataError, UsageError
from wukong.files import GZIP_DAMAGE, numbered_lines, open_bytes, whole_text
from wukong.records import Message, Messages

Source: TypeAlias = str | Path
Sources: TypeAlias = Source | Sequence[Source]
Kind = Literal["json", "jsonl", "csv", "tsv", "parquet", "text"]

KIND_OF_SUFFIX: dict[str, Kind] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
}
# The words that public data sets use for the three roles.
ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}


class DataOptions(BaseModel):
    """How a source is read; the options of every stage that reads data."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    format: str = "auto"
    """The records' format, e.g. "alpaca" or "hh"; "auto" looks at the fields and says what it chose."""
    encoding: str = "utf-8"
    """The text encoding of files; some older sets need "latin-1"."""
    skip_bad: int = Field(default=0, ge=0)
    """How many unusable records may be left out (and listed) before reading stops with an error."""

    @field_validator("encoding")
    @classmethod
    def _lines_can_be_found(cls, name: str) -> str:
        try:
            canonical = codecs.lookup(name).name
        except LookupError:
            raise ValueError(f"unknown encoding {name!r}; try utf-8 or latin-1") from None
        if "\n".encode(canonical) != b"\n":
            raise ValueError(f"files in {name} cannot be read line by line: convert them to UTF-8 first")
        return canonical


@dataclass
class Row:
    """One record as it stands in its source, with helpers that read its fields or say what is wrong with them.

    `bad` is set instead of `fields` when the record could not even be parsed, so that reading can go on
    behind it where bad records are allowed. `notes` collects what a reader changed, `cuts` what it shortened.
    """

    file: str
    line: int
    fields: dict[str, Any] = field(default_factory=dict)
    bad: DataError | None = None
    notes: list[str] = field(default_factory=list)
    cuts: list[str] = field(default_factory=list)
    hub: bool = False

    @property
    def source(self) -> str:
        """The name that records keep of where they came from: without directories, which differ by machine."""
        return self.file if self.hub else Path(self.file).name

    def error(self, problem: str, name: str | None = None, hint: str | None = None) -> DataError:
        return DataError(problem, file=self.file, line=self.line, field=name, hint=hint)

    def string(self, value: Any, name: str) -> str:
        """`value` as text. Numbers and booleans count as text (JSON converters turn "True" into true)."""
        if isinstance(value, str):
            return value
        if isinstance(value, bool | int | float):
            self.notes.append("number or boolean read as text")
            return str(value)
        raise self.error(f"is {_type_name(value)}, text was expected", name)

    def text(self, *names: str) -> str:
        """The first of these fields that the record has; a record without any is an error."""
        for name in names:
            if name in self.fields:
                return self.string(self.fields[name], name)
        raise self.error("is missing", " or ".join(names), f"found: {', '.join(map(str, self.fields)) or 'nothing'}")

    def optional(self, *names: str) -> str:
        """As `text`, but "" for a field that is absent or null."""
        return next((self.text(name) for name in names if self.fields.get(name) is not None), "")

    def object(self, value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(f"is {_type_name(value)}, an object was expected", name)
        return value

    def objects(self, value: Any, name: str) -> list[dict[str, Any]]:
        if not isinstance(value, list):
            raise self.error(f"is {_type_name(value)}, a list was expected", name)
        return [self.object(item, f"{name}[{i}]") for i, item in enumerate(value)]

    def turns(self, value: Any, name: str) -> Messages:
        """A list of {role, content} or ShareGPT's {from, value} -> messages."""
        return [self.turn(item, f"{name}[{i}]") for i, item in enumerate(self.objects(value, name))]

    def turn(self, value: dict[str, Any], name: str) -> Message:
        role_key = "role" if "role" in value else "from"
        content_key = next((key for key in ("content", "value", "text") if key in value), "content")
        role = ROLES.get(str(value.get(role_key)).lower())
        if role is None:
            raise self.error(
                f"unknown role {value.get(role_key)!r}", f"{name}.{role_key}", f"known: {', '.join(ROLES)}"
            )
        content = value.get(content_key)
        if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
            content = "".join(self.string(part["text"], f"{name}.{content_key}") for part in content)
        return Message(role=role, content=self.string(content, f"{name}.{content_key}"))


Reader: TypeAlias = Callable[[Path, str], Iterator[Row]]


def _type_name(value: Any) -> str:
    names = {type(None): "null", dict: "an object", list: "a list", str: "text", bool: "a boolean"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


# --- finding the source -------------------------------------------------------------------------------------


def source_list(src: Sources) -> list[str]:
    return [str(src)] if isinstance(src, str | Path) else [str(one) for one in src]


def data_suffix(path: Path) -> str:
    """The suffix that tells the format: ".jsonl" of "a.jsonl.gz"."""
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()


def local_files(src: str) -> list[Path]:
    """The files that a path, a directory or a glob names; [] when it names none (it may be a hub id)."""
    path = Path(os.path.expanduser(src))  # of a user who does not exist, the name as it is
    if path.is_dir():
        files = [f for f in sorted(path.iterdir()) if data_suffix(f) in KIND_OF_SUFFIX and not _is_paperwork(f)]
        if not files:
            raise UsageError(f"{path}: the directory holds no data file ({', '.join(KIND_OF_SUFFIX)}, each also .gz)")
        return files
    if path.exists():
        return [path]
    return [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]


def _is_paperwork(file: Path) -> bool:
    return file.name.startswith(".") or file.name.lower().startswith(("license", "readme"))


def open_rows(src: Source, encoding: str = "utf-8", text_reader: Reader | None = None) -> Iterator[Row]:
    """The records of a file, directory, glob or Hugging Face data set, lazily where the format allows it.

    Args:
        src: a path, or a data set id: "owner/name", "owner/name:split", "owner/name:config:split"; a
            directory inside the data set may follow the name ("Anthropic/hh-rlhf/harmless-base:test").
        encoding: of text files.
        text_reader: how a plain text file becomes rows; without it, each line is one.

    Raises UsageError when there is no such source, DataError when it cannot be read or is empty.
    """
    names: Sequence[Source] = local_files(str(src)) or [str(src)]
    for name in names:
        rows = file_rows(name, encoding, text_reader) if isinstance(name, Path) else hub_rows(str(name))
        first = next(rows, None)
        if first is None:
            raise DataError("holds no record", file=name)
        yield from itertools.chain([first], rows)


def hub_rows(src: str) -> Iterator[Row]:
    name, *rest = src.split(":")
    if data_suffix(Path(name)) in KIND_OF_SUFFIX or not re.fullmatch(r"[\w.~-]*(/[\w.-]+)*", name) or len(rest) > 2:
        raise UsageError(f"{src}: no such file or directory")
    split, config = (rest[-1] if rest else "train"), (rest[0] if len(rest) == 2 else None)
    inside = None
    if not Path(name).is_dir() and name.count("/") > 1:
        owner, repository, inside = name.split("/", 2)
        name = f"{owner}/{repository}"
    from datasets import load_dataset

    try:
        loaded = load_dataset(name, config, data_dir=inside, split=split)
    except Exception as error:  # the library's own, the network's and the server's errors share no base class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{src}: there is no such file here, and it could not be loaded from the Hugging Face hub: {reason}"
        ) from error
    return (Row(src, number, dict(record), hub=True) for number, record in enumerate(loaded, start=1))


# --- reading one file -----------------------------------------------------------------------------------------


def file_rows(path: Path, encoding: str = "utf-8", text_reader: Reader | None = None) -> Iterator[Row]:
    kind = sniff(path, encoding)
    return text_reader(path, encoding) if text_reader and kind == "text" else READERS[kind](path, encoding)


def sniff(path: Path, encoding: str = "utf-8") -> Kind:
    """What a file holds: by its first bytes where they tell, else by its suffix, else plain text."""
    suffix = data_suffix(path)
    try:
        with open_bytes(path) as handle:
            head = handle.read(4096)
    except GZIP_DAMAGE as error:
        raise DataError(f"damaged gzip file: {error}", file=path) from None
    if not head.strip():
        raise DataError("the file is empty", file=path)
    if head.startswith(b"PAR1"):
        return "parquet"
    kind = KIND_OF_SUFFIX.get(suffix)
    if kind in ("csv", "tsv", "text", "parquet"):
        return kind
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if kind is None and not re.match(rb'\[\s*\{|\{\s*"', start):
        return "text"
    if start.startswith(b"[") or not _first_line_is_an_object(path, encoding):
        return "json" if start.startswith(b"[") or kind != "jsonl" or _is_one_document(path, encoding) else "jsonl"
    return "jsonl"


def _first_line_is_an_object(path: Path, encoding: str) -> bool:
    try:
        first = next((line for _, line in numbered_lines(path, encoding) if line.strip()), "")
        return isinstance(json.loads(first), dict)
    except (DataError, ValueError, RecursionError):
        return False


def _is_one_document(path: Path, encoding: str) -> bool:
    try:
        return bool(json.loads(whole_text(path, encoding)))
    except (DataError, ValueError, RecursionError):
        return False


HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def _checked(file: Path, number: int, value: Any, halves: bool) -> Row:
    """A parsed JSON value as a row; `halves`: its text held surrogate escapes, which may lack their other half."""
    row = Row(str(file), number)
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict):
        row.bad = row.error(f"{_type_name(value)} stands where a JSON object was expected")
    elif halves and (broken := _lone_surrogate(value)) is not None:
        row.bad = row.error("holds half a character (a lone surrogate escape such as \\ud800)", broken or None)
    else:
        row.fields = value
    return row


def _lone_surrogate(value: Any, name: str = "") -> str | None:
    """The field in which a string holds a lone surrogate, which no UTF-8 file could store; None if none does."""
    if isinstance(value, str):
        return name if any("\ud800" <= character <= "\udfff" for character in value) else None
    children: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        children = ((f"{name}.{key}" if name else str(key), child) for key, child in value.items())
    elif isinstance(value, list):
        children = ((f"{name}[{i}]", child) for i, child in enumerate(value))
    return next((found for key, child in children if (found := _lone_surrogate(child, key)) is not None), None)


def jsonl_rows(path: Path, encoding: str) -> Iterator[Row]:
    for number, line in numbered_lines(path, encoding):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            problem = (
                f"not valid JSON: {error.msg}" if isinstance(error, json.JSONDecodeError) else f"not JSON: {error}"
            )
            yield Row(str(path), number, bad=DataError(problem, file=path, line=number))
            continue
        yield _checked(path, number, value, HALF_CHARACTER.search(line) is not None)


def json_rows(path: Path, encoding: str) -> Iterator[Row]:
    """An array of records, or one record that is the whole file; located by number within the array."""
    text = whole_text(path, encoding)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON: {error.msg}", file=path, line=error.lineno) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", file=path) from None
    halves = HALF_CHARACTER.search(text) is not None
    for number, item in enumerate(value if isinstance(value, list) else [value], start=1):
        yield _checked(path, number, item, halves)


def csv_rows(path: Path, encoding: str) -> Iterator[Row]:
    header = next((line for _, line in numbered_lines(path, encoding) if line.strip()), "")
    delimiter = "\t" if data_suffix(path) == ".tsv" else max(",;\t", key=header.count)
    csv.field_size_limit(sys.maxsize)  # whole documents stand in cells; the module's default is 128 KiB
    # strict: a stray quote is an error with its line, where the default would silently join records
    reader = csv.reader((line + "\n" for _, line in numbered_lines(path, encoding)), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"not valid CSV: {error}", file=path, line=start, hint="check the quotes") from None
        if not cells:
            continue
        if names is None:
            names = [name.strip() for name in cells]
        elif len(cells) != len(names):
            problem = f"{len(cells)} cells, but the header names {len(names)} columns"
            yield Row(str(path), start, bad=DataError(problem, file=path, line=start))
        else:
            yield Row(str(path), start, dict(zip(names, cells, strict=True)))


def parquet_rows(path: Path, encoding: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with open_bytes(path) as handle:
            # pyarrow reads from the end of the file, which a gzip stream cannot do
            table = pyarrow.parquet.ParquetFile(io.BytesIO(handle.read()) if path.suffix == ".gz" else handle)
            for batch in table.iter_batches(batch_size=1000):
                for record in batch.to_pylist():
                    number += 1
                    yield Row(str(path), number, record)
    except (pyarrow.ArrowException, OSError, *GZIP_DAMAGE) as error:
        raise DataError(f"not a readable parquet file: {str(error).splitlines()[0]}", file=path) from None


def text_rows(path: Path, encoding: str) -> Iterator[Row]:
    """A line of text is a record with the one field `text`; blank lines separate nothing and are passed over."""
    for number, line in numbered_lines(path, encoding):
        if line.strip():
            yield Row(str(path), number, {"text": line})


READERS: dict[Kind, Reader] = {
    "json": json_rows,
    "jsonl": jsonl_rows,
    "csv": csv_rows,
    "tsv": csv_rows,
    "parquet": parquet_rows,
    "text": text_rows,
}
