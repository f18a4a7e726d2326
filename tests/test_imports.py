"""The layers of the package: imports point only downwards, stages never import each other, `import wukong` is light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wukong.cli import TOOLS
from wukong.recipe import STAGES

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "wukong"

# From the top down. web, serve and rl_env have their place before they exist.
LAYERS = ["__main__", "cli", "plan", "accept", "recipe", "api", "web", "serve", "studies", "stages", "report"]
LAYERS += ["require", "feedback", "rl_env", "rollout"]
LAYERS += ["objectives", "training", "kitchen", "data", "model", "tokenizer", "tokenizer_files", "strict_json"]
LAYERS += ["chat_template", "template_renderer", "sampling", "provenance", "places", "records", "seeds"]
LAYERS += ["intervals", "options", "console", "files", "processes", "errors"]


def imported(source: str) -> Iterator[str]:
    """The dotted names that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules() -> list[tuple[str, ...]]:
    """("stages", "sft") for src/wukong/stages/sft.py; the package's own `__init__`, its front door, is none."""
    names = [path.relative_to(PACKAGE).with_suffix("").parts for path in sorted(PACKAGE.rglob("*.py"))]
    return [name for name in names if name != ("__init__",)]


@pytest.mark.parametrize("module", modules(), ids=".".join)
def test_imports_point_downwards(module):
    source = PACKAGE.joinpath(*module).with_suffix(".py").read_text(encoding="utf-8")
    for name in imported(source):
        root, _, rest = name.partition(".")
        room = rest.partition(".")[0]
        if root == "wukong" and room and (room in LAYERS or (PACKAGE / room).is_dir()):
            assert room == module[0] or LAYERS.index(room) > LAYERS.index(module[0]), f"{'.'.join(module)} uses {name}"


def test_an_import_upwards_would_be_seen():
    assert list(imported("def f():\n    from wukong.stages import sft")) == ["wukong.stages.sft"]
    assert LAYERS.index("stages") < LAYERS.index("data")


def test_stages_do_not_import_each_other():
    """What several share lies beside them in modules of its own, which use no stage either."""
    stages = {stage.module for stage in (*STAGES.values(), *TOOLS.values())}
    rooms = [name for name in modules() if name[0] == "stages" and name[1] != "__init__"]
    assert len(stages) >= 17
    for room in rooms:
        source = PACKAGE.joinpath(*room).with_suffix(".py").read_text(encoding="utf-8")
        others = [name for name in imported(source) if name.rpartition(".")[0] in stages or name in stages]
        assert not others, f"{room[1]} uses {others}"


@pytest.mark.parametrize("module", ["wukong", "wukong.cli"])
def test_torch_is_not_imported_before_it_is_needed(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_any_module_has_no_effects_on_the_command_line():
    names = [".".join(("wukong", *(part for part in module if part != "__init__"))) for module in modules()]
    code = "import importlib, sys\n" + "\n".join(f"importlib.import_module({name!r})" for name in names)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
