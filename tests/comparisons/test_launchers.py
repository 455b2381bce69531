"""Comparisons whose runs a cluster engine starts: submitit on this machine, and a Slurm that is played by scripts."""

import os
import shlex
import sys
from pathlib import Path

import pytest

from earlyworm.comparisons.compare import compare
from earlyworm.comparisons.launchers import Submitit
from earlyworm.comparisons.workers import cores
from earlyworm.errors import ConfigError, RunError
from earlyworm.experiments.run import run
from earlyworm.options import parse
from grids import BRIEF, Watched, grid_of, states, workers_of
from runs import elsewhere, outcome

# What Slurm's own programs do, as far as submitit asks for it; a job is a process, and its number that of the process.
# As by Slurm, its script is read at once: submitit renames the file then.
SBATCH = """#!/bin/sh
[ -n "$SBATCH_PARTITION" ] && echo "sbatch: error: invalid partition specified: $SBATCH_PARTITION" >&2 && exit 1
script=$(cat "$1")
(
    read SLURM_JOB_ID rest < /proc/self/stat
    export SLURM_JOB_ID SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0
    export SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_NODELIST=here
    exec sh -c "$script" > /dev/null 2>&1
) > /dev/null 2>&1 &
echo "Submitted batch job $!"
"""
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do
    case "$1" in
        --output|--error) shift 2 ;;
        *) shift ;;
    esac
done
exec "$@"
"""
SACCT = """#!/bin/sh
echo "JobID|State|NodeList"
while [ $# -gt 0 ]; do
    if [ "$1" = -j ]; then
        if kill -0 "$2" 2> /dev/null; then echo "$2|RUNNING|here"; else echo "$2|FAILED|here"; fi
    fi
    shift
done
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Programs with the names of Slurm's."""
    programs = tmp_path / "slurm"
    programs.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT), ("scancel", '#!/bin/sh\nkill "$1"\n')):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return programs


def test_on_this_machine(tmp_path):
    grid = grid_of(tmp_path / "runs", "worm", seeds=[0], **BRIEF)
    watched = Watched()
    comparison = compare(grid, launcher="submitit", jobs=1, watcher=watched)
    assert [state for *_, state in states(comparison)] == ["done"]
    assert [event[2] for event in watched.events if event[0] == "told"] == ["stage", "check", "check", "check"]
    config = comparison.outcomes[0].result.config
    alone = elsewhere(config, tmp_path / "alone")
    run(alone)
    assert outcome(config) == outcome(alone)
    assert any((grid.directory / "jobs").glob("*_submitted.pkl"))


def test_jobs_that_fail(tmp_path, stub):
    grid = grid_of(tmp_path / "runs", "early-bird", "worm", seeds=[0])
    comparison = compare(grid, launcher="submitit", jobs=1)
    first, second = (cell.error for cell in comparison.outcomes)
    assert first == "no, because"
    assert second.startswith("its job ")
    assert "ended without a result" in second
    assert str(grid.directory / "jobs") in second
    assert not workers_of(os.getpid())


def test_a_job_of_an_earlier_comparison_tells_nobody(tmp_path, stub):
    """It may begin after the comparison was killed, and when that goes on already."""
    grid = grid_of(tmp_path / "runs", "early-bird", seeds=[0])
    for count in (1, 2):
        assert [cell.error for cell in compare(grid, launcher="submitit").outcomes] == ["no, because"]
        assert len([*(grid.directory / "jobs").glob("cell-0-*.jsonl")]) == count


def test_jobs_end_with_the_comparison(tmp_path, stub):
    class Interrupted(Watched):
        def told(self, *_):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(grid_of(tmp_path / "runs", "dense", seeds=[0]), launcher="submitit", watcher=Interrupted())
    assert not workers_of(os.getpid())


def test_on_slurm(tmp_path, stub, slurm):
    grid = grid_of(tmp_path / "runs", "early-bird", "constant", "e=early-bird:window=3", seeds=[0])
    watched = Watched()
    comparison = compare(grid, launcher="submitit", watcher=watched)
    assert [event[0] for event in watched.events[:3]] == ["started"] * 3  # Slurm decides how many run at a time
    assert [cell.error for cell in comparison.outcomes] == ["no, because", "MemoryError: no room", "no, because"]
    script = next((grid.directory / "jobs").glob("*submission.sh")).read_text()
    assert "--time=1440" in script
    assert f"{shlex.quote(sys.executable)} -u -m submitit" in script


def test_slurm_that_refuses(tmp_path, slurm, monkeypatch):
    monkeypatch.setenv("SBATCH_PARTITION", "none")
    with pytest.raises(RunError) as caught:
        compare(grid_of(tmp_path / "runs", "worm", seeds=[0]), launcher="submitit")
    assert "check the SBATCH_ variables" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_jobs_than_cores(tmp_path, slurm, monkeypatch):
    # Slurm may have room for them; this machine has not, and only the launcher knows which of the two it is.
    assert parse(["compare", "--launcher", "submitit", "--jobs", "1000"]).jobs == 1000
    assert Submitit(tmp_path, 1000).slots == 1000
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(ConfigError, match=f"jobs is 1000, but must be at most {cores()}"):
        Submitit(tmp_path, 1000)


def test_without_submitit(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RunError, match=r"needs submitit: pip install 'earlyworm\[slurm\]'"):
        compare(grid_of(tmp_path, "worm"), launcher="submitit")
