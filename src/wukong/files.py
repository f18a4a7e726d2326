"""Files that are complete or absent, and text files read with the errors a person needs.

Every file that matters is written under a temporary name, flushed to the disk and renamed: a reader, or the
same command after a kill -9, sees the old file or the new one and never half of one.
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


# ------------------------------------------------------------------------------------------------------------- locks


class Hold:
    """A lock that this process has, until `release`, or until nobody refers to it any more."""

    def __init__(self, descriptor: int, place: Path) -> None:
        self.descriptor, self.thread, self.for_a_block = descriptor, threading.get_ident(), False
        self.release = weakref.finalize(self, _unlock, descriptor, place)

    def handed_over(self, place: Path) -> Hold:
        self.release.detach()
        return Hold(self.descriptor, place)


def _unlock(descriptor: int, place: Path) -> None:
    if place.suffix == LOCK_SUFFIX:
        place.unlink(missing_ok=True)
    os.close(descriptor)


LOCK_SUFFIX = ".lock"
_HELD: weakref.WeakValueDictionary[tuple[int, int], Hold] = weakref.WeakValueDictionary()
"""By device and inode. Two descriptors of one process would shut each other out."""
_GUARD = threading.RLock()


def hold(place: Path, busy: str, patience: float = 1.0) -> Hold | None:
    """Locks a directory, made when absent, or a file that is made for it (`*.lock`), until the hold is released; the
    system does that when the process ends, however it ends. What this thread holds already it may hold anew: a command
    that failed in a notebook is given again. (Within its own `exclusive` block it needs no hold, and gets None.)

    Where there are no locks (Windows, some network file systems) nobody is held back, and the result is None.

    Args:
        place: what is locked.
        busy: what the error says when another process or thread holds it.
        patience: seconds to try again, for somebody may just be looking (`is_locked`).

    Raises:
        UsageError: somebody else holds the lock. RunError: the place cannot be made.
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
                _HELD[key] = again = mine.handed_over(place)
                return again
            got = None if mine is not None else _try_lock(descriptor, shared=False)
            if got and os.fstat(descriptor).st_nlink:  # not deleted in the meantime by the one who had it
                _HELD[key] = taken = Hold(descriptor, place)
                return taken
        os.close(descriptor)
        if got is None and mine is None:
            return None
        if time.monotonic() > deadline:
            raise UsageError(busy)
        time.sleep(0.05)


@contextlib.contextmanager
def exclusive(directory: Path, busy: str, patience: float = 1.0) -> Iterator[None]:
    """Holds a directory's lock for as long as the block lasts (`hold`). The lock is on the directory itself, so that no
    file is left behind."""
    deadline = time.monotonic() + patience
    while (held := hold(directory, busy, patience)) is None and _held_for_a_block(directory):
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
    """Whether a process holds this directory's lock at the moment."""
    if not directory.is_dir() or (descriptor := _descriptor(directory)) is None:
        return False
    try:
        return _try_lock(descriptor, shared=True) is False
    finally:
        os.close(descriptor)


def _descriptor(place: Path) -> int | None:
    """Something to lock; None where directories cannot be opened (Windows)."""
    if place.suffix == LOCK_SUFFIX:
        return os.open(place, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        return os.open(place, os.O_RDONLY)
    except OSError:
        return None


def _try_lock(descriptor: int, shared: bool) -> bool | None:
    """Whether it is locked now; None where there are no locks."""
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
    """Waits until the names in a directory are on the disk."""
    with contextlib.suppress(OSError):  # not every file system (or Windows) can sync a directory
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _temporary(path: Path, directory: bool) -> tuple[Path, int | None]:
    """(a new file or directory beside `path`, its locked descriptor): while the lock holds, it is no leftover.

    Not by tempfile, whose files are private: what others may read is for the umask to say.
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
        os.close(descriptor)  # another process took it for a leftover before it was locked


@contextlib.contextmanager
def atomic_open(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that appears under `path` only when the block ended well. Raises RunError on a full disk."""
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
"""As older versions named them, which anybody might: those are looked for by the name of their file only."""
A_DAY = 86_400.0


def remove_leftovers(parent: Path, pattern: str = "*", deep: bool = False) -> None:
    """Removes what killed processes left in `parent` (and below it: `deep`) of files and directories whose names match
    `pattern`. What a living process writes is locked, and stays; where there are no locks, it stays for a day."""
    ours = _OURS if pattern == "*" else re.compile(f"{_OURS.pattern}|{_OURS_BEFORE.pattern}")
    for leftover in list((parent.rglob if deep else parent.glob)(f".{pattern}.*.tmp")):
        if ours.fullmatch(leftover.name):
            _remove_if_abandoned(leftover)


def remove_set_aside(parent: Path, pattern: str) -> None:
    """Removes the directories that a killed `atomic_directory` had replaced (it has put back those that it had not)."""
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
    """Raises UsageError for a missing file, or one that is none (a directory, a pipe), and DataError (with the line
    where it is known) for one that is not JSON, or JSON that Python cannot hold."""
    path = Path(path)
    try:
        text = _regular_bytes(path).decode()
        value = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON: {error.msg}", file=path, line=error.lineno) from None
    except UnicodeDecodeError:
        raise DataError("not UTF-8 text", file=path) from None
    except UnicodeEncodeError:
        raise DataError("holds half a character (a lone surrogate such as \\ud800)", file=path) from None
    except RecursionError:
        raise DataError("nested too deeply", file=path) from None
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"not usable JSON: {error}", file=path) from None


def _regular_bytes(path: Path) -> bytes:
    """A file's bytes. A pipe is refused, which would keep its reader waiting for ever."""
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
    except (OSError, ValueError) as error:  # no permission, a name that is too long or holds a NUL
        raise UsageError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


YAML_BYTES, YAML_NODES, YAML_DEPTH, YAML_NUMBER = 1 << 20, 100_000, 64, 400
"""A recipe is small: what is larger (with aliases written out), deeper, or a longer number is a mistake or worse."""


def read_yaml(path: str | Path) -> tuple[Any, yaml.Node | None]:
    """(the content, the nodes that know their lines) of a YAML file, which can run no code and is bounded in size.

    Raises UsageError for a missing file and DataError, with the line, for anything but ordinary YAML.
    """
    path = Path(path)
    if path.exists() and path.stat().st_size > YAML_BYTES:
        raise DataError(f"is larger than the {YAML_BYTES >> 10:,} kB that a recipe may have", file=path)
    text = whole_text(path)
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None, None
        _bounded(root, path, {}, 0)
        return loader.construct_document(copy.deepcopy(root)), root  # it writes merged keys into the nodes
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise DataError(f"not valid YAML: {error.problem}", file=path, line=mark.line + 1 if mark else None) from None
    except yaml.YAMLError as error:
        raise DataError(f"not valid YAML: {error}", file=path) from None
    except RecursionError:
        raise DataError("nested too deeply", file=path) from None
    except (ValueError, TypeError, OverflowError, AttributeError, KeyError) as error:  # 2024-13-45, 0x_, !!binary
        raise DataError(f"holds a value that YAML does not allow: {error}", file=path) from None


def _bounded(node: yaml.Node, path: Path, sizes: dict[int, int], depth: int) -> int:
    """How many nodes this one is with all aliases written out. Each is counted once, however often it is named."""

    def wrong(problem: str, at: yaml.Node = node) -> DataError:
        return DataError(problem, file=path, line=at.start_mark.line + 1)

    if (known := sizes.get(id(node))) is not None:
        if not known:
            raise wrong("an alias stands inside of what it names")
        return known
    if depth > YAML_DEPTH:
        raise wrong("nested too deeply")
    size, sizes[id(node)] = 1, 0  # 0: still being counted
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
        raise wrong(f"more than {YAML_NODES:,} values, with aliases written out")
    sizes[id(node)] = size
    return size


_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


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
    if sum(length for length in runs if length > 1) > 0.7 * sum(runs):
        found = [name for name in _OF_TWO_BYTES if _reads_as(raw, name, _EAST_ASIAN)]
        return found[0] if len(found) == 1 else None
    return "cp1252" if _reads_as(raw, "cp1252", _WEST_EUROPEAN) else None


_OF_TWO_BYTES = ("gb18030", "big5", "shift_jis", "euc_jp", "euc_kr")
_EAST_ASIAN = re.compile("[\x00-\x7f\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff00-\uffef‘’“”…—·]*")
_WEST_EUROPEAN = re.compile("(?:(?<![a-z])[À-ÞŒŠŽŸ]|[\x00-\x7fß-ÿœšž\xa0«»°§£·¿¡½¼¾®©±´²³µº‘’“”‚„…–—•†‡‰‹›€ƒ™ˆ˜])*")


def _reads_as(raw: bytes, encoding: str, text: re.Pattern[str]) -> bool:
    """Whether bytes decode, and to letters that people write in this encoding: most codecs take most bytes."""
    try:
        return text.fullmatch(raw.decode(encoding)) is not None
    except UnicodeDecodeError:
        return False


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
    """Raises UsageError for a directory that is hardly meant: the root, a home."""
    found: list[Path] = []
    for place, _, names in os.walk(directory):
        found += (Path(file) for name in names if os.path.isfile(file := os.path.join(place, name)))
        if len(found) > MOST_FILES:
            raise UsageError(f"{directory}: holds more than {MOST_FILES:,} files; is it the directory that is meant?")
    return sorted(found)


_HASHES: dict[tuple[Any, ...], str] = {}
_SETTLED = 1.0
"""Seconds after a file's last change before its hash is remembered: clocks of file systems tick slowly."""


def _sha256(file: Path) -> str:
    """Of a file that did not change since this process hashed it, the hash of then. A change is known by size, inode,
    and the times of the last change of content and of status, the second of which nobody can set back; other processes
    hash anew. So a run reads a model of 500 MB once, and one that was damaged before the run is always noticed."""
    status = file.stat()
    key = (str(file.absolute()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)
    if (known := _HASHES.get(key)) is not None:
        return known
    with file.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if time.time() - status.st_ctime_ns / 1e9 > _SETTLED:
        _HASHES[key] = found
    return found
