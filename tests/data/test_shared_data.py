"""Every real data set that the project keeps, read whole: exact counts, and spot checks of what was read."""

import json
from collections import Counter

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
    read_text,
)
from wukong.errors import DataError

SCRATCH = "instructions/llms-from-scratch/instruction-data"
SAME, EMPTY, TWICE = "both answers are the same", "empty answer", "duplicate"


@pytest.mark.parametrize(
    ("name", "form", "kept", "dropped"),
    [
        (f"{SCRATCH}.json", "alpaca", 880, {}),
        (f"{SCRATCH}-with-preference.json", "alpaca", 880, {}),
        ("instructions/gsm8k/train.jsonl.gz", "question-answer", 7473, {}),
        ("instructions/gsm8k/test.jsonl.gz", "question-answer", 1319, {}),
        ("instructions/gpteacher/roleplay.json.gz", "dolly", 1923, {}),
        ("instructions/dolly-sample/dolly.json", "dolly", 12, {}),
        ("instructions/self-instruct/seed_tasks.jsonl", "self-instruct", 175, {}),
        ("instructions/self-instruct/user_oriented_instructions.jsonl", "self-instruct", 252, {}),
        ("instructions/sharegpt-format/fastchat_dummy_conversation.json", "sharegpt", 500, {}),
        ("preferences/llamafactory/kto_en_demo.json", "preference", 150, {"answer that was voted down": 150}),
        ("preferences/oasst/en_100_tree.jsonl.gz", "preference", 212, {}),
    ],
)
def test_instructions(shared, name, form, kept, dropped):
    read = load_instructions(shared(name))
    assert [(s.format, s.kept, dict(s.dropped)) for s in read.summary.sources] == [(form, kept, dropped)]
    assert len(read.records) == kept
    assert all(one.messages[-1].role == "assistant" for one in read.records)


@pytest.mark.parametrize(
    ("name", "form", "kept", "dropped"),
    [
        ("hh-rlhf/harmless-base.jsonl.gz", "hh", 1843, {EMPTY: 4, "the answers belong to different prompts": 3}),
        (f"{SCRATCH}-with-preference.json", "alpaca-preference", 874, {SAME: 6}),
        ("preferences/finegrained-rlhf/dev_feedback.json.gz", "finegrained", 3000, {}),
        ("preferences/oasst/en_100_tree.jsonl.gz", "oasst", 212, {}),
        ("preferences/pandalm/testset-v1.json", "pandalm", 2526, {EMPTY: 162, TWICE: 309}),
        ("preferences/llmbar/natural.json", "llmbar", 100, {}),
        ("preferences/llmbar/adversarial-neighbor.json", "llmbar", 134, {}),
        ("preferences/llmbar/adversarial-gptinst.json", "llmbar", 92, {}),
        ("preferences/llmbar/adversarial-gptout.json", "llmbar", 47, {}),
        ("preferences/llmbar/adversarial-manual.json", "llmbar", 46, {}),
        ("preferences/llmbar/faireval.json", "llmbar", 66, {}),
        ("preferences/llmbar/llmeval2.json", "llmbar", 198, {SAME: 1, EMPTY: 1}),
        ("preferences/llmbar/mt-bench.json", "llmbar", 195, {TWICE: 5}),
        ("preferences/llamafactory/dpo_en_demo.json", "sharegpt-preference", 235, {TWICE: 4}),
        ("preferences/llamafactory/dpo_zh_demo.json", "sharegpt-preference", 289, {TWICE: 11}),
        ("preferences/llamafactory/kto_en_demo.json", "kto", 300, {}),
        ("preferences/medicalgpt/dpo_zh_500.jsonl.gz", "sharegpt-preference", 500, {}),
        ("labelstudio/pairwise/annotation.json", "labelstudio", 1, {}),
    ],
)
def test_comparisons(shared, name, form, kept, dropped):
    read = load_comparisons(shared(name))
    assert [(s.format, s.kept, dict(s.dropped)) for s in read.summary.sources] == [(form, kept, dropped)]
    assert len(read.records) == kept


@pytest.mark.parametrize(
    ("name", "form", "kept", "dropped", "options"),
    [
        ("prompts/mt_bench_question.jsonl", "turns", 80, {}, {}),
        ("prompts/vicuna_bench_question.jsonl", "turns", 80, {}, {}),
        ("instructions/self-instruct/user_oriented_instructions.jsonl", "self-instruct", 252, {}, {}),
        (f"{SCRATCH}.json", "alpaca", 861, {TWICE: 19}, {}),
        ("hh-rlhf/harmless-base.jsonl.gz", "hh", 1846, {"the answers belong to different prompts": 3, TWICE: 1}, {}),
        ("preferences/finegrained-rlhf/dev_feedback.json.gz", "finegrained", 500, {}, {}),
        ("preferences/pandalm/testset-v1.json", "pandalm", 170, {TWICE: 829}, {}),
        ("preferences/llamafactory/dpo_en_demo.json", "sharegpt-preference", 235, {TWICE: 4}, {}),
        ("preferences/llamafactory/kto_en_demo.json", "kto", 297, {TWICE: 3}, {}),
        ("labelstudio/pairwise/human-preference-template-task.json", "labelstudio", 1, {}, {}),
        ("labelstudio/ranker/llm-ranker-task.json", "prompt", 1, {}, {}),
        ("sentiment/amazon_cells_labelled.tsv", "text", 990, {TWICE: 10}, {}),
        ("sentiment/rt-polarity.pos", "text", 5331, {}, {"encoding": "latin-1"}),
        ("sentiment/rt-polarity.neg", "text", 5331, {}, {"encoding": "latin-1"}),
        ("sentiment/rt-polarity.pos", "text", 5127, {TWICE: 204}, {"encoding": "latin-1", "first_words": 4}),
        ("sentiment/movie_reviews.jsonl.gz", "text", 1929, {TWICE: 71}, {"first_words": 5}),
    ],
)
def test_prompts(shared, name, form, kept, dropped, options):
    read = load_prompts(shared(name), PromptOptions(**options))
    assert [(s.format, s.kept, dict(s.dropped)) for s in read.summary.sources] == [(form, kept, dropped)]
    assert len({one.id for one in read.records}) == kept


@pytest.mark.parametrize(
    ("name", "separator", "documents", "characters"),
    [
        ("pretrain-books/children-train.jsonl.gz", "file", 53, 17_919_258),
        ("pretrain-books/children-valid.jsonl.gz", "file", 4, None),
        ("pretrain-books/sherlock-holmes.jsonl.gz", "file", 11, None),
        ("pretrain-books/cookery.jsonl.gz", "file", 2, None),
        ("web-text-demo/c4_demo.jsonl.gz", "file", 300, None),
        ("web-text-demo/wiki_demo.txt.gz", "line", 30, None),
        ("tiny-shakespeare/input.txt", "file", 1, 1_115_394),
        ("tinystories/train-sample.txt", "newline", 1097, None),
        ("wikitext-2/*.txt", "file", 2, None),
    ],
)
def test_text(shared, name, separator, documents, characters):
    folder, _, pattern = name.rpartition("/")
    texts = load_text(shared(folder) / pattern, TextOptions(document_separator=separator)).records
    assert len(texts) == documents
    assert characters is None or sum(map(len, texts)) == characters


def test_text_of_books_is_theirs(shared):
    aesop = read_text(shared("pretrain-books/children-train.jsonl.gz"))[0]
    assert "THE FOX AND THE GRAPES\n\nA hungry Fox saw some fine bunches of Grapes" in aesop


def test_one_tiny_story_ends_where_it_ends(shared):
    first, second = read_text(shared("tinystories/train-sample.txt"), document_separator="newline")[:2]
    assert first.startswith("One day, a little girl named Lily found a needle in her room.")
    assert first.endswith("because they had shared and worked together.")
    assert second.startswith("Once upon a time")


def test_instruction_is_joined_to_its_input(shared):
    first = read_instructions(shared(f"{SCRATCH}.json"))[0]
    assert [m.role for m in first.messages] == ["user", "assistant"]
    assert first.messages[0].content.endswith("\n\nfreind --> friend")
    assert first.source == "instruction-data.json"


def test_gsm8k_answers_end_in_their_number(shared):
    answers = [c.messages[1].content for c in read_instructions(shared("instructions/gsm8k/test.jsonl.gz"))]
    assert all("\n#### " in answer for answer in answers)
    assert answers[0].endswith("#### 18")


def test_hh_dialogue_becomes_turns(shared):
    records = read_comparisons(shared("hh-rlhf/harmless-base.jsonl.gz"))
    first = records[0]
    assert first.prompt[0].content == "what are some pranks with a pen i can do?"
    assert first.prompt[1].content == "Are you looking for practical joke ideas?"
    assert first.chosen.startswith("No, sorry!")
    assert first.rejected.startswith("There are lots of funny things you can do with pens")
    assert all(one.prompt[-1].role == "user" for one in records)


def test_oasst_groups_make_all_their_pairs(shared):
    records = read_comparisons(shared("preferences/oasst/en_100_tree.jsonl.gz"))
    assert sum(len(list(one.pairs())) for one in records) == 754
    assert Counter(len(one.responses) for one in records) == {3: 117, 2: 57, 4: 27, 6: 6, 5: 3, 8: 1, 9: 1}
    assert records[0].prompt[0].content == "How can I find the best 401k plan for my needs?"
    assert records[0].responses[0].startswith("The first step is to research your options.")


def test_finegrained_ties_and_groups(shared):
    records = read_comparisons(shared("preferences/finegrained-rlhf/dev_feedback.json.gz"))
    assert Counter(one.tie for one in records) == {False: 2616, True: 384}
    assert set(Counter(one.source for one in records).values()) == {6}


def test_pandalm_booleans_are_read_as_the_words_they_were(shared):
    read = load_comparisons(shared("preferences/pandalm/testset-v1.json"))
    assert read.summary.sources[0].notes == {"number or boolean read as text": 6}
    assert Counter(one.annotator for one in read.records) == {f"annotator{i}": 842 for i in (1, 2, 3)}
    assert any(one.chosen == "True" for one in read.records)


def test_llamafactory_system_turns_and_dialogues(shared):
    records = read_comparisons(shared("preferences/llamafactory/dpo_en_demo.json"))
    assert Counter(one.prompt[0].role for one in records) == {"user": 170, "system": 65}
    assert max(len(one.prompt) for one in records) == 13


def test_votes_are_balanced(shared):
    votes = read_comparisons(shared("preferences/llamafactory/kto_en_demo.json"))
    assert Counter(one.vote for one in votes) == {1: 150, -1: 150}


def test_labelstudio_right_is_the_second_text(shared):
    (one,) = read_comparisons(shared("labelstudio/pairwise/annotation.json"))
    assert one.chosen.startswith("Death remembered should be like a mirror")
    assert one.rejected.startswith("In a little while you will have forgotten everything")
    assert one.seconds == 15.053


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ranker/annotation.json", "field 'data': is missing: the texts that were compared"),
        ("ranker/tasks.json", "no usable comparisons (dropped: 1 task without an annotation)"),
        ("ranker/llm-ranker-task.json", "no known format of comparisons has the fields prompt, items"),
        ("pairwise/tasks.json", "no usable comparisons (dropped: 1 task without an annotation)"),
        ("sdk-converter/data.json", "annotation of type polygonlabels, which compares nothing"),
        ("sdk-converter/csv_test.json", "annotation of type rectanglelabels, which compares nothing"),
        ("sdk-converter/csv_test_colliding_keys.json", "annotation of type choices, which compares nothing"),
    ],
)
def test_labelstudio_files_without_comparisons_are_refused(shared, name, message):
    with pytest.raises(DataError) as caught:
        read_comparisons(shared(f"labelstudio/{name}"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_example_ranking_is_read_once_its_items_are_beside_it(shared, write):
    annotation = json.loads(shared("labelstudio/ranker/annotation.json").read_text())
    task = json.loads(shared("labelstudio/ranker/tasks.json").read_text())[0]
    (one,) = read_comparisons(write(json.dumps(task | annotation), "export.json"))
    assert one.responses[0] == "'item 1 description'"  # id 1234, the first of the ranked list
    assert one.groups == [[0], [1], [2], [3], [4]]


def test_several_sources_are_read_as_one(shared):
    read = load_comparisons(
        [shared("preferences/llmbar/natural.json"), shared("hh-rlhf/harmless-base.jsonl.gz")], DataOptions()
    )
    assert [s.format for s in read.summary.sources] == ["llmbar", "hh"]
    assert read.summary.kept == 1943


def test_latin_1_without_its_encoding_is_an_error(shared):
    with pytest.raises(DataError, match=r"rt-polarity\.pos:44: byte 0xf3 is not utf-8"):
        read_prompts(shared("sentiment/rt-polarity.pos"))


def test_first_words_of_a_review(shared):
    prompts = read_prompts(shared("sentiment/movie_reviews.jsonl.gz"), first_words=5)
    assert prompts[0].messages[0].content == "plot : two teen couples"


def test_turns_give_the_first_question(shared):
    prompts = read_prompts(shared("prompts/mt_bench_question.jsonl"))
    assert prompts[0].messages[0].content.startswith("Compose an engaging travel blog post")
    assert all(len(one.messages) == 1 for one in prompts)
