"""Figures of lines: final accuracy over ratios or sizes, a line per method, and accuracies over values of an option."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from earlyworm.comparisons.comparison import Comparison, Setting
from earlyworm.reporting.palette import INK, MUTED, TICKET
from evidence_claims import EARLY_BIRD, Mean, mean_over
from evidence_drawing import Look, label_ends, looks, new_axes, new_figure, part_ticks, percents, point_style, svg
from evidence_figures import note, reach, seeds, shifts
from evidence_options import Varied, at_values, by_decades
from evidence_settings import accuracy_of, what

_COURSE = {
    "before": ("before pruning", Look(MUTED, "s", "--")),
    "pruned": ("right after it", Look(TICKET, "v", ":")),
    "1 epoch later": ("1 epoch later", Look(TICKET, "^", (0, (6, 2)), filled=False)),
    "final": ("final", Look(INK, "o")),
}
"""The lines over values of an option."""


class Curve(NamedTuple):
    """A line through means, by their places along an axis."""

    name: str
    look: Look
    means: Mapping[float, Mean]


class Along(NamedTuple):
    """The axis of places: what it is called, the names of its ticks, and where a place lies on it."""

    name: str
    ticks: Mapping[float, str]
    scale: Callable[[float], float] = float


class Level(NamedTuple):
    """A height to compare lines with."""

    name: str
    height: float
    colour: str


def ratio_figure(comparison: Comparison, ratios: Mapping[Setting, float]) -> str | None:
    """Final accuracy of every method over the pruning ratio; the settings differ in nothing else."""
    return _curves(
        _methods(comparison, ratios),
        Along("pruning ratio: the fraction of units that is removed", _named(ratios.values())),
        title="Final accuracy over the pruning ratio",
        below=f"{what(next(iter(ratios)))}; {seeds(comparison)}",
        up=f"final {accuracy_of(comparison)}",
    )


def growth_figure(comparison: Comparison, sizes: Mapping[Setting, int]) -> str | None:
    """Final accuracy of every method over the number of training examples; the settings differ in nothing else."""
    return _curves(
        _methods(comparison, sizes),
        Along("training examples", _named(sizes.values()), _logarithm),
        title="Final accuracy over the size of the training set",
        below=note(comparison, next(iter(sizes))),
        up=f"final {accuracy_of(comparison)}",
    )


def option_figure(comparison: Comparison, setting: Setting, option: Varied) -> str | None:
    """Accuracy around pruning over the values of an option, beside Early Bird's; None if nothing was pruned."""
    points = at_values(comparison, setting, option)
    curves = []
    for stage, (name, look) in _COURSE.items():
        means = {point.value: mean for point in points if (mean := point.course[stage]) is not None}
        curves.append(Curve(name, look, means))
    # On one line, "3 of 5 emerged" would be wider than most distances between ticks.
    ticks = {point.value: f"{point.value:g}\n{point.emerged}".replace(" emerged", "\nemerged") for point in points}
    scale = _logarithm if by_decades(option.labels.values()) else float
    theirs = mean_over(comparison.results(setting, EARLY_BIRD).values(), "accuracy_final")
    colour = looks([EARLY_BIRD])[EARLY_BIRD].colour
    return _curves(
        curves,
        Along(f"{option.option}, and when tickets emerged", ticks, scale),
        title=f"Accuracy around pruning over {option.option} of {option.method}",
        below=note(comparison, setting),
        up=accuracy_of(comparison),
        level=None if theirs is None else Level(f"{EARLY_BIRD}, final", theirs.value, colour),
    )


def _methods(comparison: Comparison, places: Mapping[Setting, float]) -> list[Curve]:
    """A line for each method, through its final accuracies at the places of settings."""
    styles, curves = looks(comparison.methods), []
    for method in comparison.methods:
        means = {}
        for setting, place in sorted(places.items(), key=lambda pair: pair[1]):
            if (mean := mean_over(comparison.results(setting, method).values(), "accuracy_final")) is not None:
                means[place] = mean
        curves.append(Curve(method, styles[method], means))
    return curves


def _curves(
    curves: Sequence[Curve], along: Along, *, title: str, below: str, up: str, level: Level | None = None
) -> str | None:
    """Lines that are named at their ends; None if there is no mean in any of them.

    Args:
        curves: The lines; those without means are left out.
        along: The axis of places.
        title: The title of the figure.
        below: What stands below it.
        up: What the axis of means is called.
        level: A dashed line across, beside the others.
    """
    curves = [curve for curve in curves if curve.means]
    if not curves:
        return None
    under = 13 * max(name.count("\n") for name in along.ticks.values())  # further lines of the names of ticks
    figure = new_figure(title, below, 350 + under)
    axes, ticks = new_axes(figure, right=402, below=44 + under), sorted(along.ticks)
    at = [along.scale(place) for place in ticks]
    apart = min(np.diff(at), default=0.0)
    ends = []
    for curve, shift in zip(curves, shifts(len(curves), 0.3 * apart), strict=True):
        places, look = [along.scale(place) + shift for place in curve.means], curve.look
        values = [mean.value for mean in curve.means.values()]
        axes.errorbar(
            places, values, yerr=np.hstack([*map(reach, curve.means.values())]), linestyle=look.dash, elinewidth=0.8,
            capsize=1.5, **point_style(look),
        )  # fmt: skip
        ends.append((places[-1], values[-1], curve.name, look.colour))
    axes.set_xticks(at, [along.ticks[place] for place in ticks], color=INK)
    axes.set_xlim(at[0] - 0.3 * apart, at[-1] + 0.3 * apart)
    axes.set(xlabel=along.name, ylabel=up)
    percents(axes, "y")
    if level is not None:
        axes.axhline(level.height, color=level.colour, linestyle=(0, (5, 4)), linewidth=0.9)
        ends.append((axes.viewLim.x1, level.height, level.name, level.colour))
    part_ticks(axes)
    label_ends(axes, ends)
    return svg(figure)


def _named(numbers: Iterable[float]) -> dict[float, str]:
    """Numbers with their digits."""
    return {number: f"{number:,g}" for number in numbers}


def _logarithm(number: float) -> float:
    return float(np.log2(number))
