"""Kitchen sums with exactly one right answer: conversions and recipes for more or fewer people.

    How much is 3 cups of flour in grams?                  1 cup of flour is 120 g. 3 x 120 = 360. That is 360 g.
    The recipe for 4 needs 300 g flour. How much for 6?    300 / 4 = 75. 75 x 6 = 450. That is 450 g.

The corpus has all the products and quotients, so that a tiny model can learn each of them. What it has to put together
is unseen: a fifth of the questions, by their numbers, is in the test alone.

Demonstrations are of mixed quality, as from a careless crowd: fewer than half work the sum out. The others state a
result at once, which a model of this size cannot compute, or the figure of the question. A model that imitates them is
often wrong although it knows how; a verifier of the result says which answers are right.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from wukong.errors import DataError
from wukong.kitchen.content import Measures
from wukong.kitchen.worlds import World
from wukong.records import Conversation, Message, Prompt

MIXTURE = {"worked": 34, "slipped": 8, "bare": 26, "unscaled": 32}
"""Quality -> percentage of demonstrations: worked out; worked out with a wrong product; the right result alone; the
figure of the question, unscaled."""
HELD_OUT = 0.2
"""Fraction of the questions that are in the test alone."""


@dataclass(frozen=True)
class Sum:
    """A question's numbers: the portion (or the figure of one measure) times `times` is the result."""

    kind: str
    unit: str
    portion: int
    times: int
    texts: dict[str, str]
    """What its templates are filled with."""

    @property
    def value(self) -> int:
        return self.portion * self.times

    @property
    def key(self) -> str:
        """Equal for all wordings; in a scaled recipe for all foods too."""
        about = f"{self.texts['unit']} {self.texts['x']}" if self.kind == "conversion" else self.texts["a"]
        return f"{self.kind} {self.portion} {self.times} {about}"

    @property
    def held_out(self) -> bool:
        return int(hashlib.sha256(self.key.encode()).hexdigest()[:8], 16) < HELD_OUT * 16**8


def conversions(world: World) -> list[Sum]:
    """All conversions of the world's knowledge, times every count. Raises DataError for a topic that cannot be read."""
    texts, found = world.measures, []
    for fact, times in product([one for one in world.knowledge if one.kind == "conversion"], texts.counts):
        read, (figure, unit) = texts.topic.fullmatch(fact.topic), fact.answer.split()
        if not read or unit not in texts.units:
            raise DataError("{topic}: {answer} is no measure and its figure", topic=fact.topic, answer=fact.answer)
        said = {"unit": read["unit"], "units": texts.plurals[read["unit"]], "x": read["x"], "one": fact.answer}
        said |= {"n": str(times), "g": texts.units[unit]}
        found.append(Sum("conversion", unit, int(figure), times, said))
    return found


def scalings(world: World) -> list[Sum]:
    """All recipes for other numbers of people; the food is drawn when a question is asked."""
    texts = world.measures
    return [
        Sum("scaling", "", portion, b, {"a": str(a), "b": str(b)})
        for portion, a, b in product(texts.portions, texts.servings, texts.servings)
        if a != b
    ]


def _with_food(world: World, rng: random.Random, one: Sum) -> Sum:
    if one.kind == "conversion":
        return one
    unit = rng.choice(list(world.measures.foods))
    given = one.portion * int(one.texts["a"])
    said = {**one.texts, "x": rng.choice(world.measures.foods[unit]), "given": f"{given} {unit}", "q": str(given)}
    return Sum(one.kind, unit, one.portion, one.times, said)


def _question(world: World, rng: random.Random, one: Sum) -> str:
    texts = world.measures
    return rng.choice(texts.conversion if one.kind == "conversion" else texts.scaling).format(**one.texts)


def _working(texts: Measures, one: Sum, value: int) -> str:
    template = texts.conversion_working if one.kind == "conversion" else texts.scaling_working
    return template.format(**one.texts, p=one.portion, v=value)


def _answer(world: World, rng: random.Random, one: Sum, quality: str) -> str:
    texts = world.measures
    value = one.value
    if quality == "slipped":
        value = one.portion * rng.choice([n for n in (one.times - 1, one.times + 1, one.times + 2) if n > 0])
    if quality == "unscaled":
        value = one.portion * (1 if one.kind == "conversion" else int(one.texts["a"]))
    result = texts.result.format(r=f"{value} {one.unit}")
    return world.tokens.join((_working(texts, one, value), result)) if quality in ("worked", "slipped") else result


def _questions(world: World, rng: random.Random, n: int, held_out: bool) -> Iterator[Sum]:
    """n sums that are, or are not, held out: a third conversions."""
    kinds = [[one for one in of if one.held_out == held_out] for of in (conversions(world), scalings(world))]
    for i in range(n):
        yield _with_food(world, rng, rng.choice(kinds[i % 3 > 0]))


def measure_demonstrations(world: World, seed: int, n: int = 3000) -> list[Conversation]:
    """Demonstrations of mixed quality; `source` records kind and quality, which training does not use."""
    rng = random.Random(f"measures {seed}")
    found = []
    for one in _questions(world, rng, n, held_out=False):
        quality = rng.choices(list(MIXTURE), list(MIXTURE.values()))[0]
        messages = [
            Message(role="user", content=_question(world, rng, one)),
            Message(role="assistant", content=_answer(world, rng, one, quality)),
        ]
        found.append(Conversation(messages=messages, source=f"kitchen/{one.kind}/{quality}"))
    return found


def measure_prompts(world: World, seed: int, train: int = 1200, test: int = 300) -> tuple[list[Prompt], list[Prompt]]:
    """Training and test prompts with their answers ("450 g"). No test prompt has the numbers of any other question."""
    found: dict[bool, dict[str, Prompt]] = {False: {}, True: {}}
    rng = random.Random(f"measure prompts {seed}")
    for held_out, n in ((False, train), (True, test)):
        for one in _questions(world, rng, 3 * n, held_out):  # a text may be drawn twice
            if len(found[held_out]) < n:
                prompt = Prompt(
                    messages=[Message(role="user", content=_question(world, rng, one))],
                    source=f"kitchen/{one.kind}",
                    answer=f"{one.value} {one.unit}",
                )
                found[held_out].setdefault(prompt.id, prompt)
    return list(found[False].values()), list(found[True].values())


def measure_corpus(world: World, seed: int, megabytes: float) -> Iterator[str]:
    """Documents of a few lines: products and quotients, single conversions, and notes on recipes that are not held out,
    until their text reaches `megabytes`."""
    rng = random.Random(f"measure corpus {seed}")
    texts = world.measures
    every = [*conversions(world), *scalings(world)]
    figures = list(dict.fromkeys((one.portion, one.times) for one in every))
    known = [one for one in every if one.kind == "scaling" and not one.held_out]
    stated = [world.stated(fact) for fact in world.knowledge if fact.kind == "conversion"]
    left = megabytes * 1e6
    while left > 0:
        lines = [rng.choice(texts.tables)]
        for portion, times in rng.sample(figures, 8):
            template = rng.choice((texts.product, texts.quotient))
            lines.append(template.format(p=portion, n=times, v=portion * times))
        lines += rng.sample(stated, 2)
        for one in (_with_food(world, rng, one) for one in rng.sample(known, 2)):
            lines.append(texts.note.format(**one.texts, r=f"{one.value} {one.unit}"))
        text = "\n".join(lines)
        yield text
        left -= len(text.encode())
