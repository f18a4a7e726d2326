"""The suite itself: what it replaces of the package's functions, and where its files lie."""

import ast
import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

TESTS = Path(__file__).resolve().parent
MOST_REPLACED = 45
"""A test that replaces a function of ours breaks at a redesign that users would not notice."""

SETTERS = {"setattr", "__setattr__", "delattr", "__delattr__", "setitem", "delitem"}
SETTERS |= {"patch", "object", "multiple", "dict"}
"""Calls that replace something: `monkeypatch.setattr(x, "name", new)`, `patch.object(x, "name")`."""
UNKNOWN = object()


class Replaced(ast.NodeVisitor):
    """Finds the replacements in one file, as (line, what).

    A replacement counts when it concerns a function, class or module of the package, or a name of it with a leading
    underscore. What belongs to Python or another library does not, nor does a public constant, such as a limit. What
    cannot be resolved counts.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.found: list[tuple[int, str]] = []
        self.paths: dict[str, str | None] = {}
        """A name in this file -> the dotted path it was imported or assigned from; None where that is unknown."""
        self.targets: set[ast.expr] = set()
        nodes = list(ast.walk(tree))
        self.functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        for node in nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    root = alias.name.partition(".")[0]
                    self.paths[alias.asname or root] = alias.name if alias.asname else root
            elif isinstance(node, ast.ImportFrom):
                self.paths |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        for node in nodes:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.paths.setdefault(node.targets[0].id, self.path(node.value))
        self.visit(tree)

    def path(self, node: ast.expr) -> str | None:
        """The dotted path that an expression means, with () for an instance."""
        match node:
            case ast.Name(id):
                return self.paths.get(id)
            case ast.Attribute(value, attr):
                owner = self.path(value)
                return owner and f"{owner}.{attr}"
            case ast.Call(
                func=ast.Attribute(attr="import_module" | "importorskip") | ast.Name(id="import_module"),
                args=[name, *_],
            ):
                return self.text(name)
            case ast.Subscript(value=ast.Attribute(attr="modules"), slice=name):
                return self.text(name)
            case ast.Call(func=func):
                made = self.path(func)
                return made and f"{made}()"
        return None

    @staticmethod
    def text(node: ast.expr) -> str | None:
        """A string; an f-string with {} for what is not known."""
        match node:
            case ast.Constant(str(value)):
                return value
            case ast.JoinedStr(values):
                return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in values)
        return None

    def note(self, node: ast.AST, path: str | None, new: ast.expr | None = None) -> None:
        if path is None or path.partition(".")[0] == "wukong":
            private = path is not None and path.rpartition(".")[2].startswith("_")
            is_plain = isinstance(new, ast.Constant) and new.value is not None  # no function becomes a number or a text
            if private or (not is_plain and (path is None or is_ours(path))):
                self.found.append((getattr(node, "lineno", 0), path or ast.unparse(node)))

    def visit_Constant(self, node: ast.Constant) -> None:
        """The name of a function, given to something that may replace it."""
        named = isinstance(node.value, str) and re.fullmatch(r"wukong(\.\w+)+", node.value)
        if named and node not in self.targets and callable(object_at(node.value)):
            self.note(node, node.value)

    def visit_Call(self, node: ast.Call) -> None:
        self.call(node)
        self.generic_visit(node)

    def call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in SETTERS or not node.args:
            return
        if name in ("object", "multiple", "dict") and "patch" not in ast.unparse(node.func):
            return
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        target, *rest = [*node.args, *(named[key] for key in ("name", "attribute", "value", "new") if key in named)]
        whole = self.text(target)
        self.targets.add(target)
        value = 0 if whole is not None else 1
        new = rest[value] if len(rest) > value else None
        if name in ("setitem", "delitem", "dict"):
            self.dictionary(node, target, rest)
        elif name == "multiple":
            owner = whole or self.path(target)
            for keyword in node.keywords:
                self.note(node, owner and f"{owner}.{keyword.arg}", keyword.value)
        elif name == "patch" or whole is not None:
            self.note(node, whole, new)
        elif rest:
            self.note(node, self.member(target, self.text(rest[0])), new)

    def member(self, owner: ast.expr, name: str | None) -> str | None:
        path = self.path(owner)
        return path and f"{path}.{name or '{}'}"

    def dictionary(self, node: ast.AST, target: ast.expr, rest: list[ast.expr]) -> None:
        """`sys.modules["wukong.x"]`, `x.__dict__["name"]` and `vars(x)["name"]`."""
        keys = [text for one in rest for text in self.keys(one)]
        if (isinstance(target, ast.Attribute) and target.attr == "modules") or self.text(target) == "sys.modules":
            for key in keys:
                self.note(node, key or None)
        elif (owner := self.namespace(target)) is not None:
            for key in keys:
                self.note(node, self.member(owner, key))

    def keys(self, node: ast.expr) -> list[str]:
        if isinstance(node, ast.Dict):
            return [self.text(key) or "" for key in node.keys if key is not None]
        return [text] if (text := self.text(node)) is not None else []

    @staticmethod
    def namespace(node: ast.expr) -> ast.expr | None:
        match node:
            case ast.Attribute(value, "__dict__"):
                return value
            case ast.Call(func=ast.Name(id="vars"), args=[value]):
                return value
        return None

    def assigned(self, target: ast.expr, value: ast.expr | None) -> None:
        """`module.name = new`; of an unknown object's attributes, those that become a function."""
        if isinstance(target, ast.Tuple | ast.List):
            for one in target.elts:
                self.assigned(one, None)
        elif isinstance(target, ast.Subscript):
            self.dictionary(target, target.value, [target.slice])
        elif isinstance(target, ast.Attribute):
            path = self.path(target)
            of_self = isinstance(target.value, ast.Name) and target.value.id == "self"
            becomes = isinstance(value, ast.Lambda) or (isinstance(value, ast.Name) and value.id in self.functions)
            if path is not None or (becomes and not of_self):
                self.note(target, path, value)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for one in node.targets:
            self.assigned(one, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        self.assigned(node.target, node.value)

    def visit_Delete(self, node: ast.Delete) -> None:
        self.generic_visit(node)
        for one in node.targets:
            self.assigned(one, None)


def is_ours(path: str) -> bool:
    """Whether a path below wukong means a function, class or module of the package, or nothing that can be found."""
    found = object_at(path.replace("()", ""))
    if found is UNKNOWN:
        return "()" not in path  # else an attribute that only the instance has
    owner = found.__name__ if isinstance(found, ModuleType) else getattr(found, "__module__", None)
    return (callable(found) or isinstance(found, ModuleType)) and str(owner).partition(".")[0] == "wukong"


def object_at(path: str) -> object:
    names = path.split(".")
    for end in range(len(names), 0, -1):
        try:
            found: object = importlib.import_module(".".join(names[:end]))
        except ImportError:
            continue
        for name in names[end:]:
            found = getattr(found, name, UNKNOWN)
        return found
    return UNKNOWN


def replaced(source: str) -> list[str]:
    return [what for _, what in Replaced(ast.parse(source)).found]


def test_few_tests_replace_functions_of_ours():
    found = [
        f"{file.relative_to(TESTS).as_posix()}:{line} {what}"
        for file in sorted(TESTS.rglob("*.py"))
        for line, what in Replaced(ast.parse(file.read_text(encoding="utf-8"))).found
    ]
    assert len(found) <= MOST_REPLACED, "\n".join(found)


@pytest.mark.parametrize(
    "statement",
    [
        'monkeypatch.setattr(rollout, "generate", fake)',
        'monkeypatch.setattr("wukong.rollout.generate", fake)',
        'monkeypatch.setattr(wukong.rollout, name="generate", value=fake)',
        'monkeypatch.setattr(f"wukong.rollout.{name}", fake)',
        'monkeypatch.setattr(rollout, "PREFILL_TOKENS", None) or monkeypatch.setattr(rollout, name, fake)',
        'monkeypatch.setattr(files, "_free", 3)',
        'monkeypatch.setattr(GPT2, "forward", fake)',
        'monkeypatch.setattr(somebody.optimizer, "step", fake)',
        'monkeypatch.setattr(rollout, "generate", fake, raising=False)',
        'monkeypatch.delattr(rollout, "generate", raising=False)',
        'monkeypatch.setitem(sys.modules, "wukong.rollout", fake)',
        'monkeypatch.setitem(rollout.__dict__, "generate", fake)',
        'setattr(rollout, "generate", fake)',
        'object.__setattr__(GPT2, "forward", fake)',
        'mock.patch("wukong.rollout.generate")',
        'mock.patch.object(rollout, "generate", fake)',
        "patch.multiple(rollout, generate=fake)",
        'patch.dict(sys.modules, {"wukong.rollout": fake})',
        "rollout.generate = fake",
        "module = rollout; module.generate = fake",
        "(rollout.generate, x) = fake, 1",
        "rollout.generate: object = fake",
        'importlib.import_module("wukong.rollout").generate = fake',
        'sys.modules["wukong.rollout"].generate = fake',
        'sys.modules["wukong.rollout"] = fake',
        'vars(rollout)["generate"] = fake',
        "model.forward = lambda *_: None",
        "Session(options).show = fake",
        "del rollout.generate",
        'die_in("wukong.rollout.generate")',
    ],
)
def test_a_replacement_is_seen_however_it_is_spelled(statement):
    imports = "import importlib, sys, wukong.rollout\nfrom unittest import mock\nfrom unittest.mock import patch\n"
    imports += "from wukong import files, rollout\nfrom wukong.model.gpt2 import GPT2\n"
    imports += "from wukong.training.session import Session\n"
    assert len(replaced(imports + statement)) == 1


@pytest.mark.parametrize(
    "statement",
    [
        'monkeypatch.setattr(rollout, "PREFILL_TOKENS", 128)',
        'monkeypatch.setattr("wukong.rollout.PREFILL_TOKENS", size)',
        'monkeypatch.setattr(torch.cuda, "is_available", fake)',
        'monkeypatch.setattr("pathlib.Path.write_text", fake)',
        'monkeypatch.setitem(sys.modules, "datasets", fake)',
        'monkeypatch.setenv("HOME", "x")',
        "model.config = config",
        "self.forward = fake",
    ],
)
def test_what_is_not_a_function_of_ours_is_not_counted(statement):
    assert replaced(f"import sys, torch\nfrom wukong import rollout\n{statement}") == []
