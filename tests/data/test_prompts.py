"""Prompts from lists of questions, from every other format, and from the first words of texts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.data import PromptOptions, load_prompts, read_prompts
from wukong.errors import DataError
from wukong.records import Message, Prompt, Response, Sampling, prompt_id, write_records

HI = [("user", "Hi")]
TURN = [{"role": "user", "content": "Hi"}]
ANSWER = [{"role": "assistant", "content": "Ho"}]


def said(record):
    return [(m.role, m.content) for m in record.messages]


@pytest.mark.parametrize(
    ("name", "record", "expected"),
    [
        ("turns", {"question_id": 81, "turns": ["Hi", "And then?"]}, HI),
        ("prompt", {"prompt": "Hi"}, HI),
        ("prompt", {"prompt": TURN}, HI),
        ("instruction", {"instruction": "Hi", "input": "you"}, [("user", "Hi\n\nyou")]),
        ("question", {"question": "Hi"}, HI),
        ("text", {"text": "Hi", "label": "pos"}, HI),
        ("alpaca", {"instruction": "Hi", "output": "Ho"}, HI),
        ("messages", {"messages": TURN}, HI),
        ("messages", {"messages": TURN + ANSWER}, HI),
        ("messages", {"messages": TURN + ANSWER + TURN}, [*HI, ("assistant", "Ho"), *HI]),
        ("messages", {"id": "x", "source": "y", "messages": TURN + ANSWER}, HI),  # tulu's fields: not our Prompt
        ("sharegpt", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}, HI),
        (
            "sharegpt-preference",
            {"conversations": [{"from": "human", "value": "Hi"}], "chosen": "a", "rejected": "b"},
            HI,
        ),
        ("kto", {"messages": TURN + ANSWER, "label": False}, HI),
        ("trl", {"prompt": "Hi", "chosen": "Ho", "rejected": ""}, HI),
        ("trl", {"prompt": "Hi", "chosen": "same", "rejected": "same"}, HI),  # of no use to compare, but a prompt
        (
            "hh",
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: Hi\n\nAssistant: a",
                "rejected": "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: Hi\n\nAssistant: b",
            },
            [*HI, ("assistant", "Ho"), *HI],
        ),
        ("labelstudio", {"data": {"prompt": "Hi", "answer1": "a", "answer2": "b"}}, HI),
        ("prompt", {"prompt": "Hi", "items": [{"id": "1", "body": "a"}]}, HI),
    ],
)
def test_format_is_detected_and_converted(write, name, record, expected):
    read = load_prompts(write([record]))
    assert [said(one) for one in read.records] == [expected]
    assert read.records[0].id == prompt_id(read.records[0].messages)
    assert read.summary.sources[0].format == name
    assert read_prompts(write([record]), format=name) == read.records


def test_text_file_holds_a_prompt_a_line(write):
    read = load_prompts(write("How to make pizza\n\nHow to boil an egg\r\nHow to make pizza\n", "prompts.txt"))
    assert [said(one)[0][1] for one in read.records] == ["How to make pizza", "How to boil an egg"]
    assert read.summary.all_dropped() == {"duplicate": 1}


def test_first_words_are_cut_from_texts_with_their_spaces(write):
    path = write("the  quick\tbrown fox jumps\nshort\nthe  quick\tbrown dog\n", "reviews.txt")
    read = load_prompts(path, PromptOptions(first_words=3))
    assert [said(one)[0][1] for one in read.records] == ["the  quick\tbrown", "short"]
    assert read.records[0].id == prompt_id([Message(role="user", content="the  quick\tbrown")])
    assert read.summary.all_truncated() == {"to the first 3 words": 2}
    assert read.summary.all_dropped() == {"duplicate": 1}


def test_one_record_gives_a_prompt_once(write):
    judged = {"instruction": "Hi", "input": "", "response1": "a", "response2": "b", "annotator1": 1, "annotator2": 2}
    read = load_prompts(write([judged]))
    assert (read.summary.kept, read.summary.all_dropped()) == (1, {})


def test_answer_without_a_question_is_dropped(write):
    read = load_prompts(
        write([{"messages": ANSWER}, {"messages": TURN}, {"messages": [{"role": "user", "content": " "}]}])
    )
    assert [said(one) for one in read.records] == [HI]
    assert read.summary.all_dropped() == {"no prompt": 1, "empty prompt": 1}


def test_other_encodings_need_to_be_named(write):
    path = write("el ladr\xf3n\x85 de orqu\xeddeas\n".encode("latin-1"), "rt.pos")
    with pytest.raises(DataError, match=r"rt\.pos:1: byte 0xf3 is not utf-8 .*--encoding cp1252"):
        read_prompts(path)
    assert said(read_prompts(path, encoding="latin-1")[0]) == [("user", "el ladrón\x85 de orquídeas")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"turns": []}, "field 'turns': is an empty list"),
        ({"turns": [{"text": "Hi"}]}, r"field 'turns\[0\]': is an object"),
        ({"prompt": None}, "field 'prompt': is null"),
        ({"id": "x", "messages": [{"role": "user", "content": [1]}]}, r"field 'messages\[0\].content': is a list"),
    ],
)
def test_bad_record_is_an_error_with_file_line_and_field(write, record, message):
    with pytest.raises(DataError, match=f"data.jsonl:1: {message}"):
        read_prompts(write([record]))


words = st.text(min_size=1).filter(str.strip)
prompts = st.builds(
    lambda before, ask, source: Prompt(messages=[*before, Message(role="user", content=ask)], source=source),
    st.lists(st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=words), max_size=3),
    words,
    st.text(),
)


@settings(max_examples=60)
@given(st.lists(prompts, min_size=1, max_size=4, unique_by=lambda p: p.id))
def test_own_records_come_back_as_they_were_written(tmp_path, records):
    write_records(tmp_path / "own.jsonl", records)
    assert read_prompts(tmp_path / "own.jsonl") == records


def test_responses_give_their_prompts(tmp_path):
    messages = [Message(role="user", content="Hi")]
    answers = [
        Response(id=str(i), prompt_id=prompt_id(messages), messages=messages, text=str(i), model="m") for i in (1, 2)
    ]
    write_records(tmp_path / "responses.jsonl", answers)
    assert read_prompts(tmp_path / "responses.jsonl") == [Prompt(messages=messages)]


@pytest.mark.parametrize(
    ("record", "answer", "columns"),
    [
        ({"question": "Hi", "answer": "4"}, "4", None),
        ({"question": "Hi", "answer": 4, "level": 2}, "4", {"level": 2}),
        ({"prompt": "Hi", "gold_answer": "4", "target": "5"}, "4", {"target": "5"}),
        ({"prompt": TURN, "reward_model": {"ground_truth": "4", "style": "rule"}, "ability": "math"}, "4",
         {"reward_model": {"ground_truth": "4", "style": "rule"}, "ability": "math"}),
        ({"prompt": "Hi", "solution": "So 4.", "answer": "4"}, "4", {"solution": "So 4."}),
        ({"prompt": "Hi", "answer": " ", "solution": None, "target": "4"}, "4", {"answer": " "}),
        ({"prompt": "Hi", "answer": ["4", "four"]}, None, {"answer": ["4", "four"]}),  # several: a reward gets the list
        ({"messages": TURN, "ground_truth": "4", "id": 7}, "4", {"id": 7}),
        ({"instruction": "Hi", "output": "Ho", "target": "4"}, "4", None),
        ({"prompt": "Hi", "nothing": None}, None, None),
        ({"id": "x", "messages": TURN, "answer": 4}, "4", {"id": "x"}),  # not our Prompt, whose answer is text
    ],
)  # fmt: skip
def test_a_prompt_has_the_answer_and_the_other_columns_of_its_record(write, record, answer, columns):
    (prompt,) = load_prompts(write([record])).records
    assert (prompt.answer, prompt.columns) == (answer, columns)
    assert said(prompt) == HI


def test_columns_are_counted_and_named(write):
    source = load_prompts(write([{"prompt": "Hi", "level": 1}, {"prompt": "Ho", "level": 2, "n": 3}])).summary.sources[
        0
    ]
    assert source.columns == {"level": 2, "n": 1}
    assert source.events() == ["kept for rewards: level (2), n (1)"]
    assert source.unused == {}


def test_a_column_of_another_name_is_the_answer(write):
    path = write([{"prompt": "Hi", "final": {"value": "4"}, "answer": "no"}])
    assert read_prompts(path, columns=["answer=final.value"])[0].answer == "4"
    (prompt,) = read_prompts(path, columns=["answer="])
    assert (prompt.answer, prompt.columns) == (None, {"final": {"value": "4"}})


def test_answer_and_columns_survive_a_cut_and_our_own_files(write, tmp_path):
    (prompt,) = read_prompts(write([{"prompt": "one two three", "answer": "4", "kwargs": [{"n": 1}]}]), first_words=2)
    assert (said(prompt), prompt.answer, prompt.columns) == ([("user", "one two")], "4", {"kwargs": [{"n": 1}]})
    response = Response.of(prompt, "text", "model", Sampling(), finished=True, n_tokens=1)
    write_records(tmp_path / "r.jsonl", [response])
    write_records(tmp_path / "p.jsonl", [prompt])
    assert read_prompts(tmp_path / "r.jsonl") == read_prompts(tmp_path / "p.jsonl") == [prompt]


def test_what_our_files_cannot_hold_is_no_column(tmp_path):
    import datetime

    import pyarrow
    import pyarrow.parquet

    rows = [
        {"prompt": "Hi", "when": datetime.datetime(2024, 1, 1), "image_bytes": b"\xff", "score": float("nan"), "n": 1}
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    read = load_prompts(tmp_path / "p.parquet")
    assert read.records[0].columns == {"n": 1}
    assert read.summary.sources[0].unused == {"when": 1, "image_bytes": 1}
