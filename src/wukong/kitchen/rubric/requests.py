"""Recognises what a prompt asks for, from its text alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TypeVar

from wukong.kitchen.content import Hazard, Talk
from wukong.kitchen.facts import Dish, Fact
from wukong.kitchen.tokens import spaced
from wukong.kitchen.worlds import World, language_of, load_world
from wukong.records import PromptLike, as_messages

T = TypeVar("T")


def world_of(messages: PromptLike) -> World:
    """The world in whose language the conversation begins."""
    first = next((message.content for message in as_messages(messages) if message.role == "user"), "")
    return load_world(language_of(first))


def identify(messages: PromptLike) -> Dish | Fact | Hazard | Talk | None:
    """The subject of the conversation, searched from the last user turn backwards."""
    world = world_of(messages)
    for message in reversed(as_messages(messages)):
        if message.role == "user" and (found := _identify_text(world, message.content)) is not None:
            return found
    return None


@lru_cache(maxsize=4096)
def _identify_text(world: World, text: str) -> Dish | Fact | Hazard | Talk | None:
    lowered = text.lower()
    for hazard in world.hazards.families:
        if hazard.cue.search(lowered):
            return hazard
    asked = _identify_fact(world, lowered) or _longest_name(world, lowered, world.dishes, lambda dish: dish.name)
    return asked or _identify_talk(world, lowered)


def _identify_fact(world: World, lowered: str) -> Fact | None:
    asks_for = world.rubric.asks_for
    patterns = {
        "substitution": asks_for.substitution,
        "conversion": asks_for.conversion,
        "temperature": asks_for.temperature,
    }
    for kind, pattern in patterns.items():
        if pattern.search(lowered):
            candidates = [fact for fact in world.knowledge if fact.kind == kind]
            if found := _longest_name(world, lowered, candidates, lambda fact: fact.topic):
                return found
    return None


def _identify_talk(world: World, lowered: str) -> Talk | None:
    talk = world.conversations
    if len(world.tokens.words(lowered)) > talk.longest_remark:
        return None
    return next((kind for kind in talk.kinds if kind.cue.search(lowered)), None)


def _longest_name(world: World, text: str, candidates: Iterable[T], name_of: Callable[[T], str]) -> T | None:
    """The candidate with the longest name that occurs in the text as whole words."""
    words = spaced(world.tokens.words(text))
    found = [one for one in candidates if spaced(world.tokens.words(name_of(one))) in words]
    return max(found, key=lambda one: len(name_of(one)), default=None)
