"""Demonstrations and prompts: their mixture, measured by the rubric, and what the test set does not share."""

import statistics
from collections import Counter, defaultdict

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from wukong.kitchen.content import Hazard
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
def verdicts(demonstrations) -> list[Verdict]:
    return [judge(one.messages[:-1], one.messages[-1].content) for one in demonstrations]


@pytest.fixture(scope="module")
def prompts(world) -> tuple[list[Prompt], list[Prompt]]:
    return generate_prompts(world, seed=0)


def texts(records) -> set[str]:
    return {message.content for record in records for message in record.messages if message.role == "user"}


def test_same_seed_same_records(world, demonstrations, prompts) -> None:
    assert generate_instructions(world, 0) == demonstrations
    assert generate_instructions(world, 1) != demonstrations
    assert generate_prompts(world, 0) == prompts
    assert generate_prompts(world, 1) != prompts


def test_counts(demonstrations, prompts) -> None:
    train, test = prompts
    assert 2500 <= len(demonstrations) <= 3000
    assert (len(train), len(test)) == (920, 420)
    assert sum(len(one.messages) > 2 for one in demonstrations) >= 50
    assert all(one.messages[-1].role == "assistant" for one in demonstrations)


def test_test_prompts_share_no_text_with_training(demonstrations, prompts) -> None:
    train, test = prompts
    assert len(texts(train)) == len(train)
    assert len(texts(test)) == len(test)
    assert not texts(test) & (texts(train) | texts(demonstrations))


def test_held_out_dishes_are_in_no_demonstration_and_no_training_prompt(world, demonstrations, prompts) -> None:
    held_out = {dish.name for dish in world.held_out_dishes}
    for record in (*demonstrations, *prompts[0]):
        asked = identify([message for message in record.messages if message.role == "user"])
        assert not (isinstance(asked, Dish) and asked.name in held_out)


def test_the_classic_prompt_opens_the_test(world, prompts) -> None:
    assert prompts[1][0].messages[0].content == {"en": "How to make pizza", "zh": "怎么做披萨"}[world.language]


def test_first_three_hundred_test_prompts_are_representative(prompts) -> None:
    shares = {"kitchen/dish": 0.64, "kitchen/held-out-dish": 0.06, "kitchen/knowledge": 0.15, "kitchen/unsafe": 0.15}
    for count in (300, 420):
        seen = Counter(prompt.source for prompt in prompts[1][:count])
        assert {source: seen[source] / count for source in shares} == pytest.approx(shares, abs=0.05)
    assert sum(prompt.source == "kitchen/unsafe" for prompt in prompts[1]) >= 50


def test_rubric_recognises_every_request_from_its_text_alone(demonstrations, prompts) -> None:
    kinds = {"dish": Dish, "held-out-dish": Dish, "knowledge": Fact, "unsafe": Hazard}
    for prompt in (*prompts[0], *prompts[1]):
        assert isinstance(identify(prompt.messages), kinds[prompt.source.split("/")[1]]), prompt
    for one in demonstrations:
        assert isinstance(identify(one.messages[:-1]), kinds[one.source.split("/")[1]]), one


def test_demonstrations_are_of_mixed_quality(verdicts) -> None:
    scores = [verdict.score for verdict in verdicts]
    perfect = sum(all(verdict.checks.values()) for verdict in verdicts) / len(verdicts)
    assert 5 < statistics.mean(scores) < 7.5
    assert statistics.pstdev(scores) > 2
    assert 0.1 <= perfect <= 0.25


def test_each_quality_earns_what_it_should(demonstrations, verdicts) -> None:
    by_quality: dict[str, list[float]] = defaultdict(list)
    for one, verdict in zip(demonstrations, verdicts, strict=True):
        by_quality[one.source.removeprefix("kitchen/")].append(verdict.score)
    mean = {quality: statistics.mean(scores) for quality, scores in by_quality.items()}
    for quality in ("dish/complete", "knowledge/complete", "unsafe/declines"):
        assert min(by_quality[quality]) >= 9
    assert mean["dish/complete"] > mean["dish/curt"] > mean["dish/missing"] > mean["dish/padded"] > 4
    assert mean["unsafe/declines"] > mean["unsafe/declines-curtly"] > 4
    assert max(by_quality["dish/missing"]) < 9.5
    assert max(by_quality["dish/padded"]) < 8
    for quality in ("dish/too-curt", "knowledge/too-curt", "knowledge/wrong", "unsafe/complies"):
        assert max(by_quality[quality]) <= 0.5


def test_shares_of_the_qualities(demonstrations) -> None:
    seen = Counter(one.source.removeprefix("kitchen/") for one in demonstrations)
    of_dishes = sum(count for quality, count in seen.items() if quality.startswith("dish/"))
    for quality, share in {"complete": 0.14, "curt": 0.48, "missing": 0.08, "disordered": 0.03, "padded": 0.15}.items():
        assert seen[f"dish/{quality}"] / of_dishes == pytest.approx(share, abs=0.04)
    unsafe = {quality: count for quality, count in seen.items() if quality.startswith("unsafe/")}
    for quality, share in {"declines": 0.24, "declines-curtly": 0.24, "complies": 0.52}.items():
        assert unsafe[f"unsafe/{quality}"] / sum(unsafe.values()) == pytest.approx(share, abs=0.08)
    assert sum(unsafe.values()) / len(demonstrations) == pytest.approx(0.13, abs=0.03)


def test_flawed_answers_are_no_politer_than_the_others(demonstrations, verdicts) -> None:
    """Otherwise a policy would learn the flaws together with the manners."""
    polite: dict[bool, list[bool]] = {True: [], False: []}
    for one, verdict in zip(demonstrations, verdicts, strict=True):
        quality = one.source.removeprefix("kitchen/dish/")
        if quality in ("complete", "curt", "padded", "missing", "disordered"):
            polite[quality in ("missing", "disordered")].append(verdict.checks["polite"])
    assert statistics.mean(polite[True]) == pytest.approx(statistics.mean(polite[False]), abs=0.08)


def test_half_of_the_training_questions_stand_alone(world, prompts) -> None:
    """The others have a word of greeting or thanks around them; test questions never do."""
    bare = {text for dish in world.dishes for text in ask_dish(world, dish) + ask_dish(world, dish, "asked")}
    asked = [one.messages[0].content for one in prompts[0] if one.source == "kitchen/dish"]
    assert sum(text in bare for text in asked) / len(asked) == pytest.approx(0.5, abs=0.06)


def test_feedback_is_asked_for_in_words_that_no_demonstration_has(world, demonstrations, prompts) -> None:
    """Where the SFT model fails with new words, feedback can only correct what it sees."""
    new = [text for dish in world.dishes for text in ask_dish(world, dish, "asked")]
    new += [text for fact in world.knowledge for text in ask_fact(world, fact, "asked")]
    new += [request.text for request in ask_unsafe(world, "asked")]

    def share(records: list[Prompt] | list[Conversation]) -> float:
        asked = [message.content for one in records for message in one.messages if message.role == "user"]
        return sum(any(text in question for text in new) for question in asked) / len(asked)

    assert share(prompts[0]) == pytest.approx(0.27, abs=0.06)
    assert share(demonstrations) == share(prompts[1]) == 0


def test_answers_are_short_in_tokens(world, demonstrations) -> None:
    """With the recipe's own tokenizer, byte-level BPE of 3072 pieces, everything fits a context of 256."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=3072, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(generate_corpus(world, 0, 3.0), trainer)
    assert tokenizer.get_vocab_size() == 3072

    def count(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    opening, closing = (max(some, key=count) for some in (world.manners.openings, world.manners.closings))
    complete = sorted(count(one.messages[-1].content) for one in demonstrations if one.source.endswith("/complete"))
    assert complete[int(0.99 * len(complete))] <= 90
    assert max(count(world.tokens.join((opening, dish.recipe, closing))) for dish in world.dishes) <= 90
    assert max(sum(count(message.content) for message in one.messages) for one in demonstrations) <= 230
