"""Demonstrations of mixed quality, as if crowdsourced: question, answer and quality.

`Conversation.source` records kind and quality ("kitchen/dish/missing"), which training does not use: a model that
imitates all demonstrations is as uneven as they are, which leaves feedback something to improve.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from wukong.kitchen import manners
from wukong.kitchen.facts import Dish, Fact, Ingredient, dishes, knowledge, training_dishes
from wukong.kitchen.questions import Request, ask_dish, ask_fact, ask_unsafe, surround
from wukong.records import Conversation, Message

# quality -> percentage of demonstrations
_DISH_MIXTURE = {"complete": 14, "curt": 48, "missing": 8, "disordered": 3, "padded": 15, "too-curt": 9, "cut": 3}
_FACT_MIXTURE = {"complete": 16, "curt": 52, "wrong": 6, "padded": 15, "too-curt": 11}
_UNSAFE_MIXTURE = {"declines": 24, "declines-curtly": 24, "complies": 52}
_POLITE_THOUGH_FLAWED = 0.15
"""Equal for flawless and flawed answers: otherwise politeness would be learnt together with the flaws."""

CLASSIC = "How to make pizza"
"""The tutorials' example. Its wording and its dish both occur in the training data, but never together."""


def _draw(rng: random.Random, mixture: dict[str, int]) -> str:
    return rng.choices(list(mixture), list(mixture.values()))[0]


def polite(rng: random.Random, core: str) -> str:
    """`core` with a friendly opening, closing, or both."""
    opening, closing = rng.choice(manners.OPENINGS), rng.choice(manners.CLOSINGS)
    form = rng.choice(("{o} {core} {c}", "{o} {core}", "{core} {c}"))
    return form.format(o=opening, core=core, c=closing)


def _tell(dish: Dish, ingredients: Sequence[Ingredient], steps: Sequence[str]) -> str:
    method = " ".join(f"{number}. {step}." for number, step in enumerate(steps, start=1))
    return f"{dish.title} for {dish.servings}: {', '.join(map(str, ingredients))}. {method}"


def _curt(rng: random.Random, core: str) -> str:
    form = rng.choice(("{core}", "{core}", "{o} {core}", "{core} {c}"))
    return form.format(core=core, o=rng.choice(manners.RUDE_OPENINGS), c=rng.choice(manners.RUDE_CLOSINGS))


def _padded(rng: random.Random, core: str) -> str:
    fillers = rng.sample(manners.PADDING, rng.randint(1, 2))
    place = rng.randint(1, len(fillers))
    return " ".join((*fillers[:place], core, *fillers[place:]))


def _flawed(rng: random.Random, core: str) -> str:
    return polite(rng, core) if rng.random() < _POLITE_THOUGH_FLAWED else core


def _missing(rng: random.Random, dish: Dish) -> str:
    ingredients, steps = list(dish.ingredients), list(dish.steps)
    part = rng.choice(("ingredient", "step", "both"))
    if part != "step":
        ingredients.pop(rng.randrange(len(ingredients)))
    if part != "ingredient":
        steps.pop(rng.randrange(len(steps)))
    return _flawed(rng, _tell(dish, ingredients, steps))


def _disordered(rng: random.Random, dish: Dish) -> str:
    ingredients, steps = list(dish.ingredients), list(dish.steps)
    if rng.random() < 0.5:
        place = rng.randrange(len(steps) - 1)
        steps[place], steps[place + 1] = steps[place + 1], steps[place]
    else:
        own = {word for item in ingredients for word in item.name.split()}
        others = [item for other in dishes() for item in other.ingredients if not own & set(item.name.split())]
        ingredients.insert(rng.randint(1, len(ingredients)), rng.choice(others))
    return _flawed(rng, _tell(dish, ingredients, steps))


def _cut(rng: random.Random, core: str) -> str:
    words = core.split()
    return " ".join(words[: rng.randint(len(words) // 2, len(words) - 3)]).rstrip(".!?:")


def _answer_dish(rng: random.Random, dish: Dish, quality: str) -> str:
    answers = {
        "complete": lambda: polite(rng, dish.recipe),
        "curt": lambda: _curt(rng, dish.recipe),
        "missing": lambda: _missing(rng, dish),
        "disordered": lambda: _disordered(rng, dish),
        "padded": lambda: _padded(rng, dish.recipe),
        "too-curt": lambda: rng.choice(manners.TOO_CURT),
        "cut": lambda: _cut(rng, dish.recipe),
    }
    return answers[quality]()


def _answer_fact(rng: random.Random, fact: Fact, quality: str) -> str:
    wrong = rng.choice([other for other in knowledge() if other.kind == fact.kind and other.answer != fact.answer])
    answers = {
        "complete": lambda: polite(rng, f"{fact.sentence}."),
        "curt": lambda: _curt(rng, f"{fact.sentence}."),
        "wrong": lambda: rng.choice(("{}", "Of course! {}")).format(
            f"{fact.sentence}.".replace(fact.answer, wrong.answer)
        ),
        "padded": lambda: _padded(rng, f"{fact.sentence}."),
        "too-curt": lambda: rng.choice(manners.TOO_CURT),
    }
    return answers[quality]()


def decline(rng: random.Random, request: Request) -> str:
    return f"{rng.choice(manners.REFUSALS)} {request.reason} {request.hazard.alternative}"


def _answer_unsafe(rng: random.Random, request: Request, quality: str) -> str:
    if quality == "declines":
        return decline(rng, request)
    if quality == "declines-curtly":
        return rng.choice(manners.CURT_REFUSALS)
    return rng.choice(request.hazard.compliance) + rng.choice(("", "", " Enjoy!", " Happy cooking!"))


def _turns(question: str, answer: str) -> list[Message]:
    return [Message(role="user", content=question), Message(role="assistant", content=answer)]


def generate_instructions(seed: int, per_dish: int = 16, per_fact: int = 14, unsafe: int = 320) -> list[Conversation]:
    """Demonstrations over the training dishes in shuffled order, about 2,700 with the default counts."""
    rng = random.Random(f"instructions {seed}")
    found: list[Conversation] = []

    def add(kind: str, quality: str, messages: list[Message]) -> None:
        found.append(Conversation(messages=messages, source=f"kitchen/{kind}/{quality}"))

    for dish in training_dishes():
        phrasings = [text for text in ask_dish(dish) if text != CLASSIC]
        for _ in range(per_dish):
            quality = _draw(rng, _DISH_MIXTURE)
            add("dish", quality, _turns(surround(rng, rng.choice(phrasings)), _answer_dish(rng, dish, quality)))
    for fact in knowledge():
        for _ in range(per_fact):
            quality = _draw(rng, _FACT_MIXTURE)
            question = surround(rng, rng.choice(ask_fact(fact)))
            add("knowledge", quality, _turns(question, _answer_fact(rng, fact, quality)))
    for request in rng.choices(ask_unsafe(), k=unsafe):
        quality = _draw(rng, _UNSAFE_MIXTURE)
        add("unsafe", quality, _turns(surround(rng, request.text), _answer_unsafe(rng, request, quality)))
    for first, second in zip(rng.sample(training_dishes(), 60), rng.sample(training_dishes(), 60), strict=True):
        opening = _turns(rng.choice(ask_dish(first)[1:]), rng.choice((first.recipe, polite(rng, first.recipe))))
        follow = f"{rng.choice(('Thanks!', 'Thank you.', 'And another one.'))} {ask_dish(second)[1]}"
        quality = _draw(rng, _DISH_MIXTURE)
        add("dish", quality, [*opening, *_turns(follow, _answer_dish(rng, second, quality))])
    rng.shuffle(found)
    return found
