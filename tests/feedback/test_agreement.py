"""Agreement, by examples that were counted by hand or printed in the literature."""

import pytest

from wukong.feedback.agreement import Judgment, alpha, annotator_table, raw_agreement, summary
from wukong.feedback.selection import pair_uncertainty


def pair(task: int, who: str, winner: int | None, **more) -> Judgment:
    value = {"winner": winner, "strength": 2, "verdict": "better" if winner is not None else "tie"}
    return Judgment(task, who, "pairwise", value, **more)


def ratings(table: dict[str, list[int | None]]) -> list[Judgment]:
    return [
        Judgment(unit, who, "likert", {"ratings": [{"score": score, "flags": []}]})
        for who, row in table.items()
        for unit, score in enumerate(row)
        if score is not None
    ]


def test_alpha_is_krippendorffs_own_example():
    """Four observers, twelve units, missing values: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability",
    section C to E: nominal 0.743, ordinal 0.815."""
    judgments = ratings(
        {
            "A": [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
            "B": [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
            "C": [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
            "D": [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
        }
    )
    assert alpha(judgments, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert alpha(judgments, "ordinal") == pytest.approx(0.815, abs=5e-4)


def test_a_tie_is_between_the_sides_when_order_counts():
    judgments = [pair(i, "A", i % 2) for i in range(8)] + [pair(i, "B", None if i < 2 else i % 2) for i in range(8)]
    assert alpha(judgments, "ordinal") > alpha(judgments, "nominal")


def test_raw_agreement_by_hand():
    judgments = [pair(1, "A", 0), pair(1, "B", 0), pair(1, "C", 1), pair(2, "A", None), pair(2, "B", None)]
    assert raw_agreement(judgments) == 2 / 4  # task 1: AB, not AC, not BC; task 2: AB
    ranked = [Judgment(1, who, "ranking", {"groups": g}) for who, g in (("A", [[0], [1], [2]]), ("B", [[0], [2], [1]]))]
    assert raw_agreement(ranked) == 2 / 3  # 0>1 and 0>2 alike, 1>2 not


def test_nothing_judged_twice_has_no_agreement():
    judgments = [pair(1, "A", 0), pair(2, "B", 0)]
    assert (raw_agreement(judgments), alpha(judgments, "nominal")) == (None, None)
    assert alpha([pair(1, "A", 0), pair(1, "B", 0)], "nominal") is None  # no variation
    assert summary([])["labels"] == 0


def test_the_annotators_table_by_hand():
    gold = {"winner": 0, "strength": 2, "verdict": "better"}
    judgments = [
        pair(1, "A", 0, shown=[0, 1], seconds=2, gold=gold),  # left, right on gold
        pair(2, "A", 0, shown=[1, 0], seconds=4),  # right
        pair(3, "A", 1, shown=[1, 0], seconds=9),  # left
        pair(4, "A", None, shown=[0, 1]),
        pair(1, "B", 1, shown=[0, 1], gold=gold),  # wrong on gold
        pair(2, "B", 0, shown=[0, 1]),
    ]
    a, b = annotator_table(judgments)
    assert (a.annotator, a.labels, a.seconds, a.tie_rate) == ("A", 4, 4, 0.25)
    assert (a.left_rate, a.agreement, a.gold_accuracy, a.gold_labels) == (2 / 3, 0.5, 1.0, 1)
    assert (b.gold_accuracy, b.seconds, b.left_rate) == (0.0, None, 0.5)


def test_one_model_is_unsure_of_equal_scores():
    assert pair_uncertainty([[1.0, 1.0]]) == pytest.approx(1)  # sigmoid 1/2: one bit
    assert pair_uncertainty([[9.0, -9.0]]) < 1e-3
    # sigmoid(ln 3) = 3/4: -(3/4 log2 3/4 + 1/4 log2 1/4) = 0.8113
    assert pair_uncertainty([[1.0986122887, 0.0]]) == pytest.approx(0.8113, abs=1e-4)
    # Of three answers the mean over the three pairs: 1, and twice nearly 0.
    assert pair_uncertainty([[20.0, 0.0, 0.0]]) == pytest.approx(1 / 3, abs=1e-3)


def test_several_models_are_asked_where_they_disagree():
    assert pair_uncertainty([[1.0, 1.0], [3.0, 3.0]]) == pytest.approx(0)  # both find it even: nothing to learn
    assert pair_uncertainty([[20.0, 0.0], [0.0, 20.0]]) == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="scores must be"):
        pair_uncertainty([[1.0]])
