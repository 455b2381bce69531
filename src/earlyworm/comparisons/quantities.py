"""What is read off a run to compare it with others: a list of quantities, each with its unit and the better side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from earlyworm.experiments.results import RunResult, TicketCost

Unit = Literal["epochs", "FLOPs", "s", "fraction", "ratio", "number"]


@dataclass(frozen=True)
class Reading:
    """One quantity of one run; of a censored one all that is known is that it is above `value`."""

    value: float
    censored: bool = False


@dataclass(frozen=True)
class Quantity:
    """One thing that every method reports.

    Attributes:
        name: Its name in files, which does not change.
        unit: What it is counted in; fractions are accuracies in [0, 1] and differences of them, ratios are to dense.
        better: Which side is better.
        of: Reads it off a run; None where the run has no such thing.
        until_emergence: Whether it grows until the ticket emerges, and so is censored in a run where none did.
    """

    name: str
    unit: Unit
    better: Literal["lower", "higher"]
    of: Callable[[RunResult], float | None]
    until_emergence: bool = False

    def read(self, result: RunResult) -> Reading | None:
        """The quantity of one run, censored at its budget if it ended before emergence; None if there is none."""
        value = self.of(result)
        return None if value is None else Reading(value, self.until_emergence and result.search.censored)


def is_pruned(result: RunResult) -> bool:
    """Whether a trained network is pruned at all: what dense and narrow train is what they were given."""
    return result.config.method not in ("dense", "narrow")


def _epoch(result: RunResult) -> float | None:
    if not is_pruned(result):
        return None
    return float(result.config.search_epochs) if result.search.censored else result.search.epoch


def _drop(result: RunResult) -> float | None:
    accuracy = result.accuracy
    return accuracy.before - accuracy.pruned if is_pruned(result) and accuracy.pruned is not None else None


def _before(result: RunResult) -> float | None:
    """Of runs in which something was pruned: it stands beside the accuracy after that."""
    return result.accuracy.before if is_pruned(result) and result.ticket is not None else None


def _recovery(epochs: int) -> Callable[[RunResult], float | None]:
    def accuracy(result: RunResult) -> float | None:
        # The last epoch of retraining may be a part of one.
        whole = result.retrain_length > epochs - 1e-6
        return result.accuracy.recovery[epochs - 1] if whole else None

    return accuracy


def _total(of: Callable[[RunResult], float | None]) -> Callable[[RunResult], float | None]:
    """A cost of all training, of runs that drew a ticket: others ended early, and their costs would flatter."""
    return lambda result: None if result.ticket is None else of(result)


def _relative_flops(result: RunResult) -> float | None:
    """Against dense training for as many epochs; where all spend the same FLOPs, that would compare nothing."""
    if result.config.match != "epochs" or not result.total.dense_train_flops:  # it was drawn, and never trained
        return None
    return result.total.train_flops / result.total.dense_train_flops


def _ticket(of: Callable[[TicketCost], float]) -> Callable[[RunResult], float | None]:
    return lambda result: None if result.ticket is None else of(result.ticket)


QUANTITIES = (
    Quantity("emergence_epoch", "epochs", "lower", _epoch, until_emergence=True),
    Quantity(
        "emergence_flops", "FLOPs", "lower",
        lambda result: result.search.train_flops if is_pruned(result) else None, until_emergence=True,
    ),
    Quantity(
        "emergence_seconds", "s", "lower",
        lambda result: result.search.seconds if is_pruned(result) else None, until_emergence=True,
    ),
    Quantity("accuracy_before", "fraction", "higher", _before),
    Quantity(
        "accuracy_pruned", "fraction", "higher", lambda result: result.accuracy.pruned if is_pruned(result) else None
    ),
    Quantity("accuracy_drop", "fraction", "lower", _drop),
    Quantity("accuracy_recovery_1", "fraction", "higher", _recovery(1)),
    Quantity("accuracy_recovery_3", "fraction", "higher", _recovery(3)),
    Quantity("accuracy_final", "fraction", "higher", lambda result: result.accuracy.final),
    Quantity("total_flops", "FLOPs", "lower", _total(lambda result: result.total.train_flops)),
    Quantity("total_seconds", "s", "lower", _total(lambda result: result.total.seconds)),
    Quantity("relative_flops", "ratio", "lower", _total(_relative_flops)),
    Quantity("parameters", "number", "lower", _ticket(lambda ticket: ticket.parameters)),
    Quantity("macs", "number", "lower", _ticket(lambda ticket: ticket.macs)),
    Quantity(
        "relative_macs", "ratio", "lower",
        lambda result: None if result.ticket is None else result.ticket.macs / result.dense.macs,
    ),
    Quantity("latency_seconds", "s", "lower", _ticket(lambda ticket: ticket.latency_seconds)),
)  # fmt: skip
"""Every quantity of a comparison, in the order of files and tables."""


def training_speed(result: RunResult, epochs: int | None = None) -> float | None:
    """Sum of the training losses over the first part of retraining; what learns fast has little of it.

    Args:
        result: A run.
        epochs: Over how many epochs, at least 1; None: the first third of retraining, but one epoch at least.

    Returns:
        The sum, lower being better; None if there was no retraining.

    Source: arXiv 2010.14499.
    """
    losses = result.accuracy.losses
    return sum(losses[: max(1, len(losses) // 3) if epochs is None else epochs]) if losses else None
