"""Find the units of a model: channels by tracing, heads, neurons and single weights from what its blocks are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from torch import nn

from earlyworm.channels import find_channels
from earlyworm.errors import ConfigError
from earlyworm.inputs import ExampleInputs, unwrap
from earlyworm.transformer_units import find_transformer_units
from earlyworm.units import Kind, Units


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
        UnitsError: If the model has no such units.
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
    return channels.together_with(found) if channels else found
