"""What came of a comparison: `Comparison`, the outcomes of all its cells, and its JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from earlyworm.errors import RunError
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.results import RunResult, check_schema, made, reading

SCHEMA = 1

State = Literal["done", "failed", "waiting"]


@dataclass(frozen=True)
class Setting:
    """What is the same for all the runs that are compared with each other: they differ in method and seed alone.

    Attributes:
        model: The model.
        data: The data.
        ratio: The pruning ratio; None: every run chooses among several.
        limit: The most training examples; None: all.
    """

    model: str
    data: str
    ratio: float | None
    limit: int | None = None

    @classmethod
    def of(cls, config: RunConfig) -> Self:
        """The setting of a run."""
        return cls(config.model, config.data, None if config.ratios else config.ratio, config.limit)

    @property
    def task(self) -> str:
        """The setting without its ratio, in words."""
        return f"{self.model} on {self.data}" + ("" if self.limit is None else f", {self.limit} examples")

    def __str__(self) -> str:
        return f"{self.task}, ratio " + ("chosen by speed" if self.ratio is None else f"{self.ratio:g}")


@dataclass(frozen=True)
class Outcome:
    """What came of one cell.

    Attributes:
        method: The method's label in the grid: its name, or one given to a variant of it.
        seed: The seed.
        setting: Model, data and pruning ratio.
        state: done, failed, or waiting (stopped before its turn came, or while it ran).
        error: Why it failed, in one line.
        directory: The run's directory; empty as long as it depends on the result of another cell.
        command: The command that does this run alone; likewise.
        result: What came of it, if it is done.
    """

    method: str
    seed: int
    setting: Setting
    state: State
    error: str | None
    directory: str
    command: str
    result: RunResult | None


@dataclass(frozen=True)
class Comparison:
    """Methods against each other over seeds.

    Attributes:
        title: A few words for headings.
        command: The command that does or continues the comparison.
        baseline: The label of the method that the others are compared with.
        match: What all methods spend alike: epochs, or training FLOPs.
        outcomes: One per cell, in the grid's order.
        marks: What makes the comparison questionable, in words: it was forced, or devices or versions differ.
    """

    title: str
    command: str
    baseline: str
    match: Literal["epochs", "flops"]
    outcomes: tuple[Outcome, ...]
    marks: tuple[str, ...] = ()
    schema: int = SCHEMA

    @property
    def methods(self) -> tuple[str, ...]:
        """The labels, in the grid's order."""
        return tuple(dict.fromkeys(outcome.method for outcome in self.outcomes))

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings, in the grid's order."""
        return tuple(dict.fromkeys(outcome.setting for outcome in self.outcomes))

    def results(self, setting: Setting, method: str) -> dict[int, RunResult]:
        """The results that there are of a method in a setting, by seed."""
        return {
            outcome.seed: outcome.result
            for outcome in self.outcomes
            if outcome.result is not None and (outcome.setting, outcome.method) == (setting, method)
        }

    def to_json(self) -> str:
        """The text of `comparison.json`."""
        return json.dumps({"schema": self.schema, **dataclasses.asdict(self)}) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "comparison.json") -> Self:
        """Parse the text of `comparison.json`.

        Raises:
            RunError: If it is damaged or of another schema.
        """
        with reading(source, "compare again; finished runs are reused"):
            values = json.loads(text)
            check_schema(values, SCHEMA, source, "compare again")
            outcomes = tuple(_outcome(outcome, source) for outcome in values["outcomes"])
            if not outcomes:
                raise ValueError("it has no outcomes")
            return made(cls, {**values, "outcomes": outcomes, "marks": tuple(values["marks"])})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a `comparison.json`.

        Raises:
            RunError: If it is missing, damaged or of another schema.
        """
        try:
            return cls.from_json(path.read_bytes(), str(path))
        except OSError as error:
            raise RunError(f"{path} cannot be read ({error.strerror}): compare again") from error


def _outcome(values: Mapping[str, Any], source: str) -> Outcome:
    result = values["result"]
    parts = {
        "setting": made(Setting, values["setting"]),
        "result": None if result is None else RunResult.from_dict(result, source),
    }
    return made(Outcome, {**values, **parts})
