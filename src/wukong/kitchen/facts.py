"""Dishes and pieces of kitchen knowledge, as read from a world's files.

Everything else is derived from them: the corpus repeats them in the same order and wording (a tiny model memorises
phrases, not recipes), the demonstrations quote or distort them, and the rubric looks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from wukong.kitchen.content import Layout


@dataclass(frozen=True)
class Ingredient:
    quantity: str
    """With its unit, if any: "500 g", "2", "1 clove"."""
    name: str
    """The noun as in the list of ingredients: "flour", "olive oil", "eggs"."""
    text: str
    """As written in the list: "500 g flour"."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Dish:
    name: str
    servings: int
    minutes: int
    ingredients: tuple[Ingredient, ...]
    steps: tuple[str, ...]
    """In order, capitalised, without the full stop."""
    held_out: bool
    """In the corpus, but never in a demonstration or a training prompt."""
    layout: Layout

    @property
    def title(self) -> str:
        return capitalised(self.name)

    @property
    def shopping(self) -> str:
        """ "500 g flour, 7 g yeast, 300 ml water": always in the same wording."""
        return self.layout.separator.join(map(str, self.ingredients))

    @property
    def method(self) -> str:
        """ "1. Knead flour, yeast and water. 2. Let the dough rise for one hour."."""
        return self.layout.numbered(self.steps)

    @property
    def recipe(self) -> str:
        """The recipe on one line, without courtesies: the factual core of a good answer."""
        return self.told(self.ingredients, self.steps)

    def told(self, ingredients: Sequence[Ingredient], steps: Sequence[str]) -> str:
        """The recipe with these ingredients and steps instead of the right ones."""
        return self.layout.recipe.format(
            title=self.title,
            servings=self.servings,
            ingredients=self.layout.separator.join(map(str, ingredients)),
            method=self.layout.numbered(steps),
        )


@dataclass(frozen=True)
class Fact:
    """A piece of kitchen knowledge, stated in one short sentence."""

    kind: Literal["substitution", "conversion", "temperature"]
    topic: str
    """The subject of the question: "buttermilk", "1 cup of flour", "chicken"."""
    answer: str
    """Required in a correct answer: "milk with lemon juice", "120 g", "74 C"."""

    sentence: str
    """The fact as a sentence, without the full stop: "1 cup of flour is 120 g"."""


def capitalised(text: str) -> str:
    return text[0].upper() + text[1:]
