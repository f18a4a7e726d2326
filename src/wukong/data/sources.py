"""Where records come from: files, globs, directories or Hugging Face data sets, one `Row` at a time.

A row knows its file and line, so that errors can name them.
"""

from __future__ import annotations

import codecs
import glob
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator

from wukong.data.oasst import assemble_trees
from wukong.data.readers import KIND_OF_SUFFIX, Reader, data_suffix, file_rows, sniff, unpack_messages
from wukong.data.row import Row
from wukong.errors import DataError, UsageError
from wukong.files import read_json

__all__ = ["DataOptions", "Row", "open_rows", "sniff", "source_list"]

Source: TypeAlias = str | Path
Sources: TypeAlias = Source | Sequence[Source]
Columns: TypeAlias = Mapping[str, str] | Sequence[str]

# Codecs that are not text encodings proper: they would give lone surrogates, or hide line ends.
NO_ENCODINGS = {"unicode_escape", "raw_unicode_escape", "utf_7", "punycode", "idna", "undefined"}


class DataOptions(BaseModel):
    """How a source is read; options of every stage that reads data."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    format: str = "auto"
    """The records' format, e.g. "alpaca" or "hh"; "auto" detects it from each record's fields and reports it."""
    columns: list[str] = []
    """Other names for fields, as NAME=COLUMN ("prompt=question"): the column `question` is read as `prompt`. NAME=
    alone leaves a field out. In a recipe also a mapping: {prompt: question}."""
    question: str = ""
    """The question to use if records answer several: the name of a Label Studio or Argilla question, or an aspect of
    UltraFeedback (helpfulness). When absent, the only question, or the overall score."""
    encoding: str = "utf-8"
    """The text encoding of files, e.g. "cp1252" for older files from Windows."""
    skip_bad: int = Field(default=0, ge=0)
    """The number of unusable records to leave out (and list) before reading stops with an error."""

    @field_validator("encoding")
    @classmethod
    def _is_line_encoding(cls, name: str) -> str:
        try:
            canonical = codecs.lookup(name).name
            same = canonical.replace("-", "_") not in NO_ENCODINGS and "\n".encode(canonical) == b"\n"
        except (LookupError, ValueError):
            raise ValueError(f"unknown encoding {name!r}; try utf-8 or cp1252") from None
        if not same:
            raise ValueError(f"files in {name} cannot be read line by line: convert them to UTF-8 first")
        return canonical

    @field_validator("columns", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            if odd := [name for name, column in value.items() if not isinstance(column, str | None)]:
                raise ValueError(f"{odd[0]}: expected the name of a column")
            return [f"{name}={'' if column is None else column}" for name, column in value.items()]
        return value

    @field_validator("columns")
    @classmethod
    def _pairs(cls, value: list[str]) -> list[str]:
        names = [pair.partition("=")[0] for pair in value]
        for pair, name in zip(value, names, strict=True):
            if "=" not in pair or not name:
                raise ValueError(f"{pair!r} is not NAME=COLUMN, e.g. prompt=question")
            if names.count(name) > 1:
                raise ValueError(f"{name!r} is given twice")
        return value

    def renamed(self, row: Row) -> Row:
        """The row with its columns renamed to the readers' names. A dot reaches into an object."""
        pairs = [(pair.partition("=")[0], pair.partition("=")[2]) for pair in self.columns]
        if row.bad is not None or not pairs:
            return row
        taken = {column for _, column in pairs}
        fields = {name: value for name, value in row.fields.items() if name not in taken}
        for name, column in pairs:
            found = _inside(row.fields, column) if column else None
            if found is not None:
                fields[name] = found[0]
                row.renamed.add(column)
            elif not column:
                fields.pop(name, None)
            elif name not in row.fields:
                row.lacking.append((name, column))
        row.fields = fields
        return row

    def check_columns(self, found: set[str], src: Sources) -> None:
        """Raises DataError for a column that no record of any source has: a typo that would change what is read."""
        for pair in self.columns:
            name, _, column = pair.partition("=")
            if column and column not in found:
                hint = f"--columns {pair} reads it as {name!r}"
                raise DataError(f"no record has the column {column!r}", file=", ".join(source_list(src)), hint=hint)


def _inside(fields: Mapping[str, Any], column: str) -> tuple[Any] | None:
    """The value of a column, or of a path such as "input.text", in a tuple; None if absent."""
    if column in fields:
        return (fields[column],)
    first, dot, rest = column.partition(".")
    inner = fields.get(first)
    return _inside(inner, rest) if dot and isinstance(inner, dict) else None


# --- finding the source -------------------------------------------------------------------------------------


def source_list(src: Sources) -> list[str]:
    return [str(src)] if isinstance(src, str | Path) else [str(one) for one in src]


def local_files(src: str) -> list[Path]:
    """The files named by a path, directory or glob; [] if none (it may be a hub id)."""
    try:
        path = Path(src).expanduser()
        if path.is_dir():
            return _directory_files(path, None)
        if path.exists():
            return [path]
        place, _, split = src.rpartition(":")
        if place and (Path(place).expanduser() / "dataset_dict.json").is_file():
            return _directory_files(Path(place).expanduser(), split)
        return [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
    except (OSError, ValueError, RuntimeError, re.error) as error:  # too long, contains a NUL, unknown ~user
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{src[:100]!r}: no such file or directory ({reason})") from None


def _directory_files(path: Path, split: str | None) -> list[Path]:
    """A directory's data files in order; for one saved by `datasets` (`save_to_disk`), those of the split."""
    if (path / "dataset_dict.json").is_file():
        splits = _listed(path / "dataset_dict.json", "splits")
        name = split or ("train" if "train" in splits or len(splits) != 1 else splits[0])
        if name not in splits:
            raise UsageError(f"{path}: has no split {name!r}; specify one of {', '.join(splits)} as {path}:SPLIT")
        path = path / name
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        names = [item.get("filename") for item in _listed(path / "state.json", "_data_files") if isinstance(item, dict)]
        files = [path / str(name) for name in names]
    else:
        files = [f for f in sorted(path.iterdir()) if data_suffix(f) in KIND_OF_SUFFIX and not _is_metadata_file(f)]
    if not files:
        raise UsageError(f"{path}: the directory holds no data file ({', '.join(KIND_OF_SUFFIX)}, or these packed)")
    return files


def _listed(file: Path, key: str) -> list[Any]:
    value = read_json(file)
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise DataError("is not a list", file=file, field=key)
    return found


def _is_metadata_file(file: Path) -> bool:
    return file.name.startswith(".") or file.name.lower().startswith(("license", "readme"))


def open_rows(src: Source, encoding: str = "utf-8", text_reader: Reader | None = None) -> Iterator[Row]:
    """The records of a file, directory, glob or Hugging Face data set, lazily if the format allows.

    Args:
        src: a path, or a data set id: "owner/name", "owner/name:split", "owner/name:config:split"; a
            directory inside the data set may follow the name ("Anthropic/hh-rlhf/harmless-base:test").
        encoding: of text files.
        text_reader: turns a plain text file into rows; without it, each line is a row.

    Raises UsageError if there is no such source, DataError if it cannot be read or is empty.
    """
    names: Sequence[Source] = local_files(str(src)) or [str(src)]
    for name in names:
        rows = file_rows(name, encoding, text_reader) if isinstance(name, Path) else hub_rows(str(name))
        rows = assemble_trees(map(unpack_messages, rows))
        first = next(rows, None)
        if first is None:
            raise DataError("contains no records", file=name)
        yield from itertools.chain([first], rows)


def _hub_is_reachable(name: str) -> bool:
    """Whether the hub is reachable; cached data sets can be read without it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().dataset_info(name, timeout=5)
    except HfHubHTTPError:  # it answered: no such data set, or no access
        return True
    except Exception:  # no connection, timeout, bad certificate: each HTTP library has its own errors
        return False
    return True


def hub_rows(src: str) -> Iterator[Row]:
    name, *rest = src.split(":")
    place = Path(name).expanduser()
    here = os.path.lexists(src) or (not place.is_dir() and place.parent != Path() and place.parent.is_dir())  # a typo
    known = re.fullmatch(r"[\w.~-]*(/[\w.-]+)*(:[\w.-]+){0,2}", src)
    if data_suffix(Path(name)) in KIND_OF_SUFFIX or here or not known:
        raise UsageError(f"{src}: no such file or directory")
    split, config = (rest[-1] if rest else "train"), (rest[0] if len(rest) == 2 else None)
    inside = None
    if not Path(name).is_dir() and name.count("/") > 1:
        owner, repository, inside = name.split("/", 2)
        name = f"{owner}/{repository}"
    import datasets

    if not Path(name).is_dir() and not _hub_is_reachable(name):  # the library would retry for half a minute
        datasets.config.HF_HUB_OFFLINE = True
    try:
        loaded = datasets.load_dataset(name, config, data_dir=inside, split=split)
    except Exception as error:  # the errors of library, network and server share no base class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{src}: no such local file, and it could not be loaded from the Hugging Face hub: {reason}"
        ) from error
    return (Row(src, number, dict(record), hub=True) for number, record in enumerate(loaded, start=1))
