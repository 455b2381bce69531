"""The window of masks, and the test whether the ticket has emerged."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from earlyworm.errors import ConfigError
from earlyworm.masks import Mask, mask_distance


@dataclass(frozen=True)
class Emergence:
    """When the ticket counts as emerged (Early Bird, arXiv 1909.11957, section 4).

    Attributes:
        window: How many of the latest masks are remembered, at least 2.
        epsilon: The largest mask distance inside the window at which the ticket has emerged, in [0, 1].
    """

    window: int = 5
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        if self.window < 2:
            raise ConfigError(f"window is {self.window}, but must be at least 2, to have masks to compare")
        if not 0 <= self.epsilon <= 1:
            raise ConfigError(f"epsilon is {self.epsilon}, but must be in [0, 1]")

    def has_emerged(self, distances: Sequence[float]) -> bool:
        """Whether the window is full and its largest distance is at most epsilon.

        Args:
            distances: The distance of the newest mask to each older one in the window, each in [0, 1].
        """
        return len(distances) == self.window - 1 and max(distances) <= self.epsilon


class MaskWindow:
    """The latest masks, oldest first; forgets the oldest when a new one comes to a full window."""

    def __init__(self, size: int) -> None:
        self.masks: deque[Mask] = deque(maxlen=size)

    def push(self, mask: Mask) -> tuple[float, ...]:
        """Remember `mask`; return its distance to each of the older masks, oldest first."""
        self.masks.append(mask)
        return tuple(mask_distance(mask, older) for older in list(self.masks)[:-1])

    @property
    def newest(self) -> Mask:
        """The newest mask."""
        return self.masks[-1]

    @property
    def ever_kept(self) -> Mask:
        """The mask that removes only what every mask of the window removes."""
        bits = self.newest.bits.clone()
        for mask in self.masks:
            bits |= mask.bits
        return Mask(bits, self.newest.sizes, self.newest.kinds)
