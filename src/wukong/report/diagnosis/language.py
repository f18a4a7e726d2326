"""The findings in Chinese: `zh.json` has the templates, which are looked up as the studio's texts are."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from wukong.errors import Text

CATALOGUE = Path(__file__).with_name("zh.json")


@cache
def chinese() -> dict[str, str]:
    found: dict[str, str] = json.loads(CATALOGUE.read_text(encoding="utf-8"))
    return found


def in_language(text: str | Text, language: str) -> str:
    """A text in a language, with its values filled in; what has no translation stays English."""
    said = Text(text)
    found = chinese().get(said.template, said.template) if language == "zh" else said.template
    if not said.values:
        return found
    values = {name: in_language(one, language) if isinstance(one, Text) else one for name, one in said.values.items()}
    return found.format(**values)
