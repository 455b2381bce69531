"""Comparisons in numbers: every quantity over seeds, paired by seed against the baseline, and ranked ratios."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from earlyworm.comparisons.comparison import Comparison, Setting
from earlyworm.comparisons.quantities import QUANTITIES, Quantity, Reading, training_speed
from earlyworm.experiments.results import RunResult

_RESAMPLES = 4999
_MANY_PAIRS = 50  # enough for the bootstrap

Interval = tuple[float, float]
Values = NDArray[np.float64]


FEWEST_PAIRS = 5
"""Below that, nothing is judged: that four differences have one sign comes about by chance once in eight."""


@dataclass(frozen=True)
class Paired:
    """A method against the baseline, over the seeds of which both have a value.

    Attributes:
        pairs: How many seeds these are.
        won: In how many of them the method is better; what emerged is sooner than what is censored later.
        lost: In how many it is worse. In the others the two are equal, or nobody knows which is better.
        difference: Mean of method - baseline; None if any value is censored, or there is no pair.
        difference_interval: Its 95% interval; None also with fewer than two pairs.
        ratio: Mean of the method / mean of the baseline; None also if any value is 0 or less.
        ratio_interval: Its 95% interval; None also with fewer than two pairs.
    """

    pairs: int
    won: int
    lost: int
    difference: float | None = None
    difference_interval: Interval | None = None
    ratio: float | None = None
    ratio_interval: Interval | None = None


@dataclass(frozen=True)
class Summary:
    """One quantity of one method over seeds.

    Attributes:
        setting: Model, data and pruning ratio.
        method: The method's label.
        quantity: The name of the quantity.
        values: What was read off each run, by seed; a run that has no such thing is missing.
        n: How many values there are.
        censored: How many of them are censored: the runs ended before emergence.
        mean: Their mean; None if any is censored, for a mean would hide it, or if there are none.
        deviation: Their standard deviation (n - 1); None likewise, and with one seed.
        interval: The 95% interval of the mean, by Student's t; None where there is no deviation.
        median: If any is censored, their median by Kaplan and Meier: by when half of the runs had emerged; None if
            fewer had when they ended, and if none is censored.
        paired: The method against the baseline; None for the baseline.
    """

    setting: Setting
    method: str
    quantity: str
    values: Mapping[int, Reading]
    n: int
    censored: int
    mean: float | None
    deviation: float | None
    interval: Interval | None
    median: float | None
    paired: Paired | None


@dataclass(frozen=True)
class Agreement:
    """How well the training speed ranks pruning ratios, compared with their final accuracies.

    Attributes:
        setting: The setting, without a ratio.
        method: The method's label.
        taus: Kendall's tau over the ratios, in [-1, 1], by seed; 1: both rank them alike. A seed is missing where fewer
            than two ratios have a value, or one of the two rankings has only ties.
        mean: Their mean; None if there are none.
        least_first: The mean if ratios are ranked by size alone, the smallest first, over the same seeds: what training
            speed must surpass to say anything, since a larger network nearly always learns faster.
    """

    setting: Setting
    method: str
    taus: Mapping[int, float]
    mean: float | None
    least_first: float | None


def summarise(comparison: Comparison, quantities: Sequence[Quantity] = QUANTITIES) -> tuple[Summary, ...]:
    """Every quantity of every method in every setting, against the baseline in the same setting.

    Cells without a result count nowhere; a method that has none in a setting has summaries of nothing.
    """
    cells = {(outcome.setting, outcome.method) for outcome in comparison.outcomes}
    return tuple(
        _summary(comparison, setting, method, quantity)
        for setting in comparison.settings
        for method in comparison.methods
        if (setting, method) in cells
        for quantity in quantities
    )


def ranking_agreement(comparison: Comparison) -> tuple[Agreement, ...]:
    """Whether the training speed early in retraining foretells which pruning ratio ends with the best accuracy.

    For each seed, losses are summed over the first third of the shortest retraining, since sums over different numbers
    of epochs cannot be compared.

    Returns:
        One per setting and method that have any result.

    Source: arXiv 2010.14499.
    """
    runs: dict[tuple[Setting, str], dict[int, list[RunResult]]] = {}
    for outcome in comparison.outcomes:
        if outcome.result is not None and outcome.setting.ratio is not None:
            key = (replace(outcome.setting, ratio=None), outcome.method)
            runs.setdefault(key, {}).setdefault(outcome.seed, []).append(outcome.result)
    agreements = []
    for (setting, method), by_seed in runs.items():
        taus = {seed: tau for seed, results in by_seed.items() if (tau := _tau(results)) is not None}
        of = {seed: tau[0] for seed, tau in taus.items()}
        means = (fmean(of.values()), fmean(alone for _, alone in taus.values())) if taus else (None, None)
        agreements.append(Agreement(setting, method, of, *means))
    return tuple(agreements)


def compare_paired(values: Mapping[int, Reading], baseline: Mapping[int, Reading], *, lower_is_better: bool) -> Paired:
    """One quantity of a method against that of the baseline, over the seeds of which both have a value."""
    pairs = [(values[seed], baseline[seed]) for seed in values if seed in baseline]
    below = sum(_surely_below(one, other) for one, other in pairs)
    above = sum(_surely_below(other, one) for one, other in pairs)
    won, lost = (below, above) if lower_is_better else (above, below)
    if not pairs or any(one.censored or other.censored for one, other in pairs):
        return Paired(len(pairs), won, lost)
    ours, theirs = (np.array([pair[side].value for pair in pairs], dtype=float) for side in (0, 1))
    positive = min(*ours, *theirs) > 0
    return Paired(
        pairs=len(pairs),
        won=won,
        lost=lost,
        difference=float(_difference(ours, theirs)),
        difference_interval=difference_interval(ours, theirs),
        ratio=float(_ratio(ours, theirs)) if positive else None,
        ratio_interval=ratio_interval(ours, theirs) if positive else None,
    )


def difference_interval(ours: Values, theirs: Values) -> Interval | None:
    """The 95% interval of the mean difference of pairs, the same at every call; None with fewer than two pairs.

    By Student's t, and from 50 pairs on by the bootstrap (BCa). Of five pairs the bootstrap has too few different
    resamples: its 95% interval leaves out the true mean once in six times, that of Student's t once in twenty.

    Args:
        ours: One value per pair.
        theirs: The other value of each.
    """
    if len(ours) >= _MANY_PAIRS:
        return _bootstrapped(ours, theirs, _difference)
    return _by_student(float(_difference(ours, theirs)), ours - theirs)


def ratio_interval(ours: Values, theirs: Values) -> Interval | None:
    """The 95% interval of the ratio of the means of pairs, all above 0, likewise.

    With few pairs that of its logarithm, whose error is that of a mean to first order.
    """
    if len(ours) >= _MANY_PAIRS:
        return _bootstrapped(ours, theirs, _ratio)
    ratio = float(_ratio(ours, theirs))
    interval = _by_student(math.log(ratio), (ours / ratio - theirs) / np.mean(theirs))
    return None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))


def _by_student(center: float, deviations: Values) -> Interval | None:
    """The interval of something whose error is that of the mean of `deviations`."""
    count = len(deviations)
    return None if count < 2 else _interval(center, float(np.std(deviations, ddof=1)), count)


def _bootstrapped(ours: Values, theirs: Values, statistic: Callable[..., Any]) -> Interval:
    """Bias-corrected and accelerated (BCa), or of plain percentiles where that is undefined, as for equal values."""
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that BCa is undefined is seen by its result
            interval = stats.bootstrap(
                (ours, theirs), statistic, paired=True, vectorized=True, confidence_level=0.95, method=method,
                n_resamples=_RESAMPLES, rng=np.random.default_rng(0),
            ).confidence_interval  # fmt: skip
        if np.isfinite(interval).all():
            break
    return float(interval.low), float(interval.high)


def median_until(readings: Iterable[Reading]) -> float | None:
    """The median by Kaplan and Meier: by when half have emerged; None if fewer have, as far as is known."""
    values, censored = zip(*((reading.value, reading.censored) for reading in readings), strict=True)
    survival = stats.ecdf(stats.CensoredData.right_censored(values, censored)).sf
    reached = survival.quantiles[survival.probabilities <= 0.5 + 1e-9]  # products of fractions are not quite a half
    return float(reached[0]) if len(reached) else None


def _difference(ours: Values, theirs: Values, axis: int = -1) -> Any:
    return np.mean(ours - theirs, axis=axis)


def _ratio(ours: Values, theirs: Values, axis: int = -1) -> Any:
    return np.mean(ours, axis=axis) / np.mean(theirs, axis=axis)


def _surely_below(one: Reading, other: Reading) -> bool:
    """Whether `one` is less than `other`, as far as is known: what is censored is above its value."""
    if one.censored:
        return False
    return one.value <= other.value if other.censored else one.value < other.value


def _summary(comparison: Comparison, setting: Setting, method: str, quantity: Quantity) -> Summary:
    values = _read(comparison, setting, method, quantity)
    numbers = [reading.value for reading in values.values()]
    censored = sum(reading.censored for reading in values.values())
    known = len(numbers) if not censored else 0
    mean, deviation = fmean(numbers) if known else None, stdev(numbers) if known > 1 else None
    paired = None
    if method != comparison.baseline:
        baseline = _read(comparison, setting, comparison.baseline, quantity)
        paired = compare_paired(values, baseline, lower_is_better=quantity.better == "lower")
    return Summary(
        setting=setting,
        method=method,
        quantity=quantity.name,
        values=values,
        n=len(numbers),
        censored=censored,
        mean=mean,
        deviation=deviation,
        interval=None if mean is None or deviation is None else _interval(mean, deviation, known),
        median=median_until(values.values()) if censored else None,
        paired=paired,
    )


def _interval(mean: float, deviation: float, count: int) -> Interval:
    reach = float(stats.t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)
    return mean - reach, mean + reach


def _read(comparison: Comparison, setting: Setting, method: str, quantity: Quantity) -> dict[int, Reading]:
    readings = {seed: quantity.read(result) for seed, result in comparison.results(setting, method).items()}
    return {seed: reading for seed, reading in readings.items() if reading is not None}


def _tau(results: Sequence[RunResult]) -> tuple[float, float] | None:
    """Kendall's tau of training speed, and of small ratios, with final accuracy of runs that differ in their ratio."""
    lengths = [len(result.accuracy.losses) for result in results if result.accuracy.losses]
    first = max(1, min(lengths, default=0) // 3)
    ranked = [
        (-speed, -result.config.ratio, result.accuracy.final)
        for result in results
        if (speed := training_speed(result, first)) is not None and result.accuracy.final is not None
    ]
    if len({speed for speed, *_ in ranked}) < 2 or len({final for *_, final in ranked}) < 2:
        return None
    speeds, ratios, finals = zip(*ranked, strict=True)
    return float(stats.kendalltau(speeds, finals).statistic), float(stats.kendalltau(ratios, finals).statistic)
