"""What is published: wheel and sdist build; the wheel alone, in an empty directory, runs a recipe and the studio."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import time
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

import wukong

ROOT = Path(__file__).resolve().parents[1]
NOT_SHIPPED = {".git", ".venv", "runs", "site", "dist", "build"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel and the sdist, built from the tracked files."""
    out = tmp_path_factory.mktemp("dist")
    tree = tmp_path_factory.mktemp("tree")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "build", "--outdir", out, tree], check=True, stdout=subprocess.DEVNULL)
    return out


@pytest.fixture(scope="module")
def python(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that finds the wheel, and of this environment the other packages but not this checkout."""
    place = tmp_path_factory.mktemp("installed")
    venv.create(place, with_pip=False)
    interpreter = place / "bin" / "python"
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(
        subprocess.run([interpreter, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    )
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:  # a wheel of plain files is installed by unpacking it
        archive.extractall(packages)
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return interpreter


def run(python: Path, directory: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"COLUMNS": "200"}
    done = subprocess.run(
        [python, "-m", "wukong", *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_wheel_and_sdist_hold_what_they_should(built: Path) -> None:
    [wheel], [sdist] = built.glob("*.whl"), built.glob("*.tar.gz")
    assert wheel.name == f"wukong_rlhf-{wukong.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    source = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "wukong").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert source - names == set(), "package data that no pattern of pyproject.toml names"
    with tarfile.open(sdist) as archive:
        top = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert {"src", "pyproject.toml", "README.md", "LICENSE"} <= top
    assert not top & NOT_SHIPPED


def test_the_wheel_alone_runs_a_recipe_in_an_empty_directory(python: Path, tmp_path: Path) -> None:
    assert "kitchen" in run(python, tmp_path, "recipes")
    run(python, tmp_path, "init", "my.yaml")
    run(python, tmp_path, "run", "my.yaml", "--until", "kitchen")
    assert "report: open" in run(python, tmp_path, "run", "test")
    assert (tmp_path / "runs/test/report.html").stat().st_size > 10_000
    answer = run(python, tmp_path, "chat", "runs/test/policy", "--prompt", "How to make pizza", "--device", "cpu")
    assert answer.strip()


def test_the_studio_of_the_wheel_shows_its_pages(python: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-m", "wukong", "studio", "--run", "runs/mine", "--port", "0", "--no-open-browser"]
    with (tmp_path / "log").open("w") as log:
        studio = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(600):
            if found := re.search(r"http://127\.0\.0\.1:\d+", (tmp_path / "log").read_text()):
                break
            assert studio.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        assert found
        for page, words in (("/login", "<form"), ("/static/studio.css", "{"), ("/static/label.js", "import")):
            with urllib.request.urlopen(found[0] + page) as answer:
                assert words in answer.read().decode()
    finally:
        studio.terminate()
        studio.wait()
