"""`wukong recipes`: the recipes that come with the package.

    wukong recipes

Name, time, needs and one sentence each, from the recipes themselves. `wukong run NAME` runs one, and
`wukong init my.yaml --based-on NAME` writes a copy to start from.
"""

from __future__ import annotations

import textwrap

from wukong.files import read_yaml
from wukong.options import Options
from wukong.recipes.shipped import SHIPPED


class RecipesOptions(Options):
    """List the recipes that come with the package: what each does, how long it takes and what it needs."""


def run(options: RecipesOptions) -> None:
    for name, path in SHIPPED.items():
        content, _ = read_yaml(path)
        print(name)
        for key in ("description", "time", "needs"):
            label = "" if key == "description" else f"{key}: "
            print(_paragraph(f"{label}{content[key]}"))


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 100, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
