"""The reports' charts as Plotly figures, in plain dictionaries; the page's script adds theme and size.

A colour is written "var(--name)" and looked up in the page's style sheet when the chart is drawn, so that charts follow
the reader's light or dark theme. Text from files is escaped: Plotly interprets some HTML.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import accumulate, pairwise
from typing import Any, TypeVar

from wukong.errors import Text
from wukong.report.contents import EvaluationResult, Interval

Figure = dict[str, Any]
Points = list[tuple[float, float]]
T = TypeVar("T")

MAX_POINTS = 400
"""Longer curves are thinned to this number of points; the last one is always kept."""
SMOOTH_FROM = 40
"""Curves with at least this number of logged steps also get a smoothed line."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
"""Each model has a symbol as well as a colour, for colour-blind readers and monochrome prints."""
_KNOWN = {"base": 0, "sft": 1, "policy": 2}


def model_indices(names: Sequence[str]) -> dict[str, int]:
    """model -> index of its colour, of six; the models of the standard pipeline (base, SFT, policy) have fixed ones."""
    free = iter(i for i in range(len(SYMBOLS) + len(names)) if i not in _KNOWN.values())
    return {name: _KNOWN[name] if name in _KNOWN else next(free) % len(SYMBOLS) for name in names}


def model_colour(index: int) -> str:
    return f"var(--model-{index})"


def points_of(metrics: Sequence[Mapping[str, Any]], name: str) -> Points:
    """(step, value) of every line with a finite value of the metric."""
    pairs = ((line.get("step"), line.get(name)) for line in metrics)
    return [(x, y) for x, y in pairs if _finite(x) and _finite(y)]  # type: ignore[misc]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def smoothed(points: Points) -> Points:
    """A centred moving average over a tenth of the curve, narrower towards its ends: a one-sided one would lag."""
    total = [0.0, *accumulate(y for _, y in points)]
    half = max(1, len(points) // 20)
    result = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        result.append((x, (total[i + reach + 1] - total[i - reach]) / (2 * reach + 1)))
    return result


def thinned(points: list[T]) -> list[T]:
    if len(points) <= MAX_POINTS:
        return points
    return [points[round(i * (len(points) - 1) / (MAX_POINTS - 1))] for i in range(MAX_POINTS)]


def _trace(points: Points, name: str, **more: Any) -> dict[str, Any]:
    xs, ys = zip(*thinned(points), strict=True)
    return {"type": "scatter", "x": list(xs), "y": [float(f"{y:.5g}") for y in ys], "name": escape(name), **more}


def curves(series: Mapping[str, Points], y_title: str) -> Figure:
    """Values over steps: a long curve faint with its smoothed line on top, a short one with points."""
    data = []
    for index, (name, points) in enumerate(series.items()):
        colour = f"var(--curve-{index})"
        line = {"color": colour, "width": 2}
        hover = {"hovertemplate": Text("step %{x}: %{y}")}
        if len(points) >= SMOOTH_FROM:
            faint = {"color": colour, "width": 1}
            data.append(_trace(points, name, mode="lines", line=faint, opacity=0.35, showlegend=False, **hover))
            data.append(_trace(smoothed(points), name, mode="lines", line=line, hoverinfo="skip"))
        else:
            marker = {"size": 5, "color": colour}
            data.append(_trace(points, name, mode="lines+markers", line=line, marker=marker, **hover))
    layout = {
        "xaxis": {"title": {"text": Text("step")}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": Text(escape(y_title))}},
        "showlegend": len(series) > 1,
    }
    return {"data": data, "layout": layout, "height": 230}


def reward_over_kl(metrics: Sequence[Mapping[str, Any]]) -> Figure | None:
    """PPO's frontier: reward over KL to the reference."""
    steps = thinned([line for line in metrics if _finite(line.get("kl")) and _finite(line.get("score"))])
    if len(steps) < 2:
        return None
    marker = {
        "size": 8,
        "color": [line["step"] for line in steps],
        "colorscale": [[0, "var(--model-0)"], [0.5, "var(--model-1)"], [1, "var(--model-2)"]],
        "line": {"width": 0},
        "showscale": True,
        "colorbar": {"title": {"text": Text("step")}, "thickness": 10, "outlinewidth": 0, "len": 0.9},
    }
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": [line["kl"] for line in steps],
            "y": [line["score"] for line in steps],
            "customdata": [line["step"] for line in steps],
            "line": {"color": "var(--rule)", "width": 1},
            "marker": marker,
            "hovertemplate": Text("step %{customdata}<br>KL %{x:.2f} nats<br>score %{y:.3f}<extra></extra>"),
        }
    ]
    layout = {
        "xaxis": {"title": {"text": Text("KL to the reference, nats per response")}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": Text("mean score of the reward model")}},
    }
    return {"data": data, "layout": layout, "height": 340}


def _dots(rows: Sequence[tuple[str, float, Interval | None, str, str]], x_axis: Figure) -> Figure:
    """One dot with its interval per row, the first row on top. Rows: (label, value, interval, colour, symbol); a label
    is escaped already."""
    data = []
    for place, (_, value, interval, colour, symbol) in enumerate(rows):
        low, high = interval or (value, value)
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [value],
                "y": [place],
                "marker": {"size": 12, "color": colour, "symbol": symbol},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [high - value],
                    "arrayminus": [value - low],
                    "color": colour,
                    "thickness": 2.5,
                    "width": 5,
                },
                "hovertemplate": "%{x}<extra></extra>",
            }
        )
    y_axis = {
        "tickvals": list(range(len(rows))),
        "ticktext": [label for label, *_ in rows],
        "range": [len(rows) - 0.4, -0.6],
        "showgrid": False,
        "zeroline": False,
    }
    layout = {"xaxis": x_axis, "yaxis": y_axis, "showlegend": False}
    return {"data": data, "layout": layout, "height": 90 + 46 * len(rows)}


def _words(name: str) -> Text:
    """A name from a file, with blanks and escaped; a text of ours as it is."""
    return name if isinstance(name, Text) else Text(escape(name.replace("_", " ")))


def win_rates(result: EvaluationResult) -> Figure | None:
    """Every comparison with its 95 % interval, and a line at one half, where neither model is better."""
    colours = model_indices(list(result.models))
    rows = [
        (
            Text("{a} vs {b}<br>{judge}", a=escape(one.a), b=escape(one.b), judge=_words(one.judge)),
            one.win_rate,
            one.interval,
            model_colour(colours.get(one.a, 0)),
            SYMBOLS[colours.get(one.a, 0)],
        )
        for one in result.newest_first
    ]
    if not rows:
        return None
    figure = _dots(rows, {"range": [0, 1.02], "tickformat": ".0%", "title": {"text": Text("win rate")}})
    half = {"type": "line", "x0": 0.5, "x1": 0.5, "y0": 0, "y1": 1, "yref": "paper"}
    figure["layout"]["shapes"] = [half | {"line": {"color": "var(--ink-soft)", "width": 1, "dash": "dot"}}]
    return figure


def scores(result: EvaluationResult) -> Figure | None:
    """Each model's mean score with its 95 % interval."""
    colours = model_indices(list(result.models))
    rows = [
        (escape(name), model.score_mean, model.score_interval, model_colour(colours[name]), SYMBOLS[colours[name]])
        for name, model in result.models.items()
        if model.score_mean is not None
    ]
    title = Text("mean score by {judge}", judge=Text(escape(result.scorer or "the judge")))
    return _dots(rows, {"rangemode": "tozero", "title": {"text": title}}) if rows else None


def checks(result: EvaluationResult) -> Figure | None:
    """For each of the scorer's criteria, the fraction of answers that meet it, by model."""
    names = list(dict.fromkeys(name for model in result.models.values() for name in model.checks))
    if not names:
        return None
    colours = model_indices(list(result.models))
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": escape(name),
            "y": [Text(escape(check)) for check in names],
            "x": [model.checks.get(check) for check in names],
            "marker": {"color": model_colour(colours[name])},
            "hovertemplate": f"{escape(name)}, %{{y}}: %{{x:.1%}}<extra></extra>",
        }
        for name, model in result.models.items()
    ]
    layout = {
        "barmode": "group",
        "bargap": 0.3,
        "xaxis": {"range": [0, 1.02], "tickformat": ".0%", "title": {"text": Text("answers that meet it")}},
        "yaxis": {"autorange": "reversed"},
        "showlegend": True,
    }
    return {"data": data, "layout": layout, "height": 100 + len(names) * (14 + 13 * len(data))}


def calibration(bins: Sequence[Mapping[str, float]]) -> Figure | None:
    """Observed accuracy over predicted probability; a calibrated reward model is on the diagonal."""
    bins = [b for b in bins if all(_finite(b.get(key)) for key in ("predicted", "observed", "n"))]
    if not bins:
        return None
    largest = max(b["n"] for b in bins) or 1
    low = min(0.5, *(b["observed"] for b in bins), *(b["predicted"] for b in bins))
    diagonal = {"color": "var(--ink-soft)", "width": 1, "dash": "dot"}
    data = [
        {"type": "scatter", "mode": "lines", "x": [low, 1], "y": [low, 1], "line": diagonal, "hoverinfo": "skip"},
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": [b["predicted"] for b in bins],
            "y": [b["observed"] for b in bins],
            "customdata": [b["n"] for b in bins],
            "line": {"color": "var(--curve-0)", "width": 1},
            "marker": {"color": "var(--curve-0)", "size": [6 + 16 * math.sqrt(b["n"] / largest) for b in bins]},
            "hovertemplate": Text("predicted %{x:.2f}, observed %{y:.2f} (%{customdata} pairs)<extra></extra>"),
        },
    ]
    layout = {
        "xaxis": {"title": {"text": Text("predicted probability")}, "tickformat": ".0%"},
        "yaxis": {"title": {"text": Text("how often it was right")}, "tickformat": ".0%"},
        "showlegend": False,
    }
    return {"data": data, "layout": layout, "height": 320}


# ----------------------------------------------------------------------------------------------- reward-model report

_SET_COLOURS = {"chosen": 5, "rejected": 4}


def accuracies(rows: Sequence[Mapping[str, Any]], ceiling: float | None = None) -> Figure | None:
    """Accuracy with its interval, one row per group of pairs. Rows: {name, value, interval, pairs}."""
    if not rows:
        return None
    colour = "var(--curve-0)"
    dots = [
        (
            Text("{name}<br>{pairs:,} pairs", name=_words(row["name"]), pairs=row["pairs"]),
            row["value"],
            tuple(row["interval"]),
            colour,
            "circle",
        )
        for row in rows
    ]
    figure = _dots(dots, {"range": [0, 1.02], "tickformat": ".0%", "title": {"text": Text("accuracy")}})
    lines = [(0.5, "var(--ink-soft)", "dot")] + ([(ceiling, "var(--gold)", "dash")] if ceiling else [])
    figure["layout"]["shapes"] = [
        {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"}
        | {"line": {"color": colour, "width": 1, "dash": dash}}
        for x, colour, dash in lines
    ]
    return figure


def distributions(scores: Mapping[str, Any]) -> Figure:
    """Histograms of scores on common bins, each as a fraction of its answers."""
    edges, sets = scores["edges"], scores["sets"]
    others = model_indices([name for name in sets if name not in _SET_COLOURS])
    data = []
    for name, one in sets.items():
        index = _SET_COLOURS.get(name, others.get(name, 0))
        steps = [count / one["n"] for count in one["counts"]]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": escape(name),
                "x": [float(f"{(a + b) / 2:.5g}") for a, b in pairwise(edges)],
                "y": [float(f"{y:.5g}") for y in steps],
                "line": {
                    "color": model_colour(index),
                    "width": 2,
                    "shape": "hvh",
                    "dash": "dot" if name == "rejected" else "solid",
                },
                "hovertemplate": f"{escape(name)}, score %{{x:.3g}}: %{{y:.1%}}<extra></extra>",
            }
        )
    layout = {
        "xaxis": {"title": {"text": Text("score")}},
        "yaxis": {"title": {"text": Text("fraction of answers")}, "tickformat": ".0%", "rangemode": "tozero"},
        "showlegend": True,
    }
    return {"data": data, "layout": layout, "height": 320}


def learning_curve(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy over the number of training prompts, on a logarithmic axis."""
    values = [point["accuracy"]["value"] for point in points]
    limits = [point["accuracy"]["interval"] for point in points]
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": [point["prompts"] for point in points],
            "y": values,
            "error_y": {
                "type": "data",
                "symmetric": False,
                "array": [high - y for y, (_, high) in zip(values, limits, strict=True)],
                "arrayminus": [y - low for y, (low, _) in zip(values, limits, strict=True)],
                "color": "var(--curve-0)",
            },
            "line": {"color": "var(--curve-0)", "width": 2},
            "marker": {"color": "var(--curve-0)", "size": 9},
            "hovertemplate": Text("%{x} prompts: %{y:.1%}<extra></extra>"),
        }
    ]
    counts = [point["prompts"] for point in points]
    layout = {
        "xaxis": {
            "type": "log",
            "title": {"text": Text("training prompts")},
            "tickvals": counts,
            "ticktext": [f"{n:,}" for n in counts],
        },
        "yaxis": {"title": {"text": Text("accuracy")}, "tickformat": ".0%"},
        "showlegend": False,
    }
    return {"data": data, "layout": layout, "height": 300}


# --------------------------------------------------------------------------------------------------------- frontier


def frontier(curves: Sequence[Mapping[str, Any]], of: str, y_title: Text) -> Figure:
    """Gain over sqrt(KL): one line per run, coloured by algorithm; for gold also the fitted form.

    Args:
        curves: those of frontier.json.
        of: gold or proxy.
    """
    data: list[dict[str, Any]] = []
    for index, curve in enumerate(curves):
        hover = f"{escape(curve['name'])}, %{{customdata}}<br>√KL %{{x:.3g}}: %{{y:.3g}}<extra></extra>"
        colour, symbol = model_colour(index % len(SYMBOLS)), SYMBOLS[index % len(SYMBOLS)]
        for number, run in enumerate(curve["runs"]):
            points = run["points"]
            d = [math.sqrt(max(0.0, point["kl"])) for point in points]
            labels = [f"n = {p['n']}" if "n" in p else Text("iteration {n}", n=p["iteration"]) for p in points]
            low, high = zip(*(point[f"{of}_gain_interval"] for point in points), strict=True)
            gains = [point[f"{of}_gain"] for point in points]
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers" if of == "proxy" or not curve["fit"] else "markers",
                    "name": escape(curve["name"]),
                    "legendgroup": escape(curve["name"]),
                    "showlegend": number == 0,
                    "x": [float(f"{x:.5g}") for x in d],
                    "y": [float(f"{y:.5g}") for y in gains],
                    "customdata": labels,
                    "error_y": {
                        "type": "data",
                        "symmetric": False,
                        "array": [h - y for h, y in zip(high, gains, strict=True)],
                        "arrayminus": [y - x for x, y in zip(low, gains, strict=True)],
                        "color": colour,
                        "thickness": 1,
                        "width": 2,
                    },
                    "line": {"color": colour, "width": 1},
                    "marker": {"color": colour, "symbol": symbol, "size": 7},
                    "hovertemplate": hover,
                }
            )
        if of == "gold" and curve["form"]:
            xs, ys = zip(*curve["form"], strict=True)
            line = {"color": colour, "width": 2.5}
            more = {"legendgroup": escape(curve["name"]), "showlegend": False, "hoverinfo": "skip", "line": line}
            data.append({"type": "scatter", "mode": "lines", "x": list(xs), "y": list(ys), **more})
    layout = {
        "xaxis": {"title": {"text": Text("√KL to the reference (√nats)")}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": y_title}},
        "showlegend": True,
    }
    return {"data": data, "layout": layout, "height": 420}
