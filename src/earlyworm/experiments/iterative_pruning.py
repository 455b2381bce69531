"""The lottery ticket hypothesis: iterative magnitude pruning of single weights, with rewinding (arXiv 1803.03635)."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from earlyworm.experiments.bench import Bench, Found
from earlyworm.experiments.results import CheckRecord
from earlyworm.experiments.searching import save_ticket
from earlyworm.experiments.training import Progress, evaluate, make_optimizer
from earlyworm.masks.mask import Mask
from earlyworm.masks.scores import magnitude, score_units
from earlyworm.tickets.drawing import full_mask, further_mask, ticket_of
from earlyworm.tickets.ticket import Ticket
from earlyworm.units.groups import Units


def kept_after(rounds: int, ratio: float, units: int) -> list[int]:
    """How many units are kept after each round, so that every round removes the same fraction of what is left.

    Args:
        rounds: How many rounds, at least 1.
        ratio: The fraction of units removed after all of them, in [0, 1).
        units: How many there are.

    Returns:
        One number per round; the last one is what `ratio` leaves.
    """
    kept = [round(units * (1 - ratio) ** (done / rounds)) for done in range(1, rounds + 1)]
    kept[-1] = units - int(ratio * units)
    return kept


def round_epochs(epochs: float, rounds: int, rewind_epoch: float) -> float:
    """Epochs of the first round, so that all rounds and the last training together take `epochs`.

    The others begin at the epoch to which the weights are rewound: `length + rounds * (length - rewind_epoch)`.
    """
    return (epochs + rounds * rewind_epoch) / (rounds + 1)


def prune_iteratively(
    bench: Bench, dense: nn.Module, units: Units, state: dict[str, Any] | None
) -> tuple[Found, Ticket]:
    """Train, remove the weights of the lowest magnitude, rewind the rest; as often as the settings say.

    Args:
        bench: What all stages work with.
        dense: The network; it ends with the weights that it was rewound to.
        units: All its single weights.
        state: The newest checkpoint.

    Returns:
        What retraining needs, and the ticket.
    """
    config, pace = bench.config, bench.pace
    found = Found(**state["found"]) if state else Found()
    if state and state["stage"] == "retrain":
        return found, Ticket.load(bench.directory.ticket)
    mask, rewound = full_mask(units), _weights(dense)
    if state:
        mask, rewound = Mask(state["mask"], units.sizes, units.kinds), state["rewound"]
    length, rewind = bench.steps(round_epochs(config.epochs, config.rounds, config.rewind_epoch)), _rewind(bench)
    keep = kept_after(config.rounds, config.ratio, mask.units)
    whole = length + (config.rounds - 1) * (length - rewind)
    bench.observer.stage("search", pace.epochs(whole), pace.epochs(found.steps))
    while len(found.rounds) < config.rounds:
        rewound = _train_round(bench, dense, _ticket(bench, dense, units, mask), rewound, found, length, state)
        state = None  # it was one of this round
        mask = further_mask(mask, score_units(dense, units.groups, {"weights": magnitude}), keep[len(found.rounds)])
        found.rounds.append(mask.units_kept)
        if len(found.rounds) == config.rounds:
            _ticket(bench, dense, units, mask).apply(dense).remove()
            with bench.accelerator.autocast():
                found.pruned = evaluate(dense, bench.data, config, bench.accelerator)
        dense.load_state_dict(rewound)
    found.progress = rewind / length
    ticket = _ticket(bench, dense, units, mask)
    save_ticket(bench, ticket)
    return found, ticket


def _train_round(
    bench: Bench,
    dense: nn.Module,
    ticket: Ticket,
    rewound: dict[str, Tensor],
    found: Found,
    length: int,
    state: dict[str, Any] | None,
) -> dict[str, Tensor]:
    """Train with the ticket's zeros from the rewind epoch to the end; return the weights to rewind to."""
    config, pace, accelerator, rewind = bench.config, bench.pace, bench.accelerator, _rewind(bench)
    before = len(found.rounds)
    done = found.steps - before * (length - rewind)  # steps of a whole training that this round has behind it
    optimizer = make_optimizer(dense, config)
    if state:
        dense.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    applied = ticket.apply(dense, optimizer)
    model, prepared = accelerator.prepare(dense, optimizer)
    if not found.history:
        _record(bench, found, None, evaluate(model, bench.data, config, accelerator))
    while done < length:
        start = time.perf_counter()
        steps = min(pace.steps_per_epoch, length - done)
        if done < rewind:
            steps = min(steps, rewind - done)  # to remember the weights there
        loss = bench.train(model, prepared, f"round {before + 1}", done, steps, Progress(length))
        done += steps
        found.steps += steps
        found.seconds += time.perf_counter() - start
        if done == rewind:
            rewound = _weights(dense)
        due = done == length or pace.epochs_end(done, steps, config.evaluate_every)
        _record(bench, found, loss, evaluate(model, bench.data, config, accelerator) if due else None)
        if bench.checkpoint_due:
            bench.checkpoint({
                "stage": "search", "found": asdict(found), "mask": ticket.mask.bits, "rewound": rewound,
                "model": dense.state_dict(), "optimizer": optimizer.state_dict(),
            })  # fmt: skip
    applied.remove()
    bench.release(model)
    return rewound


def _record(bench: Bench, found: Found, loss: float | None, accuracy: float | None) -> None:
    """Tell and log an epoch; there are no masks to compare before a round is over."""
    record = CheckRecord(bench.pace.epochs(found.steps), None, None, 1.0, 0, loss, accuracy)
    found.history.append(asdict(record))
    bench.observer.check(record)
    if accuracy is not None:
        bench.accelerator.log({"search/accuracy": accuracy}, step=found.steps)


def _rewind(bench: Bench) -> int:
    return bench.steps(bench.config.rewind_epoch)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _ticket(bench: Bench, dense: nn.Module, units: Units, mask: Mask) -> Ticket:
    config = bench.config
    return ticket_of(dense, units, mask, method=config.method, pruning_ratio=config.ratio)
