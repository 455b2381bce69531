"""One run from its settings to its result: search, draw, compact, retrain."""

from __future__ import annotations

import platform
from contextlib import nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from earlyworm.channels import find_channels
from earlyworm.costs import count_flops, latency
from earlyworm.emergence import Emergence
from earlyworm.errors import ConfigError
from earlyworm.experiments.bench import Bench, Found, Observer, Retrained, Silent
from earlyworm.experiments.config import SEARCHES, RunConfig
from earlyworm.experiments.data import load_data
from earlyworm.experiments.iterative_pruning import prune_iteratively
from earlyworm.experiments.names import suggest
from earlyworm.experiments.results import (
    AccuracyResult,
    CheckRecord,
    DataSummary,
    DenseCost,
    RunResult,
    SearchResult,
    TicketCost,
    TotalCost,
)
from earlyworm.experiments.retraining import arrange_memory, compact_ticket, retrain
from earlyworm.experiments.run_directory import RunDirectory, build_network
from earlyworm.experiments.searching import NoEmergence, find_ticket
from earlyworm.experiments.training import Pace, check_batch
from earlyworm.finding import find_all_weights, find_units
from earlyworm.inputs import ExampleInputs
from earlyworm.search import TicketSearch
from earlyworm.ticket import Ticket
from earlyworm.truncation import Constant, Greedy, Truncation, Worm

if TYPE_CHECKING:
    from accelerate import Accelerator


def run(config: RunConfig, observer: Observer | None = None) -> RunResult:
    """Do one run, or go on with it, or read its result if it has ended.

    Args:
        config: The settings; the run's directory is named after them.
        observer: Is told what happens.

    Returns:
        The result, which also lies in the run's directory, with the ticket and the compacted network.

    Raises:
        EarlywormError: If something is impossible, damaged or missing; what was there before stays.
    """
    directory = RunDirectory.of(config)
    directory.check_owner(config)
    accelerator = make_accelerator(config, directory)
    try:
        return _run(config, directory, accelerator, observer if observer and accelerator.is_main_process else Silent())
    finally:
        accelerator.end_training()  # whatever ended it, trackers write what they hold, and processes part


def _run(config: RunConfig, directory: RunDirectory, accelerator: Accelerator, observer: Observer) -> RunResult:
    """The run on an accelerator that was made for it."""
    if directory.result.exists() and not config.overwrite:
        result = directory.read_result()
        if result.ticket is not None or not config.force_draw:
            observer.note(f"this run has ended before: {directory.path} (--overwrite starts afresh)")
            return result
    with accelerator.main_process_first():
        data = load_data(config).to(accelerator.device)
    pace = Pace.of(config, len(data.train_labels), accelerator.num_processes)
    dense, notes = build_network(config, classes=data.classes, shape=data.shape)
    data.check_model(dense, config)
    dense = arrange_memory(dense, config).to(accelerator.device)
    search = _make_search(dense, data.example_inputs(1, config), config)
    at_once = pace.batch // config.accumulation // accelerator.num_processes
    check_batch(dense, data.example_inputs(at_once, config))
    notes += [f"{name} is left out: {reason}" for name, reason in search.units.skipped.items()]
    if config.method in SEARCHES and config.search_epochs / config.check_every < config.window - (
        config.score != "taylor"
    ):
        notes.append(f"{config.search_epochs} search epochs cannot fill a window of {config.window} masks")
    for note in notes:
        observer.note(note)

    # Nothing was written before everything was known to be possible.
    with directory.claimed() if accelerator.is_main_process else nullcontext():
        return _work(Bench(config, directory, accelerator, data, pace, observer), dense, search, tuple(notes))


def _work(bench: Bench, dense: nn.Module, search: TicketSearch, notes: tuple[str, ...]) -> RunResult:
    """Everything that writes: search, compact, retrain, each going on from where it was."""
    config, directory, accelerator = bench.config, bench.directory, bench.accelerator
    if accelerator.is_main_process:
        directory.prepare(config)
    accelerator.wait_for_everyone()
    if config.track:
        accelerator.init_trackers("earlyworm", {name: str(value) for name, value in config.settings().items()})
    with accelerator.main_process_first():  # it removes what is damaged
        state = directory.checkpoints.load(bench.observer.note)
    found, ticket = _find_ticket(bench, dense, search, state)
    small, retrained = None, Retrained()
    if ticket is not None:
        small = compact_ticket(bench, dense, ticket, found)
        retrained = retrain(bench, dense, small, found, state)
    result = _result(bench, found, retrained, ticket, dense, small, notes)
    if accelerator.is_main_process:
        if small is not None:
            directory.write_network(small, bench.data.files())
        directory.write(directory.result, result.to_json().encode())
    accelerator.wait_for_everyone()
    return result


def _find_ticket(
    bench: Bench, dense: nn.Module, search: TicketSearch, state: dict[str, Any] | None
) -> tuple[Found, Ticket | None]:
    """The first stage, of which there are two kinds."""
    if bench.config.method == "imp":
        return prune_iteratively(bench, dense, search.units, state)
    return find_ticket(bench, dense, search, state)


def _result(
    bench: Bench,
    found: Found,
    retrained: Retrained,
    ticket: Ticket | None,
    dense: nn.Module,
    small: nn.Module | None,
    notes: tuple[str, ...],
) -> RunResult:
    """Put everything together."""
    config, data, pace = bench.config, bench.data, bench.pace
    history = tuple(CheckRecord(**record) for record in found.history)
    worm = [check for check in history if config.method == "worm" and check.chi < 1]  # it may be greedy at first
    triggered = next((c.epoch for c in worm if c.distance_mean is not None and c.distance_mean < config.trigger), None)
    example = data.example_inputs(1, config)
    dense_forward, dense_flops = count_flops(dense, example)
    search_flops = found.steps * pace.batch * dense_flops
    ticket_cost, retrain_flops, layers = None, 0, {}
    if ticket is not None and small is not None:
        forward, step_flops = count_flops(small, example)
        retrain_flops = retrained.steps * pace.batch * step_flops
        ticket_cost = TicketCost(
            _parameters(small), forward // 2, latency(small, example), ticket.mask.units_kept, ticket.mask.units
        )
        layers = {name: (int(kept.sum()), kept.numel()) for name, kept in ticket.mask.kept.items()}
        notes += tuple(
            f"{name} keeps {kept} of {units} units: if accuracy does not recover, raise --min-units or lower --ratio"
            for name, (kept, units) in layers.items()
            if kept <= _BOTTLENECK * units
        )
        if "weights" in ticket.units.kinds.values():
            notes += ("single weights are held at zero: nothing gets smaller, and nothing faster",)
    accuracies = tuple(retrained.recovery)
    forced = ticket is not None and not found.emerged and config.method in SEARCHES
    return RunResult(
        config=config,
        versions={"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES[config.task]}},
        seed=config.seed,
        device=_device_name(bench.accelerator),
        data=DataSummary(len(data.train_labels), len(data.test_labels), data.classes, data.shape, data.split),
        search=SearchResult(
            method=config.method,
            emerged=found.emerged,
            forced=forced,
            epoch=None if ticket is None or forced else pace.epochs(found.steps),
            triggered_epoch=triggered,
            seconds=found.seconds,
            train_flops=search_flops,
            overhead_seconds=found.overhead_seconds,
            overhead_flops=found.overhead_flops,
            history=history,
            distances=tuple(map(tuple, found.distances)),
            rounds=tuple(found.rounds),
        ),
        accuracy=AccuracyResult(
            before=history[-1].accuracy,
            pruned=found.pruned,
            recovery=accuracies,
            final=accuracies[-1] if accuracies else found.pruned,
            losses=tuple(retrained.losses),
        ),
        dense=DenseCost(_parameters(dense), dense_forward // 2, latency(dense, example)),
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


_BOTTLENECK = 0.05  # a layer that keeps no more of its units than this is worth a word
_LIBRARIES = {
    "images": ("earlyworm", "torch", "torch-pruning", "accelerate", "safetensors"),
    "text": ("earlyworm", "torch", "transformers", "tokenizers", "accelerate", "safetensors"),
}


def make_accelerator(config: RunConfig, directory: RunDirectory) -> Accelerator:
    """Where the run computes: device, precision, processes, trackers."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.tracking import get_available_trackers

    installed = ["all", *map(str, get_available_trackers())]
    for name in config.track:
        if name not in installed:
            raise ConfigError(f"no tracker {name!r} is installed: {suggest(name, installed)}")
    # One process may do several runs, of different precision; each ends with its process group.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return Accelerator(
            # Without this, the processes of a launch on CPUs would not find each other.
            cpu=config.device == "cpu" or not torch.accelerator.is_available(),
            mixed_precision="bf16" if config.precision == "bf16" else "no",
            gradient_accumulation_steps=config.accumulation,
            log_with=list(config.track) or None,
            project_dir=str(directory.trackers) if config.track else None,
        )
    except ValueError as error:
        raise ConfigError(f"cannot set up device, precision and trackers ({error}): change the option named") from error


def _make_search(model: nn.Module, example: ExampleInputs, config: RunConfig) -> TicketSearch:
    """The search that the settings describe."""
    chi, searches = config.effective_chi, config.method in SEARCHES
    truncation: Truncation | None = None
    if config.method == "constant" and chi is not None:
        truncation = Constant(chi, config.static)
    elif config.method == "greedy":
        truncation = Greedy(config.static)
    elif config.method == "worm" and chi is not None:
        truncation = Worm(config.trigger, chi, config.static, config.greedy_first)
    if config.method == "imp":
        units = find_all_weights(model)
    elif config.units == ("channels",):
        units = find_channels(model, example, coupling=config.coupling)
    else:
        units = find_units(model, config.units, example)
    return TicketSearch(
        model,
        units=units,
        pruning_ratio=config.pruning_ratio,
        emergence=Emergence(config.window, config.epsilon) if searches else NoEmergence(config.window),
        truncation=truncation,
        sparsity_penalty=config.sparsity_penalty,
        score="magnitude" if config.method == "imp" else config.score,
        min_units=config.min_units,
    )


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _device_name(accelerator: Accelerator) -> str:
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return name if accelerator.num_processes == 1 else f"{accelerator.num_processes} x {name}"
