"""What every display of work in progress does: it draws in a terminal, and writes plain lines everywhere else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live


class LiveDisplay(ABC):
    """One live display on standard error; where nothing can be drawn (a file, a pipe, a dumb terminal), lines."""

    def __init__(self, console: Console | None = None) -> None:
        """Choose the place to write to.

        Args:
            console: Where to write; None: standard error.
        """
        self._console = console or Console(stderr=True)
        self._live: Live | None = None

    def __enter__(self) -> Self:
        # A dumb terminal cannot move its cursor, so it gets plain lines too.
        if self._console.is_interactive:
            self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    @abstractmethod
    def _draw(self) -> RenderableType:
        """What a terminal shows now."""

    def _line(self, kind: str, **values: object) -> None:
        """In a terminal the live display says the same, so that only elsewhere a line is written."""
        if not self._console.is_interactive:
            self._write(" ".join([kind, *(f"{name}={value}" for name, value in values.items())]))

    def _write(self, text: str) -> None:
        # The text goes out as it is: no wrapping, no markup in square brackets, nothing coloured.
        self._console.print(text, soft_wrap=True, markup=False, highlight=False, emoji=False)
