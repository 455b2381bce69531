"""The second stage of a run: cut the ticket out and train it for the rest of the budget."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from earlyworm.experiments.bench import Bench, Found, Retrained
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.models import initialise_
from earlyworm.experiments.networks import build_network
from earlyworm.experiments.training import Progress, evaluate, make_optimizer, stable_seed
from earlyworm.tickets.compaction import compact
from earlyworm.tickets.ticket import Ticket

_RECOVERING = 3  # epochs after the cut: accuracy is measured after each of them


def compact_ticket(bench: Bench, dense: nn.Module, ticket: Ticket, found: Found) -> nn.Module:
    """The compacted network with the weights to retrain from; notes how good it is as it was cut out."""
    config, data, accelerator = bench.config, bench.data, bench.accelerator
    example = data.example_inputs(1, config)
    small = compact(dense, ticket, example_inputs=example)
    if config.method == "narrow":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_seed(config.seed, "narrow"))
            small = arrange_memory(initialise_(small.cpu()), config).to(accelerator.device)
    if found.pruned is None:  # else retraining goes on, and `dense` is not the network that was searched
        with accelerator.autocast():  # not prepared yet, for a network that once was is not prepared again
            found.pruned = evaluate(small, data, config, accelerator)
    if config.retrain_from == "emergence" or config.method == "narrow":  # whose weights are random ones, and its own
        return small
    seed = stable_seed(config.seed, "reinitialise") if config.retrain_from == "reinitialise" else None
    initial, _ = build_network(config, classes=data.classes, shape=data.shape, seed=seed)
    return compact(arrange_memory(initial, config).to(accelerator.device), ticket, example_inputs=example)


def retrain(
    bench: Bench,
    dense: nn.Module,
    small: nn.Module,
    found: Found,
    state: dict[str, Any] | None,
    epochs: int | None = None,
    spent: int = 0,
) -> Retrained:
    """Train the compacted network for the rest of the budget, or for its first `epochs` only; see `_steps_left`."""
    config, pace, accelerator = bench.config, bench.pace, bench.accelerator
    total = _steps_left(bench, dense, small, found, spent)
    last = total if epochs is None else min(total, bench.steps(epochs))
    retrained = Retrained()
    optimizer = make_optimizer(small, config)
    if state and state["stage"] == "retrain":
        retrained = Retrained(**state["retrained"])
        small.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    model, prepared = accelerator.prepare(small, optimizer)
    bench.observer.stage("retrain", pace.epochs(last), pace.epochs(retrained.steps))
    while retrained.steps < last:
        start = time.perf_counter()
        steps = min(pace.steps_per_epoch, last - retrained.steps)
        loss = bench.train(model, prepared, "retrain", retrained.steps, steps, Progress(total, found.progress))
        retrained.steps += steps
        retrained.seconds += time.perf_counter() - start
        due = retrained.steps == last or pace.epochs(retrained.steps) <= _RECOVERING
        due = due or pace.epochs_end(retrained.steps, steps, config.evaluate_every)
        accuracy = evaluate(model, bench.data, config, accelerator) if due else None
        retrained.recovery.append(accuracy)
        retrained.losses.append(loss)
        bench.observer.recovered(pace.epochs(retrained.steps), loss, accuracy)
        numbers = {"retrain/loss": loss} | ({} if accuracy is None else {"retrain/accuracy": accuracy})
        accelerator.log(numbers, step=found.steps + retrained.steps)
        goes_on = epochs is not None and retrained.steps == last  # later, from this very checkpoint
        if goes_on or bench.checkpoint_due:
            bench.checkpoint({
                "stage": "retrain", "found": asdict(found), "retrained": asdict(retrained),
                "model": small.state_dict(), "optimizer": optimizer.state_dict(),
            })  # fmt: skip
    bench.release(model)  # what is saved and measured is the plain network
    return retrained


def _steps_left(bench: Bench, dense: nn.Module, small: nn.Module, found: Found, spent: int) -> int:
    """Optimizer steps of retraining: the given epochs, or what is left of the budget of epochs or FLOPs.

    Of a budget of FLOPs, `spent` are gone for what else the run has trained.
    """
    config = bench.config
    if config.retrain_epochs is not None:
        return bench.steps(config.retrain_epochs)
    left = bench.steps(config.epochs) - found.steps
    if config.match == "epochs":
        return left
    return max(0, left * bench.step_flops(dense) + found.saved_flops - spent) // bench.step_flops(small)


def arrange_memory(model: nn.Module, config: RunConfig) -> nn.Module:
    """bf16 convolutions are fastest with channels last."""
    return model.to(memory_format=torch.channels_last) if config.precision == "bf16" else model  # type: ignore[call-overload]  # torch's stubs lack it
