"""The same prompts, answered by every model, and what changed between two models, word by word."""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from wukong.report import figures
from wukong.report.contents import AnsweredPrompt, Evaluation


def plain_question(text: str) -> str:
    """A question without differences in case, white space and trailing punctuation."""
    return re.sub(r"[\s?!.？！。]+$", "", " ".join(text.casefold().split()))


class DiffPart(NamedTuple):
    """A part of two compared texts: in both, only in the older, or only in the newer."""

    kind: Literal["same", "out", "in"]
    text: str


_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|\s+|.", re.DOTALL)
"""A Chinese or Japanese character is a word, and so are white space and punctuation."""
FEWEST_SHARED = 0.4
"""Texts with less in common are two texts, not one that was changed."""


def word_by_word(old: str, new: str) -> list[DiffPart] | None:
    """What changed from one text to the other; None if they have little in common."""
    before, after = _WORD.findall(old), _WORD.findall(new)
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    shared = sum(_words(before[i : i + size]) for i, _, size in matcher.get_matching_blocks())
    if 2 * shared < FEWEST_SHARED * (_words(before) + _words(after)) or not shared:
        return None
    return list(_joined(_pieces(matcher, before, after)))


def _words(parts: Sequence[str]) -> int:
    return sum(not part.isspace() for part in parts)


def _pieces(matcher: difflib.SequenceMatcher[str], before: list[str], after: list[str]) -> Iterator[DiffPart]:
    for kind, i, j, k, m in matcher.get_opcodes():
        if kind == "equal":
            yield DiffPart("same", "".join(before[i:j]))
        else:
            yield DiffPart("out", "".join(before[i:j]))
            yield DiffPart("in", "".join(after[k:m]))


def _joined(pieces: Iterator[DiffPart]) -> Iterator[DiffPart]:
    """Pieces without empty ones. A blank between two changes belongs to both: words that were replaced in a row are
    read as one change."""
    out, new = "", ""
    for kind, text in pieces:
        if kind == "same" and (out or new) and not text.strip() and text:
            out, new = out + text, new + text
        elif kind == "same":
            yield from filter(lambda piece: piece.text, (DiffPart("out", out), DiffPart("in", new)))
            out, new = "", ""
            if text:
                yield DiffPart("same", text)
        elif kind == "out":
            out += text
        else:
            new += text
    yield from filter(lambda piece: piece.text, (DiffPart("out", out), DiffPart("in", new)))


def side_by_side(evaluation: Evaluation, pinned: Sequence[str], shown: int, seed: int) -> dict[str, Any]:
    """The prompts shown: the pinned ones, then a seeded random choice, to avoid cherry-picking. A pinned text may also
    be a kind of prompts (their source), which stands for the first of them."""
    wanted = [plain_question(text) for text in pinned]
    by_question = {plain_question(one.source): one for one in reversed(evaluation.answered) if one.source}
    by_question |= {plain_question(one.messages[-1].content): one for one in reversed(evaluation.answered)}
    first = [by_question[text] for text in dict.fromkeys(wanted) if text in by_question]
    missing = [text for text, question in zip(pinned, wanted, strict=True) if question not in by_question]
    rest = [one for one in evaluation.answered if not any(one is other for other in first)]
    count = min(max(0, shown - len(first)), len(rest))
    drawn = random.Random(f"report {seed}").sample(rest, count)
    return {
        "first": first,
        "drawn": drawn,
        "missing": missing,
        "total": len(evaluation.answered),
        "colours": figures.model_indices(list(evaluation.result.models)),
        "scorer": evaluation.result.scorer,
        "compared": compared_models(evaluation),
    }


def compared_models(evaluation: Evaluation) -> tuple[str, str] | None:
    """(older, newer): the newest model and the one before it, whose answers are compared word by word."""
    names = list(evaluation.result.models)
    return (names[-2], names[-1]) if len(names) > 1 else None


def changed_words(answered: AnsweredPrompt, compared: tuple[str, str] | None) -> list[DiffPart] | None:
    """What the newer model changed in the older one's answer; None if there is nothing to show."""
    if compared is None or not all(name in answered.answers for name in compared):
        return None
    old, new = (answered.answers[name].text for name in compared)
    return None if old == new else word_by_word(old, new)
