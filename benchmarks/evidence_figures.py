"""The figures of a comparison: cost, emergence and the course of accuracy in a setting; final accuracy over settings."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from earlyworm.experiments.comparison import Comparison, Setting
from earlyworm.experiments.names import SEARCHES
from earlyworm.experiments.quantities import QUANTITIES, is_pruned
from earlyworm.experiments.results import RunResult
from earlyworm.experiments.statistics import bootstrap_interval
from earlyworm.reporting.palette import INK, MUTED
from evidence_drawing import label_ends, label_points, looks, new_figure, percents, point_style, svg

_FINAL = "final accuracy on held-out data"
_READ = {quantity.name: quantity.read for quantity in QUANTITIES}


class Mean(NamedTuple):
    """A mean over seeds with its 95% bootstrap interval, which is the mean itself with one seed."""

    value: float
    low: float
    high: float


def mean_of(values: Iterable[float]) -> Mean | None:
    """The mean of some numbers; None if there are none."""
    numbers = np.array([*values], dtype=float)
    if not len(numbers):
        return None
    value = fmean(numbers)
    interval = bootstrap_interval(numbers, 0 * numbers, lambda ours, zeros, axis=-1: np.mean(ours - zeros, axis=axis))
    return Mean(value, *(interval or (value, value)))


def what(setting: Setting) -> str:
    """The model and the data of a setting, without their folders."""
    model, data = (Path(name).name.removeprefix("parquet:") for name in (setting.model, setting.data))
    return f"{model} on {data}"


def cost_figure(comparison: Comparison, setting: Setting) -> str | None:
    """Final accuracy against the FLOPs of all training, a point per method; None if nothing is done."""
    points = {}
    for method in comparison.methods:
        results = comparison.results(setting, method)
        cost, final = (_mean(results.values(), name) for name in ("relative_flops", "accuracy_final"))
        if cost is not None and final is not None:
            drawn = sum(result.ticket is not None for result in results.values())
            points[method] = cost, final, method if drawn == len(results) else f"{method} ({drawn} of {len(results)})"
    if not points:
        return None
    figure, axes = new_figure("Final accuracy, and what all training cost", _note(comparison, setting))
    styles = looks(comparison.methods)
    for method, (cost, final, _) in points.items():
        axes.errorbar(
            cost.value, final.value, xerr=_error(cost), yerr=_error(final), capsize=2, elinewidth=1, linestyle="none",
            **point_style(styles[method]),
        )  # fmt: skip
    axes.set_xlim(0, max(1.05, *(1.05 * cost.high for cost, _, _ in points.values())))
    axes.margins(y=0.12)
    axes.autoscale_view(scalex=False)
    axes.set(xlabel="FLOPs of all training, of those of dense training", ylabel=_FINAL)
    percents(axes, "x")
    percents(axes, "y")
    bars = [(cost.value, final.low, cost.value, final.high) for cost, final, _ in points.values()]
    bars += [(cost.low, final.value, cost.high, final.value) for cost, final, _ in points.values()]
    label_points(axes, [(c.value, f.value, text, styles[method].colour) for method, (c, f, text) in points.items()], bars)
    return svg(figure)


def emergence_figure(comparison: Comparison, setting: Setting) -> str | None:
    """When the ticket of each seed emerged, for every search; None if there is no search."""
    done = {method: comparison.results(setting, method) for method in comparison.methods}
    searches = {
        method: results
        for method, results in done.items()
        if any(result.config.method in SEARCHES for result in results.values())
    }
    if not searches:
        return None
    note = f"{_note(comparison, setting)}; a line marks the mean, an open arrow a search without emergence"
    figure, axes = new_figure("When the ticket emerged, seed by seed", note, 110 + 34 * len(searches))
    styles, budget = looks(comparison.methods), 0.0
    for row, (method, results) in enumerate(searches.items()):
        readings = [_READ["emergence_epoch"](result) for _, result in sorted(results.items())]
        budget = max(budget, *(result.config.search_epochs for result in results.values()))
        # Seeds that agree lie side by side, in the order of their numbers.
        for reading, shift in zip(readings, _shifts(len(readings), 0.5), strict=True):
            look = styles[method]._replace(marker=">", filled=False) if reading.censored else styles[method]
            axes.plot(reading.value, row + shift, linestyle="none", clip_on=False, zorder=3, **point_style(look))
        if not any(reading.censored for reading in readings):
            mean = fmean(reading.value for reading in readings)
            axes.plot([mean, mean], [row - 0.38, row + 0.38], color=styles[method].colour, linewidth=1.2)
    axes.set_xlim(0, 1.02 * budget)
    axes.set_ylim(len(searches) - 0.5, -0.5)
    axes.set_yticks(range(len(searches)), list(searches), color=INK)
    axes.tick_params(axis="y", length=0)
    left = (24 + 6.4 * max(map(len, searches))) / 540
    axes.set_position((left, axes.get_position().y0, 1 - 16 / 540 - left, axes.get_position().height))
    axes.set_xlabel(f"epoch of emergence; searches end at {budget:g}")
    return svg(figure)


def course_figure(comparison: Comparison, setting: Setting) -> str | None:
    """Accuracy before pruning, right after it, one and three epochs later, and at the end; None if none was pruned.

    Only of methods that prune what has been trained: the others have nothing to lose by it.
    """
    stages = {
        "before": "accuracy_before", "pruned": "accuracy_pruned", "1 epoch later": "accuracy_recovery_1",
        "3 epochs later": "accuracy_recovery_3", "final": "accuracy_final",
    }  # fmt: skip
    courses = {}
    for method in comparison.methods:
        # Of runs that drew a ticket, for all stages to be of the same runs.
        results = [r for r in comparison.results(setting, method).values() if r.ticket is not None]
        if results and all(is_pruned(r) and r.search.history[-1].epoch > 0 for r in results):
            courses[method] = [_mean(results, name) for name in stages.values()]
    if not courses:
        return None
    figure, axes = new_figure("Accuracy around pruning", _note(comparison, setting), 350)
    axes.set_position((62 / 540, 30 / 350, 340 / 540, (350 - 30 - 54) / 350))
    styles = looks(comparison.methods)
    shifts = dict(zip(courses, _shifts(len(courses), 0.3), strict=True))
    for method, course in courses.items():
        _curve(axes, {place + shifts[method]: mean for place, mean in enumerate(course)}, styles[method])
    axes.set_xticks(range(len(stages)), list(stages), color=INK)
    axes.set_xlim(-0.3, len(stages) - 0.7)
    axes.set_ylabel("accuracy on held-out data")
    percents(axes, "y")
    ends = {method: [mean for mean in course if mean is not None][-1] for method, course in courses.items()}
    last = len(stages) - 1
    label_ends(axes, [(last + shifts[m], mean.value, m, styles[m].colour) for m, mean in ends.items()])
    return svg(figure)


def ratio_figure(comparison: Comparison, settings: Sequence[Setting]) -> str | None:
    """Final accuracy over the pruning ratio; the settings differ in nothing else."""
    return _final_figure(
        comparison,
        {setting: setting.ratio for setting in settings},
        "Final accuracy over the pruning ratio",
        f"{what(settings[0])}; {_seeds(comparison)}",
        "pruning ratio: the fraction of units that is removed",
    )


def growth_figure(comparison: Comparison, sizes: Mapping[Setting, int]) -> str | None:
    """Final accuracy over the number of training examples; the settings differ in nothing else."""
    return _final_figure(
        comparison,
        sizes,
        "Final accuracy over the size of the training set",
        _note(comparison, next(iter(sizes))),
        "training examples",
        logarithmic=True,
    )


def _final_figure(
    comparison: Comparison, places: Mapping[Setting, float], title: str, note: str, axis: str, logarithmic: bool = False
) -> str | None:
    """Final accuracies of every method over something in which settings differ."""
    styles, finals = looks(comparison.methods), {}
    for method in comparison.methods:
        results = {place: comparison.results(setting, method).values() for setting, place in places.items()}
        means = {place: _mean(some, "accuracy_final") for place, some in sorted(results.items())}
        if any(means.values()):
            finals[method] = means
    if not finals:
        return None
    figure, axes = new_figure(title, note, 350)
    axes.set_position((62 / 540, 44 / 350, 340 / 540, (350 - 44 - 54) / 350))
    ticks = sorted(places.values())
    along: Callable[[float], float] = (lambda place: float(np.log2(place))) if logarithmic else float
    width = (along(ticks[-1]) - along(ticks[0])) / max(1, len(ticks) - 1)
    shifts = dict(zip(finals, _shifts(len(finals), 0.3 * width), strict=True))
    for method, means in finals.items():
        _curve(axes, {along(place) + shifts[method]: mean for place, mean in means.items()}, styles[method])
    axes.set_xticks([along(place) for place in ticks], [f"{place:,g}" for place in ticks], color=INK)
    axes.set_xlim(along(ticks[0]) - 0.3 * width, along(ticks[-1]) + 0.3 * width)
    axes.set(xlabel=axis, ylabel=_FINAL)
    percents(axes, "y")
    ends = []
    for method, means in finals.items():
        place, mean = [(place, mean) for place, mean in means.items() if mean is not None][-1]
        ends.append((along(place) + shifts[method], mean.value, method, styles[method].colour))
    label_ends(axes, ends)
    return svg(figure)


def _curve(axes, course: Mapping[float, Mean | None], look) -> None:
    """A line through means with their intervals."""
    known = {place: mean for place, mean in course.items() if mean is not None}
    errors = np.transpose([_error(mean)[:, 0] for mean in known.values()])
    axes.errorbar(
        [*known], [mean.value for mean in known.values()], yerr=errors, linestyle=look.dash, elinewidth=0.8,
        capsize=1.5, **point_style(look),
    )  # fmt: skip


def _mean(results: Iterable[RunResult], quantity: str) -> Mean | None:
    readings = [_READ[quantity](result) for result in results]
    return mean_of(reading.value for reading in readings if reading is not None)


def _error(mean: Mean) -> np.ndarray:
    """How far an interval reaches below and above its mean, as a column."""
    return np.maximum([[mean.value - mean.low], [mean.high - mean.value]], 0)


def _shifts(count: int, width: float) -> list[float]:
    """As many places, evenly around 0, over a width."""
    return [width * (i - (count - 1) / 2) / max(1, count - 1) for i in range(count)]


def _note(comparison: Comparison, setting: Setting) -> str:
    return f"{what(setting)}, pruning ratio {setting.ratio:g}; {_seeds(comparison)}"


def _seeds(comparison: Comparison) -> str:
    count = len({outcome.seed for outcome in comparison.outcomes if outcome.result is not None})
    return f"means of {count} seed{'s' * (count != 1)}, 95% intervals"
