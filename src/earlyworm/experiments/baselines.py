"""Tickets that no search has found: drawn at random, after training, of all units, or uniformly over the layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from earlyworm.costs import count_flops
from earlyworm.errors import ConfigError
from earlyworm.experiments.bench import Bench
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.training import stable_seed
from earlyworm.masks.mask import Mask
from earlyworm.tickets.compaction import compact, round_ticket
from earlyworm.tickets.drawing import full_mask, random_mask, ticket_of, uniform_mask
from earlyworm.units.groups import gate_masks, named_tensors

if TYPE_CHECKING:
    from earlyworm.inputs import ExampleInputs
    from earlyworm.search.ticket_search import TicketSearch
    from earlyworm.tickets.ticket import Ticket
    from earlyworm.units.groups import Units

_HALVINGS = 12  # of the ratio: the last ones move less than one unit of a thousand
_RISE = 0.8  # the fraction of the transformation after which its penalty has grown up


def baseline_ticket(bench: Bench, dense: nn.Module, search: TicketSearch) -> Ticket:
    """The ticket that the method of the settings draws now.

    Raises:
        ConfigError: If `narrow` cannot come down to the MACs that are asked for.
    """
    config = bench.config
    if config.method == "late":
        return search.draw(force=True)
    units, ratio = search.units, config.pruning_ratio
    if config.method == "dense":
        mask = full_mask(units)
    elif config.method == "narrow" and config.macs is not None:
        example = bench.data.example_inputs(1, config)
        mask = narrow_mask(dense, units, config.macs, example, config.min_units or 1, config.round_to)
    elif config.method == "narrow":
        mask = uniform_mask(units, ratio, min_units=config.min_units)
    else:
        mask = chosen_at_random(config, units)
    return ticket_of(dense, units, mask, method=config.method, pruning_ratio=ratio, step=search.steps)


def chosen_at_random(config: RunConfig, units: Units) -> Mask:
    """The random mask of a seed: the same for every method that begins with one."""
    seed = stable_seed(config.seed, "random ticket")
    return random_mask(units, config.pruning_ratio, seed=seed, min_units=config.min_units)


def narrow_mask(
    model: nn.Module, units: Units, macs: int, example: ExampleInputs, min_units: float = 1, round_to: int = 1
) -> Mask:
    """The mask of a uniformly narrower network that has just not more than a number of MACs.

    Every group keeps the same fraction of its units, but for rounding and for at most one unit more, or `round_to`, by
    which the MACs come nearer.

    Args:
        model: The network.
        units: Its units.
        macs: Multiply-accumulates per example, above 0.
        example: One example.
        min_units: How many units every group keeps at least.
        round_to: Every width is a multiple of this, or whole.

    Returns:
        The mask: the first units of every group.

    Raises:
        ConfigError: If even `min_units` in every group, rounded up, have more MACs.
    """

    def ticket(mask: Mask) -> Ticket:
        drawn = ticket_of(model, units, mask, method="narrow", pruning_ratio=0.0)
        return drawn if round_to == 1 else round_ticket(drawn, round_to)

    def macs_of(mask: Mask) -> int:
        return count_flops(compact(model, ticket(mask)), example)[0] // 2

    if macs_of(full_mask(units)) <= macs:
        return full_mask(units)
    too_much, enough = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (too_much + enough) / 2
        if macs_of(uniform_mask(units, middle, min_units=min_units)) > macs:
            too_much = middle
        else:
            enough = middle
    if enough == 1:
        rounded = "" if round_to == 1 else f", rounded up to multiples of {round_to},"
        raise ConfigError(f"macs is {macs}, but {min_units:g} units in every layer{rounded} have more: raise it")
    mask = ticket(uniform_mask(units, enough, min_units=min_units)).mask
    wider = {name: _one_more(mask, name) for name, kept in mask.kept.items() if not kept.all()}
    for name in sorted(wider, key=lambda name: macs_of(wider[name]), reverse=True):
        trial = ticket(_one_more(mask, name)).mask
        if macs_of(trial) <= macs:
            mask = trial
    return mask


def _one_more(mask: Mask, name: str) -> Mask:
    """The same mask, with the next unit of one group."""
    kept = {other: units.clone() for other, units in mask.kept.items()}
    kept[name][int(kept[name].sum())] = True
    return Mask.from_groups(kept, mask.kinds)


def extrusion_strength(progress: float, bound: float) -> float:
    """How strong the penalty on the units outside of a random ticket is (arXiv 2203.04248, section 4).

    It grows in proportion to the steps until it reaches its bound, and stays there. The paper adds a fixed amount every
    few iterations; here the growth takes the same fraction of the transformation, however long that is.

    Args:
        progress: The fraction of the transformation that is over, in [0, 1].
        bound: What it grows to, 0 or more.
    """
    return bound * min(1.0, progress / _RISE)


@contextmanager
def extrusion(
    config: RunConfig, model: nn.Module, units: Units, optimizer: torch.optim.Optimizer, done: int, last: int
) -> Iterator[None]:
    """Push what a network knows into a random ticket: `strength * weight` is added to the gradients of the rest.

    That is the gradient of half the squared weights, over all entries that masking these units would zero. It acts once
    per optimizer step, right before it.

    Args:
        config: Settings: seed, ratio and the bound of the penalty.
        model: The model.
        units: Its units.
        optimizer: Trains the model.
        done: Steps that were taken before.
        last: Steps of the whole transformation.
    """
    masks = gate_masks(model, units.groups, chosen_at_random(config, units).kept)
    step = done

    def penalise(*_: object) -> None:
        nonlocal step
        strength = extrusion_strength(step / last, config.extrusion)
        penalise_(named_tensors(model), masks, strength)
        step += 1

    handle = optimizer.register_step_pre_hook(penalise)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def penalise_(tensors: dict[str, Tensor], masks: dict[str, Tensor], strength: float) -> None:
    """Add `strength * weight` to the gradient of every entry that a mask removes.

    Args:
        tensors: Parameters by name; those without a gradient are left alone.
        masks: By the same names; False is removed. They broadcast against the parameters.
        strength: 0 or more.
    """
    for name, mask in masks.items():
        tensor = tensors[name]
        if tensor.grad is not None:
            tensor.grad.add_(tensor * ~mask, alpha=strength)
