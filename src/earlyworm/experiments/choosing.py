"""Which ratio: tickets of several ratios from one search, of which the one that learns fastest is trained to the end.

The estimator is the sum of training losses over the first part of training (arXiv 2010.14499): what learns fast will
generalise well, and nothing held out is needed to tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from earlyworm.errors import RunError
from earlyworm.experiments.bench import Bench, Found, Retrained, Trained
from earlyworm.experiments.results import CandidateResult
from earlyworm.experiments.retraining import compact_ticket, retrain
from earlyworm.experiments.run_directory import RunDirectory
from earlyworm.experiments.searching import save_ticket, train_dense
from earlyworm.search.sweep import RatioSweep
from earlyworm.tickets.ticket import Ticket


@dataclass(frozen=True)
class Candidate:
    """A ratio whose ticket was drawn, as far as it was retrained."""

    bench: Bench
    found: Found
    ticket: Ticket
    small: nn.Module
    retrained: Retrained

    @property
    def epochs(self) -> int:
        """How many whole epochs it was retrained for."""
        return int(self.retrained.steps / self.bench.pace.steps_per_epoch + 1e-6)


def choose_ratio(bench: Bench, dense: nn.Module, sweep: RatioSweep, state: dict[str, Any] | None) -> Trained:
    """Search for tickets of all ratios at once, begin to retrain each, and train the most promising to the end.

    Args:
        bench: What all stages work with.
        dense: The network; it ends with other weights.
        sweep: The search for all ratios.
        state: The newest checkpoint.

    Returns:
        What the chosen ratio came to, and what the others have cost; without a ticket if none has emerged.
    """
    config = bench.config
    own = {ratio: _own_bench(bench, f"{ratio:g}", ratio) for ratio in sweep.searches}
    kept = {ratio for ratio, part in own.items() if part.directory.ticket.exists()}  # before a run was interrupted
    bench.accelerator.wait_for_everyone()  # every process has looked before the first one writes

    def keep(ratio: float, found: Found) -> None:
        if ratio not in kept:
            _keep(own[ratio], dense, sweep, ratio, found)
            kept.add(ratio)

    def keep_emerged(found: Found) -> None:
        for ratio, search in sweep.searches.items():
            if search.emerged:
                keep(ratio, found)

    searched = train_dense(bench, dense, sweep, state, keep_emerged)
    if config.force_draw:
        for ratio in sweep.searches:
            keep(ratio, searched)
    probed = {ratio: _retrain(part, dense, config.probe_epochs) for ratio, part in own.items() if ratio in kept}
    if not probed:
        return Trained(searched)
    speeds = training_speeds(
        {ratio: candidate.retrained.losses[: candidate.epochs] for ratio, candidate in probed.items()}
    )
    best = min(speeds, key=lambda ratio: speeds[ratio])
    for ratio, speed in speeds.items() if len(speeds) > 1 else ():
        bench.observer.note(f"ratio {ratio:g}: the training losses of its first epochs sum to {speed:.4f}")
    results = tuple(
        _result(bench, ratio, probed.get(ratio), speeds.get(ratio), chosen=ratio == best) for ratio in sweep.searches
    )
    others = [result for result in results if not result.chosen]
    longer = searched.steps - probed[best].found.steps  # than the chosen one was searched for
    extra_flops = longer * bench.step_flops(dense) + sum(result.retrain_flops for result in others)
    # In a place of its own: what the choice was made by stays, so that a run that goes on makes the same one.
    chosen = _retrain(_own_bench(bench, "chosen", best), dense, None, own[best].directory, spent=extra_flops)
    if bench.accelerator.is_main_process:
        bench.directory.write(bench.directory.ticket, chosen.ticket.to_bytes())
    return Trained(
        found=chosen.found,
        ticket=chosen.ticket,
        small=chosen.small,
        retrained=chosen.retrained,
        candidates=results,
        extra_flops=extra_flops,
        extra_seconds=searched.seconds - chosen.found.seconds + sum(r.retrain_seconds for r in others),
    )


def training_speeds(losses: Mapping[float, Sequence[float]]) -> dict[float, float]:
    """By what several ratios are ranked: the sum of their training losses over as many epochs; lower is better.

    Args:
        losses: Of every whole epoch for which each was retrained.

    Returns:
        The sums over as many epochs as all have that have any. What emerged too late to be trained for an epoch is left
        out; if all did, the lowest ratio has a sum of 0.
    """
    known = {ratio: some for ratio, some in losses.items() if some}
    first = min(map(len, known.values()), default=0)
    return {ratio: sum(some[:first]) for ratio, some in known.items()} or {min(losses): 0.0}


def _own_bench(bench: Bench, name: str, ratio: float) -> Bench:
    """The same bench for one ratio, whose checkpoints lie in a place of its own."""
    directory = RunDirectory(bench.directory.candidates / name)
    return replace(bench, config=replace(bench.config, ratio=ratio, ratios=()), directory=directory)


def _keep(bench: Bench, dense: nn.Module, sweep: RatioSweep, ratio: float, found: Found) -> None:
    """Keep a ticket and the weights that it has emerged with."""
    own = sweep.searches[ratio]
    history = [dict(record) for record in found.history]
    for record, check in zip(reversed(history), reversed(own.history), strict=False):
        record.update(distance_mean=check.distance_mean, distance_max=check.distance_max)
    lowest = ratio == min(sweep.searches)
    kept = replace(found, emerged=own.emerged, history=history, masks=[], distances=found.distances if lowest else [])
    bench.checkpoint({"stage": "drawn", "found": asdict(kept), "model": dense.state_dict()})
    save_ticket(bench, sweep.draw(ratio, force=True))


def _retrain(
    bench: Bench, dense: nn.Module, epochs: int | None, begun: RunDirectory | None = None, spent: int = 0
) -> Candidate:
    """Retrain one ratio's ticket for some epochs, or to the end, going on from where it was, or was `begun`.

    Of a budget of FLOPs, `spent` are gone for the other ratios.
    """
    begun = begun or bench.directory
    with bench.accelerator.main_process_first():  # it may still be writing, and it removes what is damaged
        state = bench.newest_checkpoint() or bench.newest_checkpoint(begun)
    if state is None:
        raise RunError(f"{begun.path} has a ticket, but no checkpoint that is whole: start again with --overwrite")
    found, ticket = Found(**state["found"]), Ticket.load(begun.ticket)
    if state["stage"] == "drawn":
        dense.load_state_dict(state["model"])
    small = compact_ticket(bench, dense, ticket, found)
    return Candidate(bench, found, ticket, small, retrain(bench, dense, small, found, state, epochs, spent))


def _result(
    bench: Bench, ratio: float, candidate: Candidate | None, speed: float | None, *, chosen: bool
) -> CandidateResult:
    if candidate is None:
        return CandidateResult(ratio, None, None, (), None, 0, 0.0, chosen=False)
    found, retrained = candidate.found, candidate.retrained
    return CandidateResult(
        ratio=ratio,
        epoch=bench.pace.epochs(found.steps) if found.emerged else None,
        pruned=found.pruned,
        losses=tuple(retrained.losses),
        accuracy=retrained.recovery[-1] if retrained.recovery else found.pruned,
        retrain_flops=retrained.steps * bench.step_flops(candidate.small),
        retrain_seconds=retrained.seconds,
        chosen=chosen,
        speed=speed,
    )
