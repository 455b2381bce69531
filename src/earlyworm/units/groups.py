"""What is kept or removed as one: units, and where in a model's tensors each of them lives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from earlyworm.errors import UnitsError

Role = Literal["scale", "shift", "filter", "bias", "statistic", "input", "width", "argument"]
Kind = Literal["channels", "heads", "neurons", "weights"]


@dataclass(frozen=True, eq=False)
class Slice:
    """Where the units of one group live in one dimension of one tensor.

    Position `positions[i]` along dimension `dim` belongs to unit `units[i]`. A unit may own several positions (a
    channel that was flattened), and other positions of the tensor may belong to other groups (a concatenation).

    Attributes:
        tensor: Qualified name of a parameter or buffer; for `width` of a number, for `argument` of an argument of a
            module's forward.
        dim: The dimension that is sliced.
        positions: int64 [k], positions along `dim`, ascending.
        units: int64 [k], the unit of each position, in [0, group size).
        role: What the tensor does for the unit: `scale` and `shift` of a normalisation, `filter` and `bias` of the
            layer that produces it, a running `statistic`, `input` of a layer that reads it, `width`, a number that
            counts it and that no tensor tells, or `argument`, what a module is called with for all units.
        gate: Whether masking the unit zeroes this slice. Zeroing all gates of a unit makes the network compute what
            it would compute without the unit.
    """

    tensor: str
    dim: int
    positions: Tensor
    units: Tensor
    role: Role
    gate: bool = False


def make_slice(tensor: str, dim: int, positions: list[int], units: list[int], role: Role, gate: bool = False) -> Slice:
    """A `Slice` from plain lists, brought into ascending order of positions."""
    order = torch.argsort(torch.tensor(positions))
    return Slice(tensor, dim, torch.tensor(positions)[order], torch.tensor(units)[order], role, gate)


@dataclass(frozen=True)
class Entries:
    """A block of one tensor, every entry of which is a unit, in row-major order.

    Attributes:
        tensor: Qualified name of a parameter.
        dim: The dimension along which the block is a part of the tensor.
        start: Its first position along `dim`.
        length: How many positions of `dim` it has.
    """

    tensor: str
    dim: int
    start: int
    length: int

    def of(self, tensor: Tensor) -> Tensor:
        """The block as a view of `tensor`."""
        return tensor.narrow(self.dim, self.start, self.length)


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """All units that live in one place, in order.

    Attributes:
        name: Names the place: the layers that produce the units.
        size: Number of units.
        slices: Everything that goes when a unit is removed.
        kind: What the units are: `channels`, `heads`, `neurons` or `weights`. Each kind has a pruning ratio of its own.
        entries: Where single weights live; such units are masked, but never removed, and have no slices.
    """

    name: str
    size: int
    slices: tuple[Slice, ...]
    kind: Kind = "channels"
    entries: Entries | None = None

    def gates(self) -> Iterator[Slice]:
        """The slices that masking a unit zeroes."""
        return (piece for piece in self.slices if piece.gate)

    def with_role(self, role: Role) -> Iterator[Slice]:
        """The slices that have `role`."""
        return (piece for piece in self.slices if piece.role == role)

    def positions_per_unit(self) -> int:
        """How many channels one unit is made of (more than one in grouped convolutions)."""
        reader = ("input", "width", "argument")
        widths = [len(piece.positions) for piece in self.slices if piece.dim == 0 and piece.role not in reader]
        return max(1, min(widths, default=self.size) // self.size)  # a norm behind a flattened map is wider


def weight_group(name: str, tensor: Tensor) -> UnitGroup:
    """The group of all single weights of a parameter, by its qualified name."""
    return UnitGroup(name, tensor.numel(), (), "weights", Entries(name, 0, 0, tensor.shape[0]))


@dataclass(frozen=True, eq=False)
class Units:
    """The units of one model.

    Attributes:
        groups: What is scored and masked.
        removable: What can be cut out: the same groups, but for single weights, which are only masked, and channels
            that are masked independently of the layers that they are coupled with; of these a unit can be cut out only
            where every gate of it is masked.
        skipped: Layers whose channels are left out, with the reason.
    """

    groups: tuple[UnitGroup, ...]
    removable: tuple[UnitGroup, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        counts: dict[str, int] = {}
        for group in self.groups:
            counts[group.kind] = counts.get(group.kind, 0) + group.size
        words = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        return f"<{words}; groups: {len(self.groups)}, left out: {len(self.skipped)}>"

    @property
    def sizes(self) -> dict[str, int]:
        """Number of units per group name."""
        return {group.name: group.size for group in self.groups}

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kind of units per group name."""
        return {group.name: group.kind for group in self.groups}

    def together_with(self, others: Units) -> Units:
        """These units and others of the same model, of other kinds.

        Raises:
            UnitsError: If a group has the same name in both.
        """
        if both := self.sizes.keys() & others.sizes.keys():
            raise UnitsError(f"a group is named {min(both)!r} in both: leave it out of one")
        groups = self.groups + others.groups
        coupled = self.removable is self.groups and others.removable is others.groups
        removable = groups if coupled else self.removable + others.removable
        return Units(groups, removable, {**self.skipped, **others.skipped})

    def without(self, reasons: Mapping[str, str]) -> Units:
        """These units without the groups that are named, which are listed as skipped with the reasons given.

        Raises:
            UnitsError: If a group is not among them, or none is left.
        """
        if unknown := [name for name in reasons if name not in self.sizes]:
            raise UnitsError(f"{unknown[0]!r} is none of the groups {', '.join(self.sizes)}")
        if len(reasons) == len(self.groups):
            raise UnitsError(f"all groups are left out: {'; '.join(f'{name}: {why}' for name, why in reasons.items())}")
        groups = tuple(group for group in self.groups if group.name not in reasons)
        left_out = {id(group) for group in self.groups} - {id(group) for group in groups}
        removable = groups
        if self.removable is not self.groups:
            removable = tuple(group for group in self.removable if id(group) not in left_out)
        return Units(groups, removable, {**self.skipped, **reasons})


class NamedTensors(dict[str, Tensor]):
    """Tensors by qualified name."""

    def __missing__(self, name: str) -> Tensor:
        raise UnitsError(f"the model has no tensor {name!r}: these units belong to another model")


def named_tensors(model: nn.Module) -> NamedTensors:
    """All parameters and buffers by qualified name; a tied parameter appears under every name it has."""
    return NamedTensors(
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    )


def tensor_of(piece: Slice, tensors: Mapping[str, Tensor]) -> Tensor:
    """The tensor that a slice is of.

    Raises:
        UnitsError: If it is absent or too short, so that the units are those of another model.
    """
    tensor = tensors.get(piece.tensor)
    if tensor is None or tensor.dim() <= piece.dim or tensor.shape[piece.dim] <= int(piece.positions.max()):
        found = "absent" if tensor is None else f"of shape {tuple(tensor.shape)}"
        raise UnitsError(f"{piece.tensor!r} is {found}: these units belong to another model")
    return tensor


def gate_masks(model: nn.Module, groups: tuple[UnitGroup, ...], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Spread a mask over units onto the tensors that gate them.

    Args:
        model: The model that the groups describe.
        groups: Unit groups.
        kept: One boolean tensor [group size] per group name; True is kept.

    Returns:
        Per tensor name a boolean mask on the tensor's device that broadcasts against it: True where it is kept.

    Raises:
        UnitsError: If the model lacks one of the tensors.
    """
    tensors = named_tensors(model)
    masks: dict[str, Tensor] = {}
    for group in groups:
        removed = ~kept[group.name]
        for piece in group.gates():
            tensor = tensor_of(piece, tensors)
            shape = [1] * tensor.dim()
            shape[piece.dim] = tensor.shape[piece.dim]
            mask = torch.ones(shape, dtype=torch.bool, device=tensor.device)
            gone = piece.positions[removed.to(piece.units.device)[piece.units]]
            mask.view(-1)[gone.to(tensor.device)] = False
            _close(masks, piece.tensor, mask)
        if group.entries is not None:
            tensor = tensors[group.entries.tensor]
            mask = torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)
            block = group.entries.of(mask)
            block.copy_(kept[group.name].view(block.shape))
            _close(masks, group.entries.tensor, mask)
    return masks


def _close(masks: dict[str, Tensor], name: str, mask: Tensor) -> None:
    """Let `mask` close gates of the tensor `name` too; its shape may differ from the one that is there."""
    masks[name] = masks[name] & mask if name in masks else mask
