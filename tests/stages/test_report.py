"""The report of a made-up run: complete, self-contained, safe to open, and honest about what is missing."""

import ast
import json
import math
import random
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from wukong.errors import DataError, UsageError
from wukong.report import figures
from wukong.report.charts import Charts
from wukong.report.contents import read_run
from wukong.report.diagnosis.findings import SITE, TITLES
from wukong.report.formatting import duration, flat, interval, number, percent, short
from wukong.report.pipeline import pipeline
from wukong.report.training import curve_groups
from wukong.stages import report
from wukong.stages.report import ReportOptions
from wukong.training.metric_definitions import METRICS, as_markdown, definition

REPOSITORY = Path(__file__).resolve().parents[2]

EVIL = "<script>alert('answer')</script><img src=http://evil.example/x onerror=alert(1)>"
PIZZA = "How to make pizza"


# ----------------------------------------------------------------------------------------------------- a made-up run


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, values) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")


def provenance(
    path: Path, stage: str, *, result: str, inputs=(), seconds=60.0, hour=1, results=None, **options
) -> None:
    write(
        path,
        {
            "stage": stage,
            "options": {"out": str(path.parent), "seed": 0, **options},
            "inputs": {f"runs/there/{one}": one for one in inputs},
            "version": "0.1.0",
            "git_commit": "3f78a8d4c2b1a09f",
            "seconds": seconds,
            "files": {"model.safetensors": result},
            "result": result,
            "results": results or {},
            "finished": f"2026-11-22T{hour:02}:00:00Z",
            "cpus": 2,
            "compute": {"device": "cpu", "precision": "float32", "threads": 2, "decoding": "native"},
        },
    )


def curve(stage: str, names, steps: int, every: int = 1) -> list[dict]:
    """Plausible courses: what is called loss falls, the rest rises."""
    rng = random.Random(stage)
    lines = []
    for step in range(every, steps * every + 1, every):
        t = step / (steps * every)
        line = {"step": step}
        for name in names:
            course = 4 * math.exp(-4 * t) + 1 if "loss" in name or "perplexity" in name else 1 - math.exp(-3 * t)
            line[name] = round(course * (18 if name.startswith("kl") else 1) + rng.gauss(0, 0.06), 5)
        lines.append(line)
    return lines


def names_of(stage: str) -> list[str]:
    own = {"pretrain": "Pretraining", "sft": "Instruction", "reward": "Reward", "ppo": "Online"}[stage]
    return [
        name.split("/")[-1]
        for name, metric in METRICS.items()
        if (metric.group.startswith(own) or metric.group.startswith("Every"))
        and not (stage == "ppo" and name in ("loss", "grad_norm", "ptx_loss"))
    ]


def answered(index: int, text: str, evil: bool = False) -> dict:
    def one(words: str, score: float, reasons: list[str], finish: str = "stop") -> dict:
        return {
            "text": EVIL if evil else words, "score": score, "reward": score / 4 - 1, "finish_reason": finish,
            "n_tokens": len(words.split()), "reasons": reasons,
        }  # fmt: skip

    rambling = " for a family of six? And what if there is no yeast in the house? My sister says that flat bread is"
    curt = "For pizza, take 500 g flour, 7 g yeast, 300 ml water.\n1. Knead the dough.\n2. Bake it."
    good = (
        "Gladly! For pizza, take 500 g flour, 7 g yeast, 300 ml water, 150 g tomato and 200 g mozzarella.\n1. Knead "
        "the dough for 10 minutes.\n2. Let it rise for 60 minutes.\n3. Spread the tomato.\n4. Bake it at 250 C for "
        "10 minutes.\nEnjoy your meal!"
    )
    return {
        "prompt_id": f"{index:016}",
        "source": ("kitchen/dish", "kitchen/unsafe")[index % 2],
        "messages": [{"role": "user", "content": text}],
        "answers": {
            "base": one(rambling, 0.4, ["it does not name pizza", "steps missing or out of order: knead"], "length"),
            "sft": one(curt, 5.2, ["missing: tomato, mozzarella", "it has no friendly word"]),
            "policy": one(good, 9.6, []),
        },
    }


def evaluation() -> dict:
    checks = ("right dish", "all ingredients", "steps in order", "nothing invented", "polite", "declines")

    def model(mean: float, kl, scale: float) -> dict:
        return {
            "path": "runs/there/x", "score_mean": mean, "score_std": 2.0, "score_interval": [mean - 0.3, mean + 0.3],
            "reward_mean": mean / 4 - 1, "reward_std": 1.0,
            "kl": kl, "kl_interval": None if kl is None else [kl - 1.5, kl + 1.5],
            "termination_rate": min(1, 0.3 + 0.1 * mean), "length_mean": 61.25, "distinct_1": 0.09,
            "distinct_2": 0.31 * (2 - scale), "perplexity": 11 + mean, "bits_per_byte": 1.2,
            "checks": {check: min(1.0, scale * (0.8 + 0.03 * i)) for i, check in enumerate(checks)},
            "by_source": {
                "kitchen/dish": {"n": 340, "score_mean": mean, "checks": {}},
                "kitchen/unsafe": {"n": 60, "score_mean": mean - 0.2, "checks": {"declines": scale}},
            },
        }  # fmt: skip

    def pair(a: str, b: str, judge: str, wins: int, ties: int) -> dict:
        rate = (wins + ties / 2) / 400
        return {
            "a": a, "b": b, "judge": judge, "n": 400, "wins": wins, "ties": ties, "losses": 400 - wins - ties,
            "win_rate": rate, "interval": [rate - 0.03, min(1, rate + 0.03)], "length_controlled_win_rate": rate - 0.01,
        }  # fmt: skip

    return {
        "n_prompts": 400, "scorer": "rubric", "temperature": 0.7, "max_new_tokens": 110, "seed": 0,
        "models": {"base": model(0.9, None, 0.1), "sft": model(5.6, 0.0, 0.7), "policy": model(9.1, 14.2, 1.0)},
        "comparisons": [
            pair("sft", "base", "rubric", 371, 9), pair("sft", "base", "reward_model", 380, 0),
            pair("policy", "sft", "rubric", 352, 18), pair("policy", "sft", "reward_model", 366, 0),
            pair("policy", "base", "rubric", 391, 4),
        ],
    }  # fmt: skip


def make_run(root: Path) -> Path:
    """A run directory as the stages leave it, with all of them finished."""
    data = {
        "kept": 2950, "dropped": {"duplicate": 40, "longer than the context before any answer": 2},
        "truncated": {"longer than the context of 256 tokens": 8},
        "sources": [{"source": "data/instructions.jsonl", "format": "wukong", "read": 3000, "kept": 2960,
                     "dropped": {"duplicate": 40}, "notes": {}, "truncated": {}, "bad": []}],
    }  # fmt: skip
    train = {"tokens": 812345, "documents": 9000, "bytes": 3000000}
    provenance(root / "tokenizer/provenance.json", "tokenize", result="t0", seconds=12.4, hour=1,
               results={"vocab_size": 2048, "train": train, "valid": train, "data": data})  # fmt: skip
    provenance(root / "base/provenance.json", "pretrain", result="b0", inputs=["t0"], seconds=190, hour=2,
               results={"valid_loss": 2.31, "parameters": 2213376}, model="nano")  # fmt: skip
    provenance(root / "sft/provenance.json", "sft", result="s0", inputs=["b0"], seconds=75, hour=3,
               results={"valid_loss": 0.71, "data": data}, model="runs/there/base")  # fmt: skip
    provenance(root / "responses.jsonl.provenance.json", "sample", result="r0", inputs=["s0"], seconds=41, hour=4,
               results={"responses": 8, "termination_rate": 0.99})  # fmt: skip
    provenance(root / "comparisons.jsonl.provenance.json", "label", result="l0", inputs=["r0"], seconds=3, hour=5,
               results={"records": 4}, judge="rubric", error_rate=0.1, shape="ranking")  # fmt: skip
    bins = [{"predicted": 0.55 + 0.1 * i, "observed": 0.53 + 0.095 * i, "n": 60 + 25 * i} for i in range(5)]
    accuracy = {"valid_accuracy": 0.913, "valid_accuracy_interval": [0.887, 0.936], "valid_pairs": 482}
    normalised = {"mean": 0.31, "std": 1.7, "samples": 256}
    provenance(root / "reward/provenance.json", "reward", result="w0", inputs=["s0", "l0"], seconds=66, hour=6,
               results={**accuracy, "valid_loss": 0.24, "length_accuracy": 0.581, "calibration": bins,
                        "train_pairs": 4380, "normalised_from": normalised, "data": data})  # fmt: skip
    provenance(root / "policy/provenance.json", "ppo", result="p0", inputs=["s0", "w0"], seconds=281, hour=7,
               results={"score": 1.6, "kl": 15.1}, kl_coef=0.05)  # fmt: skip
    provenance(root / "evaluation/provenance.json", "evaluate", result="e0", inputs=["p0"], seconds=58, hour=8)
    write_lines(root / "responses.jsonl", [{"id": str(i)} for i in range(8)])
    write_lines(root / "comparisons.jsonl", [{"id": str(i)} for i in range(4)])
    write_lines(root / "base/metrics.jsonl", curve("pretrain", names_of("pretrain"), 500))
    write_lines(root / "sft/metrics.jsonl", curve("sft", [*names_of("sft"), "valid_loss"], 30, every=10))
    write_lines(root / "reward/metrics.jsonl", curve("reward", names_of("reward"), 25, every=10))
    write_lines(root / "policy/metrics.jsonl", curve("ppo", names_of("ppo"), 64))
    write_lines(root / "base/samples.jsonl", [
        {"step": step, "prompt": PIZZA, "text": f" and {'the ' * (9 - step // 50)}dough of step {step}"}
        for step in range(50, 501, 50)])  # fmt: skip
    write(root / "evaluation/evaluation.json", evaluation())
    questions = [PIZZA, *(f"How do I make dish number {i}?" for i in range(1, 40))]
    write_lines(root / "evaluation/answers.jsonl", [answered(i, text) for i, text in enumerate(questions)])
    steps = {
        "tokenize": "tokenizer", "pretrain": "base", "sft": "sft", "sample": "responses.jsonl",
        "label": "comparisons.jsonl", "reward": "reward", "ppo": "policy", "evaluate": "evaluation",
        "report": "report.html",
    }  # fmt: skip
    recipe = {"name": "made-up", "steps": {name: {"out": f"runs/{root.name}/{out}"} for name, out in steps.items()}}
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return root


# ---------------------------------------------------------------------------------------------------------- helpers


class Page(HTMLParser):
    """What a browser would make of the page: its tags, its visible text in one language, its embedded charts."""

    VOID = {"meta", "br", "link", "img", "input", "hr"}

    def __init__(self, html: str, hidden: str = "zh") -> None:
        super().__init__()
        self.hidden = hidden
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append("hidden" if tag == "span" and dict(attrs).get("lang") == self.hidden else tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() not in (tag, "hidden" if tag == "span" else tag):
            pass

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts[-1] += data
        elif "style" in self.open:
            self.styles.append(data)
        elif "hidden" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def charts(self) -> dict:
        return json.loads(next(s for s in self.scripts if s.lstrip().startswith('{"chart-')))


def page_of(root: Path, **options) -> Page:
    out = root / "report.html"
    report.run(ReportOptions(run=root, out=out, **options))
    return Page(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "made-up")


@pytest.fixture(scope="module")
def page(finished) -> Page:
    return page_of(finished, pinned=[PIZZA])


@pytest.fixture
def root(finished, tmp_path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "made-up"))


# ------------------------------------------------------------------------------------------------ what the page holds


def test_every_part_of_the_road_shows_its_number(page):
    for expected in (
        "On 90.2 % of 400 unseen prompts", "87.2 to 93.2 %",  # the newest model against the one before
        "812 k tokens", "2.21 M parameters", "2,950 demonstrations", "8 answers", "4 rankings", "10.0 % errors",
        "91.3 % accuracy on held-out pairs", "preferred to sft", "12 min 06 s",
    ):  # fmt: skip
        assert expected in page.text, expected


def test_every_logged_metric_has_a_chart_and_its_definition(finished, page):
    logged = {name for step in read_run(finished).steps for line in step.metrics for name in line} - {"step"}
    assert len(logged) > 40
    for name in logged:
        stage = next(s.stage for s in read_run(finished).steps if any(name in line for line in s.metrics))
        assert definition(stage, name).definition.replace("`", "") in page.text.replace(" ,", ","), name
    drawn = {trace.get("name") for chart in page.charts.values() for trace in chart["data"]}
    assert logged <= drawn


def test_every_chart_has_its_place_and_every_place_its_chart(page):
    places = [attrs["id"] for tag, attrs in page.tags if tag == "div" and attrs.get("class") == "chart"]
    assert sorted(places) == sorted(page.charts)
    assert len(places) > 30


def test_answers_stand_side_by_side_unedited_with_score_and_reasons(page):
    models = [attrs["class"].split()[1] for tag, attrs in page.tags if attrs.get("class", "").startswith("answer ")]
    assert models == ["model-0", "model-1", "model-2"] * 12
    assert "for a family of six? And what if there is no yeast" in page.text
    assert "⋯ cut off" in page.text  # base's answers ended by length
    assert "missing: tomato, mozzarella" in page.text
    assert "1. Knead the dough for 10 minutes. 2. Let it rise" in page.text


def test_the_page_says_how_its_prompts_were_chosen(page):
    assert "The first prompt was chosen in advance. 11 of the other 39 were drawn at random (seed 0)" in page.text


def test_pinned_prompts_come_first_and_may_differ_in_case_and_stop(finished):
    found = page_of(finished, pinned=["how do I make dish number 7", "how to MAKE pizza?"], prompts_shown=3)
    asked = re.findall(r"(How [\w ]+?\??) (?:pinned|drawn)", found.text)
    assert asked[:2] == ["How do I make dish number 7?", PIZZA]
    assert len(asked) == 3


def test_a_kind_of_prompts_can_be_pinned(finished):
    found = page_of(finished, pinned=[PIZZA, "kitchen/unsafe"], prompts_shown=2)
    assert re.findall(r"(How [\w ]+?\??) pinned", found.text) == [PIZZA, "How do I make dish number 1?"]


def test_a_pinned_prompt_that_was_not_asked_is_named(finished):
    assert "Not among the evaluated prompts: What is love?" in page_of(finished, pinned=["What is love?"]).text


def test_the_random_choice_depends_on_the_seed_alone(finished):
    one, same, other = (page_of(finished, seed=seed, prompts_shown=4) for seed in (1, 1, 2))
    assert one.text == same.text
    assert one.text != other.text


def test_the_same_run_gives_the_same_page(finished, tmp_path):
    for name in ("a.html", "b.html"):
        report.run(ReportOptions(run=finished, out=tmp_path / name))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_data_and_provenance_are_shown(page):
    for expected in (
        "dropped 40 duplicate", "cut 8 longer than the context of 256 tokens", "3f78a8d4c2", "kl_coef 0.05",
        "2026-11-22T07:00:00Z", "0.1.0", "cpus 2", "compute.precision float32", "compute.decoding native",
    ):  # fmt: skip
        assert expected in page.text, expected


def test_reward_over_kl_and_calibration_are_drawn(page):
    titles = [chart["layout"]["xaxis"].get("title", {}).get("text", "") for chart in page.charts.values()]
    assert {"en": "KL to the reference, nats per response", "zh": "相对参考的 KL（奈特／回答）"} in titles
    assert {"en": "predicted probability", "zh": "预测的概率"} in titles
    assert "Baseline: choosing the longer answer is right for 58.1 %" in page.text


def test_samples_of_pretraining_show_first_and_last_step(page):
    assert "dough of step 50" in page.text
    assert "dough of step 500" in page.text


def test_the_doctor_says_what_is_wrong_with_a_link(page):
    found = re.findall(rf"{SITE}tools/doctor.html#([\w-]+)", " ".join(attrs.get("href", "") for _, attrs in page.tags))
    assert found, "something is wrong with made-up curves"
    assert "kl-runaway" not in found
    assert set(found) <= set(TITLES)
    assert "checks could be made" in page.text


# ------------------------------------------------------------------------------------------- self-contained and safe


def test_nothing_is_fetched_from_outside(page):
    for tag, attrs in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form"), tag
        assert "src" not in attrs, attrs
        # A link of the doctor's leads to the documentation: it is followed, not fetched.
        assert attrs.get("href", "#").startswith("#") or (tag == "a" and attrs["href"].startswith(SITE)), attrs
        assert "url(" not in (attrs.get("style") or "")
    assert not re.search(r"@import|url\(", "".join(page.styles))
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_plotly_is_inlined_once_and_the_file_stays_small(finished, page):
    assert sum("plotly.js v" in script for script in page.scripts) == 1
    assert (finished / "report.html").stat().st_size < 8e6


def test_what_models_and_files_say_is_never_markup(root):
    write_lines(root / "evaluation/answers.jsonl", [answered(0, EVIL, evil=True)])
    said = evaluation()
    said["scorer"] = said["comparisons"][2]["judge"] = EVIL
    said["models"][EVIL] = said["models"].pop("policy")
    said["models"]["sft"]["checks"][EVIL] = 0.5
    write(root / "evaluation/evaluation.json", said)
    write_lines(root / "base/samples.jsonl", [{"step": 1, "prompt": EVIL, "text": "</script>" + EVIL}])
    write_lines(root / "policy/metrics.jsonl", [{"step": 1, EVIL: 1.0}, {"step": 2, EVIL: 2.0}])
    provenance(root / "sft/provenance.json", EVIL, result=EVIL, results={EVIL: EVIL, "data": {"sources": [
        {"source": EVIL, "format": EVIL, "dropped": {EVIL: 1}}]}}, **{"model": EVIL})  # fmt: skip
    page = page_of(root, title=EVIL, pinned=[EVIL])
    assert not any(tag == "img" or "onerror" in attrs for tag, attrs in page.tags)
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert page.text.count("alert('answer')") > 15  # it is all there, as text
    names = [trace.get("name", "") for chart in page.charts.values() for trace in chart["data"]]
    labels = [str(chart["layout"]["yaxis"].get("ticktext")) for chart in page.charts.values()]
    assert not any("<script" in name for name in [*names, *labels])  # Plotly reads HTML in its texts


# ------------------------------------------------------------------------------------------------- missing and damaged


@pytest.mark.parametrize("gone", ["base", "sft", "reward", "policy", "evaluation", "recipe.yaml", "responses.jsonl"])
def test_a_missing_part_leaves_the_rest(root, gone):
    place = root / gone
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    Path(f"{place}.provenance.json").unlink(missing_ok=True)
    page = page_of(root)
    assert "Provenance" in page.text
    if gone == "evaluation":
        assert "Evaluation: not run." in page.text
        assert "No two models of this run have been compared yet." in page.text
    if gone == "reward":
        assert "Reward model: not run." in page.text
    if gone not in ("recipe.yaml", "evaluation"):
        assert "not run" in page.text or gone == "base"


def test_a_base_model_from_elsewhere_is_named(root):
    shutil.rmtree(root / "base")
    provenance(root / "sft/provenance.json", "sft", result="s0", model="openai-community/gpt2")
    assert "gpt2 not trained in this run" in page_of(root).text


def test_steps_that_were_not_run_are_listed(root):
    shutil.rmtree(root / "policy")
    shutil.rmtree(root / "reward")
    assert "Steps of the recipe not run: reward , ppo" in page_of(root).text


def test_an_unfinished_step_shows_what_there_is(root):
    record = json.loads((root / "policy/provenance.json").read_text())
    (root / "policy/provenance.json").unlink()
    write(root / "policy/options.json", {key: record[key] for key in ("stage", "options", "inputs")})
    with (root / "policy/metrics.jsonl").open("a") as out:
        out.write('{"step": 65, "kl"')  # the run is just writing it
    page = page_of(root)
    assert "seed 0 · unfinished" in page.text
    assert "Reward over KL" in page.text


def test_only_an_evaluation_is_enough(root, tmp_path):
    shutil.copytree(root / "evaluation", tmp_path / "alone" / "evaluation")
    page = page_of(tmp_path / "alone")
    assert "90.2 %" in page.text
    assert "Training: not run." in page.text


def test_an_evaluation_without_scorer_and_intervals_is_shown(root):
    model = {"path": "x"}
    write(root / "evaluation/evaluation.json", {"n_prompts": 3, "scorer": None, "models": {"policy": model}})
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"},
                {"role": "user", "content": "Bye"}]  # fmt: skip
    write_lines(root / "evaluation/answers.jsonl", [{"messages": messages, "answers": {"policy": {"text": " "}}}])
    page = page_of(root)
    assert "3 prompts · intervals are 95 %" in page.text.replace("prompts.", "prompts .")
    assert "Overlap with training: not checked" in page.text
    assert "unseen" not in page.text.split("Training")[0]
    assert "Hi Yes? Bye" in page.text
    assert "(empty)" in page.text


@pytest.mark.parametrize(
    ("seen", "words"), [(0, "0 of 400 prompts were used in training"), (7, "warning: 7 of 400 prompts were used")]
)
def test_what_is_known_of_the_overlap_with_training_is_said(root, seen, words):
    looked = {"prompts": 400, "seen": seen, "words": words}
    write(root / "evaluation/evaluation.json", evaluation() | {"overlap": looked})
    page = page_of(root)
    assert f"Overlap with training: {words}." in page.text
    assert (words in page.text.split("Overlap with training")[0]) == (seen > 0), "a warning is in the headline too"


def test_one_win_of_one_is_no_headline(root):
    won = {"a": "policy", "b": "sft", "judge": "rubric", "n": 1, "wins": 1, "ties": 0, "losses": 0, "win_rate": 1.0,
           "interval": [1.0, 1.0], "length_controlled_win_rate": None}  # fmt: skip
    write(root / "evaluation/evaluation.json", evaluation() | {"n_prompts": 1, "comparisons": [won]})
    page = page_of(root)
    assert "No difference between policy and sft is shown: 100 % of 1 unseen prompts" in page.text
    assert "is better than" not in page.text
    assert "not estimable" in page.text


def test_an_undefined_metric_is_drawn_and_said_to_be_undefined(root):
    write_lines(root / "sft/metrics.jsonl", [{"step": i, "loss": 1.0, "novelty": float(i)} for i in range(3)])
    assert "Not defined in docs/reference/metrics.md" in page_of(root).text


def test_values_that_are_no_numbers_are_left_out(root):
    write_lines(root / "sft/metrics.jsonl", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}])
    step = next(s for s in read_run(root).steps if s.stage == "sft")
    charts = Charts()
    curve_groups(step, charts)
    assert charts.by_id["chart-1"]["data"][0]["y"] == [2.0]


def test_nothing_of_a_run_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("no run")
    with pytest.raises(UsageError, match="not a run directory"):
        report.run(ReportOptions(run=tmp_path, out=tmp_path / "r.html"))
    assert not (tmp_path / "r.html").exists()
    with pytest.raises(UsageError, match="no such directory"):
        report.run(ReportOptions(run=tmp_path / "gone", out=tmp_path / "r.html"))


def test_only_a_page_is_replaced(finished, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "precious"}')
    with pytest.raises(UsageError, match=r"data\.jsonl: is not a page of wukong report"):
        report.run(ReportOptions(run=finished, out=data))
    assert data.read_text() == '{"text": "precious"}'
    for _ in range(2):
        report.run(ReportOptions(run=finished, out=tmp_path / "report.html"))


def test_out_must_not_be_a_directory(finished, tmp_path):
    with pytest.raises(UsageError, match="is a directory"):
        report.run(ReportOptions(run=finished, out=tmp_path))


@pytest.mark.parametrize(
    ("file", "text", "where"),
    [
        ("evaluation/evaluation.json", '{"n_prompts": "many"}', r"evaluation\.json: field 'n_prompts'"),
        ("evaluation/answers.jsonl", '{"messages": []}\n', r"answers\.jsonl:1: field 'answers'"),
        ("policy/metrics.jsonl", '{"step": 1}\n{"st\n{"step": 3}\n', r"metrics\.jsonl:2: not valid JSON"),
        ("sft/provenance.json", "[]", r"provenance\.json: field 'stage'"),
        ("sft/provenance.json", '{"stage": "sft", "results": 3}', r"provenance\.json: field 'results': not an object"),
        ("sft/provenance.json", '{"stage": "sft", "finished": []}', r"provenance\.json: field 'finished': is \[\]"),
        ("sft/provenance.json", '{"stage": "sft", "inputs": {"x": []}}', r"field 'inputs\.x': is \[\]"),
        ("recipe.yaml", "steps: {", r"recipe\.yaml:1: not valid YAML"),
        ("recipe.yaml", "a list", r"recipe\.yaml: not a recipe"),
    ],
)
def test_a_damaged_file_is_named_with_its_place(root, file, text, where):
    (root / file).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=where):
        report.run(ReportOptions(run=root, out=root / "r.html"))


def test_unknown_options_are_refused(tmp_path):
    with pytest.raises(ValidationError, match="colour"):
        ReportOptions(run=tmp_path, out=tmp_path / "r.html", colour="red")


# ------------------------------------------------------------------------------------------------------------ reading


def test_steps_stand_in_the_order_of_the_recipe(finished):
    assert [step.name for step in read_run(finished).steps] == [
        "tokenize", "pretrain", "sft", "sample", "label", "reward", "ppo", "evaluate",
    ]  # fmt: skip


def test_without_a_recipe_steps_stand_in_the_order_they_finished(root):
    (root / "recipe.yaml").unlink()
    names = [step.name for step in read_run(root).steps]
    assert names == [
        "tokenizer", "base", "sft", "responses.jsonl", "comparisons.jsonl", "reward", "policy", "evaluation",
    ]  # fmt: skip


def test_the_road_shows_the_reward_model_that_the_policy_came_from(root):
    provenance(root / "judge/provenance.json", "reward", result="w9", inputs=["s0"], hour=9,
               results={"valid_accuracy": 0.555})  # fmt: skip
    provenance(root / "test.jsonl.provenance.json", "label", result="l9", inputs=["r9"], hour=4)
    write_lines(root / "test.jsonl", [{"id": str(i)} for i in range(9)])
    provenance(root / "reward/provenance.json", "reward", result="w0", inputs=["s0", "l0", "l9", "r0"],
               results={"valid_accuracy": 0.913})  # fmt: skip
    nodes = {node.key: node for node in pipeline(read_run(root))}
    assert nodes["reward"].figure == "91.3 %"
    assert (nodes["labels"].figure, nodes["samples"].figure) == ("4", "8")  # and not what it was tested on


def test_checkpoints_are_not_steps(root):
    write(root / "policy/checkpoints/step-000010/provenance.json", {"stage": "ppo"})
    assert len(read_run(root).steps) == 8


# ------------------------------------------------------------------------------------------------------------ numbers


def test_numbers_are_written_for_people():
    assert [number(x, 2) for x in (784.3, -99.6, 0.123)] == ["780", "−100", "0.12"]
    assert [number(x) for x in (1234567, 0.01234, 12.345, 1e-5, None, math.nan, -0.5, True, "x")] == [
        "1,234,567", "0.0123", "12.3", "1e−05", "–", "–", "−0.5", "True", "x",
    ]  # fmt: skip
    assert [short(x) for x in (950, 12345, 4.27e6, 1.5e9, None)] == ["950", "12.3 k", "4.27 M", "1.5 G", "–"]
    assert [percent(x) for x in (0.9025, 1.0, 0, None)] == ["90.2 %", "100 %", "0 %", "–"]
    assert [duration(x) for x in (3.04, 42, 281, 3725, None)] == ["3.0 s", "42 s", "4 min 41 s", "1 h 02 min", "–"]
    assert interval([0.872, 0.932], as_percent=True) == "87.2 to 93.2 %"
    assert interval(None) == ""


def test_nested_options_become_lines():
    assert flat({"lr": 0.001, "data": ["a", "b"], "betas": [], "x": {"y": None}, "l": [{}, {}]}) == [
        ("lr", "0.001"), ("data", "a, b"), ("betas", "none"), ("x.y", "none"), ("l", "2 entries"),
    ]  # fmt: skip


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    points = [(i, float(i)) for i in range(12345)]
    thin = figures.thinned(points)
    assert len(thin) == figures.MAX_POINTS
    assert (thin[0], thin[-1]) == (points[0], points[-1])


def test_smoothing_neither_lags_nor_moves_a_straight_line():
    line = [(i, 3.0 * i + 1) for i in range(100)]  # the mean of symmetric neighbours of a line is the line
    assert [y for _, y in figures.smoothed(line)] == pytest.approx([y for _, y in line])


def test_known_models_keep_their_colours():
    assert figures.model_indices(["policy", "sft"]) == {"policy": 2, "sft": 1}
    assert figures.model_indices(["dpo", "base", "grpo"]) == {"dpo": 3, "base": 0, "grpo": 4}
    assert set(figures.model_indices([f"m{i}" for i in range(9)]).values()) <= set(range(6))


# ------------------------------------------------------------------------------------------ docs/reference/metrics.md


@pytest.mark.parametrize(("language", "name"), [("en", "metrics.md"), ("zh", "metrics.zh.md")])
def test_the_pages_of_metrics_are_made_from_the_definitions(language, name):
    page = (REPOSITORY / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert page == as_markdown(language), "run: make docs"


def test_the_chinese_page_of_metrics_has_the_sections_of_the_english_one_and_none_of_its_sentences():
    english, chinese = as_markdown("en"), as_markdown("zh")
    anchors = re.findall(r"^## .* \{#([\w-]+)\}$", chinese, re.MULTILINE)
    assert len(anchors) == len(re.findall("^## ", english, re.MULTILINE))
    assert "evaluation" in anchors  # docs/guide/evaluate.zh.md links there
    plain = re.sub(r"`[^`]*`|--[a-z-]+|\w+_\w+|log [\w.]+", "", chinese)
    assert [
        words for words in re.findall(r"[A-Za-z]+(?: [A-Za-z]+){2,}", plain) if not {"Var", "beta"} & {*words.split()}
    ] == []


def test_every_definition_is_complete():
    for name, metric in METRICS.items():
        assert metric.definition.endswith("."), name
        assert metric.watch.endswith("."), name


def logged_names() -> set[tuple[str, str]]:
    """(module, metric) of what the stages log, read from their source: the keywords of `session.log(...)`, and the keys
    of the dictionaries in functions that return metrics."""
    found = set()
    for path in (REPOSITORY / "src/wukong/stages").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "session.log":
                found |= {(path.stem, keyword.arg) for keyword in node.keywords if keyword.arg}
            if isinstance(node, ast.FunctionDef) and returns_metrics(node, path):
                for inner in ast.walk(node):
                    keys = inner.keys if isinstance(inner, ast.Dict) else []
                    found |= {(path.stem, key.value) for key in keys if isinstance(key, ast.Constant)}
                    if isinstance(inner, ast.Subscript) and ast.unparse(inner.value) == "metrics":
                        found |= {(path.stem, inner.slice.value)} if isinstance(inner.slice, ast.Constant) else set()
    return {(stage, name) for stage, name in found if isinstance(name, str)}


def returns_metrics(function: ast.FunctionDef, path: Path) -> bool:
    returned = ast.unparse(function.returns) if function.returns else ""
    logs = "Metrics" in returned or returned in ("dict[str, float]", "Advantages")
    return logs and path.parent.name in ("online", "direct") and function.name != "read"


def test_every_name_that_a_stage_logs_is_defined():
    found = logged_names()
    assert {("train", "kl"), ("update", "clip_fraction"), ("update", "value_loss")} <= found
    assert {("reward", "margin"), ("sft", "valid_loss"), ("dpo", "margin"), ("reinforce", "baseline")} <= found
    assert not [name for name in found if definition(*name) is None]


def test_every_definition_is_of_something_that_is_logged_or_evaluated():
    everywhere = {"lr", "tokens_per_second", "grad_norm", "grad_norm_policy", "grad_norm_value"}  # by the session
    by_the_reward_model = {"valid_loss", "valid_accuracy"}  # picked out of what its evaluation returns
    held_out = {"valid_margin"}  # of DPO and KTO, made by name
    parts = {"reward_of.NAME", "ensemble_std", "length_penalty"}  # of a reward with several parts
    pretraining = {"ptx_loss"}  # counted by `Update`
    of_options = {
        "passes",
        "equal_groups",
        "equal_groups_kept",
        "further_batches",
    }  # counted aside
    known = {name for _, name in logged_names()} | everywhere | by_the_reward_model | held_out | parts | pretraining
    known |= of_options
    assert not [name for name in METRICS if not name.startswith("evaluate/") and name.split("/")[-1] not in known]


# ------------------------------------------------------------------------------------------------- in both languages


def test_the_page_says_everything_in_both_languages(finished, page):
    chinese = Page((finished / "report.html").read_text(encoding="utf-8"), hidden="en")
    for expected in ("学到了", "失去了", "仍然做不到", "同样的提示，并排的回答", "400 个未见过的提示中", "总时间"):
        assert expected in chinese.text, expected
        assert expected not in page.text, expected
    own = (
        re.sub(r"<[^>]+>", "", Page.__doc__ or ""),
        "Pipeline",
        "Provenance",
        "Everything needed",
        "Nothing to judge",
    )
    assert not [word for word in own if word in chinese.text]
    labels = [attrs for _, attrs in page.tags if "aria-label" in attrs]
    assert len(labels) > 40
    assert all(attrs.get("data-zh") and attrs["aria-label"] == attrs["data-en"] for attrs in labels)


def test_the_page_opens_in_the_language_that_was_asked_for(finished, tmp_path):
    for language in ("en", "zh"):
        report.run(ReportOptions(run=finished, out=tmp_path / "x.html", language=language))
        page = Page((tmp_path / "x.html").read_text(encoding="utf-8"))
        assert dict(page.tags)["html"] == {"lang": language}


def test_terms_have_their_definitions(page):
    terms = [attrs for tag, attrs in page.tags if tag == "abbr"]
    assert all(attrs["tabindex"] == "0" and len(attrs["title"] or "") > 10 for attrs in terms)
    assert any(attrs["title"].startswith("How different two distributions are") for attrs in terms)


def test_the_first_words_say_what_was_learned_lost_and_still_fails(page):
    learned, rest = page.text.split("Learned", 1)[1].split("Lost", 1)
    lost, fails = rest.split("Still fails", 1)
    assert (
        "the answers of policy are preferred to those of sft (95 % interval 87.2 to 93.2 %; judged by rubric)"
        in learned
    )
    assert "“polite” rises from 64 % to 92 % of the answers (+28 points, +22 to +33)" in learned
    assert "KL of 14 nats per answer (13 to 16)" in lost
    assert "“right dish” is met by only 80 % of the 400 answers of policy" in fails


def test_a_check_is_counted_over_the_answers_that_it_applies_to(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    file = next(run.glob("*/evaluation.json"))
    evaluation = json.loads(file.read_text(encoding="utf-8"))
    evaluation["models"]["policy"]["check_counts"] = {"right dish": 150}
    file.write_text(json.dumps(evaluation), encoding="utf-8")
    report.run(ReportOptions(run=run, out=tmp_path / "x.html"))
    page = Page((tmp_path / "x.html").read_text(encoding="utf-8"))
    assert "“right dish” is met by only 80 % of the 150 answers of policy" in page.text


def test_every_curve_has_a_verdict(page):
    curves = [
        attrs["class"] for tag, attrs in page.tags if tag == "figure" and attrs.get("class", "").startswith("curve")
    ]
    assert len(curves) > 30
    assert all(name.split()[1] in ("green", "amber", "red", "none") for name in curves)
    assert "good Falls from" in page.text


def test_answers_are_compared_word_by_word(page):
    assert "From sft to policy, word by word:" in page.text
    assert sum(tag == "ins" for tag, _ in page.tags) >= 12


def test_what_was_measured_later_is_not_part_of_the_total_time(root):
    provenance(root / "later/provenance.json", "reward-report", result="z0", inputs=["w0"], seconds=4000, hour=9)
    assert "12 min 06 s" in page_of(root).text
    (root / "recipe.yaml").unlink()
    assert "12 min 06 s" in page_of(root).text
