"""The verifiers `exact` and `regex`: is a response the reference answer, and does it match a pattern?"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from wukong.errors import DataError
from wukong.feedback.judge import JudgedPrompt, Opinion
from wukong.feedback.verifiers.final_answer import marked_answer, stated_answer

EDGES = " \t\r\n.,;:!?\"'`*。，；：！？“”‘’「」『』"
"""Characters at either end of an answer that do not count."""


def normalised(text: str) -> str:
    """Without differences of case, width and spacing, and without punctuation at the ends."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).strip(EDGES)


class Exact:
    """1 if the response, or the final answer that it marks, is the reference answer, apart from case, width, spacing
    and punctuation at the ends. Of both, only what follows `####` or is in `\\boxed{}` counts if they mark it."""

    def check(self, prompt: JudgedPrompt) -> str:
        """The reference answer. Raises DataError if the prompt has none."""
        if prompt.answer is None:
            raise DataError("the prompt has no reference answer", field="answer")
        marked = marked_answer(prompt.answer)
        expected = normalised(prompt.answer if marked is None else marked)
        if not expected:
            raise DataError("the reference answer is empty", field="answer")
        return expected

    def verify(self, prompt: JudgedPrompt, text: str) -> Opinion:
        expected, marked = self.check(prompt), marked_answer(text)
        said = [text, stated_answer(text) or ""] if marked is None else [marked]
        right = expected in map(normalised, said)
        return Opinion(float(right), {"right answer": right}, [] if right else [f"expected {expected!r}"])


@dataclass(frozen=True)
class Regex:
    """1 if the regular expression is found in the response.

    Args:
        pattern: for all prompts; without it, that of each prompt's column `regex`.
    """

    pattern: str = ""

    def check(self, prompt: JudgedPrompt) -> re.Pattern[str]:
        """The prompt's pattern. Raises DataError if there is none, or an invalid one."""
        given = self.pattern or (prompt.columns or {}).get("regex")
        if not isinstance(given, str) or not given:
            raise DataError(
                "the prompt has no pattern: give one in its column regex, or name regex:PATTERN", field="regex"
            )
        try:
            return re.compile(given)
        except re.error as error:
            problem = "{pattern} is not a regular expression: {error}"
            raise DataError(problem, field="regex", pattern=repr(given[:60]), error=error) from None

    def verify(self, prompt: JudgedPrompt, text: str) -> Opinion:
        pattern = self.check(prompt)
        right = pattern.search(text) is not None
        return Opinion(float(right), {"pattern found": right}, [] if right else [f"no match of {pattern.pattern!r}"])
