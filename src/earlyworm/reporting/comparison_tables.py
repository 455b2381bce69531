"""What came of a comparison, as tables: for the terminal and for Markdown, and as CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import textwrap
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any, NamedTuple

from rich import box
from rich.console import Group
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

from earlyworm.comparisons.comparison import Comparison, Outcome, Setting
from earlyworm.comparisons.quantities import QUANTITIES, training_speed
from earlyworm.comparisons.statistics import Interval, Summary, summarise
from earlyworm.experiments.results import RunResult
from earlyworm.reporting.comparison_words import how_compared, what_is_missing
from earlyworm.reporting.formats import percent, points, seconds, si, spread

_WIDTH = 100
_SHOWN = (
    "emergence_epoch", "emergence_flops", "accuracy_before", "accuracy_pruned", "accuracy_recovery_1",
    "accuracy_recovery_3", "accuracy_final", "total_seconds", "relative_flops", "relative_macs", "latency_seconds",
)  # fmt: skip


class _Row(NamedTuple):
    """One method in one setting: its results, and what became of each quantity."""

    method: str
    results: tuple[RunResult, ...]
    of: dict[str, Summary]


class _Column(NamedTuple):
    """A heading, of two lines in the terminal, and what stands below it; there is no room there for all columns."""

    heading: str
    cell: Callable[[_Row], str]
    terminal: bool = True


def comparison_table(comparison: Comparison) -> Constrain:
    """The few numbers that decide, one table per setting, at most 100 columns wide.

    Args:
        comparison: What is compared. Below the tables stands how, and which runs failed, wait or drew no ticket.

    Returns:
        Something for rich to print.
    """
    columns = [column for column in _columns(comparison) if column.terminal]
    parts: list[Table | Text] = []
    for setting, methods in _rows(comparison).items():
        title = Text(str(setting), style="bold")
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for column in columns:
            table.add_column(Text(column.heading), justify="right", overflow="fold")
        table.columns[0].justify = "left"
        for row in methods:
            table.add_row(*(Text(column.cell(row)) for column in columns))
        parts += [table, Text()]
    words = [Text(line) for line in [*how_compared(comparison), *what_is_missing(comparison)]]
    return Constrain(Group(*parts, *words), _WIDTH)


def comparison_markdown(comparison: Comparison) -> str:
    """The same as Markdown to be pasted into a page, with more columns and the command."""
    headings, tables = plain_tables(comparison)
    wrapper = textwrap.TextWrapper(120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    lines = [f"### {comparison.title}", ""]
    for setting, rows in tables.items():
        lines += [f"**{_escaped(str(setting))}**", "", _pipes(headings)]
        lines += [_pipes(["---", *["---:"] * (len(headings) - 1)]), *map(_pipes, rows), ""]
    for line in [*how_compared(comparison), *what_is_missing(comparison)]:
        lines += wrapper.wrap(f"- {_escaped(line)}")
    return "\n".join([*lines, "", "```", comparison.command, "```", ""])


def plain_tables(comparison: Comparison) -> tuple[list[str], dict[Setting, list[list[str]]]]:
    """The headings, and the cells of one line per method in every setting, of Markdown and of the page."""
    columns = _columns(comparison)
    cells = {
        setting: [[column.cell(row) for column in columns] for row in rows]
        for setting, rows in _rows(comparison).items()
    }
    return [column.heading.replace("\n", " ") for column in columns], cells


def comparison_csv(comparison: Comparison) -> str:
    """Every quantity of every cell as CSV, one cell a line; what there is not is empty.

    Accuracies are fractions in [0, 1]. Where `censored` is True, no ticket emerged, and what emergence took is above
    the numbers given.
    """
    names = [
        "model", "data", "ratio", "limit", "method", "seed", "state", "error", "emerged", "forced", "censored",
        *(quantity.name for quantity in QUANTITIES), "training_speed", "directory", "command",
    ]  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_cell, comparison.outcomes))
    return text.getvalue()


def _columns(comparison: Comparison) -> list[_Column]:
    base = comparison.baseline
    flops = _Column("FLOPs", lambda row: _share(row.of["relative_flops"].mean))
    return [
        _Column("method", lambda row: row.method),
        _Column("drawn at\nepoch", _drawn),
        _Column("FLOPs\nuntil then", lambda row: _mean(row, "emergence_flops", si), terminal=False),
        _Column(f"FLOPs against\n{base}", lambda row: _sooner(row.of["emergence_flops"]), terminal=False),
        _Column("accuracy\nbefore", lambda row: _accuracy(row, "accuracy_before"), terminal=False),
        _Column("accuracy\npruned", lambda row: _accuracy(row, "accuracy_pruned")),
        _Column("after\n1 epoch", lambda row: _accuracy(row, "accuracy_recovery_1"), terminal=False),
        _Column("after\n3 epochs", lambda row: _accuracy(row, "accuracy_recovery_3"), terminal=False),
        _Column("accuracy\nfinal", lambda row: _accuracy(row, "accuracy_final")),
        _Column(f"final against\n{base}", lambda row: _gain(row.of["accuracy_final"])),
        *([flops] if comparison.match == "epochs" else []),  # else all spend the same
        _Column("time", lambda row: spread(row.of["total_seconds"].mean, None, seconds)),
        _Column("MACs", lambda row: _share(row.of["relative_macs"].mean)),
        _Column("latency", lambda row: _mean(row, "latency_seconds", seconds), terminal=False),
    ]


def _rows(comparison: Comparison) -> dict[Setting, list[_Row]]:
    shown = [quantity for quantity in QUANTITIES if quantity.name in _SHOWN]
    rows: dict[Setting, list[_Row]] = {setting: [] for setting in comparison.settings}
    for (setting, method), summaries in groupby(summarise(comparison, shown), lambda s: (s.setting, s.method)):
        results = tuple(comparison.results(setting, method).values())
        rows[setting].append(_Row(method, results, {summary.quantity: summary for summary in summaries}))
    return rows


def _drawn(row: _Row) -> str:
    """When the ticket was drawn; if not every run emerged, by when half of them had."""
    epoch = row.of["emergence_epoch"]
    if epoch.censored:
        budget = max(reading.value for reading in epoch.values.values() if reading.censored)
        median = f">{budget:.3g}" if epoch.median is None else f"{epoch.median:.3g}"
        return f"{median} ({epoch.n - epoch.censored} of {epoch.n})"
    if epoch.mean is None:
        return "-"
    if all(result.search.set_by_method for result in row.results):
        return f"{epoch.mean:.3g} (set)"
    return f"{epoch.mean:.3g}" if epoch.deviation is None else f"{epoch.mean:.3g} ± {epoch.deviation:.2g}"


def _sooner(summary: Summary) -> str:
    """What emergence took as a share of what the baseline's took; if not every run emerged, how often it took less."""
    paired = summary.paired
    if paired is None or not paired.pairs:
        return "-"
    if paired.ratio is None:
        return f"less in {paired.won} of {paired.pairs}, more in {paired.lost}"
    return f"{paired.ratio:.2f}{_interval(paired.ratio_interval, lambda value: f'{value:.2f}')}"


def _gain(summary: Summary) -> str:
    paired = summary.paired
    if paired is None or paired.difference is None:
        return "-"
    return f"{points(paired.difference)}{_interval(paired.difference_interval, points)}"


def _interval(interval: Interval | None, show: Callable[[float], str]) -> str:
    return f" [{show(interval[0])}, {show(interval[1])}]" if interval else ""


def _mean(row: _Row, name: str, show: Callable[[float], str]) -> str:
    return spread(row.of[name].mean, row.of[name].deviation, show)


def _accuracy(row: _Row, name: str) -> str:
    mean, deviation = row.of[name].mean, row.of[name].deviation
    return percent(mean) if mean is None or deviation is None else f"{100 * mean:.1f} ± {percent(deviation)}"


def _share(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction:.0%}"


def _cell(outcome: Outcome) -> dict[str, Any]:
    """One line of the CSV."""
    setting, result = dataclasses.asdict(outcome.setting), outcome.result
    names = ("method", "seed", "state", "error", "directory", "command")
    cell = {**setting, **{name: getattr(outcome, name) for name in names}}
    if result is None:
        return cell
    readings = {quantity.name: quantity.read(result) for quantity in QUANTITIES}
    values = {name: reading.value for name, reading in readings.items() if reading is not None}
    search = {name: getattr(result.search, name) for name in ("emerged", "forced", "censored")}
    return {**cell, **values, **search, "training_speed": training_speed(result)}


def _pipes(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return re.sub(r"([\\|*<`])", r"\\\1", text)
