"""From the words of the command line to what is to be done. Nothing heavy is imported to answer a wrong one."""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import difflib
import inspect
import io
import os
import re
import sys
from dataclasses import dataclass, fields
from itertools import groupby, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from earlyworm.comparisons.grid import METHODS, OPTIONS, SEEDS, Grid
from earlyworm.comparisons.grid_file import read_grid
from earlyworm.comparisons.workers import check_jobs
from earlyworm.errors import ConfigError
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.names import check_model_name, task_by_name

_RULE = re.compile("[─-]+")  # what the option parser draws between paragraphs
_SUBCOMMANDS = re.compile(r" \(applied to [^)]*\)| Arguments are applied to the directly preceding subcommand.*")
_STYLE = re.compile(r"\x1b\[[\d;]*m")  # its colours, if standard output is a terminal

Launcher = Literal["submitit"]


@dataclass(frozen=True)
class Report:
    """Write the report of a run or a comparison anew from what is saved."""

    path: Path
    """The directory of the run or the comparison."""


@dataclass(frozen=True)
class Inspect:
    """Describe a ticket, a run or a comparison in words."""

    path: Path
    """A ticket, or the directory of a run, of a comparison or of several runs."""


@dataclass(frozen=True)
class Compare:
    """What `earlyworm compare` is to do.

    Attributes:
        grid: The runs.
        jobs: How many of them at a time; None: as many as the machine has GPUs, or else cores.
        launcher: What starts them; None: processes of this machine.
        force: Whether to compare what cannot be compared fairly.
    """

    grid: Grid
    jobs: int | None = None
    launcher: Launcher | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if type(self.jobs) not in (int, type(None)):
            raise ConfigError(f"jobs is {self.jobs!r}, but must be a whole number")
        if self.launcher not in (None, "submitit"):
            raise ConfigError(f"unknown launcher {self.launcher!r}: choose submitit, or none")
        if type(self.force) is not bool:
            raise ConfigError(f"force is {self.force!r}, but must be true or false")
        check_jobs(self.jobs, here=self.launcher is None)


@dataclass(frozen=True)
class _Axes:
    """Compare methods over seeds, pruning ratios, models and data; runs that are there already are reused."""

    # Every field is an option of the command, its docstring the option's help; the options of a run come behind them.

    methods: tuple[str, ...] = METHODS
    """NAME, NAME@REFERENCE to fit it to the ticket of REFERENCE, or LABEL=NAME; options: NAME:option=value,..."""
    seeds: tuple[int, ...] = SEEDS
    """Every method runs once with each seed."""
    ratios: tuple[float, ...] = (RunConfig.ratio,)
    """Pruning ratios: the fractions of units that are removed, in [0, 1)."""
    models: tuple[str, ...] = (RunConfig.model,)
    """Reference networks, or classifiers of transformers; for text google-bert/bert-base-uncased."""
    data: tuple[str, ...] = (RunConfig.data,)
    """Names of data sets, as --data of a run."""
    limits: tuple[int, ...] = ()
    """Training set sizes: the most examples to train on; none: as --limit says."""
    pick: Literal["all", "speed"] = "all"
    """speed: one search for all ratios, of which the one that learns fastest is trained to the end."""
    baseline: str | None = None
    """The method that the others are compared with; None: early-bird, or else the first one."""
    name: str | None = None
    """Begins the name of the comparison's directory; None: data and models do."""
    grid: Path | None = None
    """A TOML, YAML or JSON file of these options; those of the command line win."""
    jobs: int | None = None
    """Runs at a time; None: as many as there are GPUs, or else cores."""
    launcher: Launcher | None = None
    """Hand every run to Slurm where there is one, or else to processes that outlive this one."""
    force: bool = False
    """Compare what has other data or another budget too; the report says so."""


def parse(arguments: list[str]) -> RunConfig | Compare | Report | Inspect:
    """The options as one of the dataclasses; wrong ones end the process with one line and status 2.

    Raises:
        EarlywormError: If a value is impossible.
    """
    import tyro

    silence()
    compare = _compare_options()
    positional = tyro.conf.Positional
    subcommand = tyro.conf.subcommand
    commands: Any = (
        Annotated[RunConfig, subcommand("run", default=_defaults(arguments), prefix_name=False)]
        | Annotated[compare, subcommand("compare", prefix_name=False)]
        | Annotated[positional[Report], subcommand("report", prefix_name=False)]
        | Annotated[positional[Inspect], subcommand("inspect", prefix_name=False)]
    )
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            options: Any = tyro.cli(
                commands, prog="earlyworm", args=arguments, description="Cheaper training through early tickets."
            )
    except SystemExit as leaving:
        if leaving.code:
            command = f"earlyworm {arguments[0]}" if arguments[:1] in (["run"], ["compare"]) else "earlyworm"
            own = compare if arguments[:1] == ["compare"] else RunConfig
            line = _one_line(shown.getvalue(), [option.name for option in fields(own)])
            print(f"earlyworm: {line} ({command} --help lists the options)", file=sys.stderr)
        raise
    if isinstance(options, RunConfig):
        check_model_name(options.model)
    if not isinstance(options, _Axes):
        return options  # type: ignore[no-any-return]  # tyro cannot say which one it is
    # Only what was given counts: defaults depend on each data set, and a file may say the rest.
    words = {word.partition("=")[0].strip("-").replace("-", "_") for word in arguments if word.startswith("--")}
    given = {name: value for name, value in vars(options).items() if words & {name, f"no_{name}"}}
    return _comparison({**(read_grid(options.grid) if options.grid else {}), **given})


def silence() -> None:
    """No progress bars of other libraries, which would run into the display; read when they are imported."""
    for library in ("HUB", "DATASETS"):
        os.environ.setdefault(f"HF_{library}_DISABLE_PROGRESS_BARS", "1")


def _comparison(given: dict[str, Any]) -> Compare:
    """The comparison of these options; its cells are known to be possible."""
    how = {name: given.pop(name) for name in ("jobs", "launcher", "force") if name in given}
    given.pop("grid", None)
    grid = Grid.of(given)
    grid.cells()
    return Compare(grid, **how)


def _compare_options() -> Any:
    """The options of `compare`: its own, and those of a run that a grid can set for all of its runs."""
    import tyro

    hints, defaults, helps = get_type_hints(RunConfig), RunConfig(), _docstrings(RunConfig)
    options = [
        (name, Annotated[hints[name], tyro.conf.arg(help=helps[name])], dataclasses.field(default=vars(defaults)[name]))
        for name in OPTIONS
    ]
    made = dataclasses.make_dataclass("Options", options, bases=(_Axes,), frozen=True)
    made.__doc__ = _Axes.__doc__
    return made


def _docstrings(cls: type) -> dict[str, str]:
    """What stands behind each field of a dataclass in its source."""
    (definition,) = ast.parse(inspect.getsource(cls)).body
    found = {}
    for one, after in pairwise(definition.body if isinstance(definition, ast.ClassDef) else ()):
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(after, ast.Expr):
            found[one.target.id] = inspect.cleandoc(ast.literal_eval(after.value))
    return found


def _defaults(arguments: list[str]) -> RunConfig:
    """The defaults of `run`: those for text where the data that are named are text."""
    if arguments[:1] != ["run"]:
        return RunConfig()
    named = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in ("--task", "--model", "--data"):
        named.add_argument(option)
    named.add_argument("--units", nargs="*", default=[])
    try:
        found, _ = named.parse_known_args(arguments)
    except argparse.ArgumentError:
        return RunConfig()  # an option lacks its value, which is told with all that is wrong
    task = found.task
    if task is None and found.data is not None:
        task = task_by_name(found.model, found.data)
        if task is None:
            RunConfig(data=found.data)  # a name that cannot be is an error before anything heavy is imported
            from earlyworm.experiments.data import task_of

            task = task_of(found.model, found.data)
    if task != "text":
        return RunConfig()
    return RunConfig.for_text(units=("weights",)) if "weights" in found.units else RunConfig.for_text()


def _one_line(shown: str, names: list[str]) -> str:
    """The first paragraph of the option parser's message, with the nearest valid name."""
    title, *lines = [line.strip("│╭╮╰╯ ") for line in _STYLE.sub("", shown).strip().splitlines()]
    paragraphs = [list(group) for rule, group in groupby(lines, key=_RULE.fullmatch) if rule is None]
    message = " ".join(line for line in paragraphs[0] if line).rstrip(".") if paragraphs else title
    message = _SUBCOMMANDS.sub("", message)
    hint = ""
    if wrong := re.search(r"options: ([^ ,=]+)|choice '([^']*)'", message):
        options = [f"--{name.replace('_', '-')}" for name in names]
        valid = [*("run", "compare", "report", "inspect"), *options, *message.split("'")[3::2]]
        word = wrong[1] or wrong[2]
        within = [option for option in options if word.endswith(option[1:])]  # --pruning-ratio has --ratio in it
        near = [*within, *difflib.get_close_matches(word, valid, n=1)]
        hint = f"; did you mean {near[0]}?" if near else ""
    return f"{message}{hint}"
