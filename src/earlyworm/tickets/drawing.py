"""Draw tickets otherwise than by a search: at random, uniformly narrower, or ever sparser by magnitude."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from earlyworm.errors import ConfigError, TicketError
from earlyworm.inputs import unwrap
from earlyworm.masks.mask import Mask, check_finite, make_mask, remove_lowest
from earlyworm.masks.ratios import Ratio, check_min_units, fewest_per_group, fewest_units, ratio_per_kind
from earlyworm.masks.selection import absolute_sum, unpack
from earlyworm.tickets.ticket import Ticket, fingerprint, library_versions
from earlyworm.units.groups import Units


def full_mask(units: Units) -> Mask:
    """The mask that keeps everything."""
    return Mask.from_groups(
        {name: torch.ones(size, dtype=torch.bool) for name, size in units.sizes.items()}, units.kinds
    )


def random_mask(units: Units, ratio: Ratio, *, seed: int, min_units: float | None = None) -> Mask:
    """A mask that removes as many units as `make_mask` would, any of them with the same chance.

    Args:
        units: The units of a model.
        ratio: Fraction of the units of each kind to remove, in [0, 1), or one such number per kind.
        seed: Of the random numbers; on every machine the same seed gives the same mask.
        min_units: How many units of every group stay: a number, at least 1, or a fraction of the group, in (0, 1).
            None: a fifth of the share that stays of all units, at least a twentieth, or half of that share if that is
            less; one of single weights.

    Returns:
        The mask.

    Raises:
        ConfigError: If the ratio or `min_units` is impossible.

    Example:
        >>> import torch, earlyworm as ew
        >>> layer = torch.nn.TransformerEncoderLayer(d_model=32, nhead=4, dim_feedforward=64, batch_first=True)
        >>> units = ew.find_transformer_units(layer)
        >>> mask = ew.random_mask(units, {"heads": 0.25, "neurons": 0.5}, seed=0)
        >>> {name: int(kept.sum()) for name, kept in mask.kept.items()}
        {'self_attn': 3, 'linear1': 32}
        >>> ticket = ew.ticket_of(layer, units, mask, method="random", pruning_ratio={"heads": 0.25, "neurons": 0.5})
        >>> ew.compact(layer, ticket).linear1
        Linear(in_features=32, out_features=32, bias=True)
    """
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(size, generator=generator) for name, size in units.sizes.items()}
    return make_mask(scores, ratio, min_units=min_units, kinds=units.kinds)


def uniform_mask(units: Units, ratio: Ratio, *, min_units: float | None = None) -> Mask:
    """A mask that removes the same fraction of every group: the last units of each, so that what stays is narrower.

    Args:
        units: The units of a model.
        ratio: Fraction of every group to remove, in [0, 1), or one such number per kind; what stays is rounded to
            the nearest number of units.
        min_units: How many units of every group stay: a number, at least 1, or a fraction of the group, in (0, 1).
            None: a fifth of the share that stays of all units, at least a twentieth, or half of that share if that is
            less; one of single weights.

    Returns:
        The mask.

    Raises:
        ConfigError: If the ratio or `min_units` is impossible.
    """
    ratios = ratio_per_kind(ratio, [*dict.fromkeys(units.kinds.values())])
    fewest = fewest_per_group(units.sizes, ratio, min_units=min_units, kinds=units.kinds)
    kept = {
        group.name: torch.arange(group.size) < max(fewest[group.name], round((1 - ratios[group.kind]) * group.size))
        for group in units.groups
    }
    return Mask.from_groups(kept, units.kinds)


def further_mask(mask: Mask, scores: Mapping[str, Tensor], keep: int, *, min_units: float = 1) -> Mask:
    """The mask of the next round of iterative magnitude pruning (the lottery ticket hypothesis, arXiv 1803.03635).

    It removes those with the lowest scores of the units that are still kept, and never revives one. Of equal scores
    the later unit goes first. As many of the best of every group as `min_units` says stay, so far as they are kept now.

    Args:
        mask: The mask of the round before, over units of one kind.
        scores: One number for every unit, in row-major order, per group name; what counts is the absolute value in
            float32. Those of single weights are the weights.
        keep: How many units stay in all.
        min_units: How many units of every group stay: a number, at least 1, or a fraction of the group, in (0, 1).

    Returns:
        The mask.

    Raises:
        ConfigError: If as many cannot stay, or the mask is over several kinds of units.
        SearchError: If the score of a unit that is kept is not finite.

    Example:
        >>> import torch, earlyworm as ew
        >>> weights = {"a": torch.tensor([0.1, -3.0, 0.5, 2.0])}
        >>> mask = ew.further_mask(ew.make_mask(weights, 0.25), {"a": torch.tensor([9.0, -3.0, 0.5, 2.0])}, keep=2)
        >>> mask.flat.tolist()
        [False, True, False, True]
    """
    check_min_units(min_units)
    if len(set(mask.kinds.values())) > 1:
        raise ConfigError("the mask is over several kinds of units, which are not compared: prune one kind at a time")
    left: dict[str, Tensor] = {}
    for name, kept in mask.kept.items():
        left[name] = scores[name].detach().flatten()[kept.to(scores[name].device)]
    check_finite({name: absolute_sum(score) for name, score in left.items()})
    fewest = {name: min(fewest_units(min_units, mask.sizes[name]), score.numel()) for name, score in left.items()}
    least = sum(fewest.values())
    if not least <= keep <= mask.units_kept:
        raise ConfigError(f"keep is {keep}, but must be from {least} (min_units of every group) to {mask.units_kept}")
    removed = remove_lowest(left, mask.units_kept - keep, fewest)
    return Mask.from_groups({name: ~unpack(removed[name], score.numel()) for name, score in left.items()}).within(mask)


def ticket_of(
    model: nn.Module, units: Units, mask: Mask, *, method: str, pruning_ratio: Ratio, step: int = 0
) -> Ticket:
    """The ticket of a mask that no search has found.

    Args:
        model: The model.
        units: Its units.
        mask: Which of them are kept.
        method: How the mask was made, in words.
        pruning_ratio: The fraction of units that was asked to be removed, or one per kind of units.
        step: Optimizer steps before the mask was made.

    Returns:
        A ticket that has not emerged. All units have the same score, so that `round_ticket` keeps the first of those
        that are removed.

    Raises:
        TicketError: If the mask is over other units.
    """
    if list(mask.sizes.items()) != list(units.sizes.items()):
        raise TicketError("the mask is over other units: make it from the units that are given here")
    return Ticket(
        mask=mask,
        units=units,
        scores={
            group.name: torch.ones(group.size, dtype=torch.float32) for group in units.groups if group.entries is None
        },
        structure=fingerprint(unwrap(model)),
        method=method,
        pruning_ratio=pruning_ratio,
        step=step,
        emerged=False,
        distances=(),
        versions=library_versions(),
    )
