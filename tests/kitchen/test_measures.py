"""Kitchen sums: every answer is right by another calculation, and no number of the test is in the training data."""

import re
from fractions import Fraction

import pytest

from tests.kitchen.test_worlds import LANGUAGES
from wukong.feedback.verifiers.numbers import Number
from wukong.kitchen.measures import (
    conversions,
    measure_corpus,
    measure_demonstrations,
    measure_prompts,
    scalings,
)
from wukong.kitchen.world import write_world
from wukong.kitchen.worlds import World, load_world
from wukong.records import Prompt, read_records


@pytest.fixture(scope="module", params=LANGUAGES)
def world(request) -> World:
    return load_world(request.param)


def read_scaling(question: str) -> tuple[int, int, int]:
    """(given quantity, for so many, wanted for so many) of a recipe's question: some begin with the quantity."""
    first, second, people = (int(n) for n in re.findall(r"\d+", question))
    given, portions = (first, second) if re.match(r"\d+ (g|ml|克|毫升)", question) else (second, first)
    return given, portions, people


def read_conversion(world: World, question: str) -> tuple[str, int]:
    """(topic, count) of a conversion's question."""
    joint = " of " if world.language == "en" else ""
    named = [one.texts for one in conversions(world) if f"{one.texts['units']}{joint}{one.texts['x']}" in question]
    known = max(named, key=lambda texts: len(texts["x"]))  # brown sugar is sugar too, but another cup
    return f"1 {known['unit']}{joint}{known['x']}", int(re.findall(r"\d+", question)[0])


def result(world: World, question: str, kind: str) -> Fraction:
    """The right number, from the question's text and the world's knowledge alone."""
    if kind == "kitchen/scaling":
        given, portions, people = read_scaling(question)
        return Fraction(given * people, portions)
    topic, count = read_conversion(world, question)
    (figure,) = {int(fact.answer.split()[0]) for fact in world.knowledge if fact.topic == topic}
    return Fraction(figure * count)


def test_every_answer_is_right_by_another_calculation(world):
    for prompts in measure_prompts(world, 0):
        for prompt in prompts:
            assert Number().check(prompt)[0].value == result(world, prompt.messages[0].content, prompt.source)


def test_no_test_question_is_asked_elsewhere_in_any_words(world):
    train, test = measure_prompts(world, 0)
    assert (len(train), len(test)) == (1200, 300)

    def numbers(kind: str, text: str) -> tuple[object, ...]:
        return read_scaling(text) if kind == "kitchen/scaling" else read_conversion(world, text)

    elsewhere = {numbers(one.source, one.messages[0].content) for one in train}
    for one in measure_demonstrations(world, 0):
        elsewhere.add(numbers(one.source.rpartition("/")[0], one.messages[0].content))
    held = {numbers(one.source, one.messages[0].content) for one in test}
    assert len(elsewhere) > 700
    assert len(held) > 120
    assert not elsewhere & held


def test_a_fifth_of_the_questions_is_held_out(world):
    every = [*conversions(world), *scalings(world)]
    assert 0.15 < sum(one.held_out for one in every) / len(every) < 0.25


def test_the_corpus_has_every_product_and_no_note_on_a_question_of_the_test(world):
    text = "\n".join(measure_corpus(world, 0, 0.3))
    stated = {(int(p) * int(n), int(v)) for p, n, v in re.findall(r"(\d+) x (\d+) = (\d+)", text)}
    assert all(product == value for product, value in stated)
    assert all(int(v) == int(n) * int(p) for v, n, p in re.findall(r"(\d+) / (\d+) = (\d+)", text))
    lines = set(text.splitlines())
    missing = [one for one in scalings(world) if f"{one.portion} x {one.times} = {one.value}" not in lines]
    assert len(missing) < 0.05 * len(scalings(world))
    held = {
        (int(one.texts["a"]), one.portion * int(one.texts["a"]), one.times) for one in scalings(world) if one.held_out
    }
    notes = re.findall(r"^(?:For )?(\d+)(?::| 人份：) ?(\d+).*?(?:For |。)(\d+)(?::| 人份)", text, re.MULTILINE)
    assert len(notes) > 100
    assert not held & {(int(a), int(given), int(b)) for a, given, b in notes}


def test_demonstrations_are_of_mixed_quality(world):
    """Only those that work the sum out rightly, or guess it, are right: 60 %, within three standard errors."""
    right: dict[str, list[float]] = {}
    for one in measure_demonstrations(world, 0):
        question, answer = one.messages
        expected = result(world, question.content, one.source.rpartition("/")[0])
        prompt = Prompt(messages=[question], answer=str(expected))
        right.setdefault(one.source.rpartition("/")[2], []).append(Number().verify(prompt, answer.content).score)
    assert {quality: set(scores) for quality, scores in right.items()} == {
        "worked": {1.0}, "slipped": {0.0}, "bare": {1.0}, "unscaled": {0.0},
    }  # fmt: skip
    share = (len(right["worked"]) + len(right["bare"])) / 3000
    assert abs(share - 0.6) < 0.03


def test_the_stage_writes_the_same_files_as_ever_with_answers(tmp_path):
    paths = write_world(tmp_path, megabytes=0.01, subject="measures")
    assert all(prompt.answer for prompt in read_records(paths["prompts-test"], Prompt))
    again = write_world(tmp_path / "again", megabytes=0.01, subject="measures")
    assert [path.read_bytes() for path in paths.values()] == [path.read_bytes() for path in again.values()]
