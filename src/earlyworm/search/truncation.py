"""Gradient truncation and fading: from mask distances to chi, and the scaling of gradients and of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from earlyworm.errors import ConfigError

Static = Literal["latest", "window"]

FADED_PART = 1 / 12
"""The usual half-life of fading units, as a part of what the window spans."""


class Truncation(Protocol):
    """A schedule of chi.

    `static` says which units it acts on: those that the newest mask removes, or every mask. A schedule that has a
    `half_life` too, in epochs, lets these units fade while chi is below 1. One that has a `window_part`, in (0, 1],
    goes by the latest masks alone, this part of the window, and not by all of it.
    """

    @property
    def static(self) -> Static:
        """`"latest"`: what the newest mask removes. `"window"`: what every mask of the window removes."""

    def chi_after(self, distances: Sequence[float]) -> float:
        """Chi from the newest check on.

        Args:
            distances: The mean mask distance at every check so far, newest last, each in [0, 1]; 1 while the window,
                or the part of it that the schedule goes by, was not yet full.
        """


@dataclass(frozen=True)
class Constant:
    """The same chi from the first mask on ("gradient clipped" in WORM's ablation).

    Attributes:
        chi: What gradients of static units are multiplied by, in [0, 1].
        static: Which units are static.
    """

    chi: float = 0.1
    static: Static = "latest"

    def __post_init__(self) -> None:
        _check("chi", self.chi)
        _check_static(self.static)

    def chi_after(self, distances: Sequence[float]) -> float:
        """Chi, whatever the distances."""
        return self.chi


@dataclass(frozen=True)
class Greedy:
    """Chi is the mean distance itself (WORM's ablation).

    Attributes:
        static: Which units are static.
    """

    static: Static = "latest"

    def __post_init__(self) -> None:
        _check_static(self.static)

    def chi_after(self, distances: Sequence[float]) -> float:
        """The newest mean distance, at most 1."""
        return min(1.0, distances[-1])


@dataclass(frozen=True)
class Worm:
    """Truncate once the mean distance has fallen below the trigger, and from then on (arXiv 2406.11872).

    Attributes:
        trigger: The mean distance below which truncation starts, in [0, 1].
        chi: What gradients of static units are multiplied by from then on, in [0, 1].
        static: Which units are static.
        greedy_first: Whether chi is the mean distance until then, as for transformers, and not 1.

    Example:
        >>> Worm(trigger=0.15, chi=0.003).chi_after([1.0, 0.2])
        1.0
        >>> Worm(trigger=0.15, chi=0.003).chi_after([1.0, 0.2, 0.14, 0.16])
        0.003
    """

    trigger: float = 0.15
    chi: float = 0.003
    static: Static = "latest"
    greedy_first: bool = False

    def __post_init__(self) -> None:
        _check("trigger", self.trigger)
        _check("chi", self.chi)
        _check_static(self.static)

    def chi_after(self, distances: Sequence[float]) -> float:
        """Chi if any distance was below the trigger, else 1 (or the newest distance)."""
        if any(distance < self.trigger for distance in distances):
            return self.chi
        return min(1.0, distances[-1]) if self.greedy_first else 1.0


@dataclass(frozen=True)
class Fade:
    """Let go of the static units: from the trigger on they are truncated and shrunk a little after every step.

    What WORM freezes where it stands is still there when the ticket is cut out; what fades is hardly missed then. The
    shrinking is decoupled from gradients and learning rate, as weight decay is in AdamW: after every optimizer step,
    all that masking the unit would zero is multiplied by `0.5 ** (1 / half-life in steps)`.

    What the trigger is compared with is the mean distance to the latest masks, a quarter of the window: the rest of it
    is the time to fade. To wait until all of it is full, as WORM does, would leave none where masks settle at once, as
    in fine-tuning; and from scratch, the mask from before any training would keep the mean high for as long. As long as
    the distance grows from check to check, masks have only begun to move, as those by the Taylor score do while the
    learning rate warms up, and nothing starts.

    Attributes:
        trigger: The mean distance to the latest masks below which it starts, once it does not grow, in [0, 1]; it goes
            on from then on.
        half_life: Epochs in which static units shrink to a half, above 0; None: a twelfth of what the window spans,
            however many epochs or steps that is, so that they are down to a thousandth before they are cut out.
        chi: What gradients of static units are multiplied by from then on, in [0, 1).
        static: Which units are static. A unit that is static no more is left as it is.
        window_part: How much of the window the trigger looks at.

    Example:
        >>> Fade(trigger=0.3).chi_after([1.0, 0.4])
        1.0
        >>> Fade(trigger=0.3).chi_after([1.0, 0.17, 0.25])
        1.0
        >>> Fade(trigger=0.3).chi_after([1.0, 0.4, 0.29, 0.31])
        0.0
    """

    trigger: float = 0.3
    half_life: float | None = None
    chi: float = 0.0
    static: Static = "latest"
    window_part: ClassVar[float] = 0.25

    def __post_init__(self) -> None:
        _check("trigger", self.trigger)
        if not 0 <= self.chi < 1:
            raise ConfigError(f"chi is {self.chi}, but must be in [0, 1)")
        if self.half_life is not None and not 0 < self.half_life < math.inf:
            raise ConfigError(f"half_life is {self.half_life}, but must be a number of epochs, above 0")
        _check_static(self.static)

    def chi_after(self, distances: Sequence[float]) -> float:
        """Chi if any distance was below the trigger and no larger than the one before it, else 1."""
        # Before a distance that is the first, 1 says that there was none, and not what it has fallen from.
        falling = (distance for before, distance in pairwise(distances) if distance <= before < 1)
        return self.chi if any(distance < self.trigger for distance in falling) else 1.0


def half_life_in_steps(
    truncation: Truncation | None, steps_per_epoch: int | None, window: float | None
) -> float | None:
    """The half-life of static units in optimizer steps; None: they do not fade.

    Args:
        truncation: The schedule.
        steps_per_epoch: Optimizer steps per epoch; only for a half-life in epochs.
        window: Optimizer steps that the window of masks spans, above 0; None: not known yet.

    Raises:
        ConfigError: If the steps per epoch are below 1, or needed and not given.
    """
    if steps_per_epoch is not None and steps_per_epoch < 1:
        raise ConfigError(f"steps_per_epoch is {steps_per_epoch}, but must be at least 1")
    if truncation is None or not hasattr(truncation, "half_life"):
        return None
    epochs: float | None = truncation.half_life
    if epochs is None:
        return None if window is None else FADED_PART * window
    if steps_per_epoch is None:
        raise ConfigError(
            f"{truncation!r} has a half-life in epochs, but steps_per_epoch is None: give the optimizer steps per "
            "epoch, such as len(loader)"
        )
    return epochs * steps_per_epoch


def fading_factor(half_life: float, dtype: torch.dtype) -> tuple[float, int]:
    """What fading units are multiplied by, and after how many optimizer steps each, to halve them in `half_life` steps.

    In low precision a factor next to 1 would round to nothing; there it is that of several steps at once.

    Args:
        half_life: In optimizer steps, above 0.
        dtype: That of the tensors to be multiplied.

    Returns:
        A factor in (0, 1), and a number of steps, at least 1.

    Example:
        >>> fading_factor(100, torch.float32)
        (0.9930924954370359, 1)
        >>> fading_factor(100, torch.bfloat16)
        (0.9794202975869268, 3)
    """
    # A product moves if its factor is further from 1 than neighbouring numbers are from each other.
    least = -math.log2(1 - 2 * torch.finfo(dtype).eps)
    every = max(1, math.ceil(least * half_life))
    return 0.5 ** (every / half_life), every


def truncation_factor(kept: Tensor, chi: float, dtype: torch.dtype) -> Tensor:
    """What a gradient is multiplied by: `m + chi * (1 - m)` (arXiv 2406.11872).

    Args:
        kept: The mask m, bool of any shape that broadcasts against the gradient.
        chi: In [0, 1].
        dtype: The gradient's dtype.

    Returns:
        1 where kept, chi elsewhere; shape and device of `kept`.
    """
    return torch.full(kept.shape, chi, dtype=dtype, device=kept.device).masked_fill_(kept, 1)


@torch.no_grad()
def truncate_(gradients: Sequence[Tensor], factors: Sequence[Tensor]) -> None:
    """Multiply every gradient by its factor, in place and in one fused operation.

    Args:
        gradients: Gradients of any shapes; what fades is multiplied by its factor in the same way.
        factors: For each of them a tensor that broadcasts against it, see `truncation_factor`.
    """
    if gradients:
        torch._foreach_mul_(list(gradients), list(factors))


def _check(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} is {value}, but must be in [0, 1]")


def _check_static(static: str) -> None:
    if static not in ("latest", "window"):
        raise ConfigError(f"static is {static!r}, but must be 'latest' or 'window'")
