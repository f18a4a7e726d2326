"""The worlds: one directory of YAML files for each language, read and checked as a whole.

A world is data: to add a language, copy the files of `en`, write them anew, and give the language its `WordRules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError

from wukong.errors import DataError, UsageError
from wukong.files import read_yaml
from wukong.kitchen.content import (
    Conversations,
    CorpusTexts,
    DishEntry,
    Hazards,
    Knowledge,
    Layout,
    Manners,
    Measures,
    Questions,
    RubricTexts,
)
from wukong.kitchen.facts import Dish, Fact, Ingredient
from wukong.kitchen.tokens import Chinese, English, WordRules

T = TypeVar("T")

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
_TOKENS: dict[str, type[English] | type[Chinese]] = {"en": English, "zh": Chinese}


@dataclass(frozen=True, eq=False)
class World:
    """One language's kitchen. Compared by identity: `load_world` returns the same one each time."""

    language: str
    tokens: WordRules
    layout: Layout
    dishes: tuple[Dish, ...]
    """In the order of the file."""
    knowledge: tuple[Fact, ...]
    """Substitutions, conversions and safe temperatures."""
    measures: Measures
    hazards: Hazards
    questions: Questions
    conversations: Conversations
    corpus: CorpusTexts
    manners: Manners
    rubric: RubricTexts

    @property
    def training_dishes(self) -> list[Dish]:
        return [dish for dish in self.dishes if not dish.held_out]

    @property
    def held_out_dishes(self) -> list[Dish]:
        return [dish for dish in self.dishes if dish.held_out]

    def stated(self, fact: Fact) -> str:
        """The fact as a sentence with its full stop."""
        return self.layout.sentence.format(step=fact.sentence)


@cache
def load_world(language: str = "en") -> World:
    """The kitchen in a language.

    Raises:
        UsageError: there is none in that language.
        DataError: a file is missing a part, has one too many, or holds an invalid one; the message says which.
    """
    if language not in _TOKENS:
        raise UsageError("there is no kitchen in {language!r}; languages: {known}", language=language, known=LANGUAGES)
    return read_world(Path(__file__).parent / language, language)


def language_of(text: str) -> Language:
    """The language of a text, by its script; English if no other fits."""
    others = (language for language in LANGUAGES if language != "en")
    return next((language for language in others if _TOKENS[language].script.search(text)), "en")


def read_world(directory: Path, language: str) -> World:
    """The world in the files of a directory."""
    layout = _read(directory / "layout.yaml", Layout, _units(directory / "layout.yaml"))
    units = layout.units
    entries = _read(directory / "dishes.yaml", tuple[DishEntry, ...], units)
    dishes = tuple(_dish(entry, layout, directory / "dishes.yaml") for entry in entries)
    knowledge = _facts(_read(directory / "knowledge.yaml", Knowledge, units), layout, directory / "knowledge.yaml")
    rubric = _read(directory / "rubric.yaml", RubricTexts, units)
    return World(
        language=language,
        tokens=_tokens(language, layout, dishes, knowledge, rubric),
        layout=layout,
        dishes=dishes,
        knowledge=knowledge,
        measures=_read(directory / "measures.yaml", Measures, units),
        hazards=_read(directory / "hazards.yaml", Hazards, units),
        questions=_read(directory / "questions.yaml", Questions, units),
        conversations=_read(directory / "conversations.yaml", Conversations, units),
        corpus=_read(directory / "corpus.yaml", CorpusTexts, units),
        manners=_read(directory / "manners.yaml", Manners, units),
        rubric=rubric,
    )


def _tokens(
    language: str, layout: Layout, dishes: Sequence[Dish], knowledge: Sequence[Fact], rubric: RubricTexts
) -> WordRules:
    if _TOKENS[language] is English:
        return English()
    names = {item.name for dish in dishes for item in dish.ingredients} | {dish.name for dish in dishes}
    names |= {fact.topic for fact in knowledge if fact.kind != "conversion"}
    return Chinese(names | set(rubric.vocabulary), rubric.same, layout.units)


def _units(path: Path) -> tuple[str, ...]:
    content, _ = read_yaml(path)
    units = content.get("units") if isinstance(content, dict) else None
    return tuple(map(str, units)) if isinstance(units, list) else ()


def _read(path: Path, kind: type[T], units: tuple[str, ...]) -> T:
    content: Any = read_yaml(path)[0]
    try:
        return TypeAdapter(kind).validate_python(content, context={"units": units})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or None
        raise DataError("{problem}", file=path, field=place, problem=first["msg"]) from None


def _dish(entry: DishEntry, layout: Layout, path: Path) -> Dish:
    return Dish(
        name=entry.name,
        servings=entry.servings,
        minutes=entry.minutes,
        ingredients=tuple(_ingredient(text, layout, path) for text in entry.ingredients),
        steps=entry.steps,
        held_out=entry.held_out,
        layout=layout,
    )


def _ingredient(text: str, layout: Layout, path: Path) -> Ingredient:
    match = layout.ingredient.fullmatch(text)
    if not match:
        raise DataError("{text!r} is not a quantity and a name", file=path, text=text)
    return Ingredient(match["quantity"], match["name"], text)


def _facts(given: Knowledge, layout: Layout, path: Path) -> tuple[Fact, ...]:
    found = []
    for topic, answer in given.substitutions.items():
        found.append(Fact("substitution", topic, answer, layout.substitution.format(topic=topic, answer=answer)))
    for topic, answer in given.conversions.items():
        found.append(Fact("conversion", topic, answer, layout.conversion.format(topic=topic, answer=answer)))
    for topic, sentence in given.temperatures.items():
        figure = layout.temperature.search(sentence)
        if not figure:
            raise DataError("{sentence!r} does not end in a temperature", file=path, sentence=sentence)
        found.append(Fact("temperature", topic, figure[0], sentence))
    return tuple(found)
