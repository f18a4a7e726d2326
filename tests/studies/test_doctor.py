"""`wukong doctor`: what it says of this environment, and of one in which something is missing."""

import os
import re
import subprocess
import sys
from collections import namedtuple
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from wukong.cli import main
from wukong.model.cpu import kernels
from wukong.studies.doctor import environment
from wukong.studies.doctor.environment import check_environment
from wukong.training.compute import compute_for
from wukong.wide_text import width


def findings(subject: str) -> list[environment.Finding]:
    return [finding for finding in check_environment() if finding.subject == subject]


def test_a_sound_environment_has_no_problem_and_every_line_says_how_it_is(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [line.split()[:2] for line in lines if not line.lstrip().startswith("->")]
    assert {level for level, _ in found} <= {"ok", "note"}
    subjects = [subject for _, subject in found]
    for subject in ("python", "wukong", "torch", "device", "precision", "kernels", "threads", "memory", "disk"):
        assert subjects.count(subject) == 1, subject
    assert subjects.count("extra") == len(environment.EXTRAS)
    said = "\n".join(lines)
    assert torch.__version__ in said
    assert f"auto chooses {str(compute_for().dtype).removeprefix('torch.')}" in said


def test_in_chinese_every_line_is_chinese_in_straight_columns(capsys):
    assert main(["doctor", "--language", "zh"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.lstrip().startswith("->")]
    assert {line.split()[0] for line in lines} <= {"正常", "提醒"}
    for english in ("ok  ", "note  ", "free", "chooses", "installed", "ours are"):
        assert english not in "\n".join(lines)
    assert len({width(re.match(r"\S+ +\S+ +", line)[0]) for line in lines if width(line.split()[1]) <= 10}) == 1


@pytest.fixture
def without(monkeypatch):
    """A function that makes some packages look uninstalled, or of another version."""

    def change(**versions: str | None) -> None:
        version = environment.version

        def changed(package: str) -> str:
            if package not in versions:
                return version(package)
            if versions[package] is None:
                raise PackageNotFoundError(package)
            return str(versions[package])

        monkeypatch.setattr(environment, "version", changed)

    return change


def test_a_missing_and_an_old_library_are_problems_with_exit_code_1(without, capsys):
    without(scipy=None, choix="0.3")
    assert main(["doctor"]) == 1
    said = capsys.readouterr()
    assert "problem  scipy      is not installed\n" in said.out
    assert "problem  choix      0.3, >=0.4 is needed\n" in said.out
    assert "-> pip install 'scipy>=1.11'\n" in said.out
    assert said.err == "wukong: error: 2 problems found; see above what to do\n"


def test_an_extra_is_missing_where_one_of_its_packages_is_also_through_another_extra(without, capsys):
    without(uvicorn=None, vaderSentiment="1.0")
    assert main(["doctor"]) == 0
    levels = {finding.text.partition(" ")[0].rstrip(":"): finding for finding in findings("extra")}
    for name in ("docs", "course"):  # which environments have, and which not
        assert levels.pop(name).level in ("ok", "note")
    assert {name: finding.level for name, finding in levels.items()} == {
        "lexicon": "note", "studio": "note", "serve": "note", "dev": "note", "rl": "ok", "gguf": "ok",
    }  # fmt: skip
    assert "(uvicorn)" in levels["studio"].text
    assert levels["serve"].advice == "if you want it: pip install 'wukong-rlhf[serve]'"


def test_it_runs_where_torch_cannot_be_imported(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so: cannot open shared object file')")
    environ = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "wukong", "doctor"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "problem  device     cannot be checked: libcudart.so: cannot open" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("free", "level"), [(1e8, "problem"), (1e9, "note"), (1e12, "ok")])
def test_a_full_disk_is_a_problem(monkeypatch, free, level):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda place: usage(free))
    assert [finding.level for finding in findings("disk")] == [level]


@pytest.mark.skipif(kernels.library() is None, reason="needs our kernels")
def test_kernels_that_give_wrong_results_are_a_problem(monkeypatch):
    monkeypatch.setattr(kernels, "gelu", lambda x: 1.001 * torch.nn.functional.gelu(x, approximate="tanh"))
    (found,) = findings("kernels")
    assert found.level == "problem"


@pytest.mark.skipif(sys.platform != "linux", reason="our kernels are for Linux")
def test_without_a_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    (found,) = findings("compiler")
    assert (found.level, "install a C++ compiler" in found.advice) == ("note", True)
    assert findings("kernels") == []


def test_more_threads_than_processors_are_a_note(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    (found,) = findings("threads")
    assert found.level == "note"
    assert found.advice.startswith("set OMP_NUM_THREADS=")


def test_wukong_runs_from_a_source_tree_that_was_not_installed(monkeypatch):
    def none(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(environment, "distribution", none)
    assert [finding.level for finding in findings("libraries")] == ["note"]
    assert findings("extra") == []
    assert str(Path(environment.__file__).parents[2]) in findings("wukong")[0].text
