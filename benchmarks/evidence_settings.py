"""The settings of a comparison: what they are called beside each other, and which differ in one thing alone."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from earlyworm.comparisons.comparison import Comparison, Setting

_NOTHING = {"ratio": "chosen", "limit": "none"}  # what None says


def what(setting: Setting) -> str:
    """The model and the data of a setting, without their folders."""
    return f"{_short(setting.model)} on {_short(setting.data)}"


def ratio_of(setting: Setting) -> str:
    """The pruning ratio of a setting in words."""
    return "pruning ratio chosen by speed" if setting.ratio is None else f"pruning ratio {setting.ratio:g}"


def among(comparison: Comparison, setting: Setting) -> dict[str, str]:
    """What tells a setting from the others of its comparison, by name; nothing if it is the only one."""
    names = [field.name for field in dataclasses.fields(Setting)]
    several = [name for name in names if len({getattr(other, name) for other in comparison.settings}) > 1]
    return {name: _NOTHING[name] if (value := getattr(setting, name)) is None else _short(value) for name in several}


def over_ratios(comparison: Comparison) -> list[dict[Setting, float]]:
    """Settings that differ in their pruning ratio alone, with their ratios, in groups of two or more."""
    known = [setting for setting in comparison.settings if setting.ratio is not None]
    groups = _groups((dataclasses.replace(setting, ratio=None), setting) for setting in known)
    return [{setting: setting.ratio for setting in group if setting.ratio is not None} for group in groups]


def over_sizes(comparison: Comparison) -> list[dict[Setting, int]]:
    """Settings that differ in the number of training examples alone, with these, in groups of two or more."""
    sizes = {o.setting: o.result.data.train for o in comparison.outcomes if o.result is not None}
    groups = _groups((dataclasses.replace(setting, limit=None), setting) for setting in sizes)
    return [{setting: sizes[setting] for setting in group} for group in groups]


def on_validation(comparison: Comparison) -> bool:
    """Whether accuracies are on examples held back from the training data, to choose by."""
    done = (outcome.result for outcome in comparison.outcomes if outcome.result is not None)
    return any(result.config.validation is not None for result in done)


def accuracy_of(comparison: Comparison) -> str:
    """What axes call the accuracies of a comparison."""
    return "validation accuracy" if on_validation(comparison) else "held-out accuracy"


def _groups(keyed: Iterable[tuple[Setting, Setting]]) -> list[list[Setting]]:
    """Settings with the same key, where there are several of them."""
    groups: dict[Setting, list[Setting]] = {}
    for key, setting in keyed:
        groups.setdefault(key, []).append(setting)
    return [group for group in groups.values() if len(group) > 1]


def _short(value: object) -> str:
    """A value as a word, of a path its end."""
    return Path(value).name.removeprefix("parquet:") if isinstance(value, str) else str(value)
