"""From a model and a ticket to a smaller model that computes what the masked one computes."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor, nn

from earlyworm.errors import TicketError, first_line
from earlyworm.inputs import ExampleInputs, agree, check_loaded, fitting, probe, unwrap
from earlyworm.masks.mask import Mask
from earlyworm.tickets.ticket import Ticket
from earlyworm.units.groups import UnitGroup, gate_masks
from earlyworm.units.holding import AppliedTicket, HoldAtZero
from earlyworm.units.renumbering import removable_kept, translate
from earlyworm.units.surgery import comparable_copies, copy_model, mask_units_, remove_units_


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
    them agree; the rest of the mask is held at zero in the smaller model, and so is what is held at zero in `model`.

    Args:
        model: A model of the structure that the ticket was drawn from, or the one that got smaller while it was
            searched (`shrink=True`); it is left as it is.
        ticket: The ticket.
        example_inputs: If given, the smaller model is run on them and compared with the masked one.
        round_to: Keep the best removed units until every width is a multiple of this (see `round_ticket`).

    Returns:
        A new model.

    Raises:
        TicketError: If the ticket is for another model, or the smaller one computes something else.
        UnitsError: If the model cannot be copied, or its weights are not there.
    """
    model = unwrap(model)
    check_loaded(model)
    if not isinstance(ticket, Ticket):
        raise TicketError(f"compact takes a ticket, not a {type(ticket).__name__}: search.draw() gives one")
    if round_to != 1:
        ticket = round_ticket(ticket, round_to)
    ticket = ticket.fitted(model)
    small = copy_model(model)
    _cut_(small, ticket, (), HoldAtZero.masks_in(model))
    if example_inputs is not None:
        _compare(model, small, ticket, example_inputs)
    return small


def compact_(model: nn.Module, ticket: Ticket, optimizers: Sequence[torch.optim.Optimizer] = ()) -> None:
    """Cut a model down to its ticket in place, where `compact` would return a new one.

    Args:
        model: A model that the ticket fits.
        ticket: The ticket.
        optimizers: Their state is cut along; see `remove_units_`.

    Raises:
        TicketError: If the ticket is for another model; nothing has changed then.
    """
    _cut_(model, ticket.fitted(model), optimizers, {})


def _cut_(
    model: nn.Module, ticket: Ticket, optimizers: Sequence[torch.optim.Optimizer], held: dict[str, Tensor]
) -> None:
    """Cut a model down to a ticket that fits it, in place; `held`: masks of what is to be held at zero besides."""
    units, mask = ticket.units, ticket.mask.kept
    gates = gate_masks(model, units.groups, mask)
    rest = gates | {name: some & gates.get(name, some).to(some.device) for name, some in held.items()}
    kept = removable_kept(units, mask, None if ticket.left is None else ticket.left.kept)
    mask_units_(model, units.groups, mask, optimizers)
    remove_units_(model, units.removable, kept, optimizers)
    _hold_the_rest(model, units.removable, kept, rest)


def round_ticket(ticket: Ticket, multiple: int) -> Ticket:
    """Keep the best removed units of every group until its width is a multiple of `multiple`, or whole.

    Hardware multiplies widths of 8, 16 or 64 faster. The mask of the new ticket says what is really removed. What was
    cut out while the ticket was searched (`shrink=True`) cannot be kept any more.

    Args:
        ticket: The ticket.
        multiple: Of how many channels, at least 1.

    Returns:
        A new ticket.

    Raises:
        TicketError: If `multiple` is no whole number or below 1, or too few units are left.
    """
    if not isinstance(multiple, Integral) or multiple < 1:
        raise TicketError(f"round_to is {multiple!r}, but must be a whole number, at least 1")
    units, left = ticket.units, None if ticket.left is None else ticket.left.kept
    kept = {name: mask.clone() for name, mask in ticket.mask.kept.items()}
    scores = _spread(units.groups, ticket.scores)
    stays = removable_kept(units, kept, left)
    there = {} if left is None else translate(left, units.groups, units.removable)
    revived: dict[str, list[Tensor]] = {}
    for group in units.removable:
        width, missing = int(stays[group.name].sum()), 0
        while (width + missing) * group.positions_per_unit() % multiple and width + missing < group.size:
            missing += 1
        spare = ~stays[group.name] & there.get(group.name, torch.ones(group.size, dtype=torch.bool))
        if missing > spare.sum():
            raise TicketError(
                f"round_to is {multiple}, for which {group.name!r} needs {missing} units more, and {spare.sum()} are "
                "left: the others were cut out while the search went on; leave round_to or shrink=True out"
            )
        best = _unit_scores(group, scores).masked_fill(~spare, -1).argsort(descending=True, stable=True)[:missing]
        for piece in group.gates():
            revived.setdefault(piece.tensor, []).append(piece.positions[torch.isin(piece.units, best)])
    for group in ticket.units.groups:
        for piece in group.gates():
            for positions in revived.get(piece.tensor, []):
                kept[group.name][piece.units[torch.isin(piece.positions, positions)]] = True
    return ticket.with_mask(Mask.from_groups(kept, ticket.mask.kinds))


def _spread(groups: tuple[UnitGroup, ...], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """One number per unit, spread to the positions of the tensors that gate it."""
    spread: dict[str, Tensor] = {}
    for group in groups:
        for piece in group.gates():
            length = 1 + int(piece.positions.max())
            old = spread.get(piece.tensor, torch.zeros(0, dtype=torch.float32))
            new = torch.zeros(max(length, old.numel()), dtype=torch.float32)
            new[: old.numel()] = old
            new[piece.positions] = values[group.name].cpu().float()[piece.units]
            spread[piece.tensor] = new
    return spread


def _unit_scores(group: UnitGroup, scores: dict[str, Tensor]) -> Tensor:
    """The mean score of a removable unit over the gates that were scored, [group size]."""
    total, count = (torch.zeros(group.size, dtype=torch.float32) for _ in range(2))
    for piece in group.gates():
        if piece.tensor in scores:
            total.index_add_(0, piece.units, scores[piece.tensor][piece.positions])
            count.index_add_(0, piece.units, torch.ones(piece.units.numel(), dtype=torch.float32))
    return total / count.clamp(min=1)


def _hold_the_rest(
    small: nn.Module, removable: tuple[UnitGroup, ...], kept: dict[str, Tensor], gates: dict[str, Tensor]
) -> None:
    """Hold at zero what is masked but was not cut out: single weights, and under independent coupling channels."""
    stays = {
        (name, dim): torch.ones(size, dtype=torch.bool)
        for name, mask in gates.items()
        for dim, size in enumerate(mask.shape)
        if size > 1  # a mask that broadcasts along a dimension needs no cut there
    }
    for group in removable:
        for piece in group.slices:
            if (left := stays.get((piece.tensor, piece.dim))) is not None:
                left[piece.positions[~kept[group.name][piece.units]]] = False
    rest = dict(gates)
    for (name, dim), left in stays.items():
        rest[name] = rest[name].index_select(dim, left.nonzero().flatten().to(rest[name].device))
    if rest := {name: mask for name, mask in rest.items() if not mask.all()}:
        AppliedTicket(small, rest)


def _compare(model: nn.Module, small: nn.Module, ticket: Ticket, example_inputs: ExampleInputs) -> None:
    """Make sure that the smaller model computes what the masked one computes."""
    (masked, trial), inputs = comparable_copies(fitting(example_inputs, model), model, small)
    mask_units_(masked, ticket.units.groups, ticket.mask.kept)
    try:
        expected = probe(masked, inputs)
    except Exception as error:
        raise TicketError(f"{type(model).__name__} cannot be run on the example inputs: {error}") from error
    try:
        outputs = [*zip(expected, probe(trial, inputs), strict=True)]
    except Exception as error:
        raise TicketError(
            f"the compacted {type(model).__name__} cannot be run: {first_line(error)}; its forward reads a width or a "
            "number of heads that is not among the units (of a block that you described: name it in counts)"
        ) from error
    if not all(agree(wanted, found) for wanted, found in outputs):
        raise TicketError(
            f"the compacted {type(model).__name__} does not compute what the masked one computes: its forward is not "
            "the one that the ticket was drawn from, or does something else on these inputs than on those that its "
            "units were found on"
        )
