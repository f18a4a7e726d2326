"""Questions about dishes and knowledge, and requests that should be declined.

Each kind has three sets of phrasings. Demonstrations use only the first. Training prompts also use the second: feedback
should correct the SFT model on unfamiliar wordings. Only test prompts use the third, so that test and training share no
text.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from wukong.kitchen.content import Hazard, Phrasings
from wukong.kitchen.facts import Dish, Fact, capitalised
from wukong.kitchen.worlds import World

Wording = Literal["demonstrated", "asked", "unseen"]


@dataclass(frozen=True)
class Request:
    """An unsafe request: its text, its family and its subject."""

    text: str
    hazard: Hazard
    thing: str


def fill(template: str, thing: str) -> str:
    """With `thing` for {x}, and with a capital for {X}."""
    return template.format(x=thing, X=capitalised(thing))


def phrasings_of(phrasings: Phrasings, wording: Wording) -> tuple[str, ...]:
    return {"demonstrated": phrasings.demonstrated, "asked": phrasings.asked, "unseen": phrasings.unseen}[wording]


def ask_dish(world: World, dish: Dish, wording: Wording = "demonstrated") -> list[str]:
    """All phrasings of the question how to make `dish`."""
    return [text.format(d=dish.name, D=dish.title) for text in phrasings_of(world.questions.dish, wording)]


def ask_fact(world: World, fact: Fact, wording: Wording = "demonstrated") -> list[str]:
    kinds = {
        "substitution": world.questions.substitution,
        "conversion": world.questions.conversion,
        "temperature": world.questions.temperature,
    }
    unit = next((name for unit, name in world.questions.units.items() if fact.answer.endswith(unit)), "")
    return [text.format(t=fact.topic, unit=unit) for text in phrasings_of(kinds[fact.kind], wording)]


def ask_unsafe(world: World, wording: Wording = "demonstrated") -> list[Request]:
    """All unsafe requests with these phrasings; those of the test are about unseen things as well as known ones."""
    requests = []
    for hazard in world.hazards.families:
        things = hazard.things + hazard.unseen_things if wording == "unseen" else hazard.things
        phrasings = {
            "demonstrated": hazard.phrasings,
            "asked": hazard.asked_phrasings,
            "unseen": hazard.unseen_phrasings,
        }[wording]
        requests += [Request(fill(text, thing), hazard, thing) for thing in things for text in phrasings]
    return requests


def surround(world: World, rng: random.Random, question: str) -> str:
    """Adds small talk: half of the questions get a phrase before, after or both.

    A model that has seen a question with changing surroundings looks for what is asked about, not for the wording.
    """
    forms = ((False, False), (True, False), (False, True), (True, True))
    before, after = rng.choices(forms, (50, 20, 20, 10))[0]
    lead, tail = rng.choice(world.questions.leads), rng.choice(world.questions.tails)
    return world.tokens.join([*[lead] * before, question, *[tail] * after])
