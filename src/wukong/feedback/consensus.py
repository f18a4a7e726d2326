"""Combines several people's judgments of the same answers, with weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

from wukong.errors import UsageError
from wukong.records import Comparison, Preference, Ranking, Vote, prompt_id


def weights_of(annotators: Sequence[str]) -> dict[str, float]:
    """["ann", "bob=0.5"] -> {"ann": 1.0, "bob": 0.5}. Raises UsageError for a weight that is not a positive number."""
    weights = {}
    for entry in annotators:
        name, given, text = entry.rpartition("=")
        try:
            weight = float(text) if given else 1.0
        except ValueError:
            name, given, weight = entry, "", 1.0  # a name that contains "="
        if not 0 < weight < float("inf"):
            raise UsageError(f"--annotators {entry}: a weight is a number above 0; leave out the name to exclude one")
        weights[name if given else entry] = weight
    return weights


def by_annotators(records: Iterable[Preference], weights: Mapping[str, float]) -> list[Preference]:
    """The records of these annotators; all records if none are named. Raises UsageError for an annotator without
    records."""
    records = list(records)
    known = {record.annotator for record in records}
    if missing := [name for name in weights if name not in known]:
        there = ", ".join(sorted(name or "(none)" for name in known)[:10])
        raise UsageError(f"--annotators: no records by {missing[0]!r}; annotators: {there}")
    return [record for record in records if not weights or record.annotator in weights]


def _answers(record: Preference) -> Hashable:
    """A key for the answers judged, in any order."""
    match record:
        case Comparison():
            texts: tuple[str, ...] = tuple(sorted((record.chosen, record.rejected)))
        case Ranking():
            texts = tuple(sorted(record.responses))
        case Vote():
            texts = (record.response,)
    return type(record), prompt_id(record.prompt), texts


def decide(records: Iterable[Preference], weights: Mapping[str, float] | None = None) -> list[Preference]:
    """One record per prompt and set of answers that were judged, in order of first occurrence.

    A comparison is decided by the larger sum of weights; equal sums are a tie. Answers are ranked by mean rank (Borda
    count; equal means are tied). Balanced thumbs give no record.

    Args:
        weights: of annotators; others have weight 1.
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
                for i in members:  # tied answers get the mean of their ranks
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
