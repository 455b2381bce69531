"""What came of a run, for people: a table, a few sentences, and one HTML page with figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs
from rich import box
from rich.table import Table

from earlyworm.config import RunConfig
from earlyworm.errors import RunError
from earlyworm.results import RunResult
from earlyworm.ticket import write_atomically

# Name -> colour in light mode and in dark mode. The light colours differ, for the page's script finds the dark one by
# the light one. Colour alone tells nothing: lines differ in dash, points in shape, bars in hatching.
_PALETTE = {
    "paper": ("#fcfcfb", "#15181b"),
    "ink": ("#1d2226", "#e6e8ea"),
    "muted": ("#59636b", "#9ba6ae"),
    "rule": ("#dbdfe2", "#30363c"),
    "dense": ("#2b4c7e", "#93b7ea"),
    "ticket": ("#b04a14", "#f0a263"),
}
_PAPER, _INK, _MUTED, _RULE, _DENSE, _TICKET = (light for light, _ in _PALETTE.values())

_RETRAINED_FROM = {
    "emergence": "from the weights at emergence",
    "rewind": "from the initial weights",
    "reinitialise": "from new random weights",
}


class _Row(NamedTuple):
    """One line of the comparison; `ratio` is ticket / dense where that means something."""

    label: str
    dense: str
    ticket: str
    change: str
    ratio: float | None = None


def _epochs(number: float) -> str:
    return f"{number:.4g} epoch" if number == 1 else f"{number:.4g} epochs"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction:.1%}"


def _si(value: float) -> str:
    """Three digits and a prefix: 1.23 M."""
    prefixes = ["", " k", " M", " G", " T", " P", " E"]
    while value >= 999.5 and len(prefixes) > 1:
        value /= 1000
        prefixes.pop(0)
    return f"{value:.3g}{prefixes[0]}"


def _seconds(value: float) -> str:
    if value < 1:
        return f"{1e3 * value:.3g} ms"
    if value < 90:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def _bar(kept: int, units: int) -> str:
    return ("#" * round(20 * kept / units)).ljust(20, ".")


def result_table(result: RunResult) -> Table:
    """The dense network against the ticket, at most 80 columns wide."""
    table = Table(box=box.SIMPLE_HEAD, caption_justify="left", caption_style="")
    table.add_column("", no_wrap=True)
    for name in ("dense", "ticket" if result.ticket else "this run", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in _rows(result):
        table.add_row(row.label, row.dense, row.ticket, row.change)
    if result.accuracy.recovery:
        accuracies = "  ".join(_percent(value) for value in result.accuracy.recovery)
        table.caption = f"accuracy after each epoch of retraining: {accuracies}"
    return table


def summary(result: RunResult) -> str:
    """What happened, in plain sentences, one a line; notes come last."""
    return "\n".join([*_sentences(result), *(f"Note: {note}" for note in result.notes)])


def describe_run(result: RunResult) -> str:
    """The whole run in words: its settings, what was found, what is left of every layer, and what it cost."""
    config, data = result.config, result.data
    width = max(map(len, result.layers), default=0)
    changed = [f"  {name:<18} {value} (default {usual})" for name, value, usual in _settings(config) if value != usual]
    layers = [f"  {name:<{width}}  {_bar(*units)}  {units[0]} of {units[1]}" for name, units in result.layers.items()]
    rows = [f"  {row.label:<38}{row.dense:>12}{row.ticket:>12}{row.change:>14}" for row in _rows(result)]
    blocks = [
        [
            f"{config.model} on {config.data}, method {config.method}, seed {result.seed}, on {result.device}",
            f"{data.train} training and {data.test} held-out images of {data.classes} classes: {data.split}",
        ],
        ["Settings that differ from the defaults", *(changed or ["  none"])],
        ["What was found", *(f"  {line}" for line in summary(result).splitlines())],
        ["Units kept per layer", *layers] if layers else [],
        [f"{'Costs':<40}{'dense':>12}{'ticket' if result.ticket else 'this run':>12}{'ratio':>14}", *rows],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def write_report(result: RunResult, path: Path, command: str | None = None) -> None:
    """Write one HTML page that needs no network and no other file.

    Args:
        result: What came of the run; a run without a ticket has a page too.
        path: Where to write it; what was there is replaced only once the new page is complete.
        command: The command that made the run, for the page to name.

    Raises:
        RunError: If the page cannot be written.
    """
    figures = {"distance": _distance_figure(result), "accuracy": _accuracy_figure(result)}
    if result.layers:
        figures["layers"] = _layers_figure(result)
    environment = Environment(loader=PackageLoader("earlyworm", ""), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("report.html.jinja").render(
        result=result,
        command=command,
        headline=_headline(result),
        sentences=_sentences(result),
        rows=_rows(result),
        settings=_settings(result.config),
        retrained_from=_RETRAINED_FROM[result.config.retrain_from],
        draw_epoch=_draw_epoch(result),
        figures={name: figure.to_dict() for name, figure in figures.items()},
        palette=_PALETTE,
        plotlyjs=get_plotlyjs(),
        percent=_percent,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page.encode())
    except OSError as error:
        raise RunError(f"cannot write {path} ({error.strerror}): choose another place for the report") from error


def _headline(result: RunResult) -> str:
    if result.ticket is None:
        return "No ticket emerged"
    gain = f"{result.ticket.macs / result.dense.macs:.0%} of the MACs, {_percent(result.accuracy.final)} accuracy"
    if result.search.emerged:
        return f"A ticket emerged at epoch {_draw_epoch(result):.4g}: {gain}"
    return f"No ticket emerged; the newest mask, drawn by force: {gain}"


def _sentences(result: RunResult) -> list[str]:
    config, search, accuracy, total = result.config, result.search, result.accuracy, result.total
    # Before the window is full, a small maximum means nothing.
    maxima = [c.distance_max for c in search.history[config.window - 1 :] if c.distance_max is not None]
    reached = f"smallest window maximum reached {min(maxima):.3g}" if maxima else "the window never filled"
    failed = f"No ticket emerged within {_epochs(config.search_epochs)}: {reached}, epsilon is {config.epsilon:g}"
    trigger = ""
    if search.triggered_epoch is not None:
        trigger = f" (WORM triggered at epoch {search.triggered_epoch:.4g})"
    elif config.method == "worm":
        trigger = f" (WORM never triggered: no mean distance was below {config.trigger:g})"
    if search.emerged:
        found = f"The ticket emerged at epoch {_draw_epoch(result):.4g}{trigger}."
    elif search.forced:
        found = f"{failed}{trigger}; the newest mask was drawn by force at epoch {_draw_epoch(result):.4g}."
    else:
        cure = "raise --search-epochs or --epsilon, lower --check-every, or take the newest mask with --force-draw"
        found = f"{failed}{trigger}; {cure}."
    spent = f"{_si(total.train_flops)} FLOPs, {total.train_flops / total.dense_train_flops:.0%} of what dense training"
    cost = f"All training took {_seconds(total.seconds)} on {result.device} and {spent} takes for as many epochs."
    if result.ticket is None:
        return [found, f"The dense network has reached {_percent(accuracy.before)} held-out accuracy.", cost]
    kept, units = result.ticket.units_kept, result.ticket.units
    learned = f"Held-out accuracy: {_percent(accuracy.before)} before pruning, {_percent(accuracy.pruned)} right after"
    if accuracy.recovery:
        retrained = f"{_epochs(_retrained(result))} of retraining {_RETRAINED_FROM[config.retrain_from]}"
        learned = f"{learned}, {_percent(accuracy.final)} after {retrained}"
    return [found, f"It keeps {kept} of {units} units ({_percent(kept / units)}).", f"{learned}.", cost]


def _rows(result: RunResult) -> list[_Row]:
    accuracy, dense, ticket, total = result.accuracy, result.dense, result.ticket, result.total
    left = {} if ticket is None else dataclasses.asdict(ticket)
    size = [
        _cost_row("parameters", dense.parameters, left.get("parameters")),
        _cost_row("MACs per image", dense.macs, left.get("macs")),
        _cost_row("latency per image", dense.latency_seconds, left.get("latency_seconds"), _seconds),
    ]
    spent = [
        _cost_row("FLOPs, all training", total.dense_train_flops, total.train_flops),
        _cost_row("time, all training", None, total.seconds, _seconds),
    ]
    if ticket is None:
        return [_accuracy_row("accuracy", accuracy.before, None), *size, *spent]
    return [
        _accuracy_row("accuracy when pruned", accuracy.before, accuracy.pruned),
        _accuracy_row("accuracy after retraining", accuracy.before, accuracy.final),
        _cost_row("units", ticket.units, ticket.units_kept, str),
        *size,
        _cost_row("FLOPs, search", None, result.search.train_flops),
        _cost_row("FLOPs, retraining", None, total.retrain_flops),
        *spent,
    ]


def _accuracy_row(label: str, dense: float, ticket: float | None) -> _Row:
    # Between accuracies the difference is what counts; a ratio would flatter.
    change = "-" if ticket is None else f"{100 * (ticket - dense):+.1f} points"
    return _Row(label, _percent(dense), _percent(ticket), change)


def _cost_row(label: str, dense: float | None, ticket: float | None, show: Callable[[float], str] = _si) -> _Row:
    ratio = ticket / dense if dense and ticket is not None else None
    dense_cell, ticket_cell = ("-" if value is None else show(value) for value in (dense, ticket))
    return _Row(label, dense_cell, ticket_cell, "-" if ratio is None else f"{ratio:.2f}", ratio)


def _settings(config: RunConfig) -> list[tuple[str, Any, Any]]:
    """Every setting with its value and its default."""
    default = dataclasses.asdict(RunConfig())
    return [(name, value, default[name]) for name, value in dataclasses.asdict(config).items()]


def _draw_epoch(result: RunResult) -> float:
    return result.search.history[-1].epoch if result.search.epoch is None else result.search.epoch


def _retrained(result: RunResult) -> float:
    """Epochs of retraining; the last one is not whole where the search stopped within one."""
    left = result.config.epochs - _draw_epoch(result)
    planned = left if result.config.retrain_epochs is None else result.config.retrain_epochs
    return min(len(result.accuracy.recovery), planned)


def _distance_figure(result: RunResult) -> go.Figure:
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


def _accuracy_figure(result: RunResult) -> go.Figure:
    accuracy, drawn = result.accuracy, _draw_epoch(result)
    search = {check.epoch: check.accuracy for check in result.search.history}
    figure = go.Figure(_line(search, "search, dense network", _DENSE, "solid", "circle"))
    if accuracy.pruned is not None:
        # The cross lies above the first point of the recovery; at the upper end the line needs no mark.
        drop = {"x": [drawn, drawn], "y": [accuracy.pruned, accuracy.before], "marker": {"size": [10, 0]}, "zorder": 1}
        figure.add_trace(_line({}, "pruning", _INK, "dot", "x").update(drop))
        # Only weights that are kept lead from the drop to the recovery; others start anew.
        start = {drawn: accuracy.pruned} if result.config.retrain_from == "emergence" else {}
        ends = [drawn + min(epoch, _retrained(result)) for epoch in range(1, len(accuracy.recovery) + 1)]
        recovery = start | dict(zip(ends, accuracy.recovery, strict=True))
        figure.add_trace(_line(recovery, "retraining, ticket", _TICKET, "dash", "square"))
    figure.update_traces(hovertemplate="%{y:.1%}")
    return figure.update_layout(yaxis={"title": "held-out accuracy", "tickformat": ".0%", "rangemode": "nonnegative"})


def _layers_figure(result: RunResult) -> go.Figure:
    # Shares, not counts: beside a layer of thousands of neurons, one of twelve heads would vanish.
    shares = [kept / units for kept, units in result.layers.values()]
    rows, names = list(range(len(shares))), list(result.layers)
    hatching = {"color": _PAPER, "line": {"color": _MUTED, "width": 1}, "pattern": {"shape": "/", "fgcolor": _MUTED}}
    figure = go.Figure(go.Bar(x=shares, y=rows, name="kept", orientation="h", marker={"color": _TICKET}))
    figure.add_bar(x=[1 - share for share in shares], y=rows, name="removed", orientation="h", marker=hatching)
    figure.update_traces(hovertemplate="%{x:.1%}")
    # Names stand above the bars: at the side, those of large networks would leave a phone no room for bars.
    labels = [f"{name}  <b>{kept}</b> of {units}" for name, (kept, units) in result.layers.items()]
    text = {"text": labels, "mode": "text", "textposition": "middle right", "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(x=[0] * len(rows), y=[row - 0.47 for row in rows], **text)
    figure.update_xaxes(range=[0, 1], tickvals=[0, 0.25, 0.5, 0.75, 1], tickformat=".0%", title="units of the layer")
    # Hovering names the layer by its tick, which is not drawn.
    figure.update_yaxes(range=[len(rows) - 0.5, -0.8], tickvals=rows, ticktext=names, showticklabels=False)
    figure.update_yaxes(showgrid=False)
    return figure.update_layout(barmode="stack", bargap=0.6, height=110 + 40 * len(rows), hovermode="y unified")


def _line(points: dict[float, float], name: str, colour: str, dash: str, symbol: str) -> go.Scatter:
    style = {"line": {"color": colour, "dash": dash}, "marker": {"color": colour, "symbol": symbol, "size": 8}}
    return go.Scatter(x=[*points], y=[*points.values()], name=name, mode="lines+markers", cliponaxis=False, **style)
