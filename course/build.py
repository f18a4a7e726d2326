"""Builds the course: executes the English lessons, writes notebooks in both languages, and pages for the site.

    python course/build.py                 # all: what `make course` runs
    python course/build.py 04 05           # these lessons only
    python course/build.py --pages         # only the pages, from the notebooks that are there (`make site`)

In:  course/en/NN-name.md and course/zh/NN-name.md, notebooks as jupytext Markdown with the same code cells.
Out: course/{en,zh}/NN-name.ipynb; docs/course/NN-name{,.zh}.{md,ipynb} and docs/course/figures. Git ignores all of it.

Code runs once, in English; the Chinese notebooks and pages take over its outputs. A lesson that fails, or takes longer
than its limit, is an error.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat

COURSE = Path(__file__).resolve().parent
PAGES = COURSE.parent / "docs" / "course"
LANGUAGES = {"en": "", "zh": ".zh"}
"""Language -> the suffix of its pages."""
LESSON_SECONDS, COURSE_SECONDS = 90, 12 * 60
NOTEBOOK_LINK = {
    "en": "[This lesson as a notebook]({name}.ipynb), for Jupyter, VS Code or Colab.",
    "zh": "[下载本课的 notebook]({name}.ipynb)，可在 Jupyter、VS Code 或 Colab 里打开。",
}
NO_OUTPUTS = {
    "en": "This page was built without outputs: `make course` executes the lessons.",
    "zh": "本页没有运行结果：执行 `make course` 会运行所有课程代码。",
}
SETUP = {"en": "The setup cell, the same in every lesson", "zh": "准备代码，每一课都一样"}
CAPTION = re.compile(r"^\*(?:Figure: |图：)(.+?)\*$", re.MULTILINE | re.DOTALL)
"""The line after a figure that says what it shows; it becomes the picture's alternative text."""


def lessons() -> list[str]:
    return sorted(path.stem for path in (COURSE / "en").glob("[0-9][0-9]-*.md"))


def read(language: str, name: str) -> Any:
    return jupytext.read(COURSE / language / f"{name}.md", fmt="md")


def code(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook: Any) -> tuple[float, float]:
    """Runs all cells in place; returns the seconds it took, and those of the processor. Raises CellExecutionError."""
    from nbclient import NotebookClient

    begin, before = time.monotonic(), os.times()
    resources = {"metadata": {"path": str(COURSE / "en")}}
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources=resources, coalesce_streams=True).execute()
    after = os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return time.monotonic() - begin, cpu


def borrow(notebook: Any, executed: Any) -> None:
    """Gives a notebook the outputs of another one with the same code."""
    if code(notebook) != code(executed):
        raise ValueError("the code cells differ")
    outputs = [cell for cell in executed.cells if cell.cell_type == "code"]
    for cell, other in zip([c for c in notebook.cells if c.cell_type == "code"], outputs, strict=True):
        cell.outputs, cell.execution_count = other.outputs, other.execution_count


def build(name: str) -> float:
    """Executes a lesson, writes its notebooks and prints its time; returns the seconds."""
    english, chinese = read("en", name), read("zh", name)
    seconds, cpu = execute(english)
    print(f"{name}: {seconds:.0f} s ({cpu:.0f} s of the processor)", flush=True)
    borrow(chinese, english)
    for language, notebook in (("en", english), ("zh", chinese)):
        nbformat.write(notebook, COURSE / language / f"{name}.ipynb")
    return seconds


# ----------------------------------------------------------------------------------------------------------- the pages


def with_outputs(notebook: Any, executed: Any | None) -> bool:
    """Gives the notebook the outputs of the executed one; False if there is none, or it ran other code."""
    if executed is None or code(executed) != code(notebook):
        return False
    borrow(notebook, executed)
    return True


def page(notebook: Any, language: str, name: str, executed: bool) -> tuple[str, dict[str, bytes]]:
    """The Markdown of a page, and its figures by file name."""
    parts: list[str] = []
    figures: dict[str, bytes] = {}
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            parts.append(cell.source.replace("<details>", '<details markdown="1">'))
            continue
        block = f"```python\n{cell.source}\n```"
        if cell.source.startswith("# setup"):
            block = f'<details markdown="1"><summary>{SETUP[language]}</summary>\n\n{block}\n\n</details>'
        parts.append(block)
        after = notebook.cells[place + 1].source if place + 1 < len(notebook.cells) else ""
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                file = f"{name}-{place}.png"
                figures[file] = base64.b64decode(output.data["image/png"])
                parts.append(f"![{_caption(after)}](figures/{file})")
            elif output.output_type == "stream":
                parts += [_text(output.text)] * (output.name == "stdout")
            else:
                parts.append(_text(output.data.get("text/plain", "")))
    head = NOTEBOOK_LINK[language].format(name=name) + ("" if executed else f"\n\n{NO_OUTPUTS[language]}")
    title, purpose, rest = "\n\n".join(part for part in parts if part).split("\n\n", 2)
    return "\n\n".join([title, purpose, head, rest]) + "\n", figures


def _text(output: str) -> str:
    return f"```text\n{output.rstrip()}\n```" if output.strip() else ""


def _caption(after: str) -> str:
    """The alternative text of a figure, from the text that follows its cell."""
    caption = CAPTION.search(after)
    return " ".join(caption[1].split()).replace("[", "(").replace("]", ")") if caption else ""


def write_pages() -> None:
    shutil.rmtree(PAGES / "figures", ignore_errors=True)
    (PAGES / "figures").mkdir(parents=True)
    for name in lessons():
        written = COURSE / "en" / f"{name}.ipynb"
        executed = nbformat.read(written, as_version=4) if written.exists() else None
        for language, suffix in LANGUAGES.items():
            notebook = read(language, name)
            text, figures = page(notebook, language, name, with_outputs(notebook, executed))
            (PAGES / f"{name}{suffix}.md").write_text(text, encoding="utf-8")
            nbformat.write(notebook, PAGES / f"{name}{suffix}.ipynb")
            for file, content in figures.items():
                (PAGES / "figures" / file).write_bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lessons", nargs="*", help="the first characters of lessons, such as 04; all when absent")
    parser.add_argument("--pages", action="store_true", help="only write the pages")
    arguments = parser.parse_args()
    too_slow = []
    if not arguments.pages:
        begin = time.monotonic()
        sys.path.insert(0, str(COURSE))
        from kit import course_run

        course_run()
        print(f"recipe: {time.monotonic() - begin:.0f} s", flush=True)
        for name in lessons():
            if not arguments.lessons or name.startswith(tuple(arguments.lessons)):
                seconds = build(name)
                too_slow += [f"{name} took {seconds:.0f} s, more than {LESSON_SECONDS}"] * (seconds > LESSON_SECONDS)
        total = time.monotonic() - begin
        print(f"together: {total:.0f} s")
        too_slow += [f"the course took {total:.0f} s, more than {COURSE_SECONDS}"] * (total > COURSE_SECONDS)
    write_pages()
    if too_slow:
        sys.exit("; ".join(too_slow))


if __name__ == "__main__":
    main()
