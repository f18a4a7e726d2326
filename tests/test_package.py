"""What is published: the wheel and the source distribution, and the wheel in an empty directory."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import urllib.request
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.metadata import Metadata

import wukong

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
NAME = f"wukong_rlhf-{wukong.__version__}"
NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "WUKONG_SHARED")

Run = Callable[..., subprocess.CompletedProcess[str]]


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`make dist` on a checkout, without a package index: the wheel is built from the source distribution."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in tracked():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, checkout / name)
    build = [sys.executable, "-m", "build", "--no-isolation"]
    done = subprocess.run(build, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout / "dist"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (file,) = dist.glob("*.whl")
    assert file.name == f"{NAME}-py3-none-any.whl"
    return file


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel; what the wheel depends on is this environment's."""
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory)
    paths = sysconfig.get_paths("venv", vars={"base": str(directory), "platbase": str(directory)})
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        directory,
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        wheel,
    ]
    subprocess.run(install, check=True)
    ours = sysconfig.get_paths()
    # A line of a .pth file is searched last, and the .pth file of our editable install is not read from there.
    Path(paths["purelib"], "dependencies.pth").write_text(f"{ours['purelib']}\n{ours['platlib']}\n")
    return Path(paths["scripts"])


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for name in NOT_INHERITED:
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "empty"


@pytest.fixture
def run(programs: Path, empty: Path) -> Run:
    """Runs a program of the environment in an empty directory."""

    def call(program: str, *arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
        command = [programs / program, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, **more)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return call


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
    assert names == {name.removeprefix("src/") for name in tracked() if name.startswith("src/")}


def test_the_source_distribution_holds_what_the_wheel_is_built_from(dist):
    with tarfile.open(dist / f"{NAME}.tar.gz") as opened:
        names = {name.removeprefix(f"{NAME}/") for name in opened.getnames()}
    needed = {name for name in tracked() if name.startswith("src/")} | {"pyproject.toml", "README.md", "LICENSE"}
    assert needed <= names


def test_the_metadata_are_valid_and_complete(wheel):
    with zipfile.ZipFile(wheel) as opened:
        metadata = Metadata.from_email(opened.read(f"{NAME}.dist-info/METADATA"), validate=True)
    assert metadata.name == "wukong-rlhf"
    assert str(metadata.version) == wukong.__version__
    assert metadata.license_expression == "Apache-2.0"
    assert metadata.description_content_type == "text/markdown"
    assert set(metadata.project_urls or {}) == {"Documentation", "Repository", "Issues", "Changelog"}
    assert {"Operating System :: POSIX :: Linux", "Programming Language :: Python :: 3.13"} <= set(metadata.classifiers)


def test_the_wheel_alone_runs_the_test_recipe_in_an_empty_directory(run, programs, empty):
    where = run("python", "-c", "import wukong; print(wukong.__file__)").stdout
    assert Path(where.strip()).is_relative_to(programs.parent), "the wheel, not this checkout"
    run("wukong", "run", "test")
    assert (empty / "runs" / "test" / "report.html").stat().st_size > 100_000
    said = run("wukong", "chat", "runs/test/policy", input="How to make pizza\n").stdout
    assert said.strip()


def test_the_wheel_alone_lists_recipes_and_writes_one(run, empty):
    listed = run("wukong", "recipes").stdout
    assert all(name in listed for name in ("kitchen", "test", "hh"))
    run("wukong", "init", "my.yaml")
    assert run("wukong", "plan", "my.yaml").stdout
    run("wukong", "run", "kitchen", "--until", "tokenize")
    assert (empty / "runs" / "kitchen").is_dir()


def test_the_wheel_alone_serves_the_studio_with_its_style_and_scripts(programs, empty):
    command = [programs / "wukong", "studio", "--db", "studio.db", "--port", "0", "--no-open-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as studio:
        try:
            assert studio.stdout
            invitation = studio.stdout.readline().strip()
            page = urllib.request.urlopen(invitation, timeout=60).read().decode()
            assert "<form" in page
            address = invitation.split("/invite/")[0]
            linked = re.findall(r'(?:href|src)="(/static/[^"]+)"', page)
            assert {Path(name.split("?")[0]).suffix for name in linked} >= {".css"}
            for name in linked:
                assert urllib.request.urlopen(address + name, timeout=60).read()
        finally:
            studio.terminate()
