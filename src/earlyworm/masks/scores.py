"""Scores: one number per unit, non-negative unless it is a weight itself; a higher absolute value is more important."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from earlyworm.errors import UnitsError
from earlyworm.units.groups import Kind, Role, Slice, UnitGroup, Units, named_tensors, tensor_of

Score = Callable[[dict[str, Tensor], UnitGroup], Tensor]
"""From all tensors of a model by name, and one of its unit groups, to the scores of its units.

They are [group size], or of any shape with as many entries if the units are single weights.
"""


def batch_norm_scale(tensors: dict[str, Tensor], group: UnitGroup) -> Tensor:
    """Mean |gamma| over the batch norms that a unit passes (Network Slimming, arXiv 1708.06519; Early Bird).

    Args:
        tensors: Tensors of the model by qualified name.
        group: A group that passes at least one batch norm.

    Returns:
        Scores, [group size].
    """
    return mean_per_unit(
        group, _with_role(group, "scale"), lambda piece: (tensors[piece.tensor].detach().abs(), 1), "scale"
    )


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

    def norms(piece: Slice) -> tuple[Tensor, int]:
        return _norm(tensors[piece.tensor].detach(), piece.dim, p), 1

    return mean_per_unit(group, _with_role(group, "filter"), norms, "filter")


def magnitude(tensors: dict[str, Tensor], group: UnitGroup) -> Tensor:
    """Mean absolute weight over all that masking a unit zeroes; of single weights the weights themselves, not copied.

    Args:
        tensors: Tensors of the model by qualified name.
        group: A group of any kind.

    Returns:
        Scores, [group size]; for single weights a view of the matrix, signs included.
    """
    if group.entries is not None:
        return group.entries.of(tensors[group.entries.tensor].detach())

    def sums(piece: Slice) -> tuple[Tensor, int]:
        weight = tensor_of(piece, tensors).detach()
        return _norm(weight, piece.dim, 1), weight.numel() // weight.shape[piece.dim]

    return mean_per_unit(group, list(group.gates()), sums, "gate")


SCORES: dict[str, Score] = {
    "batch-norm": batch_norm_scale,
    "filter-l1": partial(filter_norm, p=1),
    "filter-l2": partial(filter_norm, p=2),
    "magnitude": magnitude,
}
"""Scores of weights as they stand, by the name under which the command knows them."""

_ROLES: dict[str, Role] = {"batch-norm": "scale", "filter-l1": "filter", "filter-l2": "filter"}  # what they look at


def choose_score(units: Units, score: str | Score) -> tuple[dict[Kind, Score], Units]:
    """The score to use for each kind of units, and the units that it can judge.

    Args:
        units: The units of a model.
        score: `"batch-norm"`, `"filter-l1"`, `"filter-l2"`, `"magnitude"`, a function, or `"auto"`: for channels
            batch norm where any group passes one, else `"filter-l2"`; for all other units magnitude.

    Returns:
        The function per kind, and `units` without the groups that have no such score (they move to `skipped`).

    Raises:
        UnitsError: If the name is unknown or no group of a kind has such a score.
    """
    if not isinstance(score, str):
        return dict.fromkeys(units.kinds.values(), score), units
    if score not in ("auto", *SCORES):
        raise UnitsError(f"unknown score {score!r}: choose from auto, taylor, {', '.join(SCORES)}, or give a function")
    chosen: dict[Kind, Score] = {}
    for kind in dict.fromkeys(units.kinds.values()):
        name = _automatic(units, kind) if score == "auto" else score
        chosen[kind] = SCORES[name]
        if name in _ROLES:
            units = _judged(units, kind, name, _ROLES[name])
    return chosen, units


def score_name(score: Score) -> str:
    """The name of a score: that under which the command knows it, or that of the function."""
    known = (name for name, one in SCORES.items() if one is score)
    return next(known, getattr(score, "__name__", type(score).__name__))


def _automatic(units: Units, kind: Kind) -> str:
    """The score that suits units of `kind`."""
    if kind != "channels":
        return "magnitude"
    has_scale = any(_with_role(group, "scale") for group in units.groups if group.kind == kind)
    return "batch-norm" if has_scale else "filter-l2"


def _judged(units: Units, kind: Kind, score: str, role: Role) -> Units:
    """`units` without the groups of `kind` that have no slice of `role`."""
    lacking = [group.name for group in units.groups if group.kind == kind and not _with_role(group, role)]
    if len(lacking) == sum(group.kind == kind for group in units.groups):
        others = ", ".join(SCORES)
        raise UnitsError(f"no group of {kind} has a {role} to score with {score!r}: choose another of {others}")
    if not lacking:
        return units
    reason = f"it has no {role} to score with {score!r}"
    return units.without(dict.fromkeys(lacking, reason))


def score_units(model: nn.Module, groups: tuple[UnitGroup, ...], scores: dict[Kind, Score]) -> dict[str, Tensor]:
    """Score every unit of `groups`.

    Args:
        model: The model.
        groups: Its unit groups.
        scores: The score for each kind of units.

    Returns:
        Per group name one float32 tensor [group size] on the CPU that shares no memory with the model; or, for single
        weights, whatever the score returns, with as many entries.

    Raises:
        UnitsError: If the model lacks a tensor of the groups, or the score has not one number per unit.
    """
    tensors = named_tensors(model)
    found = {}
    for group in groups:
        score = scores[group.kind](tensors, group).detach()
        if score.shape != (group.size,) and (group.entries is None or score.numel() != group.size):
            raise UnitsError(
                f"the score of {group.name!r} has shape {list(score.shape)}, but must be one number for each of its "
                f"{group.size} units"
            )
        found[group.name] = score if group.entries is not None else score.to("cpu", torch.float32, copy=True)
    return found


def _with_role(group: UnitGroup, role: Role) -> list[Slice]:
    return [piece for piece in group.slices if piece.role == role]


def _norm(weight: Tensor, dim: int, p: int) -> Tensor:
    """The p-norm of every position of `dim`, float32 [positions]."""
    others = [other for other in range(weight.dim()) if other != dim]
    if not others:
        return weight.abs().float()
    dtype = torch.promote_types(weight.dtype, torch.float32)  # sums of half precision are not exact enough
    norms: Tensor = torch.linalg.vector_norm(weight, p, dim=others, dtype=dtype)
    return norms.float()


def mean_per_unit(
    group: UnitGroup, pieces: Sequence[Slice], values: Callable[[Slice], tuple[Tensor, int]], what: str
) -> Tensor:
    """A mean for every unit, [group size].

    Args:
        group: The units.
        pieces: Slices of theirs.
        values: For a slice, a sum for each position along its dimension, and of how many numbers each is the sum.
        what: What the slices are, for the message.

    Raises:
        UnitsError: If a unit is in none of the slices.
    """
    total, count = (torch.zeros(group.size, dtype=torch.float32) for _ in range(2))
    for piece in pieces:
        value, numbers = values(piece)
        total, count = total.to(value.device), count.to(value.device)
        units = piece.units.to(value.device)
        here = value[piece.positions.to(value.device)].float()
        total.index_add_(0, units, here)
        count.index_add_(0, units, torch.full_like(here, numbers))
    if not count.all():
        raise UnitsError(f"some units of {group.name!r} have no {what}: choose another score")
    return total / count
