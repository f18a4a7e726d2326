"""docs/reference/data.md shows every declared format, and every declared example is read as its format."""

import json
import re
from pathlib import Path

import pytest

from wukong.data import PromptOptions, load_comparisons, load_instructions, load_prompts
from wukong.data.comparisons import COMPARISONS
from wukong.data.instructions import INSTRUCTIONS
from wukong.data.prompts import PROMPTS

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "data.md").read_text(encoding="utf-8")
READERS = {"Instructions": (load_instructions, INSTRUCTIONS), "Comparisons": (load_comparisons, COMPARISONS)}


def rows(section):
    body = DOCS.split(f"### {section}\n")[1].split("\n#")[0]
    return re.findall(r"^\| `([\w-]+)`[^|]*\| (.*) \|$", body, flags=re.MULTILINE)


def declared(section):
    """(name, example) of each format; what `preference` stands for is in the other table."""
    formats = [(form.name, dict(form.example)) for form in READERS[section][1].formats]
    before = [form for form in formats if form[0] != "preference"]
    at = next((i for i, (name, _) in enumerate(formats) if name == "preference"), len(formats))
    return [*before[:at], ("preference", None), *before[at:]] if at < len(formats) else formats


@pytest.mark.parametrize("section", READERS)
def test_every_format_is_documented_with_its_example_in_the_order_it_is_tried(section):
    examples = [(name, re.match(r"`(\{.*?\})`(?:[,;].*)?$", cell)) for name, cell in rows(section)]
    assert [(name, json.loads(match[1]) if match else None) for name, match in examples] == declared(section)


@pytest.mark.parametrize(
    ("section", "form"), [(s, form) for s in READERS for form in READERS[s][1].formats if form.name != "preference"]
)
def test_declared_example_is_read_as_its_format(write, section, form):
    read = READERS[section][0](write([dict(form.example)]))
    assert [s.format for s in read.summary.sources] == [form.name]
    assert read.summary.kept == 1
    assert not read.summary.sources[0].unused
    assert READERS[section][1].recognise(form.example) is form, "a format above it takes its example"


@pytest.mark.parametrize("form", PROMPTS.formats, ids=lambda form: form.name)
def test_prompts_are_taken_out_of_every_format(write, form):
    read = load_prompts(write([dict(form.example)]), PromptOptions(format=form.name))
    assert read.summary.kept == 1
    assert read.records[0].messages[-1].role == "user"
