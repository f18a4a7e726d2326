"""docs/explanation/trust.md names code and tests: each of them exists where the page says."""

import re

import pytest

from tests.named_in_docs import ROOT, SOURCE, defined, options

PAGE = (ROOT / "docs" / "explanation" / "trust.md").read_text(encoding="utf-8")
HEAD = "| What went wrong | Cause | Fix | Test |"
IN_FILE = re.compile(r"((?:`[\w.]+`(?:, | and )?)+) in `([\w./-]+\.(?:py|cpp))`")
PLACES = (SOURCE, ROOT)
"""What paths on the page are relative to."""


def rows(page: str) -> list[tuple[str, str, str, str]]:
    """The cells of every fault."""
    lines = page.replace(r"\|", "¦").splitlines()
    starts = [number + 2 for number, line in enumerate(lines) if line == HEAD]
    found = []
    for start in starts:
        for line in lines[start:]:
            if not line.startswith("| "):
                break
            found.append(tuple(line.strip("| ").split(" | ")))
    return found  # type: ignore[return-value]


def source_text() -> str:
    return "\n".join(
        path.read_text(encoding="utf-8")
        for path in sorted(SOURCE.rglob("*"))
        if path.suffix in (".py", ".cpp", ".hpp", ".json", ".jinja")
    )


def problems(found: list[tuple[str, ...]]) -> list[str]:
    """What the rows name and the code has not."""
    wrong, everything = [], source_text()
    for cells in found:
        if len(cells) != 4 or not all(cells):
            wrong.append(f"not four cells: {cells}")
            continue
        what, _, fix, tests = cells
        for names, file in IN_FILE.findall(fix):
            path = next((place / file for place in PLACES if (place / file).is_file()), None)
            if path is None:
                wrong.append(f"{what}: there is no {file}")
                continue
            for name in re.findall(r"`([\w.]+)`", names):
                known = name in (defined(path) if path.suffix == ".py" else path.read_text(encoding="utf-8"))
                if not known:
                    wrong.append(f"{what}: {file} has no {name}")
        for name in re.findall(r"`([^`]+)`", IN_FILE.sub("", fix)):
            option = re.match(r"(--[a-z-]+)", name)
            if option and option[1] not in options():
                wrong.append(f"{what}: there is no option {name}")
            target = re.fullmatch(r"make ([\w-]+)", name)
            if target and not re.search(rf"^{target[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE):
                wrong.append(f"{what}: there is no target {name}")
            is_file = any((place / name).is_file() for place in PLACES)
            if not (option or target or is_file or name in everything):
                wrong.append(f"{what}: nothing in src is called {name}")
        named = re.findall(r"`([\w/.:]+)`", tests)
        for place in named:
            file, _, test = place.partition("::")
            if not (ROOT / file).is_file() or test not in defined(ROOT / file):
                wrong.append(f"{what}: there is no test {place}")
        if not named and tests != "–":
            wrong.append(f"{what}: neither a test nor a dash")
    return wrong


def test_every_name_and_test_on_the_page_exists():
    found = rows(PAGE)
    assert PAGE.count(HEAD) == 6
    assert len(found) >= 90
    assert problems(found) == []


@pytest.mark.parametrize(
    ("fix", "test", "problem"),
    [
        ("`vanished` in `files.py`.", "–", "files.py has no vanished"),
        ("`read_json` in `gone.py`.", "–", "there is no gone.py"),
        ("`gone_kernel` in `model/cpu/kernels.cpp`.", "–", "model/cpu/kernels.cpp has no gone_kernel"),
        ("`--no-such-option` does it.", "–", "there is no option --no-such-option"),
        ("`make nothing` does it.", "–", "there is no target make nothing"),
        ("`no_name_of_ours` does it.", "–", "nothing in src is called no_name_of_ours"),
        ("`read_json` in `files.py`.", "`tests/x.py::test_gone`", "there is no test tests/x.py::test_gone"),
        ("`read_json` in `files.py`.", "none", "neither a test nor a dash"),
    ],
)  # fmt: skip
def test_a_name_that_is_gone_would_be_seen(fix, test, problem):
    assert problems([("x", "y", fix, test)]) == [f"x: {problem}"]
