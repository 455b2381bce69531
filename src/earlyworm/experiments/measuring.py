"""What a run came to, counted and measured: its result."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch
from torch import nn

from earlyworm.costs import count_flops, latencies
from earlyworm.experiments.bench import Bench, Trained
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.names import SEARCHES
from earlyworm.experiments.results import (
    AccuracyResult,
    CheckRecord,
    DenseCost,
    RunResult,
    SearchResult,
    TicketCost,
    TotalCost,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

_BOTTLENECK = 0.05  # a layer that keeps no more of its units than this is worth a word
_LIBRARIES = {
    "images": ("earlyworm", "torch", "torch-pruning", "accelerate", "safetensors"),
    "text": ("earlyworm", "torch", "transformers", "tokenizers", "accelerate", "safetensors"),
}


def measure(bench: Bench, trained: Trained, dense: nn.Module, notes: tuple[str, ...]) -> RunResult:
    """Put together what came of a run; count FLOPs and parameters, and time the networks.

    Args:
        bench: What all stages worked with.
        trained: What they came to.
        dense: The dense network.
        notes: What the user should know, so far.
    """
    config, pace = bench.config, bench.pace
    found, retrained, ticket, small = trained.found, trained.retrained, trained.ticket, trained.small
    history = tuple(CheckRecord(**record) for record in found.history)
    example = bench.data.example_inputs(1, config)
    dense_macs, dense_flops = count_flops(dense, example)[0] // 2, bench.step_flops(dense)
    search_flops = found.steps * dense_flops - found.saved_flops
    ticket_cost, retrain_flops, layers = None, 0, {}
    seconds = latencies([dense, *([] if small is None else [small])], example)
    if ticket is not None and small is not None:
        macs, retrain_flops = count_flops(small, example)[0] // 2, retrained.steps * bench.step_flops(small)
        ticket_cost = TicketCost(_parameters(small), macs, seconds[-1], ticket.mask.units_kept, ticket.mask.units)
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
        data=bench.summary,
        weights=bench.weights,
        search=SearchResult(
            method=config.method,
            emerged=found.emerged,
            forced=forced,
            epoch=None if ticket is None or forced else pace.epochs(found.steps),
            triggered_epoch=_triggered(config, history),
            seconds=found.seconds,
            train_flops=search_flops,
            overhead_seconds=found.overhead_seconds,
            overhead_flops=found.overhead_flops,
            history=history,
            distances=tuple(map(tuple, found.distances)),
            rounds=tuple(found.rounds),
        ),
        accuracy=AccuracyResult(
            before=next(check.accuracy for check in reversed(history) if check.accuracy is not None),
            pruned=found.pruned,
            recovery=accuracies,
            final=accuracies[-1] if accuracies else found.pruned,
            losses=tuple(retrained.losses),
        ),
        dense=DenseCost(_parameters(dense), dense_macs, seconds[0]),
        ticket=ticket_cost,
        total=TotalCost(
            train_flops=search_flops + retrain_flops + trained.extra_flops,
            retrain_flops=retrain_flops,
            seconds=found.seconds + retrained.seconds + trained.extra_seconds,
            dense_train_flops=(found.steps + retrained.steps) * dense_flops,
        ),
        layers=layers,
        candidates=trained.candidates,
        notes=notes,
    )


def _triggered(config: RunConfig, history: Sequence[CheckRecord]) -> float | None:
    """The epoch at which the trigger of a method was met; None: it was not, or there is none."""
    trigger = config.effective_trigger
    if trigger is None:
        return None
    acted = (check for check in history if check.chi < 1)
    if config.method == "worm" and config.greedy_first:  # and so acts before, by the distance itself
        acted = (check for check in acted if check.distance_mean is not None and check.distance_mean < trigger)
    return next((check.epoch for check in acted), None)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _device_name(accelerator: Accelerator) -> str:
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return name if accelerator.num_processes == 1 else f"{accelerator.num_processes} x {name}"
