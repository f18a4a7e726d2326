"""Several people's judgments of the same answers: whose count, how much, and what they say together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

from wukong.errors import UsageError
from wukong.records import Comparison, Preference, Ranking, Vote, prompt_id


def weights_of(annotators: Sequence[str]) -> dict[str, float]:
    """["ann", "bob=0.5"] -> {"ann": 1.0, "bob": 0.5}. Raises UsageError for a weight that is no positive number."""
    weights = {}
    for entry in annotators:
        name, given, text = entry.rpartition("=")
        try:
            weight = float(text) if given else 1.0
        except ValueError:
            name, given, weight = entry, "", 1.0  # a name that holds "="
        if not 0 < weight < float("inf"):
            raise UsageError(f"--annotators {entry}: a weight is a number above 0; leave the name out to leave one out")
        weights[name if given else entry] = weight
    return weights


def by_annotators(records: Iterable[Preference], weights: Mapping[str, float]) -> list[Preference]:
    """The records of these annotators; all of them, when none is named. Raises UsageError for a name without one."""
    records = list(records)
    known = {record.annotator for record in records}
    if missing := [name for name in weights if name not in known]:
        there = ", ".join(sorted(name or "(none)" for name in known)[:10])
        raise UsageError(f"--annotators: no record is of {missing[0]!r}; there are {there}")
    return [record for record in records if not weights or record.annotator in weights]


def _answers(record: Preference) -> Hashable:
    """What was judged, in whatever order."""
    match record:
        case Comparison():
            texts: tuple[str, ...] = tuple(sorted((record.chosen, record.rejected)))
        case Ranking():
            texts = tuple(sorted(record.responses))
        case Vote():
            texts = (record.response,)
    return type(record), prompt_id(record.prompt), texts


def decide(records: Iterable[Preference], weights: Mapping[str, float] | None = None) -> list[Preference]:
    """One record for the judgments of the same answers to the same prompt, in the order of the first of each.

    The majority of a comparison is the side with the larger sum of weights, a tie when the sums are equal. A ranking
    is by the mean place of each answer (Borda's count; equal means are tied). Of thumbs that are balanced nothing is
    said.

    Args:
        weights: how much each annotator's word counts; 1 for everybody else.
    """
    groups: dict[Hashable, list[Preference]] = defaultdict(list)
    for record in records:
        groups[_answers(record)].append(record)
    decided = (_decision(group, weights or {}) for group in groups.values())
    return [record for record in decided if record is not None]


def _decision(group: Sequence[Preference], weights: Mapping[str, float]) -> Preference | None:
    first = group[0]
    if len(group) == 1:
        return first
    sums: dict[object, float] = defaultdict(float)
    name = f"majority of {len(group)}"
    if isinstance(first, Ranking):
        places: dict[str, float] = defaultdict(float)
        for record in group:
            assert isinstance(record, Ranking)
            start = 0
            for members in record.groups:
                for i in members:  # tied answers share the mean of the places they take
                    places[record.responses[i]] += weights.get(record.annotator, 1.0) * (start + (len(members) - 1) / 2)
                start += len(members)
        means = {text: round(total, 9) for text, total in places.items()}
        groups = [
            [i for i, text in enumerate(first.responses) if means[text] == mean] for mean in sorted(set(means.values()))
        ]
        return first.model_copy(update={"groups": groups, "annotator": name, "seconds": None})
    for record in group:
        if isinstance(record, Comparison):
            sums[None if record.tie else record.chosen] += weights.get(record.annotator, 1.0)
        elif isinstance(record, Vote):
            sums[record.vote] += weights.get(record.annotator, 1.0)
    if isinstance(first, Vote):
        side = sums[1] - sums[-1]
        return None if side == 0 else first.model_copy(update={"vote": 1 if side > 0 else -1, "annotator": name})
    assert isinstance(first, Comparison)
    a, b = sums[first.chosen], sums[first.rejected]
    tie = a == b or sums[None] > max(a, b)
    chosen, rejected = (first.rejected, first.chosen) if b > a else (first.chosen, first.rejected)
    update = {"chosen": chosen, "rejected": rejected, "tie": tie, "strength": None, "seconds": None, "annotator": name}
    return first.model_copy(update=update)
