"""What pages of the documentation name: whether a module, a test or an option of that name exists."""

import ast
from functools import cache
from pathlib import Path

from wukong.registry import STAGES, TOOLS
from wukong.runner import RunOptions

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "wukong"


@cache
def defined(path: Path) -> frozenset[str]:
    """What a module defines: functions, classes and their members ("PPO.credit" and "credit"), constants."""
    names: set[str] = set()

    def walk(body: list[ast.stmt], above: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                names.update({node.name, f"{above}{node.name}"})
                if isinstance(node, ast.ClassDef):
                    walk(node.body, f"{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names.update(one.id for one in targets if isinstance(one, ast.Name))

    walk(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return frozenset(names)


@cache
def options() -> frozenset[str]:
    """Every option of every command, as it is typed."""
    classes = [RunOptions, *(stage.load()[0] for stage in (*STAGES.values(), *TOOLS.values()))]
    names = {name for one in classes for name in one.model_fields} | {"redo"}
    return frozenset(f"--{name.replace('_', '-')}" for name in names)
