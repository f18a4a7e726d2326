"""Records as other tools write them: read by what they are, and never with another meaning."""

import csv
import io
import json
import math

import pytest

from wukong.data import (
    DataOptions,
    PromptOptions,
    TextOptions,
    load_comparisons,
    load_instructions,
    load_prompts,
    load_text,
    read_comparisons,
    read_instructions,
    read_prompts,
)
from wukong.errors import DataError, UsageError
from wukong.records import Comparison, Ranking, Vote

HI = {"role": "user", "content": "Hi"}
HO = {"role": "assistant", "content": "Ho"}
NO = {"role": "assistant", "content": "No"}
GOOD = {"instruction": "Hi", "output": "Ho"}


def said(record):
    messages = record.messages if hasattr(record, "messages") else record.prompt
    return [(m.role, m.content) for m in messages]


def as_csv(records):
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


# --------------------------------------------------------------------------------------------------- thumbs up and down

SHAPES = [
    {"prompt": "Hi", "completion": "Ho"},
    {"prompt": "Hi", "response": "Ho"},
    {"messages": [HI, HO]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
    {"instruction": "Hi", "input": "", "output": "Ho"},
    {"instruction": "Hi", "response": "Ho"},
    {"question": "Hi", "answer": "Ho"},
    {"input": "Hi", "output": "Ho"},
]
UPS = [True, 1, 1.0, "1", "1.0", "+1", "true", "True", "up", "good", "thumbs_up", "👍", "👍🏽", ":thumbsup:",
       "yes", "y"]  # fmt: skip
DOWNS = [False, 0, 0.0, -1, "0", "-1", "-1.00", "false", "FALSE", "down", "bad", "thumbs_down", "👎", "👎🏽",
         "👎\ufe0f", ":thumbsdown:", "no", "n", "f", "downvoted", "incorrect", "wrong", "neg"]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids="-".join)
@pytest.mark.parametrize("name", ["label", "kto_tag", "vote", "thumbs_up", "liked"])
@pytest.mark.parametrize("up", [True, False])
def test_a_thumb_beside_an_answer_makes_it_a_vote_everywhere(write, shape, name, up):
    values = UPS if up else DOWNS
    path = write([shape | {name: value} for value in values])
    votes = load_comparisons(path).records
    assert [(said(v), v.response, v.vote) for v in votes] == [([("user", "Hi")], "Ho", 1 if up else -1)]  # duplicates
    if up:
        assert [said(one)[-1][1] for one in read_instructions(path)] == ["Ho"]
    else:
        with pytest.raises(DataError, match=f"dropped: {len(values)} answer that was voted down"):
            read_instructions(path)
    assert [said(one) for one in read_prompts(path)] == [[("user", "Hi")]]


@pytest.mark.parametrize(
    "extra",
    [
        {"kto_tag": "perhaps"},
        {"label": 3},
        {"label": "4"},
        {"vote": "x"},
        {"label": True, "kto_tag": False},
        {"vote": 7},
    ],
)
@pytest.mark.parametrize("shape", SHAPES[:5], ids="-".join)
def test_a_verdict_that_cannot_be_read_is_refused_not_passed_over(write, shape, extra):
    path = write([shape | extra])
    for load in (load_instructions, load_comparisons):
        with pytest.raises(DataError, match=r"data\.jsonl:1: field '(label|kto_tag|vote)'"):
            load(path)
    assert len(read_instructions(path, columns=[f"{name}=" for name in extra])) == 1


def test_a_label_that_names_a_topic_is_no_verdict_and_is_counted(write):
    read = load_instructions(write([GOOD | {"label": "cooking"}]))
    assert [said(one)[-1][1] for one in read.records] == ["Ho"]
    assert read.summary.sources[0].unused == {"label": 1}


@pytest.mark.parametrize("name", ["thumbs_down", "thumb_down", "downvoted", "disliked", "is_bad"])
def test_a_field_named_after_the_thumb_down_says_the_opposite(write, name):
    path = write([GOOD | {name: 1}, {"instruction": "Hey", "output": "Ho", name: 0}])
    assert [vote.vote for vote in load_comparisons(path).records] == [-1, 1]
    assert [said(one)[0][1] for one in read_instructions(path)] == ["Hey"]


@pytest.mark.parametrize("name", ["Label", "KTO_TAG", "label "])
def test_a_verdict_under_a_name_in_capitals_is_refused_with_the_remedy(write, name):
    with pytest.raises(DataError, match=f"field '{name}': is False, which changes .*--columns {name}="):
        load_instructions(write([GOOD | {name: False}]))


@pytest.mark.parametrize("name", ["label", "kto_tag", "vote", "liked", "thumbs"])
def test_an_answer_that_was_voted_down_inside_a_conversation_is_not_learned(write, name):
    path = write([{"messages": [HI, HO, HI, {**NO, name: 0}]}, {"messages": [HI, {**NO, name: 0}]}])
    assert [said(one) for one in read_instructions(path, skip_bad=9)] == [[("user", "Hi"), ("assistant", "Ho")]]


# --------------------------------------------------------------------------------------- fields that change the meaning


@pytest.mark.parametrize(
    ("load", "record"),
    [
        (load_instructions, GOOD | {"images": ["a.png"]}),
        (load_instructions, {"messages": [HI, HO], "tools": [{"name": "search"}]}),
        (load_instructions, {"conversations": [HI, HO], "image": "a.png"}),
        (load_instructions, {"messages": [HI, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]}),
        (load_instructions, {"messages": [HI, {"role": "assistant", "content": "x", "function_call": {"name": "f"}}]}),
        (load_instructions, {"messages": [HI, {**HO, "weight": 0}, HI, HO]}),
        (load_comparisons, {"prompt": "Hi", "chosen": "a", "rejected": "b", "winner": "rejected"}),
        (load_comparisons, {"prompt": "Hi", "chosen": "a", "rejected": "b", "label": 0}),
        (load_comparisons, {"prompt": "Hi", "chosen": "a", "rejected": "b", "strength": -1}),
        (load_comparisons, {"prompt": "Hi", "chosen": "a", "rejected": "b", "strength": math.nan}),
        (load_comparisons, {"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": "much"}),
        (load_comparisons, {"prompt": "Hi", "chosen": "a", "rejected": "b", "tie": "perhaps"}),
        (load_comparisons, {"prompt": "Hi", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 2}),
        (load_comparisons, {"input": {"messages": [HI], "tools": [{}]}, "preferred_output": [HO],
                            "non_preferred_output": [NO]}),
        (load_prompts, {"prompt": "What is this?", "images": ["a.png"]}),
        (load_text, {"text": "This:", "images": ["a.png"]}),
    ],
)  # fmt: skip
def test_a_field_that_changes_the_meaning_is_refused(write, load, record):
    with pytest.raises(DataError, match=r"data\.jsonl:1: field "):
        load(write([record]))


def test_what_belongs_to_a_judgment_is_kept(write):
    pair = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    extras = [{"tie": True}, {"strength": 2}, {"margin": 0.5}, {"annotator": "ann", "seconds": 3.5}, {"status": "tie"}]
    extras += [{"score_chosen": 4, "score_rejected": 4}, {"chosen-rating": 5, "rejected-rating": 3}]
    read = [load_comparisons(write([pair | extra])).records[0] for extra in extras]
    assert [(r.tie, r.strength, r.annotator, r.seconds) for r in read] == [
        (True, None, "", None),
        (False, 2, "", None),
        (False, 0.5, "", None),
        (False, None, "ann", 3.5),
        (True, None, "", None),
        (True, None, "", None),
        (False, None, "", None),
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_scores_written_as_text_are_scores(write, name):
    record = {"prompt": "Hi", "chosen": "a", "rejected": "b", "score_chosen": "9", "score_rejected": "10"}
    with pytest.raises(DataError, match=r"score_chosen': is 9\.0, less than 'score_rejected'"):
        load_comparisons(write(as_csv([record]) if name == "a.csv" else [record], name))


@pytest.mark.parametrize("status", ["discarded", "Draft", "skipped"])
def test_a_pair_that_was_discarded_is_dropped(write, status):
    pair = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    read = load_comparisons(write([pair, {**pair, "prompt": "Hey", "status": status}]))
    assert len(read.records) == 1
    assert read.summary.all_dropped() == {f"{status.lower()} record": 1}


@pytest.mark.parametrize(
    "record",
    [
        {"responses": ["x", "y"], "chosen": 0, "rejected": 1},
        {"response_a": "x", "response_b": "y", "chosen": "a", "rejected": "b"},
        {"answer_a": "x", "answer_b": "y", "chosen": "A", "rejected": "B"},
    ],
)
def test_the_place_of_an_answer_is_not_the_answer(write, record):
    for load in (load_instructions, load_comparisons):
        with pytest.raises(DataError):
            load(write([{"prompt": "Hi", **record}]))


def test_of_two_names_for_one_thing_the_second_is_counted(write):
    both = {"system": "Be kind", "system_prompt": "Be rude"}
    records = [
        GOOD | both | {"input": "you", "context": "there"},
        {"messages": [{"role": "system", "content": "Be brief"}, HI, HO], "system": "Be kind"},
        {"messages": [{"role": "system", "content": "Be kind"}, HI, HO], "system": "Be kind"},
    ]
    unused = load_instructions(write(records)).summary.sources[0].unused
    assert unused == {"system_prompt": 1, "context": 1, "system": 1}


def test_a_picture_with_a_caption_is_no_text(write):
    parts = [{"type": "image_url", "text": "a pan", "image_url": {"url": "a.png"}}]
    with pytest.raises(DataError, match=r"messages\[0\].content"):
        load_instructions(write([{"messages": [{"role": "user", "content": parts}, HO]}]))


def test_empty_fields_change_nothing(write):
    empty = {"images": [], "tools": None, "kto_tag": None, "label": "", "system": None, "history": []}
    read = load_instructions(write([GOOD | empty]))
    assert len(read.records) == 1
    assert read.summary.sources[0].unused == {}


def test_answers_of_weight_0_are_not_learned(write):
    bad = {**NO, "weight": 0}
    logs = [[HI, HO, HI, bad], [HI, bad], [HI, {**HO, "weight": 1}, HI, HO]]
    read = load_instructions(write([{"messages": turns} for turns in logs]))
    assert [[text for _, text in said(one)] for one in read.records] == [["Hi", "Ho"], ["Hi", "Ho", "Hi", "Ho"]]
    assert read.summary.all_dropped() == {"answers of weight 0": 1}
    assert read.summary.sources[0].notes == {"answer of weight 0 removed": 1}


def test_fields_not_used_are_counted_and_shown(write):
    records = [GOOD | {"topic": "x", "id": 3}, GOOD | {"output": "Hey", "topic": "y", "why": ["z"]},
               {"messages": [{**HI, "mood": "glad"}, HO]}]  # fmt: skip
    source = load_instructions(write(records)).summary.sources[0]
    assert source.unused == {"topic": 2, "why": 1, "messages[].mood": 1}
    assert "not used: topic (2), why (1), messages[].mood (1)" in source.events()
    assert source.as_dict()["unused"]["topic"] == 2


def test_a_conversation_beside_a_pair_and_its_prompt_is_not_the_prompt(write):
    """The binarised UltraFeedback repeats prompt and chosen answer under `messages`."""
    record = {"prompt": "Hi", "messages": [HI, HO], "chosen": [HI, HO], "rejected": [HI, NO]}
    (one,) = read_comparisons(write([record]))
    assert (said(one), one.chosen, one.rejected) == ([("user", "Hi")], "Ho", "No")


# ------------------------------------------------------------------------------------------------------------ detection


@pytest.mark.parametrize(
    ("load", "record"),
    [
        (load_comparisons, {"prompt": "a", "completions": ["b", "c"], "labels": [True, False]}),
        (load_comparisons, {"completions": [{"text": "b"}]}),
        (load_comparisons, {"completions": ["b"], "annotations": "x"}),
        (load_comparisons, {"premise": "a", "hypothesis": "b"}),
        (load_instructions, {"prompt": "a", "completions": ["b", "c"], "labels": [True, False]}),
        (load_instructions, {"a\nb": 1, "\u2028": 2}),
        (load_prompts, {"examples": {"x": 1}, "x": 1}),
        (load_text, {"instruction": "a"}),
    ],
)
def test_unknown_records_get_one_line_with_their_fields(write, load, record):
    with pytest.raises(DataError) as caught:
        load(write([record]))
    line = str(caught.value)
    assert "data.jsonl:1: no known format" in line
    assert len(line.splitlines()) == 1
    assert all(" ".join(name.split()) in line for name in record)


def test_the_nearest_format_is_named_with_what_is_missing(write):
    with pytest.raises(
        DataError, match=r":1: field 'rejected': is missing \(found: prompt, chosen; nearest format: trl "
    ):
        read_comparisons(write([{"prompt": "Hi", "chosen": "Ho"}]))
    with pytest.raises(DataError, match=r"no known format .* prompt, completions \(nearest: "):
        read_comparisons(write([{"prompt": "Hi", "completions": ["Ho"]}]))


def test_a_file_may_mix_formats(write):
    records = [GOOD, {"messages": [HI, NO]}, {"prompt": "Hey", "chosen": "a", "rejected": "b"}, {"oops": 1}, GOOD]
    read = load_instructions(write(records), DataOptions(skip_bad=1))
    assert [said(one)[-1][1] for one in read.records] == ["Ho", "No", "a"]
    source = read.summary.sources[0]
    assert source.formats == {"alpaca": 2, "messages": 1, "preference": 1}
    assert source.format == "alpaca, messages, preference"
    assert source.bad[0].endswith("renames a field)")
    with pytest.raises(DataError, match=r":2: .* messages.*'instruction'|:2: field 'instruction': is missing"):
        load_instructions(write(records), DataOptions(format="alpaca"))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"id": 1, "messages": [HI]}, "messages"),
        ({"id": "1", "messages": [HI], "source": 7}, "messages"),
        ({"id": "1", "messages": [{"role": "human", "content": "Hi"}], "source": "x"}, "messages"),
        ({"id": "1", "messages": [{**HI, "name": "ann"}], "source": "x"}, "messages"),
    ],
)
def test_what_only_shares_our_names_is_read_by_what_it_is(write, record, expected):
    read = load_prompts(write([record]))
    assert read.summary.sources[0].format == expected
    assert said(read.records[0]) == [("user", "Hi")]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{**HI, "name": "ann"}, HO], "source": "mine"},
        {"messages": [{"role": "human", "content": "Hi"}, {"role": "gpt", "content": "Ho"}], "source": "mine"},
        {"messages": [HI, HO], "source": 3},
    ],
)
def test_conversations_with_a_source_are_not_only_ours(write, record):
    assert [said(one) for one in read_instructions(write([record]))] == [[("user", "Hi"), ("assistant", "Ho")]]


# -------------------------------------------------------------------------------------------------------------- formats


def test_ultrafeedback_ranks_by_score_or_by_a_chosen_aspect(write):
    def answer(text, score, rating):
        return {"response": text, "overall_score": score, "annotations": {"helpfulness": {"Rating": rating}}}

    record = {"instruction": "Hi", "completions": [answer("a", 3.0, "5"), answer("b", 8.5, "5"), answer("c", 8.5, "1")]}
    (one,) = read_comparisons(write([record]))
    assert isinstance(one, Ranking)
    assert (said(one), one.responses, one.groups) == ([("user", "Hi")], ["b", "c", "a"], [[0, 1], [2]])
    (one,) = read_comparisons(write([record]), question="helpfulness")
    assert (one.responses, one.groups) == (["a", "b", "c"], [[0, 1], [2]])
    with pytest.raises(DataError, match=r"has no aspect 'beauty' \(--question, one of: helpfulness"):
        read_comparisons(write([record]), question="beauty")
    record["completions"][0]["annotations"]["helpfulness"]["Rating"] = "N/A"
    read = load_comparisons(write([record]), DataOptions(question="helpfulness"))
    assert (read.records[0].responses, len(read.summary.sources[0].notes)) == (["b", "c"], 1)


@pytest.mark.parametrize(
    ("preference", "expected"),
    [(1, ("a", "b", False)), (2.0, ("b", "a", False)), (1.0000048, ("a", "b", False)), (1.97, ("b", "a", False)),
     (1.5, ("a", "b", True)), (0, ("a", "b", True)), ("2", ("b", "a", False))],
)  # fmt: skip
def test_alpaca_eval_preferences(write, preference, expected):
    record = {"instruction": "Hi", "output_1": "a", "output_2": "b", "preference": preference, "annotator": "gpt"}
    (one,) = read_comparisons(write([record]))
    assert (one.chosen, one.rejected, one.tie) == expected
    assert one.annotator == "gpt"


@pytest.mark.parametrize("value", [None, math.nan])
def test_what_nobody_judged_is_counted_and_still_a_prompt(write, value):
    record = {"instruction": "Hi", "output_1": "a", "output_2": "b", "preference": value}
    read = load_comparisons(write([record, record | {"preference": 1}]))
    assert (len(read.records), read.summary.all_dropped()) == (1, {"without a judgment": 1})
    assert len(read_prompts(write([record]))) == 1


def test_alpaca_with_all_its_fields(write):
    record = GOOD | {"input": "you", "system": "Be kind", "history": [["a", "b"], ["c", "d"]]}
    (one,) = read_instructions(write([record]))
    assert [text for _, text in said(one)] == ["Be kind", "a", "b", "c", "d", "Hi\n\nyou", "Ho"]
    with pytest.raises(DataError, match=r"field 'history\[0\]': is not \[question, answer\]"):
        read_instructions(write([GOOD | {"history": [["a"]]}]))


def battle(first, second, winner, **more):
    return {"conversation_a": [HI, first], "conversation_b": [HI, second], "winner": winner, **more}


@pytest.mark.parametrize(
    ("winner", "expected"),
    [("model_a", ("Ho", "No", False)), ("model_b", ("No", "Ho", False)), ("tie", ("Ho", "No", True)),
     ("tie (bothbad)", ("Ho", "No", True)), ("both_bad", ("Ho", "No", True))],
)  # fmt: skip
def test_arena_battles(write, winner, expected):
    texts = {"prompt": "Hi", "response_a": "Ho", "response_b": "No", "winner": winner}
    lists = {name: value if name == "winner" else json.dumps([value]) for name, value in texts.items()}
    for path in (write([battle(HO, NO, winner)]), write([texts]), write(as_csv([lists]), "arena.csv")):
        (one,) = read_comparisons(path)
        assert (said(one), one.chosen, one.rejected, one.tie) == ([("user", "Hi")], *expected)


def test_arena_of_kaggle_and_judged_turns(write):
    kaggle = {
        "prompt": "Hi",
        "response_a": "Ho",
        "response_b": "No",
        "winner_model_a": 0,
        "winner_model_b": 1,
        "winner_tie": 0,
    }
    assert read_comparisons(write([kaggle]))[0].chosen == "No"
    two = {"conversation_a": [HI, HO, HI, HO], "conversation_b": [HI, NO, HI, NO], "winner": "model_b"}
    (one,) = read_comparisons(write([two | {"turn": 1}]))
    assert (len(one.prompt), one.chosen) == (1, "No")
    read = load_comparisons(write([two | {"turn": 2}, battle(HO, NO, "tie"), battle(HO, NO, None)]))
    assert read.summary.all_dropped() == {"the answers belong to different prompts": 1, "without a judgment": 1}
    with pytest.raises(DataError, match="field 'winner': is 'model_c'"):
        read_comparisons(write([battle(HO, NO, "model_c")]))


@pytest.mark.parametrize(("scores", "expected"), [((1, -1), ("a", "b", False)), ((-0.5, 0.5), ("b", "a", False)),
                                                  ((0, 0), ("a", "b", True))])  # fmt: skip
def test_webgpt_comparisons(write, scores, expected):
    record = {"question": {"full_text": "Hi", "dataset": "eli5"}, "answer_0": "a", "answer_1": "b"}
    (one,) = read_comparisons(write([record | {"score_0": scores[0], "score_1": scores[1]}]))
    assert (said(one), one.chosen, one.rejected, one.tie) == ([("user", "Hi")], *expected)


@pytest.mark.parametrize(("label", "chosen"), [(1, "a"), (0, "b")])
def test_stanford_human_preferences(write, label, chosen):
    (one,) = read_comparisons(write([{"history": "Hi", "human_ref_A": "a", "human_ref_B": "b", "labels": label}]))
    assert (said(one), one.chosen) == ([("user", "Hi")], chosen)


def test_openai_preferences_and_fine_tuning_files(write):
    record = {"input": {"messages": [HI], "tools": [], "parallel_tool_calls": True},
              "preferred_output": [HO], "non_preferred_output": [NO]}  # fmt: skip
    (one,) = read_comparisons(write([record]))
    assert (said(one), one.chosen, one.rejected) == ([("user", "Hi")], "Ho", "No")
    assert [said(p) for p in read_prompts(write([record]))] == [[("user", "Hi")]]
    chat = {"messages": [{"role": "developer", "content": "Be kind"}, HI, {**HO, "refusal": None, "tool_calls": []}]}
    (one,) = read_instructions(write([chat]))
    assert said(one) == [("system", "Be kind"), ("user", "Hi"), ("assistant", "Ho")]


RANKED = [{"value": "response-1", "rank": 2}, {"value": "response-2", "rank": 1}]


@pytest.mark.parametrize(
    ("responses", "expected"),
    [
        ({"preference": [{"value": "response-2", "user_id": "ann", "status": "submitted"}]}, ("No", "Ho", False)),
        ([{"user_id": "ann", "status": "submitted", "values": {"preference": {"value": RANKED}}}], ("No", "Ho", False)),
        ([{"user_id": "ann", "values": {"preference": {"value": "tie"}}}], ("Ho", "No", True)),
        ({"preference": [{"value": ["response-1", "response-2"], "user_id": "ann"}]}, ("Ho", "No", False)),
    ],
)
def test_argilla_exports(write, responses, expected):
    record = {"fields": {"prompt": "Hi", "response-1": "Ho", "response-2": "No"}, "responses": responses}
    (one,) = read_comparisons(write([record]))
    assert (said(one), one.chosen, one.rejected, one.tie) == ([("user", "Hi")], *expected)
    assert one.annotator == "ann"


def test_argilla_drafts_are_counted_and_two_questions_kept_apart(write):
    fields = {"prompt": "Hi", "response-1": "Ho", "response-2": "No"}
    answers = [{"value": "response-1", "user_id": "a", "status": "draft"}, {"value": "response-2", "user_id": "b"}]
    read = load_comparisons(write([{"fields": fields, "responses": {"better": answers}}]))
    assert ([one.chosen for one in read.records], read.summary.all_dropped()) == (["No"], {"draft response": 1})
    both = {"fields": fields, "responses": {"kind": [{"value": "response-1"}], "true": [{"value": "response-2"}]}}
    with pytest.raises(DataError, match=r"answers several questions: kind, true \(choose one with --question\)"):
        read_comparisons(write([both]))
    assert [one.chosen for one in read_comparisons(write([both]), question="true")] == ["No"]


def flat(name, parent, role, text, **more):
    return {"message_id": name, "parent_id": parent, "role": role, "text": text, "message_tree_id": "r", **more}


def test_open_assistant_as_a_flat_table_is_the_same_as_the_tree(write):
    rows = [
        flat("b", "r", "assistant", "worse", rank=1.0),
        flat("r", None, "prompter", "Hi"),
        flat("a", "r", "assistant", "best", rank=0.0),
        flat("q", "a", "prompter", "Why?"),
        flat("x", "q", "assistant", "c", rank=math.nan),
        flat("d", "r", "assistant", "spam", rank=2, deleted=True),
    ]
    (one,) = read_comparisons(write(rows))
    assert (said(one), one.responses, one.groups) == ([("user", "Hi")], ["best", "worse"], [[0], [1]])
    read = load_comparisons(write([*rows, flat("o", "lost", "assistant", "?"), flat("r", None, "prompter", "x"),
                                   flat("u", "v", "assistant", "?"), flat("v", "u", "assistant", "?")]),
                            DataOptions(skip_bad=4))  # fmt: skip
    assert len(read.records) == 1
    assert sum("leads to no root message" in line for line in read.summary.sources[0].bad) == 3
    assert sum("is given twice" in line for line in read.summary.sources[0].bad) == 1


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (json.dumps([HI, HO]) + "\n" + json.dumps([HI, NO]) + "\n", "a.jsonl"),
        (json.dumps([[HI, HO], [HI, NO]]), "a.json"),
        (json.dumps([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]), "one.json"),
    ],
)
def test_a_conversation_may_be_a_plain_list(write, content, name):
    found = read_instructions(write(content, name))
    assert [said(one)[-1][1] for one in found] == (["Ho"] if name == "one.json" else ["Ho", "No"])


@pytest.mark.parametrize(
    "whole",
    [
        {"type": "text2text", "instances": [{"input": "Hi", "output": "Ho"}]},
        {"version": 1, "data": [GOOD]},
        {"rows": [{"row_idx": 0, "row": GOOD, "truncated_cells": []}]},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_records_under_a_key_are_found(write, whole, indent):
    assert [said(one)[-1][1] for one in read_instructions(write(json.dumps(whole, indent=indent), "a.json"))] == ["Ho"]


# ------------------------------------------------------------------------------------------------ text that is not text


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_nan_is_missing_and_never_a_word(write, name):
    read = load_instructions(
        write([GOOD | {"input": math.nan}, GOOD | {"output": math.nan}], name), DataOptions(skip_bad=1)
    )
    assert [said(one) for one in read.records] == [[("user", "Hi"), ("assistant", "Ho")]]
    assert "field 'output': is NaN, expected text" in read.summary.sources[0].bad[0]


def test_kaggles_lists_stay_lists_in_any_file(write):
    battle = {"response_a": '["x"]', "response_b": '["y"]', "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}
    [one] = load_comparisons(write([{"prompt": '["Hi"]', **battle}])).records
    assert (said(one), one.chosen, one.rejected) == ([("user", "Hi")], "x", "y")
    with pytest.raises(DataError, match="winner_tie"):
        load_comparisons(write([{"prompt": '["Hi"]', **battle, "winner_tie": 1}]))
    rows = [{"prompt": f'["Hi {i}"]', **battle} for i in range(2)]
    rows[0]["response_a"] = "[null]"
    read = load_comparisons(write(as_csv(rows), "a.csv"), DataOptions(skip_bad=1))
    assert [one.chosen for one in read.records] == ["x"]


@pytest.mark.parametrize("cell", ["nan", "NaN", "<NA>", "", "NULL", "\\N", "#N/A"])
def test_missing_cells_are_missing(write, cell):
    read = load_instructions(write(f"instruction,input,output\nHi,{cell},Ho\nHey,,{cell}\n", "a.csv"))
    assert [said(one)[0][1] for one in read.records] == ["Hi"]
    assert read.summary.all_dropped() == {"empty answer": 1}


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e999, [], {}, None])
def test_what_is_no_text_is_no_answer(write, value):
    with pytest.raises(DataError, match=r":1: field 'output': is "):
        read_instructions(write([GOOD | {"output": value}]))


def test_lists_in_cells_are_lists(write):
    record = {"prompt": "Hi", "chosen": json.dumps([HI, HO]), "rejected": json.dumps([HI, NO])}
    for path in (write(as_csv([record]), "a.csv"), write([record])):
        (one,) = read_comparisons(path)
        assert (said(one), one.chosen, one.rejected) == ([("user", "Hi")], "Ho", "No")
    preference = {"question": "Hi", "prediction 1": "a", "prediction 2": "b", "preference": "[2]"}
    assert read_comparisons(write(as_csv([preference]), "a.csv"))[0].chosen == "b"


@pytest.mark.parametrize(
    "value", [repr([HI, HO]), f"array({[HI, HO]!r}, dtype=object)", "['Ho']", "{'content': 'Ho'}", "('Ho', 'No')"]
)
def test_pythons_notation_in_cells_is_refused_with_the_remedy(write, value):
    record = {"prompt": "Hi", "chosen": value, "rejected": "No"}
    with pytest.raises(DataError, match=r"a\.csv:2: field 'chosen': .*Python notation.*json\.dumps"):
        read_comparisons(write(as_csv([record]), "a.csv"))


def test_an_answer_that_is_json_stays_text(write):
    records = [{"instruction": f"List {i}", "output": text} for i, text in enumerate(['["a", "b"]', "two", "{'a': 1}"])]
    for path in (write(as_csv(records), "a.csv"), write(records)):
        assert [said(one)[-1][1] for one in read_instructions(path)] == [one["output"] for one in records]


# -------------------------------------------------------------------------------------------------------------- columns


def test_columns_map_other_names_in_every_reader(write):
    path = write([{"ask": {"text": "Hi"}, "best": "Ho", "worst": "No", "kto_tag": True}])
    columns = {"prompt": "ask.text", "chosen": "best", "rejected": "worst", "kto_tag": None}
    (pair,) = load_comparisons(path, DataOptions(columns=columns)).records
    assert isinstance(pair, Comparison)
    assert (said(pair), pair.chosen, pair.rejected) == ([("user", "Hi")], "Ho", "No")
    assert said(read_instructions(path, columns=columns)[0])[-1][1] == "Ho"
    assert said(read_prompts(path, columns=["prompt=ask.text"])[0]) == [("user", "Hi")]
    assert load_text(path, TextOptions(columns=["text=best"])).records == ["Ho"]
    vote = {"prompt": "ask.text", "completion": "worst", "label": "kto_tag"}
    (vote,) = load_comparisons(path, DataOptions(columns=vote)).records
    assert isinstance(vote, Vote)


def test_columns_reach_a_recipe_and_the_command_line_alike():
    assert DataOptions(columns={"prompt": "question", "label": None}).columns == ["prompt=question", "label="]
    assert PromptOptions(columns=["prompt=question"]).columns == ["prompt=question"]
    for wrong in (["prompt"], ["=question"], ["prompt=a", "prompt=b"]):
        with pytest.raises(ValueError, match=r"is not NAME=COLUMN|given twice"):
            DataOptions(columns=wrong)


def test_a_column_that_no_record_has_is_an_error(write):
    path = write([{"question": "Hi", "answer": "Ho"}])
    with pytest.raises(DataError, match=r":1: field 'qestion': is missing; it was to be read as 'prompt'"):
        read_comparisons(path, columns=["prompt=qestion"])
    with pytest.raises(DataError, match="no record has the column 'sytem'"):
        read_instructions(path, columns=["system=sytem"])


# -------------------------------------------------------------------------------------- one bad item, several questions


def test_a_bad_item_loses_only_itself(write):
    judged = {
        "instruction": "Hi",
        "response1": "a",
        "response2": "b",
        "annotator1": 1,
        "annotator2": 9,
        "annotator3": None,
    }
    read = load_comparisons(write([judged]), DataOptions(skip_bad=1))
    assert [one.annotator for one in read.records] == ["annotator1"]
    assert read.summary.all_dropped() == {"bad record": 1, "without a judgment": 1}
    with pytest.raises(DataError, match="field 'annotator2': is 9"):
        read_comparisons(write([judged]))
    task = {"instruction": "Hi", "instances": [{"input": "", "output": None}, {"input": "x", "output": "y"}]}
    assert len(load_instructions(write([task]), DataOptions(skip_bad=1)).records) == 1


def pairwise(question, selected):
    return {"type": "pairwise", "from_name": question, "to_name": "answer1,answer2", "value": {"selected": selected}}


def test_two_questions_of_a_task_are_never_merged(write):
    data = {"prompt": "Hi", "answer1": "a", "answer2": "b"}
    task = {"data": data, "annotations": [{"result": [pairwise("kind", "left"), pairwise("true", "right")]}]}
    apart = [
        {"data": data, "annotations": [{"result": [pairwise(q, s)]}]} for q, s in (("kind", "left"), ("true", "right"))
    ]
    for tasks in ([task], apart):
        for load in (load_comparisons, load_instructions):
            with pytest.raises(
                DataError, match=r"answers several questions: kind, true \(choose one with --question\)"
            ):
                load(write(tasks))
    assert [one.chosen for one in read_comparisons(write([task]), question="true")] == ["b"]
    assert [said(one)[-1][1] for one in read_instructions(write([task]), question="kind")] == ["a"]


# -------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "name", ["bz2", "base64", "utf-16", "unicode_escape", "raw_unicode_escape", "undefined", "rot13", "\0"]
)
def test_encodings_of_no_text_are_refused(name):
    with pytest.raises(ValueError, match=r"encoding|cannot be read line by line"):
        DataOptions(encoding=name)


def test_unknown_format_is_refused(write):
    with pytest.raises(UsageError, match="unknown format 'trll' for comparisons"):
        read_comparisons(write([GOOD]), format="trll")
