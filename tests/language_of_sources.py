"""The texts of the package that are looked up in another language, read from its sources and templates."""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

MAKERS = {"say": (0,), "Text": (0,), "spoken": (0,), "counted": (1, 2), "t": (0,), "label": (0,), "said": (1,),
          "at_most": (1,), "at_least": (1,)}  # fmt: skip
"""Functions that take a template, and the places of it among their arguments."""


Named = dict[str, list[ast.expr]]
"""Variable -> what is assigned to it somewhere in the file, or what a loop takes it from."""


def literals(node: ast.expr, named: Named, depth: int = 3) -> Iterator[str]:
    """The strings that an expression can be: a literal, either side of a condition, or those of a variable. An f-string
    has 7 for each value."""
    if isinstance(node, ast.Name):
        for value in named.get(node.id, []) if depth else []:
            yield from literals(value, named, depth - 1)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "7" for part in node.values)
    elif isinstance(node, ast.IfExp):
        yield from (*literals(node.body, named, depth), *literals(node.orelse, named, depth))
    elif isinstance(node, ast.Dict):
        yield from (text for value in node.values for text in literals(value, named, depth))
    elif isinstance(node, ast.Tuple | ast.List):
        yield from (text for value in node.elts for text in literals(value, named, depth))
    elif isinstance(node, ast.Subscript):
        yield from literals(node.value, named, depth)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("items", "values"):
        yield from literals(node.func.value, named, depth)


def named_in(tree: ast.AST) -> Named:
    named: Named = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.For | ast.comprehension):
            pairs = [(node.target, node.iter)]
        else:
            continue
        for target, value in pairs:
            if isinstance(target, ast.Name):
                named.setdefault(target.id, []).append(value)
            elif isinstance(target, ast.Tuple):
                values = value.elts if isinstance(value, ast.Tuple) else [value] * len(target.elts)
                for name, one in zip(target.elts, values, strict=False):
                    if isinstance(name, ast.Name):
                        named.setdefault(name.id, []).append(one)
    return named


def calls_in(path: Path) -> Iterator[tuple[str, ast.Call, Named]]:
    """(name of the function, call, variables of the file) of every call."""
    calls, named = _parsed(path)
    for node in calls:
        yield node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", ""), node, named


@cache
def _parsed(path: Path) -> tuple[list[ast.Call], Named]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)], named_in(tree)


def texts_of_python(paths: Iterable[Path]) -> set[str]:
    found = set()
    for path in paths:
        for name, call, named in calls_in(path):
            for place in MAKERS.get(name, ()):
                if len(call.args) > place:
                    found.update(literals(call.args[place], named))
    return found


PRINTERS = {"print": (), "add_column": (), "add_row": (), "Table": ("title",), "Bar": ("title",), "input": ()}
"""Functions that show their arguments, and these keywords, to people as they are."""


def printed_as_they_are(path: Path) -> Iterator[str]:
    """The words that a file shows in one language only, each with its place."""
    for name, call, _ in calls_in(path):
        if name not in PRINTERS:
            continue
        shown = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg in PRINTERS[name])]
        for text in (text for one in shown for text in literals(one, {})):
            if is_said(text):
                yield f"{path.name}:{call.lineno}: {text}"


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
