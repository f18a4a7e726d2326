"""The account of what became of every record."""

import io

import pytest
from rich.console import Console

from wukong.data import DataOptions, load_comparisons, load_prompts
from wukong.errors import DataError


def printed(summary):
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(summary.table("comparisons"))
    return console.export_text()


@pytest.fixture
def read(write):
    pair = {"prompt": "Hi", "chosen": "Ho", "rejected": "No"}
    records = [pair, pair, pair | {"rejected": ""}, {"prompt": "Hi", "chosen": "[red]"}, pair | {"chosen": "Hey"}]
    vote = {"prompt": "Hi", "completion": "Ho", "label": True}
    return load_comparisons([write(records, "pairs[1].json"), write([vote], "votes.jsonl")], DataOptions(skip_bad=1))


def test_every_record_is_kept_or_dropped_with_a_reason(read):
    assert [(s.format, s.read, s.kept, dict(s.dropped)) for s in read.summary.sources] == [
        ("trl", 5, 2, {"duplicate": 1, "empty answer": 1, "bad record": 1}),
        ("kto", 1, 1, {}),
    ]
    assert all(s.read == s.kept + s.dropped.total() for s in read.summary.sources)
    assert read.summary.kept == len(read.records) == 3


def test_table_shows_sources_formats_counts_and_reasons(read):
    text = printed(read.summary)
    for expected in ("pairs[1].json", "trl", "votes.jsonl", "kto", "1 dropped: duplicate", "1 dropped: empty answer"):
        assert expected in text
    assert "pairs[1].json:4: field 'rejected': is missing" in text.replace("\n", "")


def test_what_stages_remove_later_is_in_the_account(read):
    read.summary.dropped["prompt longer than the context"] += 1
    read.summary.truncated["answer cut to 512 tokens"] += 2
    assert read.summary.kept == 2
    assert read.summary.as_dict()["kept"] == 2
    assert read.summary.as_dict()["dropped"]["prompt longer than the context"] == 1
    assert read.summary.as_dict()["truncated"] == {"answer cut to 512 tokens": 2}
    assert "2 truncated: answer cut to 512 tokens" in printed(read.summary)


def test_same_source_twice_gives_duplicates_not_copies(write):
    path = write([{"prompt": "Hi"}])
    read = load_prompts([path, path])
    assert (read.summary.kept, read.summary.all_dropped()) == (1, {"duplicate": 1})


def test_error_in_a_later_source_names_that_source(write):
    with pytest.raises(DataError, match=r"b\.jsonl:1: "):
        load_prompts([write([{"prompt": "Hi"}], "a.jsonl"), write("{oops\n", "b.jsonl")])
