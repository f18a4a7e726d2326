"""Errors keep the text they were made of, so that it can be translated, and print as one safe line."""

import json
import pickle

import pytest

from wukong.errors import DataError, RunError, Text, UsageError


def test_an_error_keeps_its_template_and_values():
    error = UsageError("{run}: has no {what!r}", run="kitchen", what="sft")
    assert str(error) == "kitchen: has no 'sft'"
    assert (error.template, error.values) == ("{run}: has no {what!r}", {"run": "kitchen", "what": "sft"})


def test_a_message_without_values_is_not_formatted():
    error = UsageError("write {'a': 1} or {name}")
    assert str(error) == error.template == "write {'a': 1} or {name}"
    assert error.values == {}


def test_values_may_hold_braces_and_other_errors():
    inner = UsageError("no {name} here", name="{x}")
    error = RunError("step {step}: {error}", step="{ppo}", error=inner)
    assert str(error) == "step {ppo}: no {x} here"
    assert error.values["error"] is inner


def test_what_an_error_prints_is_one_line_without_secrets():
    error = UsageError("{url}: {reason}", url="https://ann:secret@host/", reason="a\nb\ufeff" + 2000 * "c")
    assert str(error).startswith("https://***@host/: a b\\ufeffccc")
    assert len(str(error)) < 1700


def test_a_bad_record_names_its_place_and_keeps_each_part():
    error = DataError("unknown flag {flag!r}", file="a.jsonl", line=3, field="flags", hint="remove it", flag="x")
    assert str(error) == "a.jsonl:3: field 'flags': unknown flag 'x' (remove it)"
    assert (error.problem, error.problem.template) == ("unknown flag 'x'", "unknown flag {flag!r}")
    again = DataError(error.problem, file="b.jsonl")
    assert (str(again), again.problem.template) == ("b.jsonl: unknown flag 'x'", "unknown flag {flag!r}")


@pytest.mark.parametrize(
    "error", [UsageError("{n} of {m}", n=1, m=2), DataError("no {x}", file="f", line=1, x=Text("a {b}", b=2))]
)
def test_an_error_survives_pickle_with_its_template(error):
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.template, again.values) == (str(error), error.template, error.values)


def test_a_text_as_json_keeps_numbers_and_hides_secrets():
    error = RunError("{url}: loss {loss:.3g} ({why})", url="http://ann:pw@h/", loss=1.5, why=Text("step {n}", n=3))
    assert json.loads(json.dumps(error.text.as_json())) == {
        "template": "{url}: loss {loss:.3g} ({why})",
        "values": {"url": "http://***@h/", "loss": 1.5, "why": {"template": "step {n}", "values": {"n": 3}}},
    }
