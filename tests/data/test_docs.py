"""The examples in docs/data.md are read as the format beside which they stand."""

import json
import re
from pathlib import Path

import pytest

from wukong.data import load_comparisons, load_instructions
from wukong.data.comparisons import COMPARISONS
from wukong.data.instructions import INSTRUCTIONS

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
READERS = {"Instructions": (load_instructions, INSTRUCTIONS), "Comparisons": (load_comparisons, COMPARISONS)}


def rows(section):
    body = DOCS.split(f"### {section}\n")[1].split("\n#")[0]
    return re.findall(r"^\| `([\w-]+)`[^|]*\| (.*) \|$", body, flags=re.MULTILINE)


@pytest.mark.parametrize("section", READERS)
def test_every_format_is_documented_in_the_order_it_is_tried(section):
    assert [name for name, _ in rows(section)] == [form.name for form in READERS[section][1].formats]


@pytest.mark.parametrize(("section", "name", "cell"), [(s, *row) for s in READERS for row in rows(s)])
def test_documented_example_is_read_as_its_format(write, section, name, cell):
    example = re.match(r"`(\{.*?\})`(?:[,;].*)?$", cell)
    if example is None:
        assert name == "preference"  # described by the other table
        return
    read = READERS[section][0](write([json.loads(example[1])]))
    assert [s.format for s in read.summary.sources] == [name]
    assert read.summary.kept == 1
