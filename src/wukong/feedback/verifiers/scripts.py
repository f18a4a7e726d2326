"""Scripts of writing, and which languages are written in them."""

from __future__ import annotations

import re

SCRIPTS: dict[str, tuple[str, str]] = {
    "Latin": ("A-Za-z\u00c0-\u024f\u1e00-\u1eff", "en de fr es it pt nl pl cs sk sl hr hu ro sv da no nb fi et lv lt "
              "tr vi id ms tl sw so af sq ca cy"),
    "Cyrillic": ("\u0400-\u052f", "ru uk bg mk sr be kk"),
    "Greek": ("\u0370-\u03ff\u1f00-\u1fff", "el"),
    "Arabic": ("\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufeff", "ar fa ur"),
    "Hebrew": ("\u0590-\u05ff", "he"),
    "Devanagari": ("\u0900-\u097f", "hi mr ne"),
    "Bengali": ("\u0980-\u09ff", "bn"),
    "Gurmukhi": ("\u0a00-\u0a7f", "pa"),
    "Gujarati": ("\u0a80-\u0aff", "gu"),
    "Tamil": ("\u0b80-\u0bff", "ta"),
    "Telugu": ("\u0c00-\u0c7f", "te"),
    "Kannada": ("\u0c80-\u0cff", "kn"),
    "Malayalam": ("\u0d00-\u0d7f", "ml"),
    "Thai": ("\u0e00-\u0e7f", "th"),
    "Hangul": ("\u1100-\u11ff\uac00-\ud7af", "ko"),
    "Kana": ("\u3040-\u30ff", ""),
    "Han": ("\u3400-\u9fff\uf900-\ufaff", "zh zh-cn zh-tw"),
}  # fmt: skip
"""Name -> the characters, and the languages (ISO 639-1) written in it. Japanese is written in Kana and Han."""

_PATTERNS = {name: re.compile(f"[{characters}]") for name, (characters, _) in SCRIPTS.items()}
_OF_LANGUAGE = {language: {name} for name, (_, languages) in SCRIPTS.items() for language in languages.split()}
_OF_LANGUAGE["ja"] = {"Kana", "Han"}


def known_languages() -> list[str]:
    return sorted(_OF_LANGUAGE)


def is_written_in(text: str, language: str) -> bool:
    """Whether more than half of a text's letters are of the language's script; for Japanese some must be Kana, for
    Chinese none."""
    counts = {name: len(pattern.findall(text)) for name, pattern in _PATTERNS.items()}
    scripts = _OF_LANGUAGE[language]
    share = sum(counts[name] for name in scripts)
    if language == "ja" and not counts["Kana"]:
        return False
    if scripts == {"Han"} and counts["Kana"]:
        return False
    return 2 * share > sum(counts.values())
