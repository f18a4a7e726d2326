"""Automatic judges: each scores a batch of responses, and may give reasons.

A judge is named on the command line: `rubric` (the kitchen's), `lexicon` (VADER sentiment), `openai:MODEL[@URL]` (a
language model behind an OpenAI-compatible API), or any Python function as `module:function`, called with a list of
prompts (each a list of messages) and a list of response texts; it returns one number per response.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path

from wukong.errors import RunError, UsageError
from wukong.feedback.grader import load_grader
from wukong.feedback.judge import Judge, Opinion
from wukong.records import Message

ScoreFunction = Callable[[Sequence[Sequence[Message]], Sequence[str]], Sequence[float]]


def load_judge(name: str, kept: Path | None = None) -> Judge:
    """The judge of this name.

    Args:
        kept: the file in which a paid judge stores its replies as they arrive, so that none is paid for twice.

    Raises:
        UsageError: unknown judge. The judge itself raises RunError if the function or endpoint fails, or returns the
            wrong number of scores, the wrong type or a number that is not finite.
    """
    if name == "rubric":
        return _rubric
    if name == "lexicon":
        return _lexicon()
    if name.startswith("openai:"):
        return load_grader(name, kept)
    if ":" in name and not Path(name).exists():
        return _function(name)
    raise UsageError(f"unknown judge {name!r}: use rubric, lexicon, openai:MODEL or module:function")


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


def _imported(name: str) -> ScoreFunction:
    """`module:function`; the module may be in the working directory, as with `python -m`."""
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{name}: cannot be loaded ({error}); write module:function") from None
    except Exception as error:  # anything the user's module does on import
        raise UsageError(f"{name}: importing {module_name} raised {type(error).__name__}: {error}") from error
    if not callable(function):
        raise UsageError(f"{name}: is {type(function).__name__}, expected a function")
    result: ScoreFunction = function
    return result


def _function(name: str) -> Judge:
    function = _imported(name)

    def judge(prompts: Sequence[Sequence[Message]], texts: Sequence[str]) -> list[Opinion]:
        try:
            returned = function(prompts, texts)
            returned = returned.tolist() if hasattr(returned, "tolist") else returned  # an array or a tensor
            scores = list(returned) if isinstance(returned, Sequence) and not isinstance(returned, str) else None
        except Exception as error:
            raise RunError(f"{name} raised {type(error).__name__}: {error}") from error
        if scores is None:
            raise RunError(f"{name} returned {type(returned).__name__}, expected a list of numbers")
        if len(scores) != len(texts):
            raise RunError(f"{name} returned {len(scores)} numbers for {len(texts)} responses")
        for score in scores:
            if isinstance(score, bool) or not isinstance(score, Real) or not math.isfinite(score):
                raise RunError(f"{name} returned {score!r}, expected a finite number")
        return [Opinion(float(score), {}, []) for score in scores]

    return judge
