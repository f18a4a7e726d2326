"""Finds the steps of a recipe in the clauses of an answer, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from wukong.kitchen.worlds import World

FOUND = 0.4
"""Likeness from which a step counts as present, even with one wrong figure,"""
TOLD_WELL = 0.7
"""and as correct, with a slip of a word or two."""


def told_in(world: World, steps: Sequence[str], clauses: Sequence[str]) -> set[int]:
    """The clauses in which one of the steps is told well, in whatever order."""
    words = world.tokens.words
    step_words, clause_words = [words(step) for step in steps], [words(clause) for clause in clauses]
    found = set[int]()
    for start, stop in _runs(world, len(clauses)):
        run = list(chain.from_iterable(clause_words[start:stop]))
        if any(_alike(world, step, run) >= TOLD_WELL for step in step_words):
            found.update(range(start, stop))
    return found


def _runs(world: World, count: int) -> Iterator[tuple[int, int]]:
    """The beginnings and ends of successive clauses that may together be one step."""
    for stop in range(1, count + 1):
        for start in range(stop - 1, max(-1, stop - 1 - world.tokens.longest_step), -1):
            yield start, stop


def _alike(world: World, step: Sequence[str], segment: Sequence[str]) -> float:
    """`_likeness`, reduced to little more than half for a wrong figure (oven, minutes)."""
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


def align(world: World, steps: Sequence[str], clauses: Sequence[str]) -> tuple[list[float], set[int]]:
    """The best alignment of the steps with the clauses, in order.

    Returns one likeness per step (0 if not found) and the clauses used.
    """
    words = world.tokens.words
    step_words, clause_words = [words(step) for step in steps], [words(clause) for clause in clauses]
    # best[i][j]: the highest sum for the first i steps within the first j clauses; match[i][j]: (start, likeness) of
    # the last step's clauses where that sum ends with them
    best = [[0.0] * (len(clauses) + 1) for _ in range(len(steps) + 1)]
    match: list[dict[int, tuple[int, float]]] = [{} for _ in range(len(steps) + 1)]
    for i, step in enumerate(step_words, start=1):
        for start, stop in _runs(world, len(clauses)):
            if start == stop - 1:
                best[i][stop] = max(best[i - 1][stop], best[i][stop - 1])
            likeness = _alike(world, step, list(chain.from_iterable(clause_words[start:stop])))
            if likeness >= FOUND and best[i - 1][start] + likeness > best[i][stop]:
                best[i][stop] = best[i - 1][start] + likeness
                match[i][stop] = (start, likeness)
    found, used = [0.0] * len(steps), set[int]()
    i, j = len(steps), len(clauses)
    while i and j:
        if best[i][j] == best[i - 1][j]:
            i -= 1
        elif best[i][j] == best[i][j - 1]:
            j -= 1
        else:
            start, found[i - 1] = match[i][j]
            used.update(range(start, j))
            i, j = i - 1, start
    return found, used
