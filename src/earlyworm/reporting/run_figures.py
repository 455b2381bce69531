"""The figures of a run's page: mask distances, accuracies, and what is left of every layer."""

from __future__ import annotations

import plotly.graph_objects as go

from earlyworm.experiments.results import RunResult

# Name -> colour in light mode and in dark mode. The light colours differ, for the page's script finds the dark one by
# the light one. Colour alone tells nothing: lines differ in dash, points in shape, bars in hatching.
PALETTE = {
    "paper": ("#fcfcfb", "#15181b"),
    "ink": ("#1d2226", "#e6e8ea"),
    "muted": ("#59636b", "#9ba6ae"),
    "rule": ("#dbdfe2", "#30363c"),
    "dense": ("#2b4c7e", "#93b7ea"),
    "ticket": ("#b04a14", "#f0a263"),
}
_PAPER, _INK, _MUTED, _RULE, _DENSE, _TICKET = (light for light, _ in PALETTE.values())


def draw_epoch(result: RunResult) -> float:
    """The epoch at which the ticket was drawn, or the search ended."""
    return result.search.history[-1].epoch if result.search.epoch is None else result.search.epoch


def retrain_length(result: RunResult) -> float:
    """Epochs of retraining; the last one is not whole where the search stopped within one."""
    left = result.config.epochs - draw_epoch(result)
    planned = left if result.config.retrain_epochs is None else result.config.retrain_epochs
    return min(len(result.accuracy.recovery), planned)


def distance_figure(result: RunResult) -> go.Figure:
    """Mean and largest mask distance at every check, with epsilon, trigger and emergence."""
    config, search = result.config, result.search
    checks = [check for check in search.history if check.distance_mean is not None]
    mean, largest = ({c.epoch: getattr(c, f"distance_{kind}") for c in checks} for kind in ("mean", "max"))
    figure = go.Figure(_line(mean, "mean distance", _DENSE, "solid", "circle"))
    figure.data[0].customdata = [(f"{c.chi:.3g}", c.truncated) for c in checks]
    figure.data[0].hovertemplate = "%{y:.3f}<br>chi %{customdata[0]}, %{customdata[1]} units truncated"
    figure.add_trace(_line(largest, "largest distance", _DENSE, "dash", "square-open"))
    figure.data[1].hovertemplate = "%{y:.3f}"
    lines = [("epsilon", config.epsilon, "dot", "bottom left")]
    if config.method == "worm":
        lines.append(("trigger", config.trigger, "dashdot", "top left"))
    for name, value, dash, place in lines:
        label = {"text": f"{name} {value:g}", "font": {"color": _MUTED}}
        figure.add_hline(value, line={"color": _MUTED, "dash": dash}, annotation=label, annotation_position=place)
    for name, epoch, values, symbol, colour in (
        ("trigger", search.triggered_epoch, mean, "triangle-up", _INK),
        ("emergence", search.epoch, largest, "star", _TICKET),
    ):
        if epoch in values:
            figure.add_trace(_line({epoch: values[epoch]}, name, colour, "solid", symbol))
            figure.data[-1].update(mode="markers", marker={"size": 15}, hoverinfo="skip")
    return figure.update_layout(yaxis={"title": "mask distance", "rangemode": "tozero"})


def accuracy_figure(result: RunResult) -> go.Figure:
    """Held-out accuracy through search, pruning and retraining."""
    accuracy, drawn = result.accuracy, draw_epoch(result)
    search = {check.epoch: check.accuracy for check in result.search.history}
    figure = go.Figure(_line(search, "search, dense network", _DENSE, "solid", "circle"))
    if accuracy.pruned is not None:
        # The cross lies above the first point of the recovery; at the upper end the line needs no mark.
        drop = {"x": [drawn, drawn], "y": [accuracy.pruned, accuracy.before], "marker": {"size": [10, 0]}, "zorder": 1}
        figure.add_trace(_line({}, "pruning", _INK, "dot", "x").update(drop))
        # Only weights that are kept lead from the drop to the recovery; others start anew.
        start = {drawn: accuracy.pruned} if result.config.retrain_from == "emergence" else {}
        ends = [drawn + min(epoch, retrain_length(result)) for epoch in range(1, len(accuracy.recovery) + 1)]
        recovery = start | dict(zip(ends, accuracy.recovery, strict=True))
        figure.add_trace(_line(recovery, "retraining, ticket", _TICKET, "dash", "square"))
    figure.update_traces(hovertemplate="%{y:.1%}")
    return figure.update_layout(yaxis={"title": "held-out accuracy", "tickformat": ".0%", "rangemode": "nonnegative"})


def layers_figure(result: RunResult) -> go.Figure:
    """The share of units that every layer keeps."""
    # Shares, not counts: beside a layer of thousands of neurons, one of twelve heads would vanish.
    shares = [kept / units for kept, units in result.layers.values()]
    rows, names = list(range(len(shares))), list(result.layers)
    hatching = {"color": _PAPER, "line": {"color": _MUTED, "width": 1}, "pattern": {"shape": "/", "fgcolor": _MUTED}}
    figure = go.Figure(go.Bar(x=shares, y=rows, name="kept", orientation="h", marker={"color": _TICKET}))
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
