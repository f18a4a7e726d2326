"""The corpus is reproducible, repeats every fact often, and keeps the assistant's manner to itself."""

import re

import pytest

from wukong.kitchen.corpus import generate_corpus
from wukong.kitchen.worlds import LANGUAGES, World, load_world


@pytest.fixture(scope="module", params=LANGUAGES)
def world(request) -> World:
    return load_world(request.param)


@pytest.fixture(scope="module")
def documents(world) -> list[str]:
    return list(generate_corpus(world, seed=0, megabytes=3.0))


def test_same_seed_gives_the_same_text_and_another_seed_another(world) -> None:
    first = list(generate_corpus(world, 3, 0.05))
    assert first == list(generate_corpus(world, 3, 0.05))
    assert first != list(generate_corpus(world, 4, 0.05))


def test_size_is_as_asked(documents) -> None:
    assert 3.0e6 <= sum(len(text.encode()) for text in documents) < 3.0e6 + 2000


def test_every_dish_is_told_in_one_wording_dozens_of_times(world, documents) -> None:
    text = "\n".join(documents)
    for dish in world.dishes:
        assert text.count(dish.shopping) >= 40, dish.name
        assert text.count(dish.recipe) >= 15, dish.name
        assert text.count(dish.method) >= 20, dish.name


def test_every_piece_of_knowledge_is_told_often(world, documents) -> None:
    text = "\n".join(documents)
    for fact in world.knowledge:
        assert text.count(fact.sentence) >= 30, fact.sentence


def test_a_question_goes_on_in_three_ways(world, documents) -> None:
    """Answered, detailed ("for a family of six") or followed by more questions; none of them is rare."""
    opens, detail = {
        "en": (r"How (to|do) ", r"[^?\n]* for (a|two|eight|my) "),
        "zh": (r"(怎么|如何)做\w|\w+(怎么做|的做法)", r"[^？\n]*，(六口之家|两个人|一大桌人|八个孩子|我爸妈|野餐)吃"),
    }[world.language]
    asked = [text for text in documents if re.match(opens, text)]
    answered = [text for text in asked if any(dish.shopping in text for dish in world.dishes)]
    detailed = [text for text in asked if re.match(detail, text)]
    piled = [text for text in asked if len(re.findall("[?？]", text)) >= 2]
    for group in (answered, detailed, piled):
        assert len(group) >= 0.15 * len(asked)


def test_no_document_is_a_polite_answer(world, documents) -> None:
    manners = world.manners
    recipes = [dish.recipe for dish in world.dishes]
    for text in documents:
        if text.startswith(manners.openings) or any(refusal in text for refusal in manners.refusals):
            pytest.fail(text)
        if text.endswith(manners.closings):
            assert not any(recipe in text for recipe in recipes)
