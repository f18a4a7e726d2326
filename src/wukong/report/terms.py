"""The glossary's definitions, for the terms of a page. `terms.json` is written from docs/glossary*.md (`make docs`):

python -m wukong.report.terms docs > src/wukong/report/terms.json
"""

from __future__ import annotations

import json
import re
import sys
from functools import cache
from pathlib import Path

from wukong.language import LANGUAGES

_HEADING = re.compile(r"^## (.+?)(?: \{#([\w-]+)\})?$", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")
_REFERENCE = re.compile(r"(?<=[.。])\s*(?:See|见)[^.。]*[.。]\s*$|^(?:See|见)[^.。]*[.。]$")
"""A last sentence that only names another page."""


@cache
def terms() -> dict[str, dict[str, str]]:
    """Entry -> language -> definition."""
    found: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("terms.json").read_text(encoding="utf-8"))
    return found


def definitions(glossary: str) -> dict[str, str]:
    """Entry -> definition in plain text: the first paragraph, without its links."""
    headings = list(_HEADING.finditer(glossary))
    found = {}
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        text = glossary[heading.end() : following.start() if following else len(glossary)].strip()
        plain = " ".join(_LINK.sub(r"\1", text.split("\n\n")[0]).replace("`", "").split())
        found[heading[2] or _anchor(heading[1])] = _REFERENCE.sub("", plain).strip()
    return found


def _anchor(heading: str) -> str:
    """The address that mkdocs gives a heading."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-")


def from_glossaries(docs: Path) -> dict[str, dict[str, str]]:
    """What terms.json holds: the entries that both languages have."""
    files = {language: docs / f"glossary{'' if language == 'en' else '.' + language}.md" for language in LANGUAGES}
    found = {language: definitions(file.read_text(encoding="utf-8")) for language, file in files.items()}
    return {
        entry: {language: found[language][entry] for language in LANGUAGES}
        for entry in found["en"]
        if entry in found["zh"]
    }


if __name__ == "__main__":
    json.dump(from_glossaries(Path(sys.argv[1])), sys.stdout, ensure_ascii=False, indent=1)
    print()
