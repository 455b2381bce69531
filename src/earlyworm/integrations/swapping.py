"""Put the smaller model in the place of the one that is being trained, so that nobody holds anything stale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from earlyworm.errors import SearchError
from earlyworm.inputs import unwrap
from earlyworm.tickets.compaction import compact_
from earlyworm.tickets.ticket import Ticket
from earlyworm.units.surgery import key_of_another_shape


def compact_in_place(
    model: nn.Module,
    ticket: Ticket,
    optimizers: Sequence[torch.optim.Optimizer] = (),
    wrapped: nn.Module | None = None,
) -> None:
    """Make `model` the smaller one of its ticket while a loop trains it.

    Every module, parameter, hook, optimizer, parameter group and learning-rate schedule stays the object that it was.
    An optimizer's state is cut as its parameters are, so that momentum and step counts go on. State that is not shaped
    like its parameter (Adafactor, LBFGS, 8-bit Adam) starts afresh.

    Args:
        model: The model, unwrapped.
        ticket: Its ticket.
        optimizers: The torch optimizers that train it; parameters of other models in them are left alone.
        wrapped: What the loop calls, if that is something around the model; the reducer of `DistributedDataParallel`
            is made anew, since it would go on waiting for gradients of the old shapes.

    Raises:
        TicketError: If the ticket is for another model; then nothing has changed.
        SearchError: If `wrapped` cannot be made anew; then nothing has changed.
    """
    wrapped = model if wrapped is None else wrapped
    check_wrapper(wrapped, model)
    ticket.fitted(model)
    for optimizer in optimizers:
        own = [parameter for parameter in model.parameters() if parameter in optimizer.state]
        if isinstance(optimizer, torch.optim.LBFGS):  # which keeps everything with the first of its parameters
            optimizer.state.clear()
            optimizer._numel_cache = None
        elif any(key_of_another_shape(optimizer.state[parameter], parameter) for parameter in own):
            for parameter in own:
                del optimizer.state[parameter]
    compact_(model, ticket, optimizers)
    if (parallel := parallel_in(wrapped)) is not None:
        state = parallel.__getstate__()  # type: ignore[no-untyped-call]  # torch's own
        del parallel.reducer, parallel.logger  # the old one lets go of its parameters before there is a new one
        parallel.__setstate__(state)  # type: ignore[no-untyped-call]  # as after unpickling


def check_wrapper(wrapped: nn.Module, model: nn.Module) -> None:
    """Make sure that what is around the model will see that it gets smaller.

    Args:
        wrapped: What the loop calls: the model, or something around it.
        model: The model, unwrapped, or a part of it.

    Raises:
        SearchError: If it will not.
    """
    if not any(module is model for module in unwrap(wrapped).modules()):
        raise SearchError(
            f"what is trained is not the {type(model).__name__} itself, but a copy (as under regional compilation): "
            "leave that out, or give on_emergence='stop' and train the smaller model in a second run"
        )
    parallel = parallel_in(wrapped)
    if parallel is None:
        return
    special = {
        "a communication hook": parallel._comm_hooks,
        "a static graph": parallel.static_graph,
        "mixed precision of its own": parallel.mixed_precision,
        "parameters that are reduced later": parallel._delay_all_reduce_params,
        "a process group of its own": parallel.process_group != torch.distributed.group.WORLD,
    }
    for what, there in special.items():
        if there:
            raise SearchError(
                f"DistributedDataParallel with {what} cannot be made anew for the smaller model: leave that out, or "
                "give on_emergence='stop' and train the smaller model in a second run"
            )


def parallel_in(wrapped: nn.Module) -> DistributedDataParallel | None:
    """The `DistributedDataParallel` in `wrapped`, if there is one."""
    while isinstance(inner := getattr(wrapped, "_orig_mod", None), nn.Module):  # of torch.compile
        wrapped = inner
    return wrapped if isinstance(wrapped, DistributedDataParallel) else None
