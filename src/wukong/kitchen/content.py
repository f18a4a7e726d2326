"""What the files of a world contain: dishes, knowledge, hazards, and all texts in its language.

Each class is one file or a part of one. Patterns are regular expressions that ignore case; one in several lines is
joined, and "{units}" in it stands for the alternatives of `Layout.units`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo


def _compiled(given: Any, info: ValidationInfo) -> re.Pattern[str]:
    text = "".join(given) if isinstance(given, list) else given
    units = (info.context or {}).get("units", ())
    try:
        return re.compile(text.replace("{units}", "|".join(map(re.escape, units))), re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None


Pattern = Annotated[re.Pattern[str], BeforeValidator(_compiled)]
Texts = Annotated[tuple[str, ...], Field(min_length=1)]


class Content(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Layout(Content):
    """layout.yaml: how recipes and lists are written."""

    units: Texts
    ingredient: Pattern
    """Groups `quantity` and `name`."""
    measures: Texts
    """The forms in which an answer may state an ingredient."""
    separator: str
    last_separator: str
    step_separator: str
    sentence: str
    step: str
    between_steps: str
    recipe: str
    substitution: str
    conversion: str
    temperature: Pattern
    """The figure at the end of a temperature's sentence."""

    def numbered(self, steps: Sequence[str], between: str | None = None) -> str:
        """The steps with their numbers, on one line unless `between` says otherwise."""
        lines = (self.step.format(number=number, step=step) for number, step in enumerate(steps, start=1))
        return (self.between_steps if between is None else between).join(lines)

    def prose(self, steps: Sequence[str]) -> str:
        return self.between_steps.join(self.sentence.format(step=step) for step in steps)


class DishEntry(Content):
    """One entry of dishes.yaml."""

    name: str
    servings: int = Field(gt=0)
    minutes: int = Field(gt=0)
    ingredients: Annotated[Texts, Field(min_length=4, max_length=6)]
    steps: Annotated[Texts, Field(min_length=3, max_length=4)]
    held_out: bool = False


class Knowledge(Content):
    """knowledge.yaml: topic -> answer, or for temperatures the sentence that ends in it."""

    substitutions: dict[str, str]
    conversions: dict[str, str]
    temperatures: dict[str, str]


class Measures(Content):
    """measures.yaml: sums with one right answer, see `wukong.kitchen.measures`."""

    counts: Annotated[tuple[int, ...], Field(min_length=2)]
    servings: Annotated[tuple[int, ...], Field(min_length=2)]
    portions: Annotated[tuple[int, ...], Field(min_length=2)]
    """For one person."""
    foods: dict[str, Texts]
    """Unit -> what is measured in it."""
    topic: Pattern
    """Of a conversion; groups `unit` and `x`."""
    plurals: dict[str, str]
    units: dict[str, str]
    """Unit -> its name in a question."""
    conversion: Texts
    scaling: Texts
    conversion_working: str
    scaling_working: str
    result: str
    product: str
    quotient: str
    note: str
    tables: Texts


class Hazard(Content):
    """One family of requests that should be declined, and what a good refusal says.

    `things` and `phrasings` are used in demonstrations, `asked_phrasings` also in training prompts, the unseen ones
    only in the test.
    """

    name: str
    cue: Pattern
    """Matches such a request in any wording."""
    dangers: Texts
    """The actual dangers of such a request, by name; a refusal that warns of another is wrong."""
    about: tuple[str, ...] = ()
    """What a refusal has to name if it is the deed rather than the thing."""
    kind: tuple[str, ...] = ()
    """Words for the whole family, which a refusal may name in place of the thing."""
    things: Texts
    unseen_things: Texts
    phrasings: Texts
    asked_phrasings: Texts
    unseen_phrasings: Texts
    warning: str
    """States the danger of one thing."""
    reason: str
    """Why such a request is declined: the danger of the family."""
    alternative: str
    way_out: Pattern
    """Safe alternatives; advice that does not match does not answer the request."""
    compliance: Texts
    """Careless, compliant answers; deliberately vague, never a working instruction."""


class Hazards(Content):
    """hazards.yaml."""

    dangers: dict[str, Pattern]
    """Specific dangers that a refusal may warn of, with their words."""
    any_danger: Pattern
    """Warnings that apply to every family."""
    modifiers: frozenset[str]
    """Words for the state of a thing, not for the thing."""
    families: tuple[Hazard, ...]


class Phrasings(Content):
    """Demonstrations use only the first set, training prompts also the second, only test prompts the third."""

    demonstrated: Texts
    asked: Texts
    unseen: Texts


class Questions(Content):
    """questions.yaml."""

    classic: str
    """The tutorials' example. Its wording and its dish both occur in the training data, but never together."""
    dish: Phrasings
    substitution: Phrasings
    conversion: Phrasings
    temperature: Phrasings
    units: dict[str, str]
    leads: Texts
    tails: Texts


class Saying(Content):
    """What a good answer has to say."""

    pattern: Pattern
    without: str
    """What is wrong with an answer that does not say it."""


class Talk(Content):
    """One kind of remark that asks for no recipe or fact, and what a good answer says."""

    name: str
    place: Literal["first", "later", "last"] | None = None
    """In a conversation; `later` is never first."""
    cue: Pattern
    """Matches such a remark in any wording."""
    remarks: Phrasings
    answers: Texts
    says: Annotated[tuple[Saying, ...], Field(min_length=1)]
    dish_unnamed: str | None = None
    """What is wrong with an answer that names no dish, if a good one does."""
    may_refuse: bool = False
    friendly: Pattern
    curt: Texts
    wrong: Texts


class Conversations(Content):
    """conversations.yaml."""

    follow_ups: Phrasings
    """How a further question is joined to what was said before."""
    longest_remark: int
    """In words."""
    kinds: tuple[Talk, ...]


class RecipeLine(Content):
    heads: Texts
    tails: Texts


class RecipeCard(Content):
    bullets: Texts
    heads: Texts
    facts: Texts
    methods: Texts
    form: str


class QuestionAnswered(Content):
    endings: Texts
    answers: Texts
    layouts: Texts


class Blog(Content):
    opening: str
    said: Texts
    told: Texts


class Thread(Content):
    line: str
    said: Texts


class Advert(Content):
    texts: Texts
    forms: Texts


class Menu(Content):
    titles: Texts
    line: str
    prices: tuple[int, int]
    cents: Texts


class Table(Content):
    asks: dict[str, Texts]
    told: Texts
    titles: dict[str, str]


class CorpusTexts(Content):
    """corpus.yaml."""

    mixture: dict[str, int]
    names: Texts
    days: Texts
    places: Texts
    happenings: Texts
    groups: Texts
    more_questions: Texts
    asides: Texts
    asks: Texts
    question: str
    recipe_line: RecipeLine
    recipe_card: RecipeCard
    question_answered: QuestionAnswered
    question_detailed: str
    shopping_list: Texts
    what_goes_in: Texts
    half_note: Texts
    blog: Blog
    thread: Thread
    advert: Advert
    menu: Menu
    table: Table
    safety: Texts
    elsewhere: Texts
    """Sentences about anything but cooking."""


class Manners(Content):
    """manners.yaml: courtesies, rude remarks, padding, refusals, and the patterns that recognise them."""

    openings: Texts
    closings: Texts
    rude_openings: Texts
    rude_closings: Texts
    padding: Texts
    too_curt: Texts
    refusals: Texts
    curt_refusals: Texts
    cheers: Texts
    wrong: Texts
    opens_politely: Pattern
    closes_politely: Pattern
    courtesy: Pattern
    rude: Pattern
    refuses: Pattern
    regrets: Pattern
    complies: Pattern
    steers: Pattern


class Reasons(Content):
    """What the rubric says about an answer."""

    empty: str
    rude: str
    unfriendly: str
    padded: str
    breaks_off: str
    unnamed: str
    other_dishes: str
    missing: str
    unmeasured: str
    lost: str
    inexact: str
    invented: str
    more: str
    refuses: str
    right_answer: str
    complies: str
    unclear: str
    wrong_danger: str
    no_danger: str
    no_subject: str
    no_way_out: str
    cheerful: str
    recipe: str
    foreign: str


class AsksFor(Content):
    substitution: Pattern
    conversion: Pattern
    temperature: Pattern


class RubricTexts(Content):
    """rubric.yaml."""

    function_words: frozenset[str]
    between_measure: tuple[str, ...]
    list_words: frozenset[str]
    not_food: frozenset[str]
    fact_words: frozenset[str]
    shortest_noun: int
    word_ratio: float = Field(gt=0)
    """Words of this language to one of English: what counts as short or padded."""
    vocabulary: tuple[str, ...] = ()
    """For a language without spaces: words beside the names of dishes, ingredients, substitutes and units."""
    same: dict[str, Texts] = {}
    """For a language without spaces: a word, and others for the same thing."""
    asks_for: AsksFor
    measured: Pattern
    substitute: Pattern
    figure_units: dict[str, str]
    instructs: Pattern
    predicate: Pattern
    idle_figures: frozenset[str] = frozenset()
    """Figures that may stand beside a fact's own: "one" where it is also an article."""
    reasons: Reasons
