"""What all stages of a run work with: its parts, what they hand on, and who is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from earlyworm.costs import count_flops
from earlyworm.errors import RunError
from earlyworm.experiments.checkpoint import Pauses
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.data import Data
from earlyworm.experiments.results import CandidateResult, CheckRecord, DataSummary
from earlyworm.experiments.run_directory import RunDirectory
from earlyworm.experiments.training import Pace, Progress, train_steps
from earlyworm.tickets.ticket import Ticket

if TYPE_CHECKING:
    from accelerate import Accelerator


class Observer(Protocol):
    """Is told what happens while a run goes on; only the first process has one."""

    def stage(self, name: str, epochs: float, done: float) -> None:
        """A stage begins, `done` of its `epochs` epochs were taken before an interruption."""

    def progress(self, epoch: float, loss: float) -> None:
        """Training is at `epoch` of the stage."""

    def check(self, record: CheckRecord) -> None:
        """A check of the search is done."""

    def recovered(self, epoch: float, loss: float, accuracy: float | None) -> None:
        """An epoch of retraining is done; it may not have been evaluated."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


class Silent:
    """An observer that shows nothing."""

    def stage(self, name: str, epochs: float, done: float) -> None:
        """Nothing."""

    def progress(self, epoch: float, loss: float) -> None:
        """Nothing."""

    def check(self, record: CheckRecord) -> None:
        """Nothing."""

    def recovered(self, epoch: float, loss: float, accuracy: float | None) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


@dataclass
class Found:
    """What the first stage hands on; together with the ticket, all that retraining and the result need of it.

    Attributes:
        history: The checks, as JSON.
        masks: The bits of every mask, for their distances to each other; none if they are too large to be kept.
        distances: Of each of them to all before it.
        rounds: Units kept after each round of iterative pruning.
        emerged: Whether the ticket has emerged.
        steps: Optimizer steps.
        seconds: Of training and of the search.
        progress: How far the schedule of the learning rate is, in [0, 1), where retraining begins.
        overhead_seconds: What the search itself has cost.
        overhead_flops: Likewise.
        saved_flops: What it has saved of as many steps of the dense network, by getting smaller meanwhile.
        pruned: Held-out accuracy right after pruning.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    distances: list[list[float]] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    emerged: bool = False
    steps: int = 0
    seconds: float = 0.0
    progress: float = 0.0
    overhead_seconds: float = 0.0
    overhead_flops: int = 0
    saved_flops: int = 0
    pruned: float | None = None


@dataclass
class Retrained:
    """What the retraining stage hands on: steps, seconds, and loss and accuracy (None: not measured) of every epoch."""

    steps: int = 0
    seconds: float = 0.0
    recovery: list[float | None] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Trained:
    """What all stages together came to; without ticket and network if no ticket was drawn.

    Attributes:
        found: What the first stage has found.
        ticket: The ticket.
        small: The compacted network, retrained.
        retrained: How it was.
        candidates: The ratios that it was chosen from.
        extra_flops: Training FLOPs that the other ratios have cost.
        extra_seconds: Likewise.
    """

    found: Found
    ticket: Ticket | None = None
    small: nn.Module | None = None
    retrained: Retrained = field(default_factory=Retrained)
    candidates: tuple[CandidateResult, ...] = ()
    extra_flops: int = 0
    extra_seconds: float = 0.0


@dataclass(frozen=True)
class Bench:
    """Everything that all stages of one run work with; `weights`: a digest of those that it starts with."""

    config: RunConfig
    directory: RunDirectory
    accelerator: Accelerator
    data: Data
    summary: DataSummary
    weights: str
    pace: Pace
    observer: Observer
    pauses: Pauses = field(default_factory=Pauses)

    def steps(self, epochs: float) -> int:
        """How many optimizer steps `epochs` are."""
        return round(epochs * self.pace.steps_per_epoch)

    def train(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, stage: str, first: int, steps: int, progress: Progress
    ) -> float:
        """Take optimizer steps; see `train_steps`.

        Args:
            model: The network, prepared.
            optimizer: Its optimizer, likewise.
            stage: Names the stage; each has its own random numbers.
            first: Steps of this stage that were taken before.
            steps: Steps to take.
            progress: How far the schedule of the learning rate is after as many steps.

        Returns:
            The mean training loss.
        """
        return train_steps(
            model, optimizer, self.data, self.config, self.pace, self.accelerator, stage=stage, first=first,
            steps=steps, progress=progress, report=self.observer.progress,
        )  # fmt: skip

    def step_flops(self, model: nn.Module) -> int:
        """FLOPs of one optimizer step of a network."""
        return self.pace.batch * count_flops(model, self.data.example_inputs(1, self.config))[1]

    @property
    def checkpoint_due(self) -> bool:
        """Whether it is long enough since the last checkpoint for another one."""
        return self.pauses.over

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Save a checkpoint, in the first process."""
        if self.accelerator.is_main_process:
            with self.pauses.after():
                self.directory.checkpoints.save({**state, **self._origin})

    def newest_checkpoint(self, directory: RunDirectory | None = None) -> dict[str, Any] | None:
        """The newest checkpoint that is whole, of this run or in another directory; None if there is none.

        Raises:
            RunError: If it was made with other data, or from other weights.
        """
        directory = directory or self.directory
        state = directory.checkpoints.load(self.observer.note)
        for name, now in self._origin.items():
            if (before := (state or {}).get(name, now)) != now:
                raise RunError(
                    f"{directory.path} was begun with other {name} ({before}) than there are now ({now}): put back "
                    "what they were, or start afresh with --overwrite"
                )
        return state

    @property
    def _origin(self) -> dict[str, str]:
        """What must be as it was when the run goes on."""
        return {"data": self.summary.digest, "weights": self.weights}

    def release(self, model: nn.Module) -> None:
        """Take off what the accelerator has put around a network that is trained no more."""
        self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        self.accelerator.free_memory()
