"""Checks a tokenizer.json from others before the `tokenizers` library reads it: what cannot be reproduced exactly, or
could take unbounded time or memory, is refused with a one-line error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wukong.errors import UsageError, brief

_SPLITTERS = ("Split", "Digits", "Punctuation", "UnicodeScripts", "Whitespace", "WhitespaceSplit", "CharDelimiterSplit")
# Excludes parts whose regular expression or replacement text comes from the file: they could take unbounded time and
# memory.
_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip", "Nmt", "BertNormalizer")
_UNSUPPORTED = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
PIECE = "##"
"""Begins a WordPiece token that continues a word."""


def checked_definition(file: Path, content: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json in which everything that affects tokens is supported; merges as pairs.

    Raises UsageError for anything but byte-level BPE and BERT's WordPiece.
    """
    model = content.get("model")
    if not isinstance(model, dict):
        raise UsageError(f"{file}: not a tokenizer (model is {brief(model)})")
    try:
        tokens = [added_token(file, token) for token in content.get("added_tokens") or []]
    except TypeError:
        raise UsageError(f"{file}: its merges or added_tokens are damaged") from None
    if model.get("type") == "WordPiece":
        checked = _checked_words(file, content, model)
    else:
        checked = _checked_bytes(file, content, model)
    kept = {name: content.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")}
    head = {"version": "1.0", "truncation": None, "padding": None}
    return {**head, "added_tokens": tokens, **kept, "model": checked}


def _checked_bytes(file: Path, content: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """The model of a byte-level BPE."""
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise UsageError(f"{file}: neither a BPE tokenizer like GPT-2's nor a WordPiece one like BERT's")
    for name in _UNSUPPORTED:
        if model.get(name):
            raise UsageError(f"{file}: model.{name} is {brief(model[name])}, which is not supported")
    decoder = content.get("decoder")
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        raise UsageError(f"{file}: its decoder is not ByteLevel, so its tokens are not bytes")
    _check_parts(file, content.get("normalizer"), "normalizer", "normalizers", _NORMALIZERS)
    splitters = _check_parts(
        file, content.get("pre_tokenizer"), "pre_tokenizer", "pretokenizers", (*_SPLITTERS, "ByteLevel")
    )
    if [part["type"] for part in splitters].count("ByteLevel") != 1 or splitters[-1]["type"] != "ByteLevel":
        raise UsageError(f"{file}: its pre_tokenizer does not end with ByteLevel, so its tokens are not bytes")
    try:
        merges = [pair_of(merge) for merge in model["merges"]]
    except (ValueError, TypeError):
        raise UsageError(f"{file}: its merges or added_tokens are damaged") from None
    return {**model, "type": "BPE", "merges": [list(pair) for pair in merges]}


def _checked_words(file: Path, content: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """The model of a WordPiece tokenizer that splits text as BERT does."""
    for name, expected in (("pre_tokenizer", "BertPreTokenizer"), ("normalizer", "BertNormalizer")):
        part = content.get(name)
        found = part.get("type") if isinstance(part, dict) else part
        if found != expected:
            raise UsageError(f"{file}: WordPiece with the {name} {brief(found)}, only BERT's {expected} is supported")
    if model.get("continuing_subword_prefix", PIECE) != PIECE:
        found = brief(model["continuing_subword_prefix"])
        raise UsageError(f"{file}: model.continuing_subword_prefix is {found}, only BERT's {PIECE!r} is supported")
    return dict(model)


def pair_of(merge: Any) -> tuple[str, str]:
    """Raises ValueError or TypeError for anything but a merge."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    if not (isinstance(left, str) and isinstance(right, str) and left and right):
        raise ValueError("a merge is two tokens")
    return left, right


def added_token(file: Path, token: Any, index: Any = None) -> dict[str, Any]:
    """An added token with all its flags. Raises UsageError for wrong types."""
    if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not token["content"]:
        raise UsageError(f"{file}: added token {brief(token)} has no content")
    index = token.get("id") if index is None else index
    flags = {name: token.get(name, False) for name in ("single_word", "lstrip", "rstrip", "special")}
    flags["normalized"] = token.get("normalized", not flags["special"])
    if type(index) is not int or index < 0 or not all(type(flag) is bool for flag in flags.values()):
        raise UsageError(f"{file}: added token {brief(token)} is damaged (an id or flag of the wrong type)")
    return {"id": index, "content": token["content"], **flags}


def _check_parts(file: Path, part: Any, name: str, plural: str, known: Sequence[str]) -> list[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer, in order; UsageError for one not in `known`."""
    if part is None:
        return []
    if isinstance(part, dict) and part.get("type") == "Sequence" and isinstance(part.get(plural), list):
        parts = part[plural]
    else:
        parts = [part]
    for one in parts:
        if not isinstance(one, dict) or one.get("type") not in known:
            found = one.get("type") if isinstance(one, dict) else one
            raise UsageError(f"{file}: {name} {brief(found)} is not supported ({', '.join(known)})")
        if one["type"] == "Split" and (problem := _pattern_problem(one.get("pattern"))):
            raise UsageError(f"{file}: {name} Split: {problem}")
    result: list[dict[str, Any]] = parts
    return result


def _pattern_problem(pattern: Any) -> str | None:
    """Why a pattern is refused: nested repetitions can take exponential time."""
    if isinstance(pattern, dict) and list(pattern) == ["String"] and isinstance(pattern["String"], str):
        return None
    if not isinstance(pattern, dict) or list(pattern) != ["Regex"] or not isinstance(pattern["Regex"], str):
        return "its pattern is neither a String nor a Regex"
    if len(pattern["Regex"]) > 2000:
        return "its regular expression is longer than 2000 characters"
    if _repeats_repetitions(pattern["Regex"]) or re.search(r"\\[1-9gk]", pattern["Regex"]):
        return "its regular expression could take exponential time (nested repetition or back-reference)"
    return None


def _repeats_repetitions(pattern: str) -> bool:
    """Whether a group that contains *, +, {n,} or an alternative is itself repeated by *, + or {."""
    plain = re.sub(r"\\[pP]\{[^}]*\}|\\.", "x", pattern)  # escapes, \p{L} among them, are single characters
    plain = re.sub(r"\[(?:\^)?\]?[^\]]*\]", "x", plain)  # so are classes
    groups: list[bool] = []
    closed = False  # whether the preceding item is a group with a repetition inside
    for i, c in enumerate(plain):
        if c in "*+{" and closed:
            return True
        closed = False
        if c == "(":
            groups.append(False)
        elif c == ")" and groups:
            closed = groups.pop()
            if groups:
                groups[-1] |= closed
        elif groups and (c in "*+|" or (c == "{" and i)):
            groups[-1] = True
    return False
