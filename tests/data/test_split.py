"""Splits that never put one prompt on both sides."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.data import halves, split_by_prompt
from wukong.data.split import group_of
from wukong.errors import UsageError
from wukong.records import Comparison, Conversation, Message, Prompt, Vote


def user(text):
    return [Message(role="user", content=text)]


def answer(text):
    return Message(role="assistant", content=text)


MANY = [Prompt(messages=user(f"question {i}")) for i in range(2000)]


def test_about_the_fraction_is_held_out_and_nothing_is_lost():
    train, heldout = split_by_prompt(MANY, 0.2, seed=0)
    # binomial(2000, 0.2): mean 400, standard deviation 17.9; five of them either way
    assert 310 < len(heldout) < 490
    assert sorted(p.id for p in train + heldout) == sorted(p.id for p in MANY)
    assert [p for p in MANY if p in heldout[:5]] == heldout[:5]


@settings(max_examples=20)
@given(st.lists(st.integers(0, 1999), unique=True, max_size=50), st.integers(0, 5))
def test_side_of_a_prompt_does_not_depend_on_the_other_records(chosen, seed):
    _, heldout = split_by_prompt(MANY, 0.3, seed)
    sides = {p.id for p in heldout}
    some = [MANY[i] for i in chosen]
    train, held = split_by_prompt(some, 0.3, seed)
    assert held == [p for p in some if p.id in sides]
    assert train == [p for p in some if p.id not in sides]


def test_records_of_every_kind_with_one_prompt_lie_on_one_side():
    for i in range(50):
        ask = user(f"question {i}")
        group = [
            Prompt(messages=ask),
            Conversation(messages=[*ask, answer("a")]),
            Comparison(prompt=ask, chosen="a", rejected="b"),
            Comparison(prompt=ask, chosen="c", rejected="d"),
            Vote(prompt=ask, response="a", vote=1),
            Comparison(prompt=[*ask, answer("a"), *user("go on")], chosen="a", rejected="b"),  # later in the dialogue
        ]
        assert sorted(map(len, split_by_prompt(group, 0.5, seed=3))) == [0, 6]


def test_a_shared_system_prompt_does_not_join_different_questions():
    system = Message(role="system", content="Be brief")
    assert len({group_of(Prompt(messages=[system, *user(str(i))])) for i in range(9)}) == 9


def test_seed_changes_the_split_and_repeats_it():
    assert split_by_prompt(MANY, 0.5, seed=1) == split_by_prompt(MANY, 0.5, seed=1)
    assert split_by_prompt(MANY, 0.5, seed=1) != split_by_prompt(MANY, 0.5, seed=2)


def test_split_is_the_same_on_every_machine():
    # the first 8 bytes of sha256("heldout:0:" + sha256('[["user", "a"]]')[:16]) as a fraction, by the sha256sum tool
    for text, position in {"a": 0.959270131, "b": 0.441850237}.items():
        assert split_by_prompt([Prompt(messages=user(text))], position + 1e-6)[1]
        assert not split_by_prompt([Prompt(messages=user(text))], position - 1e-6)[1]


def test_all_or_nothing():
    assert split_by_prompt(MANY, 0.0) == (MANY, [])
    assert split_by_prompt(MANY, 1.0) == ([], MANY)
    assert split_by_prompt([], 0.5) == ([], [])


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_impossible_fraction_is_refused(fraction):
    with pytest.raises(UsageError, match="between 0 and 1"):
        split_by_prompt(MANY, fraction)


def test_halves_are_independent_of_the_heldout_split():
    _, heldout = split_by_prompt(MANY, 0.5, seed=0)
    first, second = halves(MANY, seed=0)
    assert len(first) + len(second) == 2000
    shared = len({p.id for p in first} & {p.id for p in heldout})
    assert 400 < shared < 600  # independent: about 500; the same split would give about 0 or 1000


def test_texts_are_split_too():
    train, heldout = split_by_prompt([f"story {i}" for i in range(100)], 0.5)
    assert len(train) + len(heldout) == 100
    assert 20 < len(heldout) < 80
