"""The doctor's checks on made-up records: what is red, what is amber, what is healthy, and what cannot be said."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.report.made_up_steps import HEALTHY, N, made_up, noisy, run_of
from wukong.language import catalogue, translate
from wukong.records import Comparison, Ranking, as_messages, write_records
from wukong.report.contents import Evaluation, EvaluationResult, ModelResult, OverlapResult, PairResult
from wukong.report.diagnosis import data, models
from wukong.report.diagnosis.curves import curve_of
from wukong.report.diagnosis.diagnose import diagnose
from wukong.report.diagnosis.findings import SITE, TITLES
from wukong.report.diagnosis.labels import statistics_of
from wukong.report.diagnosis.panel import panel_of
from wukong.report.diagnosis.records import LabelFile, RunRecords

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "wukong" / "report" / "diagnosis"


def findings(*steps, evaluations=()):
    run = run_of(steps[0].out.parent, *steps)
    run.evaluations.extend(evaluations)
    return {one.code: one for one in diagnose(RunRecords(run)).findings}


def grades(*steps, evaluations=()):
    return {code: one.severity for code, one in findings(*steps, evaluations=evaluations).items()}


# ------------------------------------------------------------------------------------------------------------- curves


def test_a_trend_is_told_from_noise(tmp_path):
    flat, rising = noisy(1, 1, 0.2), noisy(1, 2, 0.2)
    step = made_up(tmp_path / "x", "ppo", {"flat": flat, "rising": rising, "const": [1.0] * N})
    assert abs(curve_of(step, "flat").z) < 3
    assert curve_of(step, "rising").z > 3
    assert curve_of(step, "rising").noise == pytest.approx(0.2, rel=0.4)
    assert (curve_of(step, "const").z, curve_of(step, "const").noise) == (0, 0)
    assert curve_of(step, "absent") is None
    assert curve_of(step, "flat", at_least=N + 1) is None


# -------------------------------------------------------------------------------------------------------- the policy


def test_a_healthy_policy_has_no_finding(tmp_path):
    assert findings(made_up(tmp_path / "policy", "ppo", HEALTHY)) == {}


BROKEN = {
    "lr-too-high": [
        ("red", {"approx_kl": noisy(0.5, 0.4, 0.02)}),
        ("red", {"approx_kl": noisy(0.1, 0.08, 0.01), "score": noisy(0.5, -0.5, 0.1)}),
        ("amber", {"approx_kl": noisy(0.08, 0.06, 0.005)}),
    ],
    "lr-too-low": [
        ("red", {"approx_kl": noisy(1e-7, 1e-7, 0), "kl_k3": noisy(0, 1e-3, 1e-4), "score": noisy(0, 0, 0.1)}),
        ("amber", {"approx_kl": noisy(1e-6, 1e-6, 0), "kl_k3": noisy(0, 0.04, 1e-3)}),
    ],
    "kl-coefficient-too-high": [
        ("red", {"kl_penalty_std": noisy(3, 4, 0.5), "kl": noisy(0, 0.3, 0.1), "score": noisy(0.1, 0.1, 0.1)}),
        ("amber", {"kl_penalty_std": noisy(0.5, 0.6, 0.05), "kl": noisy(0, 0.9, 0.1), "score": noisy(0, 0.15, 0.1)}),
    ],
    "kl-runaway": [
        ("red", {"kl": noisy(0, 70, 2)}),
        ("amber", {"kl": noisy(0, 26, 1)}),
    ],
    "length-hacking": [
        ("red", {"response_length": noisy(40, 90, 2), "score_length_correlation": noisy(0.4, 0.6, 0.1)}),
        ("amber", {"response_length": noisy(40, 55, 2), "score_length_correlation": noisy(0.3, 0.3, 0.1)}),
    ],
    "repetition": [
        ("red", {"repetition": noisy(0.0, 0.6, 0.03)}),
        ("red", {"distinct_2": noisy(0.4, 0.1, 0.02)}),
        ("red", {"top_response_share": noisy(0.05, 0.6, 0.03)}),
        ("amber", {"distinct_2": noisy(0.4, 0.24, 0.01)}),
    ],
    "value-model": [
        ("red", {"explained_variance": noisy(0.1, 0.0, 0.02), "value_error": noisy(0.7, 0.7, 0.05)}),
        ("red", {"explained_variance": noisy(0.1, -0.8, 0.05), "value_error": noisy(0.7, 1.7, 0.05)}),
        ("amber", {"explained_variance": noisy(0.1, 0.0, 0.02)}),  # its error falls
        ("amber", {"explained_variance": noisy(0.1, 0.22, 0.03)}),
    ],
    "never-ends": [
        ("red", {"termination_rate": noisy(1.0, 0.1, 0.01)}),
        ("amber", {"termination_rate": noisy(1.0, 0.75, 0.01)}),
    ],
    "sampler-mismatch": [
        ("red", {"sampler_logprob_gap": noisy(0.3, 0.3, 0.02)}),
        ("red", {"first_ratio_error": noisy(0.2, 0.2, 0.01)}),
        ("amber", {"sampler_logprob_gap": noisy(0.03, 0.03, 0.001)}),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("code", "severity", "curves"), [(code, *case) for code, cases in BROKEN.items() for case in cases]
)
def test_a_broken_policy_is_named_with_or_without_its_options(tmp_path, code, severity, curves):
    found = findings(made_up(tmp_path / "a" / "policy", "ppo", HEALTHY | curves, options={"lr": 1e-3, "kl_coef": 0.1}))
    assert found[code].severity == severity
    assert set(found) == {code}, "one thing is broken"
    bare = findings(made_up(tmp_path / "b" / "policy", "ppo", HEALTHY | curves))
    assert (bare[code].severity, bare[code].evidence) == (found[code].severity, found[code].evidence)


@pytest.mark.parametrize(
    "options", [{"lr": 10.0}, {"lr": 1e-12}, {"kl_coef": 100.0}, {"kl_coef": 0.0}, {"value_coef": 0.0}]
)
def test_no_verdict_rests_on_an_option(tmp_path, options):
    assert findings(made_up(tmp_path / "policy", "ppo", HEALTHY, options=options)) == {}


def test_a_short_run_is_not_judged_and_says_so(tmp_path):
    short = {name: values[:3] for name, values in HEALTHY.items()}
    run = run_of(tmp_path, made_up(tmp_path / "policy", "ppo", short, finished=False))
    found = diagnose(RunRecords(run))
    assert found.findings == []
    assert {"length-hacking", "value-model", "repetition"} <= {one.code for one in found.unchecked}


def test_a_run_that_its_guard_stopped_is_named(tmp_path):
    curves = HEALTHY | {"kl": [0.0, 30.0, 120.0], "approx_kl": [5.0, 9.0, 9.0]}
    step = made_up(tmp_path / "policy", "ppo", {name: values[:3] for name, values in curves.items()}, finished=False)
    assert grades(step) == {"lr-too-high": "red", "kl-runaway": "red"}


def test_text_that_is_continued_need_not_end(tmp_path):
    never = HEALTHY | {"termination_rate": [0.0] * N}
    assert findings(made_up(tmp_path / "policy", "ppo", never)) == {}
    costly = never | {"score": noisy(-1, -1, 0.1)}
    assert grades(made_up(tmp_path / "costly", "ppo", costly)) == {"never-ends": "red"}
    taught = made_up(tmp_path / "sft", "sft", {"loss": noisy(2, 0.3, n=40)}, every=10)
    assert grades(made_up(tmp_path / "policy", "ppo", never), taught) == {"never-ends": "red"}


def evaluated(win=0.5, controlled=0.5, termination=1.0, seen=0, n=200):
    low, high = win - 0.05, win + 0.05
    pair = PairResult(
        a="policy", b="sft", judge="rubric", n=n, wins=0, ties=0, losses=0, win_rate=win, interval=(low, high),
        length_controlled_win_rate=controlled,
    )  # fmt: skip
    overlap = OverlapResult(seen=seen, words=f"{seen} of {n} prompts were used in training")
    model = {"sft": ModelResult(termination_rate=termination)}
    return [
        Evaluation("evaluation", EvaluationResult(n_prompts=n, overlap=overlap, models=model, comparisons=[pair]), [])
    ]


def test_length_that_a_judge_finds_justified_is_amber(tmp_path):
    step = made_up(tmp_path / "policy", "ppo", HEALTHY | BROKEN["length-hacking"][0][1])
    assert grades(step, evaluations=evaluated(0.8, 0.75)) == {"length-hacking": "amber"}
    assert grades(step, evaluations=evaluated(0.3, 0.3)) == {"length-hacking": "red"}


# --------------------------------------------------------------------------------------------------------- SFT and data


def sft(place, loss, valid=(), results=None):
    step = made_up(place / "sft", "sft", {"loss": loss}, results={"kl_to_start": 3.9, **(results or {})}, every=10)
    lines = [json.loads(line) for line in (step.out / "metrics.jsonl").read_text().splitlines()]
    for line, value in zip(reversed(lines), reversed(valid), strict=False):
        line["valid_loss"] = value
    (step.out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return step


@pytest.mark.parametrize(
    ("expected", "loss", "valid", "results"),
    [
        ({}, noisy(2.0, 0.1, n=40), [0.3, 0.2, 0.15], {}),
        ({}, noisy(3.0, 2.0, 0.1, n=40), [2.3, 2.2, 2.2], {}),  # real text: the loss stays high
        ({"overfitted-sft": "red"}, noisy(2.0, 0.01, 0.002, n=40), [0.9], {}),
        ({"overfitted-sft": "red"}, noisy(2.0, 0.9, 0.02, n=40), [1.2, 1.1, 1.3, 1.6], {}),
        ({"overfitted-sft": "amber"}, noisy(2.0, 0.9, 0.02, n=40), [1.2, 1.1, 1.3, 1.6], {"valid_loss": 1.1}),
        ({"lr-too-high": "red"}, [2.0, 1.0, *noisy(1.0, 6.0, 0.2, n=38)], [6.0], {}),
        ({"lr-too-low": "red"}, noisy(2.0, 1.95, 0.01, n=40), [1.95], {"kl_to_start": 0.001}),
    ],
)  # fmt: skip
def test_sft(tmp_path, expected, loss, valid, results):
    assert grades(sft(tmp_path, loss, valid, results)) == expected


def test_few_steps_that_were_still_learning(tmp_path):
    step = made_up(tmp_path / "sft", "sft", {"loss": [3.0, 2.2, 1.6, 1.1]}, every=3)
    assert grades(step) == {"too-little": "red"}


def reward(place, accuracy=None, inputs=(), **results):
    usual = {
        "valid_accuracy": 0.89, "valid_accuracy_interval": [0.86, 0.91], "valid_pairs": 900, "valid_prompts": 300,
        "valid_loss": 0.25, "train_pairs": 4000, "off_prompt_accuracy": 0.97, "off_prompt_interval": [0.94, 0.99],
        "off_prompt_prompts": 200,
    }  # fmt: skip
    curves = {"loss": noisy(0.9, 0.3, 0.05, n=40), "accuracy": accuracy or noisy(0.5, 0.86, 0.05, n=40)}
    return made_up(place / "reward", "reward", curves, results=usual | results, inputs=inputs, every=10)


@pytest.mark.parametrize(
    ("expected", "results"),
    [
        ({}, {}),
        ({"reward-at-chance": "red"}, {"valid_accuracy": 0.5, "valid_accuracy_interval": [0.46, 0.54]}),
        ({"reward-at-chance": "amber"},
         {"valid_accuracy": 0.6, "valid_accuracy_interval": [0.3, 0.85], "valid_pairs": 12, "valid_prompts": 6}),
        ({"reward-blind": "amber"}, {"off_prompt_accuracy": 0.5, "off_prompt_interval": [0.43, 0.57]}),
        ({"noisy-labels": "amber"}, {"valid_accuracy": 0.99, "valid_accuracy_interval": [0.97, 1.0]}),
    ],
)  # fmt: skip
def test_reward_model(tmp_path, expected, results):
    assert grades(reward(tmp_path, **results)) == expected


def test_few_memorised_labels(tmp_path):
    memorised = reward(
        tmp_path, noisy(0.6, 0.99, 0.01, n=40), train_pairs=120, valid_accuracy=0.66,
        valid_accuracy_interval=[0.6, 0.72],
    )  # fmt: skip
    assert grades(memorised) == {"too-little": "red"}
    assert grades(reward(tmp_path / "b", train_pairs=200)) == {"too-little": "amber"}, "few, but it learnt"


def comparison(prompt, better, worse, **more):
    return Comparison(prompt=as_messages(prompt), chosen=better, rejected=worse, **more)


def test_a_blind_reward_model_is_red_where_the_labels_show_that_the_prompt_matters(tmp_path):
    labels = tmp_path / "labels.jsonl"
    things = [f"thing{chr(97 + i)}{chr(97 + j)}" for i in range(9) for j in range(9)]
    write_records(labels, [comparison(f"about {thing} please", f"{thing}: so", "other: so") for thing in things])
    blind = {"off_prompt_accuracy": 0.5, "off_prompt_interval": [0.43, 0.57]}
    assert grades(reward(tmp_path, inputs=[labels], **blind)) == {"reward-blind": "red"}


# ----------------------------------------------------------------------------------------------------------- the labels


def pairs_of_four(flip: float, prompts: int = 200, times: int = 1):
    """Every pair of four answers to each prompt, with flips."""
    rng = np.random.default_rng(0)
    for prompt in range(prompts):
        for a in range(4):
            for b in range(a + 1, 4):
                for _ in range(times):
                    better, worse = (b, a) if rng.random() < flip else (a, b)
                    yield comparison(f"question {prompt}", f"answer {better}", f"answer {worse}")


@pytest.mark.parametrize(("flip", "severity"), [(0.0, None), (0.05, None), (0.3, "red"), (0.5, "red")])
def test_noise_is_estimated_from_cycles(tmp_path, flip, severity):
    found = statistics_of(list(pairs_of_four(flip)))
    ((how, estimate),) = found.flip_rates
    assert how == "cycles"
    assert estimate.low <= flip <= estimate.high or flip == 0.5  # there e(1-e) is flat
    outcome = data.noisy_labels(LabelFile(tmp_path / "labels.jsonl", "label", found))
    assert getattr(outcome, "severity", None) == severity


def test_noise_is_estimated_from_repeated_judgments():
    records = [one for one in pairs_of_four(0.25, times=2) if {one.chosen, one.rejected} == {"answer 0", "answer 1"}]
    ((how, estimate),) = statistics_of(records).flip_rates
    assert how == "contradictions"
    assert estimate.low < 0.25 < estimate.high


def test_one_ranking_cannot_contradict_itself():
    ranking = Ranking(prompt=as_messages("q"), responses=["a", "b", "c"], groups=[[0], [1], [2]])
    assert statistics_of([ranking]).flip_rates == []


def test_labels_that_cannot_be_read_are_named(tmp_path):
    damaged = tmp_path / "labels.jsonl"
    damaged.write_text('{"prompt": 3}\n')
    run = run_of(tmp_path, reward(tmp_path, inputs=[damaged]))
    (file,) = RunRecords(run).labels
    assert "labels.jsonl cannot be read" in file.why


def test_test_comparisons_on_training_prompts(tmp_path):
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    write_records(train, [comparison(f"question {i}?", "a", "b") for i in range(50)])
    write_records(test, [comparison(f"Question {i}", "c", "d") for i in range(40, 60)])
    step = made_up(
        tmp_path / "reward", "reward", {"loss": [0.7]}, inputs=[train, test],
        options={"data": [str(train)], "eval_data": [str(test)]},
    )  # fmt: skip
    outcome = data.seen_comparisons(RunRecords(run_of(tmp_path, step)), step)
    assert outcome.severity == "red"
    assert "10 of the 20 prompts" in outcome.evidence[0]


@pytest.mark.parametrize(("seen", "severity"), [(0, None), (2, None), (6, "amber"), (50, "red")])
def test_prompts_of_an_evaluation_that_were_used_in_training(tmp_path, seen, severity):
    step = made_up(tmp_path / "policy", "ppo", HEALTHY)
    assert grades(step, evaluations=evaluated(seen=seen)).get("overlap") == severity


def test_answers_of_an_sft_model_that_never_end(tmp_path):
    taught = made_up(tmp_path / "sft", "sft", {"loss": noisy(2, 0.3, n=40)}, every=10)
    assert grades(taught, evaluations=evaluated(termination=0.1)) == {"never-ends": "red"}


# ---------------------------------------------------------------------------------------------------- whatever it reads


def test_values_that_are_no_numbers_are_no_findings(tmp_path):
    odd = {
        "valid_accuracy": "high",
        "valid_accuracy_interval": [None, "x"],
        "train_pairs": [3],
        "off_prompt_accuracy": {},
    }
    step = made_up(tmp_path / "reward", "reward", {"loss": ["nan"] * 5, "accuracy": [None] * 5}, results=odd)
    assert findings(step) == {}
    assert isinstance(models.at_chance(step).why, str)


# --------------------------------------------------------------------------------------------------------------- texts


def test_every_finding_has_its_section_in_both_languages():
    for language in ("", ".zh"):
        page = (ROOT / "docs" / "tools" / f"doctor{language}.md").read_text(encoding="utf-8")
        anchors = re.findall(r"^## .* \{#([\w-]+)\}$", page, re.MULTILINE)
        assert [anchor for anchor in anchors if anchor in TITLES] == list(TITLES)
    assert f'Documentation = "{SITE}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def said_in(path: Path) -> set[str]:
    """The templates that a module's `Text` calls name, and the titles and levels."""
    import ast

    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Text":
            found |= {one.value for one in node.args[:1] if isinstance(one, ast.Constant)}
    return found


def test_everything_the_doctor_says_is_there_in_chinese_with_the_same_places():
    texts = set().union(*map(said_in, PACKAGE.glob("*.py"))) | set(TITLES.values()) | {"red", "amber", "high"}
    from wukong.report.diagnosis import online
    from wukong.report.diagnosis.data import HOW

    texts |= {*HOW.values(), *online.FALLS.values(), "medium", "low", "{a}; {b}"}
    texts -= {"", "{words}"}
    assert len(texts) > 70
    chinese = catalogue("doctor")
    assert texts - set(chinese) == set()
    assert set(chinese) - texts == set(), "said nowhere"
    for text, translation in chinese.items():
        assert sorted(re.findall(r"{.*?}", text)) == sorted(re.findall(r"{.*?}", translation)), text


def test_a_diagnosis_reads_in_chinese(tmp_path):
    step = made_up(tmp_path / "policy", "ppo", HEALTHY | {"kl": noisy(0, 70, 2)})
    panel = panel_of(diagnose(RunRecords(run_of(tmp_path, step))))
    (one,) = panel.findings
    for text in (panel.summary, one.title, one.certainty, *one.evidence, *one.advice, panel.passed):
        assert re.search("[\u4e00-\u9fff]", translate("zh", text)), text
    assert one.link("zh").endswith("/zh/tools/doctor.html#kl-runaway")
