"""Chat and arena in a real Chromium: an answer is streamed, disliked, drawn again, and the better one trains."""

import re
from pathlib import Path

import pytest
import sqlalchemy as sa
from playwright.sync_api import Page, expect

from tests.web.browsers import PATIENCE, newcomer
from tests.web.running_studio import RunningStudio
from tests.web.talkative import save_models
from wukong.data.comparisons import read_comparisons
from wukong.feedback.store.database import Store
from wukong.feedback.store.tables import Assignment, Label, VoteRow
from wukong.files import read_json
from wukong.records import Vote
from wukong.stages.reward import RewardOptions
from wukong.stages.reward import run as train_reward

XSS = "<img src=x onerror=\"window.failed.push('xss')\">"
NAMELESS = """[...document.querySelectorAll('button, a, input:not([type=hidden]), select, textarea')]
    .filter(e => e.offsetParent && !(e.textContent.trim() || e.ariaLabel || e.title || e.labels?.length))
    .map(e => e.outerHTML)"""


@pytest.mark.slow
def test_an_answer_is_disliked_drawn_again_and_the_better_one_trains(chromium, tmp_path):
    save_models(tmp_path, "policy", "sft")
    expect.set_options(timeout=PATIENCE)
    db = str(tmp_path / "studio.db")
    with RunningStudio(db, "--run", str(tmp_path), log=tmp_path / "studio.log") as studio:
        page = newcomer(chromium, studio.invitation, "Root", viewport={"width": 360, "height": 740})
        page.get_by_role("link", name="Chat").click()
        message, saved = page.get_by_label("Your message"), page.locator("#saved")

        # --- a question, and its answer
        page.get_by_text("Sampling").click()
        page.get_by_label("Tokens at most").fill("12")
        seed = page.get_by_label("Seed (empty: random)")
        seed.fill("1")
        page.get_by_label("Model").select_option("sft")
        message.fill(f"Eggs? {XSS}")
        message.press("Enter")
        answers = page.locator(".turn.assistant .said")
        kept = page.locator(".turn.assistant[data-turn]")  # an answer has a number once it is in the store
        expect(kept).to_have_count(1, timeout=3 * PATIENCE)  # the server imports torch and loads the model first
        first = answers.first.inner_text()
        assert first
        expect(page.locator(".turn.user .said")).to_contain_text(XSS)  # as text

        # --- a thumb down, by key, with a reason
        page.keyboard.press("Escape")
        page.keyboard.press("ArrowDown")
        down = page.get_by_role("button", name="Not good")
        expect(down).to_have_attribute("aria-pressed", "true")
        page.get_by_label("Why? (optional)").fill(f"no times {XSS}")
        page.keyboard.press("Enter")
        expect(saved).to_have_text("Saved")

        # --- again, by key, and the new one is better
        seed.fill("2")  # drawn at random, one in some dozens would be empty or the same
        page.locator("#turns").focus()
        page.keyboard.press("r")
        expect(saved).to_have_text("Which is better?")
        sides = page.locator(".pair .said").all_inner_texts()
        assert first in sides
        new = 1 - sides.index(first)
        page.keyboard.press(("ArrowLeft", "ArrowRight")[new])
        expect(page.locator(".pair")).to_have_count(0)
        expect(answers).to_have_text(sides[new])
        expect(page.get_by_text("2 / 2")).to_be_visible()
        page.get_by_role("button", name="Version before").click()
        expect(answers).to_have_text(first)
        expect(page.get_by_label("Why? (optional)")).to_have_value(f"no times {XSS}")

        # --- as tokens
        page.get_by_role("button", name="As tokens").click()
        expect(page.locator("dialog .glass-table tbody tr").first).to_be_visible(timeout=PATIENCE)
        fits_a_phone(page)
        page.keyboard.press("Escape")
        page.locator("#turns").focus()

        # --- edit the question; the old one stays beside it
        page.keyboard.press("e")
        box = page.locator("#turns textarea")
        expect(box).to_be_focused()
        box.fill("Rice?")
        box.press("Enter")
        expect(page.locator(".turn.user .said")).to_have_text("Rice?")
        expect(page.get_by_text("2 / 2")).to_be_visible()
        page.reload()
        expect(page.locator(".turn.user .said")).to_have_text("Rice?")
        fits_a_phone(page)
        page.keyboard.press("n")
        expect(page.locator("#turns")).to_contain_text("Say something")

        # --- the arena: names appear only after the judgment
        page.goto(f"{studio.address}/arena")
        expect(page.locator("#no-ratings")).to_be_visible()
        page.get_by_label("Your message").fill("Eggs?")
        page.keyboard.press("Enter")
        expect(saved).to_have_text("Which is better?")
        assert not re.search("sft|policy", page.locator("main").inner_text())
        page.keyboard.press("Shift+ArrowRight")
        expect(page.locator("#ratings tbody tr")).to_have_count(2)
        expect(page.locator(".answer .name")).to_have_count(2)
        winner = page.locator(".answer .name").nth(1).inner_text()
        expect(page.locator("#ratings tbody td").first).to_have_text(winner)
        fits_a_phone(page)
        page.get_by_role("button", name="As tokens").click()
        expect(page.locator("dialog .glass-answer")).to_have_count(2)
        expect(page.locator("dialog .glass-fine").nth(2)).to_contain_text(winner)
        page.keyboard.press("Escape")

        # --- out of the studio
        page.goto(f"{studio.address}/chat")
        with page.expect_download() as waiting:
            page.get_by_role("button", name="Download").click()
        waiting.value.save_as(tmp_path / "votes.jsonl")
        page.get_by_role("link", name="Chat", exact=True).last.click()
        page.get_by_role("button", name="Download").click()
        with page.expect_download() as waiting:
            page.get_by_role("button", name="Download").click()
        waiting.value.save_as(tmp_path / "chat.jsonl")
    check_store(db)
    (vote,) = read_comparisons(tmp_path / "votes.jsonl")
    assert isinstance(vote, Vote)
    assert (vote.response, vote.vote) == (first, -1)
    (record,) = read_comparisons(tmp_path / "chat.jsonl")
    assert (record.chosen, record.rejected, record.strength) == (sides[new], first, 2)
    train(tmp_path)


def fits_a_phone(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate("window.failed") == []
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


def check_store(db: str) -> None:
    store = Store(db)
    with store.read() as session:
        labels = session.scalars(sa.select(Label).order_by(Label.id)).all()
        assert [(label.value["strength"], label.client_id.split("-")[0]) for label in labels] == [
            (2, "chat"), (3, "arena")
        ]  # fmt: skip
        battle = session.scalars(sa.select(Assignment).where(Assignment.task_id == labels[1].task_id)).one()
        assert labels[1].value["winner"] == battle.shown[1] == labels[1].shown[1]  # the right one won
        assert [(vote.vote, vote.reason) for vote in session.scalars(sa.select(VoteRow).order_by(VoteRow.id))] == [
            (-1, ""), (-1, f"no times {XSS}")
        ]  # fmt: skip
    store.close()


def train(directory: Path) -> None:
    options = RewardOptions(
        model=str(directory / "sft"), data=[str(directory / "chat.jsonl")], out=directory / "reward", epochs=1,
        batch_size=1, valid_fraction=0, precision="float32", tensorboard=False,
    )  # fmt: skip
    train_reward(options)
    assert read_json(directory / "reward" / "provenance.json")["results"]["data"]["kept"] == 1
