"""Documents for pretraining, and where they end."""

import pytest

from wukong.data import ReadSummary, TextOptions, iter_text, load_text, read_text
from wukong.data.sources import open_rows
from wukong.data.text import _split
from wukong.errors import DataError

STORIES = "One day.\n\nThe end.\nTwo days.\n\nNo end.\n"


@pytest.mark.parametrize(
    ("separator", "expected"),
    [
        ("file", [STORIES]),
        ("line", ["One day.", "The end.", "Two days.", "No end."]),
        ("newline", ["One day.\n\nThe end.", "Two days.\n\nNo end."]),
        ("blank", ["One day.", "The end.\nTwo days.", "No end."]),
        ("days", ["One day.\n\nThe end.\nTwo ", ".\n\nNo end."]),
        ("day.", ["One ", "The end.\nTwo days.\n\nNo end."]),
    ],
)
@pytest.mark.parametrize("name", ["stories.txt", "stories.txt.gz"])
def test_document_ends_at_its_separator(write, separator, expected, name):
    for text in (STORIES, STORIES.replace("\n", "\r\n")):
        assert read_text(write(text, name), document_separator=separator) == expected


def test_special_token_separates_documents(write):
    path = write("Once.\n<|endoftext|>\nTwice.\n<|endoftext|>\n", "tiny.txt")
    assert read_text(path, document_separator="<|endoftext|>") == ["Once.", "Twice."]


@pytest.mark.parametrize("field", ["text", "content"])
@pytest.mark.parametrize("name", ["books.jsonl.gz", "books.json"])
def test_records_give_their_text_field_whole(write, field, name):
    books = [{"title": "Heidi", "year": "1881", field: "From the old\n\ntown"}, {"title": "Oz", field: "Dorothy"}]
    read = load_text(write(books, name), TextOptions(document_separator="line"))
    assert read.records == ["From the old\n\ntown", "Dorothy"]
    assert read.summary.sources[0].format == field


def test_empty_and_repeated_documents_are_counted(write):
    read = load_text(write([{"text": "a"}, {"text": " "}, {"text": "a"}, {"text": "b"}]))
    assert read.records == ["a", "b"]
    assert read.summary.as_dict()["dropped"] == {"empty text": 1, "duplicate": 1}


def test_documents_come_one_at_a_time(write):
    good = "".join(f'{{"text": "{i}"}}\n' for i in range(60))  # more than are looked at to find the format
    summary = ReadSummary()
    texts = iter_text(write(good + '{"text": null}\n'), None, summary)
    assert [next(texts) for _ in range(60)] == [str(i) for i in range(60)]
    assert summary.kept == 60
    with pytest.raises(DataError, match=r"data\.jsonl:61: field 'text': is null"):
        next(texts)


def test_lines_of_documents_are_known(write):
    path = write("\n\na\nb\n\n\n\nc\n", "a.txt")
    assert list(_split(path, "utf-8", "blank")) == [(3, "a\nb"), (8, "c")]
    assert [row.line for row in open_rows(path)] == [3, 4, 8]


def test_record_without_text_is_an_error(write):
    with pytest.raises(DataError, match=r"data\.jsonl:1: no known format of texts has the fields title"):
        read_text(write([{"title": "Heidi"}]))
