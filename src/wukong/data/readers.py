"""Detects a file's format from its content, and yields its records as `Row`s.

File names are unreliable: `.json` files often hold one object a line, `.jsonl` files sometimes one array, and downloads
lose their suffix. Binary files are read if a library can; others are identified and refused.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

from wukong import foreign_json
from wukong.data.row import Row, is_turns, type_name
from wukong.errors import DataError, Text
from wukong.files import (
    DAMAGE,
    LONGEST_LINE,
    PACKED_SUFFIXES,
    damaged,
    numbered_lines,
    open_bytes,
    whole_bytes,
    whole_text,
)

Kind = Literal["json", "jsonl", "csv", "tsv", "parquet", "arrow", "text"]
Reader: TypeAlias = Callable[[Path, str], Iterator[Row]]

KIND_OF_SUFFIX: dict[str, Kind] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "text",
}
# First bytes of files given by mistake, and what to do about each.
FOREIGN = {
    b"PK\x03\x04": "a zip archive (or an Excel, Word or torch file): unpack it, or export it as JSONL or CSV",
    b"%PDF": "a PDF document: extract its text first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"\x04\x22\x4d\x18": "lz4-compressed: unpack it first",
    b"SQLite format 3": "an SQLite database: export it as JSONL or CSV",
    b"\x89HDF": "an HDF5 file: export it as JSONL or parquet",
    b"\x93NUMPY": "a NumPy array: texts are needed",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x7fELF": "a program",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file: export it as CSV or text",
    b"Obj\x01": "an Avro file: export it as JSONL or parquet",
    b"FEA1": "an old Feather file: export it as parquet",
    b"ORC": "an ORC file: export it as parquet",
    b"\x1f\x9d": "packed by compress: unpack it first",
    b"{\\rtf": "a rich text document: export it as plain text",
    b"%!PS": "a PostScript document: extract its text first",
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself with 'git lfs pull'",
}
WORDS = (b"Rar!", b"SQLite format 3", b"FEA1", b"ORC")
"""Signatures that a text could begin with: it is a file of that kind if it has zero bytes too."""
PAGE = re.compile(rb"(<\?xml[^>]*>\s*)?(<!doctype html|<html[\s>])", re.IGNORECASE)
"""The start of a web page: usually a server's error page, saved under the name of the download."""
ISO_2022 = re.compile(rb"\x1b[$(][@-J]")
CONTROL = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f]")
# Keys under which tools wrap their records in one object, next to a name or a version.
WRAPPERS = ("data", "instances", "rows", "records", "examples")
SAMPLED_ROWS = 50
"""Rows of a CSV file that are examined to decide whether a column holds lists."""


def data_suffix(path: Path) -> str:
    """The suffix without that of a compression: ".jsonl" for "a.jsonl.gz"."""
    return Path(path.stem if path.suffix.lower() in PACKED_SUFFIXES else path.name).suffix.lower()


def file_rows(path: Path, encoding: str = "utf-8", text_reader: Reader | None = None) -> Iterator[Row]:
    kind = sniff(path, encoding)
    return text_reader(path, encoding) if text_reader and kind == "text" else READERS[kind](path, encoding)


def sniff(path: Path, encoding: str = "utf-8") -> Kind:
    """A file's format: by its first bytes if they identify it, else by its suffix, else plain text.

    Raises DataError for an empty file and, with its kind, for a binary one.
    """
    kind = KIND_OF_SUFFIX.get(data_suffix(path))
    try:
        with open_bytes(path) as handle:
            head = handle.read(4096)
    except DAMAGE as error:
        raise damaged(error, path) from None
    if not head.strip():
        raise DataError("the file is empty", file=path)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    _refuse_binary(path, head)
    if kind in ("parquet", "arrow"):
        raise DataError(f"is not in {kind} format, despite its name", file=path)
    if kind in ("csv", "tsv", "text"):
        return kind
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if kind is None and not re.match(rb'\[\s*[{\[]|\{\s*"', start):
        return "text"
    first = _first_line(path, encoding)
    if start.startswith(b"["):
        return "jsonl" if kind != "json" and is_turns(first) else "json"
    if isinstance(first, dict):
        return "jsonl"
    return "json" if kind != "jsonl" or _is_one_document(path, encoding) else "jsonl"


def _refuse_binary(path: Path, head: bytes) -> None:
    zeros = b"\0" in head[:512]
    begun = (magic for magic in FOREIGN if head.startswith(magic) and (zeros or magic not in WORDS))
    what = next((FOREIGN[magic] for magic in begun), None)
    if what is None and PAGE.match(head.removeprefix(codecs.BOM_UTF8).lstrip()):
        what = "a web page: extract its text, or download the file itself"
    if what is None and ISO_2022.search(head):
        what = "text in an ISO-2022 encoding: convert it to UTF-8 first"
    if what is None and zeros and head[257:262] == b"ustar":  # a text about mustard has none
        what = "a tar archive: unpack it first"
    if what is None and head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        what = "a Python pickle, which can run arbitrary code when loaded: export it as JSONL"
    if what is None and head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        what = f"UTF-{32 if head[2:4] == bytes(2) else 16} text: convert it to UTF-8 first"
    if what is None and (b"\0" in head or len(CONTROL.findall(head)) > 0.02 * len(head)):
        what = "a binary file of unknown type"
    if what is not None:
        raise DataError(f"is {what}", file=path)


def _first_line(path: Path, encoding: str) -> Any:
    try:
        return foreign_json.parse(next((line for _, line in numbered_lines(path, encoding) if line.strip()), ""))[0]
    except (DataError, ValueError):
        return None


def _is_one_document(path: Path, encoding: str) -> bool:
    try:
        return bool(foreign_json.parse(whole_text(path, encoding))[0])
    except (DataError, ValueError):
        return False


# --------------------------------------------------------------------------------------------------------------- JSON


def jsonl_rows(path: Path, encoding: str) -> Iterator[Row]:
    for number, line in numbered_lines(path, encoding):
        if not line.strip():
            continue
        try:
            value, suspicious = foreign_json.parse(line)
        except ValueError as error:
            problem = f"not JSON: {error}"
            if isinstance(error, json.JSONDecodeError):
                problem = Text("not valid JSON: {reason}", reason=error.msg)
            yield Row(str(path), number, bad=DataError(problem, file=path, line=number))
            continue
        for item in _unwrapped(value):
            yield _checked(path, number, item, suspicious)


def json_rows(path: Path, encoding: str) -> Iterator[Row]:
    """An array of records, or a single record; errors give the position in the array."""
    try:
        value, suspicious = foreign_json.parse(whole_text(path, encoding))
    except json.JSONDecodeError as error:
        raise DataError("not valid JSON: {reason}", reason=error.msg, file=path, line=error.lineno) from None
    except ValueError as error:
        raise DataError(f"not JSON: {error}", file=path) from None
    if is_turns(value) and all(set(turn) in ({"role", "content"}, {"from", "value"}) for turn in value):
        value = [value]  # the whole file is one conversation
    for number, item in enumerate(value if isinstance(value, list) else _unwrapped(value), start=1):
        yield _checked(path, number, item, suspicious)


def _unwrapped(value: Any) -> list[Any]:
    """The records under a key of an object that otherwise holds only a name, a version, ...; else the object itself."""
    if isinstance(value, dict):
        lists = [name for name, item in value.items() if isinstance(item, list) and item]
        if len(lists) == 1 and lists[0] in WRAPPERS and "instruction" not in value:
            items = value[lists[0]]
            if all(isinstance(item, dict) for item in items):
                inner = [item.get("row") for item in items]  # as the hub's viewer wraps rows
                return inner if all(isinstance(item, dict) for item in inner) else items
    return [value]


def _checked(file: Path, number: int, value: Any, suspicious: bool) -> Row:
    """A parsed JSON value as a row."""
    row = Row(str(file), number)
    if isinstance(value, str):
        value = {"text": value}
    elif is_turns(value):
        value = {"messages": value}
    if not isinstance(value, dict):
        row.bad = row.error(f"is {type_name(value)}, expected a JSON object")
    elif suspicious and (found := foreign_json.fault(value)) is not None:
        row.bad = row.error(found[1], found[0] or None)
    else:
        row.fields = value
    return row


# ---------------------------------------------------------------------------------------------------------------- CSV

EMPTY_CELLS = ("nan", "NaN", "<NA>", "NaT", "NULL", "\\N", "#N/A")
"""What pandas, NumPy, databases and Excel write for a missing value. "None" and "N/A" are excluded: they may be
answers."""


def csv_rows(path: Path, encoding: str) -> Iterator[Row]:
    """The rows of a CSV file. A column whose cells are all JSON lists or objects is parsed."""
    plain = _cells(path, encoding)
    ahead = list(itertools.islice(plain, SAMPLED_ROWS))
    seen: dict[str, list[bool]] = {}
    for row in ahead:
        for name, cell in row.fields.items():
            if cell.strip():
                seen.setdefault(name, []).append(_looks_nested(cell))
    nested = {name for name, looks in seen.items() if all(looks)}
    for row in itertools.chain(ahead, plain):
        for name in nested & set(row.fields):
            if row.bad is None and _looks_nested(row.fields[name]):
                _unpack(row, name)
        yield row


NESTED = re.compile(
    r"\s*(array\()?(\[\s*([\[{\"'\d-].*|null.*|None.*)?\]|\{\s*([\"'].*)?\}|\(\s*'.*'\s*,.*\))(\s*,\s*dtype=object)?\)?\s*",
    re.DOTALL,
)
MESSAGES = re.compile(r"\s*(?:array\()?\[\s*\{\s*[\"'](?:role|from|content|value)[\"']\s*:")


def _looks_nested(cell: str) -> bool:
    return NESTED.fullmatch(cell) is not None


def unpack_messages(row: Row) -> Row:
    """Parses messages that were stored as text, as many exporters do with nested data."""
    for name, value in row.fields.items():
        if row.bad is None and isinstance(value, str) and name not in ("text", "content") and MESSAGES.match(value):
            _unpack(row, name)
    return row


def _unpack(row: Row, name: str) -> None:
    """Parses a list or object that was stored as text in a cell."""
    try:
        value, suspicious = foreign_json.parse(row.fields[name])
    except ValueError:
        problem = "is a list or object in Python notation, not JSON"
        row.bad = row.error(problem, name, "write it with json.dumps, or save as JSONL or parquet")
        return
    found = foreign_json.fault(value) if suspicious else None
    if found is not None:
        dot = "" if found[0][:1] in ("", "[") else "."
        row.bad = row.error(found[1], f"{name}{dot}{found[0]}")
    row.fields[name] = value


def _cells(path: Path, encoding: str) -> Iterator[Row]:
    header = next((line for _, line in numbered_lines(path, encoding) if line.strip()), "")
    delimiter = "\t" if data_suffix(path) == ".tsv" else max(",;\t", key=header.count)
    csv.field_size_limit(LONGEST_LINE)  # cells may hold whole documents; the default limit is 128 KiB
    # strict: report a stray quote; the default would silently join records
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
            twice = [name for name, count in Counter(names).items() if count > 1 and name]
            if twice:
                raise DataError("the header names this column twice", file=path, line=start, field=twice[0])
        elif len(cells) != len(names):
            problem = f"{len(cells)} cells, but the header names {len(names)} columns"
            yield Row(str(path), start, bad=DataError(problem, file=path, line=start))
        else:
            row = Row(str(path), start, {name: cell for name, cell in zip(names, cells, strict=True) if name})
            for name, cell in row.fields.items():
                if cell in EMPTY_CELLS:
                    row.fields[name] = ""
                    row.notes.append(f"cell {cell!r} read as empty")
            yield row


# ------------------------------------------------------------------------------------------------------------- binary


def parquet_rows(path: Path, encoding: str) -> Iterator[Row]:
    return _batch_rows(path, "parquet", parquet_batches(path, 1000))


def parquet_batches(path: Path, rows: int) -> Iterator[Any]:
    import pyarrow.parquet

    # pyarrow reads from the end of the file, which a compressed stream does not support
    packed = path.suffix.lower() in PACKED_SUFFIXES
    with open_bytes(path) as handle:
        source = io.BytesIO(whole_bytes(path)) if packed else handle
        yield from pyarrow.parquet.ParquetFile(source).iter_batches(batch_size=rows)


def arrow_rows(path: Path, encoding: str) -> Iterator[Row]:
    """Arrow's two layouts: the file (Feather), and the stream written by Hugging Face's `save_to_disk`."""
    return _batch_rows(path, "Arrow", arrow_batches(path))


def arrow_batches(path: Path) -> Iterator[Any]:
    import pyarrow

    with open_bytes(path) as handle:
        is_file = handle.read(6) == b"ARROW1"
    if is_file:
        reader = pyarrow.ipc.open_file(io.BytesIO(whole_bytes(path)))
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
        return
    with open_bytes(path) as handle:
        yield from pyarrow.ipc.open_stream(handle)


def _batch_rows(path: Path, kind: str, batches: Iterator[Any]) -> Iterator[Row]:
    number = 0
    try:
        for batch in batches:
            batch.validate(full=True)  # else a damaged batch would be read beyond its end
            for record in batch.to_pylist():
                number += 1
                yield Row(str(path), number, record)
    except DataError:
        raise
    except _batch_errors() as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"not a readable {kind} file: {reason}", file=path, line=number + 1 if number else None
        ) from None


def _batch_errors() -> tuple[type[BaseException], ...]:
    """The errors of the library and of its decompressors, which share no base class."""
    import pyarrow

    return (pyarrow.ArrowException, OSError, ValueError, OverflowError, LookupError, TypeError, *DAMAGE)


def check_unpacked(path: Path, limit: int) -> None:
    """Checks an untrusted file before any of it is kept in memory: compressed a thousandfold, it could fill all of it.
    Other faults are left to its reader.

    Raises DataError if it unpacks to more than `limit` bytes, a multiple of 1 MiB.
    """
    for sizes in (_block_sizes(path), _batch_sizes(path)):
        total = 0
        with contextlib.suppress(*_batch_errors()):
            for size in sizes:
                total += size
                if total > limit:
                    break
        if total > limit:
            hint = "split it into several files"
            raise DataError("unpacks to more than {n} MiB", n=limit >> 20, file=path, hint=hint)


def _block_sizes(path: Path) -> Iterator[int]:
    with open_bytes(path) as handle:
        while block := handle.read(1 << 20):
            yield len(block)


def _batch_sizes(path: Path) -> Iterator[int]:
    """For formats with internal compression: a few rows at a time, as one may be large."""
    kind = sniff(path)
    if kind in ("parquet", "arrow"):
        yield from (batch.nbytes for batch in (parquet_batches(path, 16) if kind == "parquet" else arrow_batches(path)))


def text_rows(path: Path, encoding: str) -> Iterator[Row]:
    """Each non-blank line is a record with the single field `text`."""
    for number, line in numbered_lines(path, encoding):
        if line.strip():
            yield Row(str(path), number, {"text": line})


READERS: dict[Kind, Reader] = {
    "json": json_rows,
    "jsonl": jsonl_rows,
    "csv": csv_rows,
    "tsv": csv_rows,
    "parquet": parquet_rows,
    "arrow": arrow_rows,
    "text": text_rows,
}
