"""Our records as rows of TRL data sets: conversational prompts, preferences and unpaired votes.

For the reverse, `read_comparisons` reads these formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from wukong.records import Comparison, Preference, Prompt, Vote

Row = dict[str, Any]


def as_trl(records: Iterable[Prompt | Preference]) -> list[Row]:
    """Rows for `datasets.Dataset.from_list`, in TRL's conversational formats.

    Args:
        records: prompts (for its online trainers), comparisons and rankings (DPO, reward models) or votes (KTO). A
            ranking becomes all its pairs; ties, which TRL does not support, are left out.

    Returns:
        {prompt} for a prompt, {prompt, chosen, rejected} for a pair, {prompt, completion, label} for a vote: lists of
        messages, and a label that is True for thumbs up. Annotator, strength and time are omitted.
    """
    return [row for record in records for row in _rows(record)]


def _rows(record: Prompt | Preference) -> Iterator[Row]:
    if isinstance(record, Prompt):
        yield {"prompt": [m.model_dump() for m in record.messages]}
        return
    prompt = [m.model_dump() for m in record.prompt]
    if isinstance(record, Vote):
        yield {"prompt": prompt, "completion": _said(record.response), "label": record.vote > 0}
        return
    yield from ({"prompt": prompt, "chosen": _said(a), "rejected": _said(b)} for a, b in pairs_of(record))


def _said(text: str) -> list[Row]:
    return [{"role": "assistant", "content": text}]


def pairs_of(record: Preference) -> Iterator[tuple[str, str]]:
    """(the better answer, the worse one) for each pair that a record decides; none for a tie or a vote."""
    if isinstance(record, Comparison):
        if not record.tie:
            yield record.chosen, record.rejected
    elif not isinstance(record, Vote):
        yield from ((record.responses[b], record.responses[w]) for b, w in record.pairs())
