"""Scores: one non-negative number per unit, higher is more important."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from earlyworm.errors import UnitsError
from earlyworm.units import Role, UnitGroup, Units, named_tensors

Score = Callable[[dict[str, Tensor], UnitGroup], Tensor]
"""From all tensors of a model by name, and one of its unit groups, to the scores [group size] of its units."""


def batch_norm_scale(tensors: dict[str, Tensor], group: UnitGroup) -> Tensor:
    """Mean |gamma| over the batch norms that a unit passes (Network Slimming, arXiv 1708.06519; Early Bird).

    Args:
        tensors: Tensors of the model by qualified name.
        group: A group that passes at least one batch norm.

    Returns:
        Scores, [group size].
    """
    return _mean_over_members(group, "scale", lambda name, dim: tensors[name].detach().abs())


def filter_norm(tensors: dict[str, Tensor], group: UnitGroup, *, p: int) -> Tensor:
    """Mean p-norm over the filters that produce a unit (Pruning Filters for Efficient ConvNets, arXiv 1608.08710).

    The norm is not divided by the size of the filter. Under the usual initialisation the 2-norm does not depend on
    that size and the 1-norm grows with its root, so across layers the 2-norm is the fairer score.

    Args:
        tensors: Tensors of the model by qualified name.
        group: A group of output channels of convolutions or linear layers.
        p: 1 or 2.

    Returns:
        Scores, [group size].
    """

    def norm(name: str, dim: int) -> Tensor:
        weight = tensors[name].detach().movedim(dim, 0).flatten(1).float()  # [channels, weights of one filter]
        norms: Tensor = torch.linalg.vector_norm(weight, p, dim=1)
        return norms

    return _mean_over_members(group, "filter", norm)


SCORES: dict[str, Score] = {
    "batch-norm": batch_norm_scale,
    "filter-l1": partial(filter_norm, p=1),
    "filter-l2": partial(filter_norm, p=2),
}
"""Scores by the name under which the command knows them."""


def choose_score(units: Units, score: str | Score) -> tuple[Score, Units]:
    """The score to use, and the units that it can judge.

    Args:
        units: The units of a model.
        score: `"batch-norm"`, `"filter-l1"`, `"filter-l2"`, a function, or `"auto"`: batch norm where any group passes
            one, else `"filter-l2"`.

    Returns:
        The function, and `units` without the groups that have no such score (they move to `skipped`).

    Raises:
        UnitsError: If the name is unknown or no group has such a score.
    """
    if not isinstance(score, str):
        return score, units
    if score == "auto":
        has_scale = any(True for group in units.groups for _ in group.with_role("scale"))
        score = "batch-norm" if has_scale else "filter-l2"
    if score not in SCORES:
        raise UnitsError(f"unknown score {score!r}: choose from auto, {', '.join(SCORES)}, or give a function")
    role: Role = "scale" if score == "batch-norm" else "filter"
    judged = {group.name for group in units.groups if any(True for _ in group.with_role(role))}
    if not judged:
        raise UnitsError(f"no unit group has a {role} to score with {score!r}: choose another of {', '.join(SCORES)}")
    if len(judged) == len(units.groups):
        return SCORES[score], units
    coupled = units.removable is units.groups
    groups = tuple(group for group in units.groups if group.name in judged)
    reason = f"it has no {role} to score with {score!r}"
    skipped = {group.name: reason for group in units.groups if group.name not in judged}
    return SCORES[score], Units(groups, groups if coupled else units.removable, {**units.skipped, **skipped})


def score_units(model: nn.Module, groups: tuple[UnitGroup, ...], score: Score) -> dict[str, Tensor]:
    """Score every unit of `groups`.

    Args:
        model: The model.
        groups: Its unit groups.
        score: The score.

    Returns:
        One float32 tensor [group size] on the CPU per group name; it shares no memory with the model.

    Raises:
        UnitsError: If the model lacks a tensor of the groups, or the score has not one number per unit.
    """
    tensors = named_tensors(model)
    scores = {}
    for group in groups:
        found = score(tensors, group)
        if found.shape != (group.size,):
            raise UnitsError(
                f"the score of {group.name!r} has shape {list(found.shape)}, but must be one number for each of its "
                f"{group.size} units"
            )
        scores[group.name] = found.detach().to("cpu", torch.float32, copy=True)
    return scores


def _mean_over_members(group: UnitGroup, role: Role, values: Callable[[str, int], Tensor]) -> Tensor:
    """The mean over all positions of slices with `role` of what `values` gives per position, for every unit."""
    total, count = torch.zeros(group.size), torch.zeros(group.size)
    for piece in group.with_role(role):
        value = values(piece.tensor, piece.dim)
        total, count = total.to(value.device), count.to(value.device)
        units = piece.units.to(value.device)
        here = value[piece.positions.to(value.device)].float()
        total.index_add_(0, units, here)
        count.index_add_(0, units, torch.ones_like(here))
    if not count.all():
        raise UnitsError(f"some units of {group.name!r} have no {role}: choose another score")
    return total / count
