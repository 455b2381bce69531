"""The figures of a run's page: mask distances, accuracies, and what is left of every layer."""

from __future__ import annotations

import plotly.graph_objects as go

from earlyworm.experiments.names import SEARCHES
from earlyworm.experiments.results import RunResult
from earlyworm.reporting.palette import DENSE, INK, MUTED, PAPER, TICKET
from earlyworm.reporting.run_words import pruned_in_training

EPOCHS = {"title": {"text": "epoch"}, "rangemode": "tozero", "unifiedhovertitle": {"text": "epoch %{x}"}}


def distance_figure(result: RunResult) -> go.Figure:
    """Mean and largest mask distance at every check, with epsilon, trigger and emergence."""
    config, search = result.config, result.search
    checks = [check for check in search.history if check.distance_mean is not None]
    mean, largest = ({c.epoch: getattr(c, f"distance_{kind}") for c in checks} for kind in ("mean", "max"))
    figure = go.Figure(_line(mean, "mean distance", DENSE, "solid", "circle"))
    figure.data[0].customdata = [(f"{c.chi:.3g}", c.truncated) for c in checks]
    figure.data[0].hovertemplate = "%{y:.3f}<br>chi %{customdata[0]}, %{customdata[1]} units truncated"
    figure.add_trace(_line(largest, "largest distance", DENSE, "dash", "square-open"))
    figure.data[1].hovertemplate = "%{y:.3f}"
    lines = [("epsilon", config.epsilon, "dot", "bottom left")] if config.method in SEARCHES else []
    if (trigger := config.effective_trigger) is not None:
        lines.append(("trigger", trigger, "dashdot", "top left"))
    for name, value, dash, place in lines:
        label = {"text": f"{name} {value:g}", "font": {"color": MUTED}}
        figure.add_hline(value, line={"color": MUTED, "dash": dash}, annotation=label, annotation_position=place)
    for name, epoch, values, symbol, colour in (
        ("trigger", search.triggered_epoch, mean, "triangle-up", INK),
        ("emergence" if search.emerged else "pruning", search.epoch, largest, "star", TICKET),
    ):
        if epoch in values:
            figure.add_trace(_line({epoch: values[epoch]}, name, colour, "solid", symbol))
            figure.data[-1].update(mode="markers", marker={"size": 15}, hoverinfo="skip")
    return figure.update_layout(xaxis=EPOCHS, yaxis={"title": "mask distance", "rangemode": "tozero"})


def accuracy_figure(result: RunResult) -> go.Figure:
    """Held-out accuracy through search, pruning and retraining."""
    config, accuracy, drawn = result.config, result.accuracy, result.draw_epoch
    before = {check.epoch: check.accuracy for check in result.search.history if check.accuracy is not None}
    measured = {epoch: value for epoch, value in enumerate(accuracy.recovery, start=1) if value is not None}
    after = {drawn + min(epoch, result.retrain_length): value for epoch, value in measured.items()}
    if result.ticket is not None and not pruned_in_training(result):
        name = "training, dense network" if config.method == "dense" else "training, smaller network"
        colour = DENSE if config.method == "dense" else TICKET
        figure = go.Figure(_line({drawn: accuracy.pruned or 0.0} | after, name, colour, "solid", "circle"))
    else:
        name = "search, dense network" if config.method in SEARCHES else "before pruning"
        figure = go.Figure(_line(before, name, DENSE, "solid", "circle"))
    if pruned_in_training(result):
        # The cross lies above the first point of the recovery; at the upper end the line needs no mark.
        drop = {"x": [drawn, drawn], "y": [accuracy.pruned, accuracy.before], "marker": {"size": [10, 0]}, "zorder": 1}
        figure.add_trace(_line({}, "pruning", INK, "dot", "x").update(drop))
        # Only weights that are kept lead from the drop to the recovery; others start anew.
        kept = config.retrain_from == "emergence" and config.method != "imp"
        start = {drawn: accuracy.pruned or 0.0} if kept else {}
        figure.add_trace(_line(start | after, "retraining, ticket", TICKET, "dash", "square"))
    figure.update_traces(hovertemplate="%{y:.1%}")
    percents = {"title": "held-out accuracy", "tickformat": ".0%", "rangemode": "nonnegative"}
    return figure.update_layout(xaxis=EPOCHS, yaxis=percents)


def layers_figure(result: RunResult) -> go.Figure:
    """The share of units that every layer keeps."""
    # Shares, not counts: beside a layer of thousands of neurons, one of twelve heads would vanish.
    shares = [kept / units for kept, units in result.layers.values()]
    rows, names = list(range(len(shares))), list(result.layers)
    hatching = {"color": PAPER, "line": {"color": MUTED, "width": 1}, "pattern": {"shape": "/", "fgcolor": MUTED}}
    figure = go.Figure(go.Bar(x=shares, y=rows, name="kept", orientation="h", marker={"color": TICKET}))
    figure.add_bar(x=[1 - share for share in shares], y=rows, name="removed", orientation="h", marker=hatching)
    figure.update_traces(hovertemplate="%{x:.1%}")
    # Names stand above the bars: at the side, those of large networks would leave a phone no room for bars.
    labels = [f"<b>{kept} of {units}</b>  {name}" for name, (kept, units) in result.layers.items()]
    text = {"text": labels, "mode": "text", "textposition": "middle right", "hoverinfo": "skip", "cliponaxis": False}
    figure.add_scatter(x=[0] * len(rows), y=[row - 0.47 for row in rows], showlegend=False, **text)
    figure.update_xaxes(range=[0, 1.003], tickvals=[0, 0.25, 0.5, 0.75, 1], tickformat=".0%", title="units")
    # Hovering names the layer by its tick, which is not drawn.
    figure.update_yaxes(range=[len(rows) - 0.5, -0.8], tickvals=rows, ticktext=names, showticklabels=False)
    figure.update_yaxes(showgrid=False, showline=False)
    return figure.update_layout(barmode="stack", bargap=0.6, height=110 + 40 * len(rows), hovermode="y unified")


def _line(points: dict[float, float], name: str, colour: str, dash: str, symbol: str) -> go.Scatter:
    style = {"line": {"color": colour, "dash": dash}, "marker": {"color": colour, "symbol": symbol, "size": 8}}
    return go.Scatter(x=[*points], y=[*points.values()], name=name, mode="lines+markers", cliponaxis=False, **style)
