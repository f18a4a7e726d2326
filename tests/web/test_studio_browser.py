"""An afternoon with the studio, in a real Chromium: from two invitations to a trained reward model."""

import json
from pathlib import Path

import pytest
import sqlalchemy as sa
from playwright.sync_api import Page, expect

from tests.web.browsers import PATIENCE, newcomer
from tests.web.running_studio import RunningStudio
from wukong.feedback.store.database import Store
from wukong.feedback.store.tables import Annotator, Label
from wukong.files import read_json
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.hub import save_policy
from wukong.records import Message, Response, prompt_id, write_records
from wukong.stages.reward import RewardOptions
from wukong.stages.reward import run as train_reward
from wukong.studies.reward_report import RewardReportOptions
from wukong.studies.reward_report import run as report_on_reward
from wukong.tokenizer import Tokenizer

PRESS_AND_WAIT = """key => new Promise(done => {
    const task = document.querySelector('#task'), before = task.dataset.assignment, start = performance.now();
    document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
    const look = () => {
        const took = performance.now() - start;
        if (task.dataset.assignment !== before && document.querySelector('.answer')) done(took);
        else if (took > 5000) done(-1);
        else setTimeout(look, 0);
    };
    look();
})"""
"""Presses a key; resolves to the milliseconds until another task stands there, or -1."""


def responses(path: Path, prompts: int, answers: int) -> Path:
    records = []
    for i in range(prompts):
        prompt = [Message(role="user", content=f"How long do eggs take, {i}?")]
        records += [
            Response(
                id=f"{path.stem}-{i}-{k}",
                prompt_id=prompt_id(prompt),
                messages=prompt,
                text="egg " * (k + 1),
                model="m",
            )
            for k in range(answers)
        ]
    write_records(path, records)
    return path


def make_project(admin: Page, name: str, kind: str, file: Path, per_prompt: int = 0) -> int:
    admin.get_by_role("link", name="Projects").click()
    admin.get_by_role("link", name="New project").click()
    admin.get_by_label("Name").fill(name)
    admin.get_by_label(kind).check()
    admin.get_by_label("People per task").fill("2")
    admin.get_by_label("Guidelines").fill("Prefer the **longer** one.")
    admin.get_by_role("button", name="Create").click()
    admin.get_by_label("A file of yours").set_input_files(file)
    admin.get_by_label("At most").fill(str(per_prompt))
    admin.get_by_role("button", name="Add", exact=True).click()
    expect(admin.get_by_role("status")).to_contain_text("new tasks", timeout=PATIENCE)
    return int(admin.url.rsplit("/", 1)[1])


def invite(admin: Page) -> str:
    admin.get_by_role("link", name="People").click()
    admin.get_by_role("button", name="Make a link").click()
    return admin.locator("#link").input_value()


def in_hand(page: Page) -> str | None:
    return page.locator("#task").get_attribute("data-assignment")


def press(page: Page, *keys: str, until_next: bool = True) -> None:
    """Keys that judge the task, and the wait until the next one stands there."""
    before = in_hand(page)
    for key in keys:
        page.keyboard.press(key)
    if until_next:
        page.wait_for_function("before => document.querySelector('#task').dataset.assignment !== before", arg=before)


def all_saved(page: Page) -> None:
    page.wait_for_function("() => Object.keys(localStorage).every(k => localStorage[k] === '[]')")
    assert page.evaluate("() => window.failed") == []


def longer(page: Page) -> str:
    left, right = (page.locator(".answer .said").nth(i).inner_text() for i in (0, 1))
    return "ArrowLeft" if len(left) > len(right) else "ArrowRight"


@pytest.mark.slow
def test_from_two_invitations_to_a_reward_model(chromium, tmp_path):
    db = str(tmp_path / "studio.db")
    with RunningStudio(db, log=tmp_path / "studio.log") as studio:
        admin = newcomer(chromium, studio.invitation, "Root")
        pairs = make_project(admin, "Egg pairs", "Pairs", responses(tmp_path / "pairs.jsonl", 20, 2))
        ranks = make_project(admin, "Egg rankings", "Rankings", responses(tmp_path / "ranks.jsonl", 5, 4))
        ann, bob = (newcomer(chromium, invite(admin), name) for name in ("Ann", "Bob"))

        # --- Ann: 20 pairs by keyboard, one undone, one skipped
        ann.goto(f"{studio.address}/label/{pairs}")
        expect(ann.locator("#pace")).to_contain_text("20 left", timeout=PATIENCE)
        ann.keyboard.press("?")
        expect(ann.get_by_role("dialog", name="Keys")).to_be_visible()
        ann.keyboard.press("Escape")
        ann.keyboard.press("g")
        expect(ann.locator(".prose strong")).to_have_text("longer")
        first = in_hand(ann)
        press(ann, "Shift+ArrowLeft")
        ann.keyboard.press("z")
        ann.wait_for_function("first => document.querySelector('#task').dataset.assignment === first", arg=first)
        expect(ann.get_by_role("button", name="Left much better")).to_have_attribute("aria-pressed", "true")
        press(ann, longer(ann))
        ann.keyboard.press("s")
        press(ann, "2")
        expect(ann.get_by_role("dialog")).to_have_count(0)
        ann.keyboard.press("c")
        ann.keyboard.type("a comment with keys like s, z and ?")
        ann.keyboard.press("Enter")
        ann.keyboard.press("f")
        for _ in range(18):
            press(ann, longer(ann))
        expect(ann.locator("#task")).to_contain_text("Nothing is left")
        all_saved(ann)

        # --- Bob: the same, differently once; in between his tab is closed with a half-done ranking
        bob.goto(f"{studio.address}/label/{pairs}")
        bob.wait_for_selector(".answer")
        press(bob, "ArrowLeft" if longer(bob) == "ArrowRight" else "ArrowRight")
        for _ in range(19):
            press(bob, longer(bob))
        all_saved(bob)
        for page in (ann, bob):
            page.goto(f"{studio.address}/label/{ranks}")
            page.wait_for_selector(".answer")
        bob.keyboard.press("3")
        bob.keyboard.press("1")
        expect(bob.locator("#saved")).to_have_text("Draft saved", timeout=PATIENCE)
        bob.reload()
        expect(bob.locator(".chip")).to_have_text(["3", "1"], timeout=PATIENCE)
        press(bob, "=", "2", "4", "Enter")
        for _ in range(4):
            press(bob, *best_first(bob), "Enter")
        for _ in range(5):
            press(ann, *best_first(ann), "Enter")
        all_saved(ann)
        all_saved(bob)

        # --- the admin: decides the disagreement, looks at quality, exports
        admin.goto(f"{studio.address}/projects/{pairs}/tasks?show=disagreement")
        expect(admin.locator("tbody tr")).to_have_count(1, timeout=PATIENCE)
        admin.locator("tbody a").first.click()
        admin.wait_for_selector("#decide .answer")
        admin.keyboard.press(longer(admin))
        with admin.expect_navigation():
            admin.keyboard.press("Enter")
        expect(admin.locator("tbody")).to_contain_text("decides")
        admin.goto(f"{studio.address}/projects/{pairs}/quality")
        expect(admin.locator("tbody tr")).to_have_count(2, timeout=PATIENCE)
        files = [download(admin, studio, project, tmp_path) for project in (pairs, ranks)]
    check_store(db)
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len(records) == 25
    assert all(len(r["chosen"]) > len(r["rejected"]) for r in records if "chosen" in r), "decided as the rule says"
    run = tmp_path / "runs" / "people"
    train(files, run)
    with RunningStudio(db, "--run", str(run), log=tmp_path / "studio.log") as studio:
        see_the_report(admin, studio)


def best_first(page: Page) -> list[str]:
    lengths = [len(page.locator(".answer .said").nth(i).inner_text()) for i in range(4)]
    return [str(i + 1) for i in sorted(range(4), key=lambda i: -lengths[i])]


def download(admin: Page, studio: RunningStudio, project: int, directory: Path) -> Path:
    admin.goto(f"{studio.address}/projects/{project}")
    admin.locator("select[name=judgments]").select_option("majority")
    with admin.expect_download() as waiting:
        admin.get_by_role("button", name="Download").click()
    path = directory / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def check_store(db: str) -> None:
    store = Store(db)
    with store.read() as session:
        ann = session.scalars(sa.select(Annotator).where(Annotator.name == "Ann")).one()
        rows = session.scalars(sa.select(Label).where(Label.annotator_id == ann.id)).all()
        assert [row.status for row in rows].count("withdrawn") == 1
        assert [(row.status, row.comment) for row in rows if row.status == "skipped"] == [("skipped", "not my field")]
        assert [row.comment for row in rows if row.flagged] == ["a comment with keys like s, z and ?"]
        assert len(rows) == 20 + 2 + 5  # 19 judged, 1 skipped, 1 judged and taken back; 5 rankings
        assert {tuple(row.shown) for row in rows if len(row.shown) == 2} == {(0, 1), (1, 0)}
        assert all(row.seconds is not None and row.seconds > 0 for row in rows if row.status == "given")
    store.close()


def train(files: list[Path], directory: Path) -> None:
    tokenizer = Tokenizer.train([], 257, "plain")
    save_policy(directory / "sft", GPT2(GPT2Config(257, 64, 32, 1, 2)), tokenizer)
    fast = {
        "precision": "float32",
        "tensorboard": False,
        "lr": 3e-3,
        "epochs": 4,
        "batch_size": 4,
        "valid_fraction": 0.2,
    }
    options = RewardOptions(
        model=str(directory / "sft"), data=[str(f) for f in files], out=directory / "reward", **fast
    )
    train_reward(options)
    results = read_json(directory / "reward" / "provenance.json")["results"]
    assert results["data"]["kept"] == 25
    assert results["valid_accuracy"] > 0.8  # the longer one is better, which a tiny model can learn
    reward = str(directory / "reward")
    report_on_reward(RewardReportOptions(reward_model=reward, out=directory / "reward-report", fractions=[]))


def see_the_report(admin: Page, studio: RunningStudio) -> None:
    """From the list of runs to the reward model's report, drawn by its own script outside of the studio's reach."""
    admin.goto(f"{studio.address}/runs")
    admin.get_by_role("link", name="people", exact=True).click()
    expect(admin.locator("[data-name=reward] .state")).to_have_text("done", timeout=PATIENCE)
    with admin.expect_popup() as waiting:
        admin.get_by_role("link", name="Reward-model report").click()
    report = waiting.value
    expect(report.locator("h1")).to_contain_text("Reward model", timeout=PATIENCE)
    expect(report.locator(".headline")).to_contain_text("are ordered as by people")
    expect(report.locator(".chart svg").first).to_be_visible(timeout=PATIENCE)
    assert report.evaluate("window.origin") == "null"
    assert report.evaluate("(() => { try { return document.cookie } catch { return 'refused' } })()") == "refused"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pairwise", "ranking", "likert", "thumbs"])
def test_the_next_task_stands_there_at_once_and_fits_a_phone(chromium, tmp_path, kind):
    """The next task is prefetched; 360 pixels are enough; every control has a name; the focus can be seen."""
    name = {"pairwise": "Pairs", "ranking": "Rankings", "likert": "Ratings", "thumbs": "Thumbs"}[kind]
    keys = {
        "pairwise": ["ArrowLeft"],
        "ranking": ["1", "2", "3", "4", "Enter"],
        "likert": ["5", "4", "3", "2", "Enter"],
        "thumbs": ["ArrowUp"],
    }[kind]
    with RunningStudio(str(tmp_path / "studio.db"), log=tmp_path / "studio.log") as studio:
        admin = newcomer(chromium, studio.invitation, "Root", viewport={"width": 360, "height": 740})
        project = make_project(
            admin, "Eggs", name, responses(tmp_path / "r.jsonl", 12, 4), 1 if kind == "thumbs" else 0
        )
        admin.goto(f"{studio.address}/label/{project}")
        admin.wait_for_selector(".answer")
        admin.wait_for_timeout(1500)
        *before, last = keys
        for key in before:
            admin.keyboard.press(key)
        took = admin.evaluate(PRESS_AND_WAIT, last)
        assert 0 <= took < 100, took
        for path in (
            f"/label/{project}",
            "/",
            "/people",
            "/runs",
            f"/projects/{project}",
            f"/projects/{project}/tasks",
        ):
            admin.goto(studio.address + path)
            width = admin.evaluate("document.documentElement.scrollWidth")
            assert width <= 360, f"{path} is {width} wide"
            nameless = admin.evaluate(
                """[...document.querySelectorAll('button, a, input:not([type=hidden]), select, textarea, progress')]
                .filter(e => e.offsetParent && !(e.textContent.trim() || e.ariaLabel || e.title || e.labels?.length))
                .map(e => e.outerHTML)"""
            )
            assert nameless == [], path
        admin.keyboard.press("Tab")
        assert admin.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
