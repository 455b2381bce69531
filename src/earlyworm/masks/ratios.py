"""Pruning ratios: how many units of every kind a mask removes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

from earlyworm.errors import ConfigError

Ratio = float | Mapping[str, float]
"""The fraction of units to remove, in [0, 1): one number for every kind of units, or one per kind."""

USUAL_PART = 0.2
USUAL_FLOOR = 0.05
"""How much stays of every group where `min_units` is None: `USUAL_PART` of the share of units that stay over all groups
and `USUAL_FLOOR` of the group at least, but of the latter at most half of that share.

A global mask may leave a layer with next to nothing, from which retraining does not recover, least of all that of a
pretrained network; see the comparisons min_units and min_units_transfer in docs/results.md.
"""


def removed_per_kind(
    sizes: Mapping[str, int], pruning_ratio: Ratio, *, min_units: float | None, kinds: Mapping[str, str]
) -> dict[str, int]:
    """How many units of every kind a mask removes.

    Args:
        sizes: Number of units per group name.
        pruning_ratio: Fraction of the units to remove, in [0, 1), or one such number per kind.
        min_units: How many units of every group stay: a number, at least 1, or a fraction of the group, in (0, 1);
            None as in `fewest_per_group`.
        kinds: The kind of units per group name; groups that are not named are of one kind.

    Returns:
        The number per kind, in the order in which kinds first appear.

    Raises:
        ConfigError: If a ratio or `min_units` is impossible.
    """
    fewest = fewest_per_group(sizes, pruning_ratio, min_units=min_units, kinds=kinds)
    names = _names_per_kind(sizes, kinds)
    ratios = ratio_per_kind(pruning_ratio, [*names])
    removed = {}
    for kind, some in names.items():
        total, least = sum(sizes[name] for name in some), sum(fewest[name] for name in some)
        removed[kind] = _count_removed(ratios[kind], total)
        if removed[kind] > total - least:
            part = "1" if min_units is None else f"{min_units:g}"
            raise ConfigError(
                f"pruning_ratio {ratios[kind]} removes {removed[kind]} of {total} units, but at least {part} of each "
                f"of the {len(some)} groups must stay: at most {_floor((total - least) / total)} is possible"
            )
    return removed


def check_ratio(
    sizes: Mapping[str, int], pruning_ratio: Ratio, *, min_units: float | None, kinds: Mapping[str, str]
) -> None:
    """Make sure that a ratio can be had, and removes a unit of every kind unless it is 0.

    Args: as for `removed_per_kind`.

    Raises:
        ConfigError: If not.
    """
    removed = removed_per_kind(sizes, pruning_ratio, min_units=min_units, kinds=kinds)
    for kind, ratio in ratio_per_kind(pruning_ratio, [*removed]).items():
        if ratio > 0 and not removed[kind]:
            total = sum(size for name, size in sizes.items() if kinds.get(name, "units") == kind)
            raise ConfigError(
                f"pruning_ratio {ratio} removes none of {total} {kind}: {math.ceil(1000 / total) / 1000:.3f} removes "
                "one, and 0 says that none is to go"
            )


def fewest_per_group(
    sizes: Mapping[str, int], pruning_ratio: Ratio, *, min_units: float | None, kinds: Mapping[str, str]
) -> dict[str, int]:
    """How many units of every group stay, whatever their scores, at least 1.

    Args:
        sizes: As for `removed_per_kind`.
        pruning_ratio: Likewise.
        min_units: A number, at least 1, or a fraction of the group, in (0, 1), which is rounded up; None: a fifth of
            the share that stays of all units of the kind, at least a twentieth, or half of that share if it is less;
            fewer where the ratio is not possible otherwise; 1 where they are single weights.
        kinds: As for `removed_per_kind`.

    Raises:
        ConfigError: If a ratio or `min_units` is impossible.
    """
    if min_units is not None:
        check_min_units(min_units)
        return {name: fewest_units(min_units, size) for name, size in sizes.items()}
    names = _names_per_kind(sizes, kinds)
    fewest: dict[str, int] = {}
    for kind, ratio in ratio_per_kind(pruning_ratio, [*names]).items():
        total, share = sum(sizes[name] for name in names[kind]), 1 - ratio
        part = max(USUAL_PART * share, min(USUAL_FLOOR, share / 2))
        found = {name: 1 if kind == "weights" else fewest_units(part, sizes[name]) for name in names[kind]}
        while sum(found.values()) > max(len(found), total - _count_removed(ratio, total)):
            part /= 2  # many groups of a unit or two, which are rounded up
            found = {name: fewest_units(part, sizes[name]) for name in found}
        fewest |= found
    return {name: fewest[name] for name in sizes}


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
        if not isinstance(value, Real) or not 0 <= value < 1:
            raise ConfigError(f"pruning_ratio is {value!r}, but must be in [0, 1); it is the fraction removed")
    return ratios


def plain_ratio(ratio: Ratio) -> Ratio:
    """The same ratio, or ratios per kind, in Python's own numbers, as they are stored; what is none stays as it is."""
    if isinstance(ratio, Mapping):
        return {kind: float(value) if isinstance(value, Real) else value for kind, value in ratio.items()}
    return float(ratio) if isinstance(ratio, Real) else ratio


def check_min_units(min_units: float) -> None:
    """Make sure that at least one unit of every group stays.

    Raises:
        ConfigError: If it is neither a number of units nor a fraction.
    """
    if not (0 < min_units < 1 or (1 <= min_units < math.inf and min_units == int(min_units))):
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


def _names_per_kind(sizes: Mapping[str, int], kinds: Mapping[str, str]) -> dict[str, list[str]]:
    """The groups of every kind, in the order in which kinds first appear."""
    names: dict[str, list[str]] = {}
    for name in sizes:
        names.setdefault(kinds.get(name, "units"), []).append(name)
    return names


def _count_removed(ratio: float, total: int) -> int:
    """How many of so many units a ratio removes."""
    return math.floor(ratio * total * (1 + 1e-12))  # 0.29 * 100 is 29 units, not 28.999...


def _floor(ratio: float) -> str:
    """Three digits of `ratio`, rounded down so that it is possible itself."""
    return f"{math.floor(1000 * ratio) / 1000:.3f}"
