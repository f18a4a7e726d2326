"""Chinese pages have the commands, formulas, figures, sections and links of the English ones."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def is_generated(page: Path) -> bool:
    """The references of commands and metrics (`make docs`) and the lessons (`make site`), which have other tests."""
    return page.name in ("cli.zh.md", "metrics.zh.md") or (page.parent == DOCS / "course" and page.name[0].isdigit())


DIGEST = DOCS / "results" / "index.zh.md"
"""Says in words what the English page has as figures, since a measured figure appears on one page only."""
CHINESE = sorted(page for page in DOCS.rglob("*.zh.md") if not is_generated(page) and page != DIGEST)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"(?:^|(?<=\s))#\s.*$", re.MULTILINE)
INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?: {4,}.*\n)+", re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FIGURE = re.compile(r"\d[\d,]*\.?\d+")
"""A number of two digits or more: smaller ones are often words in one of the languages."""
PLACEHOLDER = {"<this repository>": "<本仓库地址>", "`course/en`": "`course/zh`"}
"""What differs between the languages."""


def english(page: Path) -> Path:
    return page.with_name(page.name.replace(".zh.md", ".md"))


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def slug(title: str) -> str:
    """The anchor that the site gives a heading (Python-Markdown's toc)."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", re.sub(r"[`*]", "", title)).strip().lower())


def anchor(title: str) -> str:
    """That which the heading names itself, `{#anchor}`, else the site's."""
    own = re.search(r" \{#([\w-]+)\}$", title)
    return own[1] if own else slug(title)


def fenced(source: str) -> list[str]:
    blocks = (COMMENT.sub("", block) for block in FENCED.findall(source))
    return ["\n".join(line.rstrip() for line in block.splitlines()) for block in blocks]


def symbols(source: str) -> Counter[str]:
    """What indented formulas consist of, beside words, spaces and punctuation that languages set differently."""
    formulas = "".join(INDENTED.findall(FENCED.sub("", source)))
    return Counter(re.sub(r"[A-Za-z\s,.:;'\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]", "", formulas))


def prose(source: str) -> str:
    return INDENTED.sub("", FENCED.sub("", source))


def figures(source: str) -> set[str]:
    without_links = LINK.sub("]", prose(source))
    return {number.replace(",", "") for number in FIGURE.findall(without_links)}


def test_every_page_of_guide_and_tools_is_there_in_chinese():
    pages = [page for folder in ("guide", "tools") for page in (DOCS / folder).glob("*.md") if ".zh." not in page.name]
    assert len(pages) >= 20
    assert [page.name for page in pages if not page.with_suffix(".zh.md").is_file()] == []


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_chinese_page_says_what_the_english_one_says(page):
    ours, theirs = text(page), text(english(page))
    for name, chinese in PLACEHOLDER.items():
        theirs = theirs.replace(name, chinese)
    for block, other in zip(fenced(ours), fenced(theirs), strict=True):
        assert block == other
    assert symbols(ours) == symbols(theirs)
    assert set(CODE.findall(prose(ours))) == set(CODE.findall(prose(theirs)))
    assert figures(ours) == figures(theirs)


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_chinese_page_has_the_sections_and_links_of_the_english_one(page):
    ours, theirs = text(page), text(english(page))
    titles = re.findall(r"^(##+) (.*)$", FENCED.sub("", theirs), re.MULTILINE)
    sections = re.findall(r"^(##+) .*?(?: \{#([\w-]+)\})?$", FENCED.sub("", ours), re.MULTILINE)
    assert sections == [(level, anchor(title)) for level, title in titles]
    pictures = {"pipeline.svg": "pipeline.zh.svg", "label-pairwise-light.png": "label-pairwise-chinese.png"}
    links = set(LINK.findall(theirs))
    for name, chinese in pictures.items():
        links = {link.replace(name, chinese) for link in links}
    assert {link.replace(".zh.md", ".md") for link in LINK.findall(ours)} == links


def test_the_digest_of_results_has_the_sections_of_its_page_and_none_of_its_figures():
    ours, theirs = text(DIGEST), text(english(DIGEST))
    titles = re.findall(r"^## (.*)$", theirs, re.MULTILINE)
    assert re.findall(r"^## .*? \{#([\w-]+)\}$", ours, re.MULTILINE) == [anchor(title) for title in titles]
    assert figures(ours) == set()
    assert {link for link in LINK.findall(theirs) if "#" not in link} <= set(LINK.findall(ours))


@pytest.mark.parametrize("page", [*CHINESE, DIGEST, ROOT / "README.zh-CN.md"], ids=lambda page: page.name)
def test_a_chinese_page_links_to_chinese_pages(page):
    """On the site either link would do; a reader of the repository would land on an English page."""
    pages = [page.parent / link.partition("#")[0] for link in LINK.findall(text(page)) if not link.startswith("http")]
    english_ones = [one for one in pages if one.suffix == ".md" and ".zh" not in one.suffixes and not is_generated(one)]
    read = [one for one in english_ones if one.with_suffix(".zh.md").is_file()]
    assert [str(one) for one in read if page != DIGEST or one != english(DIGEST)] == [], "link to the Chinese pages"


@pytest.mark.parametrize("page", [*CHINESE, DIGEST, ROOT / "README.zh-CN.md"], ids=lambda page: page.name)
def test_a_chinese_page_says_which_of_its_links_are_english(page):
    for line in text(page).splitlines():
        for link in (link.partition("#")[0] for link in LINK.findall(line) if not link.startswith("http")):
            there = page.parent / link
            if there.suffix != ".md" or link.endswith((".zh.md", ".zh-CN.md")) or "/course/zh/" in str(there):
                continue
            own = is_generated(there) or there.with_suffix(".zh.md").is_file() or link in ("README.md", "CHANGELOG.md")
            assert own or "英文" in line, line


OTHER_WORDS = {"词元": "token", "纳特": "奈特", "提示词": "提示", "评分细则": "评分规则"}
"""One word for one thing: what is not said -> what is."""


def test_one_word_is_said_for_one_thing():
    files = [
        *DOCS.rglob("*.zh.md"),
        *(ROOT / "src/wukong/language/zh").glob("*.json"),
        *(ROOT / "course/zh").glob("*.md"),
    ]
    found = [
        f"{path.relative_to(ROOT)}: {word}, say {said}"
        for path in [*files, ROOT / "README.zh-CN.md"]
        for word, said in OTHER_WORDS.items()
        if word in text(path).replace("也译作「词元」", "")
    ]
    assert found == []
