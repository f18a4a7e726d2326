"""The checks of the exercises accept right answers and reject wrong ones."""

import pytest

from tests.course.exercises import CHECKS, RIGHT, WRONG

NAMES = list(CHECKS.CHECKS)


def test_every_exercise_has_three_right_and_three_wrong_answers():
    assert list(RIGHT) == list(WRONG) == NAMES
    assert {len(answers) for answers in [*RIGHT.values(), *WRONG.values()]} == {3}


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_are_accepted(name):
    assert [CHECKS.fault(name, answer) for answer in RIGHT[name]] == [None] * 3


@pytest.mark.parametrize("name", NAMES)
def test_wrong_answers_are_rejected_with_a_reason(name):
    faults = [CHECKS.fault(name, answer) for answer in WRONG[name]]
    assert all(faults)
    assert CHECKS.UNANSWERED not in faults


@pytest.mark.parametrize("name", NAMES)
def test_no_answer_is_told_from_a_wrong_one(name, capsys):
    CHECKS.check(name, lambda *_: None)
    assert capsys.readouterr().out == f"✏️ {name}\n"


def test_what_is_printed():
    assert CHECKS.fault("3.2", lambda e: 1 - e) == "(0.1) → 0.9, ≠ 0.82"
    assert str(CHECKS.fault("3.2", lambda: 0)).startswith("TypeError: ")
