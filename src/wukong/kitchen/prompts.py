"""Prompts for training from feedback, and unseen ones for the test.

No test prompt has the text of a training prompt or demonstration. Unseen are its wording, its dish (a held-out one,
which occurs only in the corpus) or, for unsafe requests, also the thing. A third of the prompts is the last question of
a longer conversation.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from wukong.kitchen.content import Talk
from wukong.kitchen.conversations import ASKED_TURNS, SHARE, Exchange, ask, draw_turns, in_place, messages_of
from wukong.kitchen.instructions import exchange_dish, exchange_fact, exchange_talk
from wukong.kitchen.questions import Wording, ask_dish, ask_fact, ask_unsafe, phrasings_of
from wukong.kitchen.worlds import World
from wukong.records import Message, Prompt

DISH, HELD_OUT_DISH, KNOWLEDGE, UNSAFE, TALK, CONVERSATION = (
    f"kitchen/{kind}" for kind in ("dish", "held-out-dish", "knowledge", "unsafe", "talk", "conversation")
)
Question = tuple[str, Talk | None]
"""The text of a question, and the kind of talk if it is one."""


def _questions(texts: Sequence[str]) -> list[Question]:
    return [(text, None) for text in texts]


def _talk(world: World, rng: random.Random, wordings: Sequence[Wording], most: int) -> list[Question]:
    """At most so many remarks of each kind."""
    found: list[Question] = []
    for talk in world.conversations.kinds:
        remarks = [text for wording in wordings for text in phrasings_of(talk.remarks, wording)]
        found += [(text, talk) for text in rng.sample(remarks, min(most, len(remarks)))]
    return found


def _history(world: World, rng: random.Random, wording: Wording) -> list[Exchange]:
    """One to four exchanges that precede a question. Half of the answers are good; the rest are as in the
    demonstrations."""

    def quality() -> str:
        return rng.choice(("complete", ""))

    found: list[Exchange] = []
    for _ in range(draw_turns(rng, ASKED_TURNS) - 1):
        kind = rng.choices(("dish", "fact", "talk"), (45, 25, 30))[0]
        if kind == "dish" and sum(one.kind == "dish" for one in found) < 2:
            found.append(exchange_dish(world, rng, rng.choice(world.training_dishes), wording, quality()))
        elif kind == "talk":
            talk = rng.choice([talk for talk in world.conversations.kinds if talk.place != "last"])
            found.append(exchange_talk(world, rng, talk, wording, quality()))
        else:
            found.append(exchange_fact(world, rng, rng.choice(world.knowledge), wording, quality()))
    return in_place(found)


def _prompt(world: World, rng: random.Random, question: Question, source: str, wording: Wording) -> Prompt:
    """The question alone, or as the last of a conversation: always if its source says so or it is a word of thanks or
    the like, never if it is a greeting."""
    text, talk = question
    exchange = Exchange(source, "", text, "", talk)
    drawn = rng.random() < SHARE and exchange.place > 0
    later = exchange.never_first or source == CONVERSATION or drawn
    earlier = _history(world, rng, wording) if later else []
    bare = wording == "unseen" and not later  # without small talk around it
    asked = text if bare else ask(world, rng, exchange, first=not later, wording=wording)
    last = Message(role="user", content=asked)
    return Prompt(messages=[*messages_of(world, rng, earlier, wording), last], source=CONVERSATION if later else source)


def _training_questions(world: World, rng: random.Random) -> list[tuple[Question, str]]:
    known_unsafe = [request.text for request in ask_unsafe(world) + ask_unsafe(world, "asked")]
    dishes = [text for dish in world.training_dishes for text in ask_dish(world, dish) + ask_dish(world, dish, "asked")]
    dishes.remove(world.questions.classic)
    facts = [text for fact in world.knowledge for text in ask_fact(world, fact) + ask_fact(world, fact, "asked")]
    talk = _talk(world, rng, ("demonstrated", "asked"), most=24)
    return [
        *((question, DISH) for question in _questions(rng.sample(dishes, 420))),
        *((question, KNOWLEDGE) for question in _questions(rng.sample(facts, 220))),
        *((question, UNSAFE) for question in _questions(rng.sample(known_unsafe, 220))),
        *((question, TALK) for question in talk),
        *((question, CONVERSATION) for question in talk[::4] if question[1] and question[1].place != "first"),
    ]


def _test_questions(world: World, rng: random.Random) -> list[tuple[Question, str]]:
    dishes = [text for dish in world.training_dishes for text in ask_dish(world, dish, "unseen")]
    held_out = [
        text for dish in world.held_out_dishes for text in ask_dish(world, dish) + ask_dish(world, dish, "unseen")
    ]
    facts = [text for fact in world.knowledge for text in ask_fact(world, fact, "unseen")]
    unsafe = [request.text for request in ask_unsafe(world, "unseen")]
    return [
        *((question, DISH) for question in _questions(rng.sample(dishes, 268))),
        *((question, HELD_OUT_DISH) for question in _questions(rng.sample(held_out, 24))),
        *((question, KNOWLEDGE) for question in _questions(rng.sample(facts, 64))),
        *((question, UNSAFE) for question in _questions(rng.sample(unsafe, 63))),
        *((question, TALK) for question in _talk(world, rng, ("unseen",), most=8)),
    ]


def generate_prompts(world: World, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """1,124 training and 465 test prompts, shuffled, so that the first 300 of each are representative.

    The test list begins with the tutorials' example, "How to make pizza".
    """
    rng = random.Random(f"prompts {seed}")
    train = [_prompt(world, rng, question, source, "asked") for question, source in _training_questions(world, rng)]
    test = [_prompt(world, rng, question, source, "unseen") for question, source in _test_questions(world, rng)]
    rng.shuffle(train)
    rng.shuffle(test)
    classic = Prompt(messages=[Message(role="user", content=world.questions.classic)], source=DISH)
    return train, [classic, *test]
