"""The facts are complete, unique, short, and consistent with themselves."""

import re

import pytest

from wukong.kitchen.worlds import load_world

WORLD = load_world("en")


def words(text: str) -> set[str]:
    return {word for word in WORLD.tokens.words(text) if word.isalpha()}


# words that are an ingredient of one dish and, in the steps of another, only a part or a state of its own ones
PARTS = {"juice", "yolk", "white", "pastry", "chip"}


def test_there_are_at_least_eighty_dishes_with_unique_names() -> None:
    names = [dish.name for dish in WORLD.dishes]
    assert len(names) == len(set(names)) >= 80
    assert all(name == name.lower() for name in names)


def test_at_least_ten_dishes_are_held_out_and_pizza_is_not() -> None:
    assert 10 <= len(WORLD.held_out_dishes) <= 25
    assert len(WORLD.held_out_dishes) + len(WORLD.training_dishes) == len(WORLD.dishes)
    assert "pizza" in {dish.name for dish in WORLD.training_dishes}


@pytest.mark.parametrize("dish", WORLD.dishes, ids=lambda dish: dish.name)
def test_dish_is_short_and_its_steps_use_all_listed_ingredients_and_no_other(dish) -> None:
    assert 4 <= len(dish.ingredients) <= 6
    assert 3 <= len(dish.steps) <= 4
    assert dish.servings > 0
    assert dish.minutes > 0
    assert max(map(len, dish.steps)) <= 45
    assert len(f"Of course! {dish.recipe} Enjoy your meal!") <= 330
    used = words(dish.method)
    own = {word for item in dish.ingredients for word in words(item.name)}
    foods = {item.name.split()[-1] for other in WORLD.dishes for item in other.ingredients}
    assert used & (words(" ".join(foods)) - PARTS) <= own
    assert [item.name for item in dish.ingredients if not words(item.name) & used] in ([], ["wrappers"])


@pytest.mark.parametrize("dish", WORLD.dishes, ids=lambda dish: dish.name)
def test_dish_takes_at_least_as_long_as_its_longest_step(dish) -> None:
    minutes = [int(number) for number in re.findall(r"(\d+) minutes", dish.method)]
    hours = {"one hour": 60, "two hours": 120, "four hours": 240}
    minutes += [length for text, length in hours.items() if text in dish.method]
    assert dish.minutes >= sum(minutes)


def test_knowledge_has_dozens_of_facts_with_unique_topics_whose_sentence_holds_the_answer() -> None:
    facts = WORLD.knowledge
    assert len(facts) >= 60
    assert len({(fact.kind, fact.topic) for fact in facts}) == len(facts)
    for fact in facts:
        assert fact.answer in fact.sentence
        assert fact.topic in fact.sentence


@pytest.mark.parametrize(
    ("kind", "topic", "answer"),
    [
        ("substitution", "buttermilk", "milk with lemon juice"),
        ("conversion", "1 cup of flour", "120 g"),
        ("temperature", "chicken", "74 C"),
        ("temperature", "minced beef", "71 C"),
    ],
)
def test_well_known_facts(kind, topic, answer) -> None:
    assert [fact.answer for fact in WORLD.knowledge if (fact.kind, fact.topic) == (kind, topic)] == [answer]
