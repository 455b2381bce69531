"""Seconds of training with a ticket over those of dense training, side by side: method by method, seed by seed.

    python benchmarks/training_seconds.py GRID [--seeds N] # digits, or others with data/ as for evidence.py

Every seed trains each method of benchmarks/comparisons/GRID.toml that is asked for, one after the other in one process,
so that a busy machine slows them alike. Seconds are those of training, with the search's own work, and without data,
evaluation and checkpoints. The table shows medians over seeds, and the lowest and the highest.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence

import torch

from earlyworm.comparisons.grid import Grid
from earlyworm.comparisons.grid_file import read_grid
from earlyworm.experiments.results import RunResult
from earlyworm.experiments.run import run
from evidence_store import grid_file
from tables import head, line

METHODS = ("dense", "early-bird", "worm", "fade", "fade:shrink=true")


def trained(grid: str, seed: int, methods: Sequence[str], folder: str) -> dict[str, RunResult]:
    """What came of every method with one seed, by its label."""
    changes = {"methods": methods, "seeds": [seed], "ratios": [0.5], "baseline": methods[0]}
    cells = Grid.of({**read_grid(grid_file(grid)), **changes, "output": folder}).cells()
    return {cell.label: run(cell.config) for cell in cells}


def spread(ratios: Sequence[float]) -> str:
    """The median of some ratios, and between which they lie."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seeds: list[dict[str, RunResult]] = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            seeds.append(trained(options.grid, seed, options.methods, folder))
    print(head("method", "seconds over dense training's", "FLOPs over dense training's", "search seconds in all"))
    for label in seeds[0]:
        if missing := sum(of[label].ticket is None for of in seeds):
            print(line(f"`{label}`", f"{missing} of {len(seeds)} did not emerge", "", ""))
            continue
        seconds = [of[label].total.seconds / of[options.methods[0]].total.seconds for of in seeds]
        flops = [of[label].total.train_flops / of[label].total.dense_train_flops for of in seeds]
        search = [of[label].search.seconds / of[label].total.seconds for of in seeds]
        print(line(f"`{label}`", spread(seconds), spread(flops), spread(search)))


if __name__ == "__main__":
    main()
