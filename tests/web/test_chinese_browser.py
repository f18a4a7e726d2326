"""Somebody who reads only Chinese, in a real Chromium at a desk and on a phone: no page has English sentences, is wider
than the window, or makes the browser complain."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

import wukong
from tests.web.browsers import PATIENCE, complaints_of, english_in, too_wide
from tests.web.running_studio import RunningStudio
from wukong.feedback.store import chats
from wukong.feedback.store.database import Store
from wukong.feedback.store.labels import add_label
from wukong.feedback.store.people import add_annotator, sign_in
from wukong.feedback.store.tables import Task
from wukong.feedback.store.tasks import TaskDraft, add_guidelines, add_tasks, create_project
from wukong.language import choose
from wukong.records import Message, Response, prompt_id
from wukong.studies import compare, frontier, reward_report

pytestmark = pytest.mark.slow
SIZES = {"desk": (1280, "light"), "phone": (360, "dark")}
ASKED = "怎么做披萨"
TALK = "c" * 32


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The recipe test in the Chinese kitchen, with the reports of all studies."""
    pinned = [ASKED, "kitchen/knowledge", "kitchen/unsafe"]
    overrides = {
        "kitchen.world": "zh", "pretrain.sample_prompts": [ASKED], "ppo.trace_prompts": [ASKED], "ppo.save_every": 1,
        "report.pinned": pinned, "report.tokens": True,
    }  # fmt: skip
    choose("zh")
    root = wukong.run("test", tmp_path_factory.mktemp("runs") / "zh", overrides)
    reward, prompts, answers = root / "reward", root / "data/prompts-test.jsonl", root / "evaluation/answers.jsonl"
    reward_report.run(reward_report.RewardReportOptions(
        reward_model=str(reward), samples=[f"sft={root / 'responses.jsonl'}"], fractions=[0.5],
        out=root / "reward-report",
    ))  # fmt: skip
    frontier.run(frontier.FrontierOptions(
        runs=[f"ppo={root / 'policy'}"], reference=str(root / "sft"), proxy=str(reward), gold="rubric",
        prompts=[str(prompts)], limit=12, max_new_tokens=8, best_of=2, temperature=1.0, out=root / "frontier",
    ))  # fmt: skip
    models = [f"{name}={answers}" for name in ("sft", "policy")]
    compare.run(compare.CompareOptions(models=models, judge="rubric", out=root / "compare"))
    choose(None)
    return root


def filled(db: str) -> tuple[dict[str, int], str]:
    """A store with a project of each kind, judgments and a conversation: (kind -> project, an admin's cookie)."""
    store, draw = Store(db), random.Random(0)
    answers = ["好的！面粉 500 克、酵母 7 克。祝你好胃口！", "面粉，水，烤箱。", "随便弄弄就行。", "面粉 500 克。"]
    with store.write() as session:
        admin, other = add_annotator(session, "梅", "admin"), add_annotator(session, "李雷")
        projects = {}
        for kind, size in {"pairwise": 2, "ranking": 4, "likert": 3, "thumbs": 1}.items():
            project = create_project(session, f"菜谱 {size}", kind, overlap=3)
            add_guidelines(session, project, "选**又对又客气**的。", admin.id)
            drafts = [
                TaskDraft([Message(role="user", content=f"{dish}怎么做？")], answers[:size])
                for dish in ("披萨", "饺子")
            ]
            add_tasks(session, project, drafts)
            projects[kind] = project.id
        task = session.query(Task).filter_by(project_id=projects["pairwise"]).first()
        for person in (admin, other):
            add_label(session, task, person, f"label-{person.id:08}", {"winner": draw.randint(0, 1), "strength": 2})
        asked = chats.ask(session, admin, TALK, None, ASKED)
        messages = [Message(role="user", content=ASKED)]
        said = Response(id="1", prompt_id=prompt_id(messages), messages=messages, text=answers[0], model="policy")
        chats.answer(session, admin, asked, said)
        cookie = sign_in(session, admin)
    store.close()
    return projects, cookie


WAITS = {"/label": ".answer", "/chat/": ".turn.assistant", "/runs/zh/glass": ".glass-chart svg",
         "/runs/zh/steps/ppo": ".chart svg", "/runs/zh/steps/pretrain": ".chart svg"}  # fmt: skip
"""What a page's script shows last."""


def look_at(page: Page, address: str, complaints: list[str]) -> list[str]:
    """The faults of a page."""
    complaints.clear()
    page.goto(address)
    path = "/" + address.partition("//")[2].partition("/")[2]
    for prefix, selector in WAITS.items():
        if path.startswith(prefix):
            page.wait_for_selector(selector, timeout=PATIENCE)
    page.wait_for_timeout(300)
    page.evaluate("() => document.querySelectorAll('details').forEach((one) => (one.open = true))")
    page.wait_for_timeout(300)
    found = {"complaint": complaints, "English": english_in(page), "wide": too_wide(page)}
    return [f"{path}: {kind}: {one}" for kind, all_of_them in found.items() for one in all_of_them]


@pytest.fixture
def window(chromium: Browser, request) -> Iterator[Page]:
    width, scheme = SIZES[request.param]
    context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, locale="zh-CN")
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    yield page
    context.close()


@pytest.mark.parametrize("window", SIZES, indirect=True)
def test_no_page_of_the_studio_is_english_wide_or_complained_about(window: Page, run: Path, tmp_path: Path):
    projects, cookie = filled(str(tmp_path / "studio.db"))
    pairs = projects["pairwise"]
    pages = ["/", *(f"/label/{one}" for one in projects.values()), f"/projects/{pairs}", f"/projects/{pairs}/tasks",
             f"/projects/{pairs}/quality", "/projects/new", "/tasks/1", "/people", "/chat", f"/chat/{TALK}", "/arena",
             "/runs", "/runs/zh", "/runs/zh/glass/ppo", "/runs/zh/results/evaluation", "/runs/zh/results/compare",
             *(f"/runs/zh/steps/{step}" for step in ("pretrain", "sft", "reward", "ppo", "evaluate"))]  # fmt: skip
    complaints = complaints_of(window)
    with RunningStudio(str(tmp_path / "studio.db"), "--run", str(run), log=tmp_path / "studio.log") as studio:
        for name, value in (("wukong_session", cookie), ("wukong_language", "zh")):
            window.context.add_cookies([{"name": name, "value": value, "url": studio.address}])
        faults = [fault for path in pages for fault in look_at(window, studio.address + path, complaints)]
    assert faults == []


@pytest.mark.parametrize("window", SIZES, indirect=True)
def test_no_report_is_english_wide_or_complained_about(window: Page, run: Path):
    complaints = complaints_of(window)
    reports = [run / name for name in ("report.html", "reward-report/report.html", "frontier/frontier.html")]
    assert [fault for file in reports for fault in look_at(window, file.as_uri(), complaints)] == []


@pytest.mark.parametrize("window", ["phone"], indirect=True)
def test_a_report_of_an_english_terminal_opens_in_chinese_in_a_chinese_browser(window: Page, run: Path, tmp_path: Path):
    page = (run / "report.html").read_text(encoding="utf-8")
    file = tmp_path / "report.html"
    file.write_text(page.replace('<html lang="zh">', '<html lang="en">', 1), encoding="utf-8")
    window.goto(file.as_uri())
    assert window.evaluate("document.documentElement.lang") == "zh"
    expect(window.locator("#switch")).to_have_text("English", use_inner_text=True)


@pytest.mark.parametrize("window", ["phone"], indirect=True)
def test_tokens_of_a_report_follow_its_language(window: Page, run: Path):
    complaints = complaints_of(window)
    window.goto((run / "report.html").as_uri())
    window.wait_for_selector(".glass-table tbody tr")
    button = window.locator("#answers .answer .glass-choose").first
    at = window.locator(".glass-at")
    for language, words, iteration in (("zh", "逐 token 查看", "第 4 次迭代"), ("en", "As tokens", "iteration 4"),
                                       ("zh", "逐 token 查看", "第 4 次迭代")):  # fmt: skip
        assert window.evaluate("document.documentElement.lang") == language
        expect(button).to_have_text(words)
        expect(at).to_contain_text(iteration)
        button.click()
        dialog = window.locator("dialog[open]")
        expect(dialog.locator(".glass-table tbody tr").first).to_be_visible()
        expect(dialog.get_by_role("button", name={"zh": "返回", "en": "Back"}[language])).to_be_visible()
        window.keyboard.press("Escape")
        expect(dialog).to_have_count(0)
        window.locator("#switch").click()
    read = "JSON.parse(document.querySelector('#answer-tokens').textContent).flat().filter(Boolean).length"
    assert window.locator("#answers .answer .glass-choose").count() == window.evaluate(read) > 30
    assert window.locator("dialog").count() == 1
    assert complaints == []
