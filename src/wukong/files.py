"""Files that are complete or absent, and text files read with the errors a person needs.

Every file that matters is written under a temporary name, flushed to the disk and renamed: a reader, or the
same command after a kill -9, sees the old file or the new one and never half of one.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import gzip
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
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
        # Not by tempfile, whose files are private: what others may read is for the umask to say.
        name = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        descriptor = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
        try:
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
        staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        staging.mkdir()
        try:
            yield staging
            for file in staging.rglob("*"):
                if file.is_file():
                    if file.suffix == ".safetensors":
                        follow_umask(file)
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


def follow_umask(file: Path) -> None:
    """Gives a file that a library made private the mode that the umask gave to the new directory around it."""
    file.chmod(file.parent.stat().st_mode & 0o666)


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


def open_bytes(path: str | Path) -> IO[bytes]:
    """A file's bytes, unpacked where it is gzip: by name, or by content, for downloads that lost their .gz.

    Raises UsageError for a missing file or one that may not be read.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: {'is a directory, a file was expected' if path.is_dir() else 'no such file'}")
    try:
        with path.open("rb") as handle:
            packed = path.suffix == ".gz" or handle.read(2) == b"\x1f\x8b"
        return cast(IO[bytes], gzip.open(path, "rb")) if packed else path.open("rb")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None


GZIP_DAMAGE = (gzip.BadGzipFile, EOFError, zlib.error)


def _not_encoded(error: UnicodeDecodeError, encoding: str, path: Path, line: int) -> DataError:
    return DataError(
        f"byte 0x{error.object[error.start]:02x} is not {encoding}",
        file=path,
        line=line,
        hint="convert the file to UTF-8, or name its encoding with --encoding latin-1",
    )


def numbered_lines(path: str | Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """The lines of a text file, plain or .gz, without their newline, numbered from 1.

    Only "\\n" ends a line: Unicode's other separators are legal inside JSON strings and in web text.
    Raises UsageError for a missing file, DataError for damaged gzip or bytes that are not `encoding`.
    """
    path, number = Path(path), 0
    try:
        with open_bytes(path) as handle:
            for number, raw in enumerate(handle, start=1):
                text = raw.decode("utf-8-sig" if number == 1 and encoding == "utf-8" else encoding)
                yield number, text.rstrip("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise _not_encoded(error, encoding, path, number) from None
    except GZIP_DAMAGE as error:
        raise DataError(f"damaged gzip file: {error}", file=path, line=number + 1) from None


def whole_text(path: str | Path, encoding: str = "utf-8") -> str:
    """A whole text file, plain or .gz, with "\\n" for "\\r\\n"; errors as `numbered_lines`."""
    path = Path(path)
    try:
        with open_bytes(path) as handle:
            raw = handle.read()
        return raw.decode("utf-8-sig" if encoding == "utf-8" else encoding).replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise _not_encoded(error, encoding, path, raw.count(b"\n", 0, error.start) + 1) from None
    except GZIP_DAMAGE as error:
        raise DataError(f"damaged gzip file: {error}", file=path) from None


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
