"""Where units are once others were cut out of the model: the same units, at other places, under other numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from earlyworm.units.groups import Slice, UnitGroup, Units, named_tensors

Kept = Mapping[str, Tensor]
"""One boolean tensor [group size] per group name; True is kept."""


def translate(kept: Kept, groups: tuple[UnitGroup, ...], others: tuple[UnitGroup, ...]) -> dict[str, Tensor]:
    """What of other groups is kept, which lie at the same gates: every unit that has a gate which is open.

    Args:
        kept: What is kept of `groups`; the gates of the rest are closed.
        groups: Unit groups.
        others: Groups of the same model, some of them perhaps the same.

    Returns:
        bool [group size] per name of the other groups.
    """
    own = {id(group) for group in groups}
    closed: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    for group in groups:
        for piece in group.gates():
            closed[piece.tensor, piece.dim].append(piece.positions[~kept[group.name][piece.units]])
    found = {}
    for group in others:
        if id(group) in own:
            found[group.name] = kept[group.name].clone()
            continue
        stays = torch.zeros(group.size, dtype=torch.bool)
        for piece in group.gates():
            shut = _joined(closed.get((piece.tensor, piece.dim), ()))
            stays[piece.units[~torch.isin(piece.positions, shut)]] = True
        found[group.name] = stays
    return found


def removable_kept(units: Units, kept: Kept, left: Kept | None = None) -> dict[str, Tensor]:
    """Which units of every removable group are not cut out: those that have an open gate, and one if none has.

    Args:
        units: The units.
        kept: A mask over them.
        left: Those that were not cut out before; None: all. A mask keeps no others.

    Returns:
        bool [group size] per name of a removable group. Where a layer would vanish, the first unit of it that is left
        stays; what is masked of it is held at zero.
    """
    found = translate(kept, units.groups, units.removable)
    if empty := tuple(group for group in units.removable if not found[group.name].any()):
        there = None if left is None else translate(left, units.groups, empty)
        for group in empty:
            first = 0 if there is None else int(there[group.name].nonzero()[0])
            found[group.name][first] = True
    return found


def aliases(model: nn.Module) -> dict[str, str]:
    """The first name of every parameter and buffer, by each of its names."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named_tensors(model).items()}


def places_gone(units: Units, left: Kept, names: Mapping[str, str]) -> dict[tuple[str, int], Tensor]:
    """The positions that were cut out with all units but those that are left.

    Args:
        units: The units of the model as it was.
        left: Those that are left.
        names: What `aliases` says.

    Returns:
        int64 [k], ascending, per tensor, by the first of its names, and dimension.
    """
    stays = removable_kept(units, left)
    gone: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    for group in units.removable:
        for piece in group.slices:
            gone[_place(piece, names)].append(piece.positions[~stays[group.name][piece.units]])
    return {place: torch.unique(_joined(positions)) for place, positions in gone.items()}


def units_left(units: Units, left: Kept, names: Mapping[str, str]) -> Units:
    """The units that are left, as they are in the smaller model: renumbered, and at the positions that they have there.

    Args:
        units: The units of the model as it was.
        left: Those that are left.
        names: What `aliases` says.

    Returns:
        The same groups, of fewer units.
    """
    gone = places_gone(units, left, names)

    def smaller(group: UnitGroup, kept: Tensor) -> UnitGroup:
        number = kept.cumsum(0) - 1
        slices = []
        for piece in group.slices:
            stays = kept[piece.units]
            if stays.any():
                positions = piece.positions[stays]
                before = torch.searchsorted(gone.get(_place(piece, names), positions[:0]), positions)
                owners = number[piece.units[stays]]
                slices.append(replace(piece, positions=positions - before, units=owners))
        return replace(group, size=int(kept.sum()), slices=tuple(slices))

    groups = {id(group): smaller(group, left[group.name]) for group in units.groups}
    everything = tuple(groups.values())
    if units.removable is units.groups:
        return replace(units, groups=everything, removable=everything)
    stays = removable_kept(units, left)
    removable = tuple(groups.get(id(group)) or smaller(group, stays[group.name]) for group in units.removable)
    return replace(units, groups=everything, removable=removable)


def structure_left(
    structure: Mapping[str, tuple[int, ...]], units: Units, left: Kept, names: Mapping[str, str]
) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the smaller model that the model had before.

    Args:
        structure: The shapes before, by name.
        units: The units of the model as it was.
        left: Those that are left.
        names: What `aliases` says.
    """
    gone = places_gone(units, left, names)
    return {
        name: tuple(size - len(gone.get((names.get(name, name), dim), ())) for dim, size in enumerate(shape))
        for name, shape in structure.items()
    }


def _place(piece: Slice, names: Mapping[str, str]) -> tuple[str, int]:
    """The tensor and the dimension that a slice is of; what it says of numbers and arguments has one name alone."""
    return names.get(piece.tensor, piece.tensor), piece.dim


def _joined(positions: Iterable[Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.long), *positions])
