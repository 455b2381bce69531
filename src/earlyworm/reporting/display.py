"""What the command shows while it works: one live display in a terminal, plain lines everywhere else."""

from __future__ import annotations

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from earlyworm.experiments.results import CheckRecord
from earlyworm.reporting.live import LiveDisplay

# Checks and held-out evaluations halt the bar for a while; a long memory keeps the time left steady.
_SPEED_MEMORY_SECONDS = 300.0


class Display(LiveDisplay):
    """Shows the progress of a run on standard error, so that standard output stays free for the result.

    In a terminal it draws one bar with the latest readings below it. Elsewhere (a file, a pipe, a dumb terminal) it
    writes one `key=value` line per stage, check, recovery epoch and note, without escape codes.

    Example:
        >>> with Display() as display:
        ...     display.stage("search", epochs=20, done=0)
        ...     display.progress(epoch=0.5, loss=2.1)
    """

    def __init__(self, console: Console | None = None) -> None:
        """See `LiveDisplay`."""
        super().__init__(console)
        self._readings: dict[str, str] = {}
        self._progress = Progress(
            TextColumn("{task.description:<8}", style="bold"),
            BarColumn(bar_width=None),
            TextColumn("epoch {task.completed:.2f} of {task.total:.4g}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            expand=True,
            speed_estimate_period=_SPEED_MEMORY_SECONDS,
        )
        self._task: TaskID | None = None

    def stage(self, name: str, epochs: float, done: float) -> None:
        """Begin a stage.

        Args:
            name: "search" or "retrain".
            epochs: How many epochs the stage may take.
            done: How many of them an earlier, interrupted process has done.
        """
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(name, total=epochs)
        # Not by `update`, which would count the epochs of the earlier process into the speed of this one.
        self._progress.tasks[-1].completed = done
        self._readings = {}
        self._line("stage", name=name, epochs=f"{epochs:.4g}", done=f"{done:.4g}")

    def progress(self, epoch: float, loss: float) -> None:
        """Take note of the epoch reached within the stage, and of the newest training loss."""
        if self._task is not None:
            self._progress.update(self._task, completed=epoch)
        self._readings["loss"] = _number(loss, 3)

    def check(self, record: CheckRecord) -> None:
        """Show one check of the search."""
        if record.loss is not None:
            self.progress(record.epoch, record.loss)
        self._readings |= {
            "distance": f"{_number(record.distance_mean, 3)}, max {_number(record.distance_max, 3)}",
            "chi": f"{record.chi:.3g}",
            "truncated": str(record.truncated),
        }
        if record.accuracy is not None:
            self._readings["accuracy"] = f"{record.accuracy:.1%}"
        self._line(
            "check",
            epoch=f"{record.epoch:.4g}",
            loss=_number(record.loss),
            accuracy=_number(record.accuracy),
            distance_mean=_number(record.distance_mean),
            distance_max=_number(record.distance_max),
            chi=f"{record.chi:g}",
            truncated=str(record.truncated),
        )

    def recovered(self, epoch: float, loss: float, accuracy: float | None) -> None:
        """Show the epoch of retraining that is done, its mean training loss, and the held-out accuracy in [0, 1]."""
        self.progress(epoch, loss)
        if accuracy is not None:
            self._readings["accuracy"] = f"{accuracy:.1%}"
        self._line("recovered", epoch=f"{epoch:.4g}", loss=_number(loss), accuracy=_number(accuracy))

    def note(self, text: str) -> None:
        """Show something that the user should know, above the bar."""
        self._write(f"note {text}")

    def _draw(self) -> Group:
        """The bar, and below it the newest readings."""
        readings = Text()
        # In one fixed order: readings must not change places while one looks at them.
        for name in ("loss", "accuracy", "distance", "chi", "truncated"):
            if name in self._readings:
                readings.append(f"{name} ", style="dim").append(f"{self._readings[name]}  ")
        return Group(self._progress, readings)


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
