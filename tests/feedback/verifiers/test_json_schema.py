"""The verifier `json`."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.feedback.verifiers.asked import asked
from wukong.errors import DataError
from wukong.feedback.verifiers.json_schema import Json, parsed_json

DISH = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "minutes": {"minimum": 1}}}


@pytest.mark.parametrize(
    ("response", "score", "reason"),
    [
        ('{"name": "pizza"}', 1, ""),
        ('```json\n{"name": "pizza", "minutes": 90}\n```', 1, ""),
        ('  ```\n{"name": "pizza"}\n```\n', 1, ""),
        ('{"name": 3}', 0, "$.name: 3 is not of type 'string'"),
        ('{"name": "pizza", "minutes": 0}', 0, "$.minutes: 0 is less than the minimum of 1"),
        ("{}", 0, "$: 'name' is a required property"),
        ('Here it is: {"name": "pizza"}', 0, "not JSON"),
        ('{"name": "pizza"', 0, "not JSON"),
        ('{"name": "pizza", "minutes": NaN}', 0, "not JSON: NaN is not JSON"),
        ("", 0, "not JSON"),
        ("[" * 100_000, 0, "not JSON"),
    ],
)
def test_a_response_is_valid_for_its_schema(response, score, reason):
    for prompt in (asked(schema=DISH), asked(schema=json.dumps(DISH))):
        opinion = Json().verify(prompt, response)
        assert opinion.score == score
        assert [reason in one for one in opinion.reasons] == [True] * (1 - score)
    assert Json(json.dumps(DISH)).verify(asked(), response).score == score


def test_without_a_schema_any_json_is_right():
    assert [Json().verify(asked(), text).score for text in ("3", "null", "[1]", "three")] == [1, 1, 1, 0]


@pytest.mark.parametrize("schema", ["{", "3", {"type": "nothing"}, {"properties": 3}])
def test_an_invalid_schema_is_refused(schema):
    with pytest.raises(DataError, match="field 'schema'"):
        Json().check(asked(schema=schema))


def test_nothing_is_fetched_for_a_schema():
    with pytest.raises(DataError, match=r"refers to http://127\.0\.0\.1:9/x"):
        Json().verify(asked(schema={"$ref": "http://127.0.0.1:9/x"}), "3")
    inner = {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n"}
    assert [Json().verify(asked(schema=inner), text).score for text in ("3", '"3"')] == [1, 0]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_every_json_value_is_read_in_a_fence_and_without(value):
    text = json.dumps(value)
    assert parsed_json(text) == value
    assert parsed_json(f"```json\n{json.dumps(value, indent=1)}\n```") == value
