"""The documentation: every page says what it is for, and what pages say about the code and each other holds."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

import wukong

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NAMED = re.compile(r"\bdocs/[\w./-]+\.(?:md|svg|png|json)\b")
"""A page or figure that some text names by its path in the repository."""


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_page_begins_with_one_line_that_says_what_it_is_for(page):
    title, blank, purpose, after, *_ = page.read_text(encoding="utf-8").splitlines()
    assert title.startswith("# ")
    assert not blank
    assert not after, "the purpose is one line"
    assert len(purpose) <= 160
    assert purpose.endswith((".", "?", "。", "？"))


def test_pages_that_the_code_names_exist():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    texts = [path for path in tracked if path.endswith((".py", ".yaml", ".toml", ".sh", ".jinja", ".md", "Makefile"))]
    named = {name for path in texts if (ROOT / path).is_file() for name in NAMED.findall(read(path))}
    assert len(named) >= 20
    made_later = {"docs/results/benchmarks-gpu.md"}  # by benchmarks/speed/gpu.sh, on a machine that has one
    assert {name for name in named - made_later if not (ROOT / name).is_file()} == set()


def test_every_picture_and_figure_is_shown():
    pages = "".join(page.read_text(encoding="utf-8") for page in [*PAGES, ROOT / "README.md", ROOT / "README.zh-CN.md"])
    pages += read("mkdocs.yml")
    files = [path for path in DOCS.rglob("*") if path.suffix in (".png", ".svg")]
    assert [path.name for path in files if path.name not in pages] == []


def test_every_public_name_is_on_the_python_page():
    named = re.findall(r"^::: wukong\.(\w+)$", read("docs/reference/python.md"), re.MULTILINE)
    assert sorted(named) == sorted(wukong.__all__)


def test_every_title_of_the_navigation_has_a_chinese_one():
    config = yaml.safe_load(read("mkdocs.yml"))
    (i18n,) = (plugin["i18n"] for plugin in config["plugins"] if "i18n" in plugin)
    translated = i18n["languages"][1]["nav_translations"]

    def titles(entries):
        for entry in entries:
            for title, below in entry.items():
                yield title
                yield from titles(below) if isinstance(below, list) else ()

    assert set(titles(config["nav"])) == set(translated)


def test_the_site_asks_no_other_host():
    """Fonts of the reader, no diagrams that a script from a CDN would draw."""
    config = yaml.safe_load(read("mkdocs.yml"))
    assert config["theme"]["font"] is False
    assert not any("```mermaid" in page.read_text(encoding="utf-8") for page in PAGES)


def test_line_counts_on_the_readers_path_are_right_within_five_per_cent():
    rows = re.findall(r"^\| \d \| `([\w/.]+)` \| ([\d,]+) \|", read("docs/explanation/reading-ppo.md"), re.MULTILINE)
    assert len(rows) >= 4
    for name, lines in rows:
        path = name if name.startswith("examples/") else f"src/wukong/{name}"
        assert int(lines.replace(",", "")) == pytest.approx(len(read(path).splitlines()), rel=0.05), name


def test_headline_figures_of_the_readme_are_those_of_the_results_pages():
    results = read("docs/results/index.md")
    seeds = re.search(r"^\| policy beats SFT .*?\| ([\d.]+) %.*?\| ([\d.]+) %.*?\| ([\d.]+) %", results, re.MULTILINE)
    speed = read("docs/results/benchmarks.md")
    beside_trl = re.findall(r"^\| ours \| (?:Wukong|TRL).*?\| ([\d.]+ ± [\d.]+) \|", speed, re.MULTILINE)
    assert seeds
    assert len(beside_trl) == 2
    for readme in ("README.md", "README.zh-CN.md"):
        text = read(readme)
        assert [figure for figure in (*seeds.groups(), *beside_trl) if figure not in text] == [], readme
