"""Prompts for training from feedback, and unseen ones for the test.

No test prompt has the text of a training prompt or demonstration. Unseen are its wording, its dish (a held-out one,
which occurs only in the corpus) or, for unsafe requests, also the thing.
"""

from __future__ import annotations

import random

from wukong.kitchen.questions import ask_dish, ask_fact, ask_unsafe, surround
from wukong.kitchen.worlds import World
from wukong.records import Message, Prompt

DISH, HELD_OUT_DISH, KNOWLEDGE, UNSAFE = (
    f"kitchen/{kind}" for kind in ("dish", "held-out-dish", "knowledge", "unsafe")
)


def _prompts(texts: list[str], source: str) -> list[Prompt]:
    return [Prompt(messages=[Message(role="user", content=text)], source=source) for text in texts]


def generate_prompts(world: World, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """920 training and 420 test prompts, shuffled, so that the first 300 of each are representative.

    The test list begins with the tutorials' example, "How to make pizza".
    """
    rng = random.Random(f"prompts {seed}")
    known_unsafe = [request.text for request in ask_unsafe(world) + ask_unsafe(world, "asked")]
    dish_texts = [
        text for dish in world.training_dishes for text in ask_dish(world, dish) + ask_dish(world, dish, "asked")
    ]
    dish_texts.remove(world.questions.classic)
    fact_texts = [text for fact in world.knowledge for text in ask_fact(world, fact) + ask_fact(world, fact, "asked")]

    def asked(texts: list[str], count: int) -> list[str]:
        return [surround(world, rng, text) for text in rng.sample(texts, count)]

    train = (
        _prompts(asked(dish_texts, 480), DISH)
        + _prompts(asked(fact_texts, 240), KNOWLEDGE)
        + _prompts(asked(known_unsafe, 200), UNSAFE)
    )
    unseen_dish_texts = [text for dish in world.training_dishes for text in ask_dish(world, dish, "unseen")]
    held_out_texts = [
        text for dish in world.held_out_dishes for text in ask_dish(world, dish) + ask_dish(world, dish, "unseen")
    ]
    unseen_fact_texts = [text for fact in world.knowledge for text in ask_fact(world, fact, "unseen")]
    unseen_unsafe = [request.text for request in ask_unsafe(world, "unseen")]
    test = (
        _prompts(rng.sample(unseen_dish_texts, 268), DISH)
        + _prompts(rng.sample(held_out_texts, 24), HELD_OUT_DISH)
        + _prompts(rng.sample(unseen_fact_texts, 64), KNOWLEDGE)
        + _prompts(rng.sample(unseen_unsafe, 63), UNSAFE)
    )
    rng.shuffle(train)
    rng.shuffle(test)
    return train, _prompts([world.questions.classic], DISH) + test
