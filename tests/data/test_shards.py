"""A corpus as token shards: nothing lost, nothing half-written, nothing mistaken for another tokenizer's."""

import json
import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.data.shards import TokenShards, write_shards
from wukong.errors import DataError, RunError, UsageError
from wukong.tokenizer import Tokenizer

DOCUMENTS = [f"Boil {n} eggs for {n % 9} minutes. Grüße 😀" + " Peel them." * (n % 5) for n in range(700)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(DOCUMENTS, 280)


@pytest.fixture(scope="module")
def stream(tokenizer) -> list[int]:
    """What the shards must hold, one document after the other."""
    return [token for text in DOCUMENTS for token in [*tokenizer.encode(text), tokenizer.eos_id]]


@pytest.fixture
def shards(tmp_path, tokenizer) -> TokenShards:
    write_shards(tmp_path / "shards", DOCUMENTS, tokenizer, shard_tokens=1000)
    return TokenShards.open(tmp_path / "shards", tokenizer)


def test_the_shards_hold_every_document_closed_by_the_end_token(tmp_path, shards, stream, tokenizer):
    assert len(shards) == len(stream)
    assert shards.window(0, len(stream)).tolist() == stream
    assert len(shards.arrays) > 20
    assert all(1000 <= len(array) < 1060 for array in shards.arrays[:-1])
    assert all(array[-1] == tokenizer.eos_id for array in shards.arrays), "documents are not cut by shards"
    assert {str(array.dtype) for array in shards.arrays} == {"uint16"}
    assert all(isinstance(array, np.memmap) for array in shards.arrays)
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    n_bytes = sum(len(text.encode()) for text in DOCUMENTS)
    assert manifest["documents"] == 700
    assert manifest["bytes"] == n_bytes
    assert manifest["tokens"] == len(stream)
    assert manifest["tokenizer"] == tokenizer.fingerprint
    assert shards.bytes_per_token == n_bytes / len(stream)
    assert sorted(p.name for p in (tmp_path / "shards").iterdir())[:2] == ["manifest.json", "tokens-00000.bin"]


def test_windows_cross_shards(shards, stream):
    for boundary in shards.starts[1:-1]:
        assert shards.window(int(boundary) - 3, 6).tolist() == stream[boundary - 3 : boundary + 3]
        assert shards.window(int(boundary), 2).tolist() == stream[boundary : boundary + 2]
    assert shards.window(500, 5000).tolist() == stream[500:5500]  # several at once
    assert shards.window(0, 1).dtype == np.int64


@settings(max_examples=30)
@given(st.data())
def test_any_window_is_that_part_of_the_stream(data):
    shards = TokenShards(
        {}, [np.arange(a, b, dtype=np.uint16) for a, b in ((0, 5), (5, 6), (6, 20))], np.array([0, 5, 6, 20])
    )
    start = data.draw(st.integers(0, 19))
    length = data.draw(st.integers(1, 20 - start))
    assert shards.window(start, length).tolist() == list(range(start, start + length))


def test_large_vocabularies_are_stored_in_32_bits(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "vocab_size", 65_537)
    assert write_shards(tmp_path / "a", DOCUMENTS, tokenizer)["dtype"] == "uint32"
    monkeypatch.setattr(tokenizer, "vocab_size", 65_536)
    assert write_shards(tmp_path / "b", DOCUMENTS, tokenizer)["dtype"] == "uint16"
    sizes = [sum(file.stat().st_size for file in (tmp_path / name).glob("*.bin")) for name in "ab"]
    assert sizes[0] == 2 * sizes[1]


# ------------------------------------------------------------------------------------------------ training batches


def test_an_epoch_reads_each_context_once_in_shuffled_order(shards, stream):
    context, rows, steps = 40, 3, 12
    windows = (len(stream) - 1) // context
    seen = [row for step in range(windows // rows) for row in shards.batch(step, rows, context, seed=0).tolist()]
    assert all(len(row) == context + 1 for row in seen)
    starts = [stream_index(stream, row) for row in seen]
    offset = min(starts) % context
    assert len(set(starts)) == len(starts)
    assert {start % context for start in starts} == {offset}, "contexts do not overlap, but for the one shared token"
    assert starts[:steps] != sorted(starts[:steps])
    following = shards.batch(windows // rows + 1, rows, context, seed=0).tolist()
    assert stream_index(stream, following[0]) % context != offset, "another epoch cuts elsewhere"


def stream_index(stream: list[int], row: list[int]) -> int:
    """Where the row stands; unique in this corpus as it numbers its documents."""
    places = [i for i in range(len(stream) - len(row) + 1) if stream[i] == row[0] and stream[i : i + len(row)] == row]
    assert len(places) == 1
    return places[0]


def test_a_batch_depends_on_its_step_and_seed_alone(tmp_path, shards, tokenizer):
    in_order = [shards.batch(step, 4, 64, seed=1) for step in range(300)]
    again = TokenShards.open(tmp_path / "shards", tokenizer)
    for step in (299, 7, 150, 7):
        assert again.batch(step, 4, 64, seed=1).equal(in_order[step])
    assert not again.batch(7, 4, 16, seed=2).equal(in_order[7])


# ---------------------------------------------------------------------------------------------------------- errors


def test_another_tokenizers_shards_are_refused(tmp_path, shards):
    other = Tokenizer.train(DOCUMENTS[:50], 270)
    with pytest.raises(
        UsageError, match=r"shards: made with a tokenizer other than the model's; run 'wukong tokenize'"
    ):
        TokenShards.open(tmp_path / "shards", other)


def test_missing_shards_are_named_with_the_command_that_makes_them(tmp_path, tokenizer):
    with pytest.raises(UsageError, match="no token shards here; create them with 'wukong tokenize'"):
        TokenShards.open(tmp_path, tokenizer)


@pytest.mark.parametrize("damage", ["cut", "grown", "missing"])
def test_a_damaged_shard_is_named(tmp_path, shards, tokenizer, damage):
    file = tmp_path / "shards" / "tokens-00001.bin"
    if damage == "missing":
        file.unlink()
    else:
        raw = file.read_bytes()
        file.write_bytes(raw[:-2] if damage == "cut" else raw + b"\0\0")
    with pytest.raises(DataError, match=r"tokens-00001\.bin: the shard is missing or truncated; run 'wukong tokenize'"):
        TokenShards.open(tmp_path / "shards", tokenizer)


def test_documents_that_fail_half_way_leave_nothing(tmp_path, tokenizer):
    def documents():
        yield from DOCUMENTS
        raise DataError("not valid JSON", file="corpus.jsonl", line=9)

    with pytest.raises(DataError, match=r"corpus\.jsonl:9"):
        write_shards(tmp_path / "shards", documents(), tokenizer, shard_tokens=1000)
    assert list(tmp_path.iterdir()) == []


def test_half_a_character_is_a_data_error(tmp_path, tokenizer):
    with pytest.raises(DataError):
        write_shards(tmp_path / "shards", ["fine", "\ud83d"], tokenizer)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, tokenizer):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(RunError, match=r"shards: cannot write \(File too large\)"):
            write_shards(tmp_path / "shards", DOCUMENTS, tokenizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
