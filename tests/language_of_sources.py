"""The texts of the package that are looked up in another language, read from its sources and templates."""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

MAKERS = {"say": (0,), "Text": (0,), "spoken": (0,), "counted": (1, 2), "t": (0,), "label": (0,), "said": (1,),
          "at_most": (1,), "at_least": (1,)}  # fmt: skip
"""Functions that take a template, and the places of it among their arguments."""


Named = dict[str, list[ast.expr]]
"""Variable -> what is assigned to it somewhere in the file."""


def literals(node: ast.expr, named: Named) -> Iterator[str]:
    """The strings that an expression can be: a literal, either side of a condition, or those of a variable."""
    if isinstance(node, ast.Name):
        for value in named.get(node.id, []):
            yield from literals(value, {})
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from (*literals(node.body, named), *literals(node.orelse, named))
    elif isinstance(node, ast.Dict):
        yield from (text for value in node.values for text in literals(value, named))
    elif isinstance(node, ast.Subscript):
        yield from literals(node.value, named)


def texts_of_python(paths: Iterable[Path]) -> set[str]:
    found = set()
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named: Named = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                named.setdefault(node.targets[0].id, []).append(node.value)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            for place in MAKERS.get(name, ()):
                if len(node.args) > place:
                    found.update(literals(node.args[place], named))
    return found


STRING = r'"((?:[^"\\]|\\.)*)"'
CALLS = (rf"\b(?:t|label|chart|table|absent|reasons|side)\((?:[\w.]+, )?{STRING}(?:, {STRING})?",
         rf"counted\([\w.]+, {STRING}, {STRING}\)",
         rf"{STRING} if ", rf"\belse {STRING}", rf"{STRING} \| said")  # fmt: skip


def texts_of_templates(paths: Iterable[Path]) -> set[str]:
    """What the templates of the reports say, in a call of `t` or of a macro that calls it."""
    found: set[str] = set()
    for path in paths:
        source = path.read_text(encoding="utf-8")
        code = re.findall(r"\{[{%].*?[%}]\}", source, re.DOTALL)
        for part in code:
            for pattern in CALLS:
                found.update(text for match in re.finditer(pattern, part) for text in match.groups() if text)
            for listed in re.findall(r"heads\(\[(.*?)\]\)", part):
                found.update(text.lstrip("#") for text in re.findall(STRING, listed))
            if "words.learned" in part or '"green"' in part:
                found.update(re.findall(STRING, part))
    return found


def is_said(text: str) -> bool:
    """Whether a template has words of its own."""
    return re.search(r"[A-Za-z]{2,}", re.sub(r"\{.*?\}|<.*?>|\(#[\w-]+\)", "", text)) is not None
