"""Comparisons that are stored in the repository: made small, and read again with what their grid says about them."""

import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from earlyworm.comparisons.comparison import Comparison, Outcome
from earlyworm.comparisons.grid import Grid
from earlyworm.comparisons.grid_file import read_grid
from earlyworm.errors import ConfigError, RunError
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.run_directory import RunDirectory
from earlyworm.files import write_atomically

HERE = Path(__file__).parent
GRIDS = HERE / "comparisons"
RESULTS = HERE / "results"


@dataclass(frozen=True)
class Stored:
    """A stored comparison.

    Attributes:
        name: The name of its file and of its grid.
        about: What it compares, in a sentence or two.
        planned: How many runs its grid has; what is stored may be a part of them.
        comparison: The comparison, with as many results as there were.
    """

    name: str
    about: str
    planned: int
    comparison: Comparison


def grid_file(name: str, folder: Path = GRIDS) -> Path:
    """The file of a kept grid.

    Raises:
        ConfigError: If there is none of this name.
    """
    path = folder / f"{name}.toml"
    if not path.is_file():
        raise ConfigError(f"no comparison {name!r}: choose from {', '.join(grid_names(folder)) or 'none'}")
    return path


def grid_names(folder: Path = GRIDS) -> list[str]:
    """The names of all kept grids."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def about(grid: str) -> str:
    """What a grid compares: the first paragraph of the comment at the head of its file, given as text."""
    lines = []
    for line in grid.splitlines():
        if not line.startswith("# "):
            break
        lines.append(line[2:].strip())
    return " ".join(lines)


def small(comparison: Comparison) -> str:
    """The text of a `comparison.json`, made small, with a line per outcome.

    Fractions have six significant digits. The distances between all pairs of masks are left out: there are as many of
    them as checks squared, and the history has those that matter. Nor does it tell in which folder the runs lay.
    """
    values = json.loads(anywhere(comparison).to_json())
    outcomes = values.pop("outcomes")
    for outcome in outcomes:
        if outcome["result"] is not None:
            del outcome["result"]["search"]["distances"]
    head = json.dumps(values, indent=0).removesuffix("\n}")
    lines = (json.dumps(rounded(outcome), separators=(",", ":")) for outcome in outcomes)
    return f'{head},\n"outcomes": [\n' + ",\n".join(lines) + "\n]\n}\n"


def anywhere(comparison: Comparison) -> Comparison:
    """The same comparison, as if its runs lay where they lie by default."""
    outcomes = tuple(map(_anywhere, comparison.outcomes))
    return replace(comparison, command=_without_output(comparison.command), outcomes=outcomes)


def _anywhere(outcome: Outcome) -> Outcome:
    directory = str(Path(RunConfig.output, Path(outcome.directory).name)) if outcome.directory else ""
    result = outcome.result
    if result is not None:
        result = replace(result, config=replace(result.config, output=RunConfig.output))
    return replace(outcome, directory=directory, command=_without_output(outcome.command), result=result)


def _without_output(command: str) -> str:
    before, _, after = command.partition(" --output ")
    return shlex.join(shlex.split(before) + shlex.split(after)[1:])


def rounded(value: Any) -> Any:
    """A JSON value in which all fractions have six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def store(name: str, comparison: Comparison, folder: Path = RESULTS) -> Path:
    """Store a comparison under a name; where it lies.

    Raises:
        RunError: If results that are stored already, of cells that it has too, are missing in it.
    """
    path = folder / f"{name}.json"
    if path.exists():
        waiting = {_cell(outcome) for outcome in comparison.outcomes if outcome.result is None}
        stored = {_cell(outcome) for outcome in Comparison.load(path).outcomes if outcome.result is not None}
        if lost := len(waiting & stored):
            raise RunError(
                f"{path} has results that are not here ({lost} of them), and stays as it is: first `evidence.py "
                f"restore {name}`, or remove it to begin anew"
            )
    write_atomically(path, small(comparison).encode())
    return path


def _cell(outcome: Outcome) -> tuple[object, ...]:
    return outcome.method, outcome.seed, outcome.setting


def restore(comparison: Comparison) -> int:
    """Make the directories of runs that were stored, so that their comparison goes on where it was; how many.

    They hold settings and result as they are stored, without networks and tickets. Runs that are there already, and
    have ended or begun, are left alone.

    Raises:
        RunError: If they cannot be written.
    """
    made = 0
    for result in (outcome.result for outcome in comparison.outcomes if outcome.result is not None):
        directory = RunDirectory.of(result.config)
        if not directory.result.exists() and not directory.checkpoints.folder.exists():
            directory.prepare(result.config)
            directory.write(directory.result, result.to_json().encode())
            made += 1
    return made


def load(results: Path = RESULTS, grids: Path = GRIDS) -> list[Stored]:
    """All stored comparisons, by name.

    Raises:
        RunError: If one is damaged.
        ConfigError: If one has no grid.
    """
    found = []
    for path in sorted(results.glob("*.json")):
        grid = grid_file(path.stem, grids)
        planned = Grid.of(read_grid(grid)).size
        found.append(Stored(path.stem, about(grid.read_text(encoding="utf-8")), planned, Comparison.load(path)))
    return found
