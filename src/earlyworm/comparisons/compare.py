"""A comparison: every cell of a grid is a run; those that are there are reused, the others are done side by side."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from earlyworm.comparisons.agreement import budget_differences, circumstances, origin_differences
from earlyworm.comparisons.comparison import Comparison, Outcome
from earlyworm.comparisons.grid import Cell, Grid
from earlyworm.comparisons.worker import DONE, FAILED, LOCK_PATIENCE_SECONDS
from earlyworm.comparisons.workers import Event, Workers, cores, visible_gpus
from earlyworm.errors import ConfigError, EarlywormError, RunError
from earlyworm.experiments.claim import claim
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.results import RunResult
from earlyworm.experiments.run_directory import RunDirectory


class Watcher(Protocol):
    """Is told what happens while a comparison goes on; cells have the numbers of their order in the grid."""

    def planned(self, cells: Sequence[Cell]) -> None:
        """All cells of the grid."""

    def started(self, number: int) -> None:
        """A run begins, or goes on."""

    def told(self, number: int, kind: str, values: Sequence[Any]) -> None:
        """A run has called this method of its `Observer`; a record is a dictionary."""

    def ended(self, number: int, outcome: Outcome) -> None:
        """A run is done or has failed; of one that was not started, the result was there or it cannot start."""


class Quiet:
    """A watcher that shows nothing."""

    def planned(self, cells: Sequence[Cell]) -> None:
        """Nothing."""

    def started(self, number: int) -> None:
        """Nothing."""

    def told(self, number: int, kind: str, values: Sequence[Any]) -> None:
        """Nothing."""

    def ended(self, number: int, outcome: Outcome) -> None:
        """Nothing."""


class Engine(Protocol):
    """Does runs elsewhere, up to `slots` at a time."""

    slots: int

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def start(self, number: int, config: RunConfig) -> None:
        """Begin a run."""

    def wait(self) -> list[Event]:
        """What was told since the last time; waits until there is something."""


def compare(
    grid: Grid,
    *,
    jobs: int | None = None,
    launcher: Literal["submitit"] | None = None,
    force: bool = False,
    watcher: Watcher | None = None,
) -> Comparison:
    """Do all runs of a grid, or go on with them; a run that fails does not stop the others.

    Args:
        grid: The runs.
        jobs: How many of them at a time; None: as many as there are GPUs, or else cores.
        launcher: What starts them; None: processes of this machine.
        force: Compare different data and budgets too, and mark it.
        watcher: Is told what happens.

    Returns:
        The comparison, which also lies in `grid.directory` as `comparison.json`.

    Raises:
        EarlywormError: If the grid is impossible, its results cannot be compared, or nothing can be written.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but a comparison starts its own processes: start it alone, and "
            "say --jobs"
        )
    cells = grid.cells()
    marks = budget_differences(cells)
    _require_force(marks, force)
    course = _Course(cells, watcher or Quiet())
    with claim(grid.directory, LOCK_PATIENCE_SECONDS):
        _write(grid.directory / "grid.json", json.dumps(grid.given(), indent=1) + "\n")
        course.begin()
        _require_force(origin_differences(course.outcomes.values()), force)
        try:
            if course.ready:
                with _engine(grid.directory, cells, jobs, launcher) as engine:
                    course.work(engine)
        except KeyboardInterrupt:
            with suppress(RunError):  # what there is can be looked at
                _conclude(grid, course, marks, force)
            raise
        return _conclude(grid, course, marks, force)


class _Course:
    """What became of the cells so far, and which ones can begin."""

    def __init__(self, cells: Sequence[Cell], watcher: Watcher) -> None:
        self.cells = list(cells)
        self.outcomes: dict[int, Outcome] = {}
        self.ready: deque[int] = deque()
        self._running: set[int] = set()
        self._watcher = watcher
        numbers = {(cell.label, cell.config.seed, cell.setting): number for number, cell in enumerate(cells)}
        self._references = {
            number: numbers[cell.follows, cell.config.seed, cell.setting]
            for number, cell in enumerate(cells)
            if cell.follows is not None
        }
        self._begun: dict[str, int] = {}  # by the name of the run's directory
        self._then: dict[int, list[int]] = {}
        for follower, reference in self._references.items():
            self._then.setdefault(reference, []).append(follower)

    def begin(self) -> None:
        """Find out what is there already, and what can begin."""
        self._watcher.planned(self.cells)
        for number in range(len(self.cells)):
            if number not in self._references:
                self._advance(number)
        # Those first that others wait for.
        self.ready = deque(sorted(self.ready, key=lambda number: number not in self._then))

    def work(self, engine: Engine) -> None:
        """Do everything that can begin, and what can begin after that."""
        while self.ready or self._running:
            while self.ready and len(self._running) < engine.slots:
                number = self.ready.popleft()
                engine.start(number, self.cells[number].config)
                self._running.add(number)
                self._watcher.started(number)
            for event in engine.wait():
                self._take(event)

    def outcome(self, number: int) -> Outcome:
        """What came of a cell, or that it waits."""
        return self.outcomes.get(number) or self._outcome(number)

    def _take(self, event: Event) -> None:
        """Note what an engine has told."""
        number = event.number
        if event.kind not in (DONE, FAILED):
            self._watcher.told(number, event.kind, event.values)
            return
        self._running.remove(number)
        if event.kind == FAILED:
            self._end(number, error=event.values[0])
            return
        try:
            self._end(number, RunDirectory.of(self.cells[number].config).read_result())
        except EarlywormError as error:
            self._end(number, error=str(error))

    def _advance(self, number: int) -> None:
        """A cell whose reference, if it has one, has ended: it is there already, or cannot begin, or is ready."""
        cell = self.cells[number]
        try:
            if number in self._references:
                reference = self.outcomes[self._references[number]]
                if reference.result is None:
                    raise RunError(f"{cell.follows}, whose ticket {cell.label} follows, has failed: see its error")
                cell = self.cells[number] = cell.after(reference.result)
            directory = RunDirectory.of(cell.config)
            directory.check_owner(cell.config)
            result = directory.ended(cell.config)
        except EarlywormError as error:
            self._end(number, error=str(error))
            return
        if result is not None:
            self._end(number, result)
        # Two cells are the same run if they follow tickets that were drawn at the same time.
        elif (same := self._begun.setdefault(cell.config.directory_name(), number)) != number:
            self._then.setdefault(same, []).append(number)
        else:
            self.ready.append(number)

    def _end(self, number: int, result: RunResult | None = None, error: str | None = None) -> None:
        """A cell is done or has failed; those that follow it can begin or fail too."""
        self._begun = {name: other for name, other in self._begun.items() if other != number}
        self.outcomes[number] = self._outcome(number, result, error)
        self._watcher.ended(number, self.outcomes[number])
        for other in self._then.pop(number, ()):
            if self.cells[other].config == self.cells[number].config:
                self._end(
                    other, result, error
                )  # the same run, which may not be done twice, say where it is overwritten
            else:
                self._advance(other)

    def _outcome(self, number: int, result: RunResult | None = None, error: str | None = None) -> Outcome:
        cell = self.cells[number]
        known = cell.follows is None  # otherwise its settings are not complete
        return Outcome(
            method=cell.label,
            seed=cell.config.seed,
            setting=cell.setting,
            state="done" if result is not None else "failed" if error is not None else "waiting",
            error=error,
            directory=str(RunDirectory.of(cell.config).path) if known else "",
            command=cell.config.command() if known else "",
            result=result,
        )


def _engine(folder: Path, cells: Sequence[Cell], jobs: int | None, launcher: Literal["submitit"] | None) -> Engine:
    """What does the runs."""
    gpus = visible_gpus() if any(cell.config.device == "auto" for cell in cells) else []
    if launcher == "submitit":
        from earlyworm.comparisons.launchers import Submitit

        return Submitit(folder / "jobs", jobs, len(gpus))
    return Workers(jobs or min(len(gpus), cores()) or cores(), folder / "logs", gpus)


def _conclude(grid: Grid, course: _Course, marks: Sequence[str], force: bool) -> Comparison:
    """Put everything together, and write it."""
    outcomes = tuple(map(course.outcome, range(len(course.cells))))
    differences = origin_differences(outcomes)
    _require_force(differences, force)
    forced = [f"compared by force: {difference}" for difference in (*marks, *differences)]
    comparison = Comparison(
        title=grid.title,
        command=grid.command(),
        baseline=grid.baseline,
        match=course.cells[0].config.match,
        outcomes=outcomes,
        marks=(*forced, *circumstances(outcomes)),
    )
    _write(grid.directory / "comparison.json", comparison.to_json())
    return comparison


def _require_force(differences: Sequence[str], force: bool) -> None:
    if differences and not force:
        more = f" (and {len(differences) - 1} more differences)" if differences[1:] else ""
        raise RunError(
            f"no fair comparison: {differences[0]}{more}; make them agree, or compare with --force, and the report "
            "says so"
        )


def _write(path: Path, text: str) -> None:
    RunDirectory(path.parent).write(path, text.encode())
