"""Fields common to several formats: prompts and answers as text, messages or transcripts, and judgments."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from wukong.data.formats import VERDICTS, Fields, Found, is_answer, names, verdict_in, verdict_of
from wukong.data.row import LEARN_FLAGS, Row, is_empty, is_missing, shown
from wukong.data.summary import Dropped
from wukong.records import Comparison, Message, Messages, Preference, Record, Vote

SYSTEM = frozenset({"system", "system_prompt"})
JUDGED = frozenset({"tie", "strength", "margin", "annotator", "seconds", "status"})
PROMPT_NAMES = names("prompt question instruction input query context messages conversations history")
# Field pairs in which data sets store the scores of the two answers.
SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)
SCORED = frozenset(name for names in SCORES for name in names)


def own_record(row: Row, kind: type[Record]) -> Any:
    """One of our records, validated; the error names the invalid field."""
    try:
        return kind.model_validate(row.fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or None
        raise row.error(first["msg"].removeprefix("Value error, "), field) from None


def is_own_messages(value: Any) -> bool:
    """Whether these are messages as in our records: role and content, nothing else."""
    return isinstance(value, list) and all(
        isinstance(turn, dict)
        and set(turn) == {"role", "content"}
        and turn["role"] in ("system", "user", "assistant")
        and isinstance(turn["content"], str)
        for turn in value
    )


def number_or_none(value: Any) -> float | None:
    """A score; None for "N/A" and similar values."""
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        return None
    return number if number is not None and abs(number) < 1e9 else None


def user(text: str) -> Message:
    return Message(role="user", content=text)


def joined(instruction: str, extra: str) -> str:
    """Alpaca's two fields as one prompt; Self-Instruct writes "<noinput>" for no input."""
    return instruction if extra.strip() in ("", "<noinput>") else f"{instruction}\n\n{extra}"


INSTRUCTION = frozenset({"input", "context", "history", *SYSTEM})


def instruction_prompt(row: Row) -> Messages:
    """Alpaca's prompt with all its optional fields: input, system, and history (earlier turns as pairs)."""
    turns = system_turn(row)
    history = row.fields.get("history")
    if isinstance(history, str) and not history.strip():
        history = None
    if not is_empty(history):
        if not isinstance(history, list):
            raise row.error("is not a list of [question, answer]", "history")
        for i, pair in enumerate(history):
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise row.error("is not [question, answer]", f"history[{i}]")
            asked, answered = (row.string(text, f"history[{i}]") for text in pair)
            turns += [user(asked), Message(role="assistant", content=answered)]
    return [*turns, user(joined(row.text("instruction"), row.optional("input", "context")))]


def system_turn(row: Row) -> Messages:
    text = row.optional("system", "system_prompt")
    return [Message(role="system", content=text)] if text.strip() else []


TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def transcript(row: Row, name: str) -> Messages:
    """An HH-RLHF dialogue, "\\n\\nHuman: …\\n\\nAssistant: …" -> messages, each stripped of surrounding white space."""
    before, *parts = TURN.split(row.text(name))
    if before.strip() or not parts:
        raise row.error("does not start with a 'Human:' or 'Assistant:' turn", name)
    return [
        Message(role="user" if who == "Human" else "assistant", content=said.strip())
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def is_transcript(value: Any) -> bool:
    return isinstance(value, str) and bool(re.match(r"\s*(Human|Assistant):", value)) and "\n\nAssistant:" in value


def prompt_field(row: Row, name: str) -> Messages:
    """A prompt given as text, as messages, or as a transcript that ends before the assistant's answer."""
    value = row.fields.get(name)
    if is_transcript(value):
        turns = transcript(row, name)
        return turns[:-1] if turns[-1] == Message(role="assistant", content="") else turns
    turns = row.turns(value, name) if isinstance(value, list) else [user(row.text(name))]
    system = system_turn(row)
    if not any(m.role == "system" for m in turns):
        return [*system, *turns]
    row.unused.update(name for name in sorted(SYSTEM) if system and system[0] not in turns and row.optional(name))
    return turns


def first_present(row: Row, *names: str) -> str:
    """The first of these fields with a value; else the first that is present, so that errors name it."""
    present = [name for name in names if name in row.fields]
    return next((name for name in present if not is_missing(row.fields[name])), present[0] if present else names[0])


def answer_field(row: Row, name: str) -> tuple[Messages, str]:
    """An answer given as text, object or list of messages -> (the turns before it, its text)."""
    value = row.fields.get(name)
    if isinstance(value, list):
        turns = row.turns(value, name)
        if not turns or turns[-1].role != "assistant":
            raise row.error("does not end with the assistant's turn", name)
        return turns[:-1], turns[-1].content
    if isinstance(value, dict):
        if "role" in value or "from" in value:
            turn = row.turn(value, name)
            if turn.role != "assistant":
                raise row.error("is not a turn of the assistant", name)
            return [], turn.content
        key = next((key for key in ("value", "content", "text", "response") if key in value), None)
        if key is None:
            raise row.error(f"has none of value, content, text, response; found: {', '.join(value)}", name)
        return [], row.string(value[key], f"{name}.{key}")
    return [], row.text(name)


# ----------------------------------------------------------------------------------------------------------- judgments


UNUSED_STATES = names("discarded draft skipped rejected deleted invalid cancelled")
"""Status values of records that are not to be used."""
CANDIDATES = re.compile(r"responses|answers|completions|candidates|options|choices|(response|answer|output)_\w")
PLACES = names("0 1 2 a b true false left right first second model_a model_b response_a response_b")


def are_answers(r: Fields) -> bool:
    """False if `chosen` and `rejected` only identify answers stored in other fields."""
    said = {str(r.get(name)).strip().lower() for name in ("chosen", "rejected")}
    return not (said <= PLACES and any(CANDIDATES.fullmatch(str(name)) and not is_empty(r[name]) for name in r))


ANSWERS_NOT_PLACES = "chosen and rejected hold answers, not references to them"


def pair(row: Row, prompt: Messages) -> Found[Preference]:
    """`chosen` and `rejected` as answers to `prompt`, which they may repeat (as UltraFeedback's lists do)."""
    if (status := str(row.fields.get("status")).lower()) in UNUSED_STATES:
        return [Dropped(f"{status} record")]
    (before_chosen, chosen), (before_rejected, rejected) = answer_field(row, "chosen"), answer_field(row, "rejected")
    if before_chosen != before_rejected:
        return [Dropped("the answers belong to different prompts")]
    return [compared(row, joined_turns(prompt, before_chosen), chosen, rejected)]


def compared(row: Row, prompt: Messages, chosen: str, rejected: str) -> Comparison:
    """A pair with the record's details of the judgment: tie, strength, annotator, seconds."""
    strength = row.number("strength", 0)
    return Comparison(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        tie=_is_tie(row),
        strength=row.number("margin", 0) if strength is None else strength,
        annotator=row.optional("annotator"),
        source=row.source,
        seconds=row.number("seconds", 0),
    )


def _is_tie(row: Row) -> bool:
    said = row.fields.get("tie")
    if not is_missing(said) and said != "":
        tie = verdict_of(said)
        if tie is None:
            raise row.error(f"is {shown(said)}, expected true or false", "tie")
        return tie
    for good, bad in SCORES:
        better, worse = number_or_none(row.fields.get(good)), number_or_none(row.fields.get(bad))
        if better is not None and worse is not None:
            if better < worse:
                raise row.error(f"is {shown(better)}, less than {bad!r} ({shown(worse)})", good)
            if better == worse:
                return True
    return str(row.fields.get("status")).lower() == "tie"


def joined_turns(prompt: Messages, before: Messages) -> Messages:
    """The prompt and the turns before an answer, which may or may not repeat the prompt."""
    asked = [m for m in prompt if m.role != "system"]
    if [m for m in before if m.role != "system"][: len(asked)] != asked:
        return prompt + before
    return before if any(m.role == "system" for m in before) else [m for m in prompt if m.role == "system"] + before


def judged(row: Row, prompt: Messages, first: str, second: str, winner: int, **more: Any) -> Comparison:
    """A judgment of two answers: 1 the first was better, 2 the second, 0 neither."""
    chosen, rejected = (second, first) if winner == 2 else (first, second)
    more.setdefault("source", row.source)
    return Comparison(prompt=prompt, chosen=chosen, rejected=rejected, tie=winner == 0, **more)


def winner_of(row: Row, value: Any, name: str, allowed: tuple[int, ...] = (0, 1, 2)) -> int:
    if not isinstance(value, bool):
        for number in allowed:
            if str(value).strip() in (f"{number}", f"{number}.0"):
                return number
    raise row.error(f"is {shown(value)}, expected one of {', '.join(map(str, allowed))}", name)


def vote_of(row: Row) -> bool:
    """Whether a record is a thumb up. Raises DataError if two of its fields contradict each other."""
    said = {name: verdict_in(row.fields, name) for name in VERDICTS if not is_empty(row.fields.get(name))}
    names = [name for name, verdict in said.items() if verdict is not None]
    if len({said[name] for name in names}) > 1:
        values = ", ".join(f"{name} {shown(row.fields[name])}" for name in names)
        raise row.error(f"two verdicts contradict each other: {values}", names[1])
    return bool(said[names[0]])


def voted(row: Row, prompt: Messages, response: str) -> Iterable[Vote]:
    vote: Any = 1 if vote_of(row) else -1
    return [Vote(prompt=prompt, response=response, vote=vote, annotator=row.optional("annotator"), source=row.source)]


def is_pair(record: Fields) -> bool:
    return is_answer(record.get("chosen")) and is_answer(record.get("rejected"))


def is_learned(turn: dict[str, Any]) -> bool:
    """False for a turn marked as not to be trained on: OpenAI's weight 0, axolotl's train false, or a thumb down on
    this turn."""
    return not any(verdict_of(turn.get(flag)) is False for flag in LEARN_FLAGS) and not any(
        verdict_in(turn, name) is False for name in VERDICTS
    )
