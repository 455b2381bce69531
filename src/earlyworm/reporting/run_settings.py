"""Which settings of compared runs differ from the defaults."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from earlyworm.comparisons.comparison import Comparison

# What the settings, labels and commands of a comparison tell of a run anyway.
_TOLD = frozenset({"method", "model", "data", "ratio", "limit", "seed", "output", "overwrite", "track"})


class ChangedSettings(NamedTuple):
    """What differs from the defaults.

    Attributes:
        common: What all runs have alike: value and default by name.
        own: What only some of a method's runs have: their values, by the method's label and the setting's name.
    """

    common: dict[str, tuple[Any, Any]]
    own: dict[str, dict[str, str]]


def changed_settings(comparison: Comparison) -> ChangedSettings:
    """The settings of all runs that are done, as far as they differ from the defaults."""
    changed: list[tuple[str, dict[str, tuple[Any, Any]]]] = []
    for outcome in comparison.outcomes:
        if outcome.result is None:
            continue
        config = outcome.result.config
        values, usual = dataclasses.asdict(config), dataclasses.asdict(config.defaults())
        names = [name for name in values if name not in _TOLD and values[name] != usual[name]]
        changed.append((outcome.method, {name: (values[name], usual[name]) for name in names}))
    first = changed[0][1] if changed else {}
    common = {name: pair for name, pair in first.items() if all(some.get(name) == pair for _, some in changed)}
    own: dict[str, dict[str, list[Any]]] = {}
    for method, some in changed:
        for name in some.keys() - common.keys():
            found = own.setdefault(method, {}).setdefault(name, [])
            if some[name][0] not in found:
                found.append(some[name][0])
    told = {method: {name: _told(some[name]) for name in sorted(some)} for method, some in own.items()}
    return ChangedSettings(common, told)


def _told(values: list[Any]) -> str:
    """Several values in words; of many numbers, from where to where they go."""
    if len(values) > 3 and all(isinstance(value, int | float) for value in values):
        return f"{min(values)} to {max(values)}"
    return ", ".join(map(str, values))
