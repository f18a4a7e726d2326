"""Formats in which several answers, or a pair, were judged by score, rank, vote count or several people."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from wukong.data.fields import (
    INSTRUCTION,
    instruction_prompt,
    judged,
    number_or_none,
    system_turn,
    user,
    winner_of,
)
from wukong.data.formats import LIST, OBJECT, TEXT, Check, Fields, Format, Found
from wukong.data.row import Row, is_missing, is_text
from wukong.data.summary import Dropped
from wukong.errors import DataError
from wukong.records import Messages, Preference, Ranking

NOT_JUDGED = Dropped("without a judgment")


def ranked(row: Row, prompt: Messages, scored: list[tuple[float, str]]) -> Ranking | Dropped:
    """Answers with scores, the higher the better, as groups; equal scores are tied."""
    if len(scored) < 2:
        return Dropped("fewer than two ranked answers")
    scored = sorted(scored, key=lambda pair: -pair[0])
    scores = sorted({score for score, _ in scored}, reverse=True)
    groups = [[i for i, (score, _) in enumerate(scored) if score == level] for level in scores]
    return Ranking(prompt=prompt, responses=[text for _, text in scored], groups=groups, source=row.source)


# ----------------------------------------------------------------------------------------------------- Open Assistant


def oasst(row: Row) -> Iterator[Preference | Dropped]:
    """A Ranking for every message with two or more ranked replies; its prompt is the path from the root."""
    found = False
    waiting: list[tuple[dict[str, Any], Messages, str]] = [(row.fields["prompt"], [], "prompt")]
    while waiting:
        node, path, name = waiting.pop()
        if node.get("deleted"):  # its replies are deleted with it
            continue
        path = [*path, row.turn({"role": node.get("role"), "text": node.get("text")}, name)]
        replies = row.objects(node.get("replies") or [], f"{name}.replies")
        waiting += [(reply, path, f"{name}.replies[{i}]") for i, reply in reversed(list(enumerate(replies)))]
        answers = [reply for reply in replies if reply.get("role") == "assistant" and not reply.get("deleted")]
        with_rank = [(_rank(reply), reply) for reply in answers if _rank(reply) is not None]
        if len(with_rank) < 2:
            continue
        found = True
        if len(with_rank) < len(answers):
            row.notes.append("reply without a rank left out of its group")
        scored = [(-float(rank or 0), row.string(one.get("text"), f"{name}.replies.text")) for rank, one in with_rank]
        yield ranked(row, path, scored)
    if not found:
        yield Dropped("tree without two ranked replies")


def _rank(reply: dict[str, Any]) -> float | None:
    rank = reply.get("rank")
    number = isinstance(rank, int | float) and not isinstance(rank, bool) and not is_missing(rank)
    return float(rank) if number and abs(rank) < 1e9 else None  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------- UltraFeedback


def _is_ultrafeedback(r: Fields) -> bool:
    answers = r["completions"]
    return bool(answers) and all(isinstance(one, dict) and is_text(one.get("response")) for one in answers)


def ultrafeedback(row: Row) -> Found[Preference]:
    """The original set: four answers, ranked by overall score, or by the aspect named by `question`.

    The variants with `chosen` and `rejected` are read as `trl`.
    """
    scored, unscored = [], 0
    for i, one in enumerate(row.fields["completions"]):
        name = f"completions[{i}]"
        score = _aspect(row, one, name) if row.question else number_or_none(one.get("overall_score"))
        if score is None:
            unscored += 1
        else:
            scored.append((score, row.string(one["response"], f"{name}.response")))
    if not scored:
        return [NOT_JUDGED]
    if unscored:
        row.notes.append("answer without a score left out of its ranking")
    return [ranked(row, ultrafeedback_prompt(row), scored)]


def ultrafeedback_prompt(row: Row) -> Messages:
    return [*system_turn(row), user(row.text("instruction"))]


def _aspect(row: Row, answer: dict[str, Any], name: str) -> float | None:
    aspects = answer.get("annotations")
    if not isinstance(aspects, dict) or row.question not in aspects:
        known = ", ".join(map(str, aspects)) if isinstance(aspects, dict) else "none"
        raise row.error(f"has no aspect {row.question!r}", f"{name}.annotations", f"--question, one of: {known}")
    value = aspects[row.question]
    if isinstance(value, list):  # as the hub's viewer wraps a single item
        value = value[0] if value else None
    return number_or_none(value.get("Rating") if isinstance(value, dict) else value)


# ------------------------------------------------------------------------------------- pairs with several judgments


def finegrained(row: Row) -> Iterator[Preference | Dropped | DataError]:
    """Six comparisons of one question's answers; their `source` ends in the record's number, for grouping.

    The judgments need not be transitive, so they stay pairs. The passages shown to the annotators are left out: ten
    times longer than the question, they would fill GPT-2's context.
    """
    prompt = [user(row.text("question"))]
    names = sorted(
        (name for name in row.fields if re.fullmatch(r"prediction \d{1,3}", name)), key=lambda n: int(n.split()[1])
    )
    # FineGrainedRLHF writes the six judgments of four answers in the order 12 13 14 23 24 34, as `combinations` does.
    pairs = list(combinations(names, 2))
    judgments = row.fields["preference"]
    if len(judgments) != len(pairs):
        raise row.error(f"must hold {len(pairs)} judgments, one per pair of {len(names)} answers", "preference")
    texts = {name: row.text(name) for name in names}
    for i, (first, second) in enumerate(pairs):
        group = f"{row.source}#{row.line}"
        yield from _verdict(row, prompt, judgments[i], f"preference[{i}]", (texts[first], texts[second]), source=group)


def _verdict(
    row: Row, prompt: Messages, value: Any, name: str, answers: tuple[str, str], **more: Any
) -> Iterator[Preference | Dropped | DataError]:
    """One judgment of two answers; an invalid one does not affect the record's others."""
    if is_missing(value) or value == "":
        yield NOT_JUDGED
        return
    try:
        yield judged(row, prompt, *answers, winner_of(row, value, name), **more)
    except DataError as error:
        yield error


def pandalm(row: Row) -> Iterator[Preference | Dropped | DataError]:
    """One Comparison per annotator: agreement is measured later, and a majority can still be taken."""
    prompt, answers = instruction_prompt(row), (row.text("response1"), row.text("response2"))
    for name in row.fields:
        if re.fullmatch(r"annotator\d+", name):
            yield from _verdict(row, prompt, row.fields[name], name, answers, annotator=name)


RANKINGS: list[Format[Preference]] = [
    Format(
        "oasst",
        example={
            "prompt": {
                "text": "Hi",
                "role": "prompter",
                "replies": [
                    {"text": "Hello!", "role": "assistant", "rank": 0},
                    {"text": "What?", "role": "assistant", "rank": 1},
                ],
            }
        },
        needs={"prompt": OBJECT},
        when=(lambda r: isinstance(r["prompt"].get("replies"), list), "prompt{text, role, replies[]}"),
        convert=oasst,
        harmless=frozenset({"message_tree_id", "tree_state"}),
        yields="ranking",
    ),
    Format(
        "ultrafeedback",
        example={
            "instruction": "Hi",
            "completions": [
                {"response": "Hello!", "overall_score": 8.5},
                {"response": "What?", "overall_score": 3.0},
            ],
        },
        needs={"instruction": TEXT, "completions": LIST},
        when=(_is_ultrafeedback, "completions[{response, overall_score}]"),
        convert=ultrafeedback,
        harmless=frozenset({"models", "correct_answers", "incorrect_answers"}),
        prompt=ultrafeedback_prompt,
        yields="ranking",
    ),
    Format(
        "finegrained",
        example={"question": "Hi", "prediction 1": "Hello!", "prediction 2": "What?", "preference": [1]},
        needs={"question": TEXT, "prediction 1": TEXT, "prediction 2": TEXT, "preference": LIST},
        convert=finegrained,
        uses=frozenset(f"prediction {i}" for i in range(1, 100)),
        harmless=frozenset({"passages", "gold", "feedback"}),
        prompt=lambda row: [user(row.text("question"))],
        yields="comparison",
    ),
    Format(
        "pandalm",
        example={"instruction": "Hi", "input": "", "response1": "Hello!", "response2": "What?", "annotator1": 1},
        needs={
            "instruction": TEXT,
            "response1": TEXT,
            "response2": TEXT,
            "annotator1": Check("0, 1 or 2", lambda v: True),
        },
        convert=pandalm,
        uses=INSTRUCTION | frozenset(f"annotator{i}" for i in range(1, 100)),
        harmless=frozenset({"cmp_key", "motivation_app"}),
        prompt=instruction_prompt,
        yields="comparison",
    ),
]
