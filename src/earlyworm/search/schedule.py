"""How a search asks its truncation: which distances it is told, what chi that gives, and how fast static units fade."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from earlyworm.errors import ConfigError
from earlyworm.search.history import Check
from earlyworm.search.truncation import Truncation, half_life_in_steps


@dataclass(frozen=True)
class Schedule:
    """The truncation of a search over a window of masks.

    Attributes:
        truncation: What chi follows from distances; None: it is always 1.
        window: Masks in the window.
        steps_per_epoch: Optimizer steps per epoch; only for a half-life in epochs.

    Raises:
        ConfigError: If the truncation is no schedule, or its half-life is in epochs of an unknown number of steps.
    """

    truncation: Truncation | None
    window: int
    steps_per_epoch: int | None

    def __post_init__(self) -> None:
        if self.truncation is not None and (
            isinstance(self.truncation, type) or not all(hasattr(self.truncation, it) for it in ("chi_after", "static"))
        ):
            raise ConfigError(f"truncation is {self.truncation!r}, but must be a schedule such as ew.Worm(), or None")
        half_life_in_steps(self.truncation, self.steps_per_epoch, None)

    def recent(self, distances: Sequence[float]) -> float | None:
        """The mean distance to the part of the window that the truncation goes by; None until that is full.

        Args:
            distances: The distance of the newest mask to each older one in the window, oldest first.
        """
        masks = math.ceil((self.window - 1) * getattr(self.truncation, "window_part", 1.0))
        if self.truncation is None or len(distances) < masks:
            return None
        return sum(distances[-masks:]) / masks

    def chi(self, history: Sequence[Check], newest: float | None) -> float:
        """Chi from the newest check on; as long as there is no distance to go by, that is 1, as in the papers' code.

        Args:
            history: The checks before.
            newest: What `recent` says at the newest.

        Raises:
            ConfigError: If the truncation gives no number in [0, 1].
        """
        if self.truncation is None:
            return 1.0
        recent = [*(check.distance_recent for check in history), newest]
        chi = self.truncation.chi_after([1.0 if distance is None else distance for distance in recent])
        if not 0 <= chi <= 1:
            raise ConfigError(f"{self.truncation!r} gives chi {chi}, but it must be in [0, 1]")
        return chi

    def half_life(self, history: Sequence[Check]) -> float | None:
        """The half-life of static units in optimizer steps; None: they do not fade, or the first check is all there is.

        Args:
            history: All checks, at least one.
        """
        recent = history[-self.window :]
        steps, intervals = recent[-1].step - recent[0].step, len(recent) - 1
        window = steps / intervals * (self.window - 1) if intervals else None
        return half_life_in_steps(self.truncation, self.steps_per_epoch, window)
