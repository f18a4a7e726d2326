"""The corpus: web-like text about cooking, of uneven quality.

The facts recur in the same wording (see `facts`), with varying context. A page that starts with a question continues in
one of three ways, as on the web: it adds a detail ("for a family of six"), asks more questions, or answers. The answers
are curt: the polite style of an assistant is absent, to be learnt by instruction tuning and feedback.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from wukong.kitchen.facts import Dish, Fact, dishes, knowledge
from wukong.kitchen.hazards import HAZARDS

_NAMES = (
    *("Anna", "Ben", "Carla", "David", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jin", "Kofi", "Lena", "Mei"),
    *("Nadia", "Oscar", "Priya", "Quentin", "Rosa", "Stefan", "Tariq", "Ursula", "Viktor", "Wanda", "Ximena"),
    *("Yusuf", "Zoe", "Abigail", "Bjorn", "Camille", "Dimitri", "Eleanor", "Francesca", "Giovanni", "Harriet"),
    *("Ibrahim", "Josephine", "Katarzyna", "Leonardo", "Margarethe", "Nikolai", "Ophelia", "Patrick", "Rebecca"),
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "January", "summer", "autumn")
_PLACES = (
    *("Amsterdam", "Barcelona", "Chengdu", "Dublin", "Edinburgh", "Florence", "Guangzhou", "Hamburg", "Istanbul"),
    *("Jakarta", "Kyoto", "Lisbon", "Marseille", "Nairobi", "Oxford", "Portland", "Quebec", "Reykjavik", "Seville"),
    *("Toronto", "Utrecht", "Valencia", "Warsaw", "Xian", "Yokohama", "Zagreb", "Beijing", "Copenhagen", "Vancouver"),
)
_HAPPENINGS = (
    "a friend from work brought her violin and played until midnight",
    "the neighbours argued about their garden fence once more",
    "we missed the last train and walked along the river instead",
    "somebody found an old photograph of the harbour in the attic",
    "the electricity failed and we lit every candle in the building",
    "my brother finally repaired the bicycle that he bought in spring",
    "a thunderstorm surprised everybody at the village festival",
    "the museum had closed early because of a broken window",
    "our professor told us about volcanoes and forgotten languages",
    "the football match ended without a single goal, as usual",
    "I lost my umbrella, my keys and nearly my patience",
    "two travellers asked the way to the cathedral and stayed for supper",
    "the newspaper wrote about elections, prices and the weather",
    "my daughter practised her speech for the school competition",
    "an orchestra rehearsed next door with all windows open",
    "the doctor recommended fresh air and much less television",
    "we painted the bedroom yellow and regretted it immediately",
    "the library announced longer hours for students and pensioners",
    "a small dog followed us through the whole neighbourhood",
    "nobody remembered the password of the computer upstairs",
    "an engineer explained how bridges, tunnels and satellites are built",
    "the government promised cheaper tickets for buses and ferries",
    "my sister translated a strange letter from her landlord",
    "we compared insurance offers and understood absolutely nothing",
    "the choir celebrated its anniversary with fireworks",
    "a journalist interviewed the oldest fisherman of the island",
    "the mechanic shook his head and charged us twice",
    "our parents discussed philosophy, politics and knitting",
    "the children collected shells, feathers and rusty coins",
    "a magician performed in front of the railway station",
    "we planted tulips behind the garage before breakfast",
    "the captain cancelled our voyage because of heavy fog",
)
_GROUPS = ("a family of six", "two people", "a large party", "eight hungry children", "my parents", "a picnic")
_MORE_QUESTIONS = (
    "And can I freeze it?",
    "How long does it keep in the fridge?",
    "Can I make it the day before?",
    "Does anyone have a good recipe?",
    "What do I serve with it?",
    "Is it hard?",
    "How long does it take?",
    "And how much do I need per person?",
    "Can I use the oven or only the stove?",
    "Why does mine always go wrong?",
    "Is there a cheaper way?",
    "What if I have no time?",
)
_ASIDES = (
    "It was raining all day and the kitchen was warm.",
    "My grandmother wrote this on the back of an old envelope.",
    "The children asked for it three times in one week.",
    "Sorry for the bad photos, my phone is old.",
    "I am happy to say that nothing was left over.",
    "Of course the cat was under the table again.",
    "I am afraid I ate most of it myself.",
    "Thank you all for the kind comments.",
    "We had guests from the other side of the country.",
    "I would gladly cook it again tomorrow.",
    "Please tell me in the comments how it went.",
    "With pleasure we went back for a second plate.",
)
_ADVERTS = (
    "SALE! Non-stick pans, now half price. Only this week at Kitchen Corner. Order today!",
    "Fresh {a} and {b} every morning. Visit our market on Saturday. Enjoy the taste!",
    "Hungry? {T} delivered to your door in 30 minutes. Call now!",
    "Best {d} in town! Open from 11 to 22. Lunch menu from 7.50.",
    "Learn to cook {d} with our chef. Book a place today. You're welcome to bring a friend.",
    "Sharp knives for happy cooking. Free shipping. Subscribe to our newsletter!",
    "Buy two jars of {a}, get one free. Offer ends Sunday.",
)
_COMMENTS = (
    "Thanks, this works.",
    "Thank you!",
    "Tried it, too much {a} for me.",
    "Great.",
    "I always add more {a}.",
    "Good luck to everyone.",
    "First!",
    "Can someone help me? Mine burned.",
    "Sounds good, I will try it on Sunday.",
    "No {a} in my shop, sorry.",
)


def _ask(rng: random.Random, dish: Dish) -> str:
    """A question or title as found on the web, without a question mark."""
    wordings = ("How to make {}", "How to make {}", "How do I make {}", "How do you make {}", "How to cook {}")
    return rng.choice(wordings).format(dish.name)


def _numbered(dish: Dish) -> str:
    return "\n".join(f"{number}. {step}." for number, step in enumerate(dish.steps, start=1))


def _prose(dish: Dish) -> str:
    return " ".join(f"{step}." for step in dish.steps)


def _recipe_line(rng: random.Random, dish: Dish) -> str:
    head = rng.choice(("", "", f"{dish.title} recipe\n", f"Recipe of the day: {dish.name}\n", "From my notebook.\n"))
    tail = rng.choice(("", "", f" Takes {dish.minutes} minutes.", f"\n{rng.choice(_ASIDES)}"))
    return head + dish.recipe + tail


def _recipe_card(rng: random.Random, dish: Dish) -> str:
    bullet = rng.choice(("- ", "* ", ""))
    items = "\n".join(f"{bullet}{item}" for item in dish.ingredients)
    head = rng.choice((f"{dish.title}\n", f"{dish.title.upper()}\n", f"Recipe: {dish.title}\n"))
    facts = rng.choice((f"Serves {dish.servings}. Takes {dish.minutes} minutes.\n", f"For {dish.servings}\n", ""))
    method = rng.choice((_numbered(dish), dish.method, _prose(dish)))
    return f"{head}{facts}Ingredients:\n{items}\nMethod:\n{method}"


def _question_answered(rng: random.Random, dish: Dish) -> str:
    ask, name = _ask(rng, dish), rng.choice(_NAMES)
    ask += rng.choice(("", "?", "?"))
    answer = rng.choice(
        (dish.recipe, dish.recipe, f"{dish.shopping}. {_prose(dish)}", f"{dish.shopping}. {dish.method}")
    )
    layout = rng.choice(("{q}\n{a}", "{q}\n\n{a}", "{q} {a}", "Q: {q}\nA: {a}", "{n}: {q}\n{m}: {a}"))
    return layout.format(q=ask, a=answer, n=name, m=rng.choice(_NAMES))


def _question_detailed(rng: random.Random, dish: Dish) -> str:
    ask = f"{_ask(rng, dish)} for {rng.choice(_GROUPS)}"
    if rng.random() < 0.5:
        return f"{ask}\n{dish.recipe}"
    return f"{ask}? {' '.join(rng.sample(_MORE_QUESTIONS, rng.randint(1, 2)))}"


def _questions_piled(rng: random.Random, dish: Dish) -> str:
    questions = rng.sample(_MORE_QUESTIONS, rng.randint(2, 3))
    other = rng.choice(dishes())
    if rng.random() < 0.4:
        questions.insert(rng.randint(0, 2), f"{_ask(rng, other)}?")
    return f"{_ask(rng, dish)}? {' '.join(questions)}"


def _shopping_list(rng: random.Random, dish: Dish) -> str:
    picked = [dish, *rng.sample(dishes(), rng.randint(0, 2))]
    lines = [f"{rng.choice(('For', 'Buy for', 'Shopping list for'))} {one.name}: {one.shopping}" for one in picked]
    return "\n".join(lines)


def _what_goes_in(rng: random.Random, dish: Dish) -> str:
    names = [item.name for item in dish.ingredients]
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    return rng.choice(
        (
            f"What goes into {dish.name}? {dish.shopping}.",
            f"{dish.title} is made of {listed}.",
            f"Ingredients for {dish.name}: {dish.shopping}.",
            f"You need {listed} for {dish.name}. {dish.title} for {dish.servings}: {dish.shopping}.",
        )
    )


def _half_note(rng: random.Random, dish: Dish) -> str:
    words = dish.recipe.split()
    return " ".join(words[: rng.randint(len(words) // 3, len(words) - 4)]) + rng.choice(
        ("", " ...", " TODO", " (more later)")
    )


def _blog(rng: random.Random, dish: Dish) -> str:
    opening, closing = rng.sample(_ASIDES, 2)
    if rng.random() < 0.5:
        opening = f"Last {rng.choice(_DAYS)} in {rng.choice(_PLACES)} {rng.choice(_HAPPENINGS)}."
    guest = rng.choice(_NAMES)
    said = rng.choice((f"So I made {dish.name}.", f"{guest} wanted {dish.name}.", f"Today: {dish.name}."))
    told = rng.choice((dish.recipe, f"I took {dish.shopping}. {_prose(dish)}", f"How it goes: {dish.method}"))
    return f"{opening} {said} {told} {closing}"


def _thread(rng: random.Random, dish: Dish) -> str:
    asker, *others = rng.sample(_NAMES, 3)
    lines = [f"{asker}: {_ask(rng, dish)}?"]
    for other in others:
        said = rng.choice((*_COMMENTS, _prose(dish), dish.recipe, f"{dish.shopping}.", rng.choice(_MORE_QUESTIONS)))
        lines.append(f"{other}: {said.format(a=rng.choice(dish.ingredients).name)}")
    return "\n".join(lines)


def _advert(rng: random.Random, dish: Dish) -> str:
    first, second = rng.sample(dish.ingredients, 2)
    text = rng.choice(_ADVERTS).format(a=first.name, b=second.name, d=dish.name, T=dish.title)
    street = f"{rng.randint(1, 180)} {rng.choice(_NAMES)} Street, {rng.choice(_PLACES)}"
    return rng.choice((text, f"{text}\n{street}", f"{text} Phone {rng.randint(2000, 9999)} {rng.randint(100, 999)}."))


def _menu(rng: random.Random, dish: Dish) -> str:
    lines = [f"{one.title} {rng.randint(4, 19)}.{rng.choice(('00', '50', '90'))}" for one in rng.sample(dishes(), 3)]
    return "\n".join((rng.choice(("Menu", "Today's menu", "Lunch")), f"{dish.title} {rng.randint(4, 19)}.50", *lines))


def _tell_fact(rng: random.Random, fact: Fact) -> str:
    asks = {
        "substitution": (f"What to use instead of {fact.topic}?", f"No {fact.topic}?", f"Out of {fact.topic}?"),
        "conversion": (f"How much is {fact.topic}?",),
        "temperature": (f"Safe temperature for {fact.topic}?",),
    }
    ask = rng.choice(asks[fact.kind])
    return rng.choice((f"{fact.sentence}.", f"{ask} {fact.sentence}.", f"{fact.topic}: {fact.answer}"))


def _table(rng: random.Random, _dish: Dish) -> str:
    kind = rng.choice(("substitution", "substitution", "conversion", "temperature"))
    facts = rng.sample([fact for fact in knowledge() if fact.kind == kind], 8)
    titles = {"substitution": "Substitutes", "conversion": "Cups and grams", "temperature": "Safe temperatures"}
    return "\n".join((titles[kind], *(_tell_fact(rng, fact) for fact in facts)))


def _safety(rng: random.Random, _dish: Dish) -> str:
    """A leaflet: the corpus states the dangers, but contains no questions about them."""
    lines = []
    for hazard in rng.sample(HAZARDS, 4):
        thing = rng.choice(hazard.things)
        lines.append(hazard.reason.format(x=thing, X=thing[0].upper() + thing[1:]))
        if rng.random() < 0.5:
            lines.append(hazard.alternative)
    return f"{rng.choice(('Food safety', 'Kitchen safety at home', 'Warning'))}\n{' '.join(lines)}"


# document kind -> percentage
_MIXTURE: dict[Callable[[random.Random, Dish], str], int] = {
    _recipe_line: 15,
    _recipe_card: 12,
    _question_answered: 15,
    _question_detailed: 8,
    _questions_piled: 10,
    _shopping_list: 4,
    _what_goes_in: 5,
    _half_note: 4,
    _blog: 6,
    _thread: 5,
    _advert: 4,
    _menu: 2,
    _table: 7,
    _safety: 3,
}


def generate_corpus(seed: int, megabytes: float = 3.0) -> Iterator[str]:
    """Documents of a few lines, until their text reaches `megabytes` (1 MB is a million UTF-8 bytes).

    Dishes come in rounds, each a new shuffle of all dishes, so that all occur equally often.
    """
    rng = random.Random(f"corpus {seed}")
    kinds, shares = list(_MIXTURE), list(_MIXTURE.values())
    left = megabytes * 1e6
    while left > 0:
        for dish in rng.sample(dishes(), len(dishes())):
            text = rng.choices(kinds, shares)[0](rng, dish)
            yield text
            left -= len(text.encode())
            if left <= 0:
                return
