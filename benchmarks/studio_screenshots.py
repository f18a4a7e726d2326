"""Pictures of the studio's pages for docs/studio.md: light, dark, phone width, Chinese.

Starts a studio on a temporary store, has three made-up annotators label made-up answers, runs the test recipe (a model
too small to learn much, in a minute or two), and drives Chromium.

    python benchmarks/studio_screenshots.py --out docs/studio
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import sqlalchemy as sa
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, sync_playwright

import wukong
from wukong.feedback.store.database import Store
from wukong.feedback.store.labels import add_label
from wukong.feedback.store.people import add_annotator, sign_in
from wukong.feedback.store.tables import Task
from wukong.feedback.store.tasks import TaskDraft, add_guidelines, add_tasks, create_project
from wukong.records import Message
from wukong.studies import compare, reward_report

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "test.yaml"
DISHES = ("pizza", "fried rice", "an omelette", "pancakes", "lentil soup", "dumplings")
ANSWERS = (
    "Of course! For 4: 500 g flour, 325 ml water, 7 g yeast, 10 g salt. 1. Mix and knead for 10 minutes. 2. Let it "
    "rise for an hour. 3. Shape, top and bake at 250 C for 10 minutes. Enjoy!",
    "What a silly question. Flour, water, oven.",
    "Mix what you have, wait a while, and bake it until it looks done.",
    "for a family of six? And can I freeze it? My sister says that she always does.",
)
GUIDELINES = (
    "Prefer the answer that\n\n1. is **true and complete**,\n2. is polite,\n3. and is no longer than it need be."
)


def fill(store: Store) -> tuple[dict[str, int], str]:
    """A project of each kind, with judgments; (kind -> project, an admin's cookie)."""
    draw = random.Random(0)
    projects = {}
    sizes = {"pairwise": 2, "ranking": 4, "likert": 3, "thumbs": 1}
    with store.write() as session:
        admin = add_annotator(session, "Mei", "admin")
        people = [add_annotator(session, name) for name in ("Ann", "Bob", "李雷")]
        for kind, size in sizes.items():
            project = create_project(session, f"Recipes, {kind}", kind, overlap=4)
            add_guidelines(session, project, GUIDELINES, admin.id)
            asked = [[Message(role="user", content=f"How to make {dish}")] for dish in DISHES]
            add_tasks(session, project, [TaskDraft(prompt, ANSWERS[:size]) for prompt in asked])
            projects[kind] = project.id
        for task in session.scalars(sa.select(Task).where(Task.project_id == projects["pairwise"])).all()[:5]:
            for person in people:
                value = {"winner": int(draw.random() < 0.25), "strength": draw.randint(1, 3)}
                seconds = draw.uniform(4, 20)
                add_label(session, task, person, f"picture:{task.id}:{person.id}", value, seconds=seconds)
        return projects, sign_in(session, admin)


def run_to_show() -> Path:
    """The test recipe's run in runs/test, with a report on its reward model and a comparison."""
    run = wukong.run(RECIPE, "runs/test", {"pretrain.log_every": 1, "sft.log_every": 1})
    report = {"reward_model": str(run / "reward"), "samples": [f"sft={run / 'responses.jsonl'}"], "fractions": [0.5]}
    reward_report.run(reward_report.RewardReportOptions.model_validate({**report, "out": run / "reward-report"}))
    models = [f"{name}={run / 'evaluation' / 'answers.jsonl'}" for name in ("base", "sft", "policy")]
    compare.run(compare.CompareOptions(models=models, judge="rubric", out=run / "compare"))
    return run


def pictures(browser: Browser, address: str, cookie: str, projects: dict[str, int], out: Path, only: list[str]) -> None:
    pairs = projects["pairwise"]
    pages = {
        "projects": "/",
        **{f"label-{kind}": f"/label/{project}" for kind, project in projects.items()},
        "project": f"/projects/{pairs}",
        "tasks": f"/projects/{pairs}/tasks",
        "disagreements": f"/projects/{pairs}/tasks?show=disagreement",
        "task": "/tasks/1",
        "quality": f"/projects/{pairs}/quality",
        "people": "/people",
        "runs": "/runs",
        "run": "/runs/test",
        "step": "/runs/test/steps/pretrain",
        "answers": "/runs/test/results/evaluation#answers",
        "comparison": "/runs/test/results/compare",
        "reward-report": "/runs/test/reports/reward-report/report.html",
    }
    drawn = {"step": ".chart svg", "reward-report": ".chart svg", "run": ".steps"}
    looks = {
        "light": (1100, "light", "en"),
        "dark": (1100, "dark", "en"),
        "phone": (360, "light", "en"),
        "chinese": (1100, "light", "zh"),
    }
    for look, (width, theme, language) in looks.items():
        context = browser.new_context(viewport={"width": width, "height": 700}, color_scheme=theme)
        own = {"wukong_session": cookie, "wukong_theme": theme, "wukong_language": language}
        context.add_cookies([{"name": name, "value": value, "url": address} for name, value in own.items()])
        for name, path in pages.items():
            if only and name not in only:
                continue
            waits = ".answer" if name.startswith("label") else drawn.get(name, "h1")
            picture(context, address + path, out / f"{name}-{look}.png", waits)
        context.close()


def picture(context: BrowserContext, url: str, path: Path, waits: str) -> None:
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(url)
    page.wait_for_selector(waits)
    page.screenshot(path=path, animations="disabled")
    page.close()
    Image.open(path).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)  # a third the size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/studio"))
    parser.add_argument("--only", nargs="*", default=[], help="the pages to picture, such as step; all when absent")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is needed")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        db = str(Path(directory) / "studio.db")
        store = Store(db)
        projects, cookie = fill(store)
        store.close()
        os.chdir(directory)  # paths in the pictures are those of the run
        run = str(run_to_show())
        command = [sys.executable, "-m", "wukong", "studio", "--db", db, "--run", run, "--port", "0"]
        command.append("--no-open-browser")
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout
            address = server.stdout.readline().split("/invite/")[0]
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                pictures(browser, address, cookie, projects, out, arguments.only)
                browser.close()
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
