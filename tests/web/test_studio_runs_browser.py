"""A run in a real Chromium: started from its page, watched live, stopped, resumed, and found again after a restart."""

import time

import pytest
from playwright.sync_api import Page, expect

import wukong
from tests.web.browsers import PATIENCE, newcomer
from tests.web.running_studio import RunningStudio
from wukong.web.runs.processes import is_running, process_of, stop

STEP = "+(document.querySelector('#last-step')?.innerText ?? '').replace(/\\D/g, '')"
POINTS = "(document.querySelector('.chart')?.data?.[0].x.length ?? 0)"


@pytest.fixture
def run(tmp_path):
    """The test recipe up to its tokenizer, with a pretraining that would take minutes. Nothing outlives the test."""
    overrides = {"pretrain.tokens": 20_480_000, "pretrain.log_every": 1, "pretrain.eval_every": 1000}
    directory = wukong.run("test", tmp_path / "runs" / "tiny", overrides, until="tokenize")
    yield directory
    while is_running(directory) and (process := process_of(directory)) and process.alive:
        stop(directory)
        time.sleep(1)


def step_shown(page: Page) -> int:
    return page.evaluate(f"() => {STEP}")


def wait_for_growth(page: Page) -> None:
    """The curve, and the number beside it, grow without the page being loaded again."""
    page.wait_for_function(f"() => {POINTS} > 1")
    page.evaluate("window.same = true")
    before = page.evaluate(f"() => [{POINTS}, {STEP}]")
    page.wait_for_function(f"before => {POINTS} > before[0] + 2 && {STEP} > before[1]", arg=before)
    assert page.evaluate("window.same") is True
    assert page.evaluate("window.failed") == []


@pytest.mark.slow
def test_a_stage_is_started_watched_stopped_and_resumed(chromium, tmp_path, run):
    db = str(tmp_path / "studio.db")
    with RunningStudio(db, "--run", str(run), log=tmp_path / "studio.log") as studio:
        page = newcomer(chromium, studio.invitation, "Root", viewport={"width": 360, "height": 740})
        page.get_by_role("link", name="Runs").click()
        page.get_by_role("link", name="tiny").click()
        expect(page.locator("[data-name=tokenize] .state")).to_have_text("done", timeout=PATIENCE)
        expect(page.locator("[data-name=pretrain] .state")).to_have_text("waiting")
        page.get_by_role("link", name="pretrain").click()
        expect(page.locator("#curves")).to_contain_text("Nothing was logged yet", timeout=PATIENCE)
        page.get_by_role("button", name="Start").press("Enter")
        expect(page.locator("[data-name=pretrain] .state")).to_have_text("running", timeout=PATIENCE)
        wait_for_growth(page)
        expect(page.locator("figcaption").first).to_contain_text("Mean negative log-likelihood")
        expect(page.locator("#log")).to_contain_text("wukong run")
        for path in ("/runs", "/runs/tiny", "/runs/tiny/steps/pretrain"):
            page.goto(studio.address + path)
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= 360, f"{path} is {width} wide"

        page.get_by_role("button", name="Stop, with a checkpoint").press("Enter")
        expect(page.locator("[data-name=pretrain] .state")).to_have_text("stopped", timeout=PATIENCE)
        expect(page.locator("#log")).to_contain_text("run the same command to resume", timeout=PATIENCE)
        stopped_at = step_shown(page)
        assert stopped_at > 2
        assert list((run / "base" / "checkpoints").glob("step-*"))

        page.get_by_role("button", name="Start").press("Enter")
        expect(page.locator("#log")).to_contain_text("resuming after step", timeout=PATIENCE)
        page.wait_for_function(f"before => {STEP} > before", arg=stopped_at)

    # --- the studio ends, the run goes on; a new studio knows it, and stops it
    assert is_running(run)
    with RunningStudio(db, "--run", str(run), log=tmp_path / "studio.log") as studio:
        page.goto(f"{studio.address}/runs/tiny")
        expect(page.locator("[data-name=pretrain] .state")).to_have_text("running", timeout=PATIENCE)
        page.get_by_role("button", name="Stop, with a checkpoint").click()
        expect(page.locator("[data-name=pretrain] .state")).to_have_text("stopped", timeout=PATIENCE)
        expect(page.get_by_role("button", name="Start all steps")).to_be_visible()
        assert not is_running(run)
