"""Atomic file writing, and reading of text files with helpful errors.

Every important file is written under a temporary name, flushed to disk and renamed: a reader, or the same command after
a kill -9, sees the old file or the new one, never a partial one.
"""

from __future__ import annotations

import bz2
import contextlib
import copy
import errno
import glob
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import secrets
import shutil
import stat
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import yaml
from safetensors import SafetensorError

from wukong.errors import DataError, RunError, UsageError

# Errors that mean that the disk refused a write; others in the block pass through.
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
    except SafetensorError as error:  # contains the system's error as text: "... (os error 28)"
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise _cannot_write(path, os.strerror(int(number[1]))) from error


def _belongs_to(file: Path, path: Path) -> bool:
    """Whether `file` is `path`, its temporary sibling, a directory above it, or inside it."""
    own = file == path or file in path.parents or path in file.parents
    return own or any(part.startswith(f".{path.name}.") for part in file.parts)


def _cannot_write(path: Path, reason: str | None) -> RunError:
    return RunError(f"{path}: cannot write ({reason or 'unknown reason'}); no partial file was left")


def cache_directory() -> Path:
    """The directory for reproducible data: in XDG_CACHE_HOME if set, else in the virtual environment if writable, else
    in ~/.cache."""
    named = os.environ.get("XDG_CACHE_HOME")
    if not named and sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
        return Path(sys.prefix, "var", "cache", "wukong")
    return Path(named or Path.home() / ".cache") / "wukong"


# ------------------------------------------------------------------------------------------------------------- locks


class FileLock:
    """A lock held by this process until `release` or garbage collection."""

    def __init__(self, descriptor: int, place: Path) -> None:
        self.descriptor, self.thread, self.for_a_block = descriptor, threading.get_ident(), False
        self.release = weakref.finalize(self, _unlock, descriptor, place)

    def transfer_to(self, place: Path) -> FileLock:
        self.release.detach()
        return FileLock(self.descriptor, place)


def _unlock(descriptor: int, place: Path) -> None:
    if place.suffix == LOCK_SUFFIX:
        place.unlink(missing_ok=True)
    os.close(descriptor)


LOCK_SUFFIX = ".lock"
_HELD: weakref.WeakValueDictionary[tuple[int, int], FileLock] = weakref.WeakValueDictionary()
"""By device and inode: two descriptors in one process would block each other."""
_GUARD = threading.RLock()


def acquire_lock(place: Path, busy: str, patience: float = 1.0) -> FileLock | None:
    """Locks a directory, created if absent, or a lock file (`*.lock`), until released; the system releases it when the
    process ends in any way. A thread may lock again what it holds already, so that a command that failed in a notebook
    can be rerun. (Inside its own `exclusive` block it gets None.)

    Without lock support (Windows, some network file systems) nothing is locked, and the result is None.

    Args:
        place: what is locked.
        busy: the error message if another process or thread holds the lock.
        patience: seconds to retry, since another process may only be checking (`is_locked`).

    Raises:
        UsageError: another process or thread holds the lock. RunError: the place cannot be created.
    """
    deadline = time.monotonic() + patience
    while True:
        with disk_errors(place):
            (place.parent if place.suffix == LOCK_SUFFIX else place).mkdir(parents=True, exist_ok=True)
            descriptor = _descriptor(place)
        if descriptor is None:
            return None
        status = os.fstat(descriptor)
        key = status.st_dev, status.st_ino
        with _GUARD:
            mine = _HELD.get(key)
            mine = mine if mine is not None and mine.release.alive else None
            if mine is not None and mine.thread == threading.get_ident():
                os.close(descriptor)
                if mine.for_a_block:
                    return None
                _HELD[key] = again = mine.transfer_to(place)
                return again
            got = None if mine is not None else _try_lock(descriptor, shared=False)
            if got and os.fstat(descriptor).st_nlink:  # not deleted meanwhile by its previous holder
                _HELD[key] = taken = FileLock(descriptor, place)
                return taken
        os.close(descriptor)
        if got is None and mine is None:
            return None
        if time.monotonic() > deadline:
            raise UsageError(busy)
        time.sleep(0.05)


@contextlib.contextmanager
def exclusive(directory: Path, busy: str, patience: float = 1.0) -> Iterator[None]:
    """Locks a directory for the duration of the block, as `acquire_lock` does. The lock is on the directory itself, so
    that no file is left behind."""
    deadline = time.monotonic() + patience
    while (held := acquire_lock(directory, busy, patience)) is None and _held_for_a_block(directory):
        if time.monotonic() > deadline:
            raise UsageError(busy)
        time.sleep(0.05)
    if held is not None:
        held.for_a_block = True
    try:
        yield
    finally:
        if held is not None:
            held.release()


def _held_for_a_block(directory: Path) -> bool:
    status = directory.stat()
    held = _HELD.get((status.st_dev, status.st_ino))
    return held is not None and held.release.alive and held.for_a_block


def is_locked(directory: Path) -> bool:
    """Whether a process holds this directory's lock now."""
    if not directory.is_dir() or (descriptor := _descriptor(directory)) is None:
        return False
    try:
        return _try_lock(descriptor, shared=True) is False
    finally:
        os.close(descriptor)


def _descriptor(place: Path) -> int | None:
    """A descriptor to lock; None if directories cannot be opened (Windows)."""
    if place.suffix == LOCK_SUFFIX:
        return os.open(place, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        return os.open(place, os.O_RDONLY)
    except OSError:
        return None


def _try_lock(descriptor: int, shared: bool) -> bool | None:
    """Whether it is locked now; None without lock support."""
    try:
        import fcntl

        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


# ----------------------------------------------------------------------------------------------------------- writing


def sync_directory(path: Path) -> None:
    """Flushes a directory's entries to disk."""
    with contextlib.suppress(OSError):  # some file systems (and Windows) cannot sync a directory
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _temporary(path: Path, directory: bool) -> tuple[Path, int | None]:
    """(a new file or directory next to `path`, its locked descriptor): the lock marks it as in use.

    Not by tempfile, whose files are private: permissions should follow the umask.
    """
    while True:
        name = path.with_name(f".{path.name}.wukong-{secrets.token_hex(4)}.tmp")
        descriptor: int | None
        if directory:
            name.mkdir()
            descriptor = _descriptor(name)
        else:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
            descriptor = os.open(name, flags, 0o666)
        if descriptor is None or _try_lock(descriptor, shared=False) is None or os.fstat(descriptor).st_nlink:
            return name, descriptor
        os.close(descriptor)  # another process removed it as a leftover before it was locked


@contextlib.contextmanager
def atomic_open(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that appears at `path` only if the block succeeds. Raises RunError on a full disk."""
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        name, descriptor = _temporary(path, directory=False)
        assert descriptor is not None
        try:
            with os.fdopen(os.dup(descriptor), mode, encoding=None if "b" in mode else "utf-8") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        finally:
            os.close(descriptor)
        sync_directory(path.parent)


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """A directory that appears at `path` only if the block succeeds, replacing an existing one.

    The old directory is set aside, the new one takes its name, and the old one is deleted, so that one of them always
    exists. Leftovers of a kill -9 are restored or removed by the next call.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.old")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if aside.exists() and not path.exists():  # killed between the two renames
            os.replace(aside, path)
        remove_leftovers(path.parent, glob.escape(path.name))
        remove_set_aside(path.parent, glob.escape(path.name))
        staging, descriptor = _temporary(path, directory=True)
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
        finally:
            if descriptor is not None:
                os.close(descriptor)
        sync_directory(path.parent)
        shutil.rmtree(aside, ignore_errors=True)


_OURS = re.compile(r"\..+\.wukong-[a-z0-9_]{8}\.tmp")
_OURS_BEFORE = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")
"""Names used by older versions, which others might use too: matched only together with the file's name."""
A_DAY = 86_400.0


def remove_leftovers(parent: Path, pattern: str = "*", deep: bool = False) -> None:
    """Removes temporary files and directories of killed processes in `parent` (with `deep`, also below it) whose
    targets match `pattern`. Those of running processes are locked and stay; without lock support they stay for a
    day."""
    ours = _OURS if pattern == "*" else re.compile(f"{_OURS.pattern}|{_OURS_BEFORE.pattern}")
    for leftover in list((parent.rglob if deep else parent.glob)(f".{pattern}.*.tmp")):
        if ours.fullmatch(leftover.name):
            _remove_if_abandoned(leftover)


def remove_set_aside(parent: Path, pattern: str) -> None:
    """Removes directories replaced by a killed `atomic_directory` (those not yet replaced have been restored)."""
    for aside in parent.glob(f".{pattern}.old"):
        shutil.rmtree(aside, ignore_errors=True)


def _remove_if_abandoned(leftover: Path) -> None:
    try:
        descriptor = os.open(leftover, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return
    try:
        locked = _try_lock(descriptor, shared=False)
        if locked or (locked is None and time.time() - os.fstat(descriptor).st_mtime > A_DAY):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def follow_umask(file: Path) -> None:
    """Sets the mode of a file that a library made private according to the umask, as seen on its new directory."""
    file.chmod(file.parent.stat().st_mode & 0o666)


def sync_file(path: Path) -> None:
    """Flushes a closed file to disk."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def write_json(path: str | Path, value: Any) -> None:
    with atomic_open(path) as out:
        json.dump(value, out, indent=2, ensure_ascii=False)
        out.write("\n")


def read_json(path: str | Path) -> Any:
    """Raises UsageError for a missing or irregular file (a directory, a pipe), and DataError (with the line if known)
    for invalid JSON, or JSON that Python cannot represent."""
    path = Path(path)
    try:
        text = _regular_bytes(path).decode()
        value = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        raise DataError("not valid JSON: {reason}", reason=error.msg, file=path, line=error.lineno) from None
    except UnicodeDecodeError:
        raise DataError("not UTF-8 text", file=path) from None
    except UnicodeEncodeError:
        raise DataError("contains half a character (a lone surrogate such as \\ud800)", file=path) from None
    except RecursionError:
        raise DataError("nested too deeply", file=path) from None
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"not usable JSON: {error}", file=path) from None


def _regular_bytes(path: Path) -> bytes:
    """A file's bytes. A pipe, which could block for ever, is refused."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as handle:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UsageError(f"{path}: expected a file, not a pipe or a device")
            return handle.read()
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UsageError(f"{path}: is a directory, expected a file") from None
    except (OSError, ValueError) as error:  # no permission, or a name that is too long or contains a NUL
        raise UsageError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


YAML_BYTES, YAML_NODES, YAML_DEPTH, YAML_NUMBER = 1 << 20, 100_000, 64, 400
"""Limits for recipes, which are small: anything larger (after alias expansion) or deeper, or longer numbers, is a
mistake or an attack."""


def read_yaml(path: str | Path) -> tuple[Any, yaml.Node | None]:
    """(the content, the nodes with their line numbers) of a YAML file, loaded safely and bounded in size.

    Raises UsageError for a missing file and DataError, with the line, for invalid YAML.
    """
    path = Path(path)
    if path.exists() and path.stat().st_size > YAML_BYTES:
        raise DataError(f"is larger than {YAML_BYTES >> 10:,} kB, the limit for a recipe", file=path)
    text = whole_text(path)
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None, None
        _bounded(root, path, {}, 0)
        return loader.construct_document(copy.deepcopy(root)), root  # constructing modifies the nodes (merged keys)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise DataError(f"not valid YAML: {error.problem}", file=path, line=mark.line + 1 if mark else None) from None
    except yaml.YAMLError as error:
        raise DataError(f"not valid YAML: {error}", file=path) from None
    except RecursionError:
        raise DataError("nested too deeply", file=path) from None
    except (ValueError, TypeError, OverflowError, AttributeError, KeyError) as error:  # 2024-13-45, 0x_, !!binary
        raise DataError(f"contains an invalid YAML value: {error}", file=path) from None


def _bounded(node: yaml.Node, path: Path, sizes: dict[int, int], depth: int) -> int:
    """The number of nodes after alias expansion. Each node is visited once, however often it is referenced."""

    def wrong(problem: str, at: yaml.Node = node) -> DataError:
        return DataError(problem, file=path, line=at.start_mark.line + 1)

    if (known := sizes.get(id(node))) is not None:
        if not known:
            raise wrong("an alias refers to a value that contains it")
        return known
    if depth > YAML_DEPTH:
        raise wrong("nested too deeply")
    size, sizes[id(node)] = 1, 0  # 0: count in progress
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in (_TEXT, _MERGE):
                raise wrong("a key must be text; put it in quotes", key)
            size += 1 + _bounded(value, path, sizes, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_bounded(item, path, sizes, depth + 1) for item in node.value)
    elif node.tag != _TEXT and len(node.value) > YAML_NUMBER:
        raise wrong(f"a number or date of {len(node.value):,} characters")
    if size > YAML_NODES:
        raise wrong(f"more than {YAML_NODES:,} values after expanding aliases")
    sizes[id(node)] = size
    return size


_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


def compression(path: Path, head: bytes) -> str | None:
    """A file's compression: by its first bytes, for downloads that lost their suffix, else by its name."""
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
    """Opens a file, decompressing gzip, bz2, xz and zst.

    Raises UsageError for a missing, unreadable or irregular file (a directory, a pipe).
    """
    path = Path(path)
    try:
        if not path.is_file():
            found = "is a directory" if path.is_dir() else "is a pipe or a device" if path.exists() else None
            raise UsageError(f"{path}: {f'{found}, expected a file' if found else 'no such file'}")
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
"""The errors of reading from `open_bytes`."""
LONGEST_LINE = 1 << 26
"""Bytes: no record is that long, but a file without any line end may be."""
UNPACKED, UNPACKED_RATIO = 1 << 26, 200
"""A file that unpacks to more bytes than this, and so many times its own size, is a bomb and not text."""


def damaged(error: BaseException, path: Path, line: int | None = None) -> DataError:
    """The message for an error in DAMAGE."""
    if isinstance(error, OSError) and error.errno is not None:
        return DataError(f"cannot be read ({error.strerror})", file=path, line=line)
    with path.open("rb") as handle:
        kind = compression(path, handle.read(10)) or ""
    return DataError(f"damaged {kind} file: {error}", file=path, line=line)


def _likely_encoding(raw: bytes) -> str | None:
    """The encoding of bytes that are not UTF-8, if recognisable. Never one that accepts any bytes, such as Latin-1."""
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", raw)]
    if sum(length for length in runs if length > 1) > 0.7 * sum(runs):
        found = [name for name in _OF_TWO_BYTES if _reads_as(raw, name, _EAST_ASIAN)]
        return found[0] if len(found) == 1 else None
    return "cp1252" if _reads_as(raw, "cp1252", _WEST_EUROPEAN) else None


_OF_TWO_BYTES = ("gb18030", "big5", "shift_jis", "euc_jp", "euc_kr")
_EAST_ASIAN = re.compile("[\x00-\x7f\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff00-\uffef‘’“”…—·]*")
_WEST_EUROPEAN = re.compile("(?:(?<![a-z])[À-ÞŒŠŽŸ]|[\x00-\x7fß-ÿœšž\xa0«»°§£·¿¡½¼¾®©±´²³µº‘’“”‚„…–—•†‡‰‹›€ƒ™ˆ˜])*")


def _reads_as(raw: bytes, encoding: str, text: re.Pattern[str]) -> bool:
    """Whether bytes decode to letters typical of this encoding: most codecs accept most bytes."""
    try:
        return text.fullmatch(raw.decode(encoding)) is not None
    except UnicodeDecodeError:
        return False


def _not_encoded(error: UnicodeDecodeError, encoding: str, path: Path, line: int) -> DataError:
    if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") and line == 1:
        return DataError("is UTF-16 text", file=path, hint="convert the file to UTF-8")
    likely = _likely_encoding(error.object)
    named = f", or give --encoding {likely}, its likely encoding" if likely and likely != encoding else ""
    return DataError(
        f"byte 0x{error.object[error.start]:02x} is not {encoding}",
        file=path,
        line=line,
        hint=f"convert the file to UTF-8{named}",
    )


def numbered_lines(path: str | Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """The lines of a text file, plain or compressed, without newlines, numbered from 1.

    Only "\\n" ends a line: Unicode's other separators are legal inside JSON strings and in web text.
    Raises UsageError for a missing file, DataError for a damaged one, for bytes that are not `encoding`, NUL bytes and
    overlong lines.
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
    return DataError("contains a NUL byte: a binary file, or UTF-16", file=path, line=line)


def whole_bytes(path: str | Path) -> bytes:
    """All bytes of a file, decompressed. Errors as `numbered_lines`, and DataError for a decompression bomb."""
    path = Path(path)
    try:
        with open_bytes(path) as handle:
            raw = handle.read(UNPACKED)
            if len(raw) == UNPACKED:
                allowed = max(UNPACKED, UNPACKED_RATIO * path.stat().st_size)
                raw += handle.read(allowed - UNPACKED)
                if len(raw) == allowed and handle.read(1):
                    raise DataError(f"unpacks to more than {UNPACKED_RATIO} times its size", file=path)
        return raw
    except DAMAGE as error:
        raise damaged(error, path) from None


def whole_text(path: str | Path, encoding: str = "utf-8") -> str:
    """A text file's content, plain or compressed, with "\\n" for "\\r\\n"; errors as `numbered_lines`."""
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
    path = Path(path)
    if path.is_file():
        return _sha256(path)
    digest = hashlib.sha256()
    for file in _files_below(path):
        digest.update(str(file.relative_to(path)).encode("utf-8", "surrogateescape"))
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


MOST_FILES = 10_000


def _files_below(directory: Path) -> list[Path]:
    """Raises UsageError for a directory given by mistake: the root, a home directory."""
    found: list[Path] = []
    for place, _, names in os.walk(directory):
        found += (Path(file) for name in names if os.path.isfile(file := os.path.join(place, name)))
        if len(found) > MOST_FILES:
            raise UsageError(f"{directory}: contains more than {MOST_FILES:,} files; is this the right directory?")
    return sorted(found)


_HASHES: dict[tuple[Any, ...], str] = {}
_SETTLED = 1.0
"""Seconds after a file's last change before its hash is cached: file-system clocks are coarse."""


def _sha256(file: Path) -> str:
    """The hash of a file, cached in this process while size, inode, mtime and ctime (which cannot be set back) are
    unchanged. So a run reads a model of 500 MB once, and damage before the run is always noticed."""
    status = file.stat()
    key = (str(file.absolute()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)
    if (known := _HASHES.get(key)) is not None:
        return known
    with file.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if time.time() - status.st_ctime_ns / 1e9 > _SETTLED:
        _HASHES[key] = found
    return found
