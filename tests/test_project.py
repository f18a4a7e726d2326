"""What is shipped beside the code: recipes, generated pages, pinned versions."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import wukong
from wukong.cli import reference
from wukong.recipe import VARIABLE, load_recipe, resolve
from wukong.recipes.shipped import SHIPPED
from wukong.registry import STAGES, TOOLS
from wukong.runner import RunOptions
from wukong.studies.doctor.environment import EXTRAS

ROOT = Path(__file__).resolve().parents[1]
RECIPES = list(SHIPPED.values())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_shipped_recipes():
    names = ["course", "gsm8k", "hh", "hh-scratch", "kitchen", "kitchen-zh", "polite", "sentiment", "test"]
    names.append("verifiable")
    assert sorted(path.stem for path in RECIPES) == names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_builds(path, monkeypatch):
    for variable in VARIABLE.findall(path.read_text(encoding="utf-8")):
        monkeypatch.setenv(variable, "/data")
    loaded = load_recipe(path)
    assert loaded.recipe.name == path.stem
    run_dir, steps = resolve(loaded)
    assert run_dir == Path("runs") / path.stem
    assert [step.name for step in steps] == list(loaded.recipe.steps)
    assert all(step.options.out.is_relative_to(run_dir) for step in steps), "a run leaves nothing outside its directory"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_and_the_data_they_need_stand_in_the_docs(path):
    page = (ROOT / "docs" / "reference" / "recipes.md").read_text(encoding="utf-8")
    recipe = load_recipe(path).recipe
    needs = recipe.needs.replace("(docs/reference/recipes.md)", "(below)")
    assert f"| `{path.stem}` | {recipe.description} | {recipe.time} | {needs} |" in page
    for directory, file in re.findall(r"\$\{WUKONG_DATA\}/(\S+)/([\w.-]+)", path.read_text(encoding="utf-8")):
        assert f"`{directory}/" in page, directory
        assert file in page, file


@pytest.mark.parametrize("name", [*STAGES, *TOOLS])
def test_every_option_says_what_it_does(name):
    options, _ = {**STAGES, **TOOLS}[name].load()
    assert options.__doc__
    for field, info in options.model_fields.items():
        assert info.description, f"{name}: {field} has no docstring"
        assert info.description.strip().endswith((".", ")")), f"{name}: {field}: {info.description}"


@pytest.mark.parametrize("name", [*STAGES, *TOOLS])
def test_every_command_shows_an_example_that_parses(name):
    stage = {**STAGES, **TOOLS}[name]
    options, _ = stage.load()
    words = stage.example.split()
    assert words[:2] == ["wukong", name]
    flags = {word.removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
    assert flags <= set(options.model_fields)
    required = {field for field, info in options.model_fields.items() if info.is_required()} - {stage.positional}
    assert required <= flags


def test_every_extra_has_a_purpose():
    """Which `wukong doctor` tells."""
    assert EXTRAS.keys() == PROJECT["optional-dependencies"].keys()


def test_every_option_of_run_says_what_it_does():
    assert all(info.description for info in RunOptions.model_fields.values())


def test_the_command_line_reference_is_current(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    for language, name in (("en", "cli.md"), ("zh", "cli.zh.md")):
        written = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
        assert written == reference(language), f"docs/reference/{name} is out of date: make docs"


def test_every_command_is_documented():
    written = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert re.findall(r"^## wukong (.+)$", written, re.MULTILINE) == ["run", *TOOLS, *STAGES]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {
        canonical(name): version for name, _, version in (line.partition("==") for line in lines if line[:1] != "#")
    }


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(requirement: Requirement, found: set[tuple[str, frozenset[str]]]) -> set[tuple[str, frozenset[str]]]:
    """(package, extras) of a requirement and of all that it takes along on this platform."""
    key = (canonical(requirement.name), frozenset(requirement.extras))
    if key in found:
        return found
    found.add(key)
    try:
        requirements = map(Requirement, distribution(requirement.name).requires or [])
    except PackageNotFoundError:  # the marker asks for it, the installation did without
        return found
    for other in requirements:
        if other.marker is None or any(other.marker.evaluate({"extra": e}) for e in ("", *requirement.extras)):
            needed(other, found)
    return found


def test_constraints_pin_every_dependency():
    pinned = pins()
    assert all(re.fullmatch(r"[\w.]+", version) for version in pinned.values()), "exact versions, without a local part"
    direct = [*PROJECT["dependencies"], *(r for group in PROJECT["optional-dependencies"].values() for r in group)]
    for requirement in map(Requirement, direct):
        name = canonical(requirement.name)
        assert name == "wukong-rlhf" or pinned[name] in requirement.specifier, requirement
    installed = {name for name, _ in needed(Requirement("wukong-rlhf[dev]"), set())} - {"wukong-rlhf"}
    extra = {name for name in installed if name.startswith(("nvidia-", "triton", "cuda-"))}  # of torch's CUDA build
    assert installed - extra - set(pinned) == set()


def test_the_licence_is_the_declared_one():
    assert PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text


def test_the_changelog_knows_this_version():
    assert f"## {wukong.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_make_targets_of_the_issue_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("run", "test", "test-interop", "lint", "bench", "course", "site", "dist"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def workflow(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))


def test_workflows_call_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    called = {}
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        commands = re.findall(r"run: make (.*)", file.read_text(encoding="utf-8"))
        called[file.stem] = {word for command in commands for word in command.split() if "=" not in word}
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in called[file.stem]), file
    assert called == {
        "tests": {"lint", "test", "test-interop"},
        "site": {"course", "site"},
        "release": {"lint", "test", "dist", "test-interop"},
    }


def test_ci_runs_on_every_system_and_python_that_the_classifiers_name():
    jobs = workflow("tests")["jobs"]
    claimed = {name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)}
    for job in ("unix", "windows"):
        assert set(jobs[job]["strategy"]["matrix"]["python"]) == claimed
    assert jobs["unix"]["strategy"]["matrix"]["os"] == ["ubuntu-latest", "macos-latest"]
    assert jobs["windows"]["runs-on"] == "windows-latest"


def test_ci_runs_lint_both_halves_of_the_tests_the_course_and_the_site():
    """The halves exclude each other, and no test is in neither."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.findall(r'-m "(.*?)"', makefile) == ["not slow and not interop", "slow or interop"]
    commands = re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert commands == ["lint", "test", "test-interop", "course", "site"]
