"""What came of a run, for people: a table, a few sentences, and one HTML page with figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.names import SEARCHES
from earlyworm.experiments.results import RunResult
from earlyworm.masks.mask import Mask
from earlyworm.reporting.formats import epochs, percent, seconds, si
from earlyworm.reporting.page import plain_figure, render, write_page
from earlyworm.reporting.palette import DISTANCES, PALETTE
from earlyworm.reporting.run_figures import accuracy_figure, distance_figure, layers_figure
from earlyworm.reporting.run_words import headline, pruned_in_training, retrained_from, sentences
from earlyworm.reporting.unit_figures import MOST_CELLS, matrix_figure, units_figure

_NOUN = {"images": "image", "text": "text"}


class _Row(NamedTuple):
    """One line of the comparison; `ratio` is ticket / dense where that means something."""

    label: str
    dense: str
    ticket: str
    change: str
    ratio: float | None = None


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
        accuracies = "  ".join(percent(value) for value in result.accuracy.recovery)
        table.caption = f"accuracy after each epoch of retraining: {accuracies}"
    return table


def summary(result: RunResult) -> str:
    """What happened, in plain sentences, one a line; notes come last."""
    return "\n".join([*sentences(result), *(f"Note: {note}" for note in result.notes)])


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


def write_report(result: RunResult, path: Path, mask: Mask | None = None) -> None:
    """Write one HTML page that needs no network and no other file.

    Args:
        result: What came of the run; a run without a ticket has a page too.
        path: Where to write it; what was there is replaced only once the new page is complete.
        mask: The ticket's mask, to show which units survive; None: only how many is shown.

    Raises:
        RunError: If the page cannot be written.
    """
    figures = {"accuracy": accuracy_figure(result)}
    if any(check.distance_mean is not None for check in result.search.history):
        figures["distance"] = distance_figure(result)
    if len(result.search.distances) > 1:
        figures["matrix"] = matrix_figure(result)
    if result.layers and result.config.method != "dense":
        figures["layers"] = layers_figure(result)
        if mask is not None:
            figures["units"] = units_figure(mask)
    page = render(
        "run_report.html.jinja",
        {"figures": {name: plain_figure(figure) for name, figure in figures.items()}},
        PALETTE,
        result=result,
        searches=result.config.method in SEARCHES,
        command=result.config.command(),
        headline=headline(result),
        sentences=sentences(result),
        rows=_rows(result),
        settings=_settings(result.config),
        retrained_from=retrained_from(result),
        pruned=pruned_in_training(result),
        draw_epoch=result.draw_epoch,
        most_cells=MOST_CELLS,
        farthest=max((distance for row in result.search.distances for distance in row), default=0.0),
        distances=[colour for _, colour in DISTANCES],
        percent=percent,
        epochs=epochs,
        noun=_NOUN[result.config.task],
    )
    write_page(page, path)


def _rows(result: RunResult) -> list[_Row]:
    accuracy, dense, ticket, total = result.accuracy, result.dense, result.ticket, result.total
    left = {} if ticket is None else dataclasses.asdict(ticket)
    size = [
        _cost_row("parameters", dense.parameters, left.get("parameters")),
        _cost_row(f"MACs per {_example(result)}", dense.macs, left.get("macs")),
        _cost_row(f"latency per {_example(result)}", dense.latency_seconds, left.get("latency_seconds"), seconds),
    ]
    spent = [
        _cost_row("FLOPs, all training", total.dense_train_flops, total.train_flops),
        _cost_row("time, all training", None, total.seconds, seconds),
    ]
    if ticket is None:
        return [_accuracy_row("accuracy", accuracy.before, None), *size, *spent]
    units = _cost_row("units", ticket.units, ticket.units_kept, str)
    if not pruned_in_training(result):
        return [_accuracy_row("accuracy after training", None, accuracy.final), units, *size, *spent]
    before = "search" if result.config.method in SEARCHES else "before pruning"
    return [
        _accuracy_row("accuracy when pruned", accuracy.before, accuracy.pruned),
        # Nothing stands against it: the dense network was not trained to the end.
        _accuracy_row("accuracy after retraining", None, accuracy.final),
        units,
        *size,
        _cost_row(f"FLOPs, {before}", None, result.search.train_flops),
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
    return _Row(label, percent(dense), percent(ticket), change)


def _cost_row(label: str, dense: float | None, ticket: float | None, show: Callable[[float], str] = si) -> _Row:
    ratio = ticket / dense if dense and ticket is not None else None
    dense_cell, ticket_cell = ("-" if value is None else show(value) for value in (dense, ticket))
    return _Row(label, dense_cell, ticket_cell, "-" if ratio is None else f"{ratio:.2f}", ratio)


def _settings(config: RunConfig) -> list[tuple[str, Any, Any]]:
    """Every setting with its value and its default."""
    default = dataclasses.asdict(config.defaults())
    return [(name, value, default[name]) for name, value in dataclasses.asdict(config).items()]
