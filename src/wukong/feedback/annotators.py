"""Automatic judges: each scores a batch of responses, and may give reasons.

A judge is named on the command line:

    rubric            the kitchen's
    lexicon           VADER sentiment
    exact, number, regex[:PATTERN], json[:SCHEMA.json], constraints
                      verifiers, which compare a response with what its prompt says (wukong.feedback.verifiers)
    openai:MODEL[@URL][#RUBRIC]
                      a language model behind an OpenAI-compatible API (wukong.feedback.grader)
    module:function   your Python function (wukong.feedback.functions)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wukong.errors import UsageError
from wukong.feedback.functions import function_judge, function_needs
from wukong.feedback.grader import load_grader, rubric_file
from wukong.feedback.judge import Judge, JudgedPrompt, Opinion, PromptNeeds
from wukong.feedback.verifiers.loading import VERIFIERS, is_verifier, verifier_file, verifier_needs, verifying_judge


def load_judge(name: str, kept: Path | None = None) -> Judge:
    """The judge of this name.

    Args:
        kept: the file in which a paid judge stores its replies as they arrive, so that none is paid for twice.

    Raises:
        UsageError: unknown judge. The judge itself raises RunError if a function or endpoint fails, or returns the
            wrong number of scores, the wrong type or a number that is not finite; and DataError for a prompt that lacks
            what it needs.
    """
    if name == "rubric":
        return _rubric
    if name == "lexicon":
        return _lexicon()
    if is_verifier(name):
        return verifying_judge(name)
    if name.startswith("openai:"):
        return load_grader(name, kept)
    if _is_function(name):
        return function_judge(name)
    known = ", ".join(("rubric", "lexicon", *VERIFIERS))
    raise UsageError(f"unknown judge {name!r}: use {known}, openai:MODEL or module:function")


def prompt_needs(name: str) -> PromptNeeds:
    """What the judge of this name needs of the prompts. Raises UsageError as `load_judge`."""
    if is_verifier(name):
        return verifier_needs(name)
    return function_needs(name) if not name.startswith("openai:") and _is_function(name) else PromptNeeds()


def judge_file(name: str) -> str | None:
    """The file that a judge's name contains, such as a rubric, on which its judgments depend."""
    return rubric_file(name) if name.startswith("openai:") else verifier_file(name)


def names_judge(name: str) -> bool:
    """Whether this names a judge, rather than a model's directory or hub id."""
    return name in ("rubric", "lexicon") or is_verifier(name) or name.startswith("openai:") or _is_function(name)


def _is_function(name: str) -> bool:
    return ":" in name and not Path(name).exists()


def _rubric(prompts: Sequence[JudgedPrompt], texts: Sequence[str]) -> list[Opinion]:
    from wukong.kitchen.rubric import judge

    verdicts = [judge(prompt.messages, text) for prompt, text in zip(prompts, texts, strict=True)]
    return [Opinion(v.score, v.checks, v.reasons) for v in verdicts]


def _lexicon() -> Judge:
    """VADER's compound score of the response, from -1 (negative) to 1 (positive) (Hutto & Gilbert 2014)."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise UsageError("the lexicon judge needs vaderSentiment: pip install 'wukong-rlhf[lexicon]'") from None
    analyser = SentimentIntensityAnalyzer()

    def judge(prompts: Sequence[JudgedPrompt], texts: Sequence[str]) -> list[Opinion]:
        return [Opinion(analyser.polarity_scores(text)["compound"], {}, []) for text in texts]

    return judge
