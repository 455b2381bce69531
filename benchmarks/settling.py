"""How far masks move while a dense sentence encoder is fine-tuned, by each kind of units and each score.

    python benchmarks/settling.py [--seed 0] [--checks 2]

A score whose masks hardly move has nothing to say about the task, and emerges as soon as the window is full. Network,
data and training are those of benchmarks/comparisons/sst2.toml, which see for what has to lie in the current directory;
nothing is pruned or truncated. The table shows the largest mask distance in a window of 3 at every check.
"""

import argparse
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import earlyworm as ew
from earlyworm.comparisons.grid import Grid
from earlyworm.comparisons.grid_file import read_grid
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.data import load_data
from earlyworm.experiments.networks import build_network
from earlyworm.experiments.run import make_accelerator
from earlyworm.experiments.run_directory import RunDirectory
from earlyworm.experiments.training import Pace, Progress, make_optimizer, train_steps
from evidence_store import grid_file
from tables import head, line

SCORED = [(kind, score) for score in ("magnitude", "taylor") for kind in ("heads", "neurons", "weights")]


def settings(seed: int) -> RunConfig:
    """Dense training with the settings of the comparison."""
    grid = Grid.of({**read_grid(grid_file("sst2")), "methods": ["dense"], "seeds": [seed], "ratios": [0.5]})
    return grid.cells()[0].config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checks", type=int, default=2, help="per epoch")
    options = parser.parse_args()
    config = settings(options.seed)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        accelerator = make_accelerator(replace(config, output=folder), RunDirectory(Path(folder)))
        data = load_data(config).to(accelerator.device)
        network, _ = build_network(config, classes=data.classes, shape=data.shape)
        model, optimizer = accelerator.prepare(network, make_optimizer(network, config))
        searches = [
            ew.TicketSearch(
                network, units=kind, score=score, pruning_ratio=config.ratio, emergence=ew.Emergence(3, epsilon=0.0)
            )
            for kind, score in SCORED
        ]
        for search in searches:
            stack.enter_context(search.attach(optimizer))
        pace = Pace.of(config, len(data.train_labels), accelerator.num_processes)
        whole, steps = Progress(config.epochs * pace.steps_per_epoch), pace.steps_per_epoch // options.checks
        print(head("epoch", *(f"{kind}, {score}" for kind, score in SCORED)))
        for check in range(config.epochs * options.checks):
            train_steps(
                model, optimizer, data, config, pace, accelerator, stage="search", first=check * steps, steps=steps,
                progress=whole,
            )  # fmt: skip
            for search in searches:
                search.update()
            furthest = [search.history[-1].distance_max for search in searches]
            cells = ["-" if distance is None else f"{distance:.4f}" for distance in furthest]
            print(line(f"{(check + 1) * steps / pace.steps_per_epoch:.3g}", *cells), flush=True)


if __name__ == "__main__":
    main()
