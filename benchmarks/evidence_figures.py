"""The figures of a setting: what accuracy costs, when tickets emerged, and accuracy around pruning."""

from collections import Counter
from statistics import fmean

import numpy as np

from earlyworm.comparisons.comparison import Comparison, Setting
from earlyworm.comparisons.quantities import is_pruned
from earlyworm.experiments.names import SEARCHES
from evidence_claims import Mean, mean_over, quantity
from evidence_drawing import (
    WIDTH,
    label_points,
    looks,
    name_rows,
    new_axes,
    new_figure,
    percents,
    point_style,
    row_for,
    space_for,
    svg,
    two_ticks,
)
from evidence_settings import accuracy_of, ratio_of, what

_STAGES = {
    "before": "accuracy_before", "pruned": "accuracy_pruned", "1 epoch later": "accuracy_recovery_1",
    "3 epochs later": "accuracy_recovery_3", "final": "accuracy_final",
}  # fmt: skip


def cost_figure(comparison: Comparison, setting: Setting) -> str | None:
    """Final accuracy against the FLOPs of all training, a point per method; None if they are the same for all."""
    if comparison.match == "flops":
        return None
    points: dict[str, tuple[Mean, Mean, str]] = {}
    for method in comparison.methods:
        results = comparison.results(setting, method).values()
        cost, final = mean_over(results, "relative_flops"), mean_over(results, "accuracy_final")
        if cost is not None and final is not None:
            drawn = sum(result.ticket is not None for result in results)
            points[method] = cost, final, method if drawn == len(results) else f"{method} ({drawn} of {len(results)})"
    if not points:
        return None
    figure = new_figure("Final accuracy, and what all training cost", note(comparison, setting), 330)
    axes, styles = new_axes(figure), looks(comparison.methods)
    for method, (cost, final, _) in points.items():
        axes.errorbar(
            cost.value, final.value, xerr=reach(cost), yerr=reach(final), capsize=2, elinewidth=1, linestyle="none",
            **point_style(styles[method]),
        )  # fmt: skip
    axes.set_xlim(0, max(1.05, *(1.05 * cost.high for cost, _, _ in points.values())))
    axes.margins(y=0.12)
    axes.autoscale_view(scalex=False)
    axes.set(xlabel="FLOPs of all training / dense training", ylabel=f"final {accuracy_of(comparison)}")
    percents(axes, "x")
    percents(axes, "y")
    bars = [(cost.value, final.low, cost.value, final.high) for cost, final, _ in points.values()]
    bars += [(cost.low, final.value, cost.high, final.value) for cost, final, _ in points.values()]
    names = [(c.value, f.value, text, styles[method].colour) for method, (c, f, text) in points.items()]
    label_points(axes, names, bars)
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
    figure = new_figure("When the ticket emerged, seed by seed", note(comparison, setting), 118 + 34 * len(searches))
    axes, styles, budget = new_axes(figure, left=space_for([*searches]), below=58), looks(comparison.methods), 0.0
    for row, (method, results) in enumerate(searches.items()):
        readings = [quantity("emergence_epoch").read(result) for _, result in sorted(results.items())]
        budget = max(budget, *(result.config.search_epochs for result in results.values()))
        # Seeds that agree lie below each other, in the order of their numbers.
        for reading, shift in zip(readings, shifts(len(readings), 0.5), strict=True):
            look = styles[method]._replace(marker=">", filled=False) if reading.censored else styles[method]
            axes.plot(reading.value, row + shift, linestyle="none", clip_on=False, zorder=3, **point_style(look))
        if not any(reading.censored for reading in readings):
            mean = fmean(reading.value for reading in readings)
            axes.plot([mean, mean], [row - 0.38, row + 0.38], color=styles[method].colour, linewidth=1.2)
    name_rows(axes, [*searches])
    axes.set_xlim(0, 1.02 * budget)
    axes.locator_params(axis="x", integer=True)
    arrows = any(result.search.censored for results in searches.values() for result in results.values())
    unfinished = f"; open arrow: nothing emerged by epoch {budget:g}" if arrows else ""
    axes.set_xlabel(f"epoch\nupright line: mean{unfinished}", fontsize=10)
    return svg(figure)


def course_figure(comparison: Comparison, setting: Setting) -> str | None:
    """Accuracy before pruning, right after it, one and three epochs later, and at the end; None if none was pruned.

    Only of methods that prune what has been trained: the others have nothing to lose by it.
    """
    courses = {}
    for method in comparison.methods:
        # Only runs that drew a ticket, for all stages to be of the same ones.
        results = [result for result in comparison.results(setting, method).values() if result.ticket is not None]
        if results and all(is_pruned(result) and result.search.history[-1].epoch > 0 for result in results):
            courses[method] = [mean_over(results, name) for name in _STAGES.values()]
    if not courses:
        return None
    figure = new_figure("Accuracy around pruning", note(comparison, setting), 122 + row_for([*courses]) * len(courses))
    styles, left = looks(comparison.methods), space_for([*courses])
    width = (WIDTH - 14 - left) / len(_STAGES)
    for place, stage in enumerate(_STAGES):
        axes = new_axes(figure, left + place * width, left + (place + 1) * width - 12, below=40, above=80)
        name_rows(axes, [*courses] if place == 0 else [""] * len(courses))
        for row, (method, course) in enumerate(courses.items()):
            if (mean := course[place]) is not None:
                axes.errorbar(mean.value, row, xerr=reach(mean), elinewidth=1, **point_style(styles[method]))
        axes.set_title(stage.replace(" later", "\nlater"), fontsize=10, pad=6, loc="center")
        axes.tick_params(axis="x", labelsize=9)
        axes.margins(x=0.15)
        percents(axes, "x", sign="")
        two_ticks(axes)
    height = 72 * figure.get_figheight()
    scale = f"{accuracy_of(comparison)} in %; every column has its own scale"
    figure.text(left / WIDTH, 8 / height, scale, fontsize=10)
    return svg(figure)


def note(comparison: Comparison, setting: Setting) -> str:
    """What is below a figure's title: the setting, and how many seeds."""
    return f"{what(setting)}, {ratio_of(setting)}; {seeds(comparison, setting)}"


def seeds(comparison: Comparison, *settings: Setting) -> str:
    """Over how many seeds there are means, in all settings or in some."""
    chosen = settings or comparison.settings
    done = [(o.setting, o.method) for o in comparison.outcomes if o.result is not None and o.setting in chosen]
    counts = Counter(done).values()
    if max(counts, default=0) < 2:
        return "one seed"
    fewest = f"{min(counts)} to " * (min(counts) < max(counts))
    return f"means of {fewest}{max(counts)} seeds, 95% intervals"


def reach(mean: Mean) -> np.ndarray:
    """How far an interval reaches below and above its mean, as a column."""
    return np.maximum([[mean.value - mean.low], [mean.high - mean.value]], 0)


def shifts(count: int, width: float) -> list[float]:
    """As many places, evenly around 0, over a width."""
    return [width * (i - (count - 1) / 2) / max(1, count - 1) for i in range(count)]
