"""Pruning ratios: how many units of every kind a mask removes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from earlyworm.errors import ConfigError

Ratio = float | Mapping[str, float]
"""The fraction of units to remove, in [0, 1): one number for every kind of units, or one per kind."""


def removed_per_kind(
    sizes: Mapping[str, int], pruning_ratio: Ratio, *, min_units: float, kinds: Mapping[str, str]
) -> dict[str, int]:
    """How many units of every kind a mask removes.

    Args:
        sizes: Number of units per group name.
        pruning_ratio: Fraction of the units to remove, in [0, 1), or one such number per kind.
        min_units: How many units of every group stay: a number, at least 1, or a fraction of the group, in (0, 1).
        kinds: The kind of units per group name; groups that are not named are of one kind.

    Returns:
        The number per kind, in the order in which kinds first appear.

    Raises:
        ConfigError: If a ratio or `min_units` is impossible.
    """
    check_min_units(min_units)
    by_kind: dict[str, list[int]] = {}
    for name, size in sizes.items():
        by_kind.setdefault(kinds.get(name, "units"), []).append(size)
    ratios = ratio_per_kind(pruning_ratio, list(by_kind))
    return {kind: _count_removed(some, ratios[kind], min_units) for kind, some in by_kind.items()}


def ratio_per_kind(ratio: Ratio, kinds: list[str]) -> dict[str, float]:
    """One ratio for each of `kinds`.

    Raises:
        ConfigError: If one is missing, too many or impossible.
    """
    ratios = dict(ratio) if isinstance(ratio, Mapping) else dict.fromkeys(kinds, ratio)
    for kind in kinds:
        if kind not in ratios:
            raise ConfigError(f"pruning_ratio has no entry for {kind!r}: give one for each of {', '.join(kinds)}")
    for kind, value in ratios.items():
        if kind not in kinds:
            raise ConfigError(f"pruning_ratio has an entry for {kind!r}, but the units are {', '.join(kinds)}")
        if not 0 <= value < 1:
            raise ConfigError(f"pruning_ratio is {value}, but must be in [0, 1); it is the fraction removed")
    return ratios


def check_min_units(min_units: float) -> None:
    """Make sure that at least one unit of every group stays.

    Raises:
        ConfigError: If it is neither a number of units nor a fraction.
    """
    if not (0 < min_units < 1 or (min_units >= 1 and min_units == int(min_units))):
        raise ConfigError(
            f"min_units is {min_units:g}, but must be at least 1, so that no layer vanishes, or a fraction in (0, 1)"
        )


def fewest_units(min_units: float, size: int) -> int:
    """How many units of a group of `size` must stay, at least 1 and at most all.

    Args:
        min_units: A number of units, or a fraction of the group, which is rounded up.
        size: How many there are.
    """
    fewest = math.ceil(min_units * size * (1 - 1e-12)) if min_units < 1 else int(min_units)
    return min(size, max(1, fewest))


def _count_removed(sizes: list[int], ratio: float, min_units: float) -> int:
    """How many units a ratio removes of groups of one kind."""
    total = sum(sizes)
    removable = sum(size - fewest_units(min_units, size) for size in sizes)
    count = math.floor(ratio * total * (1 + 1e-12))  # 0.29 * 100 is 29 units, not 28.999...
    if count > removable:
        raise ConfigError(
            f"pruning_ratio {ratio} removes {count} of {total} units, but at least {min_units:g} of each of the "
            f"{len(sizes)} groups must stay: at most {_floor(removable / total)} is possible"
        )
    return count


def _floor(ratio: float) -> str:
    """Three digits of `ratio`, rounded down so that it is possible itself."""
    return f"{math.floor(1000 * ratio) / 1000:.3f}"
