"""The first stage of a run: train the dense network until its ticket is drawn, going on from a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from earlyworm.experiments.baselines import baseline_ticket, extrusion
from earlyworm.experiments.bench import Bench, Found
from earlyworm.experiments.names import SEARCHES
from earlyworm.experiments.results import CheckRecord
from earlyworm.experiments.training import Progress, evaluate, make_optimizer
from earlyworm.masks.mask import Mask, mask_distance
from earlyworm.search.emergence import Emergence
from earlyworm.search.history import Check
from earlyworm.search.sweep import RatioSweep
from earlyworm.search.ticket_search import TicketSearch
from earlyworm.tickets.compaction import round_ticket
from earlyworm.tickets.ticket import Ticket

_KEPT_UNITS = 2**24  # of more units, no masks are kept for their distances to each other: 2 MB each


@dataclass(frozen=True)
class NoEmergence(Emergence):
    """The search goes on, whatever its masks do: the ticket is drawn otherwise."""

    def has_emerged(self, distances: Sequence[float]) -> bool:
        """No."""
        return False


def find_ticket(
    bench: Bench, dense: nn.Module, search: TicketSearch, state: dict[str, Any] | None
) -> tuple[Found, Ticket | None]:
    """Train the dense network until its ticket emerges or the method draws it; None if it has not emerged in time."""
    if state and state["stage"] == "retrain":
        return Found(**state["found"]), Ticket.load(bench.directory.ticket)
    found = train_dense(bench, dense, search, state)
    return found, save_ticket(bench, _draw(bench, dense, search))


def train_dense(
    bench: Bench,
    dense: nn.Module,
    search: TicketSearch | RatioSweep,
    state: dict[str, Any] | None,
    checked: Callable[[Found], None] | None = None,
) -> Found:
    """Train the dense network until everything that is searched for has emerged, or the epochs for it are over.

    Args:
        bench: What all stages work with.
        dense: The network.
        search: What watches it.
        state: The newest checkpoint of this stage.
        checked: Told after every check what there is so far, before it is saved.

    Returns:
        What retraining needs of it.
    """
    config, pace, accelerator = bench.config, bench.pace, bench.accelerator
    found = Found(**state["found"]) if state else Found()
    optimizer = make_optimizer(dense, config)
    dense_flops = bench.step_flops(dense)
    if state:
        search.load_state_dict(state["search"])  # which may make the network smaller, as the weights are
        dense.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    step_flops = bench.step_flops(dense)
    model, prepared = accelerator.prepare(dense, optimizer)
    drawn_at = config.drawn_at
    last = bench.steps(config.search_epochs if drawn_at is None else drawn_at)
    schedule = _schedule(bench, last)
    bench.observer.stage("search", pace.epochs(last), pace.epochs(found.steps))
    with search.attach(optimizer), _extruded(bench, search, optimizer, found.steps, last):
        if not found.history:
            _record(bench, found, search, None, _accuracy(bench, model))
        while not search.emerged and found.steps < last:
            start = time.perf_counter()
            steps = min(pace.check_steps, last - found.steps)
            loss = bench.train(model, prepared, "search", found.steps, steps, schedule)
            emerged = _emerged(search)
            search.update()
            found.steps += steps
            found.saved_flops += steps * (dense_flops - step_flops)
            found.seconds += time.perf_counter() - start
            found.emerged = search.emerged
            found.overhead_seconds, found.overhead_flops = search.overhead.seconds, search.overhead.flops
            if config.shrink:
                step_flops = bench.step_flops(dense)
            if config.retrain_from == "emergence" and config.method != "late":
                found.progress = schedule.after(found.steps)
            # Not at every check: there may be many in an epoch, and each evaluation can take as long as they do.
            ends = found.steps == last or _emerged(search) > emerged
            due = ends or pace.epochs_end(found.steps, steps, config.evaluate_every)
            _record(bench, found, search, loss, _accuracy(bench, model) if due else None)
            if checked:
                checked(found)
            if ends or bench.checkpoint_due:  # without a ticket, `force_draw` goes on from where the search has ended
                bench.checkpoint({
                    "stage": "search", "found": asdict(found), "search": search.state_dict(),
                    "model": dense.state_dict(), "optimizer": optimizer.state_dict(),
                })  # fmt: skip
    bench.release(model)
    return found


def save_ticket(bench: Bench, ticket: Ticket | None) -> Ticket | None:
    """Round the ticket as the settings ask for, and write it to the run's directory."""
    if ticket is None:
        return None
    if bench.config.round_to > 1:
        ticket = round_ticket(ticket, bench.config.round_to)
    if bench.accelerator.is_main_process:
        bench.directory.write(bench.directory.ticket, ticket.to_bytes())
    bench.accelerator.wait_for_everyone()
    return ticket


def _schedule(bench: Bench, last: int) -> Progress:
    """The learning rate is scheduled over all epochs; network slimming trains to its end, and then fine-tunes."""
    config = bench.config
    if config.method == "late":
        return Progress(max(1, last))
    if config.retrain_epochs is None:
        return Progress(bench.steps(config.epochs))
    first = config.search_epochs if config.drawn_at is None else config.drawn_at
    return Progress(max(1, bench.steps(first + config.retrain_epochs)))


def _extruded(
    bench: Bench, search: TicketSearch | RatioSweep, optimizer: torch.optim.Optimizer, done: int, last: int
) -> AbstractContextManager[object]:
    if bench.config.method != "rst":
        return nullcontext()
    return extrusion(bench.config, search.model, search.units, optimizer, done, last)


def _draw(bench: Bench, dense: nn.Module, search: TicketSearch) -> Ticket | None:
    config = bench.config
    if config.method not in SEARCHES:
        return baseline_ticket(bench, dense, search)
    return search.draw(force=config.force_draw) if search.emerged or config.force_draw else None


def _emerged(search: TicketSearch | RatioSweep) -> int:
    """How many tickets have emerged."""
    return sum(one.emerged for one in (search.searches.values() if isinstance(search, RatioSweep) else [search]))


def _accuracy(bench: Bench, model: nn.Module) -> float:
    return evaluate(model, bench.data, bench.config, bench.accelerator)


def _record(
    bench: Bench, found: Found, search: TicketSearch | RatioSweep, loss: float | None, accuracy: float | None
) -> None:
    """Tell and log everything about a check."""
    check = search.history[-1] if search.history else Check(-1, None, None, 1.0, 0)  # some scores need gradients
    new = check.step == search.steps  # in a sweep, the lowest ratio may have emerged before others
    if not new:
        check = replace(check, distance_mean=None, distance_max=None)
    record = CheckRecord(
        epoch=bench.pace.epochs(found.steps),
        distance_mean=check.distance_mean,
        distance_max=check.distance_max,
        chi=check.chi,
        truncated=check.truncated,
        loss=loss,
        accuracy=accuracy,
    )
    found.history.append(asdict(record))
    if new and search.mask.units <= _KEPT_UNITS:
        newest = search.mask
        older = [Mask(bits, newest.sizes, newest.kinds) for bits in found.masks]
        found.distances.append([mask_distance(newest, mask) for mask in older])
        found.masks.append(newest.bits.clone())
    bench.observer.check(record)
    numbers = {f"search/{name}": value for name, value in asdict(record).items() if value is not None}
    bench.accelerator.log(numbers, step=found.steps)
