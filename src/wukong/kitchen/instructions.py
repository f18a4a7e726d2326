"""Demonstrations of mixed quality, as if crowdsourced: question, answer and quality.

`Conversation.source` records kind and quality ("kitchen/dish/missing"), which training does not use: a model that
imitates all demonstrations is as uneven as they are, which leaves feedback something to improve.
"""

from __future__ import annotations

import random

from wukong.kitchen.content import Talk
from wukong.kitchen.conversations import Exchange, grouped, messages_of, talk_about
from wukong.kitchen.facts import Dish, Fact
from wukong.kitchen.questions import Request, Wording, ask_dish, ask_fact, ask_unsafe, phrasings_of
from wukong.kitchen.worlds import World
from wukong.records import Conversation

# quality -> percentage of demonstrations
_DISH_MIXTURE = {"complete": 14, "curt": 48, "missing": 8, "disordered": 3, "padded": 15, "too-curt": 9, "cut": 3}
_FACT_MIXTURE = {"complete": 16, "curt": 52, "wrong": 6, "padded": 15, "too-curt": 11}
_UNSAFE_MIXTURE = {"declines": 38, "declines-curtly": 4, "complies": 58}
_TALK_MIXTURE = {"complete": 46, "curt": 30, "padded": 14, "wrong": 10}
_POLITE_THOUGH_FLAWED = 0.15
"""Equal for flawless and flawed answers: otherwise politeness would be learnt together with the flaws."""


def _draw(rng: random.Random, mixture: dict[str, int]) -> str:
    return rng.choices(list(mixture), list(mixture.values()))[0]


def polite(world: World, rng: random.Random, core: str) -> str:
    """`core` with a friendly opening, closing, or both."""
    opening, closing = rng.choice(world.manners.openings), rng.choice(world.manners.closings)
    return world.tokens.join(rng.choice(((opening, core, closing), (opening, core), (core, closing))))


def _curt(world: World, rng: random.Random, core: str) -> str:
    place = rng.choice(("bare", "bare", "before", "after"))
    opening, closing = rng.choice(world.manners.rude_openings), rng.choice(world.manners.rude_closings)
    return world.tokens.join({"bare": [core], "before": [opening, core], "after": [core, closing]}[place])


def _padded(world: World, rng: random.Random, core: str) -> str:
    fillers = rng.sample(world.manners.padding, rng.randint(1, 2))
    place = rng.randint(1, len(fillers))
    return world.tokens.join((*fillers[:place], core, *fillers[place:]))


def _flawed(world: World, rng: random.Random, core: str) -> str:
    return polite(world, rng, core) if rng.random() < _POLITE_THOUGH_FLAWED else core


def _missing(world: World, rng: random.Random, dish: Dish) -> str:
    ingredients, steps = list(dish.ingredients), list(dish.steps)
    part = rng.choice(("ingredient", "step", "both"))
    if part != "step":
        ingredients.pop(rng.randrange(len(ingredients)))
    if part != "ingredient":
        steps.pop(rng.randrange(len(steps)))
    return _flawed(world, rng, dish.told(ingredients, steps))


def _disordered(world: World, rng: random.Random, dish: Dish) -> str:
    ingredients, steps = list(dish.ingredients), list(dish.steps)
    pieces = world.tokens.pieces
    if rng.random() < 0.5:
        place = rng.randrange(len(steps) - 1)
        steps[place], steps[place + 1] = steps[place + 1], steps[place]
    else:
        own = {word for item in ingredients for word in pieces(item.name)}
        others = [item for other in world.dishes for item in other.ingredients if not own & set(pieces(item.name))]
        ingredients.insert(rng.randint(1, len(ingredients)), rng.choice(others))
    return _flawed(world, rng, dish.told(ingredients, steps))


def _cut(world: World, rng: random.Random, core: str) -> str:
    pieces = world.tokens.pieces(core)
    return world.tokens.unended(world.tokens.rejoin(pieces[: rng.randint(len(pieces) // 2, len(pieces) - 3)]))


def _answer_dish(world: World, rng: random.Random, dish: Dish, quality: str) -> str:
    answers = {
        "complete": lambda: polite(world, rng, dish.recipe),
        "curt": lambda: _curt(world, rng, dish.recipe),
        "missing": lambda: _missing(world, rng, dish),
        "disordered": lambda: _disordered(world, rng, dish),
        "padded": lambda: _padded(world, rng, dish.recipe),
        "too-curt": lambda: rng.choice(world.manners.too_curt),
        "cut": lambda: _cut(world, rng, dish.recipe),
    }
    return answers[quality]()


def _answer_fact(world: World, rng: random.Random, fact: Fact, quality: str) -> str:
    wrong = rng.choice([other for other in world.knowledge if other.kind == fact.kind and other.answer != fact.answer])
    told = world.stated(fact)
    answers = {
        "complete": lambda: polite(world, rng, told),
        "curt": lambda: _curt(world, rng, told),
        "wrong": lambda: rng.choice(world.manners.wrong).format(told=told.replace(fact.answer, wrong.answer)),
        "padded": lambda: _padded(world, rng, told),
        "too-curt": lambda: rng.choice(world.manners.too_curt),
    }
    return answers[quality]()


def decline(world: World, rng: random.Random, request: Request) -> str:
    return world.tokens.join((rng.choice(world.manners.refusals), request.hazard.reason, request.hazard.alternative))


def _answer_unsafe(world: World, rng: random.Random, request: Request, quality: str) -> str:
    if quality == "declines":
        return decline(world, rng, request)
    if quality == "declines-curtly":
        return rng.choice(world.manners.curt_refusals)
    compliance, cheer = rng.choice(request.hazard.compliance), rng.choice(world.manners.cheers)
    return world.tokens.join((compliance, cheer)) if cheer else compliance


def _answer_talk(world: World, rng: random.Random, talk: Talk, quality: str) -> str:
    answers = {
        "complete": lambda: talk_about(world, rng, talk, talk.answers),
        "curt": lambda: talk_about(world, rng, talk, talk.curt),
        "padded": lambda: _padded(world, rng, talk_about(world, rng, talk, talk.answers)),
        "wrong": lambda: talk_about(world, rng, talk, talk.wrong),
    }
    return answers[quality]()


# -- exchanges: a question of each kind with an answer of a quality, drawn if it is not given ------------------------


def exchange_dish(world: World, rng: random.Random, dish: Dish, wording: Wording, quality: str = "") -> Exchange:
    phrasings = [text for text in ask_dish(world, dish, wording) if text != world.questions.classic]
    quality = quality or _draw(rng, _DISH_MIXTURE)
    return Exchange("dish", quality, rng.choice(phrasings), _answer_dish(world, rng, dish, quality))


def exchange_fact(world: World, rng: random.Random, fact: Fact, wording: Wording, quality: str = "") -> Exchange:
    quality = quality or _draw(rng, _FACT_MIXTURE)
    question = rng.choice(ask_fact(world, fact, wording))
    return Exchange("knowledge", quality, question, _answer_fact(world, rng, fact, quality))


def exchange_unsafe(world: World, rng: random.Random, request: Request, quality: str = "") -> Exchange:
    quality = quality or _draw(rng, _UNSAFE_MIXTURE)
    return Exchange("unsafe", quality, request.text, _answer_unsafe(world, rng, request, quality))


def exchange_talk(world: World, rng: random.Random, talk: Talk, wording: Wording, quality: str = "") -> Exchange:
    quality = quality or _draw(rng, _TALK_MIXTURE)
    remark = rng.choice(phrasings_of(talk.remarks, wording))
    return Exchange("talk", quality, remark, _answer_talk(world, rng, talk, quality), talk)


def generate_instructions(
    world: World, seed: int, per_dish: int = 20, per_fact: int = 18, unsafe: int = 1000, per_talk: int = 120
) -> list[Conversation]:
    """Demonstrations over the training dishes in shuffled order: with the default counts about 5,100 answers in 3,000
    conversations, a third of them of two to five turns."""
    rng = random.Random(f"instructions {seed}")
    kinds = [talk for talk in world.conversations.kinds for _ in range(2 if talk.may_refuse else 1)]
    exchanges = [
        *(exchange_dish(world, rng, dish, "demonstrated") for dish in world.training_dishes for _ in range(per_dish)),
        *(exchange_fact(world, rng, fact, "demonstrated") for fact in world.knowledge for _ in range(per_fact)),
        *(exchange_unsafe(world, rng, request) for request in rng.choices(ask_unsafe(world), k=unsafe)),
        *(exchange_talk(world, rng, talk, "demonstrated") for talk in kinds for _ in range(per_talk)),
    ]
    found = []
    for group in grouped(rng, exchanges):
        last = group[-1]
        source = f"kitchen/{last.kind}/{last.quality}" if len(group) == 1 else "kitchen/conversation"
        found.append(Conversation(messages=messages_of(world, rng, group), source=source))
    return found
