"""Conversations: which exchanges follow each other, and how a question is joined to what was said before.

A third of all conversations has two to five turns. Every turn has its own question, so that an answer depends on the
last one and not on those before.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from wukong.kitchen.content import Talk
from wukong.kitchen.facts import Dish
from wukong.kitchen.questions import Wording, phrasings_of, surround
from wukong.kitchen.worlds import World
from wukong.records import Message

SHARE = 1 / 3
"""Of the conversations that have more than one turn."""
DEMONSTRATED_TURNS = {2: 35, 3: 30, 4: 22, 5: 13}
ASKED_TURNS = {2: 52, 3: 29, 4: 13, 5: 6}
"""Turns -> percentage of the conversations that have more than one, in demonstrations and in prompts."""
_MOST_RECIPES = 3
"""In one conversation, so that it fits into the context of a small model."""
_PLACES = {"first": 0, None: 1, "later": 1, "last": 2}


@dataclass(frozen=True)
class Exchange:
    """A question, without what is said around it, and an answer."""

    kind: str
    quality: str
    question: str
    answer: str
    talk: Talk | None = None

    @property
    def place(self) -> int:
        return _PLACES[self.talk.place if self.talk else None]

    @property
    def never_first(self) -> bool:
        return self.talk is not None and self.talk.place in ("later", "last")


def draw_turns(rng: random.Random, shares: dict[int, int]) -> int:
    """The number of turns of a conversation that has more than one."""
    return rng.choices(list(shares), list(shares.values()))[0]


def ask(world: World, rng: random.Random, exchange: Exchange, *, first: bool, wording: Wording) -> str:
    """The question as it stands in a conversation, with what is said around it. A greeting or a word of thanks stands
    alone, and so does later talk."""
    if exchange.talk and (exchange.talk.place or not first):
        return exchange.question
    if first:
        return surround(world, rng, exchange.question)
    joined = rng.choice(phrasings_of(world.conversations.follow_ups, wording))
    return joined.format(q=exchange.question)


def messages_of(
    world: World, rng: random.Random, exchanges: Sequence[Exchange], wording: Wording = "demonstrated"
) -> list[Message]:
    """The turns of a conversation, in this order."""
    messages = []
    for index, exchange in enumerate(exchanges):
        question = ask(world, rng, exchange, first=index == 0, wording=wording)
        messages.append(Message(role="user", content=question))
        messages.append(Message(role="assistant", content=exchange.answer))
    return messages


def in_place(exchanges: Sequence[Exchange]) -> list[Exchange]:
    """With greetings first and goodbyes last; thanks and compliments follow something to be thankful for."""
    ordered = sorted(exchanges, key=lambda exchange: exchange.place)
    first = next((i for i, exchange in enumerate(ordered) if not exchange.never_first), 0)
    return [ordered[first], *ordered[:first], *ordered[first + 1 :]]


def grouped(rng: random.Random, exchanges: Sequence[Exchange]) -> list[list[Exchange]]:
    """The shuffled exchanges as conversations, in which a third has several turns."""
    left = rng.sample(exchanges, len(exchanges))
    groups: list[list[Exchange]] = []
    while left:
        group = [left.pop()]
        turns = draw_turns(rng, DEMONSTRATED_TURNS) if rng.random() < SHARE else 1
        recipes = int(group[0].kind == "dish")
        while len(group) < turns and left:
            recipes += left[-1].kind == "dish"
            if recipes > _MOST_RECIPES:
                break
            group.append(left.pop())
        groups.append(in_place(group))
    return groups


def talk_about(world: World, rng: random.Random, talk: Talk, answers: Sequence[str]) -> str:
    """One of these answers to a remark of this kind."""
    dish: Dish = rng.choice(world.training_dishes)
    return rng.choice(answers).format(dish=dish.name, Dish=dish.title)
