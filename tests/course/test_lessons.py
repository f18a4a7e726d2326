"""The lessons: both languages have the same code, every lesson has its parts, and each folded solution is right."""

import re
from pathlib import Path

import pytest

from tests.course.exercises import CHECKS, PREAMBLE

ROOT = Path(__file__).resolve().parents[2]
COURSE = ROOT / "course"
NAMES = sorted(path.stem for path in (COURSE / "en").glob("*.md"))
PARTS = {
    "en": ("**What to look at.**", "## What goes wrong", "## Exercises", "Next:", "Solution"),
    "zh": ("**看什么。**", "## 哪里会出错", "## 练习", "下一课：", "参考答案"),
}
FIGURE = {"en": "*Figure: ", "zh": "*图："}
CELL = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SOLUTION = re.compile(
    r"<summary>(?:Solution|参考答案) ([\d.]+)</summary>\n\n```py\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
LAST = "10-your-own-data"


def text(language: str, name: str) -> str:
    return (COURSE / language / f"{name}.md").read_text(encoding="utf-8")


def body(language: str, name: str) -> str:
    """Without the front matter."""
    return text(language, name).split("---\n", 2)[2].strip()


def test_there_are_eleven_lessons_in_both_languages():
    assert [name[:2] for name in NAMES] == [f"{n:02}" for n in range(11)]
    assert sorted(path.stem for path in (COURSE / "zh").glob("*.md")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_both_languages_have_the_same_code_and_structure(name):
    english, chinese = text("en", name), text("zh", name)
    assert CELL.findall(english) == CELL.findall(chinese)
    assert SOLUTION.findall(english) == SOLUTION.findall(chinese)
    headings = re.compile(r"^(#+) ", re.MULTILINE)
    outside = [CELL.sub("", one) for one in (english, chinese)]
    assert headings.findall(outside[0]) == headings.findall(outside[1])
    assert outside[0].count("\n|") == outside[1].count("\n|"), "tables"


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", NAMES)
def test_every_lesson_has_its_parts(name, language):
    page = body(language, name)
    title, purpose, _ = page.split("\n\n", 2)
    assert re.match(rf"# {int(name[:2])}\. ", title)
    assert "\n" not in purpose
    assert len(purpose) <= 160
    assert purpose.endswith((".", "。", "?", "？"))
    for part in PARTS[language]:
        assert part in page or (name == LAST and part in ("Next:", "下一课：")), part
    cells = CELL.findall(page)
    assert cells[0].startswith("# setup")
    assert sum("shapes(" in cell for cell in cells[1:]) >= 1
    assert 2 <= len(SOLUTION.findall(page)) <= 3
    assert max(len(line) for cell in cells for line in cell.splitlines()) <= 120


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", NAMES)
def test_every_figure_says_what_it_shows(name, language):
    """In the text that follows its cell, from where it becomes the picture's alternative text."""
    parts = re.split(CELL, body(language, name))
    for cell, after in zip(parts[1::2], parts[2::2], strict=True):
        if re.search(r"^(bars\(|plt\.show\(|draw\()", cell, re.MULTILINE):
            assert after.strip().startswith(FIGURE[language]), cell


def test_the_setup_cell_is_the_same_everywhere():
    cells = {CELL.search(text(language, name))[1] for language in ("en", "zh") for name in NAMES}
    assert len(cells) == 1


def test_every_check_has_an_exercise_and_a_solution_that_it_accepts():
    found = {}
    for name in NAMES:
        page = text("en", name)
        asked = re.findall(r'^check\("([\d.]+)", (\w+)\)$', page, re.MULTILINE)
        solutions = dict(SOLUTION.findall(page))
        assert [number for number, _ in asked] == list(solutions)
        for number, function in asked:
            namespace: dict[str, object] = {}
            exec(PREAMBLE + solutions[number], namespace)
            assert CHECKS.fault(number, namespace[function]) is None, number
            found[number] = function
            blank = next(cell for cell in CELL.findall(page) if f'check("{number}"' in cell)
            empty: dict[str, object] = {"check": lambda *_: None}
            exec(PREAMBLE + blank, empty)
            assert CHECKS.fault(number, empty[function]) == CHECKS.UNANSWERED, number
    assert found.keys() == CHECKS.CHECKS.keys()
