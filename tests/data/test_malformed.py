"""Malformed files of every format: read, or refused in one line. `tests/fuzz/run.py` does the same in bulk."""

from collections import Counter

from tests.fuzz import grammar, readers


def test_malformed_records_are_read_or_refused_in_one_line():
    outcomes = list(readers.run(250, seed=1))
    assert [one for one in outcomes if one.result == readers.FAILED] == []
    past = {one.case for one in outcomes if one.result != readers.UNKNOWN}
    assert len(past) >= 0.3 * 250, "too few get past detection to test what comes after it"


def test_every_format_is_mutated_in_every_way():
    counts = Counter((format, mutation) for format, mutation, _ in grammar.cases(10_000, seed=0))
    assert len(grammar.MUTATIONS) >= 12
    assert set(counts) == {(format, mutation) for format in grammar.formats() for mutation in grammar.MUTATIONS}
