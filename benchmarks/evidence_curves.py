"""Figures over several settings: final accuracy over the pruning ratio, and over the size of the training set."""

from collections.abc import Callable, Mapping

import numpy as np

from earlyworm.comparisons.comparison import Comparison, Setting
from earlyworm.reporting.palette import INK
from evidence_drawing import label_ends, looks, new_axes, new_figure, percents, point_style, svg
from evidence_figures import mean_over, note, reach, seeds, shifts
from evidence_settings import what


def ratio_figure(comparison: Comparison, ratios: Mapping[Setting, float]) -> str | None:
    """Final accuracy of every method over the pruning ratio; the settings differ in nothing else."""
    return _curves(
        comparison,
        ratios,
        title="Final accuracy over the pruning ratio",
        below=f"{what(next(iter(ratios)))}; {seeds(comparison)}",
        axis="pruning ratio: the fraction of units that is removed",
        along=float,
    )


def growth_figure(comparison: Comparison, sizes: Mapping[Setting, int]) -> str | None:
    """Final accuracy of every method over the number of training examples; the settings differ in nothing else."""
    return _curves(
        comparison,
        sizes,
        title="Final accuracy over the size of the training set",
        below=note(comparison, next(iter(sizes))),
        axis="training examples",
        along=lambda size: float(np.log2(size)),
    )


def _curves(
    comparison: Comparison,
    places: Mapping[Setting, float],
    *,
    title: str,
    below: str,
    axis: str,
    along: Callable[[float], float],
) -> str | None:
    """A line for each method through its final accuracies, at places along an axis; None if nothing is done."""
    styles, curves = looks(comparison.methods), {}
    for method in comparison.methods:
        results = {place: comparison.results(setting, method).values() for setting, place in places.items()}
        means = {place: mean_over(some, "accuracy_final") for place, some in sorted(results.items())}
        if known := {place: mean for place, mean in means.items() if mean is not None}:
            curves[method] = known
    if not curves:
        return None
    figure = new_figure(title, below, 350)
    axes, ticks = new_axes(figure, right=402), sorted(places.values())
    apart = (along(ticks[-1]) - along(ticks[0])) / max(1, len(ticks) - 1)
    ends = []
    for (method, curve), shift in zip(curves.items(), shifts(len(curves), 0.3 * apart), strict=True):
        look, at = styles[method], [along(place) + shift for place in curve]
        values, errors = [mean.value for mean in curve.values()], np.hstack([reach(mean) for mean in curve.values()])
        axes.errorbar(at, values, yerr=errors, linestyle=look.dash, elinewidth=0.8, capsize=1.5, **point_style(look))
        ends.append((at[-1], values[-1], method, look.colour))
    axes.set_xticks([along(place) for place in ticks], [f"{place:,g}" for place in ticks], color=INK)
    axes.set_xlim(along(ticks[0]) - 0.3 * apart, along(ticks[-1]) + 0.3 * apart)
    axes.set(xlabel=axis, ylabel="final held-out accuracy")
    percents(axes, "y")
    label_ends(axes, ends)
    return svg(figure)
