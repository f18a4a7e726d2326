"""Your own Python function as a judge or reward, named `module:function`.

    def reward(prompts, responses): ...
    def reward(prompts, responses, *, answer, level=None): ...
    def reward(prompts, responses, *, answer, **columns): ...

`prompts` are lists of messages, `responses` (or `completions`) texts. Further parameters are columns of the prompts, by
name: lists as long as `prompts`, None where a prompt has no such field; `answer` is the reference answer. The function
returns one number per response. This is TRL's convention for reward functions; a function whose parameters have other
names gets prompts and responses by position.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter
from numbers import Real
from typing import Any

from wukong.errors import RunError, UsageError
from wukong.feedback.judge import Judge, JudgedPrompt, Opinion, PromptNeeds

ScoreFunction = Callable[..., Any]

_NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
_RESPONSES = frozenset({"responses", "completions"})
_BATCH = _RESPONSES | {"prompts"}


def function_judge(name: str) -> Judge:
    """The judge `module:function`.

    Raises:
        UsageError: it cannot be imported, or is no function of prompts and responses. The judge itself raises RunError
            if the function fails, or returns the wrong number of scores, the wrong type or a number that is not finite.
    """
    function = _imported(name)
    signature = _Signature.of(name, function)

    def judge(prompts: Sequence[JudgedPrompt], texts: Sequence[str]) -> list[Opinion]:
        try:
            returned = signature.call(function, prompts, texts)
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


def function_needs(name: str) -> PromptNeeds:
    """The columns without which the function cannot be called. Raises UsageError as `function_judge`."""
    return PromptNeeds(columns=_Signature.of(name, _imported(name)).required)


@dataclass(frozen=True)
class _Signature:
    """How a function is called: with prompts and responses by position or by name, and with which columns."""

    by_name: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    """Columns whose parameters have no default."""
    optional: frozenset[str] = frozenset()
    """Columns that are passed if a prompt of the batch has them."""
    every: bool = False
    """All columns of the batch are passed."""

    @classmethod
    def of(cls, name: str, function: ScoreFunction) -> _Signature:
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # some functions in C do not say
            return cls()
        named = frozenset(one.name for one in parameters if one.kind in _NAMED)
        by_name = named & _BATCH if named & _RESPONSES else frozenset()
        positional = [one for one in parameters if one.kind in (Parameter.POSITIONAL_ONLY, _NAMED[0])]
        takes_any = any(one.kind == Parameter.VAR_POSITIONAL for one in parameters)
        if not by_name and len(positional) < 2 and not takes_any:
            raise UsageError(f"{name}: write it as a function of prompts and responses: def reward(prompts, responses)")
        given = by_name or {one.name for one in positional[:2]}
        columns = [one for one in parameters if one.kind in _NAMED and one.name not in given]
        return cls(
            by_name,
            frozenset(one.name for one in columns if one.default is Parameter.empty),
            frozenset(one.name for one in columns if one.default is not Parameter.empty),
            any(one.kind == Parameter.VAR_KEYWORD for one in parameters),
        )

    def call(self, function: ScoreFunction, prompts: Sequence[JudgedPrompt], texts: Sequence[str]) -> Any:
        conversations, responses = [list(prompt.messages) for prompt in prompts], list(texts)
        columns = self._columns(prompts)
        if not self.by_name:
            return function(conversations, responses, **columns)
        batch = {"prompts": conversations, "responses": responses, "completions": responses}
        return function(**{name: batch[name] for name in self.by_name}, **columns)

    def _columns(self, prompts: Sequence[JudgedPrompt]) -> dict[str, list[Any]]:
        there = [column_values(prompt) for prompt in prompts]
        names = {name for values in there for name in values}
        names = (names - _BATCH if self.every else names & self.optional) | self.required
        return {name: [values.get(name) for values in there] for name in sorted(names)}


def column_values(prompt: JudgedPrompt) -> dict[str, Any]:
    """All columns of a prompt, with its reference answer as `answer`."""
    return {**(prompt.columns or {}), **({"answer": prompt.answer} if prompt.answer is not None else {})}


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
