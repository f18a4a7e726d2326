"""The studio's languages: what a reader prefers, and the texts that its templates and scripts ask for, `t("Skip")`."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from fastapi import Request

from wukong.language import LANGUAGES, translate

HERE = Path(__file__).parent
_USE = re.compile(r"""\bt\(\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)')""")


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
