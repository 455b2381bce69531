"""What came of a run, for people: a table, a few sentences, and one HTML page with figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs
from rich import box
from rich.table import Table

from earlyworm.errors import RunError
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.results import RunResult
from earlyworm.files import write_atomically
from earlyworm.reporting.run_figures import (
    PALETTE,
    accuracy_figure,
    distance_figure,
    draw_epoch,
    layers_figure,
    retrain_length,
)

_RETRAINED_FROM = {
    "emergence": "from the weights at emergence",
    "rewind": "from the initial weights",
    "reinitialise": "from new random weights",
}


_NOUN = {"images": "image", "text": "text"}


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
    config, data, noun = result.config, result.data, _NOUN[result.config.task]
    width = max(map(len, result.layers), default=0)
    changed = [f"  {name:<18} {value} (default {usual})" for name, value, usual in _settings(config) if value != usual]
    layers = [f"  {name:<{width}}  {_bar(*units)}  {units[0]} of {units[1]}" for name, units in result.layers.items()]
    rows = [f"  {row.label:<38}{row.dense:>12}{row.ticket:>12}{row.change:>14}" for row in _rows(result)]
    blocks = [
        [
            f"{config.model} on {config.data}, method {config.method}, seed {result.seed}, on {result.device}",
            f"{data.train} training and {data.test} held-out {noun}s of {data.classes} classes: {data.split}",
        ],
        ["Settings that differ from the defaults", *(changed or ["  none"])],
        ["What was found", *(f"  {line}" for line in summary(result).splitlines())],
        ["Units kept per layer", *layers] if layers else [],
        [f"{'Costs':<40}{'dense':>12}{'ticket' if result.ticket else 'this run':>12}{'ratio':>14}", *rows],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def write_report(result: RunResult, path: Path) -> None:
    """Write one HTML page that needs no network and no other file.

    Args:
        result: What came of the run; a run without a ticket has a page too.
        path: Where to write it; what was there is replaced only once the new page is complete.

    Raises:
        RunError: If the page cannot be written.
    """
    figures = {"distance": distance_figure(result), "accuracy": accuracy_figure(result)}
    if result.layers:
        figures["layers"] = layers_figure(result)
    environment = Environment(
        loader=PackageLoader("earlyworm.reporting", ""), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("run_report.html.jinja").render(
        result=result,
        command=result.config.command(),
        headline=_headline(result),
        sentences=_sentences(result),
        rows=_rows(result),
        settings=_settings(result.config),
        retrained_from=_RETRAINED_FROM[result.config.retrain_from],
        draw_epoch=draw_epoch(result),
        figures={name: figure.to_dict() for name, figure in figures.items()},
        palette=PALETTE,
        plotlyjs=get_plotlyjs(),
        percent=_percent,
        noun=_NOUN[result.config.task],
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page.encode())
    except OSError as error:
        raise RunError(f"cannot write {path} ({error.strerror}): choose another place for the report") from error


def _headline(result: RunResult) -> str:
    if result.ticket is None:
        return "No ticket emerged"
    before, final = _percent(result.accuracy.before), _percent(result.accuracy.final)
    gain = f"{result.ticket.macs / result.dense.macs:.0%} of the MACs, {final} accuracy ({before} before pruning)"
    if result.search.emerged:
        return f"A ticket emerged at epoch {draw_epoch(result):.4g}: {gain}"
    return f"No ticket emerged; the newest mask, drawn by force: {gain}"


def _sentences(result: RunResult) -> list[str]:
    config, search, accuracy, total = result.config, result.search, result.accuracy, result.total
    # Before the window is full, a small maximum means nothing; the first mask has none.
    maxima = [c.distance_max for c in search.history if c.distance_max is not None][config.window - 2 :]
    reached = f"smallest window maximum reached {min(maxima):.3g}" if maxima else "the window never filled"
    failed = f"No ticket emerged within {_epochs(config.search_epochs)}: {reached}, epsilon is {config.epsilon:g}"
    trigger = ""
    if search.triggered_epoch is not None:
        trigger = f" (WORM triggered at epoch {search.triggered_epoch:.4g})"
    elif config.method == "worm":
        before = "; until then chi is the mean distance" if config.greedy_first else ""
        trigger = f" (WORM never triggered: no mean distance was below {config.trigger:g}{before})"
    if search.emerged:
        found = f"The ticket emerged at epoch {draw_epoch(result):.4g}{trigger}."
    elif search.forced:
        found = f"{failed}{trigger}; the newest mask was drawn by force at epoch {draw_epoch(result):.4g}."
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
        retrained = f"{_epochs(retrain_length(result))} of retraining {_RETRAINED_FROM[config.retrain_from]}"
        learned = f"{learned}, {_percent(accuracy.final)} after {retrained}"
    return [found, f"It keeps {kept} of {units} units ({_percent(kept / units)}).", f"{learned}.", cost]


def _rows(result: RunResult) -> list[_Row]:
    accuracy, dense, ticket, total = result.accuracy, result.dense, result.ticket, result.total
    left = {} if ticket is None else dataclasses.asdict(ticket)
    size = [
        _cost_row("parameters", dense.parameters, left.get("parameters")),
        _cost_row(f"MACs per {_example(result)}", dense.macs, left.get("macs")),
        _cost_row(f"latency per {_example(result)}", dense.latency_seconds, left.get("latency_seconds"), _seconds),
    ]
    spent = [
        _cost_row("FLOPs, all training", total.dense_train_flops, total.train_flops),
        _cost_row("time, all training", None, total.seconds, _seconds),
    ]
    if ticket is None:
        return [_accuracy_row("accuracy", accuracy.before, None), *size, *spent]
    return [
        _accuracy_row("accuracy when pruned", accuracy.before, accuracy.pruned),
        # Nothing stands against it: the dense network was not trained to the end.
        _accuracy_row("accuracy after retraining", None, accuracy.final),
        _cost_row("units", ticket.units, ticket.units_kept, str),
        *size,
        _cost_row("FLOPs, search", None, result.search.train_flops),
        _cost_row("FLOPs, retraining", None, total.retrain_flops),
        *spent,
    ]


def _example(result: RunResult) -> str:
    """What the costs are for."""
    tokens = f" of {result.data.shape[0]} tokens" if result.config.task == "text" else ""
    return _NOUN[result.config.task] + tokens


def _accuracy_row(label: str, dense: float | None, ticket: float | None) -> _Row:
    # Between accuracies the difference is what counts; a ratio would flatter.
    change = "-" if dense is None or ticket is None else f"{100 * (ticket - dense):+.1f} points"
    return _Row(label, _percent(dense), _percent(ticket), change)


def _cost_row(label: str, dense: float | None, ticket: float | None, show: Callable[[float], str] = _si) -> _Row:
    ratio = ticket / dense if dense and ticket is not None else None
    dense_cell, ticket_cell = ("-" if value is None else show(value) for value in (dense, ticket))
    return _Row(label, dense_cell, ticket_cell, "-" if ratio is None else f"{ratio:.2f}", ratio)


def _settings(config: RunConfig) -> list[tuple[str, Any, Any]]:
    """Every setting with its value and its default."""
    default = dataclasses.asdict(config.defaults())
    return [(name, value, default[name]) for name, value in dataclasses.asdict(config).items()]
