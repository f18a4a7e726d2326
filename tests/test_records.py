"""The records that stages exchange: what is accepted, what is refused, and how it is said."""

import hashlib
import json

import pytest
from pydantic import ValidationError

from wukong.errors import DataError, RunError
from wukong.records import (
    Comparison,
    Conversation,
    Message,
    Prompt,
    Ranking,
    Response,
    Vote,
    as_messages,
    iter_records,
    prompt_id,
    read_records,
    write_records,
)

HALF = "\ud83d"  # the first half of an emoji's surrogate pair


def user(text: str) -> Message:
    return Message(role="user", content=text)


# -------------------------------------------------------------------------------------------------------- prompts


def test_a_prompt_is_text_or_messages():
    assert as_messages("Hello") == [user("Hello")]
    assert as_messages([{"role": "system", "content": "Be brief."}, user("Hello")]) == [
        Message(role="system", content="Be brief."),
        user("Hello"),
    ]
    assert as_messages(()) == []


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([{"role": "user", "content": "Hi"}, {"role": "robot", "content": "Ho"}], "field 'messages.1.role': .*'user'"),
        ([{"role": "user"}], r"field 'messages\.0\.content': Field required"),
        ([{"role": "user", "content": "Hi", "name": "x"}], r"field 'messages\.0\.name': Extra inputs"),
        ([{"role": "user", "content": 5}], r"field 'messages\.0\.content': .*valid string"),
        (["Hi"], r"field 'messages\.0'"),
        ({"role": "user", "content": "Hi"}, "a prompt is text or a list of messages, not dict"),
        (5, "a prompt is text or a list of messages, not int"),
        (None, "not NoneType"),
    ],
)
def test_what_is_no_prompt_is_refused_with_its_field(prompt, message):
    with pytest.raises(DataError, match=message):
        as_messages(prompt)


def test_a_prompts_id_is_a_hash_of_roles_and_contents():
    # Written out, because files on people's disks depend on it.
    canonical = '[["system", "Seid höflich."], ["user", "Hi \\"you\\""]]'
    messages = [Message(role="system", content="Seid höflich."), user('Hi "you"')]
    assert prompt_id(messages) == hashlib.sha256(canonical.encode()).hexdigest()[:16] == "f4c290b04e6e458a"
    assert prompt_id(messages[1:]) != prompt_id(messages)
    assert prompt_id([user("a"), user("b")]) != prompt_id([user("ab")])


def test_a_prompt_gets_its_id_from_its_messages_unless_it_has_one():
    assert Prompt(messages=[user("Hi")]).id == prompt_id([user("Hi")])
    assert Prompt.model_validate({"messages": [{"role": "user", "content": "Hi"}]}).id == prompt_id([user("Hi")])
    assert Prompt(messages=[user("Hi")], id="mine").id == "mine"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": [{"role": "robot", "content": "Hi"}]}, r"messages\.0\.role"),
        ({"messages": 5}, "messages\n.*valid list"),
        ({"messages": []}, "at least 1 item"),
        ({"messages": [{"role": "user", "content": HALF}]}, "half a character"),
        ({}, "Field required"),
    ],
)
def test_a_prompt_that_is_wrong_says_where(fields, message):
    with pytest.raises(ValidationError, match=message):
        Prompt.model_validate(fields)


def test_half_a_character_has_no_id():
    with pytest.raises(DataError, match="contains half a character"):
        prompt_id([user(f"Hi {HALF}")])


# -------------------------------------------------------------------------------------------------------- rankings


def test_a_ranking_gives_all_pairs_across_its_groups():
    prompt, texts = [user("Hi")], ["a", "b", "c", "d"]
    # 2 beats 0, 1 and 3; 0 and 1, tied, beat 3.
    ranking = Ranking(prompt=prompt, responses=texts, groups=[[2], [0, 1], [3]])
    assert sorted(ranking.pairs()) == [(0, 3), (1, 3), (2, 0), (2, 1), (2, 3)]
    assert len(list(Ranking(prompt=prompt, responses=texts, groups=[[3], [1], [0], [2]]).pairs())) == 6  # C(4, 2)
    assert list(Ranking(prompt=prompt, responses=texts, groups=[[0, 1, 2, 3]]).pairs()) == []


@pytest.mark.parametrize("groups", [[[0], [1]], [[0], [1], [1, 2]], [[0, 1], [3]], [[-1], [0], [1]], []])
def test_a_ranking_names_each_response_once(groups):
    with pytest.raises(ValidationError, match="groups must name each of the 3 responses once"):
        Ranking(prompt=[user("Hi")], responses=["a", "b", "c"], groups=groups)


def test_a_vote_is_up_or_down():
    assert Vote(prompt=[user("Hi")], response="Ho", vote=-1).vote == -1
    with pytest.raises(ValidationError):
        Vote(prompt=[user("Hi")], response="Ho", vote=0)


# ------------------------------------------------------------------------------------------------------------ files


RECORDS = [
    Prompt(messages=[user("Grüße\u2028 😀 \x00")], source="a.jsonl"),
    Conversation(messages=[user("Hi"), Message(role="assistant", content="Ho\n")]),
    Response(
        id="1", prompt_id="2", messages=[user("Hi")], text="Ho", model="runs/sft", finish_reason="length", n_tokens=3
    ),
    Comparison(prompt=[user("Hi")], chosen="a", rejected="b", strength=0.5, tie=True, seconds=1.25),
    Ranking(prompt=[user("Hi")], responses=["a", "b"], groups=[[1], [0]], annotator="me"),
    Vote(prompt=[user("Hi")], response="Ho", vote=1),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_come_back_as_they_were(tmp_path, record):
    assert write_records(tmp_path / "a.jsonl", [record, record]) == 2
    assert read_records(tmp_path / "a.jsonl", type(record)) == [record, record]
    lines = (tmp_path / "a.jsonl").read_bytes().split(b"\n")
    assert len(lines) == 3, "one object a line, whatever stands in the text"
    assert None not in json.loads(lines[0]).values()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": [], "chosen": "a"}', r"a\.jsonl:3: field 'rejected': Field required"),
        (
            '{"prompt": [{"role": "robot", "content": ""}], "chosen": "", "rejected": ""}',
            r":3: field 'prompt\.0\.role'",
        ),
        ('{"prompt": [], "chosen": "", "rejected": "", "winner": 1}', ":3: field 'winner': Extra inputs"),
        ('{"prompt": [', ":3: Invalid JSON"),
        ("[]", ":3: .*object"),
        ('{"prompt": [], "chosen": "\\ud83d", "rejected": ""}', ":3: Invalid JSON"),
        ('{"prompt": [], "chosen": "a", "rejected": "b", "chosen": "c"}', ":3: field 'chosen': is given twice"),
        (
            '{"prompt": [{"role": "user", "role": "user", "content": ""}], "chosen": "a", "rejected": "b"}',
            r":3: field 'prompt\[0\]\.role': is given twice",
        ),
    ],
)
def test_a_record_that_is_wrong_is_named_with_file_line_and_field(tmp_path, line, message):
    good = Comparison(prompt=[user("Hi")], chosen="a", rejected="b").model_dump_json()
    (tmp_path / "a.jsonl").write_text(f"{good}\n\n{line}\n")  # a blank line counts as a line, not as a record
    records = iter_records(tmp_path / "a.jsonl", Comparison)
    next(records)
    with pytest.raises(DataError, match=message) as caught:
        next(records)
    assert "\n" not in str(caught.value)


def test_a_prompt_file_with_a_wrong_role_is_named_with_line_and_field(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "robot", "content": "Hi"}]}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: field 'messages\.0\.role'"):
        read_records(tmp_path / "a.jsonl", Prompt)


def test_a_file_without_a_record_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"a\.jsonl: the file contains no records"):
        read_records(tmp_path / "a.jsonl", Prompt)


def test_half_a_character_is_refused_when_it_is_written_and_the_old_file_stays(tmp_path):
    path = tmp_path / "a.jsonl"
    write_records(path, RECORDS[:1])
    broken = Conversation(messages=[user(HALF)])
    with pytest.raises(DataError, match=r"a\.jsonl:2: contains half a character"):
        write_records(path, [RECORDS[1], broken])
    assert read_records(path, Prompt) == RECORDS[:1]


def test_records_that_fail_half_way_keep_the_old_file(tmp_path):
    path = tmp_path / "a.jsonl"
    write_records(path, RECORDS[:1])

    def records():
        yield RECORDS[1]
        raise RunError("the server is gone")

    with pytest.raises(RunError, match="the server is gone"):
        write_records(path, records())
    assert read_records(path, Prompt) == RECORDS[:1]
