"""Runs that a cluster engine starts: submitit hands them to Slurm, or to processes of this machine."""

from __future__ import annotations

import json
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from earlyworm.comparisons.worker import DONE, FAILED, Reporter, run_cell
from earlyworm.comparisons.workers import Event, check_jobs, cores, threads_of_a_job
from earlyworm.errors import RunError, first_line
from earlyworm.experiments.config import RunConfig

if TYPE_CHECKING:
    from submitit import Job

_TIME_LIMIT_MINUTES = 24 * 60  # of a job; Slurm prefers what SBATCH_TIMELIMIT says
_LOOK_SECONDS = 0.5
# What a job has written last may be seen a little later on another machine than that it has ended.
_SHARED_FOLDER_SECONDS = 10.0
# Jobs outlive a comparison that is killed; when it goes on, it waits for those that are at work already.
_LOCK_PATIENCE_SECONDS = 60.0 * _TIME_LIMIT_MINUTES


@dataclass
class _Job:
    """A job, where it tells what happens, how much of that was read, its last word, and when it was seen to be over."""

    job: Job[None]
    told: Path
    read: int = 0
    last: Event | None = None
    over: float | None = None


class Submitit:
    """Hands every run to submitit as a job of its own: to Slurm where there is one, else to processes.

    What Slurm has to know beyond that is said by its own environment variables, such as SBATCH_PARTITION,
    SBATCH_TIMELIMIT or SBATCH_GPUS.
    """

    def __init__(self, folder: Path, jobs: int | None = None, gpus: int = 0) -> None:
        """Find out what there is.

        Args:
            folder: For scripts, logs and what the jobs tell; all machines must see it.
            jobs: How many jobs there may be at a time; None: on Slurm any number, else as many as there are cores.
            gpus: How many GPUs there are here; Slurm knows better.

        Raises:
            RunError: If submitit is not installed.
            ConfigError: If the jobs are too many for this machine.
        """
        try:
            from submitit import AutoExecutor
        except ImportError as error:
            raise RunError("--launcher submitit needs submitit: pip install 'earlyworm[slurm]'") from error
        self._executor = AutoExecutor(folder=folder)
        self._executor.update_parameters(name="earlyworm", timeout_min=_TIME_LIMIT_MINUTES)
        self._threads: int | None = None
        self._folder = folder
        self._jobs: dict[int, _Job] = {}
        self.slots = jobs or sys.maxsize
        if self._executor.cluster == "local":
            check_jobs(jobs)
            self.slots = jobs or cores()
            self._threads = threads_of_a_job(self.slots)
            self._executor.update_parameters(gpus_per_node=min(1, gpus))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for job in self._jobs.values():
            job.job.cancel(check=False)
        deadline = time.monotonic() + _SHARED_FOLDER_SECONDS
        while time.monotonic() < deadline and not all(job.job.done() for job in self._jobs.values()):
            time.sleep(0.05)

    def start(self, number: int, config: RunConfig) -> None:
        """Submit a run.

        Raises:
            RunError: If it is not accepted.
        """
        # A job of a comparison that was killed may begin later, and still tell what happens to it.
        told = (self._folder / f"cell-{number}-{uuid.uuid4().hex[:8]}.jsonl").resolve()
        try:
            job = self._executor.submit(_run, asdict(config), str(told), self._threads)
        except RuntimeError as error:
            raise RunError(
                f"the launcher refuses the run ({first_line(error)}): check the SBATCH_ variables, or leave out "
                "--launcher"
            ) from error
        self._jobs[number] = _Job(job, told)

    def wait(self) -> list[Event]:
        """What was told since the last time; waits until there is something."""
        while True:
            events = [event for number in list(self._jobs) for event in self._news(number)]
            if events:
                return events
            time.sleep(_LOOK_SECONDS)

    def _news(self, number: int) -> list[Event]:
        """What one job has told since the last time; its last word only when it is over, and then it is forgotten."""
        job = self._jobs[number]
        done = job.job.done()  # asked first, so that everything it told is read
        events = [Event(number, kind, tuple(values)) for kind, *values in map(json.loads, _new_lines(job))]
        if events and events[-1].kind in (DONE, FAILED):
            job.last = events.pop()
        if done and job.last is None:
            job.over = job.over or time.monotonic()
            if self._executor.cluster == "local" or time.monotonic() - job.over > _SHARED_FOLDER_SECONDS:
                error = f"its job {job.job.job_id} ended without a result ({job.job.state}): see {job.job.paths.stderr}"
                job.last = Event(number, FAILED, (error, False))
        if done and job.last is not None:
            del self._jobs[number]
            events.append(job.last)
        return events


def _new_lines(job: _Job) -> list[str]:
    """The whole lines that a job has written since the last time."""
    try:
        with job.told.open("rb") as file:
            file.seek(job.read)
            content = file.read()
    except FileNotFoundError:
        return []  # it has not begun yet
    whole = content[: content.rfind(b"\n") + 1]
    job.read += len(whole)
    return whole.decode().splitlines()


def _run(settings: dict[str, Any], told: str, threads: int | None) -> None:
    """Do one run, in a job; what happens goes to a file."""
    import torch

    torch.set_num_threads(threads or cores())
    with Path(told).open("a", encoding="utf-8", buffering=1) as file:
        run_cell(settings, Reporter(file.write), _LOCK_PATIENCE_SECONDS)
