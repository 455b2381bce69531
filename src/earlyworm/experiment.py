"""One run from its settings to its result: search, draw, compact, retrain."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from earlyworm.channels import find_channels
from earlyworm.compaction import compact, round_ticket
from earlyworm.config import RunConfig
from earlyworm.costs import count_flops, latency
from earlyworm.data import ImageData, load_images
from earlyworm.emergence import Emergence
from earlyworm.errors import ConfigError
from earlyworm.results import (
    AccuracyResult,
    CheckRecord,
    DataSummary,
    DenseCost,
    RunResult,
    SearchResult,
    TicketCost,
    TotalCost,
)
from earlyworm.run_directory import RunDirectory, build_network, save_weights
from earlyworm.search import TicketSearch
from earlyworm.ticket import Ticket
from earlyworm.training import Pace, evaluate, example_images, make_optimizer, stable_seed, train_steps
from earlyworm.truncation import Constant, Greedy, Truncation, Worm

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
    data: ImageData
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


def run(config: RunConfig, observer: Observer | None = None, command: str | None = None) -> RunResult:
    """Do one run, or go on with it, or read its result if it has ended.

    Args:
        config: The settings; the run's directory is named after them.
        observer: Is told what happens.
        command: The command line, for the report.

    Returns:
        The result, which also lies in the run's directory with the ticket, the compacted network and the report.

    Raises:
        EarlywormError: If something is impossible, damaged or missing; what was there before stays.
    """
    from earlyworm.report import write_report

    directory = RunDirectory(Path(config.output) / config.directory_name())
    accelerator = _make_accelerator(config, directory)
    observer = observer if observer and accelerator.is_main_process else Silent()
    with accelerator.main_process_first():
        data = load_images(config.data, limit=config.limit).to(accelerator.device)
        pace = Pace.of(config, len(data.train_labels), accelerator.num_processes)
    model, notes = build_network(config, classes=data.classes, channels=data.train_images.shape[1])
    if accelerator.is_main_process:
        directory.prepare(config)
    accelerator.wait_for_everyone()
    if directory.result.exists():
        result = directory.read_result()
        if result.ticket is not None or not config.force_draw:
            observer.note(f"this run has ended before: {directory.path} (--overwrite starts afresh)")
            return result

    bench = Bench(config, directory, accelerator, data, pace, observer)
    for note in notes:
        observer.note(note)
    if config.track:
        accelerator.init_trackers("earlyworm", {name: str(value) for name, value in config.settings().items()})
    state = directory.checkpoints.load(observer.note)
    example = example_images(data, config, 1)
    dense = _prepare_memory(model, config).to(accelerator.device)
    search = _make_search(dense, example, config)
    notes += [f"left out: {name}: {reason}" for name, reason in search.units.skipped.items()]
    dense_cost = DenseCost(_parameters(dense), count_flops(dense, example)[0] // 2, latency(dense, example))
    dense_flops = count_flops(dense, example)[1]

    found, ticket = _search(bench, dense, search, state)
    small = None
    retrained = Retrained()
    if ticket is not None:
        small = _compacted(bench, dense, ticket, example)
        retrained = _retrain(bench, small, found, state)
    accelerator.end_training()
    result = _result(bench, found, retrained, ticket, small, dense_cost, dense_flops, tuple(notes))
    if accelerator.is_main_process:
        if small is not None:
            directory.write(directory.model, save_weights(small))
        directory.write(directory.result, result.to_json().encode())
        write_report(result, directory.report, command)
    accelerator.wait_for_everyone()
    return result


def _search(
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
    check = search.history[-1]
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


def _compacted(bench: Bench, dense: nn.Module, ticket: Ticket, example: torch.Tensor) -> nn.Module:
    """The compacted network with the weights to retrain from."""
    config, data = bench.config, bench.data
    if config.retrain_from != "emergence":
        seed = stable_seed(config.seed, "reinitialise") if config.retrain_from == "reinitialise" else None
        initial, _ = build_network(config, classes=data.classes, channels=data.train_images.shape[1], seed=seed)
        dense = _prepare_memory(initial, config).to(bench.accelerator.device)
    return compact(dense, ticket, example_inputs=example)


def _retrain(bench: Bench, small: nn.Module, found: Found, state: dict[str, Any] | None) -> Retrained:
    """Train the compacted network for the rest of the budget."""
    config, pace, accelerator = bench.config, bench.pace, bench.accelerator
    retrained = Retrained()
    optimizer = make_optimizer(small, config)
    if state and state["stage"] == "retrain":
        retrained = Retrained(**state["retrained"])
        small.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    model, prepared = accelerator.prepare(small, optimizer)
    if found.pruned is None:
        found.pruned = evaluate(model, bench.data, config, accelerator)
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
    accelerator.free_memory()
    return retrained


def _result(
    bench: Bench,
    found: Found,
    retrained: Retrained,
    ticket: Ticket | None,
    small: nn.Module | None,
    dense_cost: DenseCost,
    dense_flops: int,
    notes: tuple[str, ...],
) -> RunResult:
    """Put everything together."""
    config, data, pace = bench.config, bench.data, bench.pace
    history = tuple(CheckRecord(**record) for record in found.history)
    chi = config.effective_chi
    triggered = next((check.epoch for check in history if config.method == "worm" and check.chi == chi), None)
    search_flops = found.steps * pace.batch * dense_flops
    ticket_cost, retrain_flops, layers = None, 0, {}
    if ticket is not None and small is not None:
        example = example_images(data, config, 1)
        forward, step_flops = count_flops(small, example)
        retrain_flops = retrained.steps * pace.batch * step_flops
        ticket_cost = TicketCost(
            _parameters(small), forward // 2, latency(small, example), ticket.mask.units_kept, ticket.mask.units
        )
        layers = {name: (int(kept.sum()), kept.numel()) for name, kept in ticket.mask.kept.items()}
    accuracies = tuple(retrained.recovery)
    return RunResult(
        config=config,
        versions={"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        seed=config.seed,
        device=_device_name(bench.accelerator),
        data=DataSummary(len(data.train_labels), len(data.test_labels), data.classes, _shape(data), data.split),
        search=SearchResult(
            method=config.method,
            emerged=found.emerged,
            forced=ticket is not None and not found.emerged,
            epoch=pace.epochs(found.steps) if found.emerged else None,
            triggered_epoch=triggered,
            seconds=found.seconds,
            train_flops=search_flops,
            overhead_seconds=found.overhead_seconds,
            overhead_flops=found.overhead_flops,
            history=history,
        ),
        accuracy=AccuracyResult(
            before=history[-1].accuracy,
            pruned=found.pruned,
            recovery=accuracies,
            final=accuracies[-1] if accuracies else found.pruned,
        ),
        dense=dense_cost,
        ticket=ticket_cost,
        total=TotalCost(
            train_flops=search_flops + retrain_flops,
            retrain_flops=retrain_flops,
            seconds=found.seconds + retrained.seconds,
            dense_train_flops=(found.steps + retrained.steps) * pace.batch * dense_flops,
        ),
        layers=layers,
        notes=notes,
    )


_LIBRARIES = ("earlyworm", "torch", "torch-pruning", "accelerate", "safetensors")


def _make_accelerator(config: RunConfig, directory: RunDirectory) -> Accelerator:
    """Where the run computes: device, precision, processes, trackers."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # one process may do several runs of different precision
    try:
        return Accelerator(
            cpu=config.device == "cpu",
            mixed_precision="bf16" if config.precision == "bf16" else "no",
            gradient_accumulation_steps=config.accumulation,
            log_with=list(config.track) or None,
            project_dir=str(directory.trackers) if config.track else None,
        )
    except ValueError as error:
        raise ConfigError(f"cannot set up device, precision and trackers ({error}): change the option named") from error


def _make_search(model: nn.Module, example: torch.Tensor, config: RunConfig) -> TicketSearch:
    """The search that the settings describe."""
    chi = config.effective_chi
    truncation: Truncation | None = None
    if config.method == "constant" and chi is not None:
        truncation = Constant(chi, config.static)
    elif config.method == "greedy":
        truncation = Greedy(config.static)
    elif config.method == "worm" and chi is not None:
        truncation = Worm(config.trigger, chi, config.static)
    return TicketSearch(
        model,
        units=find_channels(model, example, coupling=config.coupling),
        pruning_ratio=config.ratio,
        emergence=Emergence(config.window, config.epsilon),
        truncation=truncation,
        sparsity_penalty=config.sparsity_penalty,
        score=config.score,
    )


def _prepare_memory(model: nn.Module, config: RunConfig) -> nn.Module:
    """bf16 convolutions are fastest with channels last."""
    return model.to(memory_format=torch.channels_last) if config.precision == "bf16" else model  # type: ignore[call-overload]  # torch's stubs lack it


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _shape(data: ImageData) -> tuple[int, int, int]:
    channels, height, width = data.train_images.shape[1:]
    return channels, height, width


def _device_name(accelerator: Accelerator) -> str:
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return name if accelerator.num_processes == 1 else f"{accelerator.num_processes} x {name}"
