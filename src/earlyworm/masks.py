"""Masks: one boolean per unit; from scores to a mask, and how far two masks are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from earlyworm.errors import ConfigError, SearchError


@dataclass(frozen=True, eq=False)
class Mask:
    """One boolean per unit, True is kept.

    Attributes:
        flat: bool [units] on the CPU, group after group.
        sizes: Number of units per group name, in order.
    """

    flat: Tensor
    sizes: Mapping[str, int]

    @property
    def kept(self) -> dict[str, Tensor]:
        """The mask of every group, bool [group size] (views)."""
        return dict(zip(self.sizes, torch.split(self.flat, list(self.sizes.values())), strict=True))

    @property
    def units(self) -> int:
        """Number of units."""
        return self.flat.numel()

    @property
    def units_kept(self) -> int:
        """Number of units that are kept."""
        return int(self.flat.sum())

    @property
    def units_removed(self) -> int:
        """Number of units that are removed."""
        return self.units - self.units_kept

    @classmethod
    def from_groups(cls, kept: Mapping[str, Tensor]) -> Self:
        """A mask from one boolean tensor [group size] per group name."""
        flat = torch.cat([mask.to("cpu", torch.bool) for mask in kept.values()])
        return cls(flat, {name: mask.numel() for name, mask in kept.items()})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return _same_units(self, other) and torch.equal(self.flat, other.flat)

    __hash__ = None  # type: ignore[assignment]  # compares by value, holds a tensor


def make_mask(scores: Mapping[str, Tensor], pruning_ratio: float, *, min_units: int = 1) -> Mask:
    """The global mask that removes exactly `floor(pruning_ratio * units)` units, those with the lowest scores.

    Of equal scores the later unit goes first. The `min_units` best units of every group always stay.

    Args:
        scores: One tensor [group size] of finite, non-negative numbers per group name.
        pruning_ratio: Fraction of all units to remove, in [0, 1).
        min_units: How many units of every group must stay, at least 1.

    Returns:
        The mask.

    Raises:
        ConfigError: If the ratio is outside [0, 1) or would leave a group with fewer than `min_units`, or that is
            below 1.
        SearchError: If a score is not finite.

    Example:
        >>> import torch
        >>> make_mask({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 0.5])}, 0.5).flat.tolist()
        [True, False, True, False]
    """
    if not 0 <= pruning_ratio < 1:
        raise ConfigError(f"pruning_ratio is {pruning_ratio}, but must be in [0, 1); it is the fraction removed")
    if min_units < 1:
        raise ConfigError(f"min_units is {min_units}, but must be at least 1, so that no layer vanishes")
    sizes = {name: score.numel() for name, score in scores.items()}
    flat = torch.cat([score.detach().flatten().float() for score in scores.values()]).cpu()
    if not torch.isfinite(flat).all():
        bad = next(name for name, score in scores.items() if not torch.isfinite(score.float()).all())
        raise SearchError(f"the scores of {bad!r} are not finite: has training diverged? lower the learning rate")
    remove = math.floor(pruning_ratio * flat.numel() * (1 + 1e-12))  # 0.29 * 100 is 29 units, not 28.999...
    removable = sum(max(0, size - min_units) for size in sizes.values())
    if remove > removable:
        raise ConfigError(
            f"pruning_ratio {pruning_ratio} removes {remove} of {flat.numel()} units, but at least {min_units} of each "
            f"of the {len(sizes)} groups must stay: at most {_floor(removable / flat.numel())} is possible"
        )
    order = _ascending(flat)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(flat.numel())
    for group in torch.split(rank, list(sizes.values())):  # the best of each group go to the end of the queue
        best = group.topk(min(min_units, group.numel())).indices
        group[best] += flat.numel()
    kept = torch.ones(flat.numel(), dtype=torch.bool)
    kept[rank.argsort()[:remove]] = False
    return Mask(kept, sizes)


def _floor(ratio: float) -> str:
    """Three digits of `ratio`, rounded down so that it is possible itself."""
    return f"{math.floor(1000 * ratio) / 1000:.3f}"


def _ascending(flat: Tensor) -> Tensor:
    """Indices [units] from the lowest score to the highest; of equal ones the later comes first."""
    return flat.numel() - 1 - flat.flip(0).sort(stable=True).indices


def mask_distance(a: Mask, b: Mask) -> float:
    """Hamming distance of two masks divided by the number of units, in [0, 1] (Early Bird, arXiv 1909.11957).

    Raises:
        SearchError: If the masks are over different units.
    """
    if not _same_units(a, b):
        raise SearchError("the masks are over different units: compare masks of one search")
    return int((a.flat != b.flat).sum()) / a.units


def _same_units(a: Mask, b: Mask) -> bool:
    """Whether two masks are over the same groups in the same order."""
    return list(a.sizes.items()) == list(b.sizes.items())
