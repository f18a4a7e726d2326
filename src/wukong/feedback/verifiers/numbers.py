"""The verifier `number`: is the number that a response ends with the reference answer's?

The last number counts: of what follows `####` or is in `\\boxed{}`, else of the whole text. Where a text says "the
answer is", the first number behind it counts, or the one behind an equals sign. Numbers may have thousands separators
(1,234; 1'234; non-breaking spaces), be fractions (3/4, 1 1/2, ½, \\frac{3}{4}) or powers of ten (1.2e3, 1.2 x 10^3),
and have a currency sign, a percent sign or a unit. They are compared exactly, as fractions. Roots and other terms are
not read.

    units     metric units of mass, volume, length and time are converted (0.45 kg is 450 g) if both sides have one;
              two of different kinds are never equal. Any other word behind a number is ignored.
    percent   50 % is 50 where the other side has no percent sign, and also 0.5.
    rounding  whole numbers must be equal, others may differ by a millionth; the prompt's column `tolerance` is the
              absolute difference to allow instead.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from wukong.errors import DataError
from wukong.feedback.judge import JudgedPrompt, Opinion
from wukong.feedback.verifiers.final_answer import marked_answer, stated_answer

RELATIVE = Fraction(1, 10**6)
"""Difference allowed without a column `tolerance`, of the reference: what rounding of a long decimal costs."""
LONGEST = 400
"""Digits of a number, and the largest exponent; longer ones are no answer, and slow to compute with."""

UNITS: dict[str, tuple[str, Fraction]] = {
    name: (kind, Fraction(factor))
    for kind, units in {
        "mass": {"mg": "1/1000", "g": "1", "gram": "1", "grams": "1", "kg": "1000", "kilogram": "1000",
                 "kilograms": "1000", "克": "1", "千克": "1000", "公斤": "1000"},
        "volume": {"ml": "1", "millilitre": "1", "millilitres": "1", "milliliter": "1", "milliliters": "1", "cl": "10",
                   "dl": "100", "l": "1000", "litre": "1000", "litres": "1000", "liter": "1000", "liters": "1000",
                   "毫升": "1", "升": "1000"},
        "length": {"mm": "1", "cm": "10", "m": "1000", "metre": "1000", "metres": "1000", "meter": "1000",
                   "meters": "1000", "km": "1000000", "毫米": "1", "厘米": "10", "米": "1000", "公里": "1000000"},
        "time": {"s": "1", "second": "1", "seconds": "1", "min": "60", "minute": "60", "minutes": "60", "h": "3600",
                 "hour": "3600", "hours": "3600", "秒": "1", "分钟": "60", "小时": "3600"},
    }.items()
    for name, factor in units.items()
}  # fmt: skip
"""Unit -> its kind, and its size in the kind's smallest common one."""

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]{1,3}(?:['\u2009\u202f\u00a0][0-9]{3})+(?![0-9])|[0-9]+)"
_TIMES_TEN = r"\s?(?:x|×|\*|\\times|\\cdot)\s?10\s?\^\s?\{?(?=[+-]?[0-9])"
_POWER = rf"(?:[eE][+-]?[0-9]+(?![A-Za-z0-9_])|{_TIMES_TEN}[+-]?[0-9]+\}}?)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+){_POWER}?"
_LATEX = r"\\[dt]?frac\s?(?:\{\s*-?[0-9]+\s*\}\s?\{\s*[0-9]+\s*\}|[0-9]\s?[0-9])"
_VULGAR = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
NUMBER = re.compile(
    r"(?P<sign>(?<![A-Za-z0-9)\]}])[-−–]\s?)?(?:\\?[$£€¥￥]\s?(?P<sign2>[-−–])?)?"
    r"(?:"
    rf"(?P<whole>[0-9]+)?\s?(?P<vulgar>[{_VULGAR}])"
    r"|(?P<mixed>[0-9]+)[ \u00a0](?P<top>[0-9]+)\s?/\s?(?P<bottom>[0-9]+)(?![0-9/])"
    rf"|(?P<before>[0-9]+)?\s?(?P<latex>{_LATEX})"
    rf"|(?P<decimal>{_DECIMAL})(?:\s?[/⁄]\s?(?P<over>{_DECIMAL})(?![0-9/]))?"
    r")"
    r"(?P<percent>\s?\\?[%％]|\s?per\s?cent\b)?"
)
_UNIT = re.compile(r"[\s~\\,]{0,3}(?:(?:\\?text|\\?mathrm)\s?\{\s?)?([A-Za-z]+|[克千公斤毫升米厘里秒分钟小时]+)")


@dataclass(frozen=True)
class Quantity:
    value: Fraction
    percent: bool = False
    unit: str = ""
    """One of UNITS, or nothing."""


def quantities(text: str) -> list[Quantity]:
    """All numbers of a text, in order."""
    text = _plain(text)
    return [one for match in NUMBER.finditer(text) if (one := _quantity(match, text)) is not None]


def final_quantity(text: str) -> Quantity | None:
    """The number that a text ends with (see above); None without one."""
    marked = marked_answer(text)
    stated = stated_answer(text) if marked is None else None
    if stated is not None:
        _, _, right = stated.rpartition("=")
        found = quantities(right) or quantities(stated)
        return found[0] if found else None
    found = quantities(text if marked is None else marked)
    return found[-1] if found else None


def equal(given: Quantity, expected: Quantity, tolerance: Fraction | None = None) -> bool:
    """Whether two quantities are the same number (see above)."""
    mine, theirs = UNITS.get(given.unit), UNITS.get(expected.unit)
    value, wanted = given.value, expected.value
    if mine and theirs:
        if mine[0] != theirs[0]:
            return False
        value = value * mine[1] / theirs[1]
    if _close(value, wanted, tolerance):
        return True
    if given.percent == expected.percent:
        return False
    return _close(value / 100, wanted, tolerance) if given.percent else _close(value, wanted / 100, tolerance)


def reference(prompt: JudgedPrompt) -> Quantity:
    """The number that responses to this prompt must end with. Raises DataError unless its answer states exactly one,
    behind `####` or in a box if there is more text."""
    if prompt.answer is None:
        raise DataError("the prompt has no reference answer", field="answer")
    marked = marked_answer(prompt.answer)
    found = quantities(prompt.answer if marked is None else marked)
    if len(found) != 1:
        problem = "{answer} has {n} numbers, expected one; put the final one behind ####"
        raise DataError(problem, field="answer", answer=repr(prompt.answer[:60]), n=len(found))
    return found[0]


def tolerance_of(prompt: JudgedPrompt) -> Fraction | None:
    """The prompt's column `tolerance`. Raises DataError unless it is a number from 0 up."""
    given = (prompt.columns or {}).get("tolerance")
    if given is None:
        return None
    try:
        tolerance = Fraction(str(given))
    except (ValueError, ZeroDivisionError):
        tolerance = Fraction(-1)
    if isinstance(given, bool) or tolerance < 0:
        raise DataError("is {given}, expected a number from 0 up", field="tolerance", given=repr(given))
    return tolerance


class Number:
    """1 if the response ends with the reference answer's number, else 0."""

    def check(self, prompt: JudgedPrompt) -> tuple[Quantity, Fraction | None]:
        """The number and the tolerance. Raises DataError for a prompt without a number to compare with."""
        return reference(prompt), tolerance_of(prompt)

    def verify(self, prompt: JudgedPrompt, text: str) -> Opinion:
        (expected, tolerance), given = self.check(prompt), final_quantity(text)
        right = given is not None and equal(given, expected, tolerance)
        said = "there is no number" if given is None else f"the answer is {_shown(given)}"
        return Opinion(float(right), {"right number": right}, [] if right else [f"{said}, expected {_shown(expected)}"])


def _plain(text: str) -> str:
    """Full-width digits and signs as ASCII; vulgar fractions and spaces that separate thousands are kept."""
    if text.isascii():
        return text
    return "".join(unicodedata.normalize("NFKC", c) if "\uff00" <= c <= "\uffef" else c for c in text)


def _quantity(match: re.Match[str], text: str) -> Quantity | None:
    part = match.groupdict()
    value = _value(part)
    if value is None:
        return None
    negative = bool(part["sign"]) != bool(part["sign2"])
    unit = _UNIT.match(text, match.end())
    name = unit[1] if unit else ""
    known = name if name in UNITS else name.lower() if name.lower() in UNITS else ""
    return Quantity(-value if negative else value, bool(part["percent"]), known)


def _value(part: dict[str, str | None]) -> Fraction | None:
    """The number without its sign; None for a division by zero and for numbers too long to be meant."""
    if part["vulgar"]:
        return _decimal(part["whole"] or "0", Fraction(unicodedata.normalize("NFKC", part["vulgar"]).replace("⁄", "/")))
    if part["bottom"]:
        return _ratio(part["top"], part["bottom"], part["mixed"])
    if part["latex"]:
        digits = re.findall(r"-?[0-9]+", part["latex"])
        top, bottom = digits if len(digits) == 2 else digits[0]  # \frac12
        return _ratio(top, bottom, part["before"])
    return _ratio(part["decimal"], part["over"]) if part["over"] else _decimal(str(part["decimal"]))


def _ratio(top: str | None, bottom: str | None, whole: str | None = None) -> Fraction | None:
    above, below = _decimal(str(top)), _decimal(str(bottom))
    return _decimal(whole or "0", above / below) if above is not None and below else None


def _decimal(text: str, more: Fraction | int = 0) -> Fraction | None:
    """The number of a text in digits, plus `more`."""
    mantissa, _, exponent = re.sub(_TIMES_TEN, "e", text).rstrip("}").lower().partition("e")
    digits = re.sub(r"[,'\s]", "", mantissa)
    if len(digits) > LONGEST or len(exponent) > 4 or abs(int(exponent or 0)) > LONGEST:
        return None
    return Fraction(digits) * Fraction(10) ** int(exponent or 0) + more


def _close(value: Fraction, wanted: Fraction, tolerance: Fraction | None) -> bool:
    if tolerance is None:
        tolerance = Fraction(0) if value.denominator == wanted.denominator == 1 else RELATIVE * abs(wanted)
    return abs(value - wanted) <= tolerance


def _shown(quantity: Quantity) -> str:
    value = quantity.value
    number = str(value) if value.denominator == 1 or value.denominator < 100 else f"{float(value):.6g}"
    return f"{number}{'%' * quantity.percent}{' ' * bool(quantity.unit)}{quantity.unit}"
