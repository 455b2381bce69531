"""Whether the cells of a comparison can be compared fairly: the same data and the same budget in each setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from earlyworm.comparisons.comparison import Outcome, Setting
from earlyworm.comparisons.grid import Cell
from earlyworm.experiments.results import DataSummary, RunResult

# Options of data, network and budget; all others may differ between methods.
_SAME = (
    "text_columns", "label_column", "max_length", "classes", "width", "weights", "epochs", "retrain_epochs",
    "match", "batch_size",
)  # fmt: skip


class _Placed(Protocol):
    @property
    def setting(self) -> Setting: ...


_P = TypeVar("_P", bound=_Placed)


def budget_differences(cells: Sequence[Cell]) -> list[str]:
    """Where cells differ in data, network or budget from the first one of the same setting, in words."""
    return _distinct(
        f"{cell.label} has {name} {_shown(one)}, {first.label} has {_shown(other)}"
        for first, cell in _pairs(cells)
        for name in _SAME
        if (one := getattr(cell.config, name)) != (other := getattr(first.config, name))
    )


def origin_differences(outcomes: Iterable[Outcome]) -> list[str]:
    """Where results of one setting come from other data, or from other initial weights, than the first, in words."""
    done = [outcome for outcome in outcomes if outcome.result is not None]
    origins = {id(outcome): _origin(outcome.result) for outcome in done if outcome.result is not None}
    return _distinct(
        f"{outcome.method} with seed {outcome.seed} had {name} {_shown(one)}, "
        f"{first.method} with seed {first.seed} had {_shown(other)}"
        for name in dict.fromkeys(name for origin in origins.values() for name in origin)
        for first, outcome in _pairs([known for known in done if name in origins[id(known)]])
        if (one := origins[id(outcome)][name]) != (other := origins[id(first)][name])
    )


def _origin(result: RunResult) -> dict[str, Any]:
    """What a result comes from, by name; without digests that are not known, which tell nothing."""
    data = {f"data of {field.name}": getattr(result.data, field.name) for field in dataclasses.fields(DataSummary)}
    return {name: value for name, value in {**data, "initial weights of digest": result.weights}.items() if value != ""}


def circumstances(outcomes: Iterable[Outcome]) -> list[str]:
    """What should be known of results that were made on different devices or by different versions, in words."""
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    marks = []
    devices = sorted({result.device for result in results})
    if len(devices) > 1:
        marks.append(f"the runs were made on different devices ({', '.join(devices)}): their seconds differ for that")
    for library in sorted({library for result in results for library in result.versions}):
        versions = sorted({result.versions[library] for result in results if library in result.versions})
        if len(versions) > 1:
            marks.append(f"the runs were made by different versions of {library} ({', '.join(versions)})")
    return marks


def _pairs(placed: Sequence[_P]) -> Iterator[tuple[_P, _P]]:
    """Each with the first one of its setting."""
    first: dict[Setting, _P] = {}
    for one in placed:
        yield first.setdefault(one.setting, one), one


def _distinct(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
