"""Tickets on the embedded digits against the dense network, seed by seed: `earlyworm run` with its defaults.

    python benchmarks/digits_accuracy.py [--seeds 0 1 2 3 4] [--threads N]

The dense network is trained for as many epochs in all, from the same initial weights, with the same learning rate at
every step. Accuracies are held-out, after the last epoch.
"""

import argparse
import statistics
import tempfile
from dataclasses import replace

import torch

from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.data import load_data
from earlyworm.experiments.run import make_accelerator, run
from earlyworm.experiments.run_directory import RunDirectory, build_network
from earlyworm.experiments.training import Pace, Progress, evaluate, make_optimizer, train_steps
from tables import head, line


def train_dense(config: RunConfig) -> float:
    """Train the dense network for all epochs; its held-out accuracy."""
    accelerator = make_accelerator(config, RunDirectory.of(config))
    data = load_data(config).to(accelerator.device)
    pace = Pace.of(config, len(data.train_labels), accelerator.num_processes)
    dense, _ = build_network(config, classes=data.classes, shape=data.shape)
    model, optimizer = accelerator.prepare(dense, make_optimizer(dense, config))
    whole = Progress(config.epochs * pace.steps_per_epoch)
    for epoch in range(config.epochs):
        train_steps(
            model, optimizer, data, config, pace, accelerator, stage="search",
            first=epoch * pace.steps_per_epoch, steps=pace.steps_per_epoch, progress=whole,
        )  # fmt: skip
    return evaluate(model, data, config, accelerator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--method", default="worm")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(head("seed", "emerged at epoch", "parameters", "MACs", "before", "pruned", "final", "dense", "difference"))
    differences = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            config = replace(RunConfig(), seed=seed, method=options.method, output=folder)
            result, dense = run(config), train_dense(config)
            found, accuracy, ticket = result.search, result.accuracy, result.ticket
            if ticket is None or accuracy.final is None or accuracy.pruned is None:
                nothing = f"not within {config.search_epochs}"
                print(line(seed, nothing, "", "", f"{accuracy.before:.3f}", "", "", f"{dense:.3f}", ""))
                continue
            differences.append(accuracy.final - dense)
            sizes = (ticket.parameters / result.dense.parameters, ticket.macs / result.dense.macs)
            shares = [f"{size:.0%}" for size in sizes]
            numbers = [f"{a:.3f}" for a in (accuracy.before, accuracy.pruned, accuracy.final, dense)]
            print(line(seed, f"{found.epoch:g}", *shares, *numbers, f"{differences[-1]:+.3f}"), flush=True)
    if differences:
        print(f"\nmean difference of the final accuracy: {100 * statistics.mean(differences):+.2f} points")


if __name__ == "__main__":
    main()
