"""`wukong recipes`: the recipes that come with the package.

    wukong recipes

Name, time, needs and one sentence each, from the recipes themselves. `wukong run NAME` runs one, and
`wukong init my.yaml --based-on NAME` writes a copy to start from.
"""

from __future__ import annotations

import textwrap

from wukong.errors import Text
from wukong.files import read_yaml
from wukong.language import spoken
from wukong.options import Options
from wukong.recipes.shipped import SHIPPED
from wukong.wide_text import narrowed, widened


class RecipesOptions(Options):
    """List the recipes that come with the package: what each does, how long it takes and what it needs."""


def run(options: RecipesOptions) -> None:
    for name, path in SHIPPED.items():
        content, _ = read_yaml(path)
        print(name)
        for key in ("description", "time", "needs"):
            said = Text(content[key])
            label = "" if key == "description" else key
            print(_paragraph(spoken("{what}: {name}", what=Text(label), name=said) if label else spoken(said)))


def _paragraph(text: str) -> str:
    indent = " " * 4
    lines = textwrap.wrap(widened(text), 100, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join(map(narrowed, lines))
