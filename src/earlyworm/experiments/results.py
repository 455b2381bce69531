"""What came of a run: `RunResult` and its JSON."""

from __future__ import annotations

import dataclasses
import json
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import UnionType
from typing import Any, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from earlyworm.errors import ConfigError, RunError
from earlyworm.experiments.config import RunConfig

SCHEMA = 1

_T = TypeVar("_T")


@dataclass(frozen=True)
class CheckRecord:
    """One check of the search.

    Attributes:
        epoch: When, in epochs of training; 0 is before any.
        distance_mean: Mean distance of the newest mask to the older ones in the window, in [0, 1]; None at the first.
        distance_max: The largest of these distances; None at the first.
        chi: What gradients of static units are multiplied by from here on; 1 is no truncation.
        truncated: How many units are static from here on; 0 while chi is 1.
        loss: Mean training loss since the last check; None at the first.
        accuracy: Held-out accuracy, in [0, 1]; None where it was not measured.
    """

    epoch: float
    distance_mean: float | None
    distance_max: float | None
    chi: float
    truncated: int
    loss: float | None
    accuracy: float | None


@dataclass(frozen=True)
class SearchResult:
    """How the search went.

    Attributes:
        method: The method.
        emerged: Whether a ticket has emerged; of a method that draws at a set epoch, False.
        forced: Whether the newest mask was drawn although it had not emerged.
        epoch: When the ticket was drawn: at emergence, or where the method says so; None: nothing emerged.
        triggered_epoch: When WORM or Fade began to truncate; None: it did not.
        seconds: Of training until then, with the search's own work.
        train_flops: Likewise; a multiply-add counts as two.
        overhead_seconds: Of the search's own work.
        overhead_flops: Likewise.
        history: One record per check.
        distances: The distance of every mask to each earlier one, in [0, 1]: row i has i entries. Empty if the masks
            were too large to be kept.
        rounds: Units kept after each round of iterative pruning.
    """

    method: str
    emerged: bool
    forced: bool
    epoch: float | None
    triggered_epoch: float | None
    seconds: float
    train_flops: int
    overhead_seconds: float
    overhead_flops: int
    history: tuple[CheckRecord, ...]
    distances: tuple[tuple[float, ...], ...] = ()
    rounds: tuple[int, ...] = ()

    @property
    def set_by_method(self) -> bool:
        """Whether the ticket was drawn at an epoch that was set beforehand, and not found by a search."""
        return not (self.emerged or self.forced) and self.epoch is not None

    @property
    def censored(self) -> bool:
        """Whether a search has ended without emergence: all that is known is that it takes longer."""
        return not self.emerged and not self.set_by_method


@dataclass(frozen=True)
class AccuracyResult:
    """Held-out accuracies, in [0, 1]; `pruned` and `final` are None where no ticket was drawn.

    `recovery` has one per epoch of retraining, None where it was not measured, `losses` the mean training loss of the
    same epoch.
    """

    before: float
    pruned: float | None
    recovery: tuple[float | None, ...]
    final: float | None
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class DenseCost:
    """What one example costs the dense network (MACs count a multiply-add as one)."""

    parameters: int
    macs: int
    latency_seconds: float


@dataclass(frozen=True)
class TicketCost:
    """What one example costs the compacted network, and how many units are left of how many."""

    parameters: int
    macs: int
    latency_seconds: float
    units_kept: int
    units: int


@dataclass(frozen=True)
class TotalCost:
    """All training of the run, and what dense training for as many epochs would have taken."""

    train_flops: int
    retrain_flops: int
    seconds: float
    dense_train_flops: int


@dataclass(frozen=True)
class CandidateResult:
    """One of the ratios that were searched for at once.

    Attributes:
        ratio: The pruning ratio.
        epoch: When its ticket emerged; None: it did not.
        pruned: Held-out accuracy right after pruning.
        losses: Mean training loss in each of the first epochs of retraining.
        accuracy: Held-out accuracy after these epochs.
        retrain_flops: Of these epochs.
        retrain_seconds: Likewise.
        chosen: Whether it was trained to the end.
        speed: What ratios are ranked by, the lowest first: the sum of the losses over as many whole epochs as all have;
            None: it was not trained for one.
    """

    ratio: float
    epoch: float | None
    pruned: float | None
    losses: tuple[float, ...]
    accuracy: float | None
    retrain_flops: int
    retrain_seconds: float
    chosen: bool
    speed: float | None = None

    @property
    def drawn(self) -> bool:
        """Whether a ticket of this ratio was drawn."""
        return self.pruned is not None


@dataclass(frozen=True)
class DataSummary:
    """How many examples there were, of which shape, and where the held-out ones came from.

    The shape of an image is channels, height and width; of a text, the typical number of tokens. The digest is one of
    all examples and labels, as they are used; empty if it is not known.
    """

    train: int
    test: int
    classes: int
    shape: tuple[int, ...]
    split: str
    digest: str = ""


@dataclass(frozen=True)
class RunResult:
    """Everything that came of one run; `ticket` is None where no ticket was drawn."""

    config: RunConfig
    versions: dict[str, str]
    seed: int
    device: str
    data: DataSummary
    search: SearchResult
    accuracy: AccuracyResult
    dense: DenseCost
    ticket: TicketCost | None
    total: TotalCost
    layers: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Units kept and units in all, per unit group."""
    candidates: tuple[CandidateResult, ...] = ()
    """The ratios to choose from, if several were searched for."""
    notes: tuple[str, ...] = ()
    """What the user should know: replaced classifiers, groups that are left out."""
    weights: str = ""
    """A digest of the files whose weights it started with; empty if there were none, or it is not known."""
    schema: int = SCHEMA

    @property
    def draw_epoch(self) -> float:
        """The epoch at which the ticket was drawn, or the search ended."""
        return self.search.history[-1].epoch if self.search.epoch is None else self.search.epoch

    @property
    def retrain_length(self) -> float:
        """Epochs of retraining; the last one is not whole where the search stopped within one."""
        config, drawn, taken = self.config, self.draw_epoch, len(self.accuracy.recovery)
        if config.match == "flops" and drawn > 0:
            return min(taken, drawn * (self.total.dense_train_flops / self.search.train_flops - 1))
        if config.match == "flops":
            return taken
        return min(taken, config.epochs - drawn if config.retrain_epochs is None else config.retrain_epochs)

    def to_json(self) -> str:
        """The text of `result.json`."""
        return json.dumps({"schema": self.schema, **dataclasses.asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "result.json") -> Self:
        """Parse the text of `result.json`.

        Raises:
            RunError: If it is damaged or of another schema.
        """
        with reading(source, "run again with --overwrite"):
            return cls.from_dict(json.loads(text), source)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "result.json") -> Self:
        """Inverse of `dataclasses.asdict` after a trip through JSON; for damaged values see `reading`.

        Raises:
            RunError: If it is of another schema.
        """
        check_schema(values, SCHEMA, source, "run it again")
        values = _with_tuples(values)
        search, ticket = values["search"], values["ticket"]
        parts = {
            "config": RunConfig.from_dict(values["config"]),
            "data": made(DataSummary, values["data"]),
            "search": made(SearchResult, {**search, "history": _several(CheckRecord, search["history"])}),
            "accuracy": made(AccuracyResult, values["accuracy"]),
            "dense": made(DenseCost, values["dense"]),
            "ticket": None if ticket is None else made(TicketCost, ticket),
            "total": made(TotalCost, values["total"]),
            "candidates": _several(CandidateResult, values.get("candidates", ())),
        }
        if not search["history"]:
            raise ValueError("history is empty")
        return made(cls, {**values, **parts})


@contextmanager
def reading(source: str, cure: str) -> Iterator[None]:
    """What goes wrong with the content of a JSON file becomes an error that names the file and the cure."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, ConfigError) as error:
        raise RunError(f"{source} is damaged ({type(error).__name__}: {error}): {cure}") from error


def check_schema(values: Mapping[str, Any], schema: int, source: str, cure: str) -> None:
    """Make sure that the content of a JSON file is of the schema that is read here."""
    if values["schema"] != schema:
        raise RunError(f"{source} has schema {values['schema']}, but this version reads {schema}: {cure}")


def made(kind: Callable[..., _T], values: Mapping[str, Any]) -> _T:
    """A dataclass of these values, which are of the types of its fields."""
    for name, hint in _hints(kind).items():
        if name in values and not _fits(values[name], hint):
            raise TypeError(f"{name} is {reprlib.repr(values[name])}")
    return kind(**values)


def _several(kind: Callable[..., _T], several: Iterable[Mapping[str, Any]]) -> tuple[_T, ...]:
    return tuple(made(kind, values) for values in several)


@cache
def _hints(kind: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value with tuples for lists is of a type; a whole number may stand for a fraction."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is UnionType:
        return any(_fits(value, part) for part in parts)
    if kind is Literal:
        return value in parts
    if kind is dict:
        return isinstance(value, dict) and all(_fits(item, parts[1]) for item in value.values())
    if kind is tuple:
        kinds = parts[:1] * len(value) if isinstance(value, tuple) and parts[-1] is Ellipsis else parts
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    return type(value) is hint or (hint is float and type(value) is int)


def _with_tuples(value: Any) -> Any:
    """A JSON value in which all lists have become tuples."""
    if isinstance(value, Mapping):
        return {name: _with_tuples(item) for name, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
