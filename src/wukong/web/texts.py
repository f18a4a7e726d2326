"""The studio's two languages. English text stands where it is used, `t("Skip")`; `zh.json` has the Chinese for each."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request

HERE = Path(__file__).parent
LANGUAGES = {"en": "English", "zh": "简体中文"}
_USE = re.compile(r"""\bt\(\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)')""")


@cache
def chinese() -> dict[str, str]:
    files = (HERE / "zh.json", HERE / "zh-metrics.json")
    return {text: found for file in files for text, found in json.loads(file.read_text(encoding="utf-8")).items()}


def translate(language: str, text: str, **values: Any) -> str:
    """The text in a language, with `{name}` filled in. What has no translation stays English."""
    found = chinese().get(text, text) if language == "zh" else text
    return found.format(**values) if values else found


def translate_made(language: str, text: str) -> str:
    """An error, or another line that came from below the pages with names and numbers in it: the text with `{places}`
    of which it was made is found by what stands between them. A line that no text makes, such as a data reader's about
    a bad record, stays English."""
    if language != "zh" or text in chinese():
        return translate(language, text)
    for pattern, found in _patterns():
        if match := pattern.fullmatch(text):
            return found.format(**{name: translate_made(language, part) for name, part in match.groupdict().items()})
    return text


@cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """A pattern for each Chinese text with places, those with most words first."""
    texts = [text for text in chinese() if "{" in text]
    texts.sort(key=lambda text: -len(re.sub(r"\{\w+\}", "", text)))
    return [
        (re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(text)), re.DOTALL), chinese()[text])
        for text in texts
    ]


def used_in(path: Path) -> set[str]:
    """The texts that a template or script asks for."""
    return {(a or b).replace('\\"', '"') for a, b in _USE.findall(path.read_text(encoding="utf-8"))}


@cache
def script_texts(language: str) -> str:
    """JSON of every text that the scripts use, for the page to hand them."""
    texts = sorted(set().union(*(used_in(path) for path in (HERE / "static").glob("*.js"))))
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
