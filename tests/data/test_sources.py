"""Opening files of every shape: what is found in them, lazily where possible, and what is said when it is not."""

import bz2
import gzip
import io
import itertools
import json
import lzma
import pickle
import random
import sqlite3
import sys
import tarfile
import types
import zipfile

import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from wukong.data import (
    DataOptions,
    PromptOptions,
    TextOptions,
    load_comparisons,
    load_instructions,
    load_prompts,
    load_text,
)
from wukong.data.sources import open_rows, sniff
from wukong.errors import DataError, UsageError

RECORDS = [{"instruction": "Boil an egg", "output": "Ten minutes."}, {"instruction": "Übe", "output": "煮蛋 🥚"}]
JSONL = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in RECORDS)


def fields(path, **options):
    return [row.fields for row in open_rows(path, **options)]


def write_bytes(path, raw):
    path.write_bytes(raw)
    return path


def read_from(load, path, options=None) -> list:
    """The records of a file, without its name in them."""
    found = load(path, options).records
    return [one if isinstance(one, str) else one.model_copy(update={"source": ""}) for one in found]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", JSONL),
        ("a.jsonl.gz", JSONL),
        ("a.json", JSONL),  # JSONL under a .json name
        ("a.ndjson", JSONL.replace("\n", "\r\n")),
        ("a.jsonl", "\n\n" + JSONL.replace("\n", "\n\n")),
        ("a.json", json.dumps(RECORDS)),
        ("a.json.gz", json.dumps(RECORDS, indent=2)),
        ("a.jsonl", json.dumps(RECORDS)),  # an array under a .jsonl name
        ("a.jsonl", "\ufeff" + JSONL),
        ("a.json", "\ufeff" + json.dumps(RECORDS)),
        ("noname", JSONL),
        ("a.csv", "instruction,output\nBoil an egg,Ten minutes.\nÜbe,煮蛋 🥚\n"),
        ("a.csv.gz", "\ufeffinstruction,output\r\nBoil an egg,Ten minutes.\r\nÜbe,煮蛋 🥚\r\n"),
        ("a.csv", "instruction;output\nBoil an egg;Ten minutes.\nÜbe;煮蛋 🥚\n"),
        ("a.tsv", "instruction\toutput\nBoil an egg\tTen minutes.\nÜbe\t煮蛋 🥚\n"),
    ],
)
def test_the_same_records_from_every_shape_of_file(write, name, content):
    assert fields(write(content, name)) == RECORDS


@pytest.mark.parametrize("name", ["a.parquet", "a.parquet.gz", "a.json"])
def test_parquet_is_known_by_its_content(tmp_path, name):
    plain = tmp_path / "plain"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), plain)
    path = tmp_path / name
    path.write_bytes(gzip.compress(plain.read_bytes()) if name.endswith(".gz") else plain.read_bytes())
    rows = list(open_rows(path))
    assert [row.fields for row in rows] == RECORDS
    assert [row.line for row in rows] == [1, 2]


def test_gzip_without_its_suffix_is_unpacked(write):
    assert fields(write(gzip.compress(JSONL.encode()), "download.jsonl")) == RECORDS


def test_pretty_printed_object_is_one_record(write):
    assert fields(write(json.dumps(RECORDS[0], indent=2), "one.jsonl")) == [RECORDS[0]]


def test_strings_in_an_array_are_texts(write):
    assert fields(write(["one", "two"], "a.json")) == [{"text": "one"}, {"text": "two"}]


@pytest.mark.parametrize("name", ["LICENSE.txt", "README.json"])
def test_directory_gives_its_data_files_in_order(write, tmp_path, name):
    write([{"a": 2}], "b.jsonl")
    write([{"a": 1}], "a.json")
    write("All rights reserved", name)
    assert fields(tmp_path) == [{"a": 1}, {"a": 2}]
    assert fields(tmp_path / "*.jsonl") == [{"a": 2}]


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A function that saves data sets as `datasets` does, and gives their directory: one table, or one a split."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()

    def save(content, **options):
        if isinstance(content, dict):
            made = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in content.items()})
        else:
            made = datasets.Dataset.from_list(content)
        made.save_to_disk(tmp_path / "saved", **options)
        return tmp_path / "saved"

    return save


def test_a_data_set_that_was_saved_to_disk_is_read_in_the_order_of_its_rows(saved):
    rows = [{"n": n, "messages": [{"role": "user", "content": f"Boil {n}"}]} for n in range(30)]
    place = saved(rows, num_shards=12)
    assert len(list(place.glob("*.arrow"))) == 12
    (place / "aside.jsonl").write_text('{"n": -1}')
    found = list(open_rows(place))
    assert [row.fields for row in found] == rows
    assert {row.file for row in found[:3]} == {str(place / "data-00000-of-00012.arrow")}
    assert fields(str(place) + "/") == rows


@pytest.mark.parametrize(
    ("splits", "name", "expected"),
    [
        (("train", "test"), "", "train"),
        (("train", "test"), ":test", "test"),
        (("a", "train"), ":a", "a"),
        (("valid",), "", "valid"),
    ],
)
def test_of_a_saved_data_set_with_splits_one_is_read(saved, splits, name, expected):
    place = saved({split: [{"text": f"{split} {n}"} for n in range(3)] for split in splits})
    assert fields(f"{place}{name}") == [{"text": f"{expected} {n}"} for n in range(3)]


@pytest.mark.parametrize("name", [":dev", ""])
def test_a_split_that_is_not_there_is_refused_with_those_that_are(saved, name):
    place = saved({split: [{"text": split}] for split in ("test", "valid")})
    with pytest.raises(UsageError) as caught:
        fields(f"{place}{name}")
    wanted = name.strip(":") or "train"
    assert str(caught.value) == f"{place}: has no split '{wanted}'; specify one of test, valid as {place}:SPLIT"


def test_a_saved_data_set_reaches_a_reader_as_the_lines_it_was_made_of(saved, write):
    plain = read_from(load_instructions, write(RECORDS))
    assert read_from(load_instructions, saved(RECORDS)) == plain
    assert len(plain) == len(RECORDS)


def test_rows_know_their_line(write):
    assert [row.line for row in open_rows(write('{"a": 1}\n\n{"a": 2}\n'))] == [1, 3]
    quoted = write('a,b\n"two\nlines",1\nx,"say ""hi"""\n', "a.csv")
    assert [(row.line, row.fields) for row in open_rows(quoted)] == [
        (2, {"a": "two\nlines", "b": "1"}),
        (4, {"a": "x", "b": 'say "hi"'}),
    ]


def test_cells_may_hold_whole_documents(write):
    long = "word " * 100_000
    assert fields(write(f"text\n{long}\n", "a.csv")) == [{"text": long}]


def test_unicode_line_separators_do_not_split_a_record(write):
    text = "one\u2028two\u2029three\x85four\x0bfive\x1csix"
    record = json.dumps({"text": text}, ensure_ascii=False)
    assert fields(write(record + "\n" + record + "\n")) == [{"text": text}] * 2
    assert fields(write("caf\xe9\x85 ole\n".encode("latin-1"), "a.pos"), encoding="latin-1") == [
        {"text": "caf\xe9\x85 ole"}
    ]


def test_jsonl_is_read_lazily(write):
    path = write('{"a": 1}\n' * 3 + "not json at all\n")
    assert [row.fields for row in itertools.islice(open_rows(path), 3)] == [{"a": 1}] * 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "a.jsonl: the file is empty"),
        ("a.json.gz", " \n ", "a.json.gz: the file is empty"),
        ("a.json", "[]", "a.json: contains no records"),
        ("a.csv", "a,b\n", "a.csv: contains no records"),
        ("a.json", '[{"a": 1},\n{"a": }]', "a.json:2: not valid JSON"),
        ("a.json", '{\n"a": 1,\n', "a.json:3: not valid JSON"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', "a.jsonl:2: byte 0xe9 is not utf-8"),
        ("a.json", b'[{"a": 1},\n\n{"a": "\xe9"}]', "a.json:3: byte 0xe9 is not utf-8"),
        ("a.csv", 'a,b\n1,2\n3,"4\n5,6\n', "a.csv:3: not valid CSV"),
        ("a.csv", 'a,b\n1,"2"x\n', "a.csv:2: not valid CSV"),
        ("a.parquet", b"PAR1 and then nothing", "a.parquet: not a readable parquet file"),
    ],
)
def test_unreadable_file_is_an_error_with_its_line(write, name, content, message):
    path = write(content, name)
    with pytest.raises(DataError) as caught:
        list(open_rows(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "line", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": 2\n{"a": 3}\n', 2, "not valid JSON"),
        ("a.jsonl", '{"a": 2\n{"a": 3}\n', 1, "not valid JSON"),
        ("a.jsonl", '{"a": 1}\n["a"]\n', 2, "is a list, expected a JSON object"),
        ("a.json", '[{"a": 1}, 5]', 2, "is a number, expected a JSON object"),
        ("a.jsonl", '{"a": 1}\n{"a": ["x", {"b": "\\ud800"}]}\n', 2, "field 'a[1].b': contains half a character"),
        ("a.json", '[{"a": "\\uDFFF"}]', 1, "field 'a': contains half a character"),
        ("a.csv", "a,b\n1,2\n3\n", 3, "1 cells, but the header names 2 columns"),
        ("a.jsonl", '{"a": 1}\n' + "[" * 100_000 + "\n", 2, "not JSON"),
    ],
)
def test_bad_record_is_marked_and_reading_can_go_on(write, name, content, line, message):
    bad = [row for row in open_rows(write(content, name)) if row.bad]
    assert [row.line for row in bad] == [line]
    assert str(bad[0].bad).startswith(f"{bad[0].file}:{line}: ")
    assert message in str(bad[0].bad)


def test_escaped_pair_of_surrogates_is_a_character(write):
    assert fields(write('{"a": "\\ud83e\\udd5a"}\n')) == [{"a": "🥚"}]


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-20], lambda raw: raw[:30] + b"\x00\xff" * 40, lambda raw: b"no gzip"]
)
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz", "a.txt.gz"])
def test_damaged_gzip_is_an_error(tmp_path, damage, name):
    text = json.dumps([{"a": i} for i in range(2000)]) if "json." in name else "a,b\n" + "1,2\n" * 5000
    path = tmp_path / name
    path.write_bytes(damage(gzip.compress(text.encode())))
    with pytest.raises(DataError, match="damaged gzip"):
        list(open_rows(path))


@pytest.mark.parametrize("load", [load_instructions, load_prompts, load_comparisons, load_text])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "prompt,chosen,rejected,chosen\na,b,c,d\n", "1: field 'chosen': the header names this column twice"),
        ("a.csv", "\n text,text \na,b\n", "2: field 'text': the header names this column twice"),
        ("a.tsv", "text\tlabel\ttext\na\t1\tb\n", "1: field 'text': the header names this column twice"),
    ],
)
def test_a_column_that_is_named_twice_is_refused(write, load, name, content, message):
    path = write(content, name)
    with pytest.raises(DataError) as caught:
        load(path)
    assert str(caught.value) == f"{path}:{message}"


TOLD = '{"instruction": "a", "output": "b", "output": "c"}'
TURNS = '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "content": "c"}]'
ONCE = TURNS.replace(', "content": "c"', "")


@pytest.mark.parametrize(
    ("name", "content", "line", "field"),
    [
        ("a.jsonl", f"{JSONL}{TOLD}\n", 3, "output"),
        ("a.json", f"[{JSONL.replace('}', '},')}{TOLD}]", 3, "output"),
        ("a.jsonl", f'{JSONL}{{"messages": {TURNS}}}\n', 3, "messages[1].content"),
        ("a.jsonl", f"{JSONL}{TURNS}\n", 3, "messages[1].content"),
        (
            "a.csv",
            "messages\n" + "".join('"' + cell.replace('"', '""') + '"\n' for cell in (ONCE, TURNS)),
            3,
            "messages[1].content",
        ),
    ],
    ids=["lines", "array", "inside", "conversation", "cell"],
)
def test_a_key_that_is_given_twice_is_refused_or_its_record_left_out(write, name, content, line, field):
    path = write(content, name)
    with pytest.raises(DataError) as caught:
        load_instructions(path)
    said = f"{path}:{line}: field '{field}': is given twice"
    assert str(caught.value) == f"{said} (--skip-bad N skips up to N such records)"
    read = load_instructions(path, DataOptions(skip_bad=1))
    assert len(read.records) == line - 1 - (name == "a.csv")
    assert read.summary.sources[0].bad == [said]


# ------------------------------------------------------------------------------------------ packed and binary files

READERS = {
    "instructions": (load_instructions, DataOptions, {"instruction": "Boil an egg", "output": "Ten minutes."}),
    "comparisons": (load_comparisons, DataOptions, {"prompt": "Boil", "chosen": "Ten.", "rejected": "No."}),
    "prompts": (load_prompts, PromptOptions, {"prompt": "Boil an egg"}),
    "text": (load_text, TextOptions, {"text": "Ten minutes."}),
}
NAMES = ["a.jsonl", "a.json", "a.csv", "a.txt", "a", "a.parquet", "a.jsonl.gz"]


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.jsonl", JSONL)
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo("a.jsonl")
        entry.size = len(JSONL.encode())
        archive.addfile(entry, io.BytesIO(JSONL.encode()))
    return out.getvalue()


def database() -> bytes:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("create table a (instruction text)")
        return connection.serialize()


def array() -> bytes:
    out = io.BytesIO()
    np.save(out, np.arange(9))
    return out.getvalue()


# Real files where the standard library makes them, else the signatures that their specifications give.
BINARY = {
    "a zip archive (or an Excel, Word or torch file): unpack it": zipped(),
    "a tar archive: unpack it first": tarred(),
    "a 7z archive": b"7z\xbc\xaf\x27\x1c\x00\x04" + JSONL.encode(),
    "a RAR archive": b"Rar!\x1a\x07\x01\x00" + JSONL.encode(),
    "lz4-compressed": pyarrow.compress(JSONL.encode() * 9, codec="lz4", asbytes=True),
    "a PDF document: extract its text first": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n",
    "an SQLite database": database(),
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + JSONL.encode(),
    "a NumPy array": array(),
    "a PNG image": b"\x89PNG\r\n\x1a\n" + JSONL.encode(),
    "a JPEG image": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + JSONL.encode(),
    "a program": b"\x7fELF\x02\x01\x01" + JSONL.encode(),
    "an old Excel or Word file": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + JSONL.encode(),
    "an Avro file": b"Obj\x01\x04\x16avro.schema" + JSONL.encode(),
    "an old Feather file": b"FEA1\x00\x00\x00\x00" + JSONL.encode(),
    "a Python pickle, which can run arbitrary code": pickle.dumps(RECORDS),
    "UTF-16 text: convert it to UTF-8 first": JSONL.encode("utf-16"),
    "a binary file of unknown type": random.Random(0).randbytes(5000),
}


@pytest.mark.parametrize(
    "word", ["ORCHIDS grow here", "Rar! said the lion", "FEA1 is a name", "SQLite format 3 is old"]
)
def test_a_text_may_begin_with_the_letters_of_a_signature(tmp_path, word):
    (tmp_path / "a.txt").write_text(f"{word}, and more.\n")
    assert load_text(tmp_path / "a.txt").records == [f"{word}, and more.\n"]


def test_mustard_makes_no_tar_archive(tmp_path):
    """The signature of a tar archive is "ustar" at byte 257."""
    start = '{"text": "' + "a" * (256 - len('{"text": "'))
    (tmp_path / "a.jsonl").write_text(f'{start}mustard"}}\n')
    assert (tmp_path / "a.jsonl").read_bytes()[257:262] == b"ustar"
    assert len(load_text(tmp_path / "a.jsonl").records) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])  # to latin-1 any bytes are text
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", BINARY)
def test_a_binary_file_is_refused_by_its_kind_whatever_it_is_called(tmp_path, kind, reader, encoding):
    load, options, _ = READERS[reader]
    for name in NAMES:
        path = tmp_path / name
        path.write_bytes(gzip.compress(BINARY[kind]) if name.endswith(".gz") else BINARY[kind])
        with pytest.raises(DataError) as caught:
            load(path, options(encoding=encoding, skip_bad=9))
        assert str(caught.value).startswith(f"{path}: is {kind}")
        assert "\n" not in str(caught.value)


def zst(raw: bytes) -> bytes:
    out = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(out, "zstd") as packed:
        packed.write(raw)
    return out.getvalue().to_pybytes()


PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zst}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("packing", PACK)
def test_packed_files_are_unpacked_whatever_they_are_called(tmp_path, packing, reader):
    load, options, record = READERS[reader]
    lines = (json.dumps(record) + "\n").encode()
    expected = read_from(load, write_bytes(tmp_path / "plain.jsonl", lines))
    assert len(expected) == 1
    for name in (f"a.jsonl.{packing}", f"a.json.{packing.upper()}", "download.jsonl", "download.json", "download"):
        path = write_bytes(tmp_path / name, PACK[packing](lines))
        for encoding in ("utf-8", "latin-1"):
            assert read_from(load, path, options(encoding=encoding)) == expected, (name, encoding)


@pytest.mark.parametrize("packing", PACK)
def test_packed_text_is_unpacked(tmp_path, packing):
    raw = "Übe: ten minutes.\n".encode()
    for name in (f"a.txt.{packing}", "a.txt", "a"):
        found = load_text(write_bytes(tmp_path / name, PACK[packing](raw)), TextOptions(document_separator="line"))
        assert found.records == ["Übe: ten minutes."], name


@pytest.mark.parametrize("packing", ["bz2", "xz", "zst"])
def test_a_damaged_packed_file_is_named_in_one_line(tmp_path, packing):
    text = "".join(random.Random(0).choices("abc\n", k=50_000)).encode()
    path = write_bytes(tmp_path / f"a.txt.{packing}", PACK[packing](text)[:-1000])
    with pytest.raises(
        DataError, match=rf"a\.txt\.{packing}(:\d+)?: (damaged {packing} file|cannot be read)"
    ) as caught:
        load_text(path, TextOptions(document_separator="line"))
    assert "\n" not in str(caught.value)


def arrow_file(table: pyarrow.Table) -> bytes:
    out = io.BytesIO()
    pyarrow.feather.write_feather(table, out)  # compressed by lz4 unless told otherwise
    return out.getvalue()


def arrow_stream(table: pyarrow.Table) -> bytes:
    out = io.BytesIO()
    with pyarrow.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("layout", [arrow_file, arrow_stream])
def test_arrow_is_known_by_its_content(tmp_path, layout, reader):
    load, options, record = READERS[reader]
    raw = layout(pyarrow.Table.from_pylist([record]))
    expected = read_from(load, write_bytes(tmp_path / "plain.jsonl", json.dumps(record).encode()))
    for name in ("a.arrow", "a.feather", *NAMES[:5]):
        for encoding in ("utf-8", "latin-1"):
            path = write_bytes(tmp_path / name, raw)
            assert read_from(load, path, options(encoding=encoding)) == expected, (name, encoding)


@pytest.mark.parametrize("name", ["a.arrow", "a.parquet"])
def test_what_is_only_called_arrow_or_parquet_is_refused(write, name):
    kind = name.partition(".")[2]
    with pytest.raises(DataError, match=rf"{name}: is not in {kind} format, despite its name"):
        fields(write(JSONL, name))


@pytest.mark.parametrize("name", ["nothing.jsonl", "no/such/file.txt", "dir/*.parquet", "a:b:c:d", "what is this?"])
def test_missing_file_is_said_in_one_line_without_the_network(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it would raise
    with pytest.raises(UsageError) as caught:
        list(open_rows(name))
    assert str(caught.value) == f"{name}: no such file or directory"


def test_empty_directory_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="holds no data file"):
        list(open_rows(tmp_path))


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("imdb", ("imdb", None, None, "train")),
        ("tatsu-lab/alpaca", ("tatsu-lab/alpaca", None, None, "train")),
        ("org/set:test", ("org/set", None, None, "test")),
        ("openai/gsm8k:main:test", ("openai/gsm8k", "main", None, "test")),
        ("Anthropic/hh-rlhf/harmless-base:test", ("Anthropic/hh-rlhf", None, "harmless-base", "test")),
    ],
)
def test_data_set_id_is_taken_apart(monkeypatch, source, call):
    calls = []

    def load_dataset(name, config, *, data_dir, split):
        calls.append((name, config, data_dir, split))
        return RECORDS

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)  # it answers
    rows = list(open_rows(source))
    assert calls == [call]
    assert [row.fields for row in rows] == RECORDS
    assert rows[1].source == source
    assert str(rows[1].error("is missing", "output")) == f"{source}:2: field 'output': is missing"


def test_data_set_in_hub_layout_is_read_by_split(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cooking" / "data").mkdir(parents=True)
    for split, records in (("train", RECORDS), ("test", RECORDS[:1])):
        file = tmp_path / "cooking" / "data" / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), file)
    assert fields(f"{tmp_path / 'cooking'}:train") == RECORDS
    assert fields(f"{tmp_path / 'cooking'}:test") == RECORDS[:1]
    with pytest.raises(UsageError, match="nonesuch"):
        fields(f"{tmp_path / 'cooking'}:nonesuch")


def test_unreachable_hub_gives_one_clear_line(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach 'org/set' on the Hub\nand a second line")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)  # it answers
    with pytest.raises(UsageError) as caught:
        list(open_rows("org/set"))
    assert str(caught.value) == (
        "org/set: no such local file, and it could not be loaded from the Hugging Face hub: "
        "Couldn't reach 'org/set' on the Hub"
    )


def test_an_unreachable_hub_is_not_waited_for(monkeypatch):
    def dataset_info(self, name, *, timeout):
        assert timeout <= 5
        raise OSError("Name or service not known")

    config = types.SimpleNamespace(HF_HUB_OFFLINE=False)

    def load_dataset(*_, **__):
        assert config.HF_HUB_OFFLINE
        return RECORDS

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset, config=config))
    assert fields("org/set") == RECORDS  # fetched before


@pytest.mark.parametrize(
    "source", ["https://user:secret@host/x.jsonl", "https://host/x", "link", "here/promts", "a:b:c:d"]
)
def test_what_can_be_no_data_set_is_not_asked_for(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "here").mkdir()
    with pytest.raises(UsageError, match="no such file or directory") as error:
        list(open_rows(source))
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("[Chorus]\nla la", "text"),
        ("{curly} words", "text"),
        ('[ {"a": 1}]', "json"),
        ('{"a": 1}', "jsonl"),
        ("x", "text"),
    ],
)
def test_file_without_a_known_suffix_is_text_unless_it_is_json(write, content, kind):
    assert sniff(write(content, "song.pos")) == kind


@pytest.mark.parametrize(
    ("kind", "options"), [(PromptOptions, {"first_words": 2**53}), (TextOptions, {"document_separator": ""})]
)
def test_options_out_of_all_bounds_are_refused(kind, options):
    with pytest.raises(ValidationError):
        kind(**options)


@pytest.mark.parametrize(
    "options", [{"encoding": "klingon"}, {"encoding": "utf-16"}, {"skip_bad": -1}, {"formt": "hh"}]
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        DataOptions(**options)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "a web page"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<html lang="en">', "a web page"),
        (b"{\\rtf1\\ansi Boil the eggs.}", "a rich text document"),
        (b"%!PS-Adobe-3.0\n", "a PostScript document"),
        (b"\x1f\x9d\x90Boil", "packed by compress"),
        ("卵をゆでます。".encode("iso2022_jp"), "ISO-2022"),
        ("Boil".encode("utf-32"), "UTF-32 text"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "download"])
def test_what_stands_in_for_the_file_is_recognised(write, content, what, name):
    with pytest.raises(DataError, match=f"is .*{what}"):
        fields(write(content, name))
