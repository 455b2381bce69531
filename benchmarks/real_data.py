"""Early Bird and WORM on real images; writes the tables of docs/results.md.

    python benchmarks/real_data.py train [--seeds 0 1 2]   # hours on 2 cores; stop and go on as you like
    python benchmarks/real_data.py table                   # from the stored results alone

`train` reads the parquet files of CIFAR-10 and Fashion-MNIST from data/cifar10 and data/fashion_mnist (as on the
Hugging Face Hub), keeps every run in its own directory under runs/, and stores its result.json in
benchmarks/results/. The images that the accuracies are measured on are never trained on.
"""

import argparse
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from earlyworm.config import RunConfig
from earlyworm.results import RunResult
from earlyworm.run_directory import RunDirectory

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "real_data"
DOCUMENT = HERE.parent / "docs" / "results.md"
START, END = "<!-- real_data: start -->", "<!-- real_data: end -->"

MODELS = ("vgg11_bn", "resnet18")
DATA = ("fashion_mnist", "cifar10")
METHODS = ("early-bird", "worm")
LIMITS = {"vgg11_bn": 10_000, "resnet18": 5_000}
COMMON = {
    "width": 0.25, "precision": "bf16", "batch_size": 64, "lr": 0.01, "momentum": 0.9,
    "augment": "flip", "epochs": 28, "search_epochs": 24,
}  # fmt: skip


def cells(seeds: Iterable[int]) -> Iterable[RunConfig]:
    """Every run, seed by seed, the quick network first."""
    for seed in seeds:
        for model in MODELS:
            for data in DATA:
                for method in METHODS:
                    yield RunConfig(
                        model=model,
                        data=f"parquet:data/{data}",
                        method=method,
                        seed=seed,
                        limit=LIMITS[model],
                        **COMMON,
                    )


def train(seeds: list[int]) -> None:
    """Do every run that is not there yet, and store its result."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for config in cells(seeds):
        stored = RESULTS / f"{config.model}-{Path(config.data).name}-{config.method}-s{config.seed}.json"
        if not stored.exists():
            subprocess.run([sys.executable, "-m", "earlyworm.cli", *shlex.split(config.command())[1:]], check=True)
            shutil.copy(RunDirectory(Path(config.output) / config.directory_name()).result, stored)


def table() -> str:
    """Markdown: one row per network, data and method, over the seeds that are stored."""
    columns = [
        "network", "data", "method", "seeds", "emerged at epoch", "search FLOPs", "accuracy before", "pruned",
        "1 epoch later", "final", "parameters", "MACs", "latency", "all training FLOPs",
    ]  # fmt: skip
    rows = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    results = [RunResult.from_json(path.read_text(), str(path)) for path in sorted(RESULTS.glob("*.json"))]
    for model in MODELS:
        for data in DATA:
            for method in METHODS:
                found = [
                    r for r in results
                    if (r.config.model, r.config.data, r.config.method) == (model, f"parquet:data/{data}", method)
                ]  # fmt: skip
                if found:
                    rows.append(row(model, data, method, found))
    return "\n".join(rows)


def row(model: str, data: str, method: str, results: list[RunResult]) -> str:
    """One row of the table."""
    drawn = [r for r in results if r.ticket is not None]
    epochs = [f"{r.search.epoch:g}" if r.search.emerged else f"not in {r.config.search_epochs}" for r in results]

    def spread(read: Callable[[RunResult], float | None], scale: float = 1.0, digits: int = 3) -> str:
        values = [value * scale for r in drawn if (value := read(r)) is not None]
        if not values:
            return "-"
        mean = f"{statistics.mean(values):.{digits}f}"
        return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean

    columns = [
        model, data, f"`{method}`", ", ".join(str(r.seed) for r in results), ", ".join(epochs),
        spread(lambda r: r.search.train_flops, 1e-12, 2) + " T",
        spread(lambda r: r.accuracy.before), spread(lambda r: r.accuracy.pruned),
        spread(lambda r: next(iter(r.accuracy.recovery), None)), spread(lambda r: r.accuracy.final),
        spread(lambda r: r.ticket and r.ticket.parameters / r.dense.parameters, 100, 0) + " %",
        spread(lambda r: r.ticket and r.ticket.macs / r.dense.macs, 100, 0) + " %",
        spread(lambda r: r.ticket and r.ticket.latency_seconds / r.dense.latency_seconds, 100, 0) + " %",
        spread(lambda r: r.total.train_flops / r.total.dense_train_flops, 100, 0) + " %",
    ]  # fmt: skip
    return f"| {' | '.join(columns)} |"


def write_table() -> None:
    """Put the table and the commands into the document, between its two marks."""
    before, _, rest = DOCUMENT.read_text().partition(START)
    _, _, after = rest.partition(END)
    example = next(iter(cells([0]))).command()
    text = f"{table()}\n\nEvery row is `{example}` with another network, data, method and seed."
    DOCUMENT.write_text(f"{before}{START}\n{text}\n{END}{after}")


def main() -> None:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "table"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    if options.what == "train":
        train(options.seeds)
    else:
        write_table()


if __name__ == "__main__":
    main()
