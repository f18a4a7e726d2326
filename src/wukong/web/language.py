"""The studio's two languages. English text is written where it is used, `t("Skip")`; `zh.json` has its Chinese.

Errors and other lines with names and numbers in them are `wukong.errors.Text`: the template is looked up.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request

from wukong.errors import Text, WukongError, printable
from wukong.report.glass import GLASS

HERE = Path(__file__).parent
LANGUAGES = {"en": "English", "zh": "简体中文"}
_USE = re.compile(r"""\bt\(\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)')""")


@cache
def chinese() -> dict[str, str]:
    files = (HERE / "zh.json", HERE / "zh-metrics.json")
    return {text: found for file in files for text, found in json.loads(file.read_text(encoding="utf-8")).items()}


def translate(language: str, text: str | WukongError, /, **values: Any) -> str:
    """A text in a language, with `{name}` filled in. What has no translation stays English.

    A `Text` and an error bring their own values; those among them that are a `Text` or an error are translated too.
    """
    if isinstance(text, WukongError):
        return printable(translate(language, text.text))
    said = Text(text, **values)
    found = chinese().get(said.template, said.template) if language == "zh" else said.template
    if not said.values:
        return found
    return found.format(
        **{
            name: translate(language, value) if isinstance(value, Text | WukongError) else value
            for name, value in said.values.items()
        }
    )


def used_in(path: Path) -> set[str]:
    """The texts that a template or script asks for."""
    return {(a or b).replace('\\"', '"') for a, b in _USE.findall(path.read_text(encoding="utf-8"))}


def scripts() -> list[Path]:
    """The scripts of the pages."""
    return [*(HERE / "static").glob("*.js"), *GLASS.glob("*.js")]


@cache
def script_texts(language: str) -> str:
    """JSON of every text that the scripts use, for the page to hand them."""
    texts = sorted(set().union(*map(used_in, scripts())))
    return json.dumps({text: translate(language, text) for text in texts}, ensure_ascii=False)


def preferred(accept: str) -> str:
    """The language of an Accept-Language header: Chinese where it is named before English."""
    for part in accept.lower().split(","):
        name = part.split(";")[0].strip()[:2]
        if name in LANGUAGES:
            return name
    return "en"


def language_of(request: Request) -> str:
    """What somebody chose, else what their browser prefers."""
    chosen = request.cookies.get("wukong_language", "")
    return chosen if chosen in LANGUAGES else preferred(request.headers.get("accept-language", ""))
