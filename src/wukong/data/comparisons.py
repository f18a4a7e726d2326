"""What people preferred, from the shapes the world keeps it in -> Comparison, Ranking and Vote records.

To add a format: a function with `@COMPARISONS.format(name, fields, detect)`. Formats are tried from top to
bottom, so a more specific one stands above a more general one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Iterator
from itertools import combinations
from typing import Any, TypeAlias

from pydantic import ValidationError

from wukong.data.sources import DataOptions, Row, Sources
from wukong.data.summary import Dropped, Read, Registry
from wukong.errors import DataError
from wukong.records import Comparison, Message, Messages, Preference, Ranking, Record, Vote

Found: TypeAlias = Iterable[Preference | Dropped | DataError]


def load_comparisons(src: Sources, options: DataOptions | None = None) -> Read[Preference]:
    """Comparisons, rankings and votes from one or more sources, with the account of what was left out.

    Raises DataError for a record that cannot be used (file, line, field), UsageError for a missing source.
    """
    return COMPARISONS.read(src, options or DataOptions())


def read_comparisons(
    src: Sources, *, format: str = "auto", encoding: str = "utf-8", skip_bad: int = 0
) -> list[Preference]:
    """As `load_comparisons`, without the account: a list of Comparison, Ranking and Vote records.

    Args:
        src: a path, glob, directory or Hugging Face data set id, or a list of them.
        format: a format's name; "auto" detects it.
        encoding: of text files.
        skip_bad: how many unusable records may be left out before reading stops with an error.
    """
    return load_comparisons(src, DataOptions(format=format, encoding=encoding, skip_bad=skip_bad)).records


def _useless(record: Preference) -> str | None:
    answers = record.responses if isinstance(record, Ranking) else answers_of(record)
    if not all(answer.strip() for answer in answers):
        return "empty answer"
    if isinstance(record, Comparison) and record.chosen.strip() == record.rejected.strip():
        return "both answers are the same"
    if isinstance(record, Ranking) and len(record.groups) < 2:
        return "all answers are tied"
    return None


def answers_of(record: Comparison | Vote) -> tuple[str, ...]:
    return (record.response,) if isinstance(record, Vote) else (record.chosen, record.rejected)


def _key(record: Preference) -> Hashable:
    """Two people's judgments of one pair are two records; the same person's same judgment twice is one."""
    prompt = tuple((m.role, m.content) for m in record.prompt)
    match record:
        case Comparison():
            return prompt, record.chosen, record.rejected, record.tie, record.annotator
        case Ranking():
            return prompt, tuple(record.responses), str(record.groups), record.annotator
        case Vote():
            return prompt, record.response, record.vote, record.annotator


COMPARISONS: Registry[Preference] = Registry("comparisons", _useless, _key)

# --- helpers that several formats share -------------------------------------------------------------------------


def own_record(row: Row, kind: type[Record]) -> Any:
    """One of our own records, validated; a field that does not fit is named."""
    try:
        return kind.model_validate(row.fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise row.error(first["msg"], ".".join(map(str, first["loc"])) or None) from None


def is_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and bool({"role", "from"} & set(value[0]))
    )


def joined(instruction: str, extra: str) -> str:
    """Alpaca's two fields as one prompt; Self-Instruct wrote "<noinput>" where there is no input."""
    return instruction if extra.strip() in ("", "<noinput>") else f"{instruction}\n\n{extra}"


def instruction_prompt(row: Row) -> Messages:
    text = joined(row.text("instruction"), row.optional("input", "context"))
    return [*system_turn(row), Message(role="user", content=text)]


def system_turn(row: Row) -> Messages:
    text = row.optional("system", "system_prompt")
    return [Message(role="system", content=text)] if text.strip() else []


TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def transcript(row: Row, name: str) -> Messages:
    """An HH-RLHF dialogue, "\\n\\nHuman: …\\n\\nAssistant: …" -> messages, each without the spaces around it."""
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
    """A prompt given as text, as messages, or as a transcript that ends where the assistant is to answer."""
    value = row.fields.get(name)
    if is_transcript(value):
        turns = transcript(row, name)
        return turns[:-1] if turns[-1] == Message(role="assistant", content="") else turns
    turns = row.turns(value, name) if isinstance(value, list) else [Message(role="user", content=row.text(name))]
    return turns if any(m.role == "system" for m in turns) else [*system_turn(row), *turns]


def answer_field(row: Row, name: str) -> tuple[Messages, str]:
    """An answer given as text, as an object, or as a list of messages -> the turns before it, and its text."""
    value = row.fields.get(name)
    if isinstance(value, list):
        turns = row.turns(value, name)
        if not turns or turns[-1].role != "assistant":
            raise row.error("does not end with the assistant's turn", name)
        return turns[:-1], turns[-1].content
    if isinstance(value, dict):
        key = next((key for key in ("value", "content", "text", "response") if key in value), None)
        if key is None:
            raise row.error(f"has none of value, content, text, response; found: {', '.join(value)}", name)
        return [], row.string(value[key], f"{name}.{key}")
    return [], row.text(name)


def pair(row: Row, prompt: Messages) -> Found:
    """`chosen` and `rejected` as answers to `prompt`, which they may repeat (as UltraFeedback's lists do)."""
    (before_chosen, chosen), (before_rejected, rejected) = answer_field(row, "chosen"), answer_field(row, "rejected")
    if before_chosen != before_rejected:
        yield Dropped("the answers belong to different prompts")
        return
    yield Comparison(prompt=_joined_turns(prompt, before_chosen), chosen=chosen, rejected=rejected, source=row.source)


def _joined_turns(prompt: Messages, before: Messages) -> Messages:
    """The prompt and the turns before an answer, which may or may not begin with the prompt again."""
    asked = [m for m in prompt if m.role != "system"]
    if [m for m in before if m.role != "system"][: len(asked)] != asked:
        return prompt + before
    return before if any(m.role == "system" for m in before) else [m for m in prompt if m.role == "system"] + before


def judged(row: Row, prompt: Messages, first: str, second: str, winner: int, **more: Any) -> Comparison:
    """A judgment of two answers: 1 the first was better, 2 the second, 0 neither."""
    chosen, rejected = (second, first) if winner == 2 else (first, second)
    more.setdefault("source", row.source)
    return Comparison(prompt=prompt, chosen=chosen, rejected=rejected, tie=winner == 0, **more)


def verdict(row: Row, value: Any, name: str, allowed: tuple[int, ...] = (0, 1, 2)) -> int:
    if str(value).strip() in map(str, allowed):
        return int(value)
    raise row.error(f"is {value!r}, one of {', '.join(map(str, allowed))} was expected", name)


# --- the formats ------------------------------------------------------------------------------------------------

OWN: dict[str, type[Comparison] | type[Ranking] | type[Vote]] = {
    "groups": Ranking,
    "vote": Vote,
    "chosen": Comparison,
}


def _own_kind(r: dict[str, Any]) -> type[Comparison] | type[Ranking] | type[Vote] | None:
    """Which of our records this is; a TRL record has other fields, a text prompt or answers in messages."""
    kind = next((kind for name, kind in OWN.items() if name in r), None)
    ours = kind is not None and set(r) <= set(kind.model_fields) and isinstance(r.get("prompt"), list)
    return kind if ours and not isinstance(r.get("chosen"), list | dict) else None


@COMPARISONS.format("wukong", "our own Comparison, Ranking and Vote records", lambda r: _own_kind(r) is not None)
def own(row: Row) -> Found:
    kind = next((kind for name, kind in OWN.items() if name in row.fields), Comparison)
    return [own_record(row, kind)]


def is_task(r: dict[str, Any]) -> bool:
    """A Label Studio task, annotated or not; the annotations alone are known too, to be refused with a reason."""
    return isinstance(r.get("data"), dict) or any(isinstance(r.get(k), list) for k in ("annotations", "completions"))


@COMPARISONS.format("labelstudio", "data, annotations[].result[]", is_task)
def labelstudio(row: Row) -> Found:
    """The judgments of a task; an annotation that cannot be read gives its error and leaves the others."""
    name = "annotations" if "annotations" in row.fields else "completions"  # the old name, until version 1.0
    annotations = row.fields.get(name) or []
    if not isinstance(annotations, list):
        raise row.error("is not a list of annotations", name)
    if not annotations:
        yield Dropped("task without an annotation")
    for i, annotation in enumerate(annotations):
        try:
            yield from list(_annotation(row, row.object(annotation, f"{name}[{i}]"), f"{name}[{i}]"))
        except DataError as error:
            yield error


LEFT_RIGHT = re.compile(r"(?P<stem>.*?)(?P<side>[_-]?(?:1|a|left))$", re.IGNORECASE)
OTHER_SIDE = {"1": "2", "a": "b", "A": "B", "left": "right", "Left": "Right"}
SELECTED = {"left": 1, "right": 2, "tie": 0, "both": 0, "none": 0}
# A Ranker with buckets exports no order of the buckets, so it has to lie in their names; "_" is the unsorted rest.
BUCKET_LEVEL = {
    **dict.fromkeys(("best", "top", "preferred", "winner"), 0),
    **dict.fromkeys(("better", "good", "chosen", "accepted", "relevant", "helpful"), 1),
    "_": 2,
    **dict.fromkeys(("worse", "bad", "rejected", "irrelevant", "biased", "unhelpful"), 3),
    **dict.fromkeys(("worst", "bottom", "harmful"), 4),
}


def _annotation(row: Row, annotation: dict[str, Any], name: str) -> Iterator[Preference | Dropped]:
    if annotation.get("was_cancelled") or annotation.get("skipped"):
        yield Dropped("cancelled annotation")
        return
    results = row.objects(annotation.get("result") or [], f"{name}.result")
    if not results:
        yield Dropped("annotation without a result")
        return
    readers = {"pairwise": _pairwise, "ranker": _ranker}
    known = [(i, result) for i, result in enumerate(results) if str(result.get("type")) in readers]
    if not known:
        types = ", ".join(sorted({str(result.get("type"))[:40] for result in results}))
        yield Dropped(f"annotation of type {types}, which compares nothing")
        return
    if not isinstance(row.fields.get("data"), dict):
        raise row.error("is missing: the texts that were compared", "data", "export the tasks with their data, as JSON")
    if row.question:
        others = sorted({_question(result) for _, result in known} - {row.question})
        known = [(i, result) for i, result in known if _question(result) == row.question]
        if known:
            row.notes += [f"answer to {other}, another question than {row.question}" for other in others]
        else:
            yield Dropped(f"annotation without an answer to {row.question} (to {', '.join(others)})")
            return
    row.asked.update((str(one["type"]), _question(one)) for _, one in known if one.get("from_name"))
    seconds = annotation.get("lead_time")
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds < math.inf:
        seconds = None  # nobody can have taken that long
    person = annotation.get("completed_by")
    if isinstance(person, dict):
        person = person.get("email") or person.get("id")
    more = {
        "annotator": "" if person is None else str(person),
        "seconds": seconds,
        "source": row.source + (", ground truth" if annotation.get("ground_truth") else ""),
    }
    given: dict[str, Any] = {}
    for i, result in known:
        value = result.get("value")
        if given.setdefault(_question(result), value) is value:
            yield from readers[result["type"]](row, result, f"{name}.result[{i}].value", more)
        elif given[_question(result)] != value:
            raise row.error(f"holds two different answers to the question {_question(result)}", f"{name}.result")


def _question(result: dict[str, Any]) -> str:
    """The name of the control that a result belongs to."""
    return str(result.get("from_name") or result.get("type"))


def task_prompt(row: Row) -> Messages:
    """The prompt of a task, or [] for one that only shows texts."""
    data = Row(row.file, row.line, row.fields["data"], hub=row.hub)
    for key in ("messages", "prompt", "question", "instruction", "dialogue", "context"):
        if key in data.fields:
            return prompt_field(data, key)
    row.notes.append("task without a prompt")
    return []


def _pairwise(row: Row, result: dict[str, Any], name: str, more: dict[str, Any]) -> Iterator[Preference | Dropped]:
    data = row.fields["data"]
    named = [part.strip() for part in str(result.get("to_name", "")).split(",")]
    if not (len(named) == 2 and all(part in data for part in named)):
        sides = ((key, LEFT_RIGHT.fullmatch(key)) for key in data if isinstance(data[key], str))
        couples = [(key, _partner(match)) for key, match in sides if match and _partner(match) in data]
        if len(couples) != 1:
            raise row.error(
                f"cannot tell the two answers among {', '.join(data)}", "data", "name them answer1 and answer2"
            )
        named = list(couples[0])
    selected = row.object(result.get("value") or {}, name).get("selected")
    if not selected:
        yield Dropped("annotation without a choice")
        return
    if not isinstance(selected, str) or selected not in SELECTED:
        raise row.error(f"is {selected!r}, left or right was expected", f"{name}.selected")
    first, second = (row.string(data[key], f"data.{key}") for key in named)
    yield judged(row, task_prompt(row), first, second, SELECTED[selected], **more)


def _partner(match: re.Match[str]) -> str:
    side = match["side"].lstrip("_-")
    joint = match["side"][: len(match["side"]) - len(side)]
    return match["stem"] + joint + OTHER_SIDE.get(side, "")


def _ranker(row: Row, result: dict[str, Any], name: str, more: dict[str, Any]) -> Iterator[Preference | Dropped]:
    data = row.fields["data"]
    lists = {key: value for key, value in data.items() if isinstance(value, list) and value and _has_ids(value)}
    key = str(result.get("source", "")).lstrip("$")
    if key not in lists:
        if len(lists) != 1:
            raise row.error(f"cannot tell the ranked items among {', '.join(data)}", "data", "a list of {id, body}")
        key = next(iter(lists))
    items = {str(item["id"]): item for item in lists[key]}
    if len(items) < len(lists[key]):
        raise row.error("two items have the same id", f"data.{key}")
    ranking = row.object(result.get("value") or {}, name).get("ranker")
    if not ranking:
        yield Dropped("annotation without a choice")
        return
    levels = _levels(row, ranking, f"{name}.ranker", str(result.get("from_name")))
    ranked = [one for level in levels for one in level]
    for one in ranked:
        if one not in items:
            raise row.error(f"names the item {one!r}, which is not in data.{key}", f"{name}.ranker")
        if ranked.count(one) > 1:
            raise row.error(f"names the item {one!r} twice", f"{name}.ranker")
    texts: list[str] = []
    groups: list[list[int]] = []
    for level in levels:
        groups.append(list(range(len(texts), len(texts) + len(level))))
        texts += [_item_text(row, items[one], f"data.{key}") for one in level]
    if len(texts) < len(items):
        row.notes.append("item left unranked")
    if len(texts) < 2:
        yield Dropped("fewer than two ranked answers")
        return
    yield Ranking(prompt=task_prompt(row), responses=texts, groups=groups, **more)


def _has_ids(items: list[Any]) -> bool:
    return all(isinstance(item, dict) and "id" in item for item in items)


def _levels(row: Row, ranker: Any, name: str, from_name: str) -> list[list[str]]:
    """The ids from best to worst: an ordered list (new and old shape), or buckets, whose members are tied."""
    if isinstance(ranker, dict):
        sorted_buckets = [bucket for bucket in ranker if bucket != "_"]
        if not sorted_buckets or sorted_buckets not in (["rank"], [from_name]):
            unknown = [bucket for bucket in sorted_buckets if bucket.lower() not in BUCKET_LEVEL]
            if unknown:
                raise row.error(
                    f"the buckets {', '.join(unknown)} have no known order", name, f"known: {', '.join(BUCKET_LEVEL)}"
                )
            levels: dict[int, list[str]] = {}
            for bucket, ids in ranker.items():
                if not isinstance(ids, list):
                    raise row.error("is not a list of ids", f"{name}.{bucket}")
                levels.setdefault(BUCKET_LEVEL[bucket.lower()], []).extend(map(str, ids))
            return [levels[level] for level in sorted(levels) if levels[level]]  # an empty bucket is no group
        ranker = ranker[sorted_buckets[0]]
    if not isinstance(ranker, list):
        raise row.error("holds neither an ordered list of ids nor buckets of ids", name)
    return [[str(one)] for one in ranker]


def _item_text(row: Row, item: dict[str, Any], name: str) -> str:
    for key in ("body", "text", "content", "html", "title"):
        if item.get(key):
            return row.string(item[key], f"{name}.{key}")
    raise row.error("an item has no body", name)


@COMPARISONS.format(
    "oasst",
    "prompt{text, role, replies[{text, rank, replies}]}",
    lambda r: isinstance(r.get("prompt"), dict) and "replies" in r["prompt"],
)
def oasst(row: Row) -> Found:
    """Every message with two or more ranked replies gives a Ranking; its prompt is the path from the root."""
    found = False
    waiting: list[tuple[dict[str, Any], Messages, str]] = [(row.fields["prompt"], [], "prompt")]
    while waiting:
        node, path, name = waiting.pop()
        path = [*path, row.turn(node, name)]
        replies = row.objects(node.get("replies") or [], f"{name}.replies")
        waiting += [(reply, path, f"{name}.replies[{i}]") for i, reply in reversed(list(enumerate(replies)))]
        answers = [reply for reply in replies if reply.get("role") == "assistant" and not reply.get("deleted")]
        ranked = sorted(
            (reply for reply in answers if isinstance(reply.get("rank"), int)), key=lambda reply: reply["rank"]
        )
        if len(ranked) < 2:
            continue
        found = True
        if len(ranked) < len(answers):
            row.notes.append("reply without a rank left out of its group")
        ranks = sorted({reply["rank"] for reply in ranked})
        groups = [[i for i, reply in enumerate(ranked) if reply["rank"] == rank] for rank in ranks]
        texts = [row.string(reply.get("text"), f"{name}.replies.text") for reply in ranked]
        yield Ranking(prompt=path, responses=texts, groups=groups, source=row.source)
    if not found:
        yield Dropped("tree without two ranked replies")


# FineGrainedRLHF writes the six judgments of four answers in the order 12 13 14 23 24 34, which `combinations` gives.
@COMPARISONS.format(
    "finegrained", "question, prediction 1…4, preference[6]", lambda r: "prediction 1" in r and "preference" in r
)
def finegrained(row: Row) -> Found:
    """Six comparisons of one question's answers; their `source` ends in the record's number, to group them by.

    The judgments need not be transitive, so they stay pairs. The passages that the annotators saw are left
    out: ten times longer than the question, they would fill GPT-2's context.
    """
    prompt = [Message(role="user", content=row.text("question"))]
    names = sorted(
        (name for name in row.fields if re.fullmatch(r"prediction \d+", name)), key=lambda n: int(n.split()[1])
    )
    pairs = list(combinations(names, 2))
    judgments = row.fields["preference"]
    if not isinstance(judgments, list) or len(judgments) != len(pairs):
        raise row.error(f"must hold {len(pairs)} judgments, one for each pair of {len(names)} answers", "preference")
    for i, (first, second) in enumerate(pairs):
        winner = verdict(row, judgments[i], f"preference[{i}]")
        yield judged(row, prompt, row.text(first), row.text(second), winner, source=f"{row.source}#{row.line}")


@COMPARISONS.format(
    "pandalm",
    "instruction, input, response1, response2, annotator1…",
    lambda r: "response1" in r and "annotator1" in r,
)
def pandalm(row: Row) -> Found:
    """One Comparison for each annotator: agreement is measured later, a majority can always be taken."""
    prompt, first, second = instruction_prompt(row), row.text("response1"), row.text("response2")
    for name in row.fields:
        if re.fullmatch(r"annotator\d+", name):
            yield judged(row, prompt, first, second, verdict(row, row.fields[name], name), annotator=name)


@COMPARISONS.format(
    "llmbar", "input, output_1, output_2, label 1|2", lambda r: "output_1" in r and "output_2" in r and "label" in r
)
def llmbar(row: Row) -> Found:
    winner = verdict(row, row.fields["label"], "label", (1, 2))
    prompt = [Message(role="user", content=row.text("input", "instruction"))]
    yield judged(row, prompt, row.text("output_1"), row.text("output_2"), winner)


def _is_vote(r: dict[str, Any]) -> bool:
    """KTO's unpaired votes. `label` is a class number in other sets, hence the check of the other fields."""
    whole = is_messages(r.get("messages")) or is_messages(r.get("conversations"))
    return str(r.get("label")).lower() in TRUTH and (
        whole or ("prompt" in r and bool({"completion", "response"} & set(r)))
    )


TRUTH = {"true": True, "1": True, "false": False, "0": False}


@COMPARISONS.format("kto", "prompt, completion, label true|false; or messages, label", _is_vote)
def kto(row: Row) -> Found:
    label = str(row.fields.get("label")).lower()
    if label not in TRUTH:
        raise row.error(f"is {row.fields.get('label')!r}, true or false was expected", "label")
    if "prompt" in row.fields:
        name = "completion" if "completion" in row.fields else "response"
        before, response = answer_field(row, name)
        prompt = _joined_turns(prompt_field(row, "prompt"), before)
    else:
        prompt, response = answer_field(row, "messages" if "messages" in row.fields else "conversations")
    yield Vote(prompt=prompt, response=response, vote=1 if TRUTH[label] else -1, source=row.source)


def _has_pair(r: dict[str, Any]) -> bool:
    return "chosen" in r and "rejected" in r


@COMPARISONS.format(
    "sharegpt-preference",
    "conversations[{from, value}], chosen, rejected (text or object)",
    lambda r: _has_pair(r) and (is_messages(r.get("conversations")) or is_messages(r.get("messages"))),
)
def sharegpt_preference(row: Row) -> Found:
    """LLaMA-Factory's (answers as objects) and MedicalGPT's (answers as text)."""
    return pair(row, prompt_field(row, "conversations" if "conversations" in row.fields else "messages"))


@COMPARISONS.format(
    "alpaca-preference", "instruction, input?, chosen, rejected", lambda r: _has_pair(r) and "instruction" in r
)
def alpaca_preference(row: Row) -> Found:
    return pair(row, instruction_prompt(row))


@COMPARISONS.format(
    "trl",
    "prompt, chosen, rejected (text or messages)",
    lambda r: _has_pair(r) and bool({"prompt", "question"} & set(r)),
)
def trl(row: Row) -> Found:
    return pair(row, prompt_field(row, "prompt" if "prompt" in row.fields else "question"))


@COMPARISONS.format(
    "hh", "chosen, rejected: whole Human/Assistant transcripts", lambda r: _has_pair(r) and is_transcript(r["chosen"])
)
def hh(row: Row) -> Found:
    chosen, rejected = transcript(row, "chosen"), transcript(row, "rejected")
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        yield Dropped("the transcript does not end with the assistant's turn")
    elif chosen[:-1] != rejected[:-1]:
        yield Dropped("the answers belong to different prompts")
    else:
        yield Comparison(
            prompt=chosen[:-1], chosen=chosen[-1].content, rejected=rejected[-1].content, source=row.source
        )


@COMPARISONS.format("trl-implicit", "chosen, rejected (texts or messages that share their beginning)", _has_pair)
def trl_implicit(row: Row) -> Found:
    if isinstance(row.fields["chosen"], list):
        yield from pair(row, system_turn(row))
        return
    chosen, rejected = row.text("chosen"), row.text("rejected")
    shared = _shared_words(chosen, rejected)
    if not shared.strip():
        yield Dropped("the answers share no prompt")
        return
    prompt = [Message(role="user", content=shared.strip())]
    answers = (text[len(shared) :].strip() for text in (chosen, rejected))
    yield Comparison(prompt=prompt, chosen=next(answers), rejected=next(answers), source=row.source)


def _shared_words(first: str, second: str) -> str:
    """The longest common beginning that ends between words: "green" and "grey" share nothing."""
    length = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    return first[: max((m.end() for m in re.finditer(r"\s+", first[:length])), default=0)]
