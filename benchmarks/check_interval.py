"""When Early Bird's ticket would have emerged with other intervals between checks, by several rules.

    python benchmarks/check_interval.py GRID [--seeds N]     # digits, or cifar10 with data as for evidence.py

Trains the dense network of benchmarks/comparisons/GRID.toml as network slimming does, without a search that could end
it, and takes a mask eight times per epoch. All masks are compared with each other, so that any rule can be tried on the
same training afterwards. Runs lie in runs/ and are used again.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from earlyworm.comparisons.grid import Grid
from earlyworm.comparisons.grid_file import read_grid
from earlyworm.experiments.run import run
from earlyworm.search.emergence import Emergence
from evidence_store import grid_file
from tables import head, line

PER_EPOCH = 8
INTERVALS = (1.0, 0.5, 0.25, 0.125)
APART = (0.125, 0.25, 0.5, 1, 2, 3)
EPOCHS = 20
PUBLISHED = Emergence()  # for one check per epoch


class Masks(NamedTuple):
    """When the masks of a training were taken, float [masks] in epochs, and their distances, float [masks, masks]."""

    epochs: np.ndarray
    distances: np.ndarray


def scaled(exponent: float) -> Callable[[float], Emergence]:
    """As many masks as ever, and an epsilon that grows with a power of the interval."""
    return lambda interval: Emergence(PUBLISHED.window, PUBLISHED.epsilon * interval**exponent)


RULES: dict[str, Callable[[float], Emergence]] = {
    "the latest 5 masks": lambda interval: PUBLISHED,
    "masks of the latest 4 epochs": lambda interval: Emergence.spanning(4, check_every=interval),
    "5 masks, epsilon times interval^0.5": scaled(0.5),
    "5 masks, epsilon times interval^0.75": scaled(0.75),
    "5 masks, epsilon times interval": scaled(1.0),
}


def masks_of(grid: str, seed: int) -> Masks:
    """The masks of a dense training; the first is taken before any of it."""
    changes = {
        "methods": ["late"], "seeds": [seed], "schedule": "constant", "check-every": 1 / PER_EPOCH,
        "epochs": EPOCHS + 1, "search-epochs": EPOCHS, "ratios": [0.5],
    }  # fmt: skip
    (cell,) = Grid.of({**read_grid(grid_file(grid)), **changes}).cells()
    search = run(cell.config).search
    matrix = np.zeros((len(search.distances), len(search.distances)))
    for row, values in enumerate(search.distances):
        matrix[row, :row] = matrix[:row, row] = values
    return Masks(np.array([check.epoch for check in search.history]), matrix)


def emergence_epoch(masks: Masks, interval: float, rule: Callable[[float], Emergence]) -> float | None:
    """The epoch at which a ticket emerges if only every so many of the masks are taken; None: it does not."""
    every = round(interval * PER_EPOCH)
    epochs, distances = masks.epochs[::every], masks.distances[::every, ::every]
    emergence = rule(epochs[1])  # an epoch may not be a multiple of so many steps
    for check, epoch in enumerate(epochs):
        if emergence.has_emerged(distances[check, max(0, check - emergence.window + 1) : check].tolist()):
            return float(epoch)
    return None


def distance_back(masks: Masks, epoch: float, apart: float) -> float:
    """The distance of the mask at an epoch to the one taken `apart` epochs before."""
    newest, older = (int(np.abs(masks.epochs - when).argmin()) for when in (epoch, epoch - apart))
    return float(masks.distances[newest, older])


def mean_and_deviation(epochs: Sequence[float | None]) -> str:
    """Over seeds; those without emergence are counted."""
    known = [epoch for epoch in epochs if epoch is not None]
    if len(known) < 2:
        return f"{len(known)} of {len(epochs)} emerged"
    missing = "" if len(known) == len(epochs) else f" ({len(known)} of {len(epochs)})"
    return f"{statistics.mean(known):.2f} ± {statistics.stdev(known):.2f}{missing}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", help="a file of benchmarks/comparisons")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    trainings = [masks_of(options.grid, seed) for seed in range(options.seeds)]
    print(f"Epoch of emergence, mean and standard deviation over {options.seeds} seeds, by interval in epochs:\n")
    print(head("rule", *(f"{interval:g}" for interval in INTERVALS)))
    for name, rule in RULES.items():
        found = ([emergence_epoch(masks, interval, rule) for masks in trainings] for interval in INTERVALS)
        print(line(name, *map(mean_and_deviation, found)))
    print("\nMean distance of masks by how many epochs are between them:\n")
    print(head("to the mask of epoch", *(f"{apart:g}" for apart in APART)))
    for epoch in (4, 8, 12, 16, 20):
        means = (np.mean([distance_back(masks, epoch, apart) for masks in trainings]) for apart in APART)
        print(line(epoch, *(f"{mean:.3f}" for mean in means)))


if __name__ == "__main__":
    main()
