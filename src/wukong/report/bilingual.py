"""Both languages in one page: what the templates call to say something.

A text becomes two elements, one per language, of which the style sheet shows the one of `<html lang>`; the page's
script changes that attribute. Attributes and charts cannot hold two languages: their Chinese lies beside them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup, escape

from wukong.errors import Text
from wukong.language import LANGUAGES, translate
from wukong.report.terms import terms

_CODE = re.compile(r"`([^`]+)`")
_TERM = re.compile(r"\[([^\]]+)\]\(#([\w-]+)\)")


def t(text: str, /, **values: Any) -> Markup:
    """A text in both languages. `name` in backticks becomes code, [words](#entry) a term of the glossary with its
    definition; values are escaped, unless they are markup."""
    said = Text(text, **values)
    found = {language: _marked(language, said) for language in LANGUAGES}
    if len(set(found.values())) == 1:
        return found["en"]
    return Markup("").join(Markup('<span lang="{}">{}</span>').format(*one) for one in found.items())


_BETWEEN_SENTENCES = re.compile(r'(?<=[。；！？]</span>)\s+(?=<span lang="en">)')


def closed_up(page: str) -> str:
    """A page in which a blank between two sentences is in the English only: Chinese has none after a full stop."""
    return _BETWEEN_SENTENCES.sub('<span lang="en"> </span>', page)


def _marked(language: str, said: Text) -> Markup:
    marked = str(escape(translate(language, Text(said.template))))
    marked = _CODE.sub(r"<code>\1</code>", marked)
    marked = _TERM.sub(lambda match: term(language, match[2], match[1]) or match[0], marked)
    if not said.values:
        return Markup(marked)
    return Markup(marked).format(
        **{name: _marked(language, value) if isinstance(value, Text) else value for name, value in said.values.items()}
    )


def term(language: str, entry: str, words: str) -> str:
    """Words with the glossary's definition, shown when they are pointed at, focused or tapped; "" for an entry that the
    glossary does not have."""
    if entry not in terms():
        return ""
    about = escape(terms()[entry][language].replace("{", "(").replace("}", ")"))
    return f'<abbr class="term" tabindex="0" title="{about}">{words}</abbr>'


def label(text: str, /, **values: Any) -> Markup:
    """The attributes that name an element for screen readers, in both languages."""
    said = Text(text, **values)
    return Markup('aria-label="{}" data-en="{}" data-zh="{}"').format(
        said, translate("en", said), translate("zh", said)
    )


def both(value: Any) -> Any:
    """A figure for the page's script: a `Text` becomes {"en": ..., "zh": ...}."""
    if isinstance(value, Text):
        found = {language: translate(language, value) for language in LANGUAGES}
        return found if found["en"] != found["zh"] else found["en"]
    if isinstance(value, Mapping):
        return {key: both(one) for key, one in value.items()}
    return [both(one) for one in value] if isinstance(value, list | tuple) else value
