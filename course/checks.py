"""The checks of the exercises: `check("3.1", pairs)` says whether an answer is right, and if not, where it differs.

What is printed has numbers and signs only, so that it reads the same on the English and the Chinese page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Check = Callable[[Any], str | None]
"""What is wrong with an answer, or None."""
UNANSWERED = "?"
"""What is wrong with a function that returns None, as those in the lessons do."""


def check(name: str, answer: Any) -> None:
    """Prints ✓, or ✗ and the first case in which the answer is wrong, or a pencil while there is no answer."""
    problem = fault(name, answer)
    if problem is None:
        print(f"✓ {name}")
    else:
        print(f"✏️ {name}" if problem == UNANSWERED else f"✗ {name}  {problem}")


def fault(name: str, answer: Any) -> str | None:
    try:
        return CHECKS[name](answer)
    except Exception as error:  # whatever the reader's function raises
        return f"{type(error).__name__}: {error}"


# ------------------------------------------------------------------------------------------------------- how to compare


def numbers(found: Any, expected: Any) -> bool:
    """Equal shapes and equal values to five digits; numbers, lists, arrays and tensors."""
    found, expected = (np.asarray(_plain(one), dtype=float) for one in (found, expected))
    return found.shape == expected.shape and bool(np.allclose(found, expected, rtol=1e-5, atol=1e-6))


def _plain(value: Any) -> Any:
    if hasattr(value, "detach"):
        return value.detach().cpu().numpy()
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def count(found: Any, expected: Any) -> bool:
    """The same whole number, up to the one that rounding may add."""
    return found == int(found) and expected <= found <= expected + 1


def same_set(found: Any, expected: Any) -> bool:
    """The same members, each once, in any order."""
    found = [tuple(one) for one in found]
    return len(found) == len(set(found)) and set(found) == set(expected)


def cases(*pairs: tuple[Sequence[Any], Any], equal: Callable[[Any, Any], bool] = numbers) -> Check:
    """A check of a function: (arguments, expected result), ..."""

    def run(function: Callable[..., Any]) -> str | None:
        for arguments, expected in pairs:
            found = function(*arguments)
            if found is None:
                return UNANSWERED
            if not equal(found, expected):
                return f"({', '.join(map(repr, arguments))}) → {found}, ≠ {expected}"
        return None

    return run


# ------------------------------------------------------------------------------------------------------------ exercises

LN2 = math.log(2)


def _record(make: Callable[[str, str, str], dict[str, Any]]) -> str | None:
    from wukong.records import Comparison

    if make("", "a", "b") is None:
        return UNANSWERED
    for texts in (("How hot is an oven?", "180 C.", "Hot."), ("怎么煮蛋？", "水开后煮八分钟。", "不知道。")):
        record = Comparison.model_validate(make(*texts))
        found = (record.prompt[0].content, record.chosen, record.rejected)
        if [message.role for message in record.prompt] != ["user"] or found != texts:
            return f"{found} ≠ {texts}"
    return None


def _brief_judge(judge: Callable[[list[Any], list[str]], list[float]]) -> str | None:
    prompts = [[{"role": "user", "content": "?"}]] * 3
    scores = judge(prompts, ["a b c d e f", "a b", "a"])
    if scores is None:
        return UNANSWERED
    if len(scores) != 3 or not all(math.isfinite(score) for score in scores):
        return f"{scores}"
    return None if scores[0] < scores[1] < scores[2] else f"{scores}: 0 < 1 < 2"


CHECKS: dict[str, Check] = {
    # 0: the map
    "0.1": cases(((2, 3), 8), ((3072, 2), 9437184), ((5, 1), 5)),
    "0.2": cases(((2.5, 3), [0, 0, 2.5]), ((-1.0, 1), [-1.0]), ((4.0, 2), [0, 4.0])),
    "0.3": cases((([0, 0, 1.0], 1.0), [1, 1, 1]), (([1.0, 2.0], 0.5), [2.0, 2.0]), (([3.0], 0.9), [3.0])),
    # 1: tokens and pretraining
    "1.1": cases((([1, 2, 3],), ([1, 2], [2, 3])), (([7, 5],), ([7], [5]))),
    "1.2": cases((([1.0],), 0.0), (([0.5, 0.25],), 1.5 * LN2), (([0.5, 0.5, 0.125],), 5 / 3 * LN2)),
    "1.3": cases(((0.0,), 1.0), ((math.log(50),), 50.0), ((2.0,), math.exp(2))),
    # 2: SFT
    "2.1": cases(((2, 5), [False, True, True, True]), ((3, 4), [False, False, True]), ((1, 3), [True, True])),
    "2.2": cases((([1, 2, 3], [False, True, True]), 2.5), (([4.0, 8.0], [True, False]), 4.0)),
    # 3: preferences
    "3.1": cases(
        (("ABC",), [("A", "B"), ("A", "C"), ("B", "C")]),
        (("DA",), [("D", "A")]),
        (("CABD",), [("C", "A"), ("C", "B"), ("C", "D"), ("A", "B"), ("A", "D"), ("B", "D")]),
        equal=same_set,
    ),
    "3.2": cases(((0.0,), 1.0), ((0.5,), 0.5), ((0.1,), 0.82), ((0.25,), 0.625)),
    "3.3": cases(((0.0,), 1.0), ((0.5,), 0.5), ((0.1,), 0.972), ((0.25,), 0.84375)),
    # 4: the reward model
    "4.1": cases(((1,), [1.0]), ((3,), [1 / 6, 2 / 6, 3 / 6]), ((4,), [0.1, 0.2, 0.3, 0.4])),
    "4.2": cases(((1.0, 1.0), LN2), ((3.0, 1.0), math.log1p(math.exp(-2))), ((-400.0, 400.0), 800.0)),
    "4.3": cases((([1.0, -1.0],), 0.5), (([0.0],), 0.5), (([2.0, 0.0, 3.0, -1.0],), 0.625)),
    # 5: policy gradient
    "5.1": cases((([0.2, 0.3, 0.5], 0), [0.8, -0.3, -0.5]), (([0.5, 0.5], 1), [-0.5, 0.5])),
    "5.2": cases(
        (([0.5, 0.5], [0.0, 0.0], 1.0), [0.5, 0.5]),
        (([0.5, 0.5], [LN2, 0.0], 1.0), [2 / 3, 1 / 3]),
        (([0.8, 0.2], [0.0, LN2], 0.5), [0.5, 0.5]),
    ),
    "5.3": cases(
        (([0.5, 0.5], [0.5, 0.5]), 0.0), (([1.0, 0.0], [0.5, 0.5]), LN2), (([0.5, 0.5], [0.25, 0.75]), 0.143841)
    ),
    # 6: PPO
    "6.1": cases(
        (([0.0, 1.0], [0.5, 0.5], 0.0), [0.0, 0.5]),
        (([0.0, 1.0], [0.5, 0.5], 1.0), [0.5, 0.5]),
        (([0.0, 0.0, 2.0], [1.0, 0.0, 1.0], 0.5), [-0.25, 1.5, 1.0]),
    ),
    "6.2": cases(
        ((1.0, 2.0, 0.2), -2.0),
        ((1.5, 2.0, 0.2), -2.4),
        ((1.5, -2.0, 0.2), 3.0),
        ((0.5, -1.0, 0.2), 0.8),
        ((0.5, 1.0, 0.2), -0.5),
    ),
    "6.3": cases(
        (([-1.0, -2.0], [-1.0, -2.0], 3.0, 0.1), [0.0, 3.0]), (([-1.0, -1.0], [-2.0, -3.0], 1.0, 0.1), [-0.1, 0.8])
    ),
    # 7: the glass box
    "7.1": cases(
        ((1.3, 1.0, 0.2), True), ((1.3, -1.0, 0.2), False), ((0.7, -1.0, 0.2), True), ((0.7, 1.0, 0.2), False)
    ),
    "7.2": cases((([0.1, 3.0, -2.0],), 1), (([-4.0, 1.0],), 0), (([0.0, 0.1, -0.2, 0.15],), 2)),
    # 8: reward hacking
    "8.1": cases((([1, 2, 3, 2, 1], 2), 2), (([1, 2, 1, 3, 2, 2, 4], 2), 3), (([1, 2, 3], 2), 2), (([5, 4, 3], 1), 0)),
    "8.2": cases((([[1.0, 2.0], [3.0, 0.0]],), [1.0, 0.0]), (([[1.0], [0.5], [2.0]],), [0.5])),
    "8.3": cases(((2.0, 40, 50, 0.1), 2.0), ((2.0, 70, 50, 0.1), 0.0), ((1.0, 51, 50, 0.5), 0.5)),
    # 9: judging
    "9.1": cases(((3, 2, 5), 0.4), ((1, 0, 0), 1.0), ((0, 4, 0), 0.5)),
    "9.2": cases((("A", "A"), 1.0), (("B", "B"), 0.0), (("A", "B"), 0.5), (("B", "A"), 0.5)),
    "9.3": cases(((0.5,), 8), ((0.1,), 196), ((0.05,), 784), equal=count),
    # 10: your own data
    "10.1": _record,
    "10.2": _brief_judge,
}
