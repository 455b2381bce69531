"""Made-up runs and comparisons: every number is plausible, fits the others, and is the same every time."""

import math

from earlyworm.comparisons.comparison import Comparison, Outcome, Setting
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.names import SEARCHES
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

TRAIN_IMAGES = 1000
DENSE = DenseCost(270_000, 10_000_000, 0.002)
GROUPS = {"conv1": 16, "layer1": 32, "layer2": 64, "layer3": 128}
FLOPS_PER_EPOCH = 3 * 2 * DENSE.macs * TRAIN_IMAGES  # a backward pass costs two forward passes; 60 G
SECONDS_PER_EPOCH = 2.0


def made_up(
    method: str = "worm",
    seed: int = 0,
    *,
    final: float = 0.95,
    epoch: float | None = 9.0,
    before: float = 0.96,
    pruned: float = 0.70,
    forced: bool = False,
    seconds_per_epoch: float = SECONDS_PER_EPOCH,
    **options,
) -> RunResult:
    """A run of `method` whose ticket emerged at `epoch`; None: it did not emerge, and was drawn only if `forced`.

    Methods that are no search draw at their set epoch, whatever `epoch` is, and imp after all but its last round.
    """
    config = RunConfig(**{"model": "resnet20", "method": method, "seed": seed, **options})
    searches = method in SEARCHES
    if not searches:
        epoch = config.epochs * config.rounds / (config.rounds + 1) if method == "imp" else config.drawn_at
    end = float(config.search_epochs if epoch is None else epoch)
    drawn = epoch is not None or forced
    distances = _distances(int(end), emerged=epoch is not None) if method != "imp" else ()
    history, triggered = _history(config, int(end), distances, before, truncates=searches)
    units, left = sum(GROUPS.values()), 1.0 if method == "dense" else 1 - config.ratio
    layers = {name: (round(left * size), size) for name, size in GROUPS.items()}
    cost = 1.0 if method == "imp" else left**1.5  # single weights that are held at zero cost what they did
    length = math.ceil(config.epochs - end) if drawn else 0
    search_flops, ticket_flops = round(end * FLOPS_PER_EPOCH), round(length * FLOPS_PER_EPOCH * cost)
    return RunResult(
        config=config,
        versions={"earlyworm": "0.1.0", "torch": "2.9.0"},
        seed=seed,
        device="cpu",
        data=DataSummary(TRAIN_IMAGES, 250, 10, (1, 8, 8), "a fifth held out"),
        search=SearchResult(
            method=method,
            emerged=searches and epoch is not None,
            forced=searches and epoch is None and forced,
            epoch=end if drawn else None,
            triggered_epoch=triggered,
            seconds=end * seconds_per_epoch,
            train_flops=search_flops,
            overhead_seconds=0.01 * len(distances),
            overhead_flops=1000 * len(distances),
            history=history,
            distances=distances,
            rounds=tuple(round(units * left ** (i / 3)) for i in (1, 2, 3) if method == "imp"),
        ),
        accuracy=AccuracyResult(
            before=before,
            pruned=pruned if drawn else None,
            recovery=tuple(final - (final - pruned) * math.exp(-0.7 * i) for i in range(1, length)) + (final,) * drawn,
            final=final if drawn else None,
            losses=tuple((1 - final) + 0.8 * (1 + config.ratio) * math.exp(-0.4 * i) for i in range(length)),
        ),
        dense=DENSE,
        ticket=TicketCost(
            round(DENSE.parameters * cost), round(DENSE.macs * cost), DENSE.latency_seconds * cost**0.7,
            sum(kept for kept, _ in layers.values()), units,
        ) if drawn else None,
        total=TotalCost(
            search_flops + ticket_flops, ticket_flops,
            seconds_per_epoch * (end + length * cost**0.7), FLOPS_PER_EPOCH * config.epochs,
        ),
        layers=layers if drawn else {},
    )  # fmt: skip


def outcome_of(result: RunResult, method: str | None = None) -> Outcome:
    """The cell of a run that is done; `method` is its label if that is not the method's own name."""
    config = result.config
    return Outcome(
        method=method or config.method,
        seed=result.seed,
        setting=Setting.of(config),
        state="done",
        error=None,
        directory=f"runs/{config.directory_name()}",
        command=config.command(),
        result=result,
    )


def undone(method: str, seed: int, error: str | None = None, **options) -> Outcome:
    """A cell that failed with `error`; without one, it waits."""
    config = RunConfig(**{"model": "resnet20", "method": method, "seed": seed, **options})
    return Outcome(
        method=method,
        seed=seed,
        setting=Setting.of(config),
        state="waiting" if error is None else "failed",
        error=error,
        directory=f"runs/{config.directory_name()}",
        command=config.command(),
        result=None,
    )


def comparison_of(*cells: RunResult | Outcome, **changes) -> Comparison:
    """A comparison of made-up runs and of cells without one, in the order given."""
    outcomes = tuple(outcome_of(cell) if isinstance(cell, RunResult) else cell for cell in cells)
    usual = {
        "title": "WORM against Early Bird",
        "command": "earlyworm compare --methods early-bird worm --seeds 0 1 2",
        "baseline": "early-bird",
        "match": "epochs",
    }
    return Comparison(**{**usual, **changes}, outcomes=outcomes)


def _distances(end: int, emerged: bool) -> tuple[tuple[float, ...], ...]:
    """Masks that settle: over a window of five the distance comes down to 0.099 at `end`, or never below 0.13."""
    pace = max(0.5, 0.46 * end - 1.3)  # so that the first distances are large, whenever the last ones are small

    def settled(at: float) -> float:
        return 1 - math.exp(-at / pace)

    scale = 0.099 / (settled(end) - settled(end - 4)) if end else 0.0
    floor = 0.0 if emerged else 0.13
    return tuple(tuple(min(1.0, floor + scale * (settled(i) - settled(j))) for j in range(i)) for i in range(end + 1))


def _history(
    config: RunConfig, end: int, distances: tuple[tuple[float, ...], ...], before: float, truncates: bool
) -> tuple[tuple[CheckRecord, ...], float | None]:
    """One check per epoch until `end`, and the epoch at which WORM began to truncate."""
    records, triggered = [], None
    for epoch in range(end + 1):
        window = distances[epoch][-(config.window - 1) :] if distances else ()
        mean = sum(window) / len(window) if window else None
        if config.method == "worm" and triggered is None and mean is not None and mean < config.effective_trigger:
            triggered = float(epoch)
        chi = {"constant": 0.1, "greedy": min(1.0, mean or 1.0), "worm": 1.0 if triggered is None else 0.003}
        factor = chi.get(config.method, 1.0) if truncates else 1.0
        records.append(
            CheckRecord(
                epoch=float(epoch),
                distance_mean=mean,
                distance_max=max(window) if window else None,
                chi=factor,
                truncated=round(config.ratio * sum(GROUPS.values())) if factor < 1 else 0,
                loss=2.3 * math.exp(-epoch / 4) + 0.1 if epoch else None,
                accuracy=before - (before - 0.1) * math.exp(-epoch / 2) if epoch < end else before,
            )
        )
    return tuple(records), triggered


METHODS_SHOWN = ["early-bird", "worm", "greedy", "dense", "random"]


def cells(model: str) -> list:
    """Three seeds of five methods: worm is always sooner and better, random worse; greedy emerges but once."""
    found = []
    for seed in range(3):
        noise = 0.002 * seed
        found += [
            made_up("early-bird", seed, model=model, epoch=10.0 + seed, final=0.94 + noise),
            made_up("worm", seed, model=model, epoch=8.0 + seed // 2, final=0.95 + noise),
            made_up(
                "greedy",
                seed,
                model=model,
                epoch=None if seed else 9.0,
                forced=seed > 0,
                final=0.94 + 0.004 * (seed == 1),
            ),
            made_up("dense", seed, model=model, final=0.94 + 0.002 * (2 - seed)),
            made_up("random", seed, model=model, final=0.92 + noise),
        ]
    return found


ONE = comparison_of(*cells("resnet20"), title="One network")
