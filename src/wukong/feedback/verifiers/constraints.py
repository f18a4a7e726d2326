"""The verifier `constraints`: does a response follow the instructions of its prompt that can be checked?

The 25 kinds of IFEval (Zhou et al. 2023, arXiv 2311.07911), under the names of its public data set: the prompt's column
`instruction_id_list` names them (`length_constraints:number_words`), its column `kwargs` has as many objects with their
parameters. The score is the share that is followed (IFEval's instruction-level accuracy).

The definitions are those of the authors' code, with three departures: `language:response_language` compares scripts
(Chinese, Arabic, Latin, ...), not languages of one script; words are counted in spaceless scripts too, one for each
character; sentences end at . ! ? 。 ！ ？, without a model that knows abbreviations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from wukong.errors import DataError
from wukong.feedback.judge import JudgedPrompt, Opinion
from wukong.feedback.verifiers.json_schema import parsed_json
from wukong.feedback.verifiers.scripts import is_written_in, known_languages

Parameters: TypeAlias = Mapping[str, Any]
Check: TypeAlias = Callable[[str, Parameters], bool]

WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\u3040-\u30ff\u0e00-\u0e7f]|[^\W_]+(?:['’\-][^\W_]+)*")
SENTENCE = re.compile(r"[^.!?。！？\s][^.!?。！？]*(?:[.!?。！？]+(?=[\s\"'”’)]|$)|[。！？]+|\.(?=\S)[^.!?。！？]*)*")
BULLET = re.compile(r"^\s*\*[^\*].*$|^\s*-.*$", re.MULTILINE)
HIGHLIGHT = re.compile(r"\*\*[^\n*]+\*\*|(?<!\*)\*[^\n*]+\*(?!\*)")
ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _related(count: int, relation: str, bound: int) -> bool:
    return count < bound if relation == "less than" else count >= bound


def _found(text: str, keyword: str) -> int:
    """How often a keyword is in a text, in any case; in the authors' code too as a part of another word."""
    return len(re.findall(re.escape(keyword), text, re.IGNORECASE))


def _as_word(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


def _split(text: str, separator: str) -> list[str]:
    """The parts between separators; an empty one at either end is none."""
    parts = re.split(separator, text)
    parts = parts[1:] if parts and not parts[0].strip() else parts
    return parts[:-1] if parts and not parts[-1].strip() else parts


def _paragraphs(text: str) -> list[str]:
    """The parts between lines of three asterisks; [] if one of them is empty."""
    parts = _split(text, r"\s?\*\*\*\s?")
    return parts if all(part.strip() for part in parts) else []


def _nth_paragraph(text: str, given: Parameters) -> bool:
    parts = [part.strip() for part in re.split(r"\n\n", text) if part.strip()]
    n = given["nth_paragraph"]
    first = re.match(r"[\"'“‘]*([^\s.,?!\"'”’]+)", parts[n - 1]) if 1 <= n <= len(parts) else None
    return (
        len(parts) == given["num_paragraphs"] and first is not None and first[1].lower() == given["first_word"].lower()
    )


def _is_json(text: str) -> bool:
    try:
        parsed_json(text)
    except ValueError:
        return False
    return True


def _capital_words(text: str) -> int:
    return sum(word.isupper() for word in WORD.findall(text))


def _letters(text: str, letter: str) -> int:
    return text.lower().count(letter.lower())


def _two_responses(text: str) -> bool:
    parts = [part.strip() for part in _split(text, r"\*{6}")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _repeats(text: str, prompt: str) -> bool:
    return text.strip().lower().startswith(prompt.strip().lower())


def _quoted(text: str) -> bool:
    said = text.strip()
    return len(said) > 1 and said[0] == '"' == said[-1]


def _postscript(text: str, marker: str) -> bool:
    """P.S. and P.P.S. may be written with spaces or without the dots' spaces."""
    letters = [re.escape(part) for part in marker.rstrip(".").split(".")]
    return re.search(r"^\s*" + r"\.\s?".join(letters) + r"\.?.*$", text, re.IGNORECASE | re.MULTILINE) is not None


NUMBER, TEXT, TEXTS, RELATION = "a whole number from 0 up", "text", "a list of texts", "'at least' or 'less than'"
_HOLDS: dict[str, Callable[[Any], bool]] = {
    NUMBER: lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value == int(value) >= 0,
    TEXT: lambda value: isinstance(value, str) and bool(value.strip()),
    TEXTS: lambda value: isinstance(value, list) and bool(value) and all(isinstance(one, str) and one for one in value),
    RELATION: lambda value: value in ("at least", "less than"),
}

CHECKS: dict[str, tuple[dict[str, str], Check]] = {
    "keywords:existence": ({"keywords": TEXTS}, lambda text, p: all(_found(text, one) for one in p["keywords"])),
    "keywords:frequency": (
        {"keyword": TEXT, "frequency": NUMBER, "relation": RELATION},
        lambda text, p: _related(_found(text, p["keyword"]), p["relation"], p["frequency"]),
    ),
    "keywords:forbidden_words": (
        {"forbidden_words": TEXTS}, lambda text, p: not any(_as_word(text, one) for one in p["forbidden_words"])
    ),
    "keywords:letter_frequency": (
        {"letter": TEXT, "let_frequency": NUMBER, "let_relation": RELATION},
        lambda text, p: _related(_letters(text, p["letter"]), p["let_relation"], p["let_frequency"]),
    ),
    "language:response_language": ({"language": TEXT}, lambda text, p: is_written_in(text, p["language"])),
    "length_constraints:number_sentences": (
        {"num_sentences": NUMBER, "relation": RELATION},
        lambda text, p: _related(len(SENTENCE.findall(text)), p["relation"], p["num_sentences"]),
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": NUMBER}, lambda text, p: len(_paragraphs(text)) == p["num_paragraphs"]
    ),
    "length_constraints:number_words": (
        {"num_words": NUMBER, "relation": RELATION},
        lambda text, p: _related(len(WORD.findall(text)), p["relation"], p["num_words"]),
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": NUMBER, "nth_paragraph": NUMBER, "first_word": TEXT}, _nth_paragraph
    ),
    "detectable_content:number_placeholders": (
        {"num_placeholders": NUMBER}, lambda text, p: len(re.findall(r"\[.*?\]", text)) >= p["num_placeholders"]
    ),
    "detectable_content:postscript": (
        {"postscript_marker": TEXT}, lambda text, p: _postscript(text, p["postscript_marker"])
    ),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": NUMBER}, lambda text, p: len(BULLET.findall(text)) == p["num_bullets"]
    ),
    "detectable_format:constrained_response": ({}, lambda text, p: any(one in text for one in ANSWERS)),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": NUMBER},
        lambda text, p: sum(bool(one.strip("* ")) for one in HIGHLIGHT.findall(text)) >= p["num_highlights"],
    ),
    "detectable_format:multiple_sections": (
        {"section_spliter": TEXT, "num_sections": NUMBER},
        lambda text, p: len(re.findall(rf"\s?{re.escape(p['section_spliter'])}\s?\d+\s?", text)) >= p["num_sections"],
    ),
    "detectable_format:json_format": ({}, lambda text, p: _is_json(text)),
    "detectable_format:title": ({}, lambda text, p: re.search(r"<<[^\n<>]*[^\s<>][^\n<>]*>>", text) is not None),
    "combination:two_responses": ({}, lambda text, p: _two_responses(text)),
    "combination:repeat_prompt": ({"prompt_to_repeat": TEXT}, lambda text, p: _repeats(text, p["prompt_to_repeat"])),
    "startend:end_checker": (
        {"end_phrase": TEXT}, lambda text, p: text.strip().strip('"').lower().endswith(p["end_phrase"].strip().lower())
    ),
    "startend:quotation": ({}, lambda text, p: _quoted(text)),
    "change_case:capital_word_frequency": (
        {"capital_frequency": NUMBER, "capital_relation": RELATION},
        lambda text, p: _related(_capital_words(text), p["capital_relation"], p["capital_frequency"]),
    ),
    "change_case:english_capital": ({}, lambda text, p: text.isupper()),
    "change_case:english_lowercase": ({}, lambda text, p: text.islower()),
    "punctuation:no_comma": ({}, lambda text, p: not re.search("[,，、]", text)),
}  # fmt: skip
"""Kind -> its parameters, with what each must hold, and the check."""


class Constraints:
    """The share of the prompt's constraints that a response follows; an empty response follows none."""

    def check(self, prompt: JudgedPrompt) -> list[tuple[str, Parameters]]:
        """The constraints with their parameters. Raises DataError for unknown ones and unusable parameters."""
        columns = prompt.columns or {}
        kinds, given = columns.get("instruction_id_list"), columns.get("kwargs")
        if not isinstance(kinds, list) or not kinds:
            raise DataError("the prompt has no list of constraints", field="instruction_id_list")
        given = [{}] * len(kinds) if given is None else given
        if not isinstance(given, list) or len(given) != len(kinds) or not all(isinstance(one, dict) for one in given):
            problem = "expected a list of {n} objects, one for each of instruction_id_list"
            raise DataError(problem, field="kwargs", n=len(kinds))
        return [
            (_known(kind, parameters, at), parameters)
            for at, (kind, parameters) in enumerate(zip(kinds, given, strict=True))
        ]

    def verify(self, prompt: JudgedPrompt, text: str) -> Opinion:
        asked = self.check(prompt)
        followed = [bool(text.strip()) and CHECKS[kind][1](text, parameters) for kind, parameters in asked]
        checks: dict[str, bool] = {}
        for (kind, _), kept in zip(asked, followed, strict=True):
            checks[kind] = kept and checks.get(kind, True)
        reasons = [f"not followed: {kind}" for kind, kept in checks.items() if not kept]
        return Opinion(sum(followed) / len(followed), checks, reasons)


def _known(kind: Any, parameters: Parameters, at: int) -> str:
    if not isinstance(kind, str) or kind not in CHECKS:
        problem = "there is no constraint {kind}; there are {known}"
        raise DataError(problem, field=f"instruction_id_list[{at}]", kind=repr(kind), known=", ".join(CHECKS))
    for name, what in CHECKS[kind][0].items():
        value = parameters.get(name)
        if not _HOLDS[what](value) or (name == "language" and value not in known_languages()):
            expected = what if name != "language" else f"one of {', '.join(known_languages())}"
            problem = "is {value}, expected {expected}"
            raise DataError(problem, field=f"kwargs[{at}].{name}", value=repr(value), expected=expected)
    return kind
