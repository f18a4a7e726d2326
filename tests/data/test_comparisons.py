"""Preferences from every public format, with the traps that each of them holds."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.data import load_comparisons, read_comparisons
from wukong.errors import DataError
from wukong.records import Comparison, Message, Ranking, Vote, write_records

HI = [{"role": "user", "content": "Hi"}]
SYSTEM = [{"role": "system", "content": "Be kind"}]
HO, NO = [{"role": "assistant", "content": "Ho"}], [{"role": "assistant", "content": "No"}]
FROM_HI = [{"from": "human", "value": "Hi"}]
ASKED = (("user", "Hi"),)
KIND = ("system", "Be kind")


def said(record):
    return tuple((m.role, m.content) for m in record.prompt)


def hh(*turns):
    return "".join(f"\n\n{who}: {text}" for who, text in zip(["Human", "Assistant"] * 9, turns, strict=False))


@pytest.mark.parametrize(
    ("name", "record", "prompt"),
    [
        ("hh", {"chosen": hh("Hi", "Ho"), "rejected": hh("Hi", "No")}, ASKED),
        ("hh", {"chosen": hh("Hi", "Ho").strip(), "rejected": hh("Hi", "No ")}, ASKED),
        (
            "hh",
            {"chosen": hh("a", "b: Human: c", "Hi", "Ho"), "rejected": hh("a", "b: Human: c", "Hi", "No")},
            (("user", "a"), ("assistant", "b: Human: c"), *ASKED),  # a marker inside a line starts no turn
        ),
        ("trl", {"prompt": "Hi", "chosen": "Ho", "rejected": "No"}, ASKED),
        ("trl", {"prompt": HI, "chosen": HO, "rejected": NO}, ASKED),
        ("trl", {"prompt": "Hi", "chosen": HI + HO, "rejected": HI + NO}, ASKED),  # UltraFeedback repeats the prompt
        ("trl", {"prompt": SYSTEM + HI, "chosen": HI + HO, "rejected": HI + NO}, (KIND, *ASKED)),
        (
            "trl",
            {"prompt": HI, "chosen": HO + HI + HO, "rejected": HO + HI + NO},
            (*ASKED, ("assistant", "Ho"), *ASKED),
        ),
        ("trl", {"prompt": "Hi", "chosen": {"content": "Ho"}, "rejected": {"content": "No"}}, ASKED),
        ("trl", {"prompt": "Hi", "chosen": {"text": "Ho", "score": 5}, "rejected": {"response": "No"}}, ASKED),
        ("trl", {"prompt": hh("Hi") + "\n\nAssistant:", "chosen": "Ho", "rejected": "No"}, ASKED),
        ("trl", {"system": "Be kind", "question": "Hi", "chosen": "Ho", "rejected": "No"}, (KIND, *ASKED)),
        ("trl-implicit", {"chosen": HI + HO, "rejected": HI + NO}, ASKED),
        ("trl-implicit", {"chosen": "Hi Ho", "rejected": "Hi No"}, ASKED),
        (
            "alpaca-preference",
            {"instruction": "Hi", "input": "", "output": "x", "chosen": "Ho", "rejected": "No"},
            ASKED,
        ),
        (
            "alpaca-preference",
            {"instruction": "a", "input": "b", "chosen": "Ho", "rejected": "No"},
            (("user", "a\n\nb"),),
        ),
        (
            "sharegpt-preference",
            {
                "conversations": FROM_HI,
                "chosen": {"from": "gpt", "value": "Ho"},
                "rejected": {"from": "gpt", "value": "No"},
            },
            ASKED,
        ),
        ("sharegpt-preference", {"conversations": FROM_HI, "chosen": "Ho", "rejected": "No"}, ASKED),
        (
            "sharegpt-preference",
            {"system": "Be kind", "conversations": FROM_HI, "chosen": "Ho", "rejected": "No"},
            (KIND, *ASKED),
        ),
        ("llmbar", {"input": "Hi", "output_1": "No", "output_2": "Ho", "label": 2}, ASKED),
        ("llmbar", {"input": "Hi", "output_1": "Ho", "output_2": "No", "label": "1"}, ASKED),
        ("wukong", {"prompt": HI, "chosen": "Ho", "rejected": "No"}, ASKED),
    ],
)
def test_format_is_detected_and_converted(write, name, record, prompt):
    read = load_comparisons(write([record]))
    assert [(said(one), one.chosen, one.rejected, one.tie) for one in read.records] == [(prompt, "Ho", "No", False)]
    assert read.summary.sources[0].format == name
    assert read_comparisons(write([record]), format=name) == read.records


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"chosen": hh("Hi", "Ho"), "rejected": hh("Hello", "No")}, "the answers belong to different prompts"),
        (
            {"chosen": hh("Hi", "Ho"), "rejected": hh("Hi", "No", "Hi", "No")},
            "the answers belong to different prompts",
        ),
        ({"chosen": hh("Hi", ""), "rejected": hh("Hi", "No")}, "empty answer"),
        ({"chosen": hh("Hi", "Ho"), "rejected": hh("Hi", " \n")}, "empty answer"),
        ({"chosen": hh("Hi", "Ho"), "rejected": hh("Hi", "Ho ")}, "both answers are the same"),
        (
            {"chosen": hh("Hi", "Ho", "Hi"), "rejected": hh("Hi", "No")},
            "the transcript does not end with the assistant's turn",
        ),
        ({"chosen": "green tea", "rejected": "grey tea"}, "the answers share no prompt"),
        ({"chosen": HI + HO, "rejected": SYSTEM + HI + NO}, "the answers belong to different prompts"),
        ({"prompt": "Hi", "chosen": "Ho", "rejected": ""}, "empty answer"),
        ({"prompt": "Hi", "chosen": "Ho", "rejected": "Ho"}, "both answers are the same"),
    ],
)
def test_pair_that_compares_nothing_is_dropped_and_counted(write, record, reason):
    transcripts = str(record["chosen"]).startswith("\n")
    good = (
        {"chosen": hh("Hey", "a"), "rejected": hh("Hey", "b")} if transcripts else {"chosen": "a b", "rejected": "a c"}
    )
    if "prompt" in record:
        good["prompt"] = "Hi"
    read = load_comparisons(write([good, record]))
    assert read.summary.kept == 1
    assert read.summary.all_dropped() == {reason: 1}


def test_same_pair_twice_is_one_but_two_peoples_judgments_are_two(write):
    pair = {"prompt": HI, "chosen": "Ho", "rejected": "No", "annotator": "ann", "source": "s"}
    other = pair | {"annotator": "bob"}
    reverse = pair | {"chosen": "No", "rejected": "Ho"}
    read = load_comparisons(write([pair, pair | {"seconds": 3.0}, other, reverse]))
    assert [(one.annotator, one.chosen) for one in read.records] == [("ann", "Ho"), ("bob", "Ho"), ("ann", "No")]
    assert read.summary.all_dropped() == {"duplicate": 1}


def test_implicit_prompt_ends_between_words(write):
    record = {"chosen": "The sky is blue.", "rejected": "The sky is black."}
    (one,) = read_comparisons(write([record]))
    assert (said(one), one.chosen, one.rejected) == ((("user", "The sky is"),), "blue.", "black.")


def test_kto_votes(write):
    records = [
        {"prompt": "Hi", "completion": "Ho", "label": True},
        {"prompt": HI, "completion": NO, "label": False},
        {"messages": HI + HO + HI + NO, "label": False, "kto_tag": False},
        {"conversations": [*FROM_HI, {"from": "gpt", "value": "Hey"}], "label": "true"},
    ]
    votes = [load_comparisons(write([one])).records[0] for one in records]
    assert [(said(v), v.response, v.vote) for v in votes] == [
        (ASKED, "Ho", 1),
        (ASKED, "No", -1),
        ((*ASKED, ("assistant", "Ho"), *ASKED), "No", -1),
        (ASKED, "Hey", 1),
    ]
    assert all(isinstance(v, Vote) for v in votes)


def test_finegrained_judgments_in_their_order_with_ties(write):
    record = {"question": "Hi", "preference": [0, 1, 2, 1, 2, 0]} | {f"prediction {i}": f"p{i}" for i in (1, 2, 3, 4)}
    found = read_comparisons(write([record]))
    assert [(c.chosen, c.rejected, c.tie) for c in found] == [
        ("p1", "p2", True),  # 12: tie
        ("p1", "p3", False),  # 13: the first
        ("p4", "p1", False),  # 14: the second
        ("p2", "p3", False),  # 23
        ("p4", "p2", False),  # 24
        ("p3", "p4", True),  # 34
    ]
    assert {c.source for c in found} == {"data.jsonl#1"}


def test_pandalm_gives_a_comparison_for_each_annotator(write):
    record = {"instruction": "Hi", "input": "", "response1": True, "response2": "No"}
    judged = record | {"annotator1": 1, "annotator2": 2, "annotator3": 0}
    read = load_comparisons(write([judged]))
    assert [(c.annotator, c.chosen, c.rejected, c.tie) for c in read.records] == [
        ("annotator1", "True", "No", False),
        ("annotator2", "No", "True", False),
        ("annotator3", "True", "No", True),
    ]
    assert read.summary.sources[0].notes == {"number or boolean read as text": 1}


def node(text, role, replies=(), **more):
    return {"text": text, "role": role, "replies": list(replies), **more}


def test_oasst_tree_gives_a_ranking_for_each_ranked_group(write):
    deep = node("Why?", "prompter", [node("c", "assistant", rank=1), node("d", "assistant", rank=0)])
    replies = [
        node("worst", "assistant", rank=2),
        node("best", "assistant", [deep], rank=0),
        node("tied", "assistant", rank=2),
        node("unranked", "assistant"),
        node("deleted", "assistant", rank=1, deleted=True),
    ]
    lonely = {"message_tree_id": "y", "prompt": node("Hm", "prompter", [node("x", "assistant", rank=0)])}
    read = load_comparisons(write([{"message_tree_id": "x", "prompt": node("Hi", "prompter", replies)}, lonely]))
    first, second = read.records
    assert (said(first), first.responses, first.groups) == (ASKED, ["best", "worst", "tied"], [[0], [1, 2]])
    assert said(second) == (*ASKED, ("assistant", "best"), ("user", "Why?"))
    assert second.responses == ["d", "c"]
    assert read.summary.sources[0].notes == {"reply without a rank left out of its group": 1}
    assert read.summary.all_dropped() == {"tree without two ranked replies": 1}


# --- Label Studio --------------------------------------------------------------------------------------------------

ANSWERS = {"prompt": "Hi", "answer1": "one", "answer2": "two"}
ITEMS = {"prompt": "Hi", "items": [{"id": i, "title": i.upper(), "body": f"body {i}"} for i in ("a", "b", "c")]}


def pairwise(selected, **more):
    result = {"type": "pairwise", "from_name": "pw", "to_name": "answer1,answer2", "value": {"selected": selected}}
    return {"result": [result], **more}


def ranker(value, **more):
    return {
        "result": [{"type": "ranker", "from_name": "rank", "to_name": "items", "value": {"ranker": value}}],
        **more,
    }


@pytest.mark.parametrize(
    ("selected", "expected"),
    [("left", ("one", "two", False)), ("right", ("two", "one", False)), ("tie", ("one", "two", True))],
)
@pytest.mark.parametrize("key", ["annotations", "completions"])
@pytest.mark.parametrize("shape", [lambda task: [task], lambda task: task])
def test_labelstudio_left_is_the_first_answer(write, selected, expected, key, shape):
    (one,) = read_comparisons(write(json.dumps(shape({"data": ANSWERS, key: [pairwise(selected)]})), "export.json"))
    assert (one.chosen, one.rejected, one.tie) == expected
    assert said(one) == ASKED


@pytest.mark.parametrize(
    ("who", "annotator"),
    [(7, "7"), ({"id": 7, "email": "ann@example.org"}, "ann@example.org"), ({"id": 7}, "7"), (None, "")],
)
def test_labelstudio_annotator_and_time_are_kept(write, who, annotator):
    task = {"data": ANSWERS, "annotations": [pairwise("left", completed_by=who, lead_time=2.5)]}
    (one,) = read_comparisons(write([task]))
    assert (one.annotator, one.seconds) == (annotator, 2.5)


@pytest.mark.parametrize(
    "data",
    [
        {"text1": "one", "text2": "two", "prompt": "Hi"},
        {"response_a": "one", "response_b": "two", "question": "Hi"},
        {"answer_2": "two", "answer_1": "one", "messages": HI},
        {"left": "one", "right": "two", "prompt": "Hi"},
    ],
)
def test_labelstudio_answers_are_found_by_their_names(write, data):
    annotation = pairwise("right")
    annotation["result"][0]["to_name"] = "pw"
    (one,) = read_comparisons(write([{"data": data, "annotations": [annotation]}]))
    assert (said(one), one.chosen, one.rejected) == (ASKED, "two", "one")


@pytest.mark.parametrize(
    ("value", "responses", "groups"),
    [
        ({"rank": ["b", "a", "c"]}, ["body b", "body a", "body c"], [[0], [1], [2]]),
        (["b", "a", "c"], ["body b", "body a", "body c"], [[0], [1], [2]]),
        ({"rank": ["b", "a"], "_": ["c"]}, ["body b", "body a"], [[0], [1]]),  # c was never placed
        ({"best": ["b"], "_": ["a", "c"]}, ["body b", "body a", "body c"], [[0], [1, 2]]),
        ({"_": ["a"], "bad": ["c"], "good": ["b"]}, ["body b", "body a", "body c"], [[0], [1], [2]]),
        ({"good": ["b", "a"], "worst": ["c"], "_": []}, ["body b", "body a", "body c"], [[0, 1], [2]]),
    ],
)
def test_labelstudio_ranker_old_and_new(write, value, responses, groups):
    (one,) = read_comparisons(write([{"data": ITEMS, "annotations": [ranker(value)]}]))
    assert isinstance(one, Ranking)
    assert (said(one), one.responses, one.groups) == (ASKED, responses, groups)


def test_labelstudio_cancelled_and_empty_annotations_are_counted(write):
    tasks = [
        {"data": ANSWERS, "annotations": [pairwise("left", was_cancelled=True), pairwise("left"), {"result": []}]},
        {"data": ANSWERS, "annotations": []},
        {"data": ANSWERS},
        {"data": ITEMS, "annotations": [ranker({"rank": ["a"], "_": ["b", "c"]}), ranker({"_": ["a", "b", "c"]})]},
    ]
    read = load_comparisons(write(tasks, "export.json"))
    assert read.summary.kept == 1
    assert read.summary.all_dropped() == {
        "cancelled annotation": 1,
        "annotation without a result": 1,
        "task without an annotation": 2,
        "fewer than two ranked answers": 1,
        "all answers are tied": 1,
    }


def test_labelstudio_comment_beside_a_choice_is_passed_over(write):
    annotation = pairwise("left")
    annotation["result"].insert(0, {"type": "textarea", "value": {"text": ["nice"]}})
    assert len(read_comparisons(write([{"data": ANSWERS, "annotations": [annotation]}]))) == 1


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"annotations": [pairwise("left")]}, "field 'data': is missing: the texts that were compared"),
        (
            {"data": ANSWERS, "annotations": [pairwise("up")]},
            "field 'annotations[0].result[0].value.selected': is 'up'",
        ),
        ({"data": {"x": "a", "y": "b"}, "completions": [pairwise("left")]}, "cannot tell the two answers among x, y"),
        (
            {"data": ITEMS, "annotations": [ranker({"rank": ["a", "z"]})]},
            "names the item 'z', which is not in data.items",
        ),
        ({"data": ITEMS, "annotations": [ranker({"ads": ["a"], "_": ["b"]})]}, "the buckets ads have no known order"),
        ({"data": ITEMS, "annotations": [ranker("a")]}, "is neither an ordered list of ids nor buckets"),
        (
            {"data": {"prompt": "Hi"}, "annotations": [ranker(["a", "b"])]},
            "cannot tell the ranked items among prompt",
        ),
        ({"data": ANSWERS, "annotations": ["left"]}, "field 'annotations[0]': is text, expected an object"),
    ],
)
def test_labelstudio_record_of_no_use_is_refused_in_one_line(write, task, message):
    with pytest.raises(DataError) as caught:
        read_comparisons(write([task], "export.json"))
    assert f"export.json:1: {message}" in str(caught.value) or message in str(caught.value)
    assert str(caught.value).startswith(f"{caught.value.file}:1: ")
    assert "\n" not in str(caught.value)


# --- errors and our own records ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "Hi", "chosen": "Ho"}, "field 'rejected': is missing"),
        ({"prompt": "Hi", "chosen": "Ho", "rejected": None}, "field 'rejected': is null"),
        (
            {"prompt": "Hi", "chosen": {"a": 1}, "rejected": "No"},
            "field 'chosen': has none of value, content, text, response",
        ),
        ({"prompt": "Hi", "chosen": HI, "rejected": HO}, "field 'chosen': does not end with the assistant's turn"),
        ({"prompt": 3.5, "chosen": [], "rejected": HO}, "field 'chosen': is an empty list"),
    ],
)
def test_bad_record_is_an_error_with_file_line_and_field(write, record, message):
    path = write([{"prompt": "Hi", "chosen": "Ho", "rejected": "No"}, record])
    with pytest.raises(DataError) as caught:
        read_comparisons(path)
    assert str(caught.value).startswith(f"{path}:2: {message}")


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({"prompt": HI, "responses": ["a", "b"], "groups": [[0]]}, "groups must name each of the 2 responses once"),
        ({"prompt": HI, "response": "a", "vote": 2}, "field 'vote'"),
        ({"prompt": HI, "chosen": "a", "rejected": "b", "tie": "maybe"}, "field 'tie'"),
        ({"prompt": HI, "chosen": "a", "rejected": "b", "strength": -1}, "field 'strength'"),
        ({"prompt": HI, "chosen": "a", "rejected": "b", "strength": math.nan}, "field 'strength'"),
        ({"prompt": HI, "chosen": "a", "rejected": "b", "seconds": math.inf}, "field 'seconds'"),
        ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, "field 'prompt[0].content'"),
    ],
)
def test_bad_record_of_our_own_names_its_field(write, record, field):
    with pytest.raises(DataError) as caught:
        read_comparisons(write([record]))
    assert "data.jsonl:1: " in str(caught.value)
    assert field in str(caught.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"question": "q", "prediction 1": "a", "prediction 2": "b", "preference": []},
            "field 'preference': must hold 1 judgments",
        ),
        (
            {"question": "q", "prediction 1": "a", "prediction 2": "b", "preference": [3]},
            "field 'preference[0]': is 3",
        ),
        ({"instruction": "q", "response1": "a", "response2": "b", "annotator1": 7}, "field 'annotator1': is 7"),
        (
            {"input": "q", "output_1": "a", "output_2": "b", "label": 0},
            "field 'label': is 0, expected one of 1, 2",
        ),
        ({"prompt": node("Hi", "prompter", ["x"])}, "field 'prompt.replies[0]': is text"),
    ],
)
def test_bad_judgment_is_an_error(write, record, message):
    with pytest.raises(DataError) as caught:
        read_comparisons(write([record]))
    assert f"data.jsonl:1: {message}" in str(caught.value)


def test_turn_before_the_first_marker_is_an_error(write):
    good = {"chosen": hh("Hi", "Ho"), "rejected": hh("Hi", "No")}
    with pytest.raises(DataError, match=r"data\.jsonl:2: field 'rejected': does not start with a 'Human:'"):
        read_comparisons(write([good, {"chosen": hh("Hi", "Ho"), "rejected": "Well" + hh("Hi", "No")}]))


words = st.text(min_size=1).filter(str.strip)
prompts = st.lists(
    st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=st.text()),
    min_size=1,
    max_size=3,
)
who = st.text()
own = st.one_of(
    st.builds(
        Comparison,
        prompt=prompts,
        chosen=words.map("a".__add__),
        rejected=words.map("b".__add__),
        tie=st.booleans(),
        annotator=who,
        source=who,
    ),
    st.builds(Vote, prompt=prompts, response=words, vote=st.sampled_from([1, -1]), annotator=who, source=who),
    st.builds(
        Ranking,
        prompt=prompts,
        responses=st.lists(words, min_size=3, max_size=3),
        groups=st.sampled_from([[[2], [0, 1]], [[1], [0], [2]]]),
        annotator=who,
    ),
)


@settings(max_examples=100)
@given(st.lists(own, min_size=1, max_size=4, unique_by=lambda record: record.model_dump_json()))
def test_own_records_of_all_kinds_come_back_as_they_were_written(tmp_path, records):
    write_records(tmp_path / "own.jsonl", records)
    found = read_comparisons(tmp_path / "own.jsonl")
    # what differs in `source` alone is one judgment read twice
    judgments = {record.model_dump_json(exclude={"source"}): record for record in reversed(records)}
    assert sorted(found, key=repr) == sorted(judgments.values(), key=repr)
