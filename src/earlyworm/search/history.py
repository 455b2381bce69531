"""What a search reports: one record per check, and what the search itself has cost."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One check of the search.

    Attributes:
        step: Optimizer steps before it.
        distance_mean: Mean distance of the newest mask to the older ones in the window, in [0, 1]; None at the first.
        distance_max: The largest of these distances; None at the first.
        chi: What gradients of static units are multiplied by from here on; 1 is no truncation.
        truncated: Number of static units from here on; 0 while chi is 1.
        distance_recent: What the schedule of chi goes by: the mean distance to the latest of the older masks, as many
            as it asks for; None while there are fewer, and without a schedule.
    """

    step: int
    distance_mean: float | None
    distance_max: float | None
    chi: float
    truncated: int
    distance_recent: float | None = None


@dataclass(frozen=True)
class Overhead:
    """What the search itself has cost: seconds, and floating-point operations on masks and gradients, not on scores."""

    seconds: float
    flops: int
