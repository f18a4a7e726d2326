"""Pairs people judged: accuracy by slice, agreement and its ceiling, what simple judges explain. By hand throughout."""

import json
import math
from itertools import combinations

import numpy as np
import pytest

from wukong.data.comparisons import read_comparisons
from wukong.errors import DataError
from wukong.records import Comparison, Message, Ranking, Vote, as_messages
from wukong.stats import chance_problem
from wukong.studies.pairs import (
    agreement,
    bag_of_words,
    calibration_error,
    pairs_of,
    proportion,
    right,
    simple_judges,
    slices,
)

Q = as_messages("q")


def compared(n: int, annotator: str, first: bool = True, prompt: str = "q") -> Comparison:
    """A judgment of the answers a and b to prompt n."""
    chosen, rejected = ("a", "b") if first else ("b", "a")
    return Comparison(prompt=as_messages(f"{prompt} {n}"), chosen=chosen, rejected=rejected, annotator=annotator)


def test_pairs_of_comparisons_and_rankings_with_their_strength():
    records = [
        Comparison(prompt=Q, chosen="a", rejected="b", strength=2.0, source="s"),
        Comparison(prompt=Q, chosen="a", rejected="b", tie=True),
        Ranking(prompt=Q, responses=["x", "y", "z"], groups=[[2], [0], [1]]),
    ]
    found = [(p.chosen, p.rejected, p.strength, p.ranked) for p in pairs_of(records)]
    assert found == [
        ("a", "b", 2.0, False), ("z", "x", 1.0, True), ("z", "y", 2.0, True), ("x", "y", 1.0, True),
    ]  # fmt: skip
    with pytest.raises(DataError, match="single votes compare nothing"):
        pairs_of([Vote(prompt=Q, response="a", vote=1)])


def test_a_few_pairs_that_are_all_right_have_no_narrow_interval():
    found = proportion(np.ones(3), ["p", "q", "r"])
    assert found["value"] == 1
    assert found["interval"] == pytest.approx([0.025 ** (1 / 3), 1.0])  # exact
    assert (found["pairs"], found["prompts"]) == (3, 3)


def test_pairs_of_one_prompt_count_as_one_witness():
    """100 pairs of 4 prompts, of which 3 are all right: nearly as uncertain as 3 of 4, not as 75 of 100."""
    outcomes, prompts = np.repeat([1.0, 1.0, 1.0, 0.0], 25), np.repeat(["a", "b", "c", "d"], 25).tolist()
    low, high = proportion(outcomes, prompts)["interval"]
    assert low <= 0.26
    assert high > 0.99


def test_slices_hold_every_pair_once_and_their_own_accuracy():
    deep = [*as_messages("one"), Message(role="assistant", content="two"), *as_messages("three")]
    records = [
        Comparison(prompt=Q, chosen="a", rejected="b", strength=3.0, source="s"),
        Comparison(prompt=Q, chosen="c", rejected="d", strength=1.0, source="t"),
        Comparison(prompt=deep, chosen="e", rejected="f", source="t"),
    ]
    margins, lengths = np.array([2.0, -1.0, 0.5]), np.array([[10, 10], [40, 10], [9, 11]])
    found = slices(pairs_of(records), margins, lengths, ["1", "1", "2"])
    shown = {kind: [(row["name"], row["pairs"], row["value"]) for row in rows] for kind, rows in found.items()}
    assert shown["source"] == [("s", 1, 1.0), ("t", 2, 0.5)]
    assert shown["strength"] == [("strength 1", 1, 0.0), ("strength 3", 1, 1.0), ("not given", 1, 1.0)]
    # (9 - 11) / 10 = -0.2; (40 - 10) / 25 = 1.2
    assert shown["length"] == [
        ("chosen shorter", 1, 1.0),
        ("about as long (within 10 %)", 1, 1.0),
        ("chosen more than 5/3 of the other's length", 1, 0.0),
    ]
    assert shown["depth"] == [("1 turn", 2, 0.5), ("2 turns", 1, 1.0)]
    assert all(sum(row["pairs"] for row in rows) == 3 for rows in found.values())


def test_many_different_strengths_become_fifths():
    records = [Comparison(prompt=Q, chosen=f"a{i}", rejected="b", strength=i / 10) for i in range(50)]
    margins = np.array([-1.0] * 10 + [1.0] * 40)
    rows = slices(pairs_of(records), margins, np.ones((50, 2)), [str(i) for i in range(50)])["strength"]
    assert [row["pairs"] for row in rows] == [10] * 5
    assert [row["value"] for row in rows] == [0, 1, 1, 1, 1]


def test_calibration_error_weighs_bins_by_their_pairs():
    bins = [{"predicted": 0.6, "observed": 0.5, "n": 30}, {"predicted": 0.9, "observed": 0.7, "n": 10}]
    assert calibration_error(bins) == pytest.approx(0.75 * 0.1 + 0.25 * 0.2)
    assert calibration_error([]) is None


def test_agreement_and_its_ceiling_by_hand():
    """8 pairs judged by two people, 6 of them alike: A = 0.75, and the ceiling lies in [0.75, (1 + sqrt(0.5)) / 2]."""
    records = [compared(n, "ann") for n in range(8)] + [compared(n, "bob", first=n < 6) for n in range(8)]
    found = agreement(records)
    assert (found["pairs"], found["judgments"], found["agreement"]) == (8, 16, 0.75)
    assert found["ceiling"] == pytest.approx([0.75, (1 + math.sqrt(0.5)) / 2])


def test_the_ceiling_holds_the_best_accuracy_that_there_is():
    """Annotators who prefer the first answer of a pair with chance p: the best guess is right in E[max(p, 1 - p)]."""
    generator = np.random.default_rng(0)
    chances = generator.choice([0.5, 0.8, 0.95], size=4000)
    records = [
        compared(n, name, first=generator.random() < p) for n, p in enumerate(chances) for name in ("ann", "bob")
    ]
    low, high = agreement(records)["ceiling"]
    best = np.maximum(chances, 1 - chances).mean()
    assert low + 0.01 < best < high - 0.01, "strictly inside, as these pairs are not equally hard"


def test_judgments_without_a_name_ties_and_single_ones_are_no_agreement():
    assert agreement([compared(1, ""), compared(1, "", first=False)]) is None
    assert agreement([compared(1, "ann"), compared(2, "bob")]) is None
    tie = Comparison(prompt=as_messages("q 1"), chosen="a", rejected="b", tie=True, annotator="bob")
    assert agreement([compared(1, "ann"), tie]) is None
    found = agreement([compared(1, "ann"), tie, compared(1, "cid")])
    assert (found["ties"], found["agreement"]) == (1, 1.0)


def test_two_rankings_of_the_same_answers_agree_pair_by_pair():
    rankings = [
        Ranking(prompt=Q, responses=["x", "y", "z"], groups=groups, annotator=name)
        for name, groups in {"ann": [[0], [1], [2]], "bob": [[1], [0], [2]]}.items()
    ]
    found = agreement(rankings)
    assert (found["pairs"], found["agreement"]) == (3, pytest.approx(2 / 3))


def test_a_bag_of_words_learns_which_word_wins_and_nothing_of_order():
    pairs = [(f"please item {i}", f"shut item {i}") for i in range(20)]
    judge = bag_of_words(pairs)
    assert judge([("please", "shut")])[0] > 0
    assert judge([("shut", "please")])[0] == pytest.approx(-judge([("please", "shut")])[0])
    assert bag_of_words([("a", "b")])([("c", "d")])[0] == 0  # no word stands in two answers


def test_simple_judges_tell_accuracy_from_explanation():
    """The model always takes the longer answer, people in half of the pairs: length explains it and is no judge."""
    words = ("long words here", "short")
    records = [
        Comparison(prompt=as_messages(f"q {i}"), chosen=words[i % 2], rejected=words[1 - i % 2]) for i in range(20)
    ]
    pairs = pairs_of(records)
    lengths = np.array([[len(p.chosen), len(p.rejected)] for p in pairs])
    margins = (lengths[:, 0] - lengths[:, 1]) * 0.1
    prompts = [str(i) for i in range(20)]
    found = simple_judges(pairs, margins, lengths, prompts, (pairs, margins))
    assert found["length"]["accuracy"]["value"] == 0.5
    assert found["length"]["explains"]["value"] == 1.0
    assert found["length"]["r2"] == pytest.approx(1.0)
    assert found["bag_of_words"]["explains"]["value"] == 1.0
    assert found["bag_of_words"]["accuracy"]["value"] == 0.5
    noise = np.where(np.arange(20) % 4 < 2, 1.0, -1.0) * np.sign(margins)
    assert simple_judges(pairs, noise, lengths, prompts, None)["length"]["r2"] == pytest.approx(0)
    assert simple_judges(pairs, noise, lengths, prompts, None)["bag_of_words"] is None


def test_equal_scores_are_half_right():
    assert right(np.array([1.0, 0.0, -2.0])).tolist() == [1, 0.5, 0]


@pytest.mark.parametrize(
    ("accuracy", "interval", "pairs", "fine"),
    [
        (0.6, (0.55, 0.65), 500, True),
        (0.55, (0.5, 0.6), 500, False),  # at 50 % is not above it
        (1.0, (1.0, 1.0), 3, False),  # the bootstrap's interval of three right pairs is a point
        (0.2, (0.1, 0.3), 500, False),  # worse than a coin is not better
        (1.0, (1.0, 1.0), 5, False),
        (1.0, (1.0, 1.0), 6, True),
    ],
)
def test_a_coin_is_recognised(accuracy, interval, pairs, fine):
    assert (chance_problem(accuracy, interval, pairs) is None) == fine


def test_many_pairs_of_a_few_prompts_are_no_proof():
    assert "60 held-out pairs of 5 prompts" in str(chance_problem(1.0, (0.7, 1.0), 60, prompts=5))
    assert chance_problem(1.0, (0.7, 1.0), 60, prompts=6) is None


def test_agreement_of_real_annotators(shared):
    """PandaLM: three people judged each pair. Counted again from the raw file, ties left out."""
    path = shared("preferences/pandalm/testset-v1.json")
    same, total = 0, 0
    for row in json.loads(path.read_text()):
        verdicts = [int(row[f"annotator{n}"]) for n in (1, 2, 3)]
        for a, b in combinations(verdicts, 2):
            if a and b:
                same += a == b
                total += 1
    found = agreement(read_comparisons(path))
    assert found["agreement"] == pytest.approx(
        same / total, abs=0.003
    )  # a few pairs stand there twice, or with equal answers
    assert found["ceiling"][1] == pytest.approx((1 + math.sqrt(2 * same / total - 1)) / 2, abs=0.003)
