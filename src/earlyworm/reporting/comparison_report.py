"""What came of a comparison as one HTML page."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from earlyworm.comparisons.comparison import Comparison, Outcome, Setting
from earlyworm.experiments.results import RunResult
from earlyworm.reporting.comparison_curves import curves_figure, distances_figure, layers_by_method_figure, layers_shown
from earlyworm.reporting.comparison_figures import decision_figure, drop_figure, emergence_figure
from earlyworm.reporting.comparison_tables import plain_tables
from earlyworm.reporting.comparison_verdict import verdict_of
from earlyworm.reporting.comparison_view import View, views_of
from earlyworm.reporting.comparison_words import how_compared, what_is_missing
from earlyworm.reporting.formats import percent, si
from earlyworm.reporting.page import plain_figure, render, write_page
from earlyworm.reporting.palette import METHODS, PALETTE
from earlyworm.reporting.run_settings import changed_settings


def write_comparison_report(comparison: Comparison, path: Path) -> None:
    """Write one HTML page that needs no network and no other file.

    Args:
        comparison: What is compared; cells that failed or wait are told.
        path: Where to write it; what was there is replaced only once the new page is complete.

    Raises:
        RunError: If the page cannot be written.
    """
    views = views_of(comparison)
    figures = [_figures(view) for view in views.values()]
    headings, tables = plain_tables(comparison)
    results = [outcome.result for outcome in comparison.outcomes if outcome.result is not None]
    page = render(
        "comparison_report.html.jinja",
        {"figures": {}, "views": figures},
        {**PALETTE, **METHODS},
        comparison=comparison,
        styles=next(iter(views.values())).styles if views else {},
        shown={name for some in figures for name in some},
        verdicts={setting: verdict_of(view) for setting, view in views.items()},
        headings=headings,
        tables=tables,
        how=how_compared(comparison),
        missing=what_is_missing(dataclasses.replace(comparison, marks=())),
        failed=[outcome for outcome in comparison.outcomes if outcome.state == "failed"],
        cells=[_cell(outcome) for outcome in comparison.outcomes],
        settings=changed_settings(comparison),
        samples=_samples(comparison),
        versions=list({tuple(result.versions.items()): result.versions for result in results}.values()),
        devices=list(dict.fromkeys(result.device for result in results)),
    )
    write_page(page, path)


def _figures(view: View) -> dict[str, Any]:
    """The figures of one setting, ready for the page; those that have nothing to show are left out."""
    figures: dict[str, Any] = {"decision": plain_figure(decision_figure(view))}
    if any(view.runs.values()):
        along = {"flops": curves_figure(view, "flops"), "epochs": curves_figure(view, "epochs")}
        figures["curves"] = {name: plain_figure(figure) for name, figure in along.items()}
    if view.searches:
        figures["distances"] = plain_figure(distances_figure(view))
        figures["emergence"] = plain_figure(emergence_figure(view))
    if any(summaries["accuracy_pruned"].n for summaries in view.summaries.values()):
        figures["drop"] = plain_figure(drop_figure(view))
    if layers_shown(view):
        figures["layers"] = plain_figure(layers_by_method_figure(view))
    return figures


def _cell(outcome: Outcome) -> tuple[Outcome, list[str]]:
    """A cell with its numbers: when its ticket was drawn, three accuracies, and what all training cost."""
    if outcome.result is None:
        return outcome, [outcome.state, "-", "-", "-", "-", "-"]
    search, accuracy, total = outcome.result.search, outcome.result.accuracy, outcome.result.total
    drawn = "-" if search.epoch is None else f"{search.epoch:.4g}"
    accuracies = [percent(value) for value in (accuracy.before, accuracy.pruned, accuracy.final)]
    return outcome, [outcome.state, drawn, *accuracies, si(total.train_flops)]


def _samples(comparison: Comparison) -> dict[Setting, RunResult]:
    """One run of each setting, to tell of its data."""
    return {outcome.setting: outcome.result for outcome in reversed(comparison.outcomes) if outcome.result is not None}
