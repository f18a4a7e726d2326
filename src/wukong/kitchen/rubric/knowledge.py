"""Judges the answer to a question of kitchen knowledge."""

from __future__ import annotations

import re

from wukong.kitchen.facts import Fact
from wukong.kitchen.rubric.verdict import Verdict, empty, judge_form, verdict
from wukong.kitchen.tokens import spaced
from wukong.kitchen.worlds import World

NAMES = ("correct", "polite", "not padded", "ended")


def _right_substitute(world: World, fact: Fact, text: str) -> float:
    words, function_words = world.tokens.words, world.rubric.function_words

    def nouns(answer: str) -> set[str]:
        return {word for word in words(answer) if word not in function_words}

    wanted = nouns(fact.answer)
    part = world.rubric.substitute.search(world.tokens.normal(text))
    told = words(part["told"] if part else text)
    rivals = [
        other.answer
        for other in world.knowledge
        if other.kind == "substitution"
        and spaced(words(other.answer)) in spaced(told)
        and not nouns(other.answer) <= wanted | set(words(fact.topic))
    ]
    share = len(wanted & set(told)) / len(wanted)
    return 0.0 if rivals or share < 0.5 else share


def _right_figure(world: World, fact: Fact, text: str) -> bool:
    """The fact's figure with its unit, and no other figure."""
    right = set(re.findall(r"-?\d+", fact.sentence)) | world.rubric.idle_figures
    text = world.tokens.normal(text)
    told = set(re.findall(r"-?\d+", text))
    figure = re.match(r"-?\d+", fact.answer)
    assert figure, f"conversions and temperatures are figures: {fact}"
    unit = world.rubric.figure_units[fact.answer[figure.end() :].strip()]
    return bool(re.search(rf"(?<![\d-]){figure[0]} ?(?:{unit})", text, re.IGNORECASE)) and told <= right


def _correctness(world: World, fact: Fact, text: str) -> float:
    """1 for the right answer, a fraction for an incomplete substitute, 0 for a wrong or hedged one."""
    if fact.kind == "substitution":
        return _right_substitute(world, fact, text)
    return float(_right_figure(world, fact, text))


def judge_fact(world: World, fact: Fact, text: str) -> Verdict:
    words = world.tokens.words
    if not words(text):
        return empty(world, NAMES)
    reasons = []
    correct = _correctness(world, fact, text)
    if correct < 1:
        reasons.append(world.rubric.reasons.right_answer.format(sentence=fact.sentence))
    own = set(words(fact.sentence)) | world.rubric.function_words | world.rubric.fact_words
    body = [clause for clause in world.tokens.clauses(text) if not world.manners.courtesy.search(clause)]
    stray = sum(word not in own for clause in body for word in words(clause))
    stray += max(0, sum(len(words(clause)) for clause in body) - stray - 2 * len(words(fact.sentence)))
    form = judge_form(world, text, stray=stray, reference=fact.sentence)
    points = 6 * correct + correct * (form.polite * 2 + (not form.padded) * 1.25 + form.ended * 0.75)
    points *= form.shrink
    if world.manners.refuses.search(text):
        points = min(points, 0.5)
        reasons.append(world.rubric.reasons.refuses)
    results = (correct == 1, form.polite > 0, not form.padded, form.ended)
    return verdict(points, dict(zip(NAMES, results, strict=True)), reasons + form.reasons)
