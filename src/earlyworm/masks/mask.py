"""Masks: one bit per unit; from scores to a mask, and how far two masks are apart."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Self

import numpy as np
import torch
from torch import Tensor

from earlyworm.errors import SearchError
from earlyworm.masks.ratios import Ratio, fewest_per_group, removed_per_kind
from earlyworm.masks.selection import absolute_sum, lowest, pack, unpack


@dataclass(frozen=True, eq=False)
class Mask:
    """One bit per unit, 1 is kept.

    Attributes:
        bits: uint8 [bytes] on the CPU, group after group; every group begins with a new byte, in its lowest bit, and
            the bits left over are 0.
        sizes: Number of units per group name, in order.
        kinds: What the units are, per group name; groups that are not named are of one kind.
    """

    bits: Tensor
    sizes: Mapping[str, int]
    kinds: Mapping[str, str] = field(default_factory=dict)

    @property
    def kept(self) -> Mapping[str, Tensor]:
        """The mask of every group, bool [group size], unpacked when it is asked for."""
        return _Unpacked(self)

    @property
    def flat(self) -> Tensor:
        """All groups in one, bool [units]."""
        return torch.cat(list(self.kept.values()))

    @property
    def units(self) -> int:
        """Number of units."""
        return sum(self.sizes.values())

    @property
    def units_kept(self) -> int:
        """Number of units that are kept."""
        return int(np.bitwise_count(self.bits.numpy()).sum(dtype=np.int64))

    @property
    def units_removed(self) -> int:
        """Number of units that are removed."""
        return self.units - self.units_kept

    @classmethod
    def from_groups(cls, kept: Mapping[str, Tensor], kinds: Mapping[str, str] | None = None) -> Self:
        """A mask from one boolean tensor [group size] per group name."""
        bits = torch.cat([pack(mask.bool().flatten()) for mask in kept.values()])
        return cls(bits, {name: mask.numel() for name, mask in kept.items()}, kinds or {})

    def among(self, left: Self) -> Self:
        """This mask over the units that another one keeps, as if there were no others."""
        return self.from_groups({name: self.kept[name][there] for name, there in left.kept.items()}, self.kinds)

    def within(self, left: Self) -> Self:
        """Inverse of `among`: this mask over those units as a mask over all of them, which removes the others."""
        everything = {}
        for name, there in left.kept.items():
            everything[name] = there.masked_scatter(there, self.kept[name])
        return self.from_groups(everything, left.kinds)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return _same_units(self, other) and torch.equal(self.bits, other.bits)

    __hash__ = None  # type: ignore[assignment]  # compares by value, holds a tensor


class _Unpacked(Mapping[str, Tensor]):
    """The groups of a mask by name; each is unpacked on access, so that one at a time is held as booleans."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._starts = dict(zip(mask.sizes, _starts(mask.sizes), strict=True))

    def __getitem__(self, name: str) -> Tensor:
        size, start = self._mask.sizes[name], self._starts[name]
        return unpack(self._mask.bits[start : start + _bytes(size)], size)

    def __iter__(self) -> Iterator[str]:
        return iter(self._starts)

    def __len__(self) -> int:
        return len(self._starts)


def make_mask(
    scores: Mapping[str, Tensor],
    pruning_ratio: Ratio,
    *,
    min_units: float | None = None,
    kinds: Mapping[str, str] | None = None,
) -> Mask:
    """The global mask that removes exactly `floor(pruning_ratio * units)` units, those with the lowest scores.

    Of equal scores the later unit goes first. As many of the best units of every group as `min_units` says always stay.
    Units of several kinds are not compared with each other: each kind loses its own share.

    Args:
        scores: One tensor with a number for every unit, in row-major order, per group name. What counts is the
            absolute value in float32, so that a weight matrix may be given as it stands, on any device; it is not
            copied.
        pruning_ratio: Fraction of all units to remove, in [0, 1), or one such number per kind.
        min_units: How many units of every group stay: a number, at least 1, or a fraction of the group, in (0, 1).
            None: a fifth of the share that stays of all units, at least a twentieth, or half of that share if that is
            less; one of single weights.
        kinds: The kind of units per group name; groups that are not named are of one kind.

    Returns:
        The mask.

    Raises:
        ConfigError: If a ratio is outside [0, 1) or would leave a group with fewer than `min_units`, or that is
            below 1, or a kind has no ratio.
        SearchError: If a score is not finite.

    Example:
        >>> import torch
        >>> make_mask({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 0.5])}, 0.5).flat.tolist()
        [True, False, True, False]
    """
    check_finite({name: absolute_sum(score) for name, score in scores.items()})
    return mask_of_finite(scores, pruning_ratio, min_units=min_units, kinds=kinds)


def mask_of_finite(
    scores: Mapping[str, Tensor],
    pruning_ratio: Ratio,
    *,
    min_units: float | None,
    kinds: Mapping[str, str] | None,
    left: Mask | None = None,
) -> Mask:
    """`make_mask` of scores that are known to be finite: whoever has summed them up need not read them all again.

    Args:
        scores: As for `make_mask`.
        pruning_ratio: Likewise.
        min_units: Likewise.
        kinds: Likewise.
        left: If given, only the units that it keeps have scores; the others are among those that the mask removes.
    """
    kinds = dict(kinds or {})
    counts = {name: score.numel() for name, score in scores.items()}
    sizes = counts if left is None else left.sizes
    fewest = fewest_per_group(sizes, pruning_ratio, min_units=min_units, kinds=kinds)
    removed: dict[str, Tensor] = {}
    for kind, count in removed_per_kind(sizes, pruning_ratio, min_units=min_units, kinds=kinds).items():
        some = {name: score for name, score in scores.items() if kinds.get(name, "units") == kind}
        removed |= remove_lowest(some, count - sum(sizes[name] - counts[name] for name in some), fewest)
    mask = Mask(torch.cat([_others(removed[name], size) for name, size in counts.items()]), counts, kinds)
    return mask if left is None else mask.within(left)


def mask_distance(a: Mask, b: Mask) -> float:
    """Hamming distance of two masks divided by the number of units, in [0, 1] (Early Bird, arXiv 1909.11957).

    Of units of several kinds, the distance is that of the kind whose masks are farthest apart: a few attention heads
    would not be heard among thousands of neurons.

    Raises:
        SearchError: If the masks are over different units.
    """
    if not _same_units(a, b):
        raise SearchError("the masks are over different units: compare masks of one search")
    differing = np.bitwise_count(np.bitwise_xor(a.bits.numpy(), b.bits.numpy()))
    totals: dict[str, list[int]] = {}
    for (name, size), start in zip(a.sizes.items(), _starts(a.sizes), strict=True):
        total = totals.setdefault(a.kinds.get(name, "units"), [0, 0])
        total[0] += int(differing[start : start + _bytes(size)].sum(dtype=np.int64))
        total[1] += size
    return max(count / size for count, size in totals.values())


def remove_lowest(scores: Mapping[str, Tensor], count: int, fewest: Mapping[str, int]) -> dict[str, Tensor]:
    """The `count` units of the lowest absolute scores, or others where too few of a group would stay.

    Args:
        scores: One number for every unit, in row-major order, per group name.
        count: How many units go; not more than all groups together can lose.
        fewest: How many units stay, per group name.

    Returns:
        The units that go, as packed bits per group name (see `selection.pack`).
    """
    removable = {name: max(0, score.numel() - fewest[name]) for name, score in scores.items()}
    emptied: dict[str, Tensor] = {}  # groups that would lose too many, and so lose just as many as they can
    while True:
        free = [name for name in scores if name not in emptied]
        rest = count - sum(removable[name] for name in emptied)
        removed = dict(zip(free, lowest([scores[name] for name in free], rest), strict=True))
        short = [name for name in free if np.bitwise_count(removed[name].numpy()).sum() > removable[name]]
        if not short:
            return removed | emptied
        for name in short:
            (emptied[name],) = lowest([scores[name]], removable[name])


def check_finite(sums: Mapping[str, float]) -> None:
    """Make sure that scores can be compared.

    Args:
        sums: The sum of all absolute scores per group name.

    Raises:
        SearchError: If one is not finite.
    """
    for name, total in sums.items():
        if not math.isfinite(total):
            raise SearchError(f"the scores of {name!r} are not finite: has training diverged? lower the learning rate")


def _others(bits: Tensor, size: int) -> Tensor:
    """The bits of the units that are not marked; what is left over in the last byte stays 0."""
    others = ~bits
    if size % 8:
        others[-1] &= (1 << size % 8) - 1
    return others


def _bytes(size: int) -> int:
    return -(-size // 8)


def _starts(sizes: Mapping[str, int]) -> list[int]:
    """The first byte of every group."""
    return list(accumulate((_bytes(size) for size in sizes.values()), initial=0))[:-1]


def _same_units(a: Mask, b: Mask) -> bool:
    """Whether two masks are over the same groups in the same order."""
    return list(a.sizes.items()) == list(b.sizes.items())


class MaskWindow:
    """The latest masks, oldest first; forgets the oldest when a new one comes to a full window.

    Args:
        size: How many it remembers, at least 2.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.masks: deque[Mask] = deque(maxlen=size)

    def distances(self, mask: Mask) -> tuple[float, ...]:
        """The distance of `mask` to each of those that it will be compared with once it is pushed, oldest first."""
        return tuple(mask_distance(mask, older) for older in [*self.masks][1 - self._size :])

    def push(self, mask: Mask) -> None:
        """Remember `mask`."""
        self.masks.append(mask)

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
