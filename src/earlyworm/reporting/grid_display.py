"""What the command shows while it compares: all runs of a grid in one live display, or plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from earlyworm.comparisons.comparison import Outcome
from earlyworm.comparisons.grid import Cell
from earlyworm.reporting.live import LiveDisplay


@dataclass
class _Running:
    """How far a run is, as it has told."""

    since: float
    stage: str = "starts"
    epochs: float = 0.0
    epoch: float = 0.0
    loss: float | None = None
    distance: float | None = None


class GridDisplay(LiveDisplay):
    """Shows the runs of a grid on standard error: how many are done, run, wait and have failed, and the time left.

    In a terminal it draws one line for the grid and one per run that is going on, with its epoch and mask distance.
    Elsewhere it writes one `key=value` line for each run that begins or ends.

    Example:
        >>> with GridDisplay() as display:
        ...     compare(grid, watcher=display)
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Choose the place to write to.

        Args:
            console: Where to write; None: standard error.
            clock: The time in seconds.
        """
        super().__init__(console)
        self._clock = clock
        self._cells: Sequence[Cell] = ()
        self._running: dict[int, _Running] = {}
        self._seconds: list[float] = []  # that runs took from beginning to end
        self._counts = {"done": 0, "failed": 0}
        self._reused = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell_reused()
        super().__exit__(kind, error, trace)

    def planned(self, cells: Sequence[Cell]) -> None:
        """Take note of all cells of the grid."""
        self._cells = cells
        self._line("grid", cells=len(cells))

    def started(self, number: int) -> None:
        """Show that a run begins or goes on."""
        self._tell_reused()
        self._running[number] = _Running(self._clock())
        self._line("started", **self._which(number))

    def told(self, number: int, kind: str, values: Sequence[Any]) -> None:
        """Show how far a run is."""
        run = self._running[number]
        if kind == "stage":
            if not run.epochs:
                run.since = self._clock()  # until then its process has started
            run.stage, run.epochs, run.epoch = values
            run.loss = run.distance = None
        elif kind == "progress":
            run.epoch, run.loss = values
        elif kind == "check":
            (record,) = values
            run.epoch, run.loss, run.distance = record["epoch"], record["loss"], record["distance_mean"]
        elif kind == "recovered":
            run.epoch, run.loss, _ = values

    def ended(self, number: int, outcome: Outcome) -> None:
        """Show how a run ended; one that was not started was there already, or cannot start."""
        self._counts[outcome.state] += 1
        run = self._running.pop(number, None)
        if run is None and outcome.state == "done":
            self._reused += 1
            return
        if run is not None and outcome.state == "done":
            self._seconds.append(self._clock() - run.since)
        if outcome.state == "failed":
            self._write(f"failed {self._cells[number]}: {outcome.error}")
        elif outcome.result is not None:
            final, epoch = outcome.result.accuracy.final, outcome.result.search.epoch
            self._line(
                "done",
                **self._which(number),
                epoch="-" if epoch is None else f"{epoch:.4g}",
                accuracy="-" if final is None else f"{final:.4f}",
                finished=sum(self._counts.values()),
                of=len(self._cells),
                left=self._left(),
            )

    def _tell_reused(self) -> None:
        if self._reused:
            self._write(f"note {self._reused} of {len(self._cells)} runs were there already")
            self._reused = 0

    def _which(self, number: int) -> dict[str, object]:
        cell = self._cells[number]
        where = {name: value for name, value in asdict(cell.setting).items() if value is not None}
        return {"method": cell.label, "seed": cell.config.seed} | (where if self._several() else {})

    def _several(self) -> bool:
        """Whether the grid has more than one setting."""
        return len({cell.setting for cell in self._cells}) > 1

    def _left(self) -> str:
        """The time until all runs are done, as long as the ones before have taken; "-": none has ended yet."""
        if not self._seconds:
            return "-"
        usual, now = sum(self._seconds) / len(self._seconds), self._clock()
        waiting = len(self._cells) - sum(self._counts.values()) - len(self._running)
        begun = sum(max(0.0, usual - (now - run.since)) for run in self._running.values())
        # As many at a time as run now; when one has just ended, the next one is about to begin.
        seconds = round((waiting * usual + begun) / max(1, len(self._running)))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def _draw(self) -> Group:
        """The grid in one line, and below it the runs that are going on."""
        total, ended = len(self._cells), sum(self._counts.values())
        waiting = total - ended - len(self._running)
        head = Table.grid(padding=(0, 2), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True)
        head.add_row(
            Text.assemble(
                f"{self._counts['done']} done, {len(self._running)} running, {waiting} waiting, ",
                (f"{self._counts['failed']} failed", "red" if self._counts["failed"] else ""),
            ),
            ProgressBar(total=max(1, total), completed=ended),
            f"left {self._left()}",
        )
        rows = Table.grid(padding=(0, 2))
        for number, run in sorted(self._running.items()):
            cell = self._cells[number]
            rows.add_row(
                Text(cell.label, style="bold", no_wrap=True),
                f"seed {cell.config.seed}",
                run.stage,
                f"epoch {run.epoch:.2f} of {run.epochs:.4g}" if run.epochs else "",
                f"distance {run.distance:.3f}" if run.distance is not None else "",
                f"loss {run.loss:.3f}" if run.loss is not None else "",
                Text(str(cell.setting) if self._several() else "", no_wrap=True, overflow="ellipsis"),
            )
        return Group(head, rows)
