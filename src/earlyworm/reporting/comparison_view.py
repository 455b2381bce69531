"""What the figures of a comparison show at once: one setting with its runs, their statistics, and styles."""

from __future__ import annotations

from dataclasses import dataclass

from earlyworm.comparisons.comparison import Comparison, Setting
from earlyworm.comparisons.statistics import Summary, summarise
from earlyworm.experiments.names import SEARCHES
from earlyworm.experiments.results import RunResult
from earlyworm.reporting.method_styles import MethodStyle, method_styles


@dataclass(frozen=True)
class View:
    """One setting of a comparison.

    Attributes:
        baseline: The method that the others are compared with.
        runs: The results that there are, by method and seed; every method of the setting is there.
        summaries: By method and quantity.
        styles: By method, the same in all settings.
    """

    baseline: str
    runs: dict[str, dict[int, RunResult]]
    summaries: dict[str, dict[str, Summary]]
    styles: dict[str, MethodStyle]

    @property
    def searches(self) -> dict[str, dict[int, RunResult]]:
        """The runs of those methods that search."""
        searches = {
            method: {seed: run for seed, run in runs.items() if run.config.method in SEARCHES}
            for method, runs in self.runs.items()
        }
        return {method: runs for method, runs in searches.items() if runs}


def views_of(comparison: Comparison) -> dict[Setting, View]:
    """One view per setting, in the grid's order."""
    styles = method_styles(comparison.methods, comparison.baseline)
    views = {setting: View(comparison.baseline, {}, {}, styles) for setting in comparison.settings}
    for summary in summarise(comparison):
        view = views[summary.setting]
        view.runs[summary.method] = comparison.results(summary.setting, summary.method)
        view.summaries.setdefault(summary.method, {})[summary.quantity] = summary
    return views
