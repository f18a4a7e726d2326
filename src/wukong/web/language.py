"""The studio's languages: what a reader prefers, and the texts that its scripts ask for."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from fastapi import Request

from wukong.feedback.store.values import FLAGS, SKIP_REASONS
from wukong.language import LANGUAGES, translate
from wukong.language.scripts import used_in
from wukong.report.glass import SHARED

HERE = Path(__file__).parent


def scripts() -> list[Path]:
    """The scripts of the pages."""
    return [*(HERE / "static").glob("*.js"), *SHARED.glob("*.js")]


@cache
def script_texts(language: str) -> str:
    """JSON of every text that the scripts use, for the page to hand them."""
    texts = sorted(set(FLAGS + SKIP_REASONS).union(*map(used_in, scripts())))
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
