"""Several processes of this machine, each doing one run after another."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from earlyworm.comparisons.worker import DONE, FAILED
from earlyworm.errors import ConfigError
from earlyworm.experiments.config import RunConfig

_FAREWELL_SECONDS = 5.0


@dataclass(frozen=True)
class Event:
    """What the process that does a run has told.

    Attributes:
        number: Of the run.
        kind: The method of `Observer` that was called; or "done"; or "failed".
        values: Its arguments, a record as a dictionary; of "failed", the error in one line.
    """

    number: int
    kind: str
    values: tuple[Any, ...]


@dataclass(eq=False)
class _Process:
    """A worker, what it computes on, and the number of the run that it does, if any."""

    popen: subprocess.Popen[str]
    log: Path
    place: int
    number: int | None = None


class Workers:
    """Processes that do runs. They start when they are needed, serve many runs, and are replaced when one dies.

    Each has its share of the cores, so that they do not fight for them, and one GPU, if there are any.

    Example:
        >>> with Workers(2, Path("logs")) as workers:
        ...     workers.start(0, RunConfig())
        ...     print(workers.wait())
    """

    def __init__(self, jobs: int, logs: Path, gpus: Sequence[str] = ()) -> None:
        """Nothing starts yet.

        Args:
            jobs: How many processes there may be at a time.
            logs: The folder for what they print.
            gpus: What CUDA calls the devices that they share.
        """
        self.slots = jobs
        self._logs = logs
        self._gpus = gpus
        self._threads = threads_of_a_job(jobs)
        self._idle: list[_Process] = []
        self._busy: list[_Process] = []
        self._told: queue.SimpleQueue[tuple[_Process, str | None]] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A run that is cut off goes on from its last checkpoint.
        for process in (*self._idle, *self._busy):
            _dismiss(process)
        for process in (*self._idle, *self._busy):
            try:
                process.popen.wait(_FAREWELL_SECONDS)
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()

    def start(self, number: int, config: RunConfig) -> None:
        """Begin a run, in a process that is free."""
        process = self._idle.pop() if self._idle else self._hire()
        process.number = number
        self._busy.append(process)
        with suppress(BrokenPipeError):  # it has died, which is told when its output ends
            _pipe(process.popen.stdin).write(json.dumps(asdict(config)) + "\n")
            _pipe(process.popen.stdin).flush()

    def wait(self) -> list[Event]:
        """What was told since the last time; waits until there is something."""
        process, line = self._told.get()
        if line is None:
            return self._buried(process)
        kind, *values = json.loads(line)
        event = Event(-1 if process.number is None else process.number, kind, tuple(values))
        if kind in (DONE, FAILED):
            self._busy.remove(process)
            process.number = None
            fit = kind == DONE or values[1]
            if fit:
                self._idle.append(process)
            else:
                _dismiss(process)
        return [event]

    def _hire(self) -> _Process:
        """A new process, in a place that no other one has."""
        place = min(set(range(self.slots)) - {process.place for process in (*self._idle, *self._busy)})
        environment = {**os.environ, "OMP_NUM_THREADS": str(self._threads)}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[place % len(self._gpus)]
        log = self._logs / f"worker-{place}.log"
        with log.open("a") as file:
            popen = subprocess.Popen(
                # What lies in the folder of work must not be imported instead of what is meant.
                [sys.executable, "-P", "-m", "earlyworm.comparisons.worker", str(self._threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
                text=True,
                encoding="utf-8",
                process_group=0,  # Ctrl-C is for this process, which ends the others
            )
        process = _Process(popen, log, place)
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        return process

    def _listen(self, process: _Process) -> None:
        with _pipe(process.popen.stdout) as lines:
            for line in lines:
                self._told.put((process, line))
        self._told.put((process, None))

    def _buried(self, process: _Process) -> list[Event]:
        """What is told of a process that has ended."""
        code = process.popen.wait()
        _dismiss(process)
        if process in self._idle:
            self._idle.remove(process)
        if process.number is None:
            return []
        self._busy.remove(process)
        if code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
            how += " (is there too little memory?)" if -code == signal.SIGKILL else ""
        else:
            how = f"ended with status {code}"
        error = f"its process {how}: see {process.log}; the same command goes on from the last checkpoint"
        return [Event(process.number, FAILED, (error, False))]


def _dismiss(process: _Process) -> None:
    """A worker whose input ends, ends itself."""
    with suppress(BrokenPipeError):
        _pipe(process.popen.stdin).close()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None  # each was asked for
    return pipe


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of_a_job(jobs: int) -> int:
    """How many threads each of several jobs may use, so that together they are no more than cores."""
    share = max(1, cores() // jobs)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(asked)) if asked.isdigit() and int(asked) else share


def check_jobs(jobs: int | None, *, here: bool = True) -> None:
    """Make sure that a number of jobs is possible.

    Args:
        jobs: The number; None always is.
        here: Whether they share the cores of this machine.

    Raises:
        ConfigError: If it is not.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs is {jobs}, but must be at least 1")
    if jobs is not None and here and jobs > cores():
        raise ConfigError(f"jobs is {jobs}, but must be at most {cores()}, the cores that this process may use")


def visible_gpus() -> list[str]:
    """What CUDA calls the GPUs that this process may use."""
    import torch

    count = torch.cuda.device_count()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (chosen.split(",") if chosen else [str(number) for number in range(count)])[:count]
