"""Files that are complete or absent, and text files read with the errors a person needs.

Every file that matters is written under a temporary name, flushed to the disk and renamed: a reader, or the
same command after a kill -9, sees the old file or the new one and never half of one.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import glob
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from safetensors import SafetensorError

from wukong.errors import DataError, RunError, UsageError

# What a write fails with when the disk will not take it; other errors in a block are not ours to explain.
_DISK_REFUSES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a failure to write to `path` into RunError; errors about other files, such as inputs, pass through."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno not in _DISK_REFUSES:
            raise
        if error.filename is not None and not _belongs_to(Path(os.fsdecode(error.filename)), path):
            raise
        raise _cannot_write(path, error.strerror) from error
    except SafetensorError as error:  # carries the system's error as text: "... (os error 28)"
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise _cannot_write(path, os.strerror(int(number[1]))) from error


def _belongs_to(file: Path, path: Path) -> bool:
    """Whether `file` is `path`, its temporary sibling, one of the directories above, or something inside."""
    own = file == path or file in path.parents or path in file.parents
    return own or any(part.startswith(f".{path.name}.") for part in file.parts)


def _cannot_write(path: Path, reason: str | None) -> RunError:
    return RunError(f"{path}: cannot write ({reason or 'unknown reason'}); nothing was half-written")


def cache_directory() -> Path:
    """Where is kept what this machine can find out or make again: in XDG_CACHE_HOME if that is set, else within the
    virtual environment if that can be written, else in ~/.cache."""
    named = os.environ.get("XDG_CACHE_HOME")
    if not named and sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
        return Path(sys.prefix, "var", "cache", "wukong")
    return Path(named or Path.home() / ".cache") / "wukong"


@contextlib.contextmanager
def exclusive(directory: Path, busy: str, patience: float = 1.0) -> Iterator[None]:
    """Locks a directory, made when absent, for as long as the block lasts; the system frees it when the process ends,
    however it ends. The lock is on the directory itself, so that no file is left behind.

    Where directories have no locks (Windows, some network file systems) nobody is held back.

    Args:
        directory: what is locked.
        busy: what the error says when another process holds it.
        patience: seconds to try again, for somebody may just be looking (`is_locked`).

    Raises:
        UsageError: another process holds the lock.
    """
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with _lock(directory) as locked:
        deadline = time.monotonic() + patience
        while not locked(False):
            if time.monotonic() > deadline:
                raise UsageError(busy)
            time.sleep(0.05)
        yield


def is_locked(directory: Path) -> bool:
    """Whether a process holds this directory's lock at the moment."""
    if not directory.is_dir():
        return False
    with _lock(directory) as locked:
        return not locked(True)


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[Callable[[bool], bool]]:
    """A function that tries once to lock, shared with others or not; true also where there are no locks."""
    try:
        import fcntl

        descriptor = os.open(directory, os.O_RDONLY)
    except (ImportError, OSError):
        yield lambda shared: True
        return

    def locked(shared: bool) -> bool:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # this file system has none
            return True
        return True

    try:
        yield locked
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Waits until the names in a directory are on the disk."""
    with contextlib.suppress(OSError):  # not every file system (or Windows) can sync a directory
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def atomic_open(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that appears under `path` only when the block ended well. Raises RunError on a full disk."""
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            os.chmod(name, 0o644)
            with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        sync_directory(path.parent)


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """A directory that appears under `path` only when the block ended well; one that stood there is replaced.

    The old one is set aside before the new one takes its name and deleted after that, so that at no moment
    neither is on the disk. What a kill -9 left behind is put right or removed by the next call.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.old")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if aside.exists() and not path.exists():  # killed between the two renames
            os.replace(aside, path)
        remove_leftovers(path.parent, glob.escape(path.name))
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            os.chmod(staging, 0o755)
            yield staging
            for file in staging.rglob("*"):
                if file.is_file():
                    sync_file(file)
            if path.exists():
                os.replace(path, aside)
            os.replace(staging, path)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            if aside.exists() and not path.exists():
                os.replace(aside, path)
            raise
        sync_directory(path.parent)
        shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(parent: Path, pattern: str) -> None:
    """Removes what a killed `atomic_directory` left in `parent` of directories whose names match `pattern`."""
    for leftover in [*parent.glob(f".{pattern}.*.tmp"), *parent.glob(f".{pattern}.old")]:
        shutil.rmtree(leftover, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Waits until a closed file's bytes are on the disk."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def write_json(path: str | Path, value: Any) -> None:
    with atomic_open(path) as out:
        json.dump(value, out, indent=2, ensure_ascii=False)
        out.write("\n")


def read_json(path: str | Path) -> Any:
    """Raises UsageError for a missing file and DataError (with the line) for one that is not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON: {error.msg}", file=path, line=error.lineno) from None
    except UnicodeDecodeError:
        raise DataError("not UTF-8 text", file=path) from None


def compression(path: Path, head: bytes) -> str | None:
    """How a file is packed: by its first bytes, for downloads that lost their suffix, else by its name."""
    for name, magic in _MAGIC.items():
        if re.match(magic, head, re.DOTALL):
            return name
    return _PACKED_SUFFIX.get(path.suffix.lower())


_MAGIC = {
    "gzip": rb"\x1f\x8b",
    "bz2": rb"BZh[1-9](1AY&SY|\x17rE8P\x90)",
    "xz": rb"\xfd7zXZ\x00",
    "zst": rb"\x28\xb5\x2f\xfd",
}
_PACKED_SUFFIX = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zst"}
PACKED_SUFFIXES = tuple(_PACKED_SUFFIX)


def open_bytes(path: str | Path) -> IO[bytes]:
    """A file's bytes, unpacked where it is gzip, bz2, xz or zst.

    Raises UsageError for a missing file or one that may not be read, or that is no file (a directory, a pipe).
    """
    path = Path(path)
    try:
        if not path.is_file():
            found = "is a directory" if path.is_dir() else "is a pipe or a device" if path.exists() else None
            raise UsageError(f"{path}: {f'{found}, a file was expected' if found else 'no such file'}")
        with path.open("rb") as handle:
            packed = compression(path, handle.read(10))
        if packed == "zst":
            import pyarrow

            return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
        openers: dict[str | None, Any] = {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open, None: open}
        return cast(IO[bytes], openers[packed](path, "rb"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None


DAMAGE = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, OSError)
"""What reading from `open_bytes` fails with."""
LONGEST_LINE = 1 << 26
"""Bytes: no record is that long, but a file without any line end may be."""
_UNPACKED, _UNPACKED_RATIO = 1 << 26, 200
"""A file that unpacks to more bytes than this, and so many times its own size, is a bomb and not text."""


def damaged(error: BaseException, path: Path, line: int | None = None) -> DataError:
    """One of DAMAGE as a line for people."""
    if isinstance(error, OSError) and error.errno is not None:
        return DataError(f"cannot be read ({error.strerror})", file=path, line=line)
    with path.open("rb") as handle:
        kind = compression(path, handle.read(10)) or ""
    return DataError(f"damaged {kind} file: {error}", file=path, line=line)


def _likely_encoding(raw: bytes) -> str | None:
    """The encoding of bytes that are not UTF-8, where they tell it. Never one that takes any bytes, as Latin-1 does."""
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", raw)]
    pairs = sum(length for length in runs if length > 1)
    for name in ("gb18030", "shift_jis", "cp1252") if pairs > 0.7 * sum(runs) else ("cp1252",):
        with contextlib.suppress(UnicodeDecodeError):
            raw.decode(name)
            return name
    return None


def _not_encoded(error: UnicodeDecodeError, encoding: str, path: Path, line: int) -> DataError:
    if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") and line == 1:
        return DataError("is UTF-16 text", file=path, hint="convert the file to UTF-8")
    likely = _likely_encoding(error.object)
    named = f", or, as it is likely {likely}, give --encoding {likely}" if likely and likely != encoding else ""
    return DataError(
        f"byte 0x{error.object[error.start]:02x} is not {encoding}",
        file=path,
        line=line,
        hint=f"convert the file to UTF-8{named}",
    )


def numbered_lines(path: str | Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """The lines of a text file, plain or packed, without their newline, numbered from 1.

    Only "\\n" ends a line: Unicode's other separators are legal inside JSON strings and in web text.
    Raises UsageError for a missing file, DataError for a damaged one, for bytes that are not `encoding` and for what no
    text holds: NUL bytes, endless lines.
    """
    path, number = Path(path), 0
    try:
        with open_bytes(path) as handle:
            while raw := handle.readline(LONGEST_LINE):
                number += 1
                if len(raw) == LONGEST_LINE and not raw.endswith(b"\n"):
                    raise DataError(f"the line is longer than {LONGEST_LINE >> 20} MiB", file=path, line=number)
                text = raw.decode("utf-8-sig" if number == 1 and encoding == "utf-8" else encoding)
                if "\0" in text:
                    raise _holds_nul(path, number)
                yield number, text.rstrip("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise _not_encoded(error, encoding, path, number) from None
    except DAMAGE as error:
        raise damaged(error, path, number + 1) from None


def _holds_nul(path: Path, line: int) -> DataError:
    return DataError("holds a NUL byte: a binary file, or UTF-16", file=path, line=line)


def whole_bytes(path: str | Path) -> bytes:
    """All bytes of a file, unpacked. Raises as `numbered_lines`, and DataError for a bomb."""
    path = Path(path)
    try:
        with open_bytes(path) as handle:
            raw = handle.read(_UNPACKED)
            if len(raw) == _UNPACKED:
                allowed = max(_UNPACKED, _UNPACKED_RATIO * path.stat().st_size)
                raw += handle.read(allowed - _UNPACKED)
                if len(raw) == allowed and handle.read(1):
                    raise DataError(f"unpacks to more than {_UNPACKED_RATIO} times its size", file=path)
        return raw
    except DAMAGE as error:
        raise damaged(error, path) from None


def whole_text(path: str | Path, encoding: str = "utf-8") -> str:
    """A whole text file, plain or packed, with "\\n" for "\\r\\n"; errors as `numbered_lines`."""
    path = Path(path)
    raw = whole_bytes(path)
    try:
        text = raw.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        raise _not_encoded(error, encoding, path, raw.count(b"\n", 0, error.start) + 1) from None
    if "\0" in text:
        raise _holds_nul(path, text.count("\n", 0, text.index("\0")) + 1)
    return text.replace("\r\n", "\n")


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of all files below a directory."""
    path, digest = Path(path), hashlib.sha256()
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    for file in files:
        if file is not path:
            digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
