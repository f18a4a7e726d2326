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
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources=resources).execute()
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


def finished(language: str, name: str) -> tuple[Any, bool]:
    """The lesson's notebook with its outputs, if it was executed with the code that it has now; else without."""
    written = COURSE / "en" / f"{name}.ipynb"
    notebook = read(language, name)
    if written.exists():
        executed = nbformat.read(written, as_version=4)
        if code(executed) == code(notebook):
            borrow(notebook, executed)
            return notebook, True
    return notebook, False


def page(notebook: Any, language: str, name: str, executed: bool) -> str:
    """The Markdown of a page; writes its figures."""
    parts: list[str] = []
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            parts.append(cell.source.replace("<details>", '<details markdown="1">'))
            continue
        block = f"```python\n{cell.source}\n```"
        if cell.source.startswith("# setup"):
            block = f'<details markdown="1"><summary>{SETUP[language]}</summary>\n\n{block}\n\n</details>'
        parts.append(block)
        after = notebook.cells[place + 1].source if place + 1 < len(notebook.cells) else ""
        parts += [_shown(output, name, place, after) for output in cell.outputs]
    head = NOTEBOOK_LINK[language].format(name=name) + ("" if executed else f"\n\n{NO_OUTPUTS[language]}")
    title, purpose, rest = "\n\n".join(part for part in parts if part).split("\n\n", 2)
    return "\n\n".join([title, purpose, head, rest]) + "\n"


def _shown(output: Any, name: str, place: int, after: str) -> str:
    if output.output_type == "stream":
        return f"```text\n{output.text.rstrip()}\n```" if output.name == "stdout" else ""
    if "image/png" in output.get("data", {}):
        file = PAGES / "figures" / f"{name}-{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(output.data["image/png"]))
        caption = CAPTION.search(after)
        text = " ".join(caption[1].split()) if caption else ""
        return f"![{text.replace('[', '(').replace(']', ')')}](figures/{file.name})"
    return f"```text\n{output.data.get('text/plain', '').rstrip()}\n```"


def write_pages() -> None:
    PAGES.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(PAGES / "figures", ignore_errors=True)
    for name in lessons():
        for language, suffix in LANGUAGES.items():
            notebook, executed = finished(language, name)
            (PAGES / f"{name}{suffix}.md").write_text(page(notebook, language, name, executed), encoding="utf-8")
            nbformat.write(notebook, PAGES / f"{name}{suffix}.ipynb")


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
