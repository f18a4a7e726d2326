"""The glass box in a real Chromium: its numbers are those of metrics.jsonl and of a recomputation by hand, and a large
page opens fast."""

import json
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from tests.reference import losses as reference
from tests.traced_runs import options_of, run, world
from tests.web.browsers import newcomer
from tests.web.running_studio import RunningStudio
from wukong.inspection import load_inspector
from wukong.report.contents import read_answered_prompts, read_run
from wukong.report.page import View, render
from wukong.stages import evaluate, report
from wukong.stages.evaluate import EvaluateOptions
from wukong.stages.report import ReportOptions
from wukong.training.metrics import read_metrics

RESPONSES, TOKENS = 8, 128
COLUMNS = ("logprobs", "reference_logprobs", "kl", "rewards", "values", "advantages", "returns", "new_logprobs")
COLUMNS += ("ratios", "policy_losses", "value_losses")


@pytest.fixture(scope="module")
def traced(tmp_path_factory) -> Path:
    """runs/mine: PPO of which every episode is traced, each of 128 tokens."""
    root = tmp_path_factory.mktemp("runs") / "mine"
    root.mkdir()
    world(root, n_positions=192, ends=False)
    run(options_of(
        root, "ppo", "policy", episodes=3 * RESPONSES, batch_size=RESPONSES, max_new_tokens=TOKENS, trace=RESPONSES,
        whiten_rewards=False, gamma=1.0,
    ))  # fmt: skip
    return root


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def shown_numbers(page: Page, i: int) -> dict[str, list[float]]:
    """The table of the i-th response on the page, by column."""
    page.locator(".glass-choose").nth(i).click()
    cells = page.evaluate(
        "() => [...document.querySelectorAll('.glass-table td[data-column]')].map(e => [e.dataset.column, e.innerText])"
    )
    found: dict[str, list[float]] = {}
    for name, text in cells:
        if name != "clipped":
            found.setdefault(name, []).append(number(text))
    return found


def means_shown(page: Page) -> dict[str, float]:
    read = "e => [e.dataset.mean, e.querySelector('dd').innerText]"
    pairs = page.evaluate(f"() => [...document.querySelectorAll('[data-mean]')].map({read})")
    return {name: number(text) for name, text in pairs}


def go_to(page: Page, iteration: int) -> None:
    slider = page.locator(".glass-bar input")
    slider.evaluate("(e, i) => { e.value = i - 1; e.dispatchEvent(new Event('input')); }", iteration)
    page.wait_for_function(f"() => document.querySelector('.glass-at').innerText.includes('iteration {iteration}')")
    settled(page)


def settled(page: Page) -> None:
    """What was asked of the server is on the page."""
    page.wait_for_function("() => document.querySelector('#glass').getAttribute('aria-busy') !== 'true'")


def by_hand(table: dict[str, list[list[float]]], score: list[float], kl_coef: float, lam: float) -> dict:
    """PPO's numbers from the log-probs, values and scores of a batch of equally long responses, in plain loops."""
    kl = np.array(table["logprobs"]) - np.array(table["reference_logprobs"])
    mask, values = np.ones(kl.shape, bool), np.array(table["values"])
    rewards = reference.token_rewards(score, kl, mask, kl_coef)
    raw, returns = reference.gae(rewards, values, mask, 1.0, lam)
    return {"kl": kl, "rewards": rewards, "advantages": reference.whiten(raw, mask), "returns": returns}


def test_the_page_shows_the_numbers_of_training_and_opens_within_a_second(chromium: Browser, traced: Path, tmp_path):
    logged = read_metrics(traced / "policy")
    with RunningStudio(str(tmp_path / "studio.db"), "--run", str(traced), log=tmp_path / "studio.log") as studio:
        page = newcomer(chromium, studio.invitation, "Root")
        address = f"{studio.address}/runs/mine/glass/policy"
        seconds = []
        for _ in range(4):  # the machine may be busy with other things
            page.goto(address)
            page.wait_for_function(f"() => document.querySelectorAll('.glass-table tbody tr').length === {TOKENS}")
            page.wait_for_selector(".glass-chart svg.main-svg")
            seconds.append(page.evaluate("performance.getEntriesByName('tokens')[0].startTime") / 1000)
            assert page.locator(".glass-token[data-n]").count() == (RESPONSES + 1) * TOKENS
        assert min(seconds) < 1, seconds

        for line in logged:
            go_to(page, line["step"])
            shown = means_shown(page)
            for name in ("score", "kl", "value_mean", "return_mean", "advantage_std"):
                assert shown[name] == pytest.approx(line[name], abs=1e-4), name
            tables = [shown_numbers(page, i + 1) for i in range(RESPONSES)]  # the first one answers the pinned prompt
            table = {name: [one[name] for one in tables] for name in COLUMNS}
            # what is shown adds up to metrics.jsonl: four decimals, so up to 128 times half of the last one
            assert np.mean(np.sum(table["kl"], 1)) == pytest.approx(line["kl"], abs=TOKENS * 5e-5)
            assert np.mean(table["values"]) == pytest.approx(line["value_mean"], abs=1e-4)
            assert np.mean(table["returns"]) == pytest.approx(line["return_mean"], abs=1e-4)

        # --- one response by hand, from what the server keeps of the log-probs
        trace = json.loads((traced / "policy" / "trace.jsonl").read_text().splitlines()[-1])
        own = [r for r in trace["responses"] if not r["pinned"]]
        exact = {name: [r[name] for r in own] for name in ("logprobs", "reference_logprobs", "values")}
        for kl_coef, lam in ((trace["kl_coef"], 0.95), (0.5, 0.3)):
            if lam != 0.95:
                for name, value in (("kl_coef", kl_coef), ("lam", lam)):
                    page.locator(f"input[name={name}]").evaluate(
                        "(e, x) => { e.value = x; e.dispatchEvent(new Event('input')); }", value
                    )
                settled(page)
            expected = by_hand(exact, [r["score"] for r in own], kl_coef, lam)
            found = shown_numbers(page, 3)
            for name, rows in expected.items():
                assert found[name] == pytest.approx(rows[2].tolist(), abs=1e-4), (name, kl_coef)
        assert page.evaluate("window.failed") == []

        page.get_by_role("button", name="As in training").click()
        settled(page)
        assert shown_numbers(page, 3)["rewards"] == pytest.approx(own[2]["rewards"], abs=1e-4)
        page.set_viewport_size({"width": 360, "height": 740})
        page.wait_for_function("() => document.documentElement.scrollWidth <= 360")  # once the chart has followed
        page.get_by_role("button", name="简体中文").click()
        page.wait_for_selector(".glass-table tbody tr")
        assert page.locator(".glass-colours button").first.inner_text() == "优势"


def test_the_report_shows_the_same_without_a_network(chromium: Browser, traced: Path, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(render(read_run(traced), View()))
    (line,) = [one for one in read_metrics(traced / "policy") if one["step"] == 2]
    for scheme in ("light", "dark"):
        page = chromium.new_context(
            viewport={"width": 360, "height": 740}, color_scheme=scheme, offline=True
        ).new_page()
        page.add_init_script("window.failed = []; addEventListener('error', e => window.failed.push(e.message))")
        page.goto(file.as_uri())
        page.wait_for_function(f"() => document.querySelectorAll('.glass-table tbody tr').length === {TOKENS}")
        go_to(page, 2)
        assert means_shown(page)["kl"] == pytest.approx(line["kl"], abs=1e-4)
        trace = json.loads((traced / "policy" / "trace.jsonl").read_text().splitlines()[1])
        found = shown_numbers(page, 1)
        recorded = next(r for r in trace["responses"] if not r["pinned"])
        for name in COLUMNS:
            assert found[name] == pytest.approx(recorded[name], abs=1e-4), name
        page.get_by_role("group", name="Colour the tokens by").get_by_role("button", name="KL").click()
        read = "e => parseInt(e.style.getPropertyValue('--share'))"
        strengths = page.evaluate(f"() => [...document.querySelectorAll('.glass-token[data-n]')].map({read})")
        assert max(strengths) == 70
        assert len(set(strengths)) > 10
        assert page.evaluate("(e => e.scrollWidth - e.clientWidth)(document.querySelector('#glass'))") <= 0
        assert page.evaluate("window.failed") == []
        page.context.close()


def test_answers_of_a_report_open_as_tokens(chromium: Browser, tmp_path: Path):
    root = tmp_path / "mine"
    root.mkdir()
    world(root)
    run(options_of(root, "ppo", "policy", episodes=16))
    models = [f"{name}={root / name}" for name in ("sft", "policy")]
    evaluate.run(EvaluateOptions(
        models=models, prompts=[str(root / "prompts.jsonl")], limit=3, judge="lexicon", max_new_tokens=8,
        temperature=0.7, reference="sft", reward_model=str(root / "reward"), out=root / "evaluation",
    ))  # fmt: skip
    report.run(ReportOptions(run=root, pinned=["say 2"], tokens=True, out=root / "report.html"))
    page = chromium.new_context(offline=True, viewport={"width": 360, "height": 740}).new_page()
    page.goto((root / "report.html").as_uri())
    place = page.locator("#answers article.prompt").first.locator(".answer").nth(1)
    place.get_by_role("button", name="As tokens").click()
    answered = read_answered_prompts(root / "evaluation" / "answers.jsonl")
    answer = next(one for one in answered if one.messages[0].content == "say 2").answers["policy"]
    inspect = load_inspector(root / "policy", str(root / "sft"), str(root / "reward"))
    expected = inspect("say 2", answer.text, finished=answer.finish_reason == "stop", temperature=0.7)
    cells = page.evaluate(
        "() => [...document.querySelectorAll('dialog td[data-column]')].map(e => [e.dataset.column, e.innerText])"
    )
    for column in ("logprobs", "reference_logprobs", "kl", "end_scores"):
        shown = [number(text) for name, text in cells if name == column]
        assert shown == pytest.approx(getattr(expected, column), abs=1e-4), column
    assert page.locator("#answers .answer").get_by_role("button", name="As tokens").count() == 6
