"""Early Bird and WORM on real images; writes a table of results.md.template, which evidence.py makes a page of.

    python benchmarks/real_data.py train [--seeds 0 1 2]   # hours on 2 cores; stop and go on as you like
    python benchmarks/real_data.py table                   # from the stored results alone

`train` reads the parquet files of CIFAR-10 and Fashion-MNIST from data/cifar10 and data/fashion_mnist (as on the
Hugging Face Hub), keeps every run in its own directory under runs/, and stores its result.json in
benchmarks/results/. The images that the accuracies are measured on are never trained on.
"""

from collections.abc import Iterable
from pathlib import Path

from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.results import RunResult
from stored import HERE, SHARES, emergence, load, parser, shares, spread, train, write_between
from tables import markdown

RESULTS = HERE / "results" / "real_data"

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


def stored_at(config: RunConfig) -> Path:
    """Where the result of a run is stored."""
    return RESULTS / f"{config.model}-{Path(config.data).name}-{config.method}-s{config.seed}.json"


def table() -> str:
    """Markdown: one row per network, data and method, over the seeds that are stored."""
    columns = [
        "network", "data", "method", "seeds", "emerged at epoch", "search FLOPs", "accuracy before", "pruned",
        "1 epoch later", "final", *SHARES,
    ]  # fmt: skip
    rows, results = [], load(RESULTS)
    for model in MODELS:
        for data in DATA:
            for method in METHODS:
                found = [
                    r for r in results
                    if (r.config.model, r.config.data, r.config.method) == (model, f"parquet:data/{data}", method)
                ]  # fmt: skip
                if found:
                    rows.append(row(model, data, method, found))
    return markdown(columns, rows)


def row(model: str, data: str, method: str, results: list[RunResult]) -> list[str]:
    """One row of the table."""
    return [
        model, data, f"`{method}`", ", ".join(str(r.seed) for r in results), emergence(results),
        spread(results, lambda r: r.search.train_flops, 1e-12, 2) + " T",
        spread(results, lambda r: r.accuracy.before), spread(results, lambda r: r.accuracy.pruned),
        spread(results, lambda r: next(iter(r.accuracy.recovery), None)), spread(results, lambda r: r.accuracy.final),
        *shares(results),
    ]  # fmt: skip


def main() -> None:
    """Read the options."""
    options = parser(__doc__).parse_args()
    if options.what == "train":
        train((config, stored_at(config)) for config in cells(options.seeds))
    else:
        example = next(iter(cells([0]))).command()
        note = f"Every row is `{example}` with another network, data, method and seed."
        write_between("real_data", f"{table()}\n\n{note}")


if __name__ == "__main__":
    main()
