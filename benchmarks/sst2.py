"""Early Bird and WORM while a small sentence encoder is fine-tuned; writes a table of results.md.template.

    python benchmarks/sst2.py train [--seeds 0 1 2] [--model DIR]   # stop and go on as you like
    python benchmarks/sst2.py table                                 # from the stored results alone

`train` reads SST-2 from data/sst2 (parquet files as on the Hugging Face Hub) and the encoder all-MiniLM-L6-v2, with
its tokenizer, from a directory or under its name on the Hub. It keeps every run in its own directory under runs/, and
stores its result.json in benchmarks/results/. The sentences that the accuracies are measured on are never trained on.
"""

from collections.abc import Iterable
from pathlib import Path

from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.results import RunResult
from stored import HERE, SHARES, emergence, load, parser, shares, spread, train, write_between
from tables import markdown

RESULTS = HERE / "results" / "sst2"
MODEL = "models/all-minilm-l6-v2"

METHODS = ("early-bird", "worm")
UNITS = {
    ("weights",): {"check_every": 1.0},  # as in the paper
    ("heads", "neurons"): {"check_every": 0.25},
}
COMMON = {
    "data": "parquet:data/sst2", "limit": 1500, "max_length": 48, "precision": "bf16", "lr": 1e-4,
    "epochs": 4, "search_epochs": 3,
}  # fmt: skip


def cells(seeds: Iterable[int], model: str) -> Iterable[RunConfig]:
    """Every run, seed by seed."""
    for seed in seeds:
        for units, options in UNITS.items():
            for method in METHODS:
                yield RunConfig.for_text(model=model, method=method, seed=seed, units=units, **options, **COMMON)


def stored_at(config: RunConfig) -> Path:
    """Where the result of a run is stored."""
    return RESULTS / f"{'-'.join(config.units)}-{config.method}-s{config.seed}.json"


def table() -> str:
    """Markdown: one row per kind of units and method, over the seeds that are stored."""
    columns = [
        "units", "method", "seeds", "emerged at epoch", "accuracy before", "pruned", "1 epoch later", "2 epochs later",
        "final", *SHARES,
    ]  # fmt: skip
    rows, results = [], load(RESULTS)
    for units in UNITS:
        for method in METHODS:
            found = [r for r in results if (r.config.units, r.config.method) == (units, method)]
            if found:
                rows.append(row(units, method, found))
    return markdown(columns, rows)


def row(units: tuple[str, ...], method: str, results: list[RunResult]) -> list[str]:
    """One row of the table."""
    return [
        " and ".join(units), f"`{method}`", ", ".join(str(r.seed) for r in results), emergence(results),
        spread(results, lambda r: r.accuracy.before), spread(results, lambda r: r.accuracy.pruned),
        spread(results, lambda r: dict(enumerate(r.accuracy.recovery)).get(0)),
        spread(results, lambda r: dict(enumerate(r.accuracy.recovery)).get(1)),
        spread(results, lambda r: r.accuracy.final),
        *shares(results),
    ]  # fmt: skip


def main() -> None:
    """Read the options."""
    options = parser(__doc__)
    options.add_argument("--model", default=MODEL, help="directory or Hub name of the encoder")
    chosen = options.parse_args()
    if chosen.what == "train":
        train((config, stored_at(config)) for config in cells(chosen.seeds, chosen.model))
    else:
        example = next(iter(cells([0], MODEL))).command()
        note = f"Every row is `{example}` with other units, method and seed."
        write_between("sst2", f"{table()}\n\n{note}")


if __name__ == "__main__":
    main()
