"""The command: run, report, inspect. Nothing heavy is imported before the options are known to be good."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

from earlyworm.errors import EarlywormError
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.names import task_by_name

_INTERRUPTED = 130  # what a shell expects after Ctrl-C
_RULE = re.compile("[─-]+")  # what the option parser draws between paragraphs
_STYLE = re.compile(r"\x1b\[[\d;]*m")  # its colours, if standard output is a terminal


@dataclass(frozen=True)
class Report:
    """Write report.html anew from the saved result of a run."""

    path: Path
    """The directory of the run."""


@dataclass(frozen=True)
class Inspect:
    """Describe a ticket or a run in words."""

    path: Path
    """A ticket, or the directory of a run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 after an error, 2 for wrong options, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path may hold what cannot be shown
    if arguments == ["--version"]:
        print(version("earlyworm"))
        return 0
    try:
        options = parse(arguments)
        if isinstance(options, RunConfig):
            _run(options)
        elif isinstance(options, Report):
            _report(options.path)
        else:
            _inspect(options.path)
        sys.stdout.flush()  # what goes wrong with it is told here, not while Python ends
    except EarlywormError as error:
        print(f"earlyworm: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("earlyworm: stopped; the same command goes on from the last check", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read the output has left
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"earlyworm: {where}{error.strerror or error}: check path, permissions and disk", file=sys.stderr)
        return 1
    return 0


def parse(arguments: list[str]) -> RunConfig | Report | Inspect:
    """The options as one of the dataclasses; wrong ones end the process with one line and status 2."""
    import tyro

    positional = tyro.conf.Positional
    subcommand = tyro.conf.subcommand
    commands: Any = (
        Annotated[RunConfig, subcommand("run", default=_defaults(arguments), prefix_name=False)]
        | Annotated[positional[Report], subcommand("report", prefix_name=False)]
        | Annotated[positional[Inspect], subcommand("inspect", prefix_name=False)]
    )
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            options: RunConfig | Report | Inspect = tyro.cli(
                commands, prog="earlyworm", args=arguments, description="Cheaper training through early tickets."
            )
            return options
    except SystemExit as leaving:
        if leaving.code:
            command = "earlyworm run" if arguments[:1] == ["run"] else "earlyworm"
            print(f"earlyworm: {_one_line(shown.getvalue())} ({command} --help lists the options)", file=sys.stderr)
        raise


def _defaults(arguments: list[str]) -> RunConfig:
    """The defaults of `run`: those for text where the data that are named are text."""
    named = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in ("--task", "--model", "--data"):
        named.add_argument(option)
    named.add_argument("--units", nargs="*", default=[])
    try:
        found, _ = named.parse_known_args(arguments)
    except argparse.ArgumentError:
        return RunConfig()  # an option lacks its value, which is told with all that is wrong
    task = found.task
    if task is None and found.data is not None and arguments[0] == "run":
        task = task_by_name(found.model, found.data)
        if task is None:
            RunConfig(data=found.data)  # a name that cannot be is an error before anything heavy is imported
            _silence()
            from earlyworm.experiments.data import task_of

            task = task_of(found.model, found.data)
    if task != "text":
        return RunConfig()
    return RunConfig.for_text(units=("weights",)) if "weights" in found.units else RunConfig.for_text()


def _one_line(shown: str) -> str:
    """The first paragraph of the option parser's message, with the nearest valid name."""
    title, *lines = [line.strip("│╭╮╰╯ ") for line in _STYLE.sub("", shown).strip().splitlines()]
    paragraphs = [list(group) for rule, group in groupby(lines, key=_RULE.fullmatch) if rule is None]
    message = " ".join(line for line in paragraphs[0] if line).rstrip(".") if paragraphs else title
    hint = ""
    if wrong := re.search(r"options: ([^ ,=]+)|choice '([^']*)'", message):
        options = [f"--{option.name.replace('_', '-')}" for option in fields(RunConfig)]
        valid = [*("run", "report", "inspect"), *options, *message.split("'")[3::2]]
        near = difflib.get_close_matches(wrong[1] or wrong[2], valid, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
    return f"{message}{hint}"


def _run(config: RunConfig) -> None:
    """`earlyworm run`."""
    _silence()
    from earlyworm.experiments.run import run
    from earlyworm.experiments.run_directory import RunDirectory
    from earlyworm.reporting.display import Display
    from earlyworm.reporting.run_report import result_table, summary, write_report

    with Display() as display:
        result = run(config, display)
    if int(os.environ.get("RANK", "0")):
        return  # the first process tells
    directory = RunDirectory.of(config)
    write_report(result, directory.report)
    _print(result_table(result))
    _print(summary(result))
    _print(f"report: {directory.report}")


def _silence() -> None:
    """No progress bars of other libraries, which would run into the display; read when they are imported."""
    for library in ("HUB", "DATASETS"):
        os.environ.setdefault(f"HF_{library}_DISABLE_PROGRESS_BARS", "1")


def _report(path: Path) -> None:
    """`earlyworm report`."""
    from earlyworm.experiments.run_directory import RunDirectory
    from earlyworm.reporting.run_report import write_report

    directory = RunDirectory(path)
    write_report(directory.read_result(), directory.report)
    print(directory.report)


def _inspect(path: Path) -> None:
    """`earlyworm inspect`."""
    from earlyworm.ticket import Ticket

    if path.is_dir():
        from earlyworm.experiments.run_directory import RunDirectory
        from earlyworm.reporting.run_report import describe_run

        directory = RunDirectory(path)
        result = directory.read_result()
        if result.ticket is not None:
            Ticket.load(directory.ticket)  # it is told if that is damaged
        _print(describe_run(result))
    else:
        _print(Ticket.load(path).describe())


def _print(shown: Any) -> None:
    """Print a table, or text as it is."""
    from rich.console import Console

    Console().print(shown, soft_wrap=isinstance(shown, str), highlight=False, markup=False, emoji=False)


if __name__ == "__main__":
    sys.exit(main())
