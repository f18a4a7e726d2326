"""The verifiers `exact` and `regex`."""

import pytest

from tests.feedback.verifiers.asked import asked
from wukong.errors import DataError
from wukong.feedback.verifiers.texts import Exact, Regex


@pytest.mark.parametrize(
    ("answer", "response", "right"),
    [
        ("Paris", "paris.", 1),
        ("Paris", "  **PARIS** ", 1),
        ("Paris", "The answer is Paris.", 1),
        ("Paris", "#### Paris", 1),
        ("Paris", r"\boxed{Paris}", 1),
        ("#### Paris", "Paris", 1),
        ("New  York", "new york", 1),
        ("巴黎", "答案是巴黎。", 1),
        ("ABC", "ＡＢＣ", 1),
        ("Paris", "Paris, France", 0),
        ("Paris", "Not Paris", 0),
        ("Paris", "Paris #### London", 0),
        ("Paris", "", 0),
    ],
)
def test_an_exact_answer_is_equal_apart_from_its_dress(answer, response, right):
    assert Exact().verify(asked(answer), response).score == right


def test_an_exact_answer_has_to_be_there():
    for prompt, words in ((asked(), "no reference answer"), (asked(" . "), "the reference answer is empty")):
        with pytest.raises(DataError, match=words):
            Exact().check(prompt)


def test_a_pattern_is_found_anywhere_and_the_name_s_comes_first():
    assert Regex(r"^\d+$").verify(asked(), "12").score == 1
    assert Regex(r"^\d+$").verify(asked(regex="x"), "12 x").score == 0
    opinion = Regex().verify(asked(regex="b+c"), "abbd")
    assert (opinion.score, opinion.reasons) == (0, ["no match of 'b+c'"])
    assert Regex().verify(asked(regex="b+c"), "abbcd").score == 1


def test_a_pattern_has_to_be_one():
    with pytest.raises(DataError, match="field 'regex': '\\(' is not a regular expression"):
        Regex().check(asked(regex="("))
    for prompt in (asked(), asked(regex=""), asked(regex=3)):
        with pytest.raises(DataError, match="the prompt has no pattern"):
            Regex().check(prompt)
