"""The ticket: the mask at emergence and where it came from, saved with safetensors, applied to a model as a mask."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from earlyworm.errors import TicketError
from earlyworm.files import checksum, write_atomically
from earlyworm.inputs import check_loaded, unwrap
from earlyworm.masks.mask import Mask
from earlyworm.masks.ratios import Ratio
from earlyworm.units.groups import Entries, Slice, UnitGroup, Units, gate_masks, named_tensors
from earlyworm.units.holding import AppliedTicket
from earlyworm.units.narrow_attention import OWN_HEADS
from earlyworm.units.renumbering import aliases, structure_left, units_left
from earlyworm.units.surgery import mask_units_

FORMAT = "earlyworm.ticket"  # names the file format, not a module
FORMAT_VERSION = 2


@dataclass(frozen=True, eq=False)
class Ticket:
    """The mask at emergence plus where it came from.

    A ticket carries the places of its units in the model's tensors, so applying it or compacting by it traces nothing.

    Attributes:
        mask: Which units are kept.
        units: The units of the model that the mask is over.
        scores: float32 [group size] per group name, the scores that the mask was made from; single weights have none.
        structure: Shape per tensor name of the model, its fingerprint.
        method: How it was searched for, in words.
        pruning_ratio: The fraction of units that was asked to be removed, or one per kind of units.
        step: Optimizer steps before the mask was taken.
        emerged: Whether it emerged, or was drawn by force or without a search.
        distances: Distance of the mask to each older one in the window, oldest first.
        versions: Versions of the libraries at work.
        left: The units that the model still had when the ticket was drawn, where others were cut out while it was
            searched (`TicketSearch(shrink=True)`); None: it had all of them.
    """

    mask: Mask
    units: Units
    scores: dict[str, Tensor]
    structure: dict[str, tuple[int, ...]]
    method: str
    pruning_ratio: Ratio
    step: int
    emerged: bool
    distances: tuple[float, ...]
    versions: dict[str, str] = field(default_factory=dict)
    left: Mask | None = None

    def fitted(self, model: nn.Module) -> Ticket:
        """This ticket for `model`: as it is, or over the units that are left where it was drawn, if no others are.

        Raises:
            TicketError: If the model has not the structure that the ticket is for; the message names the first
                difference.
        """
        # Buffers that are never saved, such as caches whose size follows the inputs, say nothing unless they are cut.
        sliced = {piece.tensor for group in (*self.units.groups, *self.units.removable) for piece in group.slices}
        unsaved = _unsaved(model) - sliced
        found = {name: shape for name, shape in fingerprint(model).items() if name not in unsaved}
        structure = {name: shape for name, shape in self.structure.items() if name not in unsaved}
        if self.left is not None and found != structure:
            names, left = aliases(model), self.left.kept
            if _comparable(found) == _comparable(structure_left(structure, self.units, left, names)):
                return replace(
                    self,
                    mask=self.mask.among(self.left),
                    units=units_left(self.units, left, names),
                    scores={name: score[left[name]] for name, score in self.scores.items()},
                    structure=found,
                    left=None,
                )
        for name, shape in structure.items():
            if name not in found:
                raise TicketError(f"the ticket is for another model: this one has no tensor {name!r}")
            if found[name] != shape:
                raise TicketError(
                    f"the ticket is for another model: {name!r} is {list(shape)} in the ticket and "
                    f"{list(found[name])} in this one"
                )
        for name in found:
            if name not in structure:
                raise TicketError(f"the ticket is for another model: it knows no tensor {name!r}")
        return self

    def check_compacted(self, small: nn.Module) -> None:
        """Make sure that a model is as `compact` leaves one by this ticket, as far as shapes tell.

        Raises:
            TicketError: If it is not; the message names the first difference.
        """
        wanted = _comparable(structure_left(self.structure, self.units, self.mask.kept, aliases(small)))
        found, unsaved = fingerprint(small), _unsaved(small)
        for name, shape in wanted.items():
            if name not in unsaved and found.get(name) != shape:
                there = f"a {name!r} of {list(found[name])}" if name in found else f"no {name!r}"
                raise TicketError(
                    f"this {type(small).__name__} was not compacted by this ticket: it has {there}, but that leaves "
                    f"{list(shape)}; after compact(..., round_to=N) the ticket is round_ticket(ticket, N)"
                )

    def apply(self, model: nn.Module, *optimizers: torch.optim.Optimizer) -> AppliedTicket:
        """Mask `model` in place: every gate of a removed unit is zero, and stays zero while training goes on.

        Zeros are restored before every forward pass and in every `state_dict`, and the gradients of masked entries
        are zeroed. An optimizer that already carries momentum could still move them between its step and the next
        forward pass; give it here, and they are restored right after its step too.

        Args:
            model: A model that the ticket fits, as for `compact`.
            optimizers: Optimizers after whose steps the zeros are restored.

        Returns:
            A handle; its `remove()` lets the masked entries move again.

        Raises:
            TicketError: If the ticket is for another model.
            UnitsError: If the model's weights are not there.
        """
        model = unwrap(model)
        check_loaded(model)
        fitted = self.fitted(model)
        mask_units_(model, fitted.units.groups, fitted.mask.kept)
        return AppliedTicket(model, gate_masks(model, fitted.units.groups, fitted.mask.kept), optimizers)

    def __repr__(self) -> str:
        return f"<ticket that keeps {self.mask.units_kept} of {self.mask.units} units>"

    def describe(self) -> str:
        """What the ticket is, in words."""
        how = "emerged" if self.emerged else "was drawn without having emerged"
        distances = ", ".join(f"{distance:.3f}" for distance in self.distances) or "none"
        kept = {name: f"{int(mask.sum())} of {mask.numel()}" for name, mask in self.mask.kept.items()}
        kinds = " and ".join(dict.fromkeys(self.units.kinds.values()))
        ratio = self.pruning_ratio
        asked = ", ".join(f"{n} {r:g}" for n, r in ratio.items()) if isinstance(ratio, Mapping) else f"{ratio:g}"
        width = max(len(name) for name in kept)
        return "\n".join(
            [
                f"A ticket that {how} after {self.step} optimizer steps of {self.method}.",
                f"It keeps {self.mask.units_kept} of {self.mask.units} {kinds} (pruning ratio {asked}); "
                f"mask distances in the window: {distances}.",
                *(f"  {name:{width}}  {numbers}" for name, numbers in kept.items()),
                *(f"  {name} is left out: {reason}" for name, reason in self.units.skipped.items()),
                "Made with " + ", ".join(f"{name} {number}" for name, number in self.versions.items()) + ".",
            ]
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ticket as one safetensors file, atomically."""
        write_atomically(Path(path), self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of the file that `save` writes."""
        tensors: dict[str, Tensor] = {}
        groups = [_pack_group(group, f"group.{i}", tensors) for i, group in enumerate(self.units.groups)]
        places = {id(group): i for i, group in enumerate(self.units.groups)}
        removable = None
        if self.units.removable is not self.units.groups:  # those that are among the groups are named by their place
            removable = [
                places[id(group)] if id(group) in places else _pack_group(group, f"removable.{i}", tensors)
                for i, group in enumerate(self.units.removable)
            ]
        tensors["mask"] = self.mask.bits.clone()
        if self.left is not None:
            tensors["left"] = self.left.bits.clone()
        for i, group in enumerate(self.units.groups):
            if group.name in self.scores:
                score = self.scores[group.name].detach()
                tensors[f"score.{i}"] = score.to("cpu", torch.float32, copy=True).contiguous()
        described = {
            "groups": groups,
            "removable": removable,
            "skipped": self.units.skipped,
            "structure": self.structure,
            "method": self.method,
            "pruning_ratio": self.pruning_ratio,
            "step": self.step,
            "emerged": self.emerged,
            "distances": self.distances,
            "versions": self.versions,
        }
        text = json.dumps(described)
        envelope = {"version": FORMAT_VERSION, "sha256": checksum(text, tensors), "ticket": text}
        return save(tensors, {FORMAT: json.dumps(envelope)})  # one entry: safetensors writes several in random order

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a ticket that `save` wrote.

        Raises:
            TicketError: If the file is missing, damaged, or not a ticket that this version can read.
        """
        path = Path(path)
        if not path.is_file():
            raise TicketError(f"there is no ticket at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except (SafetensorError, OSError) as error:
            raise TicketError(f"{path} is damaged or not a ticket ({error}): draw it again") from error
        if FORMAT not in metadata:
            raise TicketError(f"{path} is a safetensors file, but not a ticket")
        try:
            envelope = json.loads(metadata[FORMAT])
            if envelope["version"] != FORMAT_VERSION:
                raise TicketError(
                    f"{path} has format version {envelope['version']}, but this version of earlyworm reads "
                    f"{FORMAT_VERSION}: draw it again"
                )
            text = str(envelope["ticket"])
            if envelope["sha256"] != checksum(text, tensors):
                raise ValueError("the checksum is wrong")
            return cls._from_parts(json.loads(text), tensors)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise TicketError(f"{path} is damaged ({error!r}): draw it again") from error

    @classmethod
    def _from_parts(cls, described: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        groups = tuple(_unpack_group(group, tensors) for group in described["groups"])
        removable = groups
        if described["removable"] is not None:
            removable = tuple(
                groups[group] if isinstance(group, int) else _unpack_group(group, tensors)
                for group in described["removable"]
            )
        units = Units(groups, removable, described["skipped"])
        scores = {group.name: tensors[f"score.{i}"] for i, group in enumerate(groups) if f"score.{i}" in tensors}
        return cls(
            mask=Mask(tensors["mask"], units.sizes, units.kinds),
            units=units,
            scores=scores,
            structure={name: tuple(shape) for name, shape in described["structure"].items()},
            method=described["method"],
            pruning_ratio=described["pruning_ratio"],
            step=described["step"],
            emerged=described["emerged"],
            distances=tuple(described["distances"]),
            versions=described["versions"],
            left=Mask(tensors["left"], units.sizes, units.kinds) if "left" in tensors else None,
        )

    def with_mask(self, mask: Mask) -> Ticket:
        """The same ticket with another mask over the same units."""
        return replace(self, mask=mask)


def fingerprint(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter and buffer by name."""
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}


def _unsaved(model: nn.Module) -> set[str]:
    """The names of all buffers that are not in the state dict, also of those that are not there yet."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name in module._non_persistent_buffers_set
    }


def _comparable(structure: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """A structure without what attention has only once it has lost heads."""
    return {name: shape for name, shape in structure.items() if name.rpartition(".")[2] != OWN_HEADS}


def library_versions() -> dict[str, str]:
    """The versions of the libraries that a ticket depends on."""
    return {name: version(name) for name in ("earlyworm", "torch", "safetensors")}


def _pack_group(group: UnitGroup, key: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A group as JSON; index tensors that are not plain ranges go to `tensors`."""
    slices = []
    for i, piece in enumerate(group.slices):
        packed: dict[str, Any] = {name: value for name, value in vars(piece).items() if not isinstance(value, Tensor)}
        for name, index in (("positions", piece.positions), ("units", piece.units)):
            start, count = int(index[0]), index.numel()
            if torch.equal(index, torch.arange(start, start + count)):
                packed[name] = [start, count]
            else:
                packed[name] = f"{key}.{i}.{name}"
                tensors[packed[name]] = index.to(torch.int32)
        slices.append(packed)
    entries = vars(group.entries) if group.entries else None
    return {"name": group.name, "size": group.size, "slices": slices, "kind": group.kind, "entries": entries}


def _unpack_group(packed: dict[str, Any], tensors: dict[str, Tensor]) -> UnitGroup:
    def index(value: str | list[int]) -> Tensor:
        if isinstance(value, str):
            return tensors[value].long()
        start, count = value
        return torch.arange(start, start + count)

    slices = tuple(
        Slice(**{**piece, "positions": index(piece["positions"]), "units": index(piece["units"])})
        for piece in packed["slices"]
    )
    entries = Entries(**packed["entries"]) if packed["entries"] else None
    return UnitGroup(packed["name"], packed["size"], slices, packed["kind"], entries)
