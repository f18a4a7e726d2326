"""Label Studio's exports: tasks with their annotations -> comparisons and rankings.

The meaning of an annotation is defined only here, for exports read by a stage and for `wukong labelstudio`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from wukong.data.fields import judged, prompt_field
from wukong.data.formats import Fields, Format, Found, names
from wukong.data.row import Row, is_missing, shown
from wukong.data.summary import Dropped
from wukong.errors import DataError
from wukong.records import Comparison, Messages, Preference, Ranking

LEFT_RIGHT = re.compile(r"(?P<stem>.*?)(?P<side>[_-]?(?:1|a|left))$", re.IGNORECASE)
OTHER_SIDE = {"1": "2", "a": "b", "A": "B", "left": "right", "Left": "Right"}
SELECTED = {"left": 1, "right": 2, "tie": 0, "both": 0, "none": 0}
# A Ranker with buckets does not export their order, so it is taken from their names; "_" is the unsorted rest.
BUCKET_LEVEL = {
    **dict.fromkeys(("best", "top", "preferred", "winner"), 0),
    **dict.fromkeys(("better", "good", "chosen", "accepted", "relevant", "helpful"), 1),
    "_": 2,
    **dict.fromkeys(("worse", "bad", "rejected", "irrelevant", "biased", "unhelpful"), 3),
    **dict.fromkeys(("worst", "bottom", "harmful"), 4),
}
PROMPTS = ("messages", "prompt", "question", "instruction", "dialogue", "context")


def is_task(r: Fields) -> bool:
    """Whether this is a Label Studio task, annotated or not. Annotations alone match too, to be refused with a
    reason."""
    annotations = r.get(_key(r))
    if isinstance(r.get("data"), dict):
        return True
    return isinstance(annotations, list) and bool(annotations) and all(_is_annotation(one) for one in annotations)


def _is_annotation(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("result"), list)


def _key(r: Fields) -> str:
    return "annotations" if "annotations" in r else "completions"  # the name before version 1.0


def labelstudio(row: Row) -> Found[Preference]:
    """The judgments of a task; an unreadable annotation yields its error and does not affect the others."""
    name = _key(row.fields)
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
        if not known:
            yield Dropped(f"annotation without an answer to {row.question} (to {', '.join(others)})")
            return
        row.notes += [f"answer to {other}, not to {row.question}" for other in others]
    row.asked.update((str(one["type"]), _question(one)) for _, one in known if one.get("from_name"))
    seconds = annotation.get("lead_time")
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds < math.inf:
        seconds = None  # not a plausible duration
    more = {
        "annotator": _person(annotation.get("completed_by")),
        "seconds": seconds,
        "source": row.source + (", ground truth" if annotation.get("ground_truth") else ""),
    }
    given: dict[str, Any] = {}
    for i, result in known:
        value = result.get("value")
        if given.setdefault(_question(result), value) is value:
            yield from readers[result["type"]](row, result, f"{name}.result[{i}].value", more)
        elif given[_question(result)] != value:
            raise row.error(f"has two different answers to the question {_question(result)}", f"{name}.result")


def _question(result: dict[str, Any]) -> str:
    """The name of the control to which a result belongs."""
    return str(result.get("from_name") or result.get("type"))


def _person(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("email") or value.get("id")
    return "" if is_missing(value) else str(value)


def task_prompt(row: Row) -> Messages:
    """The prompt of a task, or [] for one that only shows texts."""
    data = Row(row.file, row.line, row.fields["data"], hub=row.hub, notes=row.notes, unused=row.unused)
    for key in PROMPTS:
        if not is_missing(data.fields.get(key)):
            return prompt_field(data, key)
    row.notes.append("task without a prompt")
    return []


def _pairwise(row: Row, result: dict[str, Any], name: str, more: dict[str, Any]) -> Iterator[Comparison | Dropped]:
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
        raise row.error(f"is {shown(selected)}, expected left or right", f"{name}.selected")
    first, second = (row.string(data[key], f"data.{key}") for key in named)
    yield judged(row, task_prompt(row), first, second, SELECTED[selected], **more)


def _partner(match: re.Match[str]) -> str:
    side = match["side"].lstrip("_-")
    joint = match["side"][: len(match["side"]) - len(side)]
    return match["stem"] + joint + OTHER_SIDE.get(side, "")


def _ranker(row: Row, result: dict[str, Any], name: str, more: dict[str, Any]) -> Iterator[Ranking | Dropped]:
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
            raise row.error(f"names the item {shown(one)}, which is not in data.{key}", f"{name}.ranker")
        if ranked.count(one) > 1:
            raise row.error(f"names the item {shown(one)} twice", f"{name}.ranker")
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
    """The ids from best to worst: an ordered list (in the new or old layout), or buckets, whose members are tied."""
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
            return [levels[level] for level in sorted(levels) if levels[level]]  # skips empty buckets
        ranker = ranker[sorted_buckets[0]]
    if not isinstance(ranker, list):
        raise row.error("is neither an ordered list of ids nor buckets of ids", name)
    return [[str(one)] for one in ranker]


def _item_text(row: Row, item: dict[str, Any], name: str) -> str:
    for key in ("body", "text", "content", "html", "title"):
        if item.get(key):
            return row.string(item[key], f"{name}.{key}")
    raise row.error("an item has no body", name)


LABELSTUDIO: Format[Preference] = Format(
    "labelstudio",
    example={
        "data": {"prompt": "Hi", "answer1": "Hello!", "answer2": "What?"},
        "annotations": [{"result": [{"type": "pairwise", "value": {"selected": "left"}}]}],
    },
    needs={},
    when=(is_task, "data, an object, and annotations, a list of objects with a result"),
    convert=labelstudio,
    uses=frozenset({"data", "annotations", "completions"}),
    harmless=names(
        "predictions meta inner_id project updated_by file_upload total_annotations cancelled_annotations "
        "comment_count total_predictions unresolved_comment_count comment_authors last_comment_updated_at "
        "drafts annotators is_labeled overlap allow_skip agreement reviewers state task result_count"
    ),
)
