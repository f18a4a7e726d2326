"""Demonstrations from every public format, and what is said about records that are none."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.data import DataOptions, load_instructions, read_instructions
from wukong.errors import DataError, UsageError
from wukong.records import Conversation, Message, write_records


def said(record):
    return [(m.role, m.content) for m in record.messages]


ASKED = [("user", "Boil an egg"), ("assistant", "Ten minutes.")]
FORMATS = [
    ("alpaca", {"instruction": "Boil an egg", "input": "", "output": "Ten minutes."}, ASKED),
    (
        "alpaca",
        {"instruction": "Boil", "input": "an egg", "output": "Ok"},
        [("user", "Boil\n\nan egg"), ("assistant", "Ok")],
    ),
    ("alpaca", {"instruction": "Boil an egg", "input": "<noinput>", "output": "Ten minutes."}, ASKED),
    ("alpaca", {"instruction": "Boil an egg", "input": None, "output": "Ten minutes."}, ASKED),
    (
        "alpaca",
        {"system": "Be brief", "instruction": "Boil an egg", "output": "Ten minutes."},
        [("system", "Be brief"), *ASKED],
    ),
    ("alpaca", {"instruction": "Boil an egg", "output": "Ten minutes.", "chosen": "Ten", "rejected": "No"}, ASKED),
    ("dolly", {"instruction": "Boil an egg", "input": "", "response": "Ten minutes."}, ASKED),
    (
        "dolly",
        {"instruction": "Boil", "context": "an egg", "response": "Ok"},
        [("user", "Boil\n\nan egg"), ("assistant", "Ok")],
    ),
    ("prompt-completion", {"prompt": "Boil an egg", "completion": "Ten minutes."}, ASKED),
    ("prompt-completion", {"prompt": "Boil an egg", "response": "Ten minutes."}, ASKED),
    (
        "prompt-completion",
        {
            "prompt": [{"role": "user", "content": "Boil an egg"}],
            "completion": [{"role": "assistant", "content": "Ten minutes."}],
        },
        ASKED,
    ),
    ("question-answer", {"question": "Boil an egg", "answer": "Ten minutes."}, ASKED),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "Boil an egg"}, {"from": "gpt", "value": "Ten minutes."}]},
        ASKED,
    ),
    (
        "sharegpt",
        {"system": "Be brief", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
        [("system", "Be brief"), ("user", "Hi"), ("assistant", "Ho")],
    ),
    (
        "messages",
        {
            "messages": [
                {"role": "system", "content": "Be brief"},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Ho"},
            ]
        },
        [("system", "Be brief"), ("user", "Hi"), ("assistant", "Ho")],
    ),
    (
        "messages",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Boil an egg"}]},
                {"role": "assistant", "content": "Ten minutes."},
            ]
        },
        ASKED,
    ),
    ("self-instruct", {"instruction": "Boil an egg", "instances": [{"input": "", "output": "Ten minutes."}]}, ASKED),
    ("preference", {"prompt": "Boil an egg", "chosen": "Ten minutes.", "rejected": "No"}, ASKED),
    ("preference", {"prompt": "Boil an egg", "completion": "Ten minutes.", "label": True}, ASKED),
    (
        "preference",
        {
            "chosen": "\n\nHuman: Boil an egg\n\nAssistant: Ten minutes.",
            "rejected": "\n\nHuman: Boil an egg\n\nAssistant: No",
        },
        ASKED,
    ),
]


@pytest.mark.parametrize(("name", "record", "expected"), FORMATS)
def test_format_is_detected_and_converted(write, name, record, expected):
    read = load_instructions(write([record]))
    assert [said(one) for one in read.records] == [expected]
    assert read.records[0].source == "data.jsonl"
    assert [(s.format, s.read, s.kept, s.dropped.total()) for s in read.summary.sources] == [(name, 1, 1, 0)]
    assert read_instructions(write([record]), format=name) == read.records


def test_each_instance_of_a_seed_task_is_a_demonstration(write):
    task = {"instruction": "Double", "instances": [{"input": "2", "output": "4"}, {"input": "3", "output": "6"}]}
    assert [said(one)[0][1] for one in read_instructions(write([task]))] == ["Double\n\n2", "Double\n\n3"]


def test_chat_log_is_cut_to_what_can_be_learned_from_it(write):
    log = [("gpt", "Welcome"), ("human", "Hi"), ("gpt", "Ho"), ("human", "Bye")]
    read = load_instructions(write([{"conversations": [{"from": a, "value": b} for a, b in log]}]))
    assert said(read.records[0]) == [("user", "Hi"), ("assistant", "Ho")]
    assert read.summary.sources[0].notes == {
        "answer before the first question removed": 1,
        "last turn without an answer removed": 1,
    }


def test_answers_voted_down_are_not_learned_from(write):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Go away"}]
    good = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    read = load_instructions(write([{"messages": turns, "label": False}, {"messages": good, "label": True}]))
    assert [said(one)[-1][1] for one in read.records] == ["Hello"]
    assert read.summary.all_dropped() == {"answer that was voted down": 1}


def test_useless_records_are_dropped_and_counted(write):
    one = {"instruction": "Hi", "output": "Ho"}
    records = [one, one, {"instruction": "Hi", "output": " \n"}, {"instruction": " ", "output": "Ho"}]
    read = load_instructions([write(records, "a.jsonl"), write([one], "b.json")], DataOptions())
    assert len(read.records) == 1
    assert [dict(s.dropped) for s in read.summary.sources] == [
        {"duplicate": 1, "empty answer": 1, "empty prompt": 1},
        {"duplicate": 1},  # duplicates are found across sources
    ]


def test_number_is_read_as_text_and_noted(write):
    read = load_instructions(write([{"question": "6 x 7?", "answer": 42}]))
    assert said(read.records[0])[-1] == ("assistant", "42")
    assert read.summary.sources[0].notes == {"number or boolean read as text": 1}


GOOD = {"instruction": "Hi", "output": "Ho"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"instruction": "Hi"}, "field 'output': is missing"),
        ({"instruction": "Hi", "output": None}, "field 'output': is null, expected text"),
        ({"instruction": "Hi", "output": ["Ho"]}, "field 'output': is a list, expected text"),
        ({"instruction": {"a": 1}, "output": "Ho"}, "field 'instruction': is an object, expected text"),
        ({}, "the record has no fields; no format of instructions matches"),
        ({"oops": 1}, "no known format of instructions has the fields oops"),
    ],
)
def test_bad_record_is_an_error_with_file_line_and_field(write, bad, message):
    path = write([GOOD, GOOD | {"output": "Hello"}, bad])
    with pytest.raises(DataError) as caught:
        read_instructions(path)
    assert str(caught.value).startswith(f"{path}:3: {message}")
    assert (caught.value.file, caught.value.line) == (str(path), 3)
    read = load_instructions(path, DataOptions(skip_bad=1))
    assert read.summary.kept == len(read.records) == 2
    assert read.summary.all_dropped() == {"bad record": 1}
    assert message in read.summary.sources[0].bad[0]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (
            [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}],
            "field 'messages[1].role': unknown role 'tool'",
        ),
        ([{"role": "user", "content": None}], "field 'messages[0].content': is null"),
        ([{"role": "user"}, "words"], "field 'messages[1]': is text, expected an object"),
        ([{"content": "a", "role": None}], "field 'messages[0].role': unknown role None"),
    ],
)
def test_bad_message_is_an_error_that_names_it(write, turns, message):
    with pytest.raises(DataError) as caught:
        read_instructions(write([{"messages": turns}]))
    assert f"data.jsonl:1: {message}" in str(caught.value)


def test_more_bad_records_than_allowed_stop_the_reading(write):
    path = write(json.dumps(GOOD) + '\n{"broken\n[]\n')
    assert len(read_instructions(path, skip_bad=2)) == 1
    with pytest.raises(DataError, match=r":3: .*more than the 1 bad records that --skip-bad allows"):
        read_instructions(path, skip_bad=1)
    with pytest.raises(DataError, match=r":2: .*--skip-bad N skips up to N such records"):
        read_instructions(path)


def test_bad_first_record_does_not_hide_the_format(write):
    path = write('{"oops": 1}\n' + json.dumps(GOOD) + "\n")
    with pytest.raises(DataError, match=r":1: no known format of instructions has the fields oops"):
        read_instructions(path)
    assert load_instructions(path, DataOptions(skip_bad=1)).summary.sources[0].format == "alpaca"


def test_unknown_shape_lists_the_fields_found_and_the_formats_known(write):
    with pytest.raises(DataError) as caught:
        read_instructions(write([{"premise": "a", "hypothesis": "b"}]))
    message = str(caught.value)
    assert "data.jsonl:1: no known format of instructions has the fields premise, hypothesis" in message
    assert all(name in message for name in ("wukong", "alpaca", "dolly", "sharegpt", "messages", "self-instruct"))


def test_unknown_format_name_is_refused(write):
    with pytest.raises(UsageError, match="unknown format 'alpacca' for instructions; known: auto, wukong"):
        read_instructions(write([GOOD]), format="alpacca")


def test_source_without_a_usable_record_is_an_error(write):
    with pytest.raises(DataError, match=r"no usable instructions \(dropped: 1 empty answer\)"):
        read_instructions(write([{"instruction": "Hi", "output": ""}]))


words = st.text(min_size=1).filter(str.strip)  # st.text() leaves surrogates out, as UTF-8 does
turn = st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=words)
conversations = st.builds(
    lambda before, ask, answer, source: Conversation(messages=[*before, ask, answer], source=source),
    st.lists(turn, max_size=3),
    st.builds(Message, role=st.just("user"), content=words),
    st.builds(Message, role=st.just("assistant"), content=words),
    st.text(),
)


@settings(max_examples=60)
@given(st.lists(conversations, min_size=1, max_size=4, unique_by=lambda c: str(c.messages)))
def test_own_records_come_back_as_they_were_written(tmp_path, records):
    write_records(tmp_path / "own.jsonl", records)
    assert read_instructions(tmp_path / "own.jsonl") == records
