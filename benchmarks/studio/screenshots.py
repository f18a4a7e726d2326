"""Pictures of the studio's pages for docs/tools/studio.md: light, dark, phone width, Chinese.

Starts a studio on a temporary store, has three made-up annotators label, chat and judge made-up answers, runs the test
recipe (models too small to learn much, in a minute or two), and drives Chromium. In the arena those models answer.

    python benchmarks/studio/screenshots.py --out docs/pictures/studio --only chat-light answers-light
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import sqlalchemy as sa
from playwright.sync_api import Browser, BrowserContext
from sqlalchemy.orm import Session

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.chromium import chromium, find_chromium, shrink
from shared.command_line import new_parser

import wukong
from wukong.feedback.store import chats
from wukong.feedback.store.database import Store
from wukong.feedback.store.labels import add_label, submit
from wukong.feedback.store.people import add_annotator, sign_in
from wukong.feedback.store.tables import Annotator, Task
from wukong.feedback.store.tasks import TaskDraft, add_guidelines, add_response, add_tasks, create_project
from wukong.records import Message, Response, Sampling, prompt_id
from wukong.studies import compare, reward_report

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


TALK = "c" * 32
STRENGTH = {"base": 0.05, "sft": 0.35, "policy": 0.6}
"""How often each model of the pictures wins, by weight."""


def response(name: str, question: str, text: str, model: str) -> Response:
    messages = [Message(role="user", content=question)]
    sampling = Sampling(temperature=0.7, seed=7)
    return Response(
        id=name, prompt_id=prompt_id(messages), messages=messages, text=text, model=model, sampling=sampling
    )


def talk(session: Session, person: Annotator, draw: random.Random) -> None:
    """A conversation with an answer that was drawn again and voted on, and sixty battles."""
    for n, (question, bad, good) in enumerate([("How to make pizza", 1, 0), ("And fried rice?", 3, 2)]):
        conversation = TALK if n == 0 else "d" * 32
        asked = chats.ask(session, person, conversation, None, question)
        old = chats.answer(session, person, asked, response(f"old {n}", question, ANSWERS[bad], "sft"))
        new = chats.answer(session, person, asked, response(f"new {n}", question, ANSWERS[good], "policy"))
        chats.vote(session, person, old.id, f"vote-old-{n}", -1, "Impolite, and no quantities")
        chats.vote(session, person, new.id, f"vote-new-{n}", 1)
    project = chats.own_project(session, "Arena")
    for n in range(60):
        names = sorted(draw.sample(sorted(STRENGTH), 2))
        answers = [response(f"battle {n} {name}", f"Question {n}", f"answer of {name}", name) for name in names]
        ids = [add_response(session, one) for one in answers]
        pair = chats.add_pair(session, project, person, f"battle-{n:04}", ids, [0, 1])
        winner = int(draw.random() < STRENGTH[names[1]] / (STRENGTH[names[0]] + STRENGTH[names[1]]))
        submit(session, person, pair.id, f"battle-{n:04}", {"winner": winner}, seconds=draw.uniform(4, 20))


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
        talk(session, admin, draw)
        return projects, sign_in(session, admin)


def run_to_show() -> Path:
    """The test recipe's run in runs/test, with a report on its reward model and a comparison."""
    run = wukong.run("test", "runs/test", {"pretrain.log_every": 1, "sft.log_every": 1})
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
        "chat": f"/chat/{TALK}",
        "arena": "/arena",
        "runs": "/runs",
        "run": "/runs/test",
        "step": "/runs/test/steps/pretrain",
        "glass": "/runs/test/glass/ppo",
        "answers": "/runs/test/results/evaluation#answers",
        "comparison": "/runs/test/results/compare",
        "reward-report": "/runs/test/reports/reward-report/report.html",
    }
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
            if only and not {name, f"{name}-{look}"} & set(only):
                continue
            picture(context, address + path, out / f"{name}-{look}.png", WAITS.get(name.split("-")[0], "main"))
        context.close()


WAITS = {"label": ".answer", "chat": ".turn.assistant", "arena": "#ratings td"}
WAITS |= {"step": ".chart svg", "reward": ".chart svg", "glass": ".glass-chart svg"}
"""What a page's script shows last."""


def picture(context: BrowserContext, url: str, path: Path, waits: str) -> None:
    page = context.new_page()
    page.set_default_timeout(300_000)  # the machine may be busy with other things
    page.goto(url)
    page.wait_for_selector(waits)
    if path.name.startswith("arena"):  # a battle that waits to be judged
        page.locator("#message").fill("How to make pizza")
        page.keyboard.press("Enter")
        page.wait_for_selector(".pair + .choices")
    if path.name.startswith("glass"):  # down to the curves
        page.set_viewport_size({"width": page.viewport_size["width"], "height": 1500})
        page.wait_for_timeout(1000)
    page.screenshot(path=path, animations="disabled")
    page.close()
    shrink(path, colours=64)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/studio"))
    parser.add_argument("--only", nargs="*", default=[], help="pages (chat) or pictures (chat-light); default: all")
    given = parser.parse_args()
    out = given.out.resolve()
    find_chromium()  # before two minutes of work
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
            with chromium() as browser:
                pictures(browser, address, cookie, projects, out, given.only)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
