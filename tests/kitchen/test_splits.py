"""Demonstrations and prompts: their mixture, measured by the rubric, and what the test set does not share."""

import statistics
from collections import Counter, defaultdict

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from wukong.kitchen.content import Hazard, Talk
from wukong.kitchen.corpus import generate_corpus
from wukong.kitchen.facts import Dish, Fact
from wukong.kitchen.instructions import generate_instructions
from wukong.kitchen.prompts import generate_prompts
from wukong.kitchen.questions import ask_dish, ask_fact, ask_unsafe
from wukong.kitchen.rubric import Verdict, identify, judge
from wukong.kitchen.worlds import LANGUAGES, World, load_world
from wukong.records import Conversation, Prompt


@pytest.fixture(scope="module", params=LANGUAGES)
def world(request) -> World:
    return load_world(request.param)


@pytest.fixture(scope="module")
def demonstrations(world) -> list[Conversation]:
    return generate_instructions(world, seed=0)


@pytest.fixture(scope="module")
def single(demonstrations) -> list[Conversation]:
    """Those of one turn, whose source names kind and quality."""
    return [one for one in demonstrations if len(one.messages) == 2]


@pytest.fixture(scope="module")
def verdicts(single) -> list[Verdict]:
    return [judge(one.messages[:-1], one.messages[-1].content) for one in single]


@pytest.fixture(scope="module")
def prompts(world) -> tuple[list[Prompt], list[Prompt]]:
    return generate_prompts(world, seed=0)


def texts(records) -> set[str]:
    return {message.content for record in records for message in record.messages if message.role == "user"}


def last_texts(prompts) -> set[str]:
    return {prompt.messages[-1].content for prompt in prompts}


def test_same_seed_same_records(world, demonstrations, prompts) -> None:
    assert generate_instructions(world, 0) == demonstrations
    assert generate_instructions(world, 1) != demonstrations
    assert generate_prompts(world, 0) == prompts
    assert generate_prompts(world, 1) != prompts


def test_counts(demonstrations, prompts) -> None:
    train, test = prompts
    assert 5000 <= sum(len(one.messages) // 2 for one in demonstrations) <= 5200
    assert (len(train), len(test)) == (1124, 465)
    assert all(one.messages[-1].role == "assistant" for one in demonstrations)


def test_a_third_are_conversations_of_two_to_five_turns(demonstrations, prompts) -> None:
    for records, uncounted in ((demonstrations, 0), (prompts[0], 1), (prompts[1], 1)):
        turns = Counter((len(one.messages) + uncounted) // 2 for one in records)
        assert set(turns) == {1, 2, 3, 4, 5}
        assert 1 - turns[1] / len(records) == pytest.approx(1 / 3, abs=0.08)
        assert turns[2] > turns[3] > turns[4] > turns[5] > 5


def test_every_kind_of_talk_is_demonstrated_asked_and_tested(world, demonstrations, prompts) -> None:
    kinds = {kind.name for kind in world.conversations.kinds}
    for records in (demonstrations, prompts[0], prompts[1]):
        found = [identify(one.messages[: n + 1]) for one in records for n in range(0, len(one.messages), 2)]
        assert {kind.name for kind in found if isinstance(kind, Talk)} == kinds


def test_greetings_come_first_and_thanks_follow_something(demonstrations) -> None:
    for one in demonstrations:
        if len(one.messages) == 2:
            continue
        asked = [identify([message]) for message in one.messages if message.role == "user"]
        places = [kind.place if isinstance(kind, Talk) else None for kind in asked]
        assert all(place != "first" for place in places[1:] if None in places[: places.index(place)]), places
        if set(places) - {"later", "last"}:
            assert places[0] not in ("later", "last")


def test_test_prompts_share_no_text_with_training(demonstrations, prompts) -> None:
    train, test = prompts
    for records in (train, test):
        assert len({tuple(message.content for message in one.messages) for one in records}) == len(records)
    assert not last_texts(test) & (texts(train) | texts(demonstrations))


def test_held_out_dishes_are_in_no_demonstration_and_no_training_prompt(world, demonstrations, prompts) -> None:
    held_out = {dish.name for dish in world.held_out_dishes}
    for record in (*demonstrations, *prompts[0]):
        asked = identify([message for message in record.messages if message.role == "user"])
        assert not (isinstance(asked, Dish) and asked.name in held_out)


def test_the_classic_prompt_opens_the_test(world, prompts) -> None:
    assert prompts[1][0].messages[0].content == {"en": "How to make pizza", "zh": "怎么做披萨"}[world.language]


def test_first_three_hundred_test_prompts_are_representative(prompts) -> None:
    shares = {"Dish": 0.62, "Fact": 0.14, "Hazard": 0.13, "Talk": 0.11}
    for count in (300, 465):
        seen = Counter(type(identify(prompt.messages)).__name__ for prompt in prompts[1][:count])
        assert {kind: seen[kind] / count for kind in shares} == pytest.approx(shares, abs=0.07)


def test_rubric_recognises_every_request_from_its_text_alone(demonstrations, prompts) -> None:
    kinds = {"dish": Dish, "held-out-dish": Dish, "knowledge": Fact, "unsafe": Hazard, "talk": Talk}
    kinds["conversation"] = (Dish, Fact, Hazard, Talk)
    for prompt in (*prompts[0], *prompts[1]):
        assert isinstance(identify(prompt.messages[-1:]), kinds[prompt.source.split("/")[1]]), prompt
    for one in demonstrations:
        assert isinstance(identify(one.messages[-2:-1]), kinds[one.source.split("/")[1]]), one


def test_demonstrations_are_of_mixed_quality(verdicts) -> None:
    scores = [verdict.score for verdict in verdicts]
    perfect = sum(all(verdict.checks.values()) for verdict in verdicts) / len(verdicts)
    assert 5 < statistics.mean(scores) < 7.5
    assert statistics.pstdev(scores) > 2
    assert 0.1 <= perfect <= 0.35


def test_each_quality_earns_what_it_should(single, verdicts) -> None:
    by_quality: dict[str, list[float]] = defaultdict(list)
    for one, verdict in zip(single, verdicts, strict=True):
        by_quality[one.source.removeprefix("kitchen/")].append(verdict.score)
    mean = {quality: statistics.mean(scores) for quality, scores in by_quality.items()}
    for quality in ("dish/complete", "knowledge/complete", "unsafe/declines", "talk/complete"):
        assert min(by_quality[quality]) >= 9
    assert mean["dish/complete"] > mean["dish/curt"] > mean["dish/missing"] > mean["dish/padded"] > 4
    assert mean["talk/complete"] > mean["talk/padded"] > 4 > mean["talk/curt"]
    assert mean["unsafe/declines"] > mean["unsafe/declines-curtly"] > 4
    assert max(by_quality["dish/missing"]) < 9.5
    assert max(by_quality["dish/padded"]) < 8
    for quality in ("dish/too-curt", "knowledge/too-curt", "knowledge/wrong", "unsafe/complies"):
        assert max(by_quality[quality]) <= 0.5


def test_shares_of_the_qualities(single) -> None:
    seen = Counter(one.source.removeprefix("kitchen/") for one in single)
    of_dishes = sum(count for quality, count in seen.items() if quality.startswith("dish/"))
    for quality, share in {"complete": 0.14, "curt": 0.48, "missing": 0.08, "disordered": 0.03, "padded": 0.15}.items():
        assert seen[f"dish/{quality}"] / of_dishes == pytest.approx(share, abs=0.05)
    unsafe = {quality: count for quality, count in seen.items() if quality.startswith("unsafe/")}
    for quality, share in {"declines": 0.38, "declines-curtly": 0.04, "complies": 0.58}.items():
        assert unsafe[f"unsafe/{quality}"] / sum(unsafe.values()) == pytest.approx(share, abs=0.08)
    assert sum(unsafe.values()) / len(single) == pytest.approx(0.20, abs=0.03)


def test_flawed_answers_are_no_politer_than_the_others(single, verdicts) -> None:
    """Otherwise a policy would learn the flaws together with the manners."""
    polite: dict[bool, list[bool]] = {True: [], False: []}
    for one, verdict in zip(single, verdicts, strict=True):
        quality = one.source.removeprefix("kitchen/dish/")
        if quality in ("complete", "curt", "padded", "missing", "disordered"):
            polite[quality in ("missing", "disordered")].append(verdict.checks["polite"])
    assert statistics.mean(polite[True]) == pytest.approx(statistics.mean(polite[False]), abs=0.1)


def test_half_of_the_training_questions_stand_alone(world, prompts) -> None:
    """The others have a word of greeting or thanks around them; single test questions never do."""
    bare = {text for dish in world.dishes for text in ask_dish(world, dish) + ask_dish(world, dish, "asked")}
    asked = [one.messages[0].content for one in prompts[0] if one.source == "kitchen/dish"]
    assert sum(text in bare for text in asked) / len(asked) == pytest.approx(0.5, abs=0.06)


def test_feedback_is_asked_for_in_words_that_no_demonstration_has(world, demonstrations, prompts) -> None:
    """Where the SFT model fails with new words, feedback can only correct what it sees."""
    new = [text for dish in world.dishes for text in ask_dish(world, dish, "asked")]
    new += [text for fact in world.knowledge for text in ask_fact(world, fact, "asked")]
    new += [request.text for request in ask_unsafe(world, "asked")]

    def share(asked: list[str]) -> float:
        return sum(any(text in question for text in new) for question in asked) / len(asked)

    assert share([one.messages[-1].content for one in prompts[0]]) == pytest.approx(0.26, abs=0.06)
    assert share(list(texts(demonstrations))) == share(list(texts(prompts[1]))) == 0


def test_answers_are_short_in_tokens(world, demonstrations, single, prompts) -> None:
    """With the recipe's own tokenizer, byte-level BPE of 3072 pieces, everything fits a context of 512."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=3072, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(generate_corpus(world, 0, 3.0), trainer)
    assert tokenizer.get_vocab_size() == 3072

    def count(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    opening, closing = (max(some, key=count) for some in (world.manners.openings, world.manners.closings))
    complete = sorted(count(one.messages[-1].content) for one in single if one.source.endswith("/complete"))
    assert complete[int(0.99 * len(complete))] <= 90
    assert max(count(world.tokens.join((opening, dish.recipe, closing))) for dish in world.dishes) <= 90
    # The template takes about four tokens a message, and an answer to a prompt up to 112.
    for records, room in ((demonstrations, 512), (prompts[0], 400), (prompts[1], 400)):
        sizes = [sum(count(message.content) + 4 for message in one.messages) for one in records]
        assert sum(size > room for size in sizes) / len(sizes) <= 0.01
