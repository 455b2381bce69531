"""Put the smaller model in the place of the one that is being trained, so that nobody holds anything stale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from earlyworm.compaction import compact_
from earlyworm.errors import SearchError
from earlyworm.inputs import unwrap
from earlyworm.surgery import copy_model
from earlyworm.ticket import Ticket

State = dict[str, Any]


def compact_in_place(
    model: nn.Module,
    ticket: Ticket,
    optimizers: Sequence[torch.optim.Optimizer] = (),
    wrapped: nn.Module | None = None,
) -> None:
    """Make `model` the smaller one of its ticket while a loop trains it.

    Every module, hook, optimizer, parameter group and learning-rate schedule stays the object that it was; only
    parameters that get smaller are new ones. An optimizer's state is cut as its parameters are, so that momentum and
    step counts go on. State that is not shaped like its parameter (Adafactor, LBFGS, 8-bit Adam) starts afresh.

    Args:
        model: The model, unwrapped.
        ticket: Its ticket.
        optimizers: The torch optimizers that train it; parameters of other models in them are left alone.
        wrapped: What the loop calls, if that is something around the model; the reducer of `DistributedDataParallel`
            is made anew, since it would go on waiting for the gradients of the old parameters.

    Raises:
        TicketError: If the ticket is for another model; then nothing has changed.
        SearchError: If `wrapped` cannot be made anew; then nothing has changed.
    """
    wrapped = model if wrapped is None else wrapped
    check_wrapper(wrapped, model)
    ticket.check_fits(model)
    states = [_smaller_states(model, ticket, optimizer) for optimizer in optimizers]
    old = dict(model.named_parameters(remove_duplicate=False))
    compact_(model, ticket)
    new = dict(model.named_parameters(remove_duplicate=False))
    replaced: dict[Tensor, Tensor] = {parameter: new[name] for name, parameter in old.items()}
    for optimizer, smaller in zip(optimizers, states, strict=True):
        _replace(optimizer, replaced, smaller)
    if (parallel := _parallel(wrapped)) is not None:
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
    parallel = _parallel(wrapped)
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


def _parallel(wrapped: nn.Module) -> DistributedDataParallel | None:
    """The `DistributedDataParallel` in `wrapped`, if there is one."""
    while isinstance(inner := getattr(wrapped, "_orig_mod", None), nn.Module):  # of torch.compile
        wrapped = inner
    return wrapped if isinstance(wrapped, DistributedDataParallel) else None


def _smaller_states(model: nn.Module, ticket: Ticket, optimizer: torch.optim.Optimizer) -> dict[Tensor, State] | None:
    """The state of every parameter as it is after compaction; None if it cannot be cut.

    Tensors of the shape of a parameter are cut as it is: a copy of the model that holds them is compacted.
    """
    names = dict(model.named_parameters(remove_duplicate=False))
    states: dict[Tensor, State] = {p: dict(optimizer.state[p]) for p in names.values() if p in optimizer.state}
    shaped = set()
    for parameter, state in states.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim():
                shaped.add(key)
                if value.shape != parameter.shape or not value.is_floating_point():
                    return None
            elif isinstance(value, (list, tuple, dict)):
                return None
    smaller = {parameter: dict(state) for parameter, state in states.items()}
    for key in shaped:
        having = {name: parameter for name, parameter in names.items() if key in states.get(parameter, {})}
        twin = copy_model(model)
        held = dict(twin.named_parameters(remove_duplicate=False))
        for name, parameter in having.items():
            held[name].data = states[parameter][key].clone()
        compact_(twin, ticket)
        held = dict(twin.named_parameters(remove_duplicate=False))
        for name, parameter in having.items():
            smaller[parameter][key] = held[name].detach()
    return smaller


def _replace(
    optimizer: torch.optim.Optimizer, replaced: dict[Tensor, Tensor], smaller: dict[Tensor, State] | None
) -> None:
    """Let `optimizer` go on with the new parameters and their state; None: start afresh."""
    for group in optimizer.param_groups:
        group["params"][:] = [replaced.get(parameter, parameter) for parameter in group["params"]]
    for old, new in replaced.items():
        if optimizer.state.pop(old, None) is not None and smaller is not None:
            optimizer.state[new] = smaller[old]
