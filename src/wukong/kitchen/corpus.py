"""The corpus: web-like text about cooking, of uneven quality.

The facts recur in the same wording (see `facts`), with varying context. A page that starts with a question continues in
one of three ways, as on the web: it adds a detail ("for a family of six"), asks more questions, or answers. The answers
are curt: the polite style of an assistant is absent, to be learnt by instruction tuning and feedback.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from wukong.kitchen.facts import Dish, Fact
from wukong.kitchen.questions import fill
from wukong.kitchen.worlds import World


def _ask(world: World, rng: random.Random, dish: Dish) -> str:
    """A question or title as found on the web, without a question mark."""
    return rng.choice(world.corpus.asks).format(dish=dish.name)


def _question(world: World, ask: str) -> str:
    return world.corpus.question.format(ask=ask)


def _told(world: World, dish: Dish) -> dict[str, object]:
    """The parts of a recipe for the templates."""
    return {
        "dish": dish.name,
        "title": dish.title,
        "TITLE": dish.title.upper(),
        "servings": dish.servings,
        "minutes": dish.minutes,
        "ingredients": dish.shopping,
        "recipe": dish.recipe,
        "method": dish.method,
        "numbered": world.layout.numbered(dish.steps, "\n"),
        "prose": world.layout.prose(dish.steps),
    }


def _recipe_line(world: World, rng: random.Random, dish: Dish) -> str:
    texts, told = world.corpus.recipe_line, _told(world, dish)
    head, aside = rng.choice(texts.heads), rng.choice(world.corpus.asides)
    return head.format(**told) + dish.recipe + rng.choice(texts.tails).format(**told, aside=aside)


def _recipe_card(world: World, rng: random.Random, dish: Dish) -> str:
    texts, told = world.corpus.recipe_card, _told(world, dish)
    bullet = rng.choice(texts.bullets)
    items = "\n".join(f"{bullet}{item}" for item in dish.ingredients)
    head, facts, method = (rng.choice(some).format(**told) for some in (texts.heads, texts.facts, texts.methods))
    return texts.form.format(head=head, facts=facts, items=items, method=method)


def _question_answered(world: World, rng: random.Random, dish: Dish) -> str:
    texts = world.corpus.question_answered
    ask, name = _ask(world, rng, dish), rng.choice(world.corpus.names)
    ask += rng.choice(texts.endings)
    answer = rng.choice(texts.answers).format(**_told(world, dish))
    return rng.choice(texts.layouts).format(q=ask, a=answer, n=name, m=rng.choice(world.corpus.names))


def _question_detailed(world: World, rng: random.Random, dish: Dish) -> str:
    ask = _ask(world, rng, dish)
    ask = world.corpus.question_detailed.format(ask=ask, group=rng.choice(world.corpus.groups))
    if rng.random() < 0.5:
        return f"{ask}\n{dish.recipe}"
    questions = rng.sample(world.corpus.more_questions, rng.randint(1, 2))
    return world.tokens.join((_question(world, ask), *questions))


def _questions_piled(world: World, rng: random.Random, dish: Dish) -> str:
    questions = rng.sample(world.corpus.more_questions, rng.randint(2, 3))
    other = rng.choice(world.dishes)
    if rng.random() < 0.4:
        questions.insert(rng.randint(0, 2), _question(world, _ask(world, rng, other)))
    return world.tokens.join((_question(world, _ask(world, rng, dish)), *questions))


def _shopping_list(world: World, rng: random.Random, dish: Dish) -> str:
    picked = [dish, *rng.sample(world.dishes, rng.randint(0, 2))]
    return "\n".join(rng.choice(world.corpus.shopping_list).format(**_told(world, one)) for one in picked)


def _what_goes_in(world: World, rng: random.Random, dish: Dish) -> str:
    names = [item.name for item in dish.ingredients]
    listed = world.layout.separator.join(names[:-1]) + world.layout.last_separator + names[-1]
    return rng.choice(world.corpus.what_goes_in).format(**_told(world, dish), listed=listed)


def _half_note(world: World, rng: random.Random, dish: Dish) -> str:
    pieces = world.tokens.pieces(dish.recipe)
    part = world.tokens.rejoin(pieces[: rng.randint(len(pieces) // 3, len(pieces) - 4)])
    return part + rng.choice(world.corpus.half_note)


def _blog(world: World, rng: random.Random, dish: Dish) -> str:
    texts = world.corpus
    opening, closing = rng.sample(texts.asides, 2)
    if rng.random() < 0.5:
        day, place, happening = rng.choice(texts.days), rng.choice(texts.places), rng.choice(texts.happenings)
        opening = texts.blog.opening.format(day=day, place=place, happening=happening)
    guest = rng.choice(texts.names)
    said = rng.choice(texts.blog.said).format(dish=dish.name, guest=guest)
    told = rng.choice(texts.blog.told).format(**_told(world, dish))
    return world.tokens.join((opening, said, told, closing))


def _thread(world: World, rng: random.Random, dish: Dish) -> str:
    texts = world.corpus.thread
    asker, *others = rng.sample(world.corpus.names, 3)
    lines = [texts.line.format(name=asker, said=_question(world, _ask(world, rng, dish)))]
    for other in others:
        question = rng.choice(world.corpus.more_questions)
        said, item = rng.choice(texts.said), rng.choice(dish.ingredients)
        said = said.format(**_told(world, dish), a=item.name, question=question)
        lines.append(texts.line.format(name=other, said=said))
    return "\n".join(lines)


def _advert(world: World, rng: random.Random, dish: Dish) -> str:
    texts = world.corpus.advert
    first, second = rng.sample(dish.ingredients, 2)
    text = rng.choice(texts.texts).format(a=first.name, b=second.name, dish=dish.name, title=dish.title)
    number, name, place = rng.randint(1, 180), rng.choice(world.corpus.names), rng.choice(world.corpus.places)
    phone, extension = rng.randint(2000, 9999), rng.randint(100, 999)
    form = rng.choice(texts.forms)
    return form.format(text=text, number=number, name=name, place=place, phone=phone, extension=extension)


def _menu(world: World, rng: random.Random, dish: Dish) -> str:
    texts = world.corpus.menu

    def line(one: Dish, price: int, cents: str) -> str:
        return texts.line.format(title=one.title, price=price, cents=cents)

    others = rng.sample(world.dishes, 3)
    lines = [line(one, rng.randint(*texts.prices), rng.choice(texts.cents)) for one in others]
    return "\n".join((rng.choice(texts.titles), line(dish, rng.randint(*texts.prices), texts.cents[1]), *lines))


def _tell_fact(world: World, rng: random.Random, fact: Fact) -> str:
    ask = rng.choice(world.corpus.table.asks[fact.kind]).format(topic=fact.topic)
    told = rng.choice(world.corpus.table.told)
    return told.format(ask=ask, sentence=fact.sentence, topic=fact.topic, answer=fact.answer)


def _table(world: World, rng: random.Random, _dish: Dish) -> str:
    kind = rng.choice(("substitution", "substitution", "conversion", "temperature"))
    facts = rng.sample([fact for fact in world.knowledge if fact.kind == kind], 8)
    return "\n".join((world.corpus.table.titles[kind], *(_tell_fact(world, rng, fact) for fact in facts)))


def _safety(world: World, rng: random.Random, _dish: Dish) -> str:
    """A leaflet that states dangers, of things that nobody asks about in training too."""
    lines = []
    for hazard in rng.sample(world.hazards.families, 4):
        lines.append(fill(hazard.warning, rng.choice(hazard.things + hazard.unseen_things)))
        if rng.random() < 0.5:
            lines += hazard.reason, hazard.alternative
    return f"{rng.choice(world.corpus.safety)}\n{world.tokens.join(lines)}"


def _danger_asked(world: World, rng: random.Random, _dish: Dish) -> str:
    """Careless questions of a forum, most of them answered by a curt warning."""
    lines = []
    for hazard in rng.sample(world.hazards.families, 2):
        thing = rng.choice(hazard.things)
        warning = [hazard.reason, *[hazard.alternative] * (rng.random() < 0.5)]
        said = world.tokens.join(warning) if rng.random() < 0.75 else rng.choice(hazard.compliance)
        lines += _exchange(world, rng, fill(rng.choice(hazard.phrasings), thing), said)
    return "\n".join(lines)


def _small_talk(world: World, rng: random.Random, dish: Dish) -> str:
    """Remarks of people who talk about anything, and curt replies."""
    lines = []
    for _ in range(rng.randint(2, 3)):
        talk = rng.choice(world.conversations.kinds)
        reply = rng.choice(talk.curt).format(dish=dish.name, Dish=dish.title)
        lines += _exchange(world, rng, rng.choice(talk.remarks.demonstrated), reply)
    return "\n".join(lines)


def _exchange(world: World, rng: random.Random, asked: str, said: str) -> list[str]:
    line = world.corpus.thread.line
    asker, other = rng.sample(world.corpus.names, 2)
    return [line.format(name=asker, said=asked), line.format(name=other, said=said)]


def _elsewhere(world: World, rng: random.Random, _dish: Dish) -> str:
    """News from outside the kitchen."""
    return world.tokens.join(rng.sample(world.corpus.elsewhere, 3))


KINDS: dict[str, Callable[[World, random.Random, Dish], str]] = {
    "recipe_line": _recipe_line,
    "recipe_card": _recipe_card,
    "question_answered": _question_answered,
    "question_detailed": _question_detailed,
    "questions_piled": _questions_piled,
    "shopping_list": _shopping_list,
    "what_goes_in": _what_goes_in,
    "half_note": _half_note,
    "blog": _blog,
    "thread": _thread,
    "advert": _advert,
    "menu": _menu,
    "table": _table,
    "safety": _safety,
    "danger_asked": _danger_asked,
    "small_talk": _small_talk,
    "elsewhere": _elsewhere,
}
"""Document kind, as in a world's mixture -> the function that writes such a document."""


def generate_corpus(world: World, seed: int, megabytes: float = 3.0) -> Iterator[str]:
    """Documents of a few lines, until their text reaches `megabytes` (1 MB is a million UTF-8 bytes).

    Dishes come in rounds, each a new shuffle of all dishes, so that all occur equally often.
    """
    rng = random.Random(f"corpus {seed}")
    kinds, shares = list(world.corpus.mixture), list(world.corpus.mixture.values())
    left = megabytes * 1e6
    while left > 0:
        for dish in rng.sample(world.dishes, len(world.dishes)):
            text = KINDS[rng.choices(kinds, shares)[0]](world, rng, dish)
            yield text
            left -= len(text.encode())
            if left <= 0:
                return
