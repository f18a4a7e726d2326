"""Whose judgments count, and what they say together."""

import pytest

from wukong.errors import UsageError
from wukong.feedback.consensus import by_annotators, decide, weights_of
from wukong.records import Comparison, Message, Ranking, Vote

PROMPT = [Message(role="user", content="How to make pizza")]


def better(chosen: str, rejected: str, who: str, tie: bool = False) -> Comparison:
    return Comparison(prompt=PROMPT, chosen=chosen, rejected=rejected, annotator=who, tie=tie, strength=2, seconds=3)


def test_the_majority_decides_whatever_the_order_of_the_answers():
    (found,) = decide([better("a", "b", "Ann"), better("b", "a", "Bob"), better("b", "a", "Eve")])
    assert (found.chosen, found.rejected, found.tie, found.annotator) == ("b", "a", False, "majority of 3")
    assert (found.strength, found.seconds) == (None, None)


@pytest.mark.parametrize(
    ("judgments", "tie"),
    [
        ([better("a", "b", "Ann"), better("b", "a", "Bob")], True),
        ([better("a", "b", "Ann"), better("a", "b", "Bob", tie=True)], False),
        ([better("a", "b", "Ann"), better("a", "b", "Bob", tie=True), better("b", "a", "Eve", tie=True)], True),
    ],
)
def test_even_votes_are_a_tie(judgments, tie):
    assert decide(judgments)[0].tie is tie


def test_weights_turn_a_majority():
    judgments = [better("a", "b", "Ann"), better("b", "a", "Bob"), better("b", "a", "Eve")]
    assert decide(judgments, {"Ann": 2.5})[0].chosen == "a"  # 2.5 against 1 + 1
    assert decide(judgments, {"Ann": 1.5})[0].chosen == "b"


def test_rankings_are_decided_by_mean_place():
    def ranking(who: str, groups: list[list[int]]) -> Ranking:
        return Ranking(prompt=PROMPT, responses=["a", "b", "c"], groups=groups, annotator=who)

    # Places: a 0, 2; b 1, 0; c 2, 1. Means a 1, b 0.5, c 1.5.
    (found,) = decide([ranking("Ann", [[0], [1], [2]]), ranking("Bob", [[1], [2], [0]])])
    assert found.groups == [[1], [0], [2]]
    # Tied answers share the mean of their places: a 0.5 + 0, b 0.5 + 1, c 2 + 2.
    (found,) = decide([ranking("Ann", [[0, 1], [2]]), ranking("Bob", [[0], [1], [2]])])
    assert found.groups == [[0], [1], [2]]
    (found,) = decide([ranking("Ann", [[0], [1], [2]]), ranking("Bob", [[1], [0], [2]])])
    assert found.groups == [[0, 1], [2]]


def test_rankings_of_the_same_answers_in_another_order_are_one():
    first = Ranking(prompt=PROMPT, responses=["a", "b"], groups=[[0], [1]], annotator="Ann")
    second = Ranking(prompt=PROMPT, responses=["b", "a"], groups=[[1], [0]], annotator="Bob")
    (found,) = decide([first, second])
    assert found.groups == [[0], [1]]


def test_balanced_thumbs_say_nothing():
    votes = [Vote(prompt=PROMPT, response="a", vote=v, annotator=f"p{i}") for i, v in enumerate((1, -1))]
    assert decide(votes) == []
    assert decide([*votes, votes[1]])[0].vote == -1


def test_what_one_person_judged_stays_as_it_is():
    one = better("a", "b", "Ann")
    assert decide([one]) == [one]


def test_weights_and_names():
    assert weights_of(["Ann", "Bob=0.5", "a=b"]) == {"Ann": 1.0, "Bob": 0.5, "a=b": 1.0}
    records = [better("a", "b", "Ann"), better("a", "b", "Bob")]
    assert by_annotators(records, {"Bob": 2.0}) == records[1:]
    assert by_annotators(records, {}) == records
    with pytest.raises(UsageError, match="no records by 'Eve'; annotators: Ann, Bob"):
        by_annotators(records, {"Eve": 1.0})
    for wrong in ("Ann=0", "Ann=-1", "Ann=nan", "Ann=inf"):
        with pytest.raises(UsageError, match="above 0"):
            weights_of([wrong])
