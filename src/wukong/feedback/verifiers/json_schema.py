"""The verifier `json`: is a response JSON, and valid for a schema?

A Markdown code fence around all of it is allowed; other text is not. Schemas are JSON Schema, of the draft that their
`$schema` names, else 2020-12. References to other documents are refused: nothing is fetched.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from typing import Any

import jsonschema
import referencing
from jsonschema.exceptions import SchemaError
from referencing.exceptions import Unresolvable

from wukong.errors import DataError
from wukong.feedback.judge import JudgedPrompt, Opinion

FENCE = re.compile(r"\s*```[A-Za-z]*[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)


def parsed_json(text: str) -> Any:
    """The JSON value that a text is, in a code fence or not. Raises ValueError for anything else."""
    fenced = FENCE.fullmatch(text)
    try:
        return json.loads(fenced[1] if fenced else text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


@dataclass(frozen=True)
class Json:
    """1 if the response is JSON and fits the schema.

    Args:
        schema: a schema as JSON text, for all prompts; without it, that of each prompt's column `schema`, an object or
            JSON text. Without either, any JSON value is right.
    """

    schema: str = ""

    def check(self, prompt: JudgedPrompt) -> Any:
        """The prompt's validator; None without a schema. Raises DataError for an invalid schema."""
        given = self.schema or (prompt.columns or {}).get("schema")
        if given is None:
            return None
        return _validator(given if isinstance(given, str) else json.dumps(given))

    def verify(self, prompt: JudgedPrompt, text: str) -> Opinion:
        validator = self.check(prompt)
        try:
            value = parsed_json(text)
        except ValueError as error:
            return Opinion(0.0, {"JSON": False}, [f"not JSON: {error}"])
        problem = None
        if validator is not None:
            try:
                problem = next(validator.iter_errors(value), None)
            except Unresolvable as error:
                raise DataError(
                    "refers to {reference}, which it does not contain", field="schema", reference=error.ref
                ) from None
        if problem is None:
            return Opinion(1.0, {"JSON": True} | ({"schema": True} if validator else {}), [])
        return Opinion(0.0, {"JSON": True, "schema": False}, [f"{problem.json_path}: {problem.message[:200]}"])


@functools.lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    try:
        value = parsed_json(schema)
    except ValueError as error:
        raise DataError("is not JSON: {error}", field="schema", error=error) from None
    if not isinstance(value, dict | bool):
        raise DataError("is no JSON Schema, which is an object", field="schema")
    kind = jsonschema.validators.validator_for(value, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(value)
    except SchemaError as error:
        raise DataError("is no JSON Schema: {error}", field="schema", error=error.message[:200]) from None
    return kind(value, registry=referencing.Registry())
