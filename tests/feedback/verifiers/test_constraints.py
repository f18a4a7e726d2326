"""The verifier `constraints`: for each of IFEval's kinds responses that follow it, and that do not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.feedback.verifiers.asked import asked
from wukong.errors import DataError
from wukong.feedback.verifiers.constraints import CHECKS, Constraints

CASES = [
    ("keywords:existence", {"keywords": ["egg", "salt"]}, ["Salt the eggs."], ["An egg."]),
    ("keywords:frequency", {"keyword": "egg", "frequency": 2, "relation": "at least"}, ["egg Egg"], ["egg"]),
    ("keywords:frequency", {"keyword": "egg", "frequency": 2, "relation": "less than"}, ["egg"], ["egg, egg"]),
    ("keywords:forbidden_words", {"forbidden_words": ["ham"]}, ["a hamster"], ["eat Ham!"]),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 3, "let_relation": "at least"}, ["Eee"], ["ee"]),
    ("language:response_language", {"language": "zh"}, ["用盐煮鸡蛋 OK"], ["Salt the eggs.", "たまごをゆでる"]),
    ("language:response_language", {"language": "ja"}, ["卵をゆでる"], ["煮鸡蛋"]),
    ("language:response_language", {"language": "ru"}, ["Варить яйца"], ["Boil eggs"]),
    ("language:response_language", {"language": "en"}, ["Boil eggs"], ["Варить яйца", "123"]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        ["One. Two.", "One! Two", "第一。第二。"],
        ["One", "It takes 2.5 minutes."],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "a\n\n***\n\nb\n***"],
        ["a", "a\n***\n\n***\nb"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "at least"},
        ["I don't know", "煮鸡蛋"],
        ["two words"],
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["two words"], ["a b c"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        ["First.\n\nThen, boil.", 'First.\n\n"Then" boil.'],
        ["First.\n\nNow boil.", "First.\n\nThen.\n\nDone.", "Then."],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[name] at [place]"], ["[name]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["Hi\nP.S. Bye", "Hi\nP. S. Bye"], ["Hi"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["Hi\nP.P.S. Bye"], ["Hi\nP.S. Bye"]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, ["* a\n* b", "- a\n- b"], ["* a", "* a\n* b\n* c"]),
    ("detectable_format:constrained_response", {}, ["My answer is maybe."], ["Perhaps."]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, ["*a* and **b**"], ["*a* b", "** **"]),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\nSection 2\nb"],
        ["Section 1\na"],
    ),
    ("detectable_format:json_format", {}, ['```json\n{"a": 1}\n```', "[1]"], ["{a: 1}"]),
    ("detectable_format:title", {}, ["<<Eggs>>\nBoil."], ["<Eggs>", "<< >>"]),
    ("combination:two_responses", {}, ["a\n******\nb"], ["a\n******\na", "a", "a ****** b ****** c"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Why?"}, ["Why? Because."], ["Because."]),
    ("startend:end_checker", {"end_phrase": "Enjoy!"}, ["Boil. Enjoy!", '"enjoy!"'], ["Enjoy! Now."]),
    ("startend:quotation", {}, ['"Boil."'], ['Say "Boil."', '"']),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["DO IT now"],
        ["DO it"],
    ),
    ("change_case:english_capital", {}, ["DO IT!"], ["Do it"]),
    ("change_case:english_lowercase", {}, ["do it!"], ["Do it"]),
    ("punctuation:no_comma", {}, ["a b"], ["a, b", "甲，乙"]),
]  # fmt: skip


def test_all_25_kinds_have_a_case():
    assert {kind for kind, *_ in CASES} == CHECKS.keys()
    assert len(CHECKS) == 25


@pytest.mark.parametrize(("kind", "parameters", "followed", "not_followed"), CASES)
def test_a_constraint_is_followed_or_not(kind, parameters, followed, not_followed):
    prompt = asked(instruction_id_list=[kind], kwargs=[parameters])
    assert [Constraints().verify(prompt, text).score for text in followed] == [1] * len(followed)
    for text in not_followed:
        opinion = Constraints().verify(prompt, text)
        assert (opinion.score, opinion.checks, opinion.reasons) == (0, {kind: False}, [f"not followed: {kind}"]), text
    assert Constraints().verify(prompt, " \n").score == 0, "an empty response follows nothing"


def test_the_score_is_the_share_that_is_followed():
    kinds = ["punctuation:no_comma", "change_case:english_lowercase", "startend:quotation"]
    opinion = Constraints().verify(asked(instruction_id_list=kinds), "a B")
    assert opinion.score == pytest.approx(1 / 3)
    assert opinion.checks == dict(zip(kinds, (True, False, False), strict=True))


def one(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"instruction_id_list": [kind], "kwargs": [parameters]}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({}, "field 'instruction_id_list': the prompt has no list of constraints"),
        ({"instruction_id_list": []}, "has no list of constraints"),
        (one("no_comma"), r"field 'instruction_id_list\[0\]': there is no constraint 'no_comma'"),
        ({"instruction_id_list": [[]]}, "there is no constraint"),
        (one("startend:end_checker"), r"field 'kwargs\[0\].end_phrase': is None, expected text"),
        ({"instruction_id_list": ["startend:quotation"], "kwargs": []}, "field 'kwargs': expected a list of 1 objects"),
        (
            one("length_constraints:number_words", num_words=-1, relation="at least"),
            r"kwargs\[0\].num_words': is -1, expected a whole number",
        ),
        (one("length_constraints:number_words", num_words=1, relation="about"), r"kwargs\[0\].relation': is 'about'"),
        (one("language:response_language", language="Klingon"), "is 'Klingon', expected one of"),
    ],
)
def test_an_unusable_constraint_is_refused(columns, words):
    with pytest.raises(DataError, match=words):
        Constraints().check(asked(**columns))


@given(st.text(), st.sampled_from([(kind, parameters) for kind, parameters, *_ in CASES]))
def test_no_text_breaks_a_constraint(text, constraint):
    kind, parameters = constraint
    assert Constraints().verify(asked(instruction_id_list=[kind], kwargs=[parameters]), text).score in (0, 1)
