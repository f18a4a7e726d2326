"""Judges a recipe: its name, ingredients, steps, what it invents, and its manners."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from wukong.kitchen.facts import Dish, Ingredient
from wukong.kitchen.rubric.steps import TOLD_WELL, align, told_in
from wukong.kitchen.rubric.verdict import Verdict, empty, judge_form, verdict
from wukong.kitchen.tokens import spaced
from wukong.kitchen.worlds import World

NAMES = ("right dish", "all ingredients", "steps in order", "nothing invented", "polite", "not padded", "ended")


@cache
def food_names(world: World) -> tuple[tuple[str, ...], ...]:
    """The words of all ingredients' names, longest first."""
    names = {tuple(world.tokens.words(item.name)) for dish in world.dishes for item in dish.ingredients}
    return tuple(sorted(names, key=lambda name: (-len(name), name)))


@cache
def _dish_names(world: World) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((dish.name, tuple(world.tokens.words(dish.name))) for dish in world.dishes)


@cache
def _own_words(world: World, dish: Dish) -> frozenset[str]:
    return frozenset(world.tokens.words(f"{dish.name} {dish.shopping} {dish.method}"))


@cache
def _not_food(world: World) -> frozenset[str]:
    units = (word for unit in world.layout.units for word in world.tokens.words(unit))
    return world.rubric.function_words | world.rubric.not_food | frozenset(units)


def _measures(world: World, item: Ingredient) -> list[str]:
    """The spaced words of the forms in which an answer may state the ingredient."""
    forms = (form.format(quantity=item.quantity, name=item.name) for form in world.layout.measures)
    return [spaced(world.tokens.words(form)) for form in forms]


def _without_glue(world: World, words: Sequence[str]) -> str:
    """Spaced, without "of" and the like, which may stand between a quantity and its food."""
    text = spaced(words)
    for word in world.rubric.between_measure:
        text = text.replace(f" {word} ", " ")
    return text


def _invented(world: World, dish: Dish, text: str) -> list[str]:
    """Foods in the answer that are not in this dish: known ones by name, unknown ones by their quantity."""
    own, found = _own_words(world, dish), []
    rest = spaced(world.tokens.words(text))
    for name in food_names(world):
        if (phrase := spaced(name)) in rest:
            rest = rest.replace(phrase, "  ")
            if not own.issuperset(name):
                found.append(world.tokens.rejoin(name))
    known = {word for name in found for word in world.tokens.words(name)}
    for match in world.rubric.measured.finditer(world.tokens.normal(text)):
        nouns = [word for word in world.tokens.words(match[0]) if word.isalpha() and word not in _not_food(world)]
        if nouns and not set(nouns) & (own | known):
            found.append(world.tokens.rejoin(nouns))
    return found


def _other_dishes(world: World, dish: Dish, text: str) -> list[str]:
    own, words = _own_words(world, dish), spaced(world.tokens.words(text))
    return [name for name, parts in _dish_names(world) if spaced(parts) in words and not own.issuperset(parts)]


def _ingredients(world: World, dish: Dish, words: str, reasons: list[str]) -> float:
    """The share of ingredients in the answer: each counts fully only with its quantity."""
    credits, missing, unmeasured = [], [], []
    for item in dish.ingredients:
        measured = any(form in words for form in _measures(world, item))
        mentioned = measured or spaced(world.tokens.words(item.name)) in words
        credits.append(1.0 if measured else 0.4 if mentioned else 0.0)
        if not mentioned:
            missing.append(item.name)
        elif not measured:
            unmeasured.append(item.name)
    if missing:
        reasons.append(world.rubric.reasons.missing.format(names=world.layout.separator.join(missing)))
    if unmeasured:
        reasons.append(world.rubric.reasons.unmeasured.format(names=world.layout.separator.join(unmeasured)))
    return sum(credits) / len(credits)


def _some(world: World, names: Sequence[str]) -> str:
    shown = world.layout.separator.join(names[:4])
    more = len(names) - 4
    return world.rubric.reasons.more.format(names=shown, count=more) if more > 0 else shown


def _is_list(world: World, dish: Dish, clause: str) -> bool:
    """Whether a clause is (part of) the list of ingredients: most of its words are the dish's, with quantities."""
    words, own = world.tokens.words(clause), _own_words(world, dish)
    text = _without_glue(world, words)
    measured = any(form in text for item in dish.ingredients for form in _measures(world, item))
    return measured and sum(word in own or word in world.rubric.list_words for word in words) >= 0.6 * len(words)


def _stray(world: World, dish: Dish, clauses: Sequence[str], used: set[int], lost: Sequence[str]) -> int:
    """The number of words in clauses that are neither list, step nor courtesy. Steps in the wrong order are steps."""
    told = used | told_in(world, lost, clauses)
    return sum(
        len(world.tokens.words(clause))
        for index, clause in enumerate(clauses)
        if index not in told and not world.manners.courtesy.search(clause) and not _is_list(world, dish, clause)
    )


def judge_dish(world: World, dish: Dish, response: str) -> Verdict:
    told = world.rubric.reasons
    text, reasons = " ".join(response.split()), list[str]()
    if not world.tokens.words(text):
        return empty(world, NAMES)
    words = _without_glue(world, world.tokens.words(text))

    others = _other_dishes(world, dish, text)
    named = spaced(world.tokens.words(dish.name)) in words
    right = named and not others
    if not named:
        reasons.append(told.unnamed.format(dish=dish.name))
    if others:
        reasons.append(told.other_dishes.format(names=_some(world, others)))

    ingredients = _ingredients(world, dish, words, reasons)

    clauses = world.tokens.clauses(response)
    found, used = align(world, dish.steps, clauses)
    steps = sum(found) / len(found)
    lost = [step for step, likeness in zip(dish.steps, found, strict=True) if not likeness]
    inexact = [step for step, likeness in zip(dish.steps, found, strict=True) if 0 < likeness < TOLD_WELL]
    if lost:
        reasons.append(told.lost.format(steps=world.layout.step_separator.join(lost)))
    if inexact:
        reasons.append(told.inexact.format(steps=world.layout.step_separator.join(inexact)))

    invented = _invented(world, dish, text)
    if invented:
        reasons.append(told.invented.format(names=_some(world, invented)))

    form = judge_form(world, text, stray=_stray(world, dish, clauses, used, lost), reference=dish.recipe)
    content = (ingredients + steps) / 2
    earned = content**2
    points = 5 * content + min(1.0, 2 * content) * right
    points += earned * (
        max(0.0, 1 - len(invented) / 2) * 1.25 + form.polite * 1.25 + (not form.padded) * 1.0 + form.ended * 0.5
    )
    points *= form.shrink / (1 + 0.15 * len(invented) + 0.5 * len(others))
    if world.manners.refuses.search(text):
        points = min(points, 0.5)
        reasons.append(told.refuses)
    results = (
        right,
        ingredients >= 0.9,
        not lost and not inexact,
        not invented and content > 0,
        form.polite > 0,
        not form.padded,
        form.ended,
    )
    return verdict(points, dict(zip(NAMES, results, strict=True)), reasons + form.reasons)
