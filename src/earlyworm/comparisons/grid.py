"""A grid of runs: methods x seeds x pruning ratios x models x data.

Nothing heavy is imported here, so that the command can answer a wrong grid at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from earlyworm.comparisons.comparison import Setting
from earlyworm.comparisons.grid_methods import FOLLOWED, OF_ONE_METHOD, GridMethod
from earlyworm.errors import ConfigError
from earlyworm.experiments.checks import typed
from earlyworm.experiments.config import HINTS, RunConfig, option_words
from earlyworm.experiments.names import SEARCHES, Task, check_data_name, check_model_name, suggest, task_by_name
from earlyworm.experiments.results import RunResult

METHODS = (
    "dense", "narrow", "random", "random@early-bird", "late", "early-bird", "constant", "greedy", "worm",
    "worm:static=window", "fade", "imp", "rst",
)  # fmt: skip
SEEDS = (0, 1, 2, 3, 4)

_AXES = {"methods": object, "seeds": int, "ratios": float, "models": str, "data": str, "limits": int}

OPTIONS = tuple(
    option.name
    for option in dataclasses.fields(RunConfig)
    if option.name not in {"method", "seed", "ratio", "model", *_AXES, *OF_ONE_METHOD}
)
"""Options of a run that a grid sets for all of its runs."""


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        label: What its method is called in the grid.
        setting: What it has in common with the runs that it is compared with.
        config: Its settings; without what it takes from the ticket of another one.
        follows: The method from whose ticket it takes that, with the same seed and setting; None: from none.
    """

    label: str
    setting: Setting
    config: RunConfig
    follows: str | None = None

    def __str__(self) -> str:
        return f"{self.label}, seed {self.config.seed}, {self.setting}"

    def after(self, reference: RunResult) -> Self:
        """The cell with its settings complete, now that there is a result of the one that it follows.

        Raises:
            ConfigError: If nothing can be taken from it.
        """
        if reference.ticket is None:
            raise ConfigError(
                f"{self.follows} drew no ticket that {self.label} could follow: raise search_epochs or epsilon, or "
                "draw by force"
            )
        name = FOLLOWED[self.config.method]
        drawn = reference.search.epoch
        if drawn is None:  # by force, when the search was over
            drawn = reference.search.history[-1].epoch
        taken: dict[str, Any] = {name: reference.ticket.macs if name == "macs" else drawn}
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **taken), follows=None)


@dataclass(frozen=True)
class Grid:
    """Every method with every seed, pruning ratio, model and data set.

    Attributes:
        methods: The methods.
        baseline: The label of the one that the others are compared with.
        seeds: The seeds.
        ratios: The pruning ratios.
        models: The models; None: the default for each data set.
        data: The data sets.
        limits: The most training examples; None: as the options say.
        pick: Which ratios are trained to the end: all, or by training speed one that each run chooses among them.
        name: Begins the name of the comparison's directory; None: models and data do.
        options: Further options of all runs, by the names of `RunConfig`; the others have the defaults for their data.

    Raises:
        ConfigError: If there is no cell, one is there twice, or anything is impossible.

    Example:
        >>> grid = Grid.of({"methods": ["early-bird", "worm"], "seeds": [0, 1], "data": "digits"})
        >>> len(grid.cells())
        4
    """

    methods: tuple[GridMethod, ...]
    baseline: str
    seeds: tuple[int, ...] = SEEDS
    ratios: tuple[float, ...] = (0.5,)
    models: tuple[str, ...] | None = None
    data: tuple[str, ...] = ("digits",)
    limits: tuple[int, ...] | None = None
    pick: Literal["all", "speed"] = "all"
    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        labels = [method.label for method in self.methods]
        for axis in _AXES:
            values = labels if axis == "methods" else getattr(self, axis)
            if values is None:
                continue
            if not values:
                raise ConfigError(f"{axis} is empty, so the grid has no cells: give at least one")
            value, count = Counter(values).most_common(1)[0]
            if count > 1:
                raise ConfigError(f"{axis} has {value!r} twice: leave one of them out")
        if self.limits is not None and "limit" in self.options:
            raise ConfigError("limit and limits are given: leave one of them out")
        if self.pick not in ("all", "speed"):
            raise ConfigError(f"unknown pick {self.pick!r}: {suggest(str(self.pick), ('all', 'speed'))}")
        if self.pick == "speed" and len(self.ratios) < 2:
            raise ConfigError(f"ratios is {self.ratios[0]:g}, but to pick one there must be two or more")
        if self.baseline not in labels:
            raise ConfigError(f"the baseline {self.baseline!r} is not in the grid: {suggest(self.baseline, labels)}")
        followers = {method.label for method in self.methods if self._follows(method)}
        for method in self.methods:
            if method.follows and (method.follows not in labels or method.follows in followers):
                others = ", ".join(label for label in labels if label not in followers)
                raise ConfigError(
                    f"{method.label!r} follows {method.follows!r}, but there is no such method, or it follows another "
                    f"itself: add it, or choose from {others or 'methods that follow none'}"
                )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """A grid from options and their values, as they stand in a file or on the command line.

        Raises:
            ConfigError: If anything in it is impossible.
        """
        values = {name.replace("-", "_"): value for name, value in given.items()}
        names = [*_AXES, "baseline", "name", "pick", *OPTIONS]
        for name in values:
            if name not in names:
                raise ConfigError(f"unknown option {name!r} of a grid: {suggest(name, names)}")
        axes = {name: _several(name, values.pop(name), kind) for name, kind in _AXES.items() if name in values}
        # Single weights that are held at zero save no FLOPs, so this method cannot take part there.
        usual = [method for method in METHODS if method != "imp" or values.get("match") != "flops"]
        pick = values.pop("pick", "all")
        if pick == "speed":  # only a search finds tickets of several ratios at once
            usual = [method for method in METHODS if method.partition(":")[0] in SEARCHES]
        methods = tuple(map(GridMethod.of, axes.pop("methods", usual)))
        baseline = values.pop("baseline", None) or _usual_baseline(methods)
        name = values.pop("name", None)
        for title, word in (("baseline", baseline), ("name", name)):
            if not isinstance(word, str | None):
                raise ConfigError(f"{title} is {word!r}, but must be a word")
        # Equal values must read alike: the comparison's directory is named after them.
        options = {
            option: typed(option, tuple(value) if isinstance(value, list) else value, HINTS[option])
            for option, value in values.items()
        }
        return cls(methods=methods, baseline=baseline, pick=pick, name=name, options=options, **axes)

    def given(self) -> dict[str, Any]:
        """Inverse of `of`."""
        values: dict[str, Any] = {"methods": [str(method) for method in self.methods], "baseline": self.baseline}
        values |= {axis: list(getattr(self, axis)) for axis in ("seeds", "ratios", "data")}
        values |= {axis: list(some) for axis in ("models", "limits") if (some := getattr(self, axis)) is not None}
        values |= {} if self.pick == "all" else {"pick": self.pick}
        return values | ({} if self.name is None else {"name": self.name}) | dict(self.options)

    def command(self) -> str:
        """The command line that does or continues the comparison: every option that differs from its default."""
        words = ["earlyworm", "compare"]
        usual = Grid.of({"match": self.options.get("match", "epochs")}).given()
        usual["baseline"] = _usual_baseline(self.methods)
        # What is started afresh once is not started afresh when it goes on.
        given = {name: value for name, value in self.given().items() if name != "overwrite"}
        for name, value in given.items():
            if value != usual.get(name) or name in self.options:
                words += option_words(name, value)
        return shlex.join(words)

    @property
    def title(self) -> str:
        """A few words for headings."""
        what = self.name or " and ".join(self.data)
        counts = {"method": len(self.methods), "seed": len(self.seeds)}
        return f"{what}: " + ", ".join(f"{count} {noun}{'s' * (count != 1)}" for noun, count in counts.items())

    @property
    def directory(self) -> Path:
        """Where the comparison's own files lie; its name ends with a hash of everything that makes the comparison."""
        given = {name: value for name, value in self.given().items() if name not in ("output", "overwrite")}
        digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:8]
        names = [self.name] if self.name else [*self.data, *(self.models or ())]
        readable = "-".join(Path(name.rstrip("/")).name.replace(":", "-") for name in names)[:64]
        return Path(self.options.get("output", RunConfig.output)) / f"compare-{readable}-{digest}"

    @property
    def size(self) -> int:
        """How many cells there are."""
        return math.prod(map(len, self._axes))

    def cells(self) -> tuple[Cell, ...]:
        """All cells: setting by setting, and seed by seed, so that methods can be compared long before all are done.

        Raises:
            ConfigError: If the options of a cell are impossible, or two cells are the same run.
            DataError: If it takes a look at the data to tell the defaults, and they cannot be opened.
        """
        configs = (
            (method, self._config(method, model, data, limit, ratio, seed))
            for data, model, limit, ratio, seed, method in itertools.product(*self._axes)
        )
        cells = tuple(
            Cell(method.label, Setting.of(config), _of_any_ratio(config), self._follows(method))
            for method, config in configs
        )
        known: dict[tuple[Any, ...], Cell] = {}
        for cell in cells:
            first = known.setdefault((cell.setting, json.dumps(cell.config.settings()), cell.follows), cell)
            if first is not cell:
                raise ConfigError(f"{first.label!r} and {cell.label!r} are the same runs: leave one of them out")
        return cells

    @property
    def _axes(self) -> tuple[Sequence[Any], ...]:
        """Data, models, limits, ratios, seeds and methods; None: as the options or defaults say."""
        ratios = self.ratios if self.pick == "all" else (None,)
        return self.data, self.models or (None,), self.limits or (None,), ratios, self.seeds, self.methods

    def _config(
        self, method: GridMethod, model: str | None, data: str, limit: int | None, ratio: float | None, seed: int
    ) -> RunConfig:
        changes: dict[str, Any] = {**self.options, **dict(method.options)}
        changes |= {"task": self._task(model, data), "method": method.method, "data": data}
        changes |= {"seed": seed} | ({"ratios": self.ratios} if ratio is None else {"ratio": ratio})
        changes |= {name: value for name, value in (("model", model), ("limit", limit)) if value is not None}
        try:
            config = RunConfig.for_text(**changes) if changes["task"] == "text" else RunConfig(**changes)
            check_model_name(config.model)
        except ConfigError as error:
            raise ConfigError(f"{method.label}: {error}") from error
        return config

    def _task(self, model: str | None, data: str) -> Task:
        check_data_name(data)
        task: Task | None = self.options.get("task") or task_by_name(model, data)
        if task is None:
            from earlyworm.experiments.data import task_of

            task = task_of(model, data)
        return task

    def _follows(self, method: GridMethod) -> str | None:
        """The method that another one follows; narrow is as small as the ticket of a search, if there is one."""
        if method.follows or method.method != "narrow" or "macs" in dict(method.options):
            return method.follows
        searches = [other.label for other in self.methods if other.method in SEARCHES]
        return next((label for label in ("early-bird", self.baseline) if label in searches), None)


def _usual_baseline(methods: Sequence[GridMethod]) -> str:
    labels = [method.label for method in methods]
    return "early-bird" if "early-bird" in labels or not labels else labels[0]


def _of_any_ratio(config: RunConfig) -> RunConfig:
    """The same run for every ratio, where nothing is removed."""
    return dataclasses.replace(config, ratio=RunConfig.ratio) if config.method == "dense" else config


def _several(name: str, value: Any, kind: type) -> tuple[Any, ...]:
    """The values of an axis; a single one may stand for itself."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if kind is float:
        values = tuple(float(number) if type(number) is int else number for number in values)
    for one in values:
        if kind is not object and type(one) is not kind:
            raise ConfigError(f"{name} has {one!r}, but each must be of type {kind.__name__}")
    return values
