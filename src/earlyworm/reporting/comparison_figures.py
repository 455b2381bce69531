"""The figures of a comparison that stand on its statistics: what decides, emergence, and the loss by pruning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from earlyworm.comparisons.statistics import Summary
from earlyworm.reporting.comparison_view import View
from earlyworm.reporting.formats import percent, points, si
from earlyworm.reporting.method_styles import MethodStyle
from earlyworm.reporting.palette import INK, MUTED, PAPER, RULE

FLOPS: dict[str, Any] = {"title": {"text": "training FLOPs"}, "tickformat": "~s"}
_ROW = 36  # pixels for each method where methods are rows
_STAGES = {  # quantity -> how it is drawn and called
    "accuracy_before": ("circle-open", "before pruning"),
    "accuracy_pruned": ("x-thin-open", "right after"),
    "accuracy_recovery_1": ("line-ns-open", "1 epoch later"),
    "accuracy_final": (None, "final"),
}


def of_method(trace: go.Scatter, method: str, *, label: bool = False) -> go.Scatter:
    """The trace, marked as a method's: the page hides it with the method, and writes the method's name at its end."""
    return trace.update(meta={"method": method, "label": label}, showlegend=False)


def decision_figure(view: View) -> go.Figure:
    """Final accuracy against all training FLOPs, both as means with 95% intervals: one marker per method."""
    figure = go.Figure()
    for method, summaries in view.summaries.items():
        accuracy, flops = summaries["accuracy_final"], summaries["total_flops"]
        if accuracy.mean is None or flops.mean is None:
            continue
        colour = view.styles[method].colour
        trace = go.Scatter(
            x=[flops.mean], y=[accuracy.mean], mode="markers", marker=_marker(view.styles[method], 12),
            error_x=_error(flops, colour), error_y=_error(accuracy, colour),
            hovertemplate=f"{_decision_words(method, summaries)}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(of_method(trace, method, label=True))
    base = view.summaries[view.baseline]["accuracy_final"].interval if view.baseline in view.summaries else None
    if base is not None:
        figure.add_hrect(y0=base[0], y1=base[1], fillcolor=RULE, opacity=0.5, line_width=0, layer="below")
    accuracies = {"title": {"text": "final accuracy"}, "tickformat": ".1~%", "range": _accuracy_range(view)}
    return figure.update_layout(
        xaxis={**FLOPS, "rangemode": "tozero"}, yaxis=accuracies, hovermode="closest", height=480,
        meta={"labels": "nearby"},
    )  # fmt: skip


def _accuracy_range(view: View) -> list[float] | None:
    """All means and their intervals, but of intervals that dwarf the differences (two seeds) only the middle."""
    finals = [summary for some in view.summaries.values() if (summary := some["accuracy_final"]).mean is not None]
    if not finals:
        return None
    means = [summary.mean or 0.0 for summary in finals]
    ends = [end for summary in finals for end in summary.interval or ()] + means
    most = 4 * max(max(means) - min(means), 0.01)
    low, high = max(min(ends), min(means) - most, 0.0), min(max(ends), max(means) + most, 1.0)
    margin = 0.06 * max(high - low, 0.01)
    return [low - margin, high + margin]


def emergence_figure(view: View) -> go.Figure:
    """When the tickets of every search emerged, by seed; what had not emerged is an open arrow at its budget."""
    figure = go.Figure()
    for method in view.searches:
        epoch = view.summaries[method]["emergence_epoch"]
        places: dict[tuple[float, bool], list[int]] = {}
        for seed, reading in epoch.values.items():
            places.setdefault((reading.value, reading.censored), []).append(seed)
        colour = view.styles[method].colour
        middle = epoch.mean if epoch.mean is not None else epoch.median
        if middle is not None:
            line = {"symbol": "line-ns-open", "size": 30, "line": {"width": 2}, "color": colour}
            kind = "mean" if epoch.mean is not None else "median (Kaplan-Meier)"
            mark = go.Scatter(x=[middle], y=[method], mode="markers", marker=line)
            mark.hovertemplate = f"{method}<br>{kind}: epoch %{{x:.3g}}<extra></extra>"
            figure.add_trace(of_method(mark, method))
        seeds = [f"seed{'s' * (len(some) > 1)} {', '.join(map(str, some))}" for some in places.values()]
        words = ["not emerged by" if censored else "emerged at" for _, censored in places]
        dots = go.Scatter(
            x=[value for value, _ in places], y=[method] * len(places), mode="markers+text",
            text=[str(len(some)) for some in places.values()],
            textfont={"size": 11, "color": [INK if censored else PAPER for _, censored in places]},
            marker={
                "opacity": 1, "symbol": ["triangle-right" if censored else "circle" for _, censored in places],
                "size": [24 if censored else 18 for _, censored in places],
                "color": [PAPER if censored else colour for _, censored in places],
                "line": {"width": 1.5, "color": [colour if censored else PAPER for _, censored in places]},
            },
            customdata=list(zip(words, seeds, strict=True)),
            hovertemplate=f"{method}<br>%{{customdata[0]}} epoch %{{x:.4g}}<br>%{{customdata[1]}}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(of_method(dots, method))
    figure.update_xaxes(title="epoch of emergence")
    return _rows(figure, len(view.searches))


def drop_figure(view: View) -> go.Figure:
    """Mean accuracies before pruning, right after it, an epoch later, and at the end: one row per method."""
    figure = go.Figure()
    for symbol, words in _STAGES.values():
        key = {"symbol": symbol or "circle", "size": 11, "color": MUTED, "line": {"width": 2, "color": MUTED}}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=key, name=words, hoverinfo="skip")
    rows = 0
    for method, summaries in view.summaries.items():
        stages = {name: summaries[name] for name in _STAGES if summaries[name].mean is not None}
        if "accuracy_pruned" not in stages:
            continue
        style, rows = view.styles[method], rows + 1
        means = [summary.mean for summary in stages.values()]
        symbols = [_STAGES[name][0] or style.symbol for name in stages]
        trace = go.Scatter(
            x=means, y=[method] * len(means), mode="lines+markers", line={"color": style.colour, "width": 1},
            marker={"symbol": symbols, "size": 11, "color": style.colour, "line": {"width": 2, "color": style.colour}},
            customdata=[f"{_STAGES[name][1]}: {_with_interval(summary)}" for name, summary in stages.items()],
            hovertemplate=f"{method}<br>%{{customdata}}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(of_method(trace, method))
    figure.update_xaxes(title="held-out accuracy", tickformat=".0%", rangemode="tozero")
    return _rows(figure, rows)


def _rows(figure: go.Figure, count: int) -> go.Figure:
    """Methods as rows, the first one at the top."""
    figure.update_yaxes(autorange="reversed", type="category")
    return figure.update_layout(hovermode="closest", height=100 + _ROW * max(count, 2))


def _marker(style: MethodStyle, size: int) -> dict[str, Any]:
    return {"symbol": style.symbol, "color": style.colour, "size": size}


def _error(summary: Summary, colour: str) -> dict[str, Any]:
    """The interval of a mean, as plotly's error bars."""
    if summary.interval is None or summary.mean is None:
        return {"visible": False}
    (low, high), mean = summary.interval, summary.mean
    return {
        "type": "data", "symmetric": False, "array": [high - mean], "arrayminus": [mean - low], "color": colour,
        "thickness": 1.25, "width": 4,
    }  # fmt: skip


def _decision_words(method: str, summaries: Mapping[str, Summary]) -> str:
    accuracy, flops = summaries["accuracy_final"], summaries["total_flops"]
    lines = [
        f"<b>{method}</b>",
        f"final accuracy {_with_interval(accuracy)}",
        f"{si(flops.mean or 0.0)} training FLOPs",
    ]
    if accuracy.paired is not None and accuracy.paired.difference is not None:
        lines.append(f"{points(accuracy.paired.difference)} points against the baseline")
    return "<br>".join([*lines, f"{accuracy.n} seed{'s' * (accuracy.n != 1)}"])


def _with_interval(summary: Summary) -> str:
    if summary.interval is None:
        return percent(summary.mean)
    low, high = summary.interval
    return f"{percent(summary.mean)} ({percent(low)} to {percent(high)})"
