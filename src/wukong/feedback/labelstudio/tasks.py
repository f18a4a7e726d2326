"""Converts our records to Label Studio tasks, and annotated tasks to our records.

Annotations are interpreted only in `wukong.data.comparisons`, for exports given to `wukong reward` as well as here.
This module adds what an export lacks: the names of annotators, the field shown by each tag of the labelling
configuration, and predictions.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from wukong.console import say
from wukong.data.comparisons import COMPARISONS, is_task, labelstudio, load_comparisons, own_record
from wukong.data.sources import DataOptions, Row, open_rows, source_list
from wukong.data.summary import Dropped, require_one_question
from wukong.errors import DataError, UsageError
from wukong.records import Messages, Preference, Ranking, Response, Vote
from wukong.seeds import permutation

Kind = Literal["pairwise", "ranker"]
Labels = Literal["none", "predictions", "ground-truth"]

_PROMPT = '<Paragraphs name="prompt" value="$messages" layout="dialogue" nameKey="role" textKey="content"/>'
_ANSWER = '<View style="flex: 1; min-width: 20em"><Text name="answer{n}" value="$answer{n}"/></View>'
CONFIGS: dict[Kind, str] = {
    "pairwise": f"""<View>
  {_PROMPT}
  <Pairwise name="comparison" toName="answer1,answer2"/>
  <View style="display: flex; flex-wrap: wrap; gap: 1em">
    {_ANSWER.format(n=1)}
    {_ANSWER.format(n=2)}
  </View>
</View>
""",
    "ranker": f"""<View>
  {_PROMPT}
  <List name="answers" value="$items" title="Answers, the best on top"/>
  <Ranker name="rank" toName="answers"/>
</View>
""",
}
"""The labelling configurations of the projects that `push` creates. Label Studio escapes the texts."""

# ------------------------------------------------------------------------------------------------------- to the tasks


@dataclass
class AnswerSet:
    """A prompt and the answers to compare. `judgments`: (groups from best to worst, annotator) already in the records;
    indices into `answers`."""

    prompt: Messages
    answers: list[str]
    judgments: list[tuple[list[list[int]], str]] = field(default_factory=list)

    @property
    def id(self) -> str:
        """Identifies prompt and answers in any order, so that they are not pushed twice."""
        said = [[[m.role, m.content] for m in self.prompt], sorted(self.answers)]
        return hashlib.sha256(json.dumps(said, ensure_ascii=False).encode()).hexdigest()[:16]

    def pairs(self) -> Iterator[AnswerSet]:
        """A separate item for each pair of answers, with their judgments."""
        for first, second in combinations(range(len(self.answers)), 2):
            judgments = []
            for groups, annotator in self.judgments:
                place = {i: level for level, group in enumerate(groups) for i in group}
                ordered = [[0], [1]] if place[first] < place[second] else [[1], [0]]
                judgments.append(([[0, 1]] if place[first] == place[second] else ordered, annotator))
            yield AnswerSet(self.prompt, [self.answers[first], self.answers[second]], judgments)


class BadItems:
    """Counts unusable items, up to the number allowed by --skip-bad."""

    def __init__(self, allowed: int) -> None:
        self.allowed, self.taken = allowed, 0

    def take(self, error: DataError) -> None:
        """Raises the error once the limit is reached, else prints it."""
        if self.taken == self.allowed:
            hint = (
                f"more than the {self.allowed} that --skip-bad allows"
                if self.allowed
                else "or allow N of them: --skip-bad N"
            )
            raise DataError(
                error.problem, file=error.file, line=error.line, field=error.field,
                hint=f"{error.hint}; {hint}" if error.hint else hint,
            )  # fmt: skip
        self.taken += 1
        say("left out: {error}", error=error)


def read_items(sources: Sequence[str], options: DataOptions | None = None) -> list[AnswerSet]:
    """The items to compare: responses.jsonl of `wukong sample`, or comparisons in any supported format.

    Several judgments of the same answers become one item. Raises UsageError if there is nothing to compare.
    """
    items: dict[str, AnswerSet] = {}
    options = options or DataOptions()
    for source in sources:
        for item in _items_of(source, options):
            known = items.setdefault(item.id, item)
            if known is not item:
                place = {text: i for i, text in enumerate(known.answers)}
                for groups, annotator in item.judgments:
                    moved = [[place[item.answers[i]] for i in group] for group in groups]
                    known.judgments.append((moved, annotator))
    if not items:
        raise UsageError(f"{', '.join(sources)}: no prompt has two different answers to compare")
    return list(items.values())


def _items_of(source: str, options: DataOptions) -> Iterator[AnswerSet]:
    first = next((row for row in open_rows(source, options.encoding) if row.bad is None), None)
    if first is not None and "prompt_id" in first.fields:
        by_prompt: dict[str, AnswerSet] = {}
        for response in _responses(source, options):
            item = by_prompt.setdefault(response.prompt_id, AnswerSet(response.messages, []))
            if response.text.strip() and response.text not in item.answers:
                item.answers.append(response.text)
        yield from (item for item in by_prompt.values() if len(item.answers) > 1)
        return
    for record in load_comparisons(source, options).records:
        if isinstance(record, Ranking):
            if len(set(record.responses)) == len(record.responses):
                yield AnswerSet(record.prompt, record.responses, [(record.groups, record.annotator)])
        elif not isinstance(record, Vote):  # a vote compares nothing
            groups = [[0, 1]] if record.tie else [[0], [1]]
            yield AnswerSet(record.prompt, [record.chosen, record.rejected], [(groups, record.annotator)])


def _responses(source: str, options: DataOptions) -> Iterator[Response]:
    bad = BadItems(options.skip_bad)
    for row in open_rows(source, options.encoding):
        try:
            if row.bad is not None:
                raise row.bad
            response = own_record(row, Response)
        except DataError as error:
            bad.take(error)
        else:
            yield response


def tasks_of(
    items: Iterable[AnswerSet], kind: Kind | None = None, labels: Labels = "none"
) -> tuple[Kind, list[dict[str, Any]]]:
    """Label Studio's tasks.

    Args:
        kind: None uses ranker if a prompt has more than two answers, else pairwise; pairwise makes each pair of answers
            a task.
        labels: whether to include the records' judgments, as predictions or as ground truth. Those with ties are left
            out: neither pairwise nor ranker results can express one.

    The order of the answers depends only on a hash: the first one of a comparison is the chosen one, which must not be
    revealed.
    """
    items = list(items)
    chosen: Kind = kind or ("ranker" if any(len(item.answers) > 2 for item in items) else "pairwise")
    if chosen == "pairwise":
        items = list({pair.id: pair for item in items for pair in item.pairs()}.values())
    return chosen, [_task(item, chosen, labels) for item in items]


def _task(item: AnswerSet, kind: Kind, labels: Labels) -> dict[str, Any]:
    order = [int(i) for i in permutation(len(item.answers), "sides", item.id)]
    data: dict[str, Any] = {"wukong_id": item.id, "messages": [m.model_dump() for m in item.prompt]}
    if kind == "pairwise":
        data |= {f"answer{n}": item.answers[i] for n, i in enumerate(order, start=1)}
    else:
        data["items"] = [{"id": f"answer{n}", "title": f"{n}", "body": item.answers[i]} for n, i in enumerate(order, 1)]
    task: dict[str, Any] = {"data": data}
    strict = [(groups, who) for groups, who in item.judgments if len(groups) == len(item.answers)]
    if labels != "none" and strict:
        results = [([_result(kind, [order.index(group[0]) for group in groups])], who) for groups, who in strict]
        if labels == "predictions":
            task["predictions"] = [{"model_version": who or "wukong", "result": result} for result, who in results]
        else:
            task["annotations"] = [{"ground_truth": True, "result": result} for result, _ in results]
    return task


def _result(kind: Kind, best_first: Sequence[int]) -> dict[str, Any]:
    """A judgment in Label Studio's format. best_first: positions as shown, best first."""
    if kind == "pairwise":
        value: dict[str, Any] = {"selected": ("left", "right")[best_first[0]]}
        return {"from_name": "comparison", "to_name": "answer1,answer2", "type": "pairwise", "value": value}
    value = {"ranker": {"rank": [f"answer{place + 1}" for place in best_first]}}
    return {"from_name": "rank", "to_name": "answers", "type": "ranker", "value": value}


# ----------------------------------------------------------------------------------------------------- from the tasks


@dataclass(frozen=True)
class Reading:
    """Information needed to read tasks that is not in them.

    Attributes:
        people: annotators' names by id.
        shown: the fields of the left and right texts of each Pairwise tag, by name.
        predictions: whether predictions count as judgments, with the model version as the annotator.
        question: the name of the Pairwise or Ranker tag whose answers count, if a project has several.
    """

    people: Mapping[int, str] = field(default_factory=dict)
    shown: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    predictions: bool = False
    question: str = ""


def chosen_question(config: str, where: str, question: str) -> str:
    """The question of a labelling configuration to use: the chosen one, or the only one.

    Answers to different questions are different labels, so several are an error unless one is chosen.

    Raises:
        DataError: as `shown_fields`.
        UsageError: no such question, or several without a choice.
    """
    names = [tag.get("name", "") for tag in _tags(config, where) if tag.tag in ("Pairwise", "Ranker")]
    if question and question not in names:
        raise UsageError(f"--question {question}: {where} asks {', '.join(names)}")
    if not question and len(names) > 1:
        raise UsageError(f"{where}: asks several questions: {', '.join(names)} (choose one with --question)")
    return question or names[0]


def shown_fields(config: str, where: str) -> dict[str, tuple[str, str]]:
    """The two fields compared by each Pairwise tag of a labelling configuration: left is the first `toName`.

    Raises DataError for a configuration without Pairwise or Ranker, or invalid XML.
    """
    tags = _tags(config, where)
    values = {tag.get("name"): tag.get("value", "").removeprefix("$") for tag in tags}
    shown = {}
    for tag in tags:
        compared = [values.get(name.strip()) for name in tag.get("toName", "").split(",")]
        if tag.tag == "Pairwise" and len(compared) == 2 and all(compared):
            shown[tag.get("name", "")] = (str(compared[0]), str(compared[1]))
    return shown


def _tags(config: str, where: str) -> list[ElementTree.Element]:
    try:
        tags = list(ElementTree.fromstring(config).iter())
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"the labelling configuration is not valid XML: {error}", file=where) from None
    if not any(tag.tag in ("Pairwise", "Ranker") for tag in tags):
        controls = sorted({tag.tag for tag in tags if "toName" in tag.attrib}) or ["nothing"]
        raise DataError(f"has only {', '.join(controls)}; Pairwise or Ranker is needed to compare answers", file=where)
    return tags


def judgments(row: Row, reading: Reading) -> Iterator[Preference | Dropped | DataError]:
    """The records in a task, the reasons why other annotations contain none, and the errors of the rest.

    Adds the questions answered to `row.asked`. Raises DataError for anything but a task.
    """
    if not is_task(row.fields):
        raise row.error("is not a Label Studio task", hint="export the project as JSON, not JSON-MIN or CSV")
    name = "annotations" if "annotations" in row.fields else "completions"
    annotations = [_known(one, reading) for one in _listed(row, name)]
    if reading.predictions:
        for one in _listed(row, "predictions"):
            if isinstance(one, dict):
                one = {"result": one.get("result"), "completed_by": {"email": one.get("model_version") or "prediction"}}
            annotations.append(_known(one, reading))
    plain = Row(row.file, row.line, {**row.fields, name: annotations}, notes=row.notes, question=reading.question)
    every = list(labelstudio(plain))
    row.asked |= plain.asked
    for found in every:
        if isinstance(found, DataError):
            yield found
            continue
        reason = found.reason if isinstance(found, Dropped) else COMPARISONS.useless(found)
        yield found if reason is None else Dropped(reason)


def _listed(row: Row, name: str) -> list[Any]:
    found = row.fields.get(name) or []
    if not isinstance(found, list):
        raise row.error("is not a list", name)
    return found


def _known(annotation: Any, reading: Reading) -> Any:
    """The annotation with its annotator's name and the fields it compares."""
    if not isinstance(annotation, dict):
        return annotation  # its reader reports what is wrong with it
    who = annotation.get("completed_by")
    number = who.get("id") if isinstance(who, dict) else who
    if isinstance(number, int) and number in reading.people:
        annotation = {**annotation, "completed_by": {"email": reading.people[number]}}
    results = annotation.get("result")
    if isinstance(results, list):
        annotation = {**annotation, "result": [_placed(one, reading) for one in results]}
    return annotation


def _placed(result: Any, reading: Reading) -> Any:
    if isinstance(result, dict) and str(result.get("from_name")) in reading.shown:
        return {**result, "to_name": ",".join(reading.shown[result["from_name"]])}
    return result


def read_exports(
    sources: Sequence[str], reading: Reading, options: DataOptions | None = None
) -> tuple[list[Preference], Counter[str]]:
    """The records of exported files, each judgment once, and the number left out by reason.

    Raises DataError (file, task, field) for other exports, and for more bad items than `options` allows.
    """
    options = options or DataOptions()
    records: dict[Any, Preference] = {}
    dropped: Counter[str] = Counter()
    bad = BadItems(options.skip_bad)
    asked: dict[str, set[tuple[str, str]]] = defaultdict(set)  # by file
    for row in (row for source in source_list(sources) for row in open_rows(source, options.encoding)):
        try:
            if row.bad is not None:
                raise row.bad
            found = list(judgments(row, reading))
        except DataError as error:
            found = [error]
        asked[row.file] |= row.asked
        require_one_question(row, asked[row.file])
        for one in found:
            if isinstance(one, DataError):
                bad.take(one)
            elif isinstance(one, Dropped):
                dropped[one.reason] += 1
            elif (key := COMPARISONS.key(one)) in records:
                dropped["duplicate"] += 1
            else:
                records[key] = one
        dropped.update(note for note in row.notes if note.startswith("answer to "))
    if bad.taken:
        dropped["bad item"] = bad.taken
    if not records:
        reasons = ", ".join(f"{n} {reason}" for reason, n in dropped.items())
        raise DataError(f"contains no judgment (left out: {reasons})", file=", ".join(map(str, map(Path, sources))))
    return list(records.values()), dropped
