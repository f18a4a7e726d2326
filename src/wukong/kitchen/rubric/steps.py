"""Finds the steps of a recipe in the sentences of an answer, in order."""

from __future__ import annotations

from collections.abc import Sequence

from wukong.kitchen.worlds import World

FOUND = 0.4
"""Likeness from which a step counts as present, even with one wrong figure,"""
TOLD_WELL = 0.7
"""and as correct, with a slip of a word or two."""


def alike(world: World, step: str, segment: str) -> float:
    """`_likeness`, reduced to little more than half for a wrong figure (oven, minutes)."""
    return _alike(world, world.tokens.words(step), world.tokens.words(segment))


def _alike(world: World, step: Sequence[str], segment: Sequence[str]) -> float:
    figures = {word for word in step if word[-1].isdigit()}
    return _likeness(world, step, segment) * (1.0 if figures <= set(segment) else 0.6)


def _likeness(world: World, step: Sequence[str], segment: Sequence[str]) -> float:
    """Weighted F1 of the longest common subsequence of two word sequences; 1 for identical sequences."""

    def weight(word: str) -> float:
        return 0.4 if word in world.rubric.function_words else 2.0 if word[-1].isdigit() else 1.0

    row = [0.0] * (len(segment) + 1)
    for word in step:
        diagonal = 0.0
        for j, other in enumerate(segment, start=1):
            diagonal, row[j] = row[j], diagonal + weight(word) if word == other else max(row[j], row[j - 1])
    return 2 * row[-1] / (sum(map(weight, step)) + sum(map(weight, segment)))


def align(world: World, steps: Sequence[str], segments: Sequence[str]) -> tuple[list[float], set[int]]:
    """The best alignment of the steps with the segments, in order.

    Returns one likeness per step (0 if not found) and the segments used.
    """
    words = world.tokens.words
    step_words, segment_words = [words(step) for step in steps], [words(segment) for segment in segments]
    likeness = [[_alike(world, a, b) for b in segment_words] for a in step_words]
    # best[i][j]: the highest sum for the first i steps within the first j segments
    best = [[0.0] * (len(segments) + 1) for _ in range(len(steps) + 1)]
    for i, row in enumerate(likeness, start=1):
        for j, value in enumerate(row, start=1):
            matched = best[i - 1][j - 1] + value if value >= FOUND else 0.0
            best[i][j] = max(best[i - 1][j], best[i][j - 1], matched)
    found, used = [0.0] * len(steps), set()
    i, j = len(steps), len(segments)
    while i and j:
        if best[i][j] == best[i - 1][j]:
            i -= 1
        elif best[i][j] == best[i][j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            found[i] = likeness[i][j]
            used.add(j)
    return found, used
