"""One run from its settings to its result: search, draw, compact, retrain."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from earlyworm.errors import ConfigError
from earlyworm.experiments.bench import Bench, Observer, Silent, Trained
from earlyworm.experiments.choosing import choose_ratio
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.data import load_data
from earlyworm.experiments.iterative_pruning import prune_iteratively
from earlyworm.experiments.measuring import measure
from earlyworm.experiments.names import SEARCHES, check_model_name, suggest
from earlyworm.experiments.networks import build_network, digest_weights
from earlyworm.experiments.results import DataSummary, RunResult
from earlyworm.experiments.retraining import arrange_memory, compact_ticket, retrain
from earlyworm.experiments.run_directory import RunDirectory
from earlyworm.experiments.searching import NoEmergence, find_ticket
from earlyworm.experiments.training import Pace, check_batch
from earlyworm.inputs import ExampleInputs
from earlyworm.search.sweep import RatioSweep
from earlyworm.search.ticket_search import TicketSearch
from earlyworm.search.truncation import Constant, Fade, Greedy, Truncation, Worm
from earlyworm.tickets.ticket import Ticket
from earlyworm.units.channels import find_channels
from earlyworm.units.finding import find_all_weights, find_units
from earlyworm.units.surgery import copy_model

if TYPE_CHECKING:
    from accelerate import Accelerator


def run(config: RunConfig, observer: Observer | None = None, patience: float = 0.0) -> RunResult:
    """Do one run, or go on with it, or read its result if it has ended.

    Args:
        config: The settings; the run's directory is named after them.
        observer: Is told what happens.
        patience: Seconds to wait for another process that is at work on the same run.

    Returns:
        The result, which also lies in the run's directory, with the ticket and the compacted network.

    Raises:
        EarlywormError: If something is impossible, damaged or missing; what was there before stays.
    """
    directory = RunDirectory.of(config)
    directory.check_owner(config)
    accelerator = make_accelerator(config, directory)
    try:
        told = observer if observer and accelerator.is_main_process else Silent()
        return _run(config, directory, accelerator, told, patience)
    finally:
        accelerator.end_training()  # whatever ended it, trackers write what they hold, and processes part


def _run(
    config: RunConfig, directory: RunDirectory, accelerator: Accelerator, observer: Observer, patience: float
) -> RunResult:
    """The run on an accelerator that was made for it."""
    if (ended := _ended(config, directory, observer)) is not None:
        return ended
    check_model_name(config.model)
    with accelerator.main_process_first():
        data = load_data(config)
    summary = DataSummary(
        len(data.train_labels), len(data.test_labels), data.classes, data.shape, data.split, data.digest
    )
    data = data.to(accelerator.device)
    pace = Pace.of(config, len(data.train_labels), accelerator.num_processes)
    dense, notes = build_network(config, classes=data.classes, shape=data.shape)
    data.check_model(dense, config)
    dense = arrange_memory(dense, config).to(accelerator.device)
    # What gets smaller is a copy: the costs of the dense network are still to be measured.
    trained = copy_model(dense) if config.shrink else dense
    search = _make_search(trained, data.example_inputs(1, config), config, pace)
    at_once = pace.batch // config.accumulation // accelerator.num_processes
    check_batch(dense, data.example_inputs(at_once, config))
    notes += [f"{name} is left out: {reason}" for name, reason in search.units.skipped.items()]
    for note in notes:
        observer.note(note)

    # Nothing was written before everything was known to be possible.
    bench = Bench(config, directory, accelerator, data, summary, digest_weights(config), pace, observer)
    with directory.claimed(patience) if accelerator.is_main_process else nullcontext():
        accelerator.wait_for_everyone()  # it is claimed before the others look
        if (ended := _ended(config, directory, observer)) is not None:  # by another process, meanwhile
            return ended
        return _work(bench, dense, search, tuple(notes))


def _ended(config: RunConfig, directory: RunDirectory, observer: Observer) -> RunResult | None:
    """The result of the run, if it has ended before."""
    if (ended := directory.ended(config)) is not None:
        if ended.ticket is not None:
            directory.check_network()
        observer.note(f"this run has ended before: {directory.path} (--overwrite starts afresh)")
    return ended


def _work(bench: Bench, dense: nn.Module, search: TicketSearch | RatioSweep, notes: tuple[str, ...]) -> RunResult:
    """Everything that writes: search, compact, retrain, each going on from where it was."""
    config, directory, accelerator = bench.config, bench.directory, bench.accelerator
    if accelerator.is_main_process:
        directory.prepare(config)
    accelerator.wait_for_everyone()
    if config.track:
        accelerator.init_trackers("earlyworm", {name: str(value) for name, value in config.settings().items()})
    with accelerator.main_process_first():  # it removes what is damaged
        state = bench.newest_checkpoint()
    trained = _train(bench, dense, search, state)
    result = measure(bench, trained, dense, notes)
    if accelerator.is_main_process:
        if trained.small is not None:
            directory.write_network(trained.small, bench.data.files())
        directory.finish(result)
    accelerator.wait_for_everyone()
    return result


def _train(bench: Bench, dense: nn.Module, search: TicketSearch | RatioSweep, state: dict[str, Any] | None) -> Trained:
    """All stages."""
    if isinstance(search, RatioSweep):
        return choose_ratio(bench, dense, search, state)
    ticket: Ticket | None
    if bench.config.method == "imp":
        found, ticket = prune_iteratively(bench, dense, search.units, state)
    else:
        found, ticket = find_ticket(bench, search.model, search, state)
    if ticket is None:
        return Trained(found)
    small = compact_ticket(bench, search.model, ticket, found)
    return Trained(found, ticket, small, retrain(bench, dense, small, found, state))


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


def _make_search(model: nn.Module, example: ExampleInputs, config: RunConfig, pace: Pace) -> TicketSearch | RatioSweep:
    """The search that the settings describe."""
    chi, trigger, searches = config.effective_chi, config.effective_trigger, config.method in SEARCHES
    truncation: Truncation | None = None
    if config.method == "constant" and chi is not None:
        truncation = Constant(chi, config.static)
    elif config.method == "greedy":
        truncation = Greedy(config.static)
    elif config.method == "worm" and chi is not None and trigger is not None:
        truncation = Worm(trigger, chi, config.static, config.greedy_first)
    elif config.method == "fade" and chi is not None and trigger is not None:
        truncation = Fade(trigger, config.half_life, chi, config.static)
    if config.method == "imp":
        units = find_all_weights(model)
    elif config.units == ("channels",):
        units = find_channels(model, example, coupling=config.coupling)
    else:
        units = find_units(model, config.units, example)
    options: dict[str, Any] = {
        "units": units,
        "emergence": config.emergence if searches else NoEmergence(config.emergence.window),
        "truncation": truncation,
        "sparsity_penalty": config.sparsity_penalty,
        "score": "magnitude" if config.method == "imp" else config.score,
        "min_units": config.min_units,
        "steps_per_epoch": pace.steps_per_epoch,
    }
    if config.ratios:
        return RatioSweep(model, ratios=config.ratios, **options)
    return TicketSearch(model, pruning_ratio=config.pruning_ratio, shrink=config.shrink, **options)
