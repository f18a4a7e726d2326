"""Judges that need no person: each gives a batch of responses a number, and may say why.

A judge is named on the command line: `rubric` (the kitchen's), `lexicon` (VADER sentiment), or any Python function as
`module:function`, called with a list of prompts (each a list of messages) and a list of response texts, returning a
number each.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

from wukong.errors import RunError, UsageError
from wukong.records import Message

ScoreFunction = Callable[[Sequence[Sequence[Message]], Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class Opinion:
    """What a judge says of one response: a number, and where it can, named checks and reasons."""

    score: float
    checks: dict[str, bool]
    reasons: list[str]


Judge = Callable[[Sequence[Sequence[Message]], Sequence[str]], list[Opinion]]


def load_judge(name: str) -> Judge:
    """The judge of this name. Raises UsageError when there is none; the judge itself raises RunError when the named
    function raises, or returns the wrong count, the wrong type or a number that is not finite."""
    if name == "rubric":
        return _rubric
    if name == "lexicon":
        return _lexicon()
    if ":" in name and not Path(name).exists():
        return _function(name)
    raise UsageError(f"unknown judge {name!r}: use rubric, lexicon or module:function")


def _rubric(prompts: Sequence[Sequence[Message]], texts: Sequence[str]) -> list[Opinion]:
    from wukong.kitchen.rubric import judge

    verdicts = [judge(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    return [Opinion(v.score, v.checks, v.reasons) for v in verdicts]


def _lexicon() -> Judge:
    """VADER's compound score of the response, from -1 (negative) to 1 (positive) (Hutto & Gilbert 2014)."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise UsageError("the lexicon judge needs vaderSentiment: pip install 'wukong-rlhf[lexicon]'") from None
    analyser = SentimentIntensityAnalyzer()

    def judge(prompts: Sequence[Sequence[Message]], texts: Sequence[str]) -> list[Opinion]:
        return [Opinion(analyser.polarity_scores(text)["compound"], {}, []) for text in texts]

    return judge


def _function(name: str) -> Judge:
    module_name, _, attribute = name.partition(":")
    try:
        function: ScoreFunction = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{name}: cannot be loaded ({error}); write module:function") from None

    def judge(prompts: Sequence[Sequence[Message]], texts: Sequence[str]) -> list[Opinion]:
        try:
            scores = list(function(prompts, texts))
        except Exception as error:
            raise RunError(f"{name} raised {type(error).__name__}: {error}") from error
        if len(scores) != len(texts):
            raise RunError(f"{name} returned {len(scores)} numbers for {len(texts)} responses")
        for score in scores:
            if isinstance(score, bool) or not isinstance(score, Real) or not math.isfinite(score):
                raise RunError(f"{name} returned {score!r}, a finite number was expected")
        return [Opinion(float(score), {}, []) for score in scores]

    return judge
