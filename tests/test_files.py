"""Files that are complete or absent, whatever happens while they are written; and errors that name the right file."""

import bz2
import gzip
import hashlib
import lzma
import os
import random
import resource
import subprocess
import sys
import textwrap
import tracemalloc

import pyarrow
import pytest
import torch
from safetensors.torch import save_file

from wukong import files
from wukong.errors import DataError, RunError, UsageError
from wukong.files import (
    atomic_directory,
    atomic_open,
    exclusive,
    fingerprint,
    is_locked,
    numbered_lines,
    read_json,
    read_yaml,
    remove_leftovers,
    whole_bytes,
    whole_text,
    write_json,
)
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.hub import save_policy
from wukong.tokenizer import Tokenizer


@pytest.fixture
def full_disk():
    """No file may grow beyond 64 KiB: the kernel refuses the write, as it does on a full disk or beyond a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def killed(code: str, cwd) -> None:
    """Runs code that must end by killing itself with SIGKILL, through `die()`."""
    prelude = """
        import os, signal
        from pathlib import Path
        import wukong.files as files
        from wukong.files import *
        def die(*_, **__):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    script = textwrap.dedent(prelude) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr


# ------------------------------------------------------------------------------------------------------- one file


def test_a_file_appears_only_when_its_block_has_ended(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_open(path) as out:
        out.write("Grüße\n")
        out.flush()
        assert not path.exists()
    assert path.read_bytes() == "Grüße\n".encode()
    assert names(path.parent) == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_bytes_are_written_as_they_are(tmp_path):
    with atomic_open(tmp_path / "file", "wb") as out:
        out.write(b"\xff\r\n")
    assert (tmp_path / "file").read_bytes() == b"\xff\r\n"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, DataError])
def test_an_error_in_the_block_keeps_the_old_file_and_leaves_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), atomic_open(path) as out:
        raise error(out.write("new"))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_kill_9_keeps_the_old_file(tmp_path):
    (tmp_path / "file").write_text("old")
    killed("with atomic_open('file') as out: out.write('new'); out.flush(); die()", tmp_path)
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_one_line_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RunError) as caught, atomic_open(path) as out:
        out.write("new" * 100_000)
    assert str(caught.value) == f"{path}: cannot write (File too large); no partial file was left"
    assert caught.value.exit_code == 1
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/below: cannot write \("), atomic_open(tmp_path / "file" / "below"):
        pass
    (tmp_path / "directory").mkdir()
    with (
        pytest.raises(RunError, match=r"directory: cannot write \(Is a directory"),
        atomic_open(tmp_path / "directory"),
    ):
        pass
    assert names(tmp_path) == ["directory", "file"]


@pytest.mark.parametrize("write", [atomic_open, atomic_directory])
def test_an_input_that_cannot_be_read_is_not_reported_as_an_output_that_cannot_be_written(tmp_path, write):
    with pytest.raises(FileNotFoundError) as caught, write(tmp_path / "out"):
        (tmp_path / "input").read_text()
    assert caught.value.filename == str(tmp_path / "input")
    with pytest.raises(ConnectionResetError), write(tmp_path / "out"):  # an OSError without a file's name
        raise ConnectionResetError(104, "Connection reset by peer")
    assert names(tmp_path) == []


# ---------------------------------------------------------------------------------------------------- one directory


def fill(path, text: str) -> None:
    with atomic_directory(path) as staging:
        (staging / "inside").mkdir()
        (staging / "inside" / "file").write_text(text)


def content(path) -> str:
    return (path / "inside" / "file").read_text()


def test_a_directory_appears_whole_and_replaces_the_old_one_whole(tmp_path):
    path = tmp_path / "new" / "out"
    fill(path, "first")
    (path / "extra").write_text("of the first")
    with atomic_directory(path) as staging:
        (staging / "file").write_text("second")
        assert names(path) == ["extra", "inside"]
    assert names(path) == ["file"]
    assert names(path.parent) == ["out"]
    assert path.stat().st_mode & 0o777 == 0o755


def test_an_error_in_the_block_keeps_the_old_directory(tmp_path):
    fill(tmp_path / "out", "old")
    with pytest.raises(ValueError, match="3"), atomic_directory(tmp_path / "out") as staging:
        raise ValueError((staging / "file").write_text("new"))
    assert content(tmp_path / "out") == "old"
    assert names(tmp_path) == ["out"]


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("new" * 100_000),
        lambda path: save_file({"weights": torch.zeros(100_000)}, path),  # a Rust library with its own exception
    ],
    ids=["text", "weights"],
)
def test_a_full_disk_keeps_the_old_directory(tmp_path, write):
    fill(tmp_path / "out", "old")
    refused = pytest.raises(RunError, match=r"out: cannot write \(File too large\)")
    with refused, atomic_directory(tmp_path / "out") as staging:
        write(staging / "file")
    assert content(tmp_path / "out") == "old"
    assert names(tmp_path) == ["out"]


@pytest.mark.usefixtures("full_disk")
def test_saving_a_model_on_a_full_disk_is_one_line(tmp_path):
    tokenizer = Tokenizer.train([], 257)
    model = GPT2(GPT2Config(vocab_size=257, n_positions=64, n_embd=64, n_layer=1, n_head=1))
    with pytest.raises(RunError, match=r"out: cannot write \(File too large\)"):
        save_policy(tmp_path / "out", model, tokenizer)


def test_kill_9_in_the_block_keeps_the_old_directory_and_its_rubbish_goes_next_time(tmp_path):
    fill(tmp_path / "out", "old")
    killed("with atomic_directory(Path('out')) as staging: (staging / 'half').write_text('x'); die()", tmp_path)
    assert content(tmp_path / "out") == "old"
    assert len(names(tmp_path)) == 2
    (tmp_path / "out.jsonl").write_text("another's")
    fill(tmp_path / "out", "new")
    assert content(tmp_path / "out") == "new"
    assert names(tmp_path) == ["out", "out.jsonl"]


DIE_AT_RENAME = """
    renames, rename = [], os.replace
    def replace(*paths):
        renames.append(paths)
        {when}
    files.os.replace = replace
    with atomic_directory(Path('out')) as staging:
        (staging / 'inside').mkdir()
        (staging / 'inside' / 'file').write_text('new')
"""


def test_kill_9_between_the_two_renames_loses_neither_directory(tmp_path):
    fill(tmp_path / "out", "old")
    killed(DIE_AT_RENAME.format(when="die() if len(renames) == 2 else rename(*paths)"), tmp_path)
    found = {content(path) for path in tmp_path.iterdir()}
    assert found == {"old", "new"}, "both are on the disk, under names of ours"
    with pytest.raises(ValueError, match="no"), atomic_directory(tmp_path / "out"):
        raise ValueError("no")  # even a next attempt that fails brings the old one back
    assert content(tmp_path / "out") == "old"
    assert names(tmp_path) == ["out"]


def test_kill_9_after_the_renames_leaves_the_new_directory(tmp_path):
    fill(tmp_path / "out", "old")
    killed(DIE_AT_RENAME.format(when="rename(*paths); len(renames) == 2 and die()"), tmp_path)
    assert content(tmp_path / "out") == "new"
    fill(tmp_path / "out", "newer")
    assert content(tmp_path / "out") == "newer"
    assert names(tmp_path) == ["out"]


def test_a_rename_that_fails_brings_the_old_directory_back(tmp_path, monkeypatch):
    fill(tmp_path / "out", "old")
    rename, calls = os.replace, []

    def replace(*paths):
        calls.append(paths)
        if len(calls) == 2:
            raise OSError(5, "Input/output error", str(paths[0]))
        rename(*paths)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(RunError, match=r"out: cannot write \(Input/output error\)"):
        fill(tmp_path / "out", "new")
    assert content(tmp_path / "out") == "old"
    assert names(tmp_path) == ["out"]


def test_a_name_with_brackets_is_a_name_and_not_a_pattern(tmp_path):
    other = tmp_path / ".a.1.tmp"
    other.mkdir()
    fill(tmp_path / "[ab]", "x")
    assert names(tmp_path) == [".a.1.tmp", "[ab]"]


# ------------------------------------------------------------------------------------------------------- reading


def test_json_comes_back_as_it_was(tmp_path):
    value = {"text": "Grüße 😀", "list": [1, 2.5, None]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "Grüße 😀" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_unreadable_json_is_named_with_its_line(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(UsageError, match=r"a\.json: no such file"):
        read_json(path)
    path.write_text('{"a": 1,\n "b": }')
    with pytest.raises(DataError, match=r"a\.json:2: not valid JSON"):
        read_json(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataError, match=r"a\.json: not UTF-8 text"):
        read_json(path)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "packed-without-suffix"])
def test_lines_end_at_a_newline_and_nowhere_else(tmp_path, name):
    raw = "\ufeffone\r\ntwo\u2028still\x85two\n\nlast".encode()
    (tmp_path / name).write_bytes(raw if name == "a.txt" else gzip.compress(raw))
    expected = [(1, "one"), (2, "two\u2028still\x85two"), (3, ""), (4, "last")]
    assert list(numbered_lines(tmp_path / name)) == expected
    assert whole_text(tmp_path / name) == "one\ntwo\u2028still\x85two\n\nlast"


def test_bytes_of_another_encoding_are_named_with_their_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\nfa\xe7ade\n")
    for read in (lambda path: list(numbered_lines(path)), whole_text):
        with pytest.raises(DataError, match=r"a\.txt:2: byte 0xe7 is not utf-8 \(.*cp1252, its likely encoding"):
            read(tmp_path / "a.txt")
    assert list(numbered_lines(tmp_path / "a.txt", "latin-1"))[1] == (2, "façade")
    assert whole_text(tmp_path / "a.txt", "latin-1") == "fine\nfaçade\n"


@pytest.mark.parametrize(
    ("text", "encoding", "named"),
    [
        ("Crème brûlée — “naïve” café.", "cp1252", "cp1252"),
        ("鸡蛋要煮多久才好吃？", "gb18030", "gb18030"),
        ("Привет, сколько варить яйцо?", "cp1251", None),
        ("Привет, сколько варить яйцо?", "koi8_r", None),
        ("卵を何分ゆでますか。料理を作ります。", "euc_jp", None),
        ("Crème brûlée, naïve café.", "cp437", None),
        ("雞蛋要煮多久才好吃？", "big5", None),
    ],
)
def test_only_an_encoding_that_gives_text_is_named(tmp_path, text, encoding, named):
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match="is not utf-8") as error:
        list(numbered_lines(tmp_path / "a.txt"))
    assert (f"--encoding {named}" if named else "--encoding") in str(error.value) or named is None
    assert named is not None or "--encoding" not in str(error.value)


def test_a_damaged_gzip_file_is_named_with_its_line(tmp_path):
    text = "".join(random.Random(0).choices("abc\n", k=5000))
    (tmp_path / "a.gz").write_bytes(gzip.compress(text.encode())[:-100])
    with pytest.raises(DataError, match=r"a\.gz:\d+: damaged gzip file"):
        list(numbered_lines(tmp_path / "a.gz"))
    with pytest.raises(DataError, match=r"a\.gz: damaged gzip file"):
        whole_text(tmp_path / "a.gz")


def test_a_missing_file_and_a_directory_are_told_apart(tmp_path):
    with pytest.raises(UsageError, match="nothing: no such file"):
        list(numbered_lines(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="is a directory, expected a file"):
        whole_text(tmp_path)


def test_a_fingerprint_is_the_sha256_and_covers_names_and_bytes_of_a_directory(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert fingerprint(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    seen = set()
    for change in (
        lambda d: (d / "x").write_text("1"),
        lambda d: (d / "x").write_text("2"),
        lambda d: (d / "x").rename(d / "y"),
        lambda d: (d / "z").write_text(""),
    ):
        directory = tmp_path / "d" / "sub"
        directory.mkdir(parents=True, exist_ok=True)
        change(directory)
        seen.add(fingerprint(tmp_path / "d"))
    assert len(seen) == 4
    (tmp_path / "d" / "sub" / "z").unlink()
    assert fingerprint(tmp_path / "d") in seen


HOLDER = """
import sys, time
from pathlib import Path
from wukong.files import exclusive
with exclusive(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_directory_is_locked_until_its_holder_ends_however_it_ends(tmp_path):
    place = tmp_path / "run"
    assert not is_locked(place)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(place)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        assert is_locked(place)
        with pytest.raises(UsageError, match="busy"), exclusive(place, "busy", patience=0.1):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert not is_locked(place)
    with exclusive(place, "busy"):
        assert is_locked(place)
    assert list(place.iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize(
    ("mask", "file", "directory"), [(0o077, 0o600, 0o700), (0o027, 0o640, 0o750), (0, 0o666, 0o777)]
)
def test_what_others_may_read_is_for_the_umask_to_say(tmp_path, mask, file, directory):
    before = os.umask(mask)
    try:
        with atomic_open(tmp_path / "a.txt") as out:
            out.write("x")
        with atomic_directory(tmp_path / "d") as staging:
            (staging / "b.txt").write_text("x")
            (staging / "c.safetensors").touch(0o600)  # as the library makes it
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a.txt", "d", "d/b.txt", "d/c.safetensors")]
    assert modes == [file, directory, file, file]


# ------------------------------------------------------------------------------------------------- leftovers and bounds


def test_leftovers_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path):
    killed("with atomic_open('file') as out: out.write('new'); out.flush(); die()", tmp_path)
    killed("with atomic_directory('place') as there: (there / 'x').write_text('new'); die()", tmp_path)
    (tmp_path / ".notes.tmp").write_text("mine")
    (tmp_path / ".notes.abcdefgh.tmp").write_text("mine too")
    assert len(names(tmp_path)) == 4
    with atomic_open(tmp_path / "other") as out, atomic_directory(tmp_path / "new") as there:
        out.write("living")
        remove_leftovers(tmp_path)
        assert there.is_dir()
        assert len([name for name in names(tmp_path) if "wukong-" in name]) == 2
    assert names(tmp_path) == [".notes.abcdefgh.tmp", ".notes.tmp", "new", "other"]
    assert (tmp_path / "other").read_text() == "living"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "not usable JSON"),
        ('{"a": "\\ud800"}', "half a character"),
        ("", "not valid JSON"),
    ],
)
def test_json_that_python_cannot_hold_is_one_line(tmp_path, content, problem):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=problem):
        read_json(tmp_path / "x.json")


def test_a_pipe_or_a_name_that_cannot_be_is_no_json_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="not a pipe or a device"):
        read_json(tmp_path / "pipe")
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(UsageError, match="cannot be read"):
            read_json(tmp_path / name)


PACK = {
    "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress,
    "zst": lambda raw: pyarrow.compress(raw, codec="zstd", asbytes=True),
}  # fmt: skip


@pytest.mark.parametrize("packing", PACK)
def test_a_file_unpacks_to_a_bounded_multiple_of_its_size(tmp_path, monkeypatch, packing):
    """Small files may be anything up to the first bound, larger ones a multiple of their size."""
    monkeypatch.setattr(files, "UNPACKED", 50_000)
    monkeypatch.setattr(files, "UNPACKED_RATIO", 20)
    path = tmp_path / f"a.{packing}"
    for length, refused in ((50_000, False), (50_001, True)):
        path.write_bytes(PACK[packing](b"x" * length))
        assert path.stat().st_size < 50_000 / 20
        if refused:
            with pytest.raises(DataError) as caught:
                whole_bytes(path)
            assert str(caught.value) == f"{path}: unpacks to more than 20 times its size"
        else:
            assert whole_bytes(path) == b"x" * length
    text = random.Random(0).randbytes(60_000).hex().encode()  # packs to half its size, or a little less
    path.write_bytes(PACK[packing](text))
    assert whole_bytes(path) == text
    path = tmp_path / "plain"
    path.write_bytes(b"x" * 200_000)
    assert len(whole_bytes(path)) == 200_000


@pytest.mark.parametrize("packing", ["plain", *PACK])
def test_a_line_has_a_bounded_length(tmp_path, monkeypatch, packing):
    monkeypatch.setattr(files, "LONGEST_LINE", 1 << 20)
    path = tmp_path / f"a.{packing}"
    pack = PACK.get(packing, bytes)
    longest = "x" * ((1 << 20) - 1)
    path.write_bytes(pack(f"first\n{longest}\nlast".encode()))
    assert [(number, len(line)) for number, line in numbered_lines(path)] == [(1, 5), (2, len(longest)), (3, 4)]
    path.write_bytes(pack(f"first\n{longest}x\nlast".encode()))
    lines = numbered_lines(path)
    assert next(lines) == (1, "first")
    with pytest.raises(DataError) as caught:
        next(lines)
    assert str(caught.value) == f"{path}:2: the line is longer than 1 MiB"


@pytest.mark.parametrize("read", [whole_text, lambda path: list(numbered_lines(path))], ids=["whole", "lines"])
def test_a_bomb_is_refused_before_it_fills_the_memory(tmp_path, read):
    """A quarter of a gigabyte without a line end, in a quarter of a megabyte."""
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb") as out:
        for _ in range(256):
            out.write(b"x" * (1 << 20))
    assert path.stat().st_size < 1 << 18
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"a\.jsonl\.gz(:1: the line is longer|: unpacks to more) than"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


LAUGHS = "a: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 18))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (LAUGHS, "more than 100,000 values"),
        (LAUGHS.replace("[", "{a: ").replace("]", "}").replace(", ", ", b: ", 1), ":"),
        ("a: &a [*a]\n", "x.yaml:1: an alias refers to a value that contains it"),
        ("a: " + "[" * 200 + "]" * 200, "nested too deeply"),
        ("a: " + "[" * 50_000, "nested too deeply"),
        ("a:\n  ? [b]\n  : c\n", "x.yaml:2: a key must be text; put it in quotes"),
        ("a:\n  2024-01-01: c\n", "x.yaml:2: a key must be text; put it in quotes"),
        ("a: 2024-13-45\n", "contains an invalid YAML value: month must be in"),
        ("a: " + "9" * 5000, "a number or date of 5,000 characters"),
        ("a: " + ":".join(["9"] * 5000), "a number or date of"),
        ("a: !!int x\n", "contains an invalid YAML value"),
        ("a: \x07\n", "not valid YAML"),
        ("a: " + "x" * (1 << 20), "is larger than 1,024 kB"),
    ],
)
def test_yaml_is_bounded_and_its_errors_are_one_line(tmp_path, text, problem):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(DataError) as caught:
        read_yaml(tmp_path / "x.yaml")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yaml_with_aliases_and_merged_keys_is_read(tmp_path):
    (tmp_path / "x.yaml").write_text("a: &a {x: 1, y: [2, 3]}\nb: {<<: *a, x: 4}\nc: *a\n")
    assert read_yaml(tmp_path / "x.yaml")[0]["b"] == {"x": 4, "y": [2, 3]}


def test_a_hash_is_remembered_only_while_the_file_is_untouched(tmp_path):
    file = tmp_path / "x"
    file.write_text("aaaa")
    status, first = file.stat(), fingerprint(file)
    file.write_text("aaba")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint(file) != first


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda path: next(numbered_lines(path)), ":1: the line is longer than 64 MiB"),
        (whole_text, ": unpacks to more than 200 times its size"),
    ],
)
def test_a_small_file_cannot_unpack_into_all_memory(tmp_path, read, words):
    """300 MB without a line end, in 300 kB: a few hundred MB of memory are the most that it takes."""
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb") as out:
        for _ in range(300):
            out.write(b" " * 1_000_000)
    assert path.stat().st_size < 400_000
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 300_000_000
    finally:
        tracemalloc.stop()
    assert str(caught.value) == f"{path}{words}"
