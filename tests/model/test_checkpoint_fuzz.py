"""A seeded handful of malformed checkpoints; `tests/fuzz/checkpoints.py` runs as many as one likes."""

import pytest

from tests.fuzz import checkpoints


@pytest.mark.parametrize(("family", "count"), [("gpt2", 120), ("llama", 80)])
def test_malformed_checkpoints_load_or_are_refused_in_one_line(family, count):
    outcomes = checkpoints.run(count, 0, family)
    assert sum(outcomes.values()) == count
    assert outcomes["loaded"] >= count / 5  # faults without effect on what is read
    assert outcomes["refused"] >= count / 3
