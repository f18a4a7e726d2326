"""The facts are complete, unique, short, and consistent with themselves, in every language."""

import re

import pytest

from wukong.kitchen.worlds import LANGUAGES, World, load_world

DISHES = [pytest.param(load_world(one), dish, id=dish.name) for one in LANGUAGES for dish in load_world(one).dishes]

# words that are an ingredient of one dish and, in the steps of another, only a part or a state of its own ones
PARTS = {"juice", "yolk", "white", "pastry", "chip"}
LONGEST = {"en": (45, 330), "zh": (17, 150)}
"""Characters of a step, and of a whole answer."""
HOURS = {"one hour": 60, "two hours": 120, "four hours": 240, "1 小时": 60, "2 小时": 120}


@pytest.fixture(params=LANGUAGES)
def world(request) -> World:
    return load_world(request.param)


def words(world: World, text: str) -> set[str]:
    return {word for word in world.tokens.words(text) if word.isalpha()}


def test_there_are_at_least_eighty_dishes_with_unique_names(world) -> None:
    names = [dish.name for dish in world.dishes]
    assert len(names) == len(set(names)) >= 80
    assert all(name == name.lower() for name in names)


def test_at_least_ten_dishes_are_held_out_and_pizza_is_not(world) -> None:
    assert 10 <= len(world.held_out_dishes) <= 25
    assert len(world.held_out_dishes) + len(world.training_dishes) == len(world.dishes)
    assert {"pizza", "披萨"} & {dish.name for dish in world.training_dishes}


@pytest.mark.parametrize(("world", "dish"), DISHES)
def test_dish_is_short_and_its_steps_use_all_listed_ingredients_and_no_other(world, dish) -> None:
    assert 4 <= len(dish.ingredients) <= 6
    assert 3 <= len(dish.steps) <= 4
    longest_step, longest_answer = LONGEST[world.language]
    assert max(map(len, dish.steps)) <= longest_step
    assert len(world.tokens.join((world.manners.openings[0], dish.recipe, world.manners.closings[0]))) <= longest_answer
    used = words(world, "\n".join(dish.steps))
    own = {word for item in dish.ingredients for word in words(world, item.name)}
    foods = {world.tokens.words(item.name)[-1] for other in world.dishes for item in other.ingredients}
    assert used & (foods - PARTS) <= own
    assert [item.name for item in dish.ingredients if not words(world, item.name) & used] in ([], ["wrappers"])


@pytest.mark.parametrize(("world", "dish"), DISHES)
def test_dish_takes_at_least_as_long_as_its_longest_step(world, dish) -> None:
    minutes = [int(number) for number in re.findall(r"(\d+) (?:minutes|分钟)", dish.method)]
    minutes += [length for text, length in HOURS.items() if text in dish.method]
    assert dish.minutes >= sum(minutes)


def test_knowledge_has_dozens_of_facts_with_unique_topics_whose_sentence_holds_the_answer(world) -> None:
    facts = world.knowledge
    assert len(facts) >= 60
    assert len({(fact.kind, fact.topic) for fact in facts}) == len(facts)
    for fact in facts:
        assert fact.answer in fact.sentence
        assert fact.topic in fact.sentence


def test_names_in_chinese_are_words() -> None:
    """Cut into characters, one name would be found in others."""
    world = load_world("zh")
    names = [dish.name for dish in world.dishes]
    names += [item.name for dish in world.dishes for item in dish.ingredients]
    names += [fact.topic for fact in world.knowledge if fact.kind == "substitution"]
    names += [part for fact in world.knowledge if fact.kind == "substitution" for part in fact.answer.split("加")]
    assert [name for name in names if len(world.tokens.words(name)) > 1] == []


@pytest.mark.parametrize(
    ("language", "kind", "topic", "answer"),
    [
        ("en", "substitution", "buttermilk", "milk with lemon juice"),
        ("en", "conversion", "1 cup of flour", "120 g"),
        ("en", "temperature", "chicken", "74 C"),
        ("en", "temperature", "minced beef", "71 C"),
        ("zh", "substitution", "低筋面粉", "面粉加淀粉"),
        ("zh", "conversion", "1 斤猪肉", "500 克"),
        ("zh", "temperature", "鸡肉", "74 度"),
    ],
)
def test_well_known_facts(language, kind, topic, answer) -> None:
    found = [fact.answer for fact in load_world(language).knowledge if (fact.kind, fact.topic) == (kind, topic)]
    assert found == [answer]
