"""Options that a comparison varies: the labels of one method that differ in one number, and what came of each value."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from earlyworm.comparisons.comparison import Comparison, Setting
from earlyworm.comparisons.grid_methods import GridMethod
from earlyworm.errors import ConfigError
from earlyworm.experiments.results import RunResult
from evidence_claims import Mean, mean_over, quantity

FEWEST_VALUES = 3  # a line through two says no more than a table

COURSE = {
    "before": "accuracy_before",
    "pruned": "accuracy_pruned",
    "1 epoch later": "accuracy_recovery_1",
    "final": "accuracy_final",
}
"""Accuracies around pruning, by what tables call them."""


@dataclass(frozen=True)
class Varied:
    """A method of which one option, a number, has several values.

    Attributes:
        method: The method without options.
        option: The name of the option.
        labels: The labels of a comparison and the value of each, in the order of values.
    """

    method: str
    option: str
    labels: Mapping[str, float]


class AtValue(NamedTuple):
    """What came of one value: when tickets emerged in words, and means over the runs that drew one."""

    value: float
    emerged: str
    course: dict[str, Mean | None]
    flops: Mean | None


def varied(comparison: Comparison) -> list[Varied]:
    """Every option of a method that is compared at three values or more, with nothing else that differs."""
    groups: dict[tuple[str, str], dict[str, float]] = {}
    for label in comparison.methods:
        if (found := _one_number(label)) is not None:
            method, option, value = found
            groups.setdefault((method, option), {})[label] = value
    return [
        Varied(method, option, dict(sorted(labels.items(), key=lambda item: item[1])))
        for (method, option), labels in groups.items()
        if len({*labels.values()}) >= FEWEST_VALUES
    ]


def at_values(comparison: Comparison, setting: Setting, option: Varied) -> list[AtValue]:
    """What came of every value of which there is a run."""
    done = {value: comparison.results(setting, label).values() for label, value in option.labels.items()}
    return [_at_value(value, results) for value, results in done.items() if results]


def by_decades(values: Collection[float]) -> bool:
    """Whether values are better shown on a logarithmic scale: all are above 0, and they span more than a decade."""
    lowest, highest = min(values), max(values)
    return lowest > 0 and highest / lowest > 10 * (1 + 1e-9)


def _at_value(value: float, results: Iterable[RunResult]) -> AtValue:
    drew = [result for result in results if result.ticket is not None]
    course = {stage: mean_over(drew, name) for stage, name in COURSE.items()}
    return AtValue(value, _emerged(results), course, mean_over(drew, "relative_flops"))


def _emerged(results: Iterable[RunResult]) -> str:
    """The mean epoch of emergence, or how many emerged if not all did."""
    read = [reading for result in results if (reading := quantity("emergence_epoch").read(result)) is not None]
    if any(reading.censored for reading in read):
        return f"{sum(not reading.censored for reading in read)} of {len(read)} emerged"
    return f"epoch {fmean(reading.value for reading in read):.3g}" if read else "-"


def _one_number(label: str) -> tuple[str, str, float] | None:
    """Method, option and value of a label with one option that is a number; None if it is no such label."""
    try:
        options = GridMethod.parse(label).options
    except ConfigError:  # a name of its own
        return None
    if len(options) != 1:
        return None
    ((name, value),) = options
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return (label.partition(":")[0], name, float(value)) if number else None
