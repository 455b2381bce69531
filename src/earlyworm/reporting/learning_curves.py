"""Held-out accuracy over a whole run: search, pruning and retraining."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np

from earlyworm.experiments.results import RunResult

Along = Literal["epochs", "flops"]

_STEPS = 120


class LearningCurve(NamedTuple):
    """Accuracies in [0, 1], each with the epochs and the training FLOPs that were spent until then.

    The accuracy right before and right after pruning stand at the same place.
    """

    epochs: list[float]
    flops: list[float]
    accuracy: list[float]


def learning_curve(result: RunResult) -> LearningCurve:
    """The accuracies of one run, in order."""
    search, accuracy, drawn = result.search, result.accuracy, result.draw_epoch
    evaluated = {check.epoch: check.accuracy for check in search.history if check.accuracy is not None}
    epochs, values = list(evaluated), list(evaluated.values())
    flops = [search.train_flops * epoch / drawn if drawn else 0.0 for epoch in epochs]
    if accuracy.pruned is not None:
        length = result.retrain_length
        after = enumerate((accuracy.pruned, *accuracy.recovery))
        measured = {epoch: value for epoch, value in after if value is not None}
        taken = [min(float(epoch), length) for epoch in measured]
        epochs += [drawn + epoch for epoch in taken]
        flops += [search.train_flops + result.total.retrain_flops * epoch / (length or 1.0) for epoch in taken]
        values += measured.values()
    return LearningCurve(epochs, flops, values)


def mean_curve(curves: Iterable[LearningCurve], along: Along) -> tuple[list[float], list[float]]:
    """The mean of several curves, as far as all of them reach.

    Args:
        curves: One per seed.
        along: What the means are taken at equal values of.

    Returns:
        These values, and the mean accuracies; between two points of a curve, it is straight.
    """
    pairs = [(getattr(curve, along), curve.accuracy) for curve in curves]
    end = min(places[-1] for places, _ in pairs)
    grid = np.linspace(0.0, end, _STEPS + 1)
    means = np.mean([np.interp(grid, places, values) for places, values in pairs], axis=0)
    return grid.tolist(), means.round(4).tolist()
