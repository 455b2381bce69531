"""What belongs beside the numbers of a comparison, in words: how it was done, and what is not in its tables."""

from __future__ import annotations

from collections import Counter

from earlyworm.comparisons.comparison import Comparison, Setting
from earlyworm.comparisons.quantities import is_pruned
from earlyworm.comparisons.statistics import ranking_agreement
from earlyworm.experiments.results import RunResult
from earlyworm.reporting.formats import epochs


def budget(comparison: Comparison) -> str:
    """What every method may spend, in one sentence."""
    configs = [result.config for result in _results(comparison)]
    if any(config.retrain_epochs is not None for config in configs):
        return "Budgets are not matched: tickets are retrained for a number of epochs of their own."
    lengths = {
        setting: {run.config.epochs for run in _results_of(comparison, setting)} for setting in comparison.settings
    }
    if any(len(some) > 1 for some in lengths.values()):
        return "Budgets are not matched: methods train for different numbers of epochs."
    each = {config.epochs for config in configs}
    number = epochs(each.pop()) if len(each) == 1 else "as many epochs"
    if comparison.match == "flops":
        return f"Matched by FLOPs: every method spends those of {number} of dense training."
    return f"Matched by epochs: every method trains for {number}, search and retraining together."


def how_compared(comparison: Comparison) -> list[str]:
    """How the methods were compared and what the numbers mean, one sentence or two each."""
    counts = Counter((outcome.setting, outcome.method) for outcome in comparison.outcomes if outcome.result is not None)
    fewest, seeds = min(counts.values(), default=0), max(counts.values(), default=0)
    over = str(seeds) if fewest == seeds else f"{fewest} to {seeds}"
    shares = "MACs are shares" if comparison.match == "flops" else "FLOPs of all training, and MACs, are shares"
    many = len(comparison.methods) > 2 and seeds > 1
    chance = " (of twenty methods that do not differ, one seems to)" if many else ""
    lines = [
        budget(comparison),
        f"Means ± standard deviations over {over} seed{'s' * (seeds != 1)}; {shares} of the dense network's.",
        f"Against {comparison.baseline}: paired by seed, with 95% intervals{chance}; accuracies in points.",
    ]
    results = _results(comparison)
    if any(result.search.set_by_method and is_pruned(result) for result in results):
        lines.append("(set): drawn when the method says, not by a search.")
    if any(result.search.censored for result in results):
        lines.append(
            "(k of n): only k of n runs emerged. The epoch before it is by when half had (Kaplan-Meier); > means that "
            "fewer than half had when the search ended."
        )
    return lines + _rankings(comparison)


def what_is_missing(comparison: Comparison) -> list[str]:
    """What makes the tables less than they seem: marks, runs that are not in them, and tickets drawn by force."""
    lines = [f"Questionable: {mark}" for mark in comparison.marks]
    for setting in comparison.settings:
        for method in comparison.methods:
            name = _name(comparison, setting, method)
            lines += [f"{name}: {line}" for line in _reservations(comparison, setting, method)]
        lines += _without_partner(comparison, setting)
    for outcome in comparison.outcomes:
        if outcome.state == "failed":
            name = _name(comparison, outcome.setting, outcome.method)
            lines.append(f"{name}, seed {outcome.seed} failed: {outcome.error}")
    waiting = sum(outcome.state == "waiting" for outcome in comparison.outcomes)
    if waiting:
        lines.append(f"Still to be done: {waiting} of {len(comparison.outcomes)} runs.")
    return lines


def _results(comparison: Comparison) -> list[RunResult]:
    return [outcome.result for outcome in comparison.outcomes if outcome.result is not None]


def _results_of(comparison: Comparison, setting: Setting) -> list[RunResult]:
    return [run for method in comparison.methods for run in comparison.results(setting, method).values()]


def _name(comparison: Comparison, setting: Setting, method: str) -> str:
    return method if len(comparison.settings) == 1 else f"{setting}, {method}"


def _reservations(comparison: Comparison, setting: Setting, method: str) -> list[str]:
    """What must be known of a method's runs that are done."""
    runs, lines = comparison.results(setting, method), []
    empty = sum(result.ticket is None for result in runs.values())
    if empty:
        lines.append(f"no ticket in {empty} of {len(runs)} runs, which have no final accuracy, size or total.")
    forced = sum(result.search.forced for result in runs.values())
    if forced:
        lines.append(f"drawn by force in {forced} of {len(runs)} runs, whose accuracies count.")
    return lines


def _without_partner(comparison: Comparison, setting: Setting) -> list[str]:
    """Which seeds are in no difference, since the baseline lacks them."""
    seeds = {method: _finished(comparison, setting, method) for method in comparison.methods}
    alone = set().union(*seeds.values()) - seeds.get(comparison.baseline, set())
    if not alone:
        return []
    name = _name(comparison, setting, comparison.baseline)
    which = f"seed{'s' * (len(alone) > 1)} {', '.join(map(str, sorted(alone)))}"
    return [f"{name}: no final accuracy of {which}, which differences to it leave out."]


def _finished(comparison: Comparison, setting: Setting, method: str) -> set[int]:
    """The seeds of which a method has a final accuracy."""
    return {seed for seed, run in comparison.results(setting, method).items() if run.accuracy.final is not None}


def _rankings(comparison: Comparison) -> list[str]:
    """How well training speed ranks the pruning ratios, where there are several."""
    return [
        f"{one.setting.task}, {one.method}: losses early in retraining rank the pruning ratios as their final "
        f"accuracies do with Kendall's tau {one.mean:.2f} (mean over seeds: {len(one.taus)}; ranked by size alone, the "
        f"smallest ratio first: {one.least_first:.2f})."
        for one in ranking_agreement(comparison)
        if one.mean is not None
    ]
