"""The verifier `number`: hard cases by hand, properties, and every record of GSM8K."""

import gzip
import json
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.feedback.verifiers.asked import asked
from wukong.errors import DataError
from wukong.feedback.verifiers.numbers import Number, final_quantity, quantities


def score(answer: str, response: str, **columns) -> float:
    return Number().verify(asked(answer, **columns), response).score


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        ("42", "The answer is 42."),
        ("42", "x = 6 * 7 = 42"),
        ("42", "First 7, then 6, and so 42"),
        ("42", "The answer is 42. I checked it 3 times."),
        ("42", "The answer is 6 x 7 = 42."),
        ("42", "<think>maybe 41</think> #### 42\nDone in 3 steps"),
        ("42", r"Hence \boxed{42}, as 2 x 21 is 42"),
        ("42", r"Hence \boxed{x = 42}."),
        ("#### 42", "42"),
        ("2 x 21 = <<2*21=42>>42\n#### 42", "42.0"),
        ("1234", "1,234"),
        ("1,234,567.5", "1234567.50"),
        ("1234567", "1\u202f234\u00a0567"),
        ("1234", "$1,234.00"),
        ("-5", "-$5"),
        ("-5", "$-5"),
        ("-5", "The answer is \u22125"),
        ("-5", "答案是-5。"),
        ("5", "10-5"),  # a difference, or a range, has no sign
        ("0.5", "1/2"),
        ("0.5", "½ cup"),
        ("1.5", "1 1/2 cups"),
        ("1.5", "1½"),
        ("1.5", "one half is .5, so 1.5"),
        ("0.5", r"\boxed{\frac{1}{2}}"),
        ("0.5", r"\boxed{\dfrac12}"),
        ("-0.5", r"\boxed{-\frac{1}{2}}"),
        ("2.5", r"2\tfrac{1}{2}"),
        ("1200", "1.2e3"),
        ("1200", "1.2 x 10^3"),
        ("1200", r"1.2 \times 10^{3}"),
        ("50%", "50 percent"),
        ("50%", "0.5"),
        ("50", "50%"),
        ("0.5", "50 %"),
        ("450 g", "450 g."),
        ("450 g", "0.45 kg"),
        ("450 g", "450"),
        ("450 克", "一共 450 克。"),
        ("90 minutes", "1.5 hours"),
        ("8", "8 cups"),
        ("12", "１２"),
        ("0.3333333", "1/3"),
        ("10", "10.4"),
    ],
)
def test_a_right_number_is_right_in_any_form(answer, response):
    columns = {"tolerance": 0.5} if response == "10.4" else {}
    assert score(answer, response, **columns) == 1


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        ("42", ""),
        ("42", "forty-two"),
        ("42", "42 or 43"),
        ("42", "####"),
        ("42", r"42 is \boxed{}"),
        ("42", r"\boxed{41} and not 42"),
        ("42", "The answer is unknown. 42"),
        ("1234", "1,23,4"),
        ("12", "1 2"),
        ("5", "5/0"),
        ("5", "-5"),
        ("0.33", "1/3"),
        ("192000000", "192000001"),  # whole numbers are exact, however large
        ("450 g", "450 ml"),
        ("450 g", "450 kg"),
        ("50%", "5%"),
        ("10", "10.6"),
        ("1", "9" * 5000),
        ("1", "1e99999"),
        ("1", "1e" + "9" * 5000),
    ],
)
def test_a_wrong_or_missing_number_is_wrong(answer, response):
    columns = {"tolerance": "0.5"} if response == "10.6" else {}
    assert score(answer, response, **columns) == 0


def test_the_opinion_says_what_was_found():
    opinion = Number().verify(asked("450 g"), "That is 300 g.")
    assert (opinion.checks, opinion.reasons) == ({"right number": False}, ["the answer is 300 g, expected 450 g"])


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (asked(), "field 'answer': the prompt has no reference answer"),
        (asked("many"), "'many' has 0 numbers, expected one"),
        (asked("(1, 2)"), "has 2 numbers, expected one; put the final one behind ####"),
        (asked("1", tolerance=-1), "field 'tolerance': is -1, expected a number from 0 up"),
        (asked("1", tolerance=True), "field 'tolerance'"),
        (asked("1", tolerance="1/0"), "field 'tolerance'"),
    ],
)
def test_a_prompt_without_one_number_is_refused(prompt, words):
    for call in (Number().check, lambda one: Number().verify(one, "1")):
        with pytest.raises(DataError) as error:
            call(prompt)
        assert words in str(error.value)


whole = st.integers(-(10**12), 10**12)


@given(whole)
def test_a_whole_number_is_found_however_it_is_written(n):
    for text in (
        f"{n}",
        f"{n:,}",
        f"#### {n:,}",
        f"\\boxed{{{n}}}",
        f"1 + 1 is 2, so the answer is {n}.",
        f"{n}.0",
        f"${n}",
    ):
        assert score(str(n), text) == 1, text
        assert score(str(n + 1), text) == 0, text


@given(st.integers(-999, 999), st.integers(1, 999))
def test_a_fraction_is_its_value(top, bottom):
    expected = Fraction(top, bottom)
    for text in (f"{top}/{bottom}", f"{'-' * (top < 0)}\\frac{{{abs(top)}}}{{{bottom}}}"):
        found = final_quantity(text)
        assert found is not None
        assert found.value == expected, text


@given(st.decimals(-(10**6), 10**6, places=4))
def test_a_decimal_is_read_exactly(number):
    found = final_quantity(f"It is {number}")
    assert found is not None
    assert found.value == Fraction(number)


@settings(max_examples=300)
@given(st.text(st.sampled_from("0123456789 .,-/%$eE^x{}\\boxedfrac½克g#=是答案\n'\u00a0"), max_size=80))
def test_no_text_breaks_it(text):
    assert score("1", text) in (0, 1)
    assert all(isinstance(one.value, Fraction) for one in quantities(text))


@pytest.mark.parametrize("split", ["train", "test"])
def test_it_agrees_with_gsm8k_on_every_record(split, shared):
    """The reference is read here by the rule of its authors: what follows ####, without commas."""
    with gzip.open(shared("instructions/gsm8k") / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    assert len(records) == {"train": 7473, "test": 1319}[split]
    verifier = Number()
    for record in records:
        working, _, reference = record["answer"].partition("####")
        value = float(reference.replace(",", ""))
        prompt = asked(record["answer"])
        assert float(verifier.check(prompt)[0].value) == value
        right, wrong = reference.strip(), f"{value + 1:.10g}"
        for answer, expected in ((right, 1), (wrong, 0)):
            for response in (
                f"{working}#### {answer}",
                f"The answer is {answer}.",
                f"\\boxed{{{answer}}}",
                f"so ${answer}",
            ):
                assert verifier.verify(prompt, response).score == expected, (response, reference)
