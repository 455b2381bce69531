"""What came of a run, in words: a headline and a few sentences."""

from __future__ import annotations

from earlyworm.experiments.results import RunResult
from earlyworm.reporting.formats import epochs, percent, seconds, si

_RETRAINED_FROM = {
    "emergence": "from the weights at emergence",
    "rewind": "from the initial weights",
    "reinitialise": "from new random weights",
}

_TRIGGERED = {"worm": "WORM", "fade": "Fade"}


def pruned_in_training(result: RunResult) -> bool:
    """Whether training had begun when the ticket was drawn, so that pruning could lose what had been learned."""
    return result.ticket is not None and result.draw_epoch > 0


def retrained_from(result: RunResult) -> str:
    """Which weights retraining began with."""
    config = result.config
    if config.method == "imp":
        return (
            "from the initial weights" if config.rewind_epoch == 0 else f"from those of epoch {config.rewind_epoch:g}"
        )
    if config.retrain_from == "emergence" and result.search.set_by_method:
        return "from the weights at pruning"
    return _RETRAINED_FROM[config.retrain_from]


def headline(result: RunResult) -> str:
    """The run in one line."""
    search, ticket, final = result.search, result.ticket, percent(result.accuracy.final)
    if ticket is None:
        return "No ticket emerged"
    drawn, before = result.draw_epoch, ""
    if pruned_in_training(result):
        before = f" ({percent(result.accuracy.before)} before pruning)"
    gain = f"{ticket.macs / result.dense.macs:.0%} of the MACs, {final} accuracy{before}"
    if search.emerged:
        return f"A ticket emerged at epoch {drawn:.4g}: {gain}"
    if search.forced:
        return f"No ticket emerged; the newest mask, drawn by force: {gain}"
    return {
        "dense": f"Dense training, nothing pruned: {final} accuracy",
        "narrow": f"A narrower network from the start: {gain}",
        "random": f"A random ticket, drawn at epoch {drawn:.4g}: {gain}",
        "late": f"Pruned at epoch {drawn:.4g}, without a search: {gain}",
        "rst": f"A random ticket, prepared until epoch {drawn:.4g}: {gain}",
        "imp": f"Pruned in {len(search.rounds)} rounds: {ticket.units_kept / ticket.units:.0%} of the weights, "
        f"{final} accuracy",
    }[search.method]


def sentences(result: RunResult) -> list[str]:
    """How the ticket was found, how much it keeps, what it learned, and what all that cost."""
    config, accuracy, total, ticket = result.config, result.accuracy, result.total, result.ticket
    cost = f"All training took {seconds(total.seconds)} on {result.device} and {si(total.train_flops)} FLOPs"
    if config.method != "dense" and total.dense_train_flops:
        share = total.train_flops / total.dense_train_flops
        cost += f", {share:.0%} of what dense training takes for as many epochs"
    if ticket is None:
        return [
            _search(result),
            f"The dense network has reached {percent(accuracy.before)} held-out accuracy.",
            f"{cost}.",
        ]
    keeps = f"It keeps {ticket.units_kept} of {ticket.units} units ({percent(ticket.units_kept / ticket.units)})."
    found = _search(result) if not result.search.set_by_method else _set_by_method(result)
    chosen = [_chosen(result)] if result.candidates else []
    return [found, *chosen, *([] if config.method == "dense" else [keeps]), _learned(result), f"{cost}."]


def _chosen(result: RunResult) -> str:
    """Which of several ratios was trained to the end, and why."""
    best = next(f"{candidate.ratio:g}" for candidate in result.candidates if candidate.chosen)
    told = [f"Ratio {best} was trained to the end"]
    if len(ranked := sorted((c.speed, c.ratio) for c in result.candidates if c.speed is not None)) > 1:
        sums = ", ".join(f"{speed:.3g} at ratio {ratio:g}" for speed, ratio in ranked)
        told = [f"{told[0]}: over the first epochs its training losses summed to least ({sums})"]
    late = [f"{c.ratio:g}" for c in result.candidates if not c.drawn]
    told += [f"No ticket of ratio {' or '.join(late)} emerged in time"] if late else []
    short = [f"{c.ratio:g}" for c in result.candidates if c.drawn and c.speed is None]
    told += [f"That of ratio {' and '.join(short)} was drawn too late to be trained for an epoch"] if short else []
    return " ".join(f"{sentence}." for sentence in told)


def _search(result: RunResult) -> str:
    """How the search went."""
    config, search = result.config, result.search
    # Before the window is full, a small maximum means nothing; the first mask has none.
    maxima = [c.distance_max for c in search.history if c.distance_max is not None][config.emergence.window - 2 :]
    reached = f"smallest window maximum reached {min(maxima):.3g}" if maxima else "the window never filled"
    failed = f"No ticket emerged within {epochs(config.search_epochs)}: {reached}, epsilon is {config.epsilon:g}"
    trigger = ""
    if search.triggered_epoch is not None:
        trigger = f" ({_TRIGGERED[config.method]} triggered at epoch {search.triggered_epoch:.4g})"
    elif config.effective_trigger is not None:
        before = "; until then chi is the mean distance" if config.method == "worm" and config.greedy_first else ""
        name = _TRIGGERED[config.method]
        told, grown = "mean distance", ""
        if config.method == "fade":
            told, grown = "mean distance to the latest masks", " without having grown"
        trigger = f" ({name} never triggered: no {told} was below {config.effective_trigger:g}{grown}{before})"
    if search.emerged:
        return f"The ticket emerged at epoch {result.draw_epoch:.4g}{trigger}."
    if search.forced:
        return f"{failed}{trigger}; the newest mask was drawn by force at epoch {result.draw_epoch:.4g}."
    cure = "raise --search-epochs or --epsilon, lower --check-every, or take the newest mask with --force-draw"
    return f"{failed}{trigger}; {cure}."


def _set_by_method(result: RunResult) -> str:
    """How a method that does not search came to its ticket."""
    config, rounds, drawn = result.config, result.search.rounds, result.draw_epoch
    rewound = "their initial values" if config.rewind_epoch == 0 else f"what they were at epoch {config.rewind_epoch:g}"
    return {
        "dense": "This is dense training: no ticket was searched for, and nothing was pruned.",
        "narrow": "No ticket was searched for: the network was made narrower before training, by the same fraction in "
        "every layer, with new random weights.",
        "random": f"No ticket was searched for: at epoch {drawn:.4g}, the units to remove were drawn at random.",
        "late": f"No ticket was searched for: the dense network was trained for {epochs(drawn)}, and its least "
        "important units were then removed.",
        "rst": "No ticket was searched for: the units to remove were drawn at random before training, a growing "
        f"penalty shrank their weights, and at epoch {drawn:.4g} they were removed.",
        "imp": f"In {len(rounds)} rounds, the network was trained, the weights of the lowest magnitude were removed, "
        f"and the others were set back to {rewound}; the rounds left {', '.join(map(str, rounds))} weights.",
    }[result.search.method]


def _learned(result: RunResult) -> str:
    """The accuracies around pruning and retraining."""
    accuracy, length = result.accuracy, epochs(result.retrain_length)
    if not pruned_in_training(result):
        return f"Held-out accuracy: {percent(accuracy.final)} after {length} of training."
    learned = f"Held-out accuracy: {percent(accuracy.before)} before pruning, {percent(accuracy.pruned)} right after"
    if accuracy.recovery:
        learned += f", {percent(accuracy.final)} after {length} of retraining {retrained_from(result)}"
    return f"{learned}."
