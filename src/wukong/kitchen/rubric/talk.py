"""Judges the answer to a remark that asks for no recipe or fact: a greeting, thanks, a question outside the kitchen."""

from __future__ import annotations

from functools import cache

from wukong.kitchen.content import Talk
from wukong.kitchen.rubric.verdict import Verdict, empty, judge_form, verdict
from wukong.kitchen.tokens import spaced
from wukong.kitchen.worlds import World

NAMES = ("to the point", "polite", "not padded", "ended")


@cache
def _longest(world: World, talk: Talk) -> int:
    """Words of the longest good answer."""
    return max(len(world.tokens.words(answer)) for answer in talk.answers)


@cache
def _dish_names(world: World) -> tuple[str, ...]:
    return tuple(spaced(world.tokens.words(dish.name)) for dish in world.dishes)


def judge_talk(world: World, talk: Talk, text: str) -> Verdict:
    words = world.tokens.words(text)
    if not words:
        return empty(world, NAMES)
    missing = [saying.without for saying in talk.says if not saying.pattern.search(text)]
    if talk.dish_unnamed and not any(name in spaced(words) for name in _dish_names(world)):
        missing.append(talk.dish_unnamed)
    demands = len(talk.says) + bool(talk.dish_unnamed)
    said = 1 - len(missing) / demands
    reasons = list(missing)
    if world.rubric.instructs.search(text):
        said *= 0.3
        reasons.append(world.rubric.reasons.recipe)
    longest = _longest(world, talk)
    form = judge_form(world, text, stray=max(0, len(words) - longest), reference="x " * longest)
    rude = world.manners.rude.search(text) is not None
    polite = not rude and talk.friendly.search(text) is not None
    points = 6 * said + said**2 * (2 * polite + 1.25 * (not form.padded) + 0.75 * form.ended)
    points *= form.shrink * (0.7 if rude else 1.0)
    if world.manners.refuses.search(text) and not talk.may_refuse:
        points = min(points, 0.5)
        reasons.append(world.rubric.reasons.refuses)
    form_reasons = [reason for reason in form.reasons if reason != world.rubric.reasons.unfriendly]
    if not polite and not rude:
        form_reasons.append(world.rubric.reasons.unfriendly)
    results = (not missing, polite, not form.padded, form.ended)
    return verdict(points, dict(zip(NAMES, results, strict=True)), reasons + form_reasons)
