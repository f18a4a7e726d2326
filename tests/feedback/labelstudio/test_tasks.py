"""Label Studio by file: our records become its tasks, its exports our records, and nothing foreign slips in."""

import json
from pathlib import Path

import pytest

from wukong import cli
from wukong.data import DataOptions, load_comparisons, load_instructions, load_prompts, read_comparisons
from wukong.errors import DataError, UsageError
from wukong.feedback.labelstudio.api import LabelStudio
from wukong.feedback.labelstudio.command import KEY_VARIABLE, LabelStudioOptions, run
from wukong.feedback.labelstudio.tasks import CONFIGS, read_items, shown_fields, tasks_of
from wukong.records import Comparison, Message, Ranking, Response, Vote, read_records, write_records

TALK = [Message(role="system", content="Be brief."), Message(role="user", content="Hi <b>"),
        Message(role="assistant", content="Yes?"), Message(role="user", content="Eggs?\n\nHuman: x")]  # fmt: skip
PAIRS = [Comparison(prompt=TALK[:2], chosen=f"good {n}", rejected=f"bad {n}", annotator="ann") for n in range(12)]
RANKING = Ranking(prompt=TALK, responses=["a", "b", "c"], groups=[[2], [0], [1]], annotator="ann")


@pytest.fixture
def written(tmp_path):
    def write(records, name="records.jsonl") -> str:
        write_records(tmp_path / name, records)
        return str(tmp_path / name)

    return write


def exported(tasks, tmp_path, **annotation):
    """The export of a project in which someone chose, of every task, the answer that begins with "good"."""
    done = []
    for number, task in enumerate(tasks, start=1):
        side = "left" if task["data"]["answer1"].startswith("good") else "right"
        result = {"id": "x", "from_name": "comparison", "to_name": "answer1,answer2", "type": "pairwise",
                  "origin": "manual", "value": {"selected": side}}  # fmt: skip
        done.append({"id": number, **task, "annotations": [{"id": number, "result": [result], **annotation}]})
    (tmp_path / "export.json").write_text(json.dumps(done))
    return str(tmp_path / "export.json")


def go(action, **options):
    run(LabelStudioOptions(action=action, **options))


# ------------------------------------------------------------------------------------------------------------ there


def test_comparisons_go_there_and_come_back(written, tmp_path):
    go("export", data=[written(PAIRS)], out=tmp_path / "tasks.json")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert (tmp_path / "tasks.xml").read_text() == CONFIGS["pairwise"]
    assert len(tasks) == 12
    export = exported(tasks, tmp_path, completed_by={"id": 3, "email": "bob@example.org"}, lead_time=4.5)
    go("import", data=[export], out=tmp_path / "comparisons.jsonl")
    records = read_records(tmp_path / "comparisons.jsonl", Comparison)
    assert [(r.prompt, r.chosen, r.rejected) for r in records] == [(r.prompt, r.chosen, r.rejected) for r in PAIRS]
    assert {(r.annotator, r.seconds) for r in records} == {("bob@example.org", 4.5)}
    assert read_comparisons(tmp_path / "comparisons.jsonl") == records, "as `wukong reward` reads them"


def test_the_sides_say_nothing_about_the_judgment(written):
    _, tasks = tasks_of(read_items([written(PAIRS)]))
    left = ["good" in task["data"]["answer1"] for task in tasks]
    assert {True, False} == set(left)
    assert "ann" not in json.dumps(tasks), "nor does anything else"
    assert tasks_of(read_items([written(PAIRS[::-1])]))[1] == tasks[::-1], "and they stay where they are"


def test_responses_become_a_ranking_task_or_pairs(written):
    responses = [
        Response(id=f"{n}", prompt_id="p", messages=TALK, text=text, model="m")
        for n, text in enumerate(["one", "two", "one", "three", " "])
    ]
    alone = Response(id="9", prompt_id="q", messages=TALK[:2], text="one", model="m")
    items = read_items([written([*responses, alone])])
    assert [item.answers for item in items] == [["one", "two", "three"]]
    kind, (task,) = tasks_of(items)
    assert kind == "ranker"
    assert sorted(item["body"] for item in task["data"]["items"]) == ["one", "three", "two"]
    assert task["data"]["messages"] == [m.model_dump() for m in TALK]
    kind, pairs = tasks_of(items, "pairwise")
    assert (kind, len(pairs)) == ("pairwise", 3)


def test_what_was_judged_before_goes_along_when_asked_for(written, tmp_path):
    records = [PAIRS[0], PAIRS[1].model_copy(update={"tie": True}), RANKING]
    _, plain = tasks_of(read_items([written(records)]))
    assert not any({"annotations", "predictions"} & set(task) for task in plain)
    for labels, name in (("predictions", "predictions"), ("ground-truth", "annotations")):
        _, tasks = tasks_of(read_items([written(records)]), labels=labels)
        assert [name in task for task in tasks] == [True, False, True], "a tie cannot be said"
        (tmp_path / "export.json").write_text(json.dumps(tasks))
        go("import", data=[str(tmp_path / "export.json")], out=tmp_path / "back.jsonl", predictions=True)
        first, second = read_records(tmp_path / "back.jsonl", Ranking)
        assert first.responses == ["good 0", "bad 0"]
        assert (second.responses, second.groups) == (["c", "a", "b"], [[0], [1], [2]])
        assert first.annotator == ("ann" if name == "predictions" else "")
        assert first.source.endswith("ground truth") == (name == "annotations")


def test_pairs_with_labels_keep_who_was_better(written, tmp_path):
    _, tasks = tasks_of(read_items([written([RANKING])]), "pairwise", "predictions")
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    go("import", data=[str(tmp_path / "export.json")], out=tmp_path / "back.jsonl", predictions=True)
    found = {(r.chosen, r.rejected) for r in read_records(tmp_path / "back.jsonl", Comparison)}
    assert found == {("c", "a"), ("c", "b"), ("a", "b")}


def test_several_judgments_of_the_same_answers_are_one_task(written):
    other = PAIRS[0].model_copy(update={"chosen": "bad 0", "rejected": "good 0", "annotator": "bob"})
    items = read_items([written([PAIRS[0], other])])
    assert len(items) == 1
    assert items[0].judgments == [([[0], [1]], "ann"), ([[1], [0]], "bob")]


def test_votes_alone_are_nothing_to_compare(written):
    with pytest.raises(UsageError, match="no prompt has two different answers to compare"):
        read_items([written([Vote(prompt=TALK[:2], response="x", vote=1)])])


# ------------------------------------------------------------------------------------------------------------- back


def test_left_is_what_the_configuration_says(tmp_path):
    config = '<View><Text name="b" value="$first"/><Text name="a" value="$second"/>{}</View>'
    result = {"from_name": "pw", "to_name": "pw", "type": "pairwise", "value": {"selected": "left"}}
    task = {"data": {"prompt": "Hi", "first": "one", "second": "two"}, "annotations": [{"result": [result]}]}
    (tmp_path / "export.json").write_text(json.dumps([task]))
    for names, chosen in (("a,b", "two"), ("b, a", "one")):
        (tmp_path / "config.xml").write_text(config.format(f'<Pairwise name="pw" toName="{names}"/>'))
        go("import", data=[str(tmp_path / "export.json")], out=tmp_path / "c.jsonl", config=tmp_path / "config.xml")
        assert read_records(tmp_path / "c.jsonl", Comparison)[0].chosen == chosen
    with pytest.raises(DataError, match="cannot tell the two answers among prompt, first, second"):
        go("import", data=[str(tmp_path / "export.json")], out=tmp_path / "c.jsonl")


def test_cancelled_empty_and_repeated_annotations_are_counted(written, tmp_path, capsys):
    _, tasks = tasks_of(read_items([written(PAIRS[:2])]))
    done = json.loads(Path(exported(tasks, tmp_path)).read_text())
    done[0]["annotations"] += [
        *done[0]["annotations"],
        {"result": []},
        {**done[0]["annotations"][0], "was_cancelled": True},
    ]
    done.append(tasks[0])
    (tmp_path / "export.json").write_text(json.dumps(done))
    go("import", data=[str(tmp_path / "export.json")], out=tmp_path / "c.jsonl")
    assert len(read_records(tmp_path / "c.jsonl", Comparison)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "import: 2 judgments in" in said
    for reason in (
        "1 duplicate",
        "1 annotation without a result",
        "1 cancelled annotation",
        "1 task without an annotation",
    ):
        assert reason in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"instruction": "x", "output": "y"}], "export.json:1: is not a Label Studio task"),
        ([{"data": {"x": "y"}, "annotations": [{"result": [{"type": "choices", "value": {}}]}]}],
         "contains no judgment (left out: 1 annotation of type choices, which compares nothing)"),
        ([{"data": {"x": "y"}, "annotations": []}], "contains no judgment (left out: 1 task without an annotation)"),
    ],
)  # fmt: skip
def test_foreign_exports_are_refused_in_one_line(tmp_path, capsys, content, message):
    (tmp_path / "export.json").write_text(json.dumps(content))
    code = cli.main(["labelstudio", "import", "--data", str(tmp_path / "export.json"), "--out", str(tmp_path / "c")])
    line = capsys.readouterr().err.strip()
    assert code == 2
    assert message in line
    assert "\n" not in line
    assert not (tmp_path / "c").exists()


def test_a_configuration_of_another_kind_is_refused():
    with pytest.raises(DataError, match=r"here: has only Choices; Pairwise or Ranker is needed to compare answers"):
        shown_fields('<View><Choices name="c" toName="t"/><Text name="t" value="$t"/></View>', "here")
    with pytest.raises(DataError, match="not valid XML"):
        shown_fields("<View>", "here")
    assert shown_fields(CONFIGS["pairwise"], "") == {"comparison": ("answer1", "answer2")}
    assert shown_fields(CONFIGS["ranker"], "") == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action": "push"}, "push needs --data and --project"),
        ({"action": "pull", "project": "abc"}, "pull needs --out"),
        ({"action": "import", "out": "x"}, "import needs --data"),
    ],
)
def test_what_is_missing_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        LabelStudioOptions(**options)


def test_addresses_and_tokens_that_cannot_be(written, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    options = {"data": [written(PAIRS)], "project": "abc"}
    with pytest.raises(UsageError, match="no token: set LABEL_STUDIO_API_KEY"):
        go("push", **options)
    with pytest.raises(UsageError, match="an address such as"):
        go("push", **options, api_key="x", url="localhost:8080")
    with pytest.raises(UsageError, match=r"127.0.0.1:9: no answer \(.*\); is Label Studio running there\?"):
        LabelStudio("http://127.0.0.1:9", "x").project("abc")


# ------------------------------------------------------------------------------------------------------- one bad item

ANSWERS = {"prompt": "Hi", "answer1": "one", "answer2": "two"}
ITEMS = {"prompt": "Hi", "items": [{"id": name, "body": f"body {name}"} for name in "abc"]}


def chosen(selected, name="comparison", **more):
    value = {"from_name": name, "to_name": "answer1,answer2", "type": "pairwise", "value": {"selected": selected}}
    return {"result": [value], "completed_by": 1, **more}


def ordered(ranker, name="rank", **more):
    return {"result": [{"from_name": name, "to_name": "items", "type": "ranker", "value": {"ranker": ranker}}], **more}


COUNTED = {
    "cancelled annotation": [chosen("left", was_cancelled=True), chosen("left", skipped=True)],
    "annotation without a result": [{"result": []}, {"result": None}, {}],
    "annotation without a choice": [chosen(None), chosen(""), {"result": [{"type": "pairwise", "value": None}]},
                                    {"result": [{"type": "pairwise"}]}],
    "annotation of type choices, rating, which compares nothing": [
        {"result": [{"type": "rating", "value": {"rating": 4}}, {"type": "choices", "value": {"choices": ["x"]}}]},
    ],
    "annotation of type ['a'], which compares nothing": [{"result": [{"type": ["a"]}]}],
}  # fmt: skip
BAD = [
    (ANSWERS, "left", "field 'annotations[1]': is text, expected an object"),
    (ANSWERS, None, "field 'annotations[1]': is null, expected an object"),
    (ANSWERS, {"result": "left"}, "field 'annotations[1].result': is text, expected a list"),
    (ANSWERS, {"result": ["left"]}, "field 'annotations[1].result[0]': is text, expected an object"),
    (ANSWERS, chosen("up"), "field 'annotations[1].result[0].value.selected': is 'up', expected left or right"),
    (ANSWERS, chosen({"x": 1}), "expected left or right"),
    (ANSWERS, {"result": chosen("left")["result"] + chosen("right")["result"]}, "has two different answers to"),
    (ITEMS, ordered({"rank": ["a", "z"]}), "names the item 'z', which is not in data.items"),
    (ITEMS, ordered({"rank": ["a", "b", "a"]}), "names the item 'a' twice"),
    (ITEMS, ordered({"good": ["a"], "bad": ["a", "b"]}), "names the item 'a' twice"),
    (ITEMS, ordered({"rank": [{"id": "a"}, "b"]}), "which is not in data.items"),
    (ITEMS, ordered({"mine": ["a"], "yours": ["b"]}), "the buckets mine, yours have no known order"),
    (ITEMS, ordered("a"), "is neither an ordered list of ids nor buckets of ids"),
]


@pytest.mark.parametrize("reason", COUNTED)
def test_an_annotation_without_the_expected_result_is_counted_and_skipped(reason, tmp_path, capsys):
    task = {"id": 1, "data": ANSWERS, "annotations": [*COUNTED[reason], chosen("right")]}
    (tmp_path / "export.json").write_text(json.dumps([task]))
    read = load_comparisons(tmp_path / "export.json")
    assert (read.summary.kept, read.summary.all_dropped()) == (1, {reason: len(COUNTED[reason])})
    go("import", data=[str(tmp_path / "export.json")], out=tmp_path / "c.jsonl")
    assert [r.chosen for r in read_records(tmp_path / "c.jsonl", Comparison)] == ["two"]
    assert f"left out: {len(COUNTED[reason])} {reason}" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("data", "annotation", "message"), BAD)
def test_a_bad_annotation_is_named_and_with_skip_bad_loses_no_other(data, annotation, message, tmp_path, capsys):
    good = [chosen("right"), chosen("left")] if data is ANSWERS else [ordered(["b", "a"]), ordered(["c", "b"])]
    task = {"data": data, "annotations": [good[0], annotation, good[1]]}
    (tmp_path / "export.json").write_text(json.dumps([task]))
    source = str(tmp_path / "export.json")
    for read in (
        lambda skip: len(load_comparisons(source, DataOptions(skip_bad=skip)).records),
        lambda skip: go("import", data=[source], out=tmp_path / "c.jsonl", skip_bad=skip),
    ):
        with pytest.raises(DataError) as caught:
            read(0)
        assert message in str(caught.value)
        assert str(caught.value).startswith(f"{source}:1: ")
        assert read(1) in (2, None)
    assert len((tmp_path / "c.jsonl").read_text().splitlines()) == 2
    assert "1 bad item" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"data": None, "annotations": [chosen("left")]}, "field 'data': is missing: the texts that were compared"),
        ({"data": ANSWERS | {"answer2": None}, "annotations": [chosen("left")]}, "field 'data.answer2': is null"),
        ({"data": ANSWERS | {"answer1": ["x"]}, "annotations": [chosen("left")]}, "field 'data.answer1': is a list"),
        ({"data": {"prompt": "Hi"}, "annotations": [chosen("left")]}, "cannot tell the two answers among prompt"),
        ({"data": ANSWERS, "annotations": {"a": 1}}, "field 'annotations': is not a list"),
        ({"data": {"items": [{"id": 1}, {"id": 2}]}, "annotations": [ordered([1, 2])]}, "an item has no body"),
        ({"data": {"items": [{"id": 1, "body": "x"}, {"id": "1", "body": "y"}]}, "annotations": [ordered([1])]},
         "two items have the same id"),
        ({"text": "of another kind"}, "is not a Label Studio task"),
    ],
)  # fmt: skip
def test_a_bad_task_is_named_and_with_skip_bad_loses_no_other(task, message, tmp_path):
    (tmp_path / "export.json").write_text(json.dumps([task, {"data": ANSWERS, "annotations": [chosen("right")]}]))
    options = {"data": [str(tmp_path / "export.json")], "out": tmp_path / "c.jsonl"}
    with pytest.raises(DataError) as caught:
        go("import", **options)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'export.json'}:1: ")
    assert "--skip-bad" in str(caught.value)
    go("import", **options, skip_bad=1)
    assert [r.chosen for r in read_records(tmp_path / "c.jsonl", Comparison)] == ["two"]


@pytest.mark.parametrize("seconds", ["long", float("inf"), -1, True, None, [1]])
def test_an_impossible_time_is_left_out(seconds, tmp_path):
    task = {"data": ANSWERS, "annotations": [chosen("right", lead_time=seconds)]}
    (tmp_path / "export.json").write_text(json.dumps([task]))
    (record,) = load_comparisons(tmp_path / "export.json").records
    assert record.seconds is None


def test_bad_records_to_be_sent_are_skipped_where_allowed(written, tmp_path):
    responses = [Response(id=f"{n}", prompt_id="p", messages=TALK, text=f"{n}", model="m") for n in range(2)]
    for records in (responses, PAIRS):
        path = Path(written(records))
        path.write_text(path.read_text() + '{"broken": \n{"prompt_id": "p", "text": 1}\n')
        with pytest.raises(DataError):
            go("export", data=[str(path)], out=tmp_path / "tasks.json")
        go("export", data=[str(path)], out=tmp_path / "tasks.json", skip_bad=2)
        assert len(json.loads((tmp_path / "tasks.json").read_text())) == (1 if records is responses else 12)


# ----------------------------------------------------------------------------------------------------------- questions


@pytest.fixture
def two_aspects(tmp_path):
    """An export in which one person answered two Pairwise questions of each task, once differently."""
    tasks = []
    for number, harmless in enumerate(("right", "left"), start=1):
        both = {**chosen("left", "helpful"), "id": number}
        both["result"] += chosen(harmless, "harmless")["result"]
        data = {**ANSWERS, "prompt": f"How long to boil potatoes {number}?"}
        tasks.append({"id": number, "data": data, "annotations": [both], "predictions": []})
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    return str(tmp_path / "export.json")


@pytest.mark.parametrize(("question", "expected"), [("helpful", ["one", "one"]), ("harmless", ["two", "one"])])
def test_two_questions_are_kept_apart(two_aspects, question, expected, tmp_path, capsys):
    read = load_comparisons(two_aspects, DataOptions(question=question))
    assert [r.chosen for r in read.records] == expected
    other = {"helpful": "harmless", "harmless": "helpful"}[question]
    assert read.summary.sources[0].notes == {f"answer to {other}, not to {question}": 2}
    go("import", data=[two_aspects], out=tmp_path / "c.jsonl", question=question)
    assert [r.chosen for r in read_records(tmp_path / "c.jsonl", Comparison)] == expected
    assert f"import: 2 judgments to {question} in" in " ".join(capsys.readouterr().err.split())


def test_two_questions_of_which_none_was_chosen_are_refused_whatever_may_be_skipped(two_aspects, tmp_path):
    message = r"export.json:1: answers several questions: harmless, helpful \(choose one with --question\)"
    with pytest.raises(DataError, match=message):
        load_comparisons(two_aspects, DataOptions(skip_bad=9))
    with pytest.raises(DataError, match=message):
        load_instructions(two_aspects, DataOptions(skip_bad=9))
    with pytest.raises(DataError, match=message):
        go("import", data=[two_aspects], out=tmp_path / "c.jsonl", skip_bad=9)
    assert not (tmp_path / "c.jsonl").exists()
    assert len(load_prompts(two_aspects).records) == 2, "a prompt is one whatever was asked about its answers"


def test_questions_of_different_tasks_and_of_predictions_are_different_too(tmp_path):
    def refused(*tasks, **options):
        (tmp_path / "export.json").write_text(json.dumps(tasks))
        with pytest.raises(DataError, match="answers several questions: a, b"):
            go("import", data=[str(tmp_path / "export.json")], out=tmp_path / "c.jsonl", **options)

    refused({"data": ANSWERS, "annotations": [chosen("left", "a")]},
            {"data": ANSWERS, "annotations": [chosen("right", "b")]})  # fmt: skip
    refused({"data": ITEMS, "annotations": [ordered(["a", "b"], "a"), ordered(["b", "a"], "b")]})
    refused({"data": ANSWERS, "annotations": [chosen("left", "a")], "predictions": [chosen("right", "b")]},
            predictions=True)  # fmt: skip
    both = ordered(["a", "b"], "b")
    both["result"] += chosen("left", "a")["result"]
    refused({"data": ANSWERS | ITEMS, "annotations": [both]})


def test_a_question_that_is_not_there_is_said_with_those_that_are(two_aspects, tmp_path):
    with pytest.raises(DataError, match=r"without an answer to polite \(to harmless, helpful\)"):
        go("import", data=[two_aspects], out=tmp_path / "c.jsonl", question="polite")
    config = tmp_path / "config.xml"
    one = '<Pairwise name="{}" toName="answer1,answer2"/>'
    texts = '<Text name="answer1" value="$answer1"/><Text name="answer2" value="$answer2"/>'
    config.write_text(f"<View>{one.format('helpful')}{one.format('harmless')}{texts}</View>")
    options = {"data": [two_aspects], "out": tmp_path / "c.jsonl", "config": config}
    with pytest.raises(UsageError, match=r"--question polite: .*config.xml asks helpful, harmless"):
        go("import", **options, question="polite")
    with pytest.raises(UsageError, match=r"config.xml: asks several questions: helpful, harmless \(choose one"):
        go("import", **options)
    config.write_text(f"<View>{one.format('harmless')}{texts}</View>")
    go("import", **options)
    assert [r.chosen for r in read_records(tmp_path / "c.jsonl", Comparison)] == ["two", "one"]


def test_no_input_is_written_over(written, tmp_path):
    data = written(PAIRS)
    before = Path(data).read_bytes()
    (tmp_path / "records.xml").write_text("<View/>")
    for options in (
        {"action": "export", "data": [data], "out": data},
        {"action": "export", "data": [data], "out": tmp_path / "tasks.xml"},
        {"action": "import", "data": [data], "out": Path(data).parent / "." / "records.jsonl"},
        {"action": "import", "data": [data], "config": tmp_path / "records.xml", "out": tmp_path / "records.xml"},
    ):
        with pytest.raises(ValueError, match=r"out: .*(overwrite an input|configuration takes the name)"):
            LabelStudioOptions(**options)
    assert Path(data).read_bytes() == before
