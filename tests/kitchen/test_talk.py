"""Talk beside recipes and facts: recognised from its text, judged by what belongs into the answer."""

import pytest

from wukong.kitchen.content import Hazard, Talk
from wukong.kitchen.facts import Dish, Fact
from wukong.kitchen.questions import phrasings_of
from wukong.kitchen.rubric import identify, judge
from wukong.kitchen.worlds import LANGUAGES, load_world

WORLD = load_world("en")
KINDS = {kind.name: kind for kind in WORLD.conversations.kinds}
IN_ALL_LANGUAGES = [
    pytest.param(load_world(one), kind, id=kind.name)
    for one in LANGUAGES
    for kind in load_world(one).conversations.kinds
]


@pytest.mark.parametrize(("world", "kind"), IN_ALL_LANGUAGES)
def test_every_remark_is_recognised_as_its_kind(world, kind) -> None:
    for wording in ("demonstrated", "asked", "unseen"):
        for remark in phrasings_of(kind.remarks, wording):
            assert identify(remark) is kind, remark


@pytest.mark.parametrize(("world", "kind"), IN_ALL_LANGUAGES)
def test_good_answers_earn_everything_and_poor_ones_little(world, kind) -> None:
    remark, dish = kind.remarks.demonstrated[0], world.dishes[0]
    for answer in kind.answers:
        verdict = judge(remark, answer.format(dish=dish.name, Dish=dish.title))
        assert verdict.score == 10, (answer, verdict)
        assert all(verdict.checks.values())
        assert not verdict.reasons
    for answer in (*kind.curt, *kind.wrong):
        verdict = judge(remark, answer.format(dish=dish.name, Dish=dish.title))
        assert verdict.score <= 8, (answer, verdict)
        assert verdict.reasons


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Thanks! How do I make pizza?", Dish),
        ("Hello! What can I use instead of butter?", Fact),
        ("Hi, how are you? Can I serve raw chicken at a party?", Hazard),
        ("I am hungry for pizza.", Dish),
        ("Thank you so much!!", "thanks"),
        ("hi", "greeting"),
        ("Hello, what can you do?", "ability"),
        ("Okay. Who are you?", "identity"),
        ("Thanks, what is the capital of Norway?", "outside"),
        ("How do I sharpen a knife?", None),
        (
            "In the street where the inn called Hello World stands today there was a workshop, long ago, and nobody "
            "remembers what was made in it, or for whom.",
            None,
        ),
    ],
)
def test_talk_is_what_remains_when_nothing_else_is_asked(text, kind) -> None:
    found = identify(text)
    if kind is None or isinstance(kind, str):
        assert (found.name if isinstance(found, Talk) else found) == kind
    else:
        assert isinstance(found, kind)


def conversation(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_the_last_turn_decides() -> None:
    pizza = "Pizza for 4: 500 g flour, 7 g yeast, 300 ml water."
    assert identify(conversation("How to make pizza", pizza, "Thanks!")) is KINDS["thanks"]
    assert identify(conversation("Hello!", "Hello!", "How to make pizza")).name == "pizza"
    # A turn in which nothing is recognised is about what was asked before.
    assert identify(conversation("How to make pizza", pizza, "And what then?")).name == "pizza"


def test_answers_that_belong_elsewhere() -> None:
    recipe = next(dish for dish in WORLD.dishes if dish.name == "pizza").recipe
    told = judge("Hello!", f"Hello! What would you like to cook? {recipe}")
    assert told.score < 3
    assert any("nobody asked for" in reason for reason in told.reasons)
    assert judge("What is the capital of France?", "Of course! It is Paris. Enjoy!").score == 0
    assert judge("Thanks!", "I'm sorry, but I can't help with that.").score < 2
    assert judge("What can you do?", "").score == 0


def test_repeating_the_good_words_is_padding() -> None:
    good = "You're welcome! Enjoy!"
    long = judge("Thanks!", " ".join([good] * 6))
    assert not long.checks["not padded"]
    assert long.score < judge("Thanks!", good).score - 3


def test_rude_answers_are_not_polite() -> None:
    verdict = judge("Who are you?", "Seriously? I am Wukong, a program for the kitchen.")
    assert not verdict.checks["polite"]
    assert verdict.score < 7
