"""Find the units of a model: channels by tracing, heads, neurons and single weights from what its layers are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import torch
from torch import nn

from earlyworm.errors import ConfigError, UnitsError
from earlyworm.inputs import ExampleInputs, unwrap
from earlyworm.units.channels import find_channels
from earlyworm.units.groups import Kind, UnitGroup, Units, gate_masks, weight_group
from earlyworm.units.transformer_units import find_transformer_units
from earlyworm.units.weights import check_weights

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)


def find_units(
    model: nn.Module, kinds: str | Sequence[str] = "channels", example_inputs: ExampleInputs | None = None
) -> Units:
    """Find the units of one or several kinds.

    Args:
        model: The model.
        kinds: `"channels"` (see `find_channels`), `"heads"`, `"neurons"` or `"weights"` (see
            `find_transformer_units`), or several of them.
        example_inputs: What the model's forward takes; needed for channels only.

    Returns:
        The units.

    Raises:
        ConfigError: If a kind is unknown or named twice, or channels are asked for without example inputs.
        UnitsError: If the model has no such units, or no channels but those that are neurons too.
    """
    model = unwrap(model)
    names = [kinds] if isinstance(kinds, str) else list(kinds)
    for name in names:
        if name not in get_args(Kind):
            raise ConfigError(f"unknown units {name!r}: choose from {', '.join(get_args(Kind))}, or give Units")
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"units are {kinds!r}, but must be one or more of {', '.join(get_args(Kind))}, each once")
    if "channels" in names and example_inputs is None:
        raise ConfigError("channels are found by tracing: give example_inputs, such as one batch")
    channels = find_channels(model, example_inputs) if "channels" in names and example_inputs is not None else None
    others = [name for name in names if name != "channels"]
    if not others and channels:
        return channels
    found = find_transformer_units(model, others)
    return _apart(channels, found).together_with(found) if channels else found


def _apart(channels: Units, others: Units) -> Units:
    """The channels that are not among the others too, as the neurons of a feed-forward pair are.

    Raises:
        UnitsError: If there are none.
    """
    taken = {(piece.tensor, piece.dim) for group in others.groups for piece in group.slices}
    twice = {
        group.name for group in channels.groups if any((piece.tensor, piece.dim) in taken for piece in group.slices)
    }
    if len(twice) == len(channels.groups):
        kinds = " and ".join(dict.fromkeys(others.kinds.values()))
        raise UnitsError(f"all channels are {kinds} too: leave channels out")
    # They are not left out, so they are not among what is skipped.
    return replace(channels.without(dict.fromkeys(twice, "")), skipped=channels.skipped)


def units_of(model: nn.Module, units: str | Sequence[str] | Units, example_inputs: ExampleInputs | None) -> Units:
    """The units of `model`: found, if kinds are named, or those that are given, if it has them.

    Raises:
        ConfigError: See `find_units`.
        UnitsError: If the model has no such units, or its weights are not there, sharded, quantised or adapted.
    """
    if not isinstance(units, Units):
        return find_units(model, units, example_inputs)
    check_weights(model)
    gate_masks(model, units.groups, {name: torch.ones(size, dtype=torch.bool) for name, size in units.sizes.items()})
    return units  # of this model: their gates are all there


def find_all_weights(model: nn.Module) -> Units:
    """Find the single weights of all linear layers, attention projections and convolutions, the classifier included.

    These are the units of the lottery ticket hypothesis (arXiv 1803.03635), in any network. Single weights are
    masked, never removed.

    Args:
        model: Any module, wrapped (DDP, `torch.compile`) or not.

    Returns:
        The units: a group for every weight that is trained, named after it; one that is tied counts once. `skipped`
        names the layers that are left out, with the reason.

    Raises:
        UnitsError: If there is no such weight, or the weights are not loaded, quantised, sharded, or wrapped in
            adapters.

    Example:
        >>> import torch, earlyworm as ew
        >>> ew.find_all_weights(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 2))).sizes
        {'0.weight': 108, '1.weight': 8}
    """
    model = unwrap(model)
    check_weights(model)
    groups: dict[int, UnitGroup] = {}  # by parameter, so that tied weights are one group
    skipped: dict[str, str] = {}
    for name, module in model.named_modules():
        if not isinstance(module, _LAYERS) and type(module).__name__ != "Conv1D":  # the latter is transformers' own
            continue
        weights = {key: value for key, value in module.named_parameters(name, recurse=False) if key.endswith("weight")}
        trained = {key: value for key, value in weights.items() if value.requires_grad}
        for key, weight in trained.items():
            groups.setdefault(id(weight), weight_group(key, weight))
        if not trained:
            reason = "its weight is frozen" if weights else "its weight is no parameter (is it parametrised?)"
            skipped[name or type(module).__name__] = reason
    if not groups:
        raise UnitsError(f"{type(model).__name__} has no linear layer and no convolution whose weight is trained")
    return Units(tuple(groups.values()), (), skipped)
