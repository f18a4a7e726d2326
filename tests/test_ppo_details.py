"""docs/explanation/ppo-details.md names functions, tests and options: each of them exists where the page says."""

import re

import pytest

from tests.named_in_docs import ROOT, defined, options
from wukong.registry import STAGES

PAGE = (ROOT / "docs" / "explanation" / "ppo-details.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \| (.*?) \| (.*) \| (.*?) \| (.*?) \|$", PAGE.replace(r"\|", "¦"), re.MULTILINE)


def problems(rows: list[tuple[str, ...]]) -> list[str]:
    """What the tables name and the code has not."""
    found = []
    for number, _, _, where, tests in rows:
        if " in `" not in where:
            found.append(f"{number}: {where!r} names no file")
        for names, file in re.findall(r"((?:`[\w.]+`(?:, | and )?)+) in `([\w/]+\.py)`", where):
            path = ROOT / "src" / "wukong" / file
            known = defined(path) if path.is_file() else set()
            found += [f"{number}: {file} has no {one}" for one in re.findall(r"`([\w.]+)`", names) if one not in known]
        mentioned = set(re.findall(r"`([\w.]+)`", where)) - {
            one for names, _ in re.findall(r"((?:`[\w.]+`(?:, | and )?)+) in `([\w/]+\.py)`", where)
            for one in re.findall(r"`([\w.]+)`", names)
        }  # fmt: skip
        found += [f"{number}: {one} is named without its file" for one in mentioned if not one.endswith(".py")]
        file = ""
        for named in re.findall(r"`([\w/.:]+)`", tests):
            given, _, test = named.partition("::")
            file = given or file
            path = ROOT / "tests" / file
            if not path.is_file() or (test and test not in defined(path)):
                found.append(f"{number}: no test {file}::{test}")
        if "`" not in tests and "–" not in tests:
            found.append(f"{number}: neither a test nor a dash")
    return found


def test_every_name_and_test_in_the_tables_exists():
    assert [int(number) for number, *_ in ROWS] == list(range(1, len(ROWS) + 1))
    assert len(ROWS) >= 29
    assert problems(ROWS) == []


def test_a_name_that_is_gone_would_be_seen():
    tests = "`stages/online/test_ppo.py::test_no_such`, `::test_nor_this`"
    row = ("8", "x", "y", "`rollout_stats` in `stages/online/rollouts.py`", tests)
    assert problems([row]) == [
        "8: no test stages/online/test_ppo.py::test_no_such",
        "8: no test stages/online/test_ppo.py::test_nor_this",
    ]
    row = ("9", "x", "y", "`vanished`, `rollout_stats` in `stages/online/rollouts.py`; `odd`", "–")
    assert problems([row]) == ["9: stages/online/rollouts.py has no vanished", "9: odd is named without its file"]


def test_tests_named_below_the_tables_exist():
    for file, test in re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE):
        assert test in defined(ROOT / "tests" / file), f"{file}::{test}"


@pytest.mark.parametrize("option", sorted(set(re.findall(r"`(--[a-z-]+)", PAGE))))
def test_every_option_on_the_page_exists(option):
    assert option in options()


def test_defaults_on_the_page_are_those_of_ppo():
    """`--option` (value), on the rows about PPO."""
    ppo = STAGES["ppo"].load()[0].model_fields
    found = {}
    for option, value in re.findall(r"`--([a-z-]+)` (?:\()?(-?[\d.,]*\d)\b", PAGE):
        name = option.replace("-", "_")
        if name in ppo and isinstance(ppo[name].default, int | float):
            found[name] = (float(value.replace(",", "")), float(ppo[name].default))
    assert len(found) >= 5
    assert {name: given for name, (given, default) in found.items() if given != default} == {}
