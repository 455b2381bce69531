"""When a ticket counts as emerged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Self

from earlyworm.errors import ConfigError


@dataclass(frozen=True)
class Emergence:
    """When the ticket counts as emerged (Early Bird, arXiv 1909.11957, section 4).

    Attributes:
        window: How many of the latest masks are remembered, at least 2.
        epsilon: The largest mask distance inside the window at which the ticket has emerged, in [0, 1].

    Example:
        >>> Emergence.spanning(4, check_every=0.25)
        Emergence(window=17, epsilon=0.1)
    """

    window: int = 5
    epsilon: float = 0.1

    @classmethod
    def spanning(cls, epochs: float, *, check_every: float, epsilon: float = 0.1) -> Self:
        """The same rule for any interval between checks: the window reaches back over a given stretch of training.

        Masks differ the more, the more training lies between them. So a window of a number of checks shrinks with the
        interval, and emergence comes sooner for no other reason; a window of a number of epochs does not. The published
        window of 5 checks, one per epoch, spans 4 epochs.

        Args:
            epochs: From the oldest mask in the window to the newest, above 0.
            check_every: Epochs between two checks, above 0 and at most `epochs`.
            epsilon: As above.

        Raises:
            ConfigError: If they are not.
        """
        if not 0 < check_every <= epochs < math.inf:
            raise ConfigError(
                f"the window spans {epochs} epochs with a check every {check_every}: it must span one interval or more"
            )
        return cls(round(epochs / check_every) + 1, epsilon)

    def __post_init__(self) -> None:
        if not isinstance(self.window, Integral) or self.window < 2:
            raise ConfigError(
                f"window is {self.window}, but must be a whole number, at least 2, to have masks to compare"
            )
        if not 0 <= self.epsilon <= 1:
            raise ConfigError(f"epsilon is {self.epsilon}, but must be in [0, 1]")

    def has_emerged(self, distances: Sequence[float]) -> bool:
        """Whether the window is full and its largest distance is at most epsilon.

        Args:
            distances: The distance of the newest mask to each older one in the window, each in [0, 1].
        """
        return len(distances) == self.window - 1 and max(distances) <= self.epsilon

    def lacking(self, distances: Sequence[float]) -> str:
        """What is missing until the ticket emerges, and the cure, in words.

        Args:
            distances: As above; of at least one mask.
        """
        masks = len(distances) + 1
        if masks < self.window:
            return f"{masks} of the {self.window} masks of the window are taken; search longer"
        return (
            f"the largest distance in the window is {max(distances):.3f}, epsilon is {self.epsilon}; search longer, "
            "raise epsilon"
        )
