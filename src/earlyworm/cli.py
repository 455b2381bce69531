"""The command: run, compare, report, inspect. Nothing heavy is imported before the options are known to be good."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earlyworm.errors import EarlywormError, TicketError
from earlyworm.experiments.config import RunConfig
from earlyworm.options import Compare, Report, parse

if TYPE_CHECKING:
    from earlyworm.comparisons.comparison import Comparison
    from earlyworm.experiments.run_directory import RunDirectory
    from earlyworm.masks.mask import Mask

_INTERRUPTED = 130  # what a shell expects after Ctrl-C


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
        status = 0
        if isinstance(options, RunConfig):
            _run(options)
        elif isinstance(options, Compare):
            status = _compare(options)
        elif isinstance(options, Report):
            _report(options.path)
        else:
            _inspect(options.path)
        _flush()  # what goes wrong with it is told here, not while Python ends
    except EarlywormError as error:
        print(f"earlyworm: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        same = "the same command without --overwrite" if "--overwrite" in arguments else "the same command"
        print(f"earlyworm: stopped; {same} goes on from the last checkpoint", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read the output has left
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"earlyworm: {where}{error.strerror or error}: check path, permissions and disk", file=sys.stderr)
        return 1
    return status


def _run(config: RunConfig) -> None:
    """`earlyworm run`."""
    from earlyworm.experiments.run import run
    from earlyworm.experiments.run_directory import RunDirectory
    from earlyworm.reporting.display import Display
    from earlyworm.reporting.run_report import result_table, summary, write_report

    with Display() as display:
        result = run(config, display)
    if int(os.environ.get("RANK", "0")):
        return  # the first process tells
    directory = RunDirectory.of(config)
    write_report(result, directory.report, _mask_of(directory))
    _print(result_table(result))
    _print(summary(result))
    _print(f"report: {directory.report}")


def _compare(options: Compare) -> int:
    """`earlyworm compare`."""
    from earlyworm.comparisons.compare import compare
    from earlyworm.reporting.comparison_tables import comparison_table
    from earlyworm.reporting.grid_display import GridDisplay

    with GridDisplay() as display:
        comparison = compare(
            options.grid, jobs=options.jobs, launcher=options.launcher, force=options.force, watcher=display
        )
    _write_reports(comparison, options.grid.directory)
    _print(comparison_table(comparison))
    _print(f"comparison: {options.grid.directory}")
    _print(f"report: {options.grid.directory / 'report.html'}")
    failed = [outcome for outcome in comparison.outcomes if outcome.state == "failed"]
    _flush()
    for outcome in failed:
        where = f"{outcome.method}, seed {outcome.seed}, {outcome.setting}"
        print(f"earlyworm: failed: {where}: {' '.join(str(outcome.error).splitlines())}", file=sys.stderr)
    return 1 if failed else 0


def _write_reports(comparison: Comparison, folder: Path) -> None:
    """Everything that is made from a comparison."""
    from earlyworm.experiments.run_directory import RunDirectory
    from earlyworm.reporting.comparison_report import write_comparison_report
    from earlyworm.reporting.comparison_tables import comparison_csv, comparison_markdown

    directory = RunDirectory(folder)
    for name, text in (("comparison.csv", comparison_csv), ("comparison.md", comparison_markdown)):
        directory.write(folder / name, text(comparison).encode())
    write_comparison_report(comparison, directory.report)


def _mask_of(directory: RunDirectory) -> Mask | None:
    """The mask of a run's ticket, if there is one that can be read; a page without it still says most."""
    from earlyworm.tickets.ticket import Ticket

    try:
        return Ticket.load(directory.ticket).mask if directory.ticket.exists() else None
    except TicketError as error:
        print(f"earlyworm: the report shows no units: {error}", file=sys.stderr)
        return None


def _saved_comparison(path: Path) -> Comparison | None:
    """The comparison that lies in a directory, if there is one."""
    from earlyworm.comparisons.comparison import Comparison

    there = any((path / name).exists() for name in ("comparison.json", "grid.json"))
    return Comparison.load(path / "comparison.json") if there else None


def _report(path: Path) -> None:
    """`earlyworm report`."""
    from earlyworm.experiments.run_directory import RunDirectory
    from earlyworm.reporting.run_report import write_report

    directory = RunDirectory(path)
    if (comparison := _saved_comparison(path)) is not None:
        _write_reports(comparison, path)
    else:
        write_report(directory.read_result(), directory.report, _mask_of(directory))
    print(directory.report)


def _inspect(path: Path) -> None:
    """`earlyworm inspect`."""
    from earlyworm.tickets.ticket import Ticket

    if (comparison := _saved_comparison(path)) is not None:
        from earlyworm.reporting.comparison_tables import comparison_table

        _print(comparison_table(comparison))
    elif runs := _runs_in(path):
        _print("\n".join(map(_one_line, runs)))
    elif path.is_dir():
        from earlyworm.experiments.run_directory import RunDirectory
        from earlyworm.reporting.run_report import describe_run

        directory = RunDirectory(path)
        result = directory.read_result()
        if result.ticket is not None:
            Ticket.load(directory.ticket)  # it is told if that is damaged
        _print(describe_run(result))
    else:
        _print(Ticket.load(path).describe())


def _runs_in(path: Path) -> list[Path]:
    """The directories of runs in a folder that is not one itself."""
    return [] if (path / "config.json").exists() else sorted(file.parent for file in path.glob("*/config.json"))


def _one_line(path: Path) -> str:
    """A run among others: what came of it, or why that cannot be told."""
    from earlyworm.experiments.run_directory import RunDirectory
    from earlyworm.reporting.run_words import headline

    try:
        return f"{path.name}: {headline(RunDirectory(path).read_result())}"
    except EarlywormError as error:
        return f"{path.name}: {error}"


def _flush() -> None:
    """Write out what was printed."""
    if sys.stdout:  # it is None where the command was started without one
        sys.stdout.flush()


def _print(shown: Any) -> None:
    """Print a table, or text as it is."""
    from rich.console import Console

    Console().print(shown, soft_wrap=isinstance(shown, str), highlight=False, markup=False, emoji=False)


if __name__ == "__main__":
    sys.exit(main())
