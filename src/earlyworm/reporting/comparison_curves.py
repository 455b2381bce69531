"""The figures of a comparison that show whole runs: accuracies, mask distances, and what is left of every layer."""

from __future__ import annotations

from collections import Counter
from statistics import fmean

import plotly.graph_objects as go

from earlyworm.reporting.comparison_figures import FLOPS, of_method
from earlyworm.reporting.comparison_view import View
from earlyworm.reporting.learning_curves import Along, learning_curve, mean_curve
from earlyworm.reporting.palette import MUTED, SHARES

_LONGEST_NAME = 26  # of a layer: longer ones would leave a phone no room for the picture


def curves_figure(view: View, along: Along) -> go.Figure:
    """Accuracy over epochs or training FLOPs: the mean over seeds of every method, and each seed as a thin line."""
    figure = go.Figure()
    for method, runs in view.runs.items():
        if not runs:
            continue
        style, curves = view.styles[method], {seed: learning_curve(run) for seed, run in runs.items()}
        if len(curves) > 1:
            for curve in curves.values():
                thin = {"color": style.colour, "width": 0.75}
                trace = go.Scatter(x=getattr(curve, along), y=curve.accuracy, mode="lines", line=thin)
                figure.add_trace(of_method(trace, method).update(opacity=0.25, hoverinfo="skip"))
        places, means = mean_curve(curves.values(), along)
        trace = go.Scatter(
            x=places, y=means, mode="lines+markers", line={"color": style.colour, "dash": style.dash, "width": 2},
            marker={"symbol": style.symbol, "color": style.colour, "size": 8, "maxdisplayed": 8},
            hovertemplate=f"{method}<br>%{{y:.1%}} after %{{x:{'.3s' if along == 'flops' else '.3g'}}}"
            f"{' FLOPs' if along == 'flops' else ' epochs'}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(of_method(trace, method, label=True))
    accuracies = {"title": {"text": "held-out accuracy"}, "tickformat": ".1~%", "rangemode": "tozero"}
    xaxis = FLOPS if along == "flops" else {"title": {"text": "epoch"}}
    return figure.update_layout(
        xaxis={**xaxis, "rangemode": "tozero"}, yaxis=accuracies, hovermode="closest", height=480,
        meta={"labels": "nearby" if along == "flops" else "margin", "closeup": _closeup(view)},
    )  # fmt: skip


def _closeup(view: View) -> list[float]:
    """The range of accuracies in which the methods end, with as much again below it, and a little more."""
    means = [mean for summaries in view.summaries.values() if (mean := summaries["accuracy_final"].mean) is not None]
    if not means:
        return [0.0, 1.0]
    lowest, highest = min(means), max(means)
    return [max(0.0, lowest - 2 * (highest - lowest) - 0.02), min(1.0, highest + 0.01)]


def distances_figure(view: View) -> go.Figure:
    """The largest mask distance in the window at every check of every search, one line per seed, until emergence."""
    figure = go.Figure()
    for method, runs in view.searches.items():
        style = view.styles[method]
        for seed, run in runs.items():
            checks = {c.epoch: c.distance_max for c in run.search.history if c.distance_max is not None}
            if not checks:
                continue
            end = style.symbol if run.search.emerged else f"{style.symbol}-open"
            trace = go.Scatter(
                x=[*checks], y=[*checks.values()], mode="lines+markers", opacity=0.85,
                line={"color": style.colour, "dash": style.dash, "width": 1.5},
                marker={"symbol": end, "color": style.colour, "size": [0] * (len(checks) - 1) + [11], "opacity": 1},
                hovertemplate=f"{method}, seed {seed}<br>epoch %{{x:.4g}}: %{{y:.3f}}<extra></extra>",
            )  # fmt: skip
            figure.add_trace(of_method(trace, method))
    configs = [run.config for runs in view.searches.values() for run in runs.values()]
    lines = [("epsilon", value, "dot", "bottom right") for value in sorted({config.epsilon for config in configs})]
    triggers = {trigger for config in configs if (trigger := config.effective_trigger) is not None}
    lines += [("trigger", value, "dashdot", "top right") for value in sorted(triggers)]
    for name, value, dash, place in lines:
        label = {"text": f"{name} {value:g}", "font": {"color": MUTED}}
        figure.add_hline(value, line={"color": MUTED, "dash": dash}, annotation=label, annotation_position=place)
    figure.update_yaxes(title="largest mask distance", rangemode="tozero")
    return figure.update_layout(
        xaxis={"title": {"text": "epoch"}, "rangemode": "tozero"}, hovermode="closest", height=440
    )


def layers_shown(view: View) -> list[str]:
    """The layers that most methods have units in, in order; a method over other units has others."""
    found = Counter(tuple(tickets[0]) for tickets in _tickets(view).values())
    return list(found.most_common(1)[0][0]) if found else []


def layers_by_method_figure(view: View) -> go.Figure:
    """The share of its units that every layer keeps (mean over seeds): one column per method."""
    names = layers_shown(view)
    labels = [name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}" for name in names]
    alike = {
        method: [layers for layers in tickets if tuple(layers) == tuple(names)]
        for method, tickets in _tickets(view).items()
    }
    columns = {
        method: [100 * fmean(layers[name][0] / layers[name][1] for layers in tickets) for name in names]
        for method, tickets in alike.items()
        if tickets
    }
    rows = [[round(share, 1) for share in row] for row in zip(*columns.values(), strict=True)]
    picture = go.Heatmap(
        x=[*columns], y=[*range(len(names))], z=rows, text=[[name] * len(columns) for name in names], xgap=1, ygap=1,
        texttemplate="%{z:.0f}", textfont={"size": 10}, zmin=0, zmax=100, colorscale=SHARES, showscale=False,
        hovertemplate="%{x}<br>%{text}<br>%{z:.1f}% kept<extra></extra>", meta={"methods": [*columns]},
    )  # fmt: skip
    figure = go.Figure(picture)
    figure.update_xaxes(type="category", dtick=1, showgrid=False, ticks="")
    places = {"tickmode": "array", "tickvals": [*range(len(names))], "ticktext": labels}  # two labels may be the same
    figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False, ticks="", **places)
    return figure.update_layout(hovermode="closest", height=120 + 24 * max(len(names), 3))


def _tickets(view: View) -> dict[str, list[dict[str, tuple[int, int]]]]:
    """What is left of every layer in each run of a method that removes units; no run, no method."""
    tickets = {
        method: [run.layers for run in runs.values() if run.layers and run.config.method != "dense"]
        for method, runs in view.runs.items()
    }
    return {method: found for method, found in tickets.items() if found}
