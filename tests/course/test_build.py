"""The tool that executes the lessons: what it reads, and what it writes to the pages of both languages."""

import base64
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

COURSE = Path(__file__).resolve().parents[2] / "course"
PICTURE = b"a picture"
TEXTS = {
    "en": ["# 0. Title\n\nPurpose.", "*Figure: a [bar],\nand another.*\n\nMore.", "<details>\n<summary>x</summary>"],
    "zh": ["# 0. 标题\n\n目的。", "*图：一根柱子。*\n\n然后。", "<details>\n<summary>y</summary>"],
}


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("course_build", COURSE / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def lesson(language: str, code: str = "plt.show()"):
    before, after, last = map(nbformat.v4.new_markdown_cell, TEXTS[language])
    return nbformat.v4.new_notebook(
        cells=[before, nbformat.v4.new_code_cell("# setup"), nbformat.v4.new_code_cell(code), after, last]
    )


def executed():
    notebook = lesson("en")
    picture = base64.b64encode(PICTURE).decode()
    notebook.cells[2].outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="B = 4\n"),
        nbformat.v4.new_output("stream", name="stderr", text="a warning\n"),
        nbformat.v4.new_output("display_data", {"image/png": picture, "text/plain": "<Figure>"}),
        nbformat.v4.new_output("execute_result", {"text/plain": "42"}, execution_count=2),
    ]
    return notebook


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_block_of_python_is_a_cell_and_folded_solutions_are_not(build, language):
    for name in build.lessons():
        text = (COURSE / language / f"{name}.md").read_text(encoding="utf-8")
        blocks = re.findall(r"^```python\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)
        assert build.code(build.read(language, name)) == blocks, name


def test_the_chinese_page_has_the_outputs_of_the_english_run(build):
    notebook = lesson("zh")
    assert build.with_outputs(notebook, executed())
    text, figures = build.page(notebook, "zh", "00-map", True)
    assert figures == {"00-map-2.png": PICTURE}
    assert "```text\nB = 4\n```\n\n![一根柱子。](figures/00-map-2.png)\n\n```text\n42\n```" in text
    assert "warning" not in text
    assert text.startswith("# 0. 标题\n\n目的。\n\n[下载本课的 notebook](00-map.ipynb)")
    assert '<details markdown="1">\n<summary>y' in text


def test_the_caption_is_the_alternative_text(build):
    text, _ = build.page(executed(), "en", "00-map", True)
    assert "![a (bar), and another.](figures/00-map-2.png)" in text


def test_outputs_of_other_code_are_not_shown(build):
    for before in (None, executed()):
        notebook = lesson("en", "plt.show()  # changed")
        assert not build.with_outputs(notebook, before)
        text, figures = build.page(notebook, "en", "00-map", False)
        assert not figures
        assert "B = 4" not in text
        assert build.NO_OUTPUTS["en"] in text
    with pytest.raises(ValueError, match="differ"):
        build.borrow(notebook, executed())


def test_a_lesson_that_fails_is_an_error(build, tmp_path):
    from nbclient.exceptions import CellExecutionError

    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        build.execute(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]))
