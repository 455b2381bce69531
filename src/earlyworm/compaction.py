"""From a model and a ticket to a smaller model that computes what the masked one computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from earlyworm.errors import TicketError
from earlyworm.inputs import ExampleInputs, agree, probe, unwrap
from earlyworm.masks import Mask
from earlyworm.surgery import (
    AppliedTicket,
    comparable_copies,
    copy_model,
    mask_units_,
    remove_units_,
)
from earlyworm.ticket import Ticket
from earlyworm.units import UnitGroup, gate_masks, named_tensors


def compact(
    model: nn.Module,
    ticket: Ticket,
    *,
    example_inputs: ExampleInputs | None = None,
    round_to: int = 1,
) -> nn.Module:
    """Build the physically smaller model of a ticket.

    The result computes what `model` computes under `ticket.apply`, in eval mode and in train mode, running statistics
    included. Parameters keep `requires_grad`, dtype, device, memory format and ties; modules keep train or eval mode.

    Where channels are masked independently of the layers they are coupled with, a channel is cut out only if all of
    them agree; the rest of the mask is held at zero in the smaller model.

    Args:
        model: A model of the structure that the ticket was drawn from; it is left as it is.
        ticket: The ticket.
        example_inputs: If given, the smaller model is run on them and compared with the masked one.
        round_to: Keep the best removed units until every width is a multiple of this (see `round_ticket`).

    Returns:
        A new model.

    Raises:
        TicketError: If the ticket is for another model, or the smaller one computes something else.
    """
    model = unwrap(model)
    if not isinstance(ticket, Ticket):
        raise TicketError(f"compact takes a ticket, not a {type(ticket).__name__}: search.draw() gives one")
    ticket.check_fits(model)
    if round_to != 1:
        ticket = round_ticket(ticket, round_to)
    small = copy_model(model)
    mask_units_(small, ticket.units.groups, ticket.mask.kept)

    gates = gate_masks(small, ticket.units.groups, ticket.mask.kept)
    kept = {group.name: _stays(group, gates) for group in ticket.units.removable}
    remove_units_(small, ticket.units.removable, kept)
    _hold_the_rest(small, ticket.units.removable, kept, gates)
    if example_inputs is not None:
        _compare(model, small, ticket, example_inputs)
    return small


def round_ticket(ticket: Ticket, multiple: int) -> Ticket:
    """Keep the best removed units of every group until its width is a multiple of `multiple`, or whole.

    Hardware multiplies widths of 8, 16 or 64 faster. The mask of the new ticket says what is really removed.

    Args:
        ticket: The ticket.
        multiple: Of how many channels, at least 1.

    Returns:
        A new ticket.

    Raises:
        TicketError: If `multiple` is below 1.
    """
    if multiple < 1:
        raise TicketError(f"round_to is {multiple}, but must be at least 1")
    kept = {name: mask.clone() for name, mask in ticket.mask.kept.items()}
    gates = _spread(ticket.units.groups, {name: mask.float() for name, mask in kept.items()})
    scores = _spread(ticket.units.groups, ticket.scores)
    revived: dict[str, list[Tensor]] = {}
    for group in ticket.units.removable:
        removed = ~_stays(group, {name: mask > 0 for name, mask in gates.items()})
        width, missing = int((~removed).sum()), 0
        while (width + missing) * group.positions_per_unit() % multiple and width + missing < group.size:
            missing += 1
        order = _unit_scores(group, scores).masked_fill(~removed, -1).argsort(descending=True, stable=True)
        best = order[:missing]
        for piece in group.gates():
            revived.setdefault(piece.tensor, []).append(piece.positions[torch.isin(piece.units, best)])
    for group in ticket.units.groups:
        for piece in group.gates():
            for positions in revived.get(piece.tensor, []):
                kept[group.name][piece.units[torch.isin(piece.positions, positions)]] = True
    return ticket.with_mask(Mask.from_groups(kept))


def _stays(group: UnitGroup, gates: dict[str, Tensor]) -> Tensor:
    """Which units of a removable group cannot be cut out, bool [group size]: those that have an open gate.

    Where independent masks close all gates of a group, its first unit stays: no layer vanishes.
    """
    stays = torch.zeros(group.size, dtype=torch.bool)
    for piece in group.gates():
        gate = gates.get(piece.tensor)
        if gate is None:
            return torch.ones(group.size, dtype=torch.bool)
        stays[piece.units[gate.flatten().cpu()[piece.positions]]] = True
    if not stays.any():
        stays[0] = True
    return stays


def _spread(groups: tuple[UnitGroup, ...], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """One number per unit, spread to the positions of the tensors that gate it."""
    spread: dict[str, Tensor] = {}
    for group in groups:
        for piece in group.gates():
            length = 1 + int(piece.positions.max())
            old = spread.get(piece.tensor, torch.zeros(0))
            new = torch.zeros(max(length, old.numel()))
            new[: old.numel()] = old
            new[piece.positions] = values[group.name].cpu().float()[piece.units]
            spread[piece.tensor] = new
    return spread


def _unit_scores(group: UnitGroup, scores: dict[str, Tensor]) -> Tensor:
    """The mean score of a removable unit over the gates that were scored, [group size]."""
    total, count = torch.zeros(group.size), torch.zeros(group.size)
    for piece in group.gates():
        if piece.tensor in scores:
            total.index_add_(0, piece.units, scores[piece.tensor][piece.positions])
            count.index_add_(0, piece.units, torch.ones(piece.units.numel()))
    return total / count.clamp(min=1)


def _hold_the_rest(
    small: nn.Module, removable: tuple[UnitGroup, ...], kept: dict[str, Tensor], gates: dict[str, Tensor]
) -> None:
    """Hold at zero what is masked but could not be cut out (only under independent coupling)."""
    stays = {name: torch.ones(mask.numel(), dtype=torch.bool) for name, mask in gates.items()}
    for group in removable:
        for piece in group.gates():
            if piece.tensor in stays:
                stays[piece.tensor][piece.positions[~kept[group.name][piece.units]]] = False
    tensors = named_tensors(small)
    rest = {}
    for name, mask in gates.items():
        left = mask.flatten().cpu()[stays[name]]
        if not left.all():
            shape = [-1 if size > 1 else 1 for size in mask.shape]
            rest[name] = left.to(tensors[name].device).reshape(shape)
    if rest:
        AppliedTicket(small, rest)


def _compare(model: nn.Module, small: nn.Module, ticket: Ticket, example_inputs: ExampleInputs) -> None:
    """Make sure that the smaller model computes what the masked one computes."""
    (masked, trial), inputs = comparable_copies(example_inputs, model, small)
    mask_units_(masked, ticket.units.groups, ticket.mask.kept)
    try:
        outputs = [*zip(probe(masked, inputs), probe(trial, inputs), strict=True)]
    except Exception as error:
        raise TicketError(f"{type(model).__name__} cannot be run on the example inputs: {error}") from error
    if not all(agree(expected, actual) for expected, actual in outputs):
        raise TicketError(
            f"the compacted {type(model).__name__} does not compute what the masked one computes: its forward is not "
            "the one that the ticket was drawn from"
        )
