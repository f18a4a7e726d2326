"""The layers of the package: imports point only downwards, stages never import each other, `import wukong` is light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from wukong.registry import PUBLIC, RUN, STAGES, TOOLS

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "wukong"

# From the top down.
LAYERS = ["__main__", "cli", "cli_parser", "plan", "accept", "merge", "runner", "story", "recipe", "recipes"]
LAYERS += ["registry", "events", "api", "web", "serve", "studies", "stages", "report", "chat", "rl_env", "run_models"]
LAYERS += ["require"]
LAYERS += ["feedback", "inspection", "scoring"]
LAYERS += ["rollout", "objectives", "training", "kitchen", "data", "model", "gguf_import"]
LAYERS += ["tokenizer", "tokenizer_files", "tokenizer_spelling", "tokenizer_kinds", "tokenizer_checks", "downloads"]
LAYERS += ["chat_template", "template_renderer", "sampling", "provenance", "places", "records", "seeds"]
LAYERS += ["foreign_json", "strict_json"]
LAYERS += ["stats", "options", "console", "files", "processes", "version", "language", "wide_text", "errors"]


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


@cache
def import_graph() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports, also inside functions and under TYPE_CHECKING. That importing a
    module runs the packages above it first is Python's doing, and no edge."""
    files = {".".join(("wukong", *name)).removesuffix(".__init__"): PACKAGE.joinpath(*name) for name in modules()}
    files["wukong"] = PACKAGE / "__init__"
    graph: dict[str, set[str]] = {}
    for module, file in files.items():
        found = imported(file.with_suffix(".py").read_text(encoding="utf-8"))
        known = (name if name in files else name.rpartition(".")[0] for name in found)
        graph[module] = {name for name in known if name in files and name != module}
    return graph


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += graph[name]
    return found


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other, directly or through others."""
    reached = {start: reachable(graph, start) for start in graph}
    groups = ([name for name in reached[start] if start in reached[name]] for start in graph)
    return sorted({tuple(sorted(group)): sorted(group) for group in groups if group}.values())


def test_there_is_no_import_cycle():
    assert len(import_graph()) > 150
    assert cycles(import_graph()) == []


def test_an_import_cycle_would_be_seen():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    source = "if TYPE_CHECKING:\n    import wukong.a\ndef f():\n    from wukong.b import c"
    assert sorted(imported(source)) == ["wukong.a", "wukong.b.c"]


def strings_naming_modules(source: str) -> Iterator[str]:
    """The strings that name a module of ours, other than a logger's name."""
    tree = ast.parse(source)
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute))
    loggers = [argument for call in calls if call.func.attr == "getLogger" for argument in call.args]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node not in loggers and node.value in import_graph().keys() - {"wukong"}:
            yield node.value


def test_only_the_registry_names_modules_by_strings():
    importers = {"registry.py", "feedback/functions.py"}  # the latter imports what a person names: module:function
    for file in sorted(PACKAGE.rglob("*.py")):
        name, source = file.relative_to(PACKAGE).as_posix(), file.read_text(encoding="utf-8")
        assert ("import_module" in source or "__import__" in source) == (name in importers), name
        if name != "registry.py":
            assert list(strings_naming_modules(source)) == [], name
    registered = set(strings_naming_modules((PACKAGE / "registry.py").read_text(encoding="utf-8")))
    assert registered == {stage.module for stage in (*STAGES.values(), *TOOLS.values(), RUN)} | set(PUBLIC.values())


def test_a_module_named_by_a_string_would_be_seen():
    assert list(strings_naming_modules("x = 'wukong.cli'; logging.getLogger('wukong.serve')")) == ["wukong.cli"]


def test_an_import_upwards_would_be_seen():
    assert list(imported("def f():\n    from wukong.stages import sft")) == ["wukong.stages.sft"]
    assert LAYERS.index("stages") < LAYERS.index("data")


def test_stages_do_not_import_each_other():
    """What several share lies in modules beside them, which use no stage either."""
    stages = {stage.module for stage in (*STAGES.values(), *TOOLS.values())}
    rooms = [name for name in modules() if name[0] == "stages" and name[-1] != "__init__"]
    assert len(stages) >= 17
    for room in rooms:
        source = PACKAGE.joinpath(*room).with_suffix(".py").read_text(encoding="utf-8")
        others = [name for name in imported(source) if name.rpartition(".")[0] in stages or name in stages]
        assert not others, f"{room[-1]} uses {others}"


@pytest.mark.parametrize("module", ["wukong", "wukong.cli"])
def test_torch_is_not_imported_before_it_is_needed(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_any_module_has_no_effects_on_the_command_line():
    names = [".".join(("wukong", *(part for part in module if part != "__init__"))) for module in modules()]
    code = "import importlib, sys\n" + "\n".join(f"importlib.import_module({name!r})" for name in names)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
