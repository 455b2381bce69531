"""Whether it helps Fade to drop the momentum of what fades, as well as its gradients.

    python benchmarks/fading_momentum.py GRID [--seeds N]    # fade_text, or others with data/ as for evidence.py

Every seed trains Fade with the settings of benchmarks/comparisons/GRID.toml twice: as it is, and with the optimizer's
first moments (momentum of SGD, `exp_avg` of Adam) of static units set to 0 after every step. The grids named fade_*
evaluate on a validation split, which is what choices like this one are made on. Differences are paired by seed, with
95% intervals; accuracies in points.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from earlyworm.comparisons.comparison import Comparison, Outcome, Setting
from earlyworm.comparisons.grid import Grid
from earlyworm.comparisons.grid_file import read_grid
from earlyworm.comparisons.quantities import QUANTITIES
from earlyworm.comparisons.statistics import Summary, summarise
from earlyworm.experiments.results import RunResult
from earlyworm.experiments.run import run
from earlyworm.search.gradients import GradientHook
from evidence_store import grid_file
from tables import head, line

KEPT, DROPPED = "fade", "fade, momentum dropped"
MOMENTS = ("momentum_buffer", "exp_avg")
SHOWN = ("emergence_epoch", "accuracy_before", "accuracy_pruned", "accuracy_recovery_1", "accuracy_final")


@contextmanager
def without_momentum() -> Iterator[None]:
    """Static units have no momentum in here."""
    fade = GradientHook._fade

    @torch.no_grad()
    def fade_and_drop(hook: GradientHook, optimizer: torch.optim.Optimizer, *rate: Any) -> None:
        fade(hook, optimizer, *rate)
        for static in hook._static[optimizer]:
            state = optimizer.state[static.gate]
            for moment in (state[name] for name in MOMENTS if name in state):
                moment.masked_fill_(~static.kept, 0)

    with patch.object(GradientHook, "_fade", fade_and_drop):
        yield


def trained(grid: str, seed: int) -> RunResult:
    """What comes of Fade with one seed."""
    with tempfile.TemporaryDirectory() as folder:
        changes = {"methods": ["fade"], "seeds": [seed], "ratios": [0.5], "baseline": "fade", "output": folder}
        (cell,) = Grid.of({**read_grid(grid_file(grid)), **changes}).cells()
        return run(cell.config)


def outcome(method: str, seed: int, result: RunResult) -> Outcome:
    """A result as statistics take it."""
    return Outcome(method, seed, Setting.of(result.config), "done", None, "", "", result)


def difference(summary: Summary, points: bool) -> str:
    """Against Fade as it is."""
    paired, scale = summary.paired, 100 if points else 1
    if paired is None:
        return ""
    if paired.difference is None or paired.difference_interval is None:
        return "-"
    low, high = paired.difference_interval
    return f"{scale * paired.difference:+.2f} [{scale * low:+.2f}, {scale * high:+.2f}]"


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", help="a file of benchmarks/comparisons")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    outcomes = []
    for seed in range(options.seeds):
        outcomes.append(outcome(KEPT, seed, trained(options.grid, seed)))
        with without_momentum():
            outcomes.append(outcome(DROPPED, seed, trained(options.grid, seed)))
    comparison = Comparison("Fade and momentum", "", KEPT, "epochs", tuple(outcomes))
    shown = [quantity for quantity in QUANTITIES if quantity.name in SHOWN]
    print(head("quantity", KEPT, DROPPED, "difference"))
    by_name = {(summary.quantity, summary.method): summary for summary in summarise(comparison, shown)}
    for quantity in shown:
        kept, dropped = by_name[quantity.name, KEPT], by_name[quantity.name, DROPPED]
        means = ["-" if of.mean is None else f"{of.mean:.4g}" for of in (kept, dropped)]
        print(line(quantity.name, *means, difference(dropped, quantity.unit == "fraction")))


if __name__ == "__main__":
    main()
