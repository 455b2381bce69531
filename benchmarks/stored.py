"""Runs whose results are stored in the repository, and the tables over them: what the benchmarks share."""

import argparse
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.results import RunResult
from earlyworm.experiments.run_directory import RunDirectory

HERE = Path(__file__).parent
DOCUMENT = HERE / "results.md.template"  # of which evidence.py writes docs/results.md
SHARES = ("parameters", "MACs", "latency", "all training FLOPs")  # columns, of `shares`


def train(runs: Iterable[tuple[RunConfig, Path]]) -> None:
    """Do every run whose result is not stored yet, one after the other, and store it."""
    for config, stored in runs:
        stored.parent.mkdir(parents=True, exist_ok=True)
        if not stored.exists():
            subprocess.run([sys.executable, "-m", "earlyworm.cli", *shlex.split(config.command())[1:]], check=True)
            shutil.copy(RunDirectory(Path(config.output) / config.directory_name()).result, stored)


def load(folder: Path) -> list[RunResult]:
    """All results that are stored in a folder."""
    return [RunResult.from_json(path.read_text(), str(path)) for path in sorted(folder.glob("*.json"))]


def spread(
    results: list[RunResult], read: Callable[[RunResult], float | None], scale: float = 1.0, digits: int = 3
) -> str:
    """Mean and standard deviation of a number over the runs that drew a ticket."""
    values = [value * scale for r in results if r.ticket is not None and (value := read(r)) is not None]
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def shares(results: list[RunResult]) -> list[str]:
    """What the ticket costs, and what all of training has cost, as shares of the dense network: see `SHARES`."""
    costs: list[Callable[[RunResult], float | None]] = [
        lambda r: r.ticket and r.ticket.parameters / r.dense.parameters,
        lambda r: r.ticket and r.ticket.macs / r.dense.macs,
        lambda r: r.ticket and r.ticket.latency_seconds / r.dense.latency_seconds,
        lambda r: r.total.train_flops / r.total.dense_train_flops,
    ]
    return [f"{spread(results, read, 100, 0)} %" for read in costs]


def emergence(results: list[RunResult]) -> str:
    """When the ticket of each run emerged."""
    return ", ".join(
        f"{r.search.epoch:.4g}" if r.search.epoch is not None else f"not in {r.config.search_epochs}" for r in results
    )


def write_between(name: str, text: str) -> None:
    """Put `text` into the template of docs/results.md, between the two marks of a benchmark."""
    start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
    before, _, rest = DOCUMENT.read_text().partition(start)
    _, _, after = rest.partition(end)
    DOCUMENT.write_text(f"{before}{start}\n{text}\n{end}{after}")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all of them have."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=("train", "table"))
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return options
