"""The first-order Taylor score: how much the loss would change if a unit were masked, seen over many steps."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from earlyworm.errors import SearchError
from earlyworm.masks.scores import mean_per_unit
from earlyworm.units.groups import Slice, UnitGroup, Units, named_tensors, tensor_of


def first_order(tensors: dict[str, Tensor], group: UnitGroup, held: Collection[int] | None = None) -> Tensor:
    """Mean |weight x gradient| over all that masking a unit zeroes (arXiv 1611.06440, 1906.10771).

    Args:
        tensors: Tensors of the model by qualified name, gradients in their `grad`; without one it counts as 0.
        group: A group of any kind.
        held: The tensors to look at, by `id`; the others count as 0. None: all.

    Returns:
        Scores, [group size]; for single weights of the shape of their block.
    """
    if group.entries is not None:
        weight = tensors[group.entries.tensor]
        block = group.entries.of(weight.detach())
        if weight.grad is None:
            return torch.zeros_like(block, dtype=torch.float32)
        return (block.float() * group.entries.of(weight.grad).float()).abs()

    def sums(piece: Slice) -> tuple[Tensor, int]:
        weight = tensor_of(piece, tensors)
        positions, numbers = weight.shape[piece.dim], weight.numel() // weight.shape[piece.dim]
        if weight.grad is None or (held is not None and id(weight) not in held):
            return torch.zeros(positions, dtype=torch.float32, device=weight.device), numbers
        change = (weight.detach().float() * weight.grad.float()).abs()
        return change.movedim(piece.dim, 0).reshape(positions, -1).sum(1), numbers

    return mean_per_unit(group, list(group.gates()), sums, "gate")


class TaylorScore:
    """Sums `first_order` over the optimizer steps between two checks; changes nothing about training.

    Args:
        model: The model that is trained.
        units: Its units; to be set anew where some were cut out, right after `take`.
    """

    def __init__(self, model: nn.Module, units: Units) -> None:
        self.model = model
        self.units = units
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def observe(self, held: Iterable[str], scale: Tensor | None = None, overflow: Tensor | None = None) -> None:
        """Add the gradients of one step.

        Args:
            held: Names of the gates that the stepping optimizer holds. What others hold is added when they step: by
                now its gradients may be truncated already, or not be unscaled yet.
            scale: What a gradient scaler has multiplied the gradients by and has not taken out yet.
            overflow: Above 0 if they have overflowed, so that the step is going to be skipped; then nothing is added.
        """
        tensors = named_tensors(self.model)
        here = {id(tensors[name]) for name in held}
        for group in self.units.groups:
            gates = [group.entries.tensor] if group.entries else [piece.tensor for piece in group.gates()]
            if any(id(tensors[name]) in here for name in gates):
                change = first_order(tensors, group, here)
                if scale is not None:
                    change = change / scale.to(change.device)
                if overflow is not None:
                    change = torch.where(overflow.to(change.device) > 0, 0.0, change)
                if (total := self._sums.get(group.name)) is not None:
                    change += total.to(change.device)
                self._sums[group.name] = change

    def take(self) -> dict[str, Tensor]:
        """The scores since the last call, per group name in the order of the groups; then start anew.

        Raises:
            SearchError: If a group has seen no gradient.
        """
        for group in self.units.groups:
            if group.name not in self._sums or not self._sums[group.name].any():
                raise SearchError(
                    f"no gradient of {group.name!r} was seen since the last check: the Taylor score needs one; are "
                    "its parameters frozen (leave it out with units.without), or is no loss computed from them?"
                )
        # Optimizers step in any order; the groups of a mask have that of the units.
        sums = {group.name: self._sums[group.name] for group in self.units.groups}
        self._sums = {}
        return sums

    def state_dict(self) -> dict[str, Tensor]:
        """The sums so far."""
        return {name: total.cpu().clone() for name, total in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state_dict`."""
        self._sums = {name: total.clone() for name, total in state.items()}
