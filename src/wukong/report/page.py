"""The report's page: its sections, and the HTML file.

The page is self-contained: style, script and Plotly are inlined, and its content security policy keeps browsers from
fetching anything else. Text by models and people is untrusted and escaped by Jinja.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from wukong.options import POLICY_STAGES
from wukong.report import figures
from wukong.report.contents import AnsweredPrompt, Evaluation, RunContents, StepResult
from wukong.report.diagnosis.diagnose import diagnose
from wukong.report.diagnosis.panel import panel_of
from wukong.report.diagnosis.records import RunRecords
from wukong.report.figures import Figure
from wukong.report.glass import glass_assets, glass_boxes
from wukong.report.inspected import Inspect, inspected_answers
from wukong.stats import in_words
from wukong.training.metric_definitions import EVERY_STAGE, METRICS, Metric, definition

TEMPLATES = Path(__file__).parents[1] / "templates" / "report"

TOGETHER = (
    ("loss", "valid_loss"),
    ("perplexity", "valid_perplexity"),
    ("accuracy", "valid_accuracy"),
    ("score", "reward_model_score"),
    ("kl", "kl_k3"),
    ("ratio_max", "ratio_min"),
    ("return_mean", "value_mean"),
    ("grad_norm_policy", "grad_norm_value"),
)
"""Related metrics, drawn in one chart."""

FEW_CURVES = 12
"""Up to this number of charts need no headings."""

STAGE_NAMES = {
    "kitchen": "Built-in world",
    "tokenize": "Text and tokenizer",
    "pretrain": "Pretraining",
    "sft": "Instruction fine-tuning",
    "sample": "Sampled answers",
    "label": "Labels",
    "reward": "Reward model",
    "ppo": "PPO",
    "reinforce": "REINFORCE",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "bestofn": "Best of n",
    "dpo": "DPO",
    "kto": "KTO",
    "evaluate": "Evaluation",
    "reward-report": "Reward-model report",
    "compare": "Comparison",
    "frontier": "Frontier",
}


# ---------------------------------------------------------------------------------------------------- formatting


def number(value: Any, digits: int = 3) -> str:
    """A formatted number: 1,234,567; 0.0123; 12.3; an en dash for None."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}".replace("-", "−")


def short(value: float | None) -> str:
    """An abbreviated count: 950, 12.3 k, 4.27 M."""
    if value is None:
        return "–"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return number(value)


def percent(value: float | None, digits: int = 1) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.0f} %" if value in (0, 1) else f"{100 * value:.{digits}f} %"


def equal_length(rate: float | None) -> str:
    """A length-controlled win rate, which not all outcomes determine."""
    return "not estimable" if rate is None else percent(rate)


def interval(pair: Sequence[float] | None, as_percent: bool = False) -> str:
    if pair is None:
        return ""
    low, high = (f"{100 * x:.1f}" for x in pair) if as_percent else (number(x) for x in pair)
    return f"{low} to {high}{' %' if as_percent else ''}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested options or results as (dotted name, text) lines; long lists show only their length."""
    if isinstance(value, dict) and value:
        return [line for key, one in value.items() for line in flat(one, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list) and len(value) <= 6 and not any(isinstance(one, dict | list) for one in value):
        return [(name, ", ".join(map(number, value)) if value else "none")]
    if isinstance(value, list | dict):
        return [(name, f"{len(value)} entries")]
    return [(name, number(value, 6) if value is not None else "none")]


# --------------------------------------------------------------------------------------------------------- sections


@dataclass
class Node:
    """A step of the pipeline overview. `state`: done, given (not made in this run), unfinished, or not run."""

    key: str
    label: str
    what: str
    state: str = "not run"
    figure: str = ""
    figure_label: str = ""
    note: str = ""
    time: str = ""


@dataclass
class Curve:
    """One chart and its metrics: (name, last value, definition)."""

    title: str
    chart: str
    entries: list[tuple[str, str, Metric | None]]


@dataclass
class CurveGroup:
    title: str
    curves: list[Curve]


@dataclass
class Charts:
    """The page's figures by element id."""

    by_id: dict[str, Figure] = field(default_factory=dict)

    def add(self, figure: Figure | None) -> str:
        """Registers a figure and returns its element id; empty for None."""
        if figure is None:
            return ""
        name = f"chart-{len(self.by_id) + 1}"
        self.by_id[name] = figure
        return name


def pipeline(run: RunContents) -> list[Node]:
    """The pipeline overview: text, base, SFT, samples, labels, reward model, policy, each with its key number, or "not
    run"."""
    policies = [step for step in run.steps if step.stage in POLICY_STAGES]
    policy = policies[-1] if policies else None

    def made_by(stage: str) -> StepResult | None:
        """The stage's step; of several, the one that the policy was made from."""
        steps = run.of_stage(stage)
        ancestor = run.source_of(policy, stage) if policy else None
        return ancestor or (steps[0] if steps else None)

    nodes = [
        _text_node(made_by("tokenize")),
        _model_node(Node("base", "Base model", "continues text"), made_by("pretrain")),
        _model_node(Node("sft", "SFT model", "answers"), made_by("sft")),
        _samples_node(made_by("sample")),
        _labels_node(made_by("label")),
        _reward_node(made_by("reward")),
        _policy_node(policy, run.evaluations),
    ]
    sft = made_by("sft")
    if sft and nodes[1].state == "not run" and sft.options.get("model"):
        nodes[1].state, nodes[1].figure = "given", Path(str(sft.options["model"])).name
        nodes[1].figure_label = "not trained in this run"
    return nodes


def _begin_node(node: Node, step: StepResult | None) -> bool:
    """Fills in state and time; returns whether there is a result."""
    if step is None:
        return False
    node.state = "done" if step.finished else "unfinished"
    node.time = duration(step.seconds) if step.finished else ""
    return True


def _text_node(step: StepResult | None) -> Node:
    node = Node("text", "Text", "tokenised documents")
    if _begin_node(node, step) and step:
        train = step.results.get("train") or {}
        node.figure, node.figure_label = short(train.get("tokens")), "tokens"
        if vocabulary := step.results.get("vocab_size"):
            node.note = f"vocabulary of {number(vocabulary)}"
    return node


def _model_node(node: Node, step: StepResult | None) -> Node:
    if _begin_node(node, step) and step:
        loss = step.results.get("valid_loss") or step.last("valid_loss") or step.last("loss")
        node.figure, node.figure_label = number(loss), "nats per token, held out"
        if node.key == "base" and (perplexity := step.last("valid_perplexity")):
            node.figure, node.figure_label = number(perplexity), "perplexity, held out"
        if parameters := step.results.get("parameters"):
            node.note = f"{short(parameters)} parameters"
        elif kept := (step.results.get("data") or {}).get("kept"):
            node.note = f"{number(kept)} demonstrations"
    return node


def _samples_node(step: StepResult | None) -> Node:
    node = Node("samples", "Samples", "several answers per prompt")
    if _begin_node(node, step) and step:
        node.figure, node.figure_label = short(step.n_records), "answers"
    return node


def _labels_node(step: StepResult | None) -> Node:
    node = Node("labels", "Labels", "which answer is better")
    if _begin_node(node, step) and step:
        node.figure = short(step.n_records)
        node.figure_label = {"ranking": "rankings", "pairs": "pairs"}.get(str(step.options.get("shape")), "labels")
        if judge := step.options.get("judge"):
            errors = step.options.get("error_rate")
            node.note = f"by {judge}" + (f", {percent(errors)} errors" if errors else "")
    return node


def _reward_node(step: StepResult | None) -> Node:
    node = Node("reward", "Reward model", "scores an answer")
    if _begin_node(node, step) and step:
        node.figure = percent(step.results.get("valid_accuracy") or step.last("valid_accuracy"))
        node.figure_label = "accuracy on held-out pairs"
        if pairs := step.results.get("train_pairs"):
            node.note = f"{number(pairs)} pairs"
    return node


def _policy_node(step: StepResult | None, evaluations: Sequence[Evaluation]) -> Node:
    node = Node("policy", "Policy", "trained on the reward")
    if _begin_node(node, step) and step:
        node.figure, node.figure_label = number(step.last("kl")), "nats KL to SFT"
        best = next((one for e in evaluations for one in e.result.newest_first), None)
        if best:
            node.figure, node.figure_label = percent(best.win_rate), f"preferred to {best.b}"
            node.note = f"{number(step.last('kl'))} nats KL in training"
    return node


def headline(run: RunContents) -> dict[str, Any]:
    """The newest model compared with its predecessor, and the numbers that qualify the result."""
    first = next((e.result for e in run.evaluations), None)
    best = first.newest_first[0] if first and first.comparisons else None
    tiles: list[tuple[str, str, str]] = []
    if first and best and best.a in first.models:
        model, other = first.models[best.a], first.models.get(best.b)
        tiles.append((f"KL of {best.a}", f"{number(model.kl)} nats", interval(model.kl_interval) or "per response"))
        tiles.append(("responses ended by EOS", percent(model.termination_rate), ""))
        if model.distinct_2 is not None and other and other.distinct_2:
            tiles.append(("distinct bigrams", percent(model.distinct_2 / other.distinct_2, 0), f"of {best.b}'s"))
    if reward := next((s for s in run.of_stage("reward") if s.results.get("valid_accuracy")), None):
        spread = interval(reward.results.get("valid_accuracy_interval"), as_percent=True)
        tiles.append(("reward model accuracy", percent(reward.results["valid_accuracy"]), spread))
    times = [step.seconds for step in run.steps if step.seconds is not None]
    tiles.append(("total time", duration(sum(times)), f"{len(times)} steps"))
    claim = in_words(best.model_dump()) if best else ""
    overlap = first.overlap if first else None
    if overlap is None or overlap.seen:
        claim += "; overlap with the training data is unknown" if overlap is None else f"; {overlap.words}"
    claim = claim[:1].upper() + claim[1:]
    return {"best": best, "claim": claim, "tiles": [t for t in tiles if not t[1].startswith("–")]}


def chart_plan(stage: str, logged: Iterable[str]) -> list[tuple[str, list[str]]]:
    """(heading, the metrics of one chart) for everything a stage logged, in the order of the definitions,
    stage-specific metrics first. Related metrics share a chart; a few charts need no headings."""
    names = dict.fromkeys(name for name in logged if name != "step")
    places = {name: place for place, name in enumerate(METRICS)}
    plan: list[tuple[str, list[str]]] = []
    drawn: set[str] = set()
    for name in sorted(names, key=lambda n: places.get(f"{stage}/{n}", places.get(n, len(places)))):
        if name not in drawn:
            together = [n for n in next((t for t in TOGETHER if name in t), (name,)) if n in names]
            drawn.update(together)
            first = definition(stage, together[0])
            plan.append((first.group if first else "Not defined", together))
    if len(plan) <= FEW_CURVES:
        return [("", together) for _, together in plan]
    headings = list(dict.fromkeys(heading for heading, _ in plan))
    return sorted(plan, key=lambda chart: (chart[0] == EVERY_STAGE, headings.index(chart[0])))


def curve_groups(step: StepResult, charts: Charts) -> list[CurveGroup]:
    """All metrics of a step, as charts under headings (see `chart_plan`)."""
    points = {n: figures.points_of(step.metrics, n) for n in dict.fromkeys(n for line in step.metrics for n in line)}
    groups: dict[str, CurveGroup] = {}
    for heading, names in chart_plan(step.stage, (name for name, found in points.items() if found)):
        series = {name: points[name] for name in names}
        metrics = {name: definition(step.stage, name) for name in names}
        entries = [(name, number(found[-1][1], 4), metrics[name]) for name, found in series.items()]
        first = metrics[names[0]]
        chart = charts.add(figures.curves(series, first.unit if first else ""))
        groups.setdefault(heading, CurveGroup(heading, [])).curves.append(Curve(" and ".join(names), chart, entries))
    return list(groups.values())


def training(run: RunContents, charts: Charts) -> list[dict[str, Any]]:
    """The curves of every step that logged metrics."""
    return [
        {
            "step": step,
            "title": STAGE_NAMES.get(step.stage, step.stage),
            "groups": curve_groups(step, charts),
            "n_steps": step.metrics[-1].get("step"),
            "over_kl": charts.add(figures.reward_over_kl(step.metrics)),
            "seed": step.options.get("seed"),
        }
        for step in run.steps
        if step.metrics
    ]


def results(run: RunContents, charts: Charts) -> list[dict[str, Any]]:
    return [
        {
            "name": evaluation.name,
            "result": evaluation.result,
            "colours": figures.model_indices(list(evaluation.result.models)),
            "wins": charts.add(figures.win_rates(evaluation.result)),
            "scores": charts.add(figures.scores(evaluation.result)),
            "checks": charts.add(figures.checks(evaluation.result)),
            "sources": _sources(evaluation),
        }
        for evaluation in run.evaluations
    ]


def _sources(evaluation: Evaluation) -> list[tuple[str, int, dict[str, float | None]]]:
    """(source, prompts, score by model), if the prompts have sources."""
    models = evaluation.result.models
    names = sorted({source for model in models.values() for source in model.by_source})
    rows = []
    for name in names:
        of_source = {m: model.by_source[name] for m, model in models.items() if name in model.by_source}
        n = max(one.n for one in of_source.values())
        rows.append((name or "(none)", n, {m: one.score_mean for m, one in of_source.items()}))
    return rows


def _question(answered: AnsweredPrompt) -> str:
    """The last message, ignoring case, white space and trailing punctuation."""
    return re.sub(r"[\s?!.]+$", "", " ".join(answered.messages[-1].content.casefold().split()))


def side_by_side(evaluation: Evaluation, pinned: Sequence[str], shown: int, seed: int) -> dict[str, Any]:
    """The prompts shown: the pinned ones, then a seeded random choice, to avoid cherry-picking."""
    wanted = [re.sub(r"[\s?!.]+$", "", " ".join(text.casefold().split())) for text in pinned]
    by_question = {_question(one): one for one in reversed(evaluation.answered)}
    first = [by_question[text] for text in dict.fromkeys(wanted) if text in by_question]
    missing = [text for text, question in zip(pinned, wanted, strict=True) if question not in by_question]
    rest = [one for one in evaluation.answered if not any(one is other for other in first)]
    count = min(max(0, shown - len(first)), len(rest))
    drawn = random.Random(f"report {seed}").sample(rest, count)
    return {
        "first": first,
        "drawn": drawn,
        "missing": missing,
        "total": len(evaluation.answered),
        "colours": figures.model_indices(list(evaluation.result.models)),
        "scorer": evaluation.result.scorer,
    }


def reward_models(run: RunContents, charts: Charts) -> list[dict[str, Any]]:
    """Accuracy and calibration of every reward model on held-out prompts."""
    return [
        {
            "step": step,
            "accuracy": percent(step.results.get("valid_accuracy")),
            "interval": interval(step.results.get("valid_accuracy_interval"), as_percent=True),
            "pairs": number(step.results.get("valid_pairs")),
            "train_pairs": number(step.results.get("train_pairs")),
            "length": percent(step.results.get("length_accuracy")),
            "normalised": step.results.get("normalised_from"),
            "calibration": charts.add(figures.calibration(step.results.get("calibration") or [])),
        }
        for step in run.of_stage("reward")
    ]


def samples(run: RunContents, per_prompt: int = 6) -> list[dict[str, Any]]:
    """Samples written during pretraining: by prompt, evenly spread over the run, including the first and last."""
    shown = []
    for step in run.of_stage("pretrain"):
        by_prompt: dict[str, list[dict[str, Any]]] = {}
        for line in step.samples:
            by_prompt.setdefault(str(line.get("prompt", "")), []).append(line)
        for prompt, lines in by_prompt.items():
            picked = sorted({round(i * (len(lines) - 1) / (per_prompt - 1)) for i in range(per_prompt)})
            shown.append({"step": step, "prompt": prompt, "lines": [lines[i] for i in picked]})
    return shown


def data_tables(run: RunContents) -> list[dict[str, Any]]:
    """The data each step read: by source, the records kept, dropped and truncated, with reasons."""
    tables = []
    for step in run.steps:
        data = step.results.get("data")
        if isinstance(data, dict) and isinstance(data.get("sources"), list):
            sources = [source for source in data["sources"] if isinstance(source, dict)]
            title = STAGE_NAMES.get(step.stage, step.stage)
            tables.append({"step": step, "title": title, "sources": sources, "data": data})
    return tables


KNOWN_IN_RECORD = {"stage", "options", "inputs", "version", "git_commit", "seconds", "files", "result", "results"}


def provenance(run: RunContents) -> list[dict[str, Any]]:
    """The provenance of each step."""
    return [
        {
            "step": step,
            "options": flat(step.options),
            "results": flat({k: v for k, v in step.results.items() if k not in ("data", "calibration")}),
            "inputs": [(str(k), str(v or "from the hub")) for k, v in step.record["inputs"].items()],
            "files": [(str(k), str(v)) for k, v in step.record["files"].items()],
            "machine": flat({k: v for k, v in step.record.items() if k not in KNOWN_IN_RECORD}),
        }
        for step in run.steps
    ]


# ---------------------------------------------------------------------------------------------------------- output


def render(
    run: RunContents, *, title: str | None, pinned: Sequence[str] = (), prompts_shown: int = 12, seed: int = 0,
    inspect: Inspect | None = None,
) -> str:  # fmt: skip
    """Renders the page.

    Args:
        run: the contents of the run directory.
        title: the page's title; by default the run's name.
        pinned: prompts to show first, if the evaluation has them.
        prompts_shown: the number of prompts shown with all answers.
        seed: for the random choice among the others.
        inspect: reads a shown answer as tokens; None: answers cannot be opened.

    Returns:
        Self-contained HTML. The same run directory gives the same page.
    """
    charts = Charts()
    finished = [str(step.record["finished"]) for step in run.steps if step.record.get("finished")]
    answers = [side_by_side(e, pinned, prompts_shown, seed) for e in run.evaluations if e.answered]
    content = {
        "title": title or run.name,
        "run": run,
        "finished": max(finished, default="").replace("T", " ").replace("Z", " UTC"),
        "headline": headline(run),
        "pipeline": pipeline(run),
        "results": results(run, charts),
        "answers": answers,
        "seed": seed,
        "training": training(run, charts),
        "glass": glass_boxes(run),
        "glass_assets": glass_assets(),
        "tokens": inspected_answers(run, answers, inspect) if inspect else [],
        "reward_models": reward_models(run, charts),
        "samples": samples(run),
        "data": data_tables(run),
        "provenance": provenance(run),
        "diagnosis": panel_of(diagnose(RunRecords(run))),
        "step_names": STAGE_NAMES,
    }
    return fill("page.html.jinja", content, charts)


def fill(template: str, content: Mapping[str, Any], charts: Charts) -> str:
    """Renders a template with content, style, charts and the script that draws them, as a self-contained page."""
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number, "percent": percent, "equal_length": equal_length, "interval": interval,
        "duration": duration, "reasons": _reasons,
        "code": _code,
    }  # fmt: skip
    assets = {
        "style": _asset("report.css"),
        "script": _asset("report.js"),
        "plotly": Markup(get_plotlyjs()) if charts.by_id else "",
        "charts": charts.by_id,
    }
    return environment.get_template(template).render({**content, **assets})


def _asset(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _code(text: str) -> Markup:
    """Turns `name` in a definition into a code element."""
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(text.split("`"))
    )


def _reasons(counts: Any) -> Iterable[str]:
    """{"duplicate": 3} -> ["3 duplicate"]."""
    return [f"{number(n)} {reason}" for reason, n in counts.items()] if isinstance(counts, dict) else []
