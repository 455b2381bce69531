"""Comparisons that are kept: runs them, stores what came of them, and writes docs/results.md and its figures from that.

    python benchmarks/evidence.py run [NAME ...] [--jobs N]   # hours; stop and go on as you like
    python benchmarks/evidence.py store [NAME ...]            # what there is of comparisons that were not finished
    python benchmarks/evidence.py restore [NAME ...]          # run directories of what is stored: go on elsewhere
    python benchmarks/evidence.py write                       # from the stored results alone; the README's table too

`run` does `earlyworm compare --grid benchmarks/comparisons/NAME.toml` (without a name, of every file there) in the
current directory, where data/ has the parquet files of the data sets as on the Hugging Face Hub, models/ the sentence
encoder, and runs/ gets a directory for every run. What comes of it is stored as benchmarks/results/NAME.json. What
people have written for docs/results.md is in benchmarks/results.md.template.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from string import Template
from typing import NamedTuple

import earlyworm.cli
from earlyworm.comparisons.comparison import Comparison, Setting
from earlyworm.comparisons.grid import Grid
from earlyworm.comparisons.grid_file import read_grid
from earlyworm.errors import EarlywormError
from evidence_curves import growth_figure, option_figure, ratio_figure
from evidence_fade import fade_summary
from evidence_figures import cost_figure, course_figure, emergence_figure
from evidence_options import varied
from evidence_overview import overview, with_overview
from evidence_settings import among, over_ratios, over_sizes
from evidence_store import HERE, Stored, grid_file, grid_names, load, restore, store
from evidence_words import claims_summary, rivals_summary, section

TEMPLATE = HERE / "results.md.template"
DOCUMENTS = HERE.parent / "docs"
README = HERE.parent / "README.md"
INTERRUPTED = 130  # the exit status of the command after Ctrl-C

_OF_A_SETTING: dict[str, tuple[Callable[[Comparison, Setting], str | None], str]] = {
    "cost": (cost_figure, "final accuracy against the FLOPs of all training, a point per method"),
    "emergence": (emergence_figure, "the epoch at which the ticket of each seed emerged, by method"),
    "course": (course_figure, "accuracy before pruning, right after it, 1 and 3 epochs later and at the end"),
}


class Picture(NamedTuple):
    """A figure: what it shows in words, of which setting (None: of several), its file's name, and its SVG."""

    words: str
    setting: Setting | None
    file: str
    svg: str


def pictures(one: Stored) -> Iterator[Picture]:
    """All figures of a comparison."""
    comparison, grown = one.comparison, over_sizes(one.comparison)
    several = [("sizes", growth_figure(comparison, sizes), "the number of training examples") for sizes in grown]
    several += [("ratios", ratio_figure(comparison, some), "the pruning ratio") for some in over_ratios(comparison)]
    for number, (kind, svg, axis) in enumerate(several):
        if svg is not None:
            words = f"{one.name}: final accuracy over {axis}, a line per method"
            yield Picture(words, None, f"{one.name}-{kind}{number or ''}.svg", svg)
    for setting in () if grown else comparison.settings:
        told = among(comparison, setting)
        words = ", ".join([one.name, *(f"{name} {value}" for name, value in told.items())])
        file = "-".join([one.name, *(f"{name}{value}" for name, value in told.items())])
        for kind, shows, svg in _of_setting(comparison, setting):
            if svg is not None:
                yield Picture(f"{words}: {shows}", setting, f"{file}-{kind}.svg", svg)


def _of_setting(comparison: Comparison, setting: Setting) -> Iterator[tuple[str, str, str | None]]:
    """All figures of a setting: how its file's name ends, what it shows, and its SVG, if there is anything to show."""
    options = varied(comparison)
    shared = Counter(option.option for option in options)  # several methods may vary the same one
    for option in options:
        kind = option.option if shared[option.option] == 1 else f"{option.method}-{option.option}"
        words = f"accuracy around pruning over {option.option} of {option.method}"
        yield kind, words, option_figure(comparison, setting, option)
    for kind, (draw, shows) in _OF_A_SETTING.items():
        yield kind, shows, draw(comparison, setting)


def written(stored: Sequence[Stored]) -> dict[str, str]:
    """All files that come of stored comparisons, by their place in the folder of documents."""
    files, sections = {}, []
    for one in stored:
        drawn = [*pictures(one)]
        files |= {f"figures/{picture.file}": picture.svg for picture in drawn}
        sections.append(section(one, [(p.words, p.setting, f"figures/{p.file}") for p in drawn]))
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        claims=claims_summary(stored),
        fade=fade_summary(stored),
        rivals=rivals_summary(stored),
        comparisons="\n\n".join(sections),
    )
    return {"results.md": text, **files}


def write(stored: Sequence[Stored], folder: Path = DOCUMENTS, readme: Path = README) -> None:
    """Write the document, its figures, and the table of the README; figures of former comparisons are removed."""
    files, table = written(stored), with_overview(readme.read_text(encoding="utf-8"), overview(stored))
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for old in (folder / "figures").glob("*.svg"):
        if f"figures/{old.name}" not in files:
            old.unlink()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    readme.write_text(table, encoding="utf-8")


def run(name: str, jobs: int | None) -> int:
    """Do or go on with a comparison, and store it as far as it came; the exit status of the command."""
    more = [] if jobs is None else ["--jobs", str(jobs)]
    status = earlyworm.cli.main(["compare", "--grid", str(grid_file(name)), *more])
    store_what_is_done(name)
    return status


def store_what_is_done(name: str) -> None:
    """Store what lies in the directory of a comparison."""
    directory = Grid.of(read_grid(grid_file(name))).directory
    print(f"stored: {store(name, Comparison.load(directory / 'comparison.json'))}")


def restore_what_is_stored(name: str) -> int:
    """Make the directories of a comparison's stored runs; how many."""
    return sum(restore(one.comparison) for one in load() if one.name == name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the options and do it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for name in ("run", "store", "restore"):
        command = commands.add_parser(name)
        command.add_argument("names", nargs="*", metavar="NAME", help="a file of benchmarks/comparisons; none: all")
        if name == "run":
            command.add_argument("--jobs", type=int, help="runs at a time")
    commands.add_parser("write")
    options = parser.parse_args(arguments)
    try:
        if options.what == "write":
            write(load())
            return 0
        names = options.names or grid_names()
        for name in names:  # before hours are spent on the first one
            grid_file(name)
        status = 0
        for name in names:
            if options.what == "store":
                store_what_is_done(name)
            elif options.what == "restore":
                print(f"restored: {restore_what_is_stored(name)} runs of {name}")
            elif (status := max(status, run(name, options.jobs))) == INTERRUPTED:
                break
        return status
    except EarlywormError as error:
        print(f"evidence.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
