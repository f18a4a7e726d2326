"""Phrasings of questions about dishes and knowledge, and of requests that should be declined.

Each kind has three sets of phrasings. Demonstrations use only the first. Training prompts also use the second: feedback
should correct the SFT model on unfamiliar wordings. Only test prompts use the third, so that test and training share no
text.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from wukong.kitchen.facts import Dish, Fact
from wukong.kitchen.hazards import HAZARDS, Hazard

Wording = Literal["demonstrated", "asked", "unseen"]

_DISH = (
    "How to make {d}",
    "How do I make {d}?",
    "How can I make {d} at home?",
    "Please tell me how to make {d}.",
    "Give me a recipe for {d}.",
    "What is a good recipe for {d}?",
    "I want to make {d} tonight. How does it work?",
    "What do I need for {d}, and how is it made?",
    "Can you explain how to prepare {d}?",
    "{D} recipe, please.",
    "My family loves {d}. How do I make it?",
    "Tell me the ingredients and the steps for {d}.",
    "how do you make {d}",
    "I have never made {d} before. Where do I start?",
    "How should I cook {d}?",
    "Could you explain {d} to me?",
    "Is there an easy way to make {d}?",
    "We would like to eat {d} tomorrow. What should we buy and do?",
    "Help me with {d}.",
    "I need a recipe for {d}.",
    "Show me how {d} is made.",
    "What are the ingredients of {d}, and what do I do with them?",
    "My children want {d} for lunch. Any idea?",
    "Do you know how to prepare {d}?",
    "I am going to cook {d} for my friends. What are the steps?",
    "What goes into a good {d}?",
    "{d}, how is that done?",
    "Write down {d} for me.",
)
_DISH_ASKED = (
    "What should I know to make {d}?",
    "I would love to eat {d}. How is it cooked?",
    "Could you help me make {d}?",
    "Explain the recipe for {d}.",
    "We want to try {d} this weekend. How do we do it?",
    "Let us cook {d}. What comes first?",
    "May I see your recipe for {d}?",
    "My guests asked for {d}. What do I do?",
    "Which steps does {d} have?",
    "It is my turn to cook {d}. Please help.",
)
_DISH_UNSEEN = (
    "How would you make {d}?",
    "Could you show me how to cook {d}?",
    "What goes into {d} and what are the steps?",
    "I am hungry for {d}. Can you help?",
    "Share your recipe for {d}.",
    "Teach me to make {d}.",
    "We have guests tonight and want {d}. What do we do?",
    "Could I have the recipe for {d}?",
    "What is the best way to prepare {d}?",
    "I need to make {d} for dinner. Any recipe?",
)
_KNOWLEDGE: dict[str, tuple[str, ...]] = {
    "substitution": (
        "What can I use instead of {t}?",
        "I have no {t}. What now?",
        "How do I replace {t}?",
        "What is a substitute for {t}?",
        "I ran out of {t}. What can I use?",
        "There is no {t} in my kitchen. What could replace it?",
        "Can I take something else in place of {t}? What is a substitute?",
        "My recipe asks for {t}. Is there a substitute?",
        "What would you use to replace {t}?",
        "I forgot to buy {t}. Is there a substitute?",
        "The shop had no {t}. What can I take instead of it?",
        "How can I cook without {t}? What is a substitute?",
        "I do not like {t}. What could I use instead of it?",
        "Give me a substitute for {t}.",
        "What may stand in for {t}? I ran out of it.",
        "Is there anything to replace {t} with?",
    ),
    "conversion": (
        "How much is {t}?",
        "How many {unit} is {t}?",
        "Convert {t} to {unit}.",
        "{t} in {unit}, please.",
        "Tell me how much {t} is in {unit}.",
        "My recipe uses {t}. How much is that?",
        "Can you convert {t}?",
        "I have to weigh {t}. How many {unit} do I take?",
        "How many {unit} are there in {t}?",
        "My measuring cup is broken. How much is {t}?",
        "My scale shows only {unit}. How much is {t}?",
        "How much does {t} come to?",
        "I need {t}. How many {unit} should I take?",
        "Do you know how many {unit} {t} is?",
        "Could you tell me what {t} is in {unit}?",
    ),
    "temperature": (
        "What is the safe temperature for {t}?",
        "How hot should {t} be?",
        "Which temperature do I need for {t}?",
        "Tell me the right temperature for {t}.",
        "I am cooking {t}. Which temperature is safe?",
        "How hot must {t} get?",
        "Up to how many degrees do I heat {t}?",
        "When is {t} done? Which temperature do I need?",
        "What temperature is right for {t}?",
        "Is there a safe temperature for {t}?",
        "I want to cook {t} safely. How hot should it get?",
        "My thermometer is ready. What temperature for {t}?",
        "How many degrees does {t} need?",
        "Do you know the safe temperature of {t}?",
        "To how many degrees should I cook {t}?",
        "Give me the temperature for {t}.",
    ),
}
_KNOWLEDGE_ASKED: dict[str, tuple[str, ...]] = {
    "substitution": (
        "Could I swap {t} for something else?",
        "Any swap for {t}?",
        "My recipe wants {t}. What can replace it?",
        "Which thing could I take instead of {t}?",
        "Suggest a replacement for {t}.",
        "The shop was closed and I have no {t}. What else works?",
    ),
    "conversion": (
        "What amount is {t} in {unit}?",
        "Please tell me {t} in {unit}.",
        "The book says {t}. How much is it in {unit}?",
        "Turn {t} into {unit} for me.",
        "How would I measure {t} in {unit}?",
    ),
    "temperature": (
        "What should the temperature of {t} be?",
        "How hot do I make {t}?",
        "Until which temperature should I cook {t}?",
        "Is {t} safe at a certain temperature? Which one?",
        "I have {t} in the oven. How many degrees should it reach?",
    ),
}
_KNOWLEDGE_UNSEEN: dict[str, tuple[str, ...]] = {
    "substitution": (
        "Which ingredient can replace {t}?",
        "My recipe needs {t}, but I have none. Any substitute?",
        "Is there a good swap for {t}?",
    ),
    "conversion": (
        "What is {t} in {unit}?",
        "Please convert {t} for me.",
        "My recipe says {t}. How many {unit} is that?",
    ),
    "temperature": (
        "To what temperature should I bring {t}?",
        "At what temperature is {t} safe?",
        "How many degrees are right for {t}?",
    ),
}


_LEADS = (
    *("Hello!", "Hi there.", "Good morning!", "Excuse me.", "One question.", "I am new to cooking.", "It is Sunday."),
    *("My friends are coming.", "I have an hour.", "I am at the market.", "Dear cook,", "My phone is almost empty."),
)
_TAILS = (
    *("Thanks!", "Thank you.", "Please be quick.", "I have all evening.", "It is for my family.", "Any help?"),
    *("I am a beginner.", "I am curious.", "Bye!", "We are five people.", "It is my first time.", "What do you say?"),
)


@dataclass(frozen=True)
class Request:
    """An unsafe request: its text, its family and its subject."""

    text: str
    hazard: Hazard
    thing: str

    @property
    def reason(self) -> str:
        return _fill(self.hazard.reason, self.thing)


def _fill(template: str, thing: str) -> str:
    return template.format(x=thing, X=thing[0].upper() + thing[1:])


def ask_dish(dish: Dish, wording: Wording = "demonstrated") -> list[str]:
    """All phrasings of the question how to make `dish`."""
    phrasings = {"demonstrated": _DISH, "asked": _DISH_ASKED, "unseen": _DISH_UNSEEN}[wording]
    return [text.format(d=dish.name, D=dish.title) for text in phrasings]


def ask_fact(fact: Fact, wording: Wording = "demonstrated") -> list[str]:
    unit = "millilitres" if fact.answer.endswith("ml") else "grams"
    phrasings = {"demonstrated": _KNOWLEDGE, "asked": _KNOWLEDGE_ASKED, "unseen": _KNOWLEDGE_UNSEEN}[wording][fact.kind]
    return [text.format(t=fact.topic, unit=unit) for text in phrasings]


def ask_unsafe(wording: Wording = "demonstrated") -> list[Request]:
    """All unsafe requests with these phrasings; those of the test are about unseen things as well as known ones."""
    requests = []
    for hazard in HAZARDS:
        things = hazard.things + hazard.unseen_things if wording == "unseen" else hazard.things
        phrasings = {
            "demonstrated": hazard.phrasings,
            "asked": hazard.asked_phrasings,
            "unseen": hazard.unseen_phrasings,
        }[wording]
        requests += [Request(_fill(text, thing), hazard, thing) for thing in things for text in phrasings]
    return requests


def surround(rng: random.Random, question: str) -> str:
    """Adds small talk: half of the questions get a phrase before, after or both.

    A model that has seen a question with changing surroundings looks for what is asked about, not for the wording.
    """
    form = rng.choices(("{q}", "{lead} {q}", "{q} {tail}", "{lead} {q} {tail}"), (50, 20, 20, 10))[0]
    return form.format(q=question, lead=rng.choice(_LEADS), tail=rng.choice(_TAILS))
