"""The two stages of a run, each going on from a checkpoint: search, and retraining of the compacted network."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from earlyworm.compaction import compact, round_ticket
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.data import Data
from earlyworm.experiments.results import CheckRecord
from earlyworm.experiments.run_directory import RunDirectory, build_network
from earlyworm.experiments.training import Pace, evaluate, make_optimizer, stable_seed, train_steps
from earlyworm.history import Check
from earlyworm.search import TicketSearch
from earlyworm.ticket import Ticket

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

    def recovered(self, epoch: float, loss: float, accuracy: float) -> None:
        """An epoch of retraining is done."""

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

    def recovered(self, epoch: float, loss: float, accuracy: float) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


@dataclass
class Found:
    """What the search stage hands on; together with the ticket, all that retraining and the result need of it."""

    history: list[dict[str, Any]] = field(default_factory=list)
    emerged: bool = False
    steps: int = 0
    seconds: float = 0.0
    overhead_seconds: float = 0.0
    overhead_flops: int = 0
    pruned: float | None = None


@dataclass
class Retrained:
    """What the retraining stage hands on."""

    steps: int = 0
    seconds: float = 0.0
    recovery: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """Everything that all stages of one run work with."""

    config: RunConfig
    directory: RunDirectory
    accelerator: Accelerator
    data: Data
    pace: Pace
    observer: Observer

    @property
    def search_steps(self) -> int:
        """The most optimizer steps that the search may take."""
        return self.config.search_epochs * self.pace.steps_per_epoch

    def retrain_steps(self, found: Found) -> int:
        """Optimizer steps of retraining: the given epochs, or those that the search has left."""
        if self.config.retrain_epochs is not None:
            return self.config.retrain_epochs * self.pace.steps_per_epoch
        return self.config.epochs * self.pace.steps_per_epoch - found.steps

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Save a checkpoint, in the first process."""
        if self.accelerator.is_main_process:
            self.directory.checkpoints.save(state)


def search_ticket(
    bench: Bench, dense: nn.Module, search: TicketSearch, state: dict[str, Any] | None
) -> tuple[Found, Ticket | None]:
    """Train the dense network until its ticket has emerged or the search epochs are over."""
    config, pace, accelerator = bench.config, bench.pace, bench.accelerator
    found = Found(**state["found"]) if state else Found()
    if state and state["stage"] == "retrain":
        return found, Ticket.load(bench.directory.ticket)
    optimizer = make_optimizer(dense, config)
    if state:
        dense.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        search.load_state_dict(state["search"])
    model, prepared = accelerator.prepare(dense, optimizer)
    horizon = config.epochs if config.retrain_epochs is None else config.search_epochs + config.retrain_epochs
    bench.observer.stage("search", config.search_epochs, pace.epochs(found.steps))
    with search.attach(optimizer):
        if not found.history:
            _record(bench, found, search, model, None)
        while not search.emerged and found.steps < bench.search_steps:
            start = time.perf_counter()
            steps = min(pace.check_steps, bench.search_steps - found.steps)
            loss = train_steps(
                model, prepared, bench.data, config, pace, accelerator, stage="search", first=found.steps,
                steps=steps, horizon=horizon, report=bench.observer.progress,
            )  # fmt: skip
            search.update()
            found.steps += steps
            found.seconds += time.perf_counter() - start
            found.emerged = search.emerged
            found.overhead_seconds, found.overhead_flops = search.overhead.seconds, search.overhead.flops
            _record(bench, found, search, model, loss)
            bench.checkpoint({
                "stage": "search", "found": asdict(found), "search": search.state_dict(),
                "model": dense.state_dict(), "optimizer": optimizer.state_dict(),
            })  # fmt: skip
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    accelerator.free_memory()
    if not (search.emerged or config.force_draw):
        return found, None
    ticket = search.draw(force=config.force_draw)
    if config.round_to > 1:
        ticket = round_ticket(ticket, config.round_to)
    if accelerator.is_main_process:
        bench.directory.write(bench.directory.ticket, ticket.to_bytes())
    accelerator.wait_for_everyone()
    return found, ticket


def _record(bench: Bench, found: Found, search: TicketSearch, model: nn.Module, loss: float | None) -> None:
    """Evaluate after a check, and tell and log everything about it."""
    check = search.history[-1] if search.history else Check(0, None, None, 1.0, 0)  # some scores need gradients
    record = CheckRecord(
        epoch=bench.pace.epochs(found.steps),
        distance_mean=check.distance_mean,
        distance_max=check.distance_max,
        chi=check.chi,
        truncated=check.truncated,
        loss=loss,
        accuracy=evaluate(model, bench.data, bench.config, bench.accelerator),
    )
    found.history.append(asdict(record))
    bench.observer.check(record)
    numbers = {f"search/{name}": value for name, value in asdict(record).items() if value is not None}
    bench.accelerator.log(numbers, step=found.steps)


def compact_ticket(bench: Bench, dense: nn.Module, ticket: Ticket, found: Found) -> nn.Module:
    """The compacted network with the weights to retrain from; notes how good it is as it was cut out."""
    config, data, accelerator = bench.config, bench.data, bench.accelerator
    example = data.example_inputs(1, config)
    small = compact(dense, ticket, example_inputs=example)
    if found.pruned is None:  # else retraining goes on, and `dense` is not the network that was searched
        with accelerator.autocast():  # not prepared yet, for a network that once was is not prepared again
            found.pruned = evaluate(small, data, config, accelerator)
    if config.retrain_from == "emergence":
        return small
    seed = stable_seed(config.seed, "reinitialise") if config.retrain_from == "reinitialise" else None
    initial, _ = build_network(config, classes=data.classes, shape=data.shape, seed=seed)
    return compact(arrange_memory(initial, config).to(accelerator.device), ticket, example_inputs=example)


def retrain(bench: Bench, small: nn.Module, found: Found, state: dict[str, Any] | None) -> Retrained:
    """Train the compacted network for the rest of the budget."""
    config, pace, accelerator = bench.config, bench.pace, bench.accelerator
    retrained = Retrained()
    optimizer = make_optimizer(small, config)
    if state and state["stage"] == "retrain":
        retrained = Retrained(**state["retrained"])
        small.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    model, prepared = accelerator.prepare(small, optimizer)
    total = bench.retrain_steps(found)
    start_epoch = pace.epochs(found.steps) if config.retrain_from == "emergence" else 0.0
    bench.observer.stage("retrain", pace.epochs(total), pace.epochs(retrained.steps))
    while retrained.steps < total:
        start = time.perf_counter()
        steps = min(pace.steps_per_epoch, total - retrained.steps)
        loss = train_steps(
            model, prepared, bench.data, config, pace, accelerator, stage="retrain", first=retrained.steps,
            steps=steps, horizon=start_epoch + pace.epochs(total), start=start_epoch, report=bench.observer.progress,
        )  # fmt: skip
        retrained.steps += steps
        retrained.seconds += time.perf_counter() - start
        accuracy = evaluate(model, bench.data, config, accelerator)
        retrained.recovery.append(accuracy)
        bench.observer.recovered(pace.epochs(retrained.steps), loss, accuracy)
        accelerator.log({"retrain/loss": loss, "retrain/accuracy": accuracy}, step=found.steps + retrained.steps)
        bench.checkpoint({
            "stage": "retrain", "found": asdict(found), "retrained": asdict(retrained),
            "model": small.state_dict(), "optimizer": optimizer.state_dict(),
        })  # fmt: skip
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # what is saved and measured is the plain network
    accelerator.free_memory()
    return retrained


def arrange_memory(model: nn.Module, config: RunConfig) -> nn.Module:
    """bf16 convolutions are fastest with channels last."""
    return model.to(memory_format=torch.channels_last) if config.precision == "bf16" else model  # type: ignore[call-overload]  # torch's stubs lack it
