"""A seeded handful of malformed checkpoints; `tests/fuzz/checkpoints.py` runs as many as one likes."""

from tests.fuzz import checkpoints


def test_malformed_checkpoints_load_or_are_refused_in_one_line():
    outcomes = checkpoints.run(120, 0)
    assert sum(outcomes.values()) == 120
    assert outcomes["loaded"] >= 25  # faults without effect on what is read
    assert outcomes["refused"] >= 50
