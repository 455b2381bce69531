"""Comparisons: what is reused, done and skipped; what survives being killed; what is refused and what is told."""

import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from earlyworm.comparisons.compare import compare
from earlyworm.comparisons.comparison import Comparison
from earlyworm.comparisons.grid import Grid
from earlyworm.comparisons.worker import Reporter, run_cell
from earlyworm.comparisons.workers import Event, Workers, threads_of_a_job
from earlyworm.errors import ConfigError, RunError
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.run import run
from earlyworm.experiments.run_directory import RunDirectory
from grids import BRIEF, Watched, grid_of, states, workers_of
from runs import elsewhere, outcome

PATIENCE = 120  # seconds, before something that hangs is an error


def saved(grid):
    return Comparison.load(grid.directory / "comparison.json")


def alive(number):
    """Whether there is a process of this number that has not ended."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Inline:
    """Does runs in this process, one after another."""

    slots = 1

    def __init__(self, *_):
        self.events = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def start(self, number, config):
        def send(line):
            kind, *values = json.loads(line)
            self.events.append(Event(number, kind, tuple(values)))

        run_cell(dataclasses.asdict(config), Reporter(send))

    def wait(self):
        events, self.events = self.events, []
        return events


@pytest.fixture
def inline(monkeypatch):
    """Comparisons start no processes, which would import everything anew."""
    monkeypatch.setattr("earlyworm.comparisons.compare.Workers", Inline)


@pytest.fixture
def nothing_runs(monkeypatch):
    """Comparisons start nothing at all."""
    monkeypatch.setattr("earlyworm.comparisons.compare.Workers", None)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison that nobody has interrupted, with a method of each kind: its grid, and what was told."""
    grid = grid_of(
        tmp_path_factory.mktemp("compared"), "narrow", "random@early-bird", "early-bird", "worm", "w=worm:lr=1e25"
    )
    watched = Watched()
    return grid, compare(grid, watcher=watched), watched


@pytest.fixture
def copied(compared, tmp_path):
    """A copy of it in another folder."""
    shutil.copytree(compared[0].options["output"], tmp_path / "copy")
    return dataclasses.replace(compared[0], options={**compared[0].options, "output": str(tmp_path / "copy")})


def test_every_cell_is_done_or_has_failed(compared):
    grid, comparison, watched = compared
    expected = {"w": "failed"}
    assert states(comparison) == [
        (cell.label, cell.config.seed, expected.get(cell.label, "done")) for cell in grid.cells()
    ]
    assert sorted(watched.numbers("started")) == sorted(watched.numbers("ended")) == list(range(10))
    assert watched.numbers("started")[:2] == [2, 7]  # those that others follow
    failed = [cell for cell in comparison.outcomes if cell.method == "w"]
    assert all("the loss became nan in epoch 1" in cell.error for cell in failed)
    assert saved(grid) == comparison
    assert (comparison.baseline, comparison.match, comparison.marks) == ("early-bird", "epochs", ())
    assert Grid.of(json.loads((grid.directory / "grid.json").read_text())) == grid


def test_cells_tell_how_far_they_are(compared):
    kinds = {event[2] for event in compared[2].events if event[0] == "told"}
    assert {"stage", "check", "recovered"} <= kinds
    checks = [event[3] for event in compared[2].events if event[:3] == ("told", 3, "check")]
    result = next(cell.result for cell in compared[1].outcomes if (cell.method, cell.seed) == ("worm", 0))
    assert checks == [dataclasses.asdict(record) for record in result.search.history]


def test_followers_take_what_they_need_from_their_reference(compared):
    cells = {(cell.method, cell.seed): cell for cell in compared[1].outcomes}
    for seed in (0, 1):
        reference = cells["early-bird", seed].result
        assert cells["narrow", seed].result.config.macs == reference.ticket.macs
        assert cells["random@early-bird", seed].result.config.draw_epoch == reference.search.epoch
        assert f"--macs {reference.ticket.macs}" in cells["narrow", seed].command


@pytest.mark.parametrize("method", ["worm", "narrow"])
def test_a_cell_is_what_a_run_alone_gives(method, compared, tmp_path):
    result = next(cell.result for cell in compared[1].outcomes if cell.method == method)
    config = elsewhere(result.config, tmp_path)
    run(config)
    assert outcome(config) == outcome(result.config)
    found = next(cell for cell in compared[1].outcomes if cell.method == method)
    assert RunDirectory.of(result.config).path == Path(found.directory)


def test_what_is_there_is_reused(compared, copied, nothing_runs):
    shared = dataclasses.replace(copied, methods=copied.methods[:4])
    watched = Watched()
    comparison = compare(shared, watcher=watched)
    assert [event[0] for event in watched.events] == ["ended"] * 8
    assert [cell.result for cell in comparison.outcomes] == [
        dataclasses.replace(cell.result, config=cell.result.config)
        for cell in compared[1].outcomes
        if cell.result is not None
    ]


@pytest.mark.parametrize("case", ["damaged", "another schema", "something else"])
def test_results_that_cannot_be_read(case, copied, nothing_runs):
    grid = dataclasses.replace(copied, methods=copied.methods[2:4])
    path = RunDirectory.of(next(cell.config for cell in grid.cells() if cell.label == "worm")).result
    if case == "damaged":
        path.write_bytes(path.read_bytes()[:300])
        expected = f"{path} is damaged"
    elif case == "another schema":
        path.write_text(path.read_text().replace('"schema": 1', '"schema": 99'))
        expected = f"{path} has schema 99"
    else:
        (path.parent / "config.json").unlink()
        expected = "holds something that is not a run"
    comparison = compare(grid)
    assert states(comparison)[1] == ("worm", 0, "failed")
    assert expected in comparison.outcomes[1].error
    assert [cell.state for cell in comparison.outcomes].count("done") == 3


def change_data(path, **changes):
    result = json.loads(path.read_text())
    result["data"].update(changes)
    path.write_text(json.dumps(result))


def test_results_of_different_data_are_refused(copied, nothing_runs):
    grid = dataclasses.replace(copied, methods=copied.methods[2:4])
    before = (grid.directory / "comparison.json").exists()
    change_data(RunDirectory.of(grid.cells()[1].config).result, train=150)
    with pytest.raises(RunError) as caught:
        compare(grid)
    assert "worm with seed 0 had data of train 150, early-bird with seed 0 had 200" in str(caught.value)
    assert "--force" in str(caught.value)
    assert (grid.directory / "comparison.json").exists() == before
    assert compare(grid, force=True).marks == (
        "compared by force: worm with seed 0 had data of train 150, early-bird with seed 0 had 200",
    )


def test_results_of_other_examples_of_the_same_sizes_are_refused(copied, nothing_runs):
    grid = dataclasses.replace(copied, methods=copied.methods[2:4])
    results = [RunDirectory.of(cell.config).result for cell in grid.cells()]
    for path in results[:2]:  # from before there were digests
        change_data(path, digest="")
    assert compare(grid).marks == ()
    change_data(results[3], digest="0123")
    with pytest.raises(RunError, match="worm with seed 1 had data of digest 0123, early-bird with seed 1 had "):
        compare(grid)


def test_results_that_began_with_other_weights_are_refused(copied, nothing_runs):
    grid = dataclasses.replace(copied, methods=copied.methods[2:4])
    for cell, digest in zip(grid.cells(), ("", "0123", "0123", "4567"), strict=True):
        path = RunDirectory.of(cell.config).result
        path.write_text(json.dumps({**json.loads(path.read_text()), "weights": digest}))
    words = "worm with seed 1 had initial weights of digest 4567, worm with seed 0 had 0123"
    with pytest.raises(RunError, match=words):
        compare(grid)
    assert compare(grid, force=True).marks == (f"compared by force: {words}",)


def test_different_budgets_are_refused_before_anything_runs(tmp_path, nothing_runs):
    grid = grid_of(tmp_path / "runs", "worm", "worm:epochs=5", seeds=[0])
    with pytest.raises(RunError, match="worm:epochs=5 has epochs 5, worm has 4; make them agree"):
        compare(grid)
    assert not (tmp_path / "runs").exists()


def test_other_devices_and_versions_are_marked(copied, nothing_runs):
    grid = dataclasses.replace(copied, methods=copied.methods[2:4])
    path = RunDirectory.of(grid.cells()[1].config).result
    result = json.loads(path.read_text())
    result["device"], result["versions"]["torch"] = "another device", "0.1"
    path.write_text(json.dumps(result))
    devices, versions = compare(grid).marks
    assert "different devices (another device, cpu)" in devices
    assert "different versions of torch (0.1, " in versions


def test_without_a_ticket_there_is_nothing_to_follow(tmp_path, inline):
    grid = grid_of(tmp_path, "early-bird", "narrow", "random@early-bird", seeds=[0], **BRIEF)
    comparison = compare(grid)
    assert [state for *_, state in states(comparison)] == ["done", "failed", "failed"]
    assert comparison.outcomes[1].error.startswith("early-bird drew no ticket that narrow could follow")
    assert (comparison.outcomes[1].directory, comparison.outcomes[1].command) == ("", "")
    # What is drawn by force can be followed; the run that has ended goes on.
    forced = dataclasses.replace(grid, options={**grid.options, "force_draw": True})
    comparison = compare(forced)
    assert [state for *_, state in states(comparison)] == ["done"] * 3
    assert comparison.outcomes[2].result.config.draw_epoch == 1


def test_what_follows_a_cell_that_failed_fails(copied, nothing_runs):
    grid = dataclasses.replace(copied, methods=copied.methods[:3])
    result = RunDirectory.of(grid.cells()[2].config).result
    result.write_text("{}")
    comparison = compare(grid)
    assert [state for *_, state in states(comparison)] == ["failed"] * 3 + ["done"] * 3
    assert comparison.outcomes[0].error == "early-bird, whose ticket narrow follows, has failed: see its error"


def test_two_cells_that_turn_out_to_be_one_run(compared, copied, inline):
    (drawn,) = {cell.result.search.epoch for cell in compared[1].outcomes if (cell.method, cell.seed) == ("worm", 0)}
    methods = [*copied.given()["methods"][2:4], "e=late@worm", f"d=late:draw_epoch={drawn}"]
    comparison = compare(Grid.of({**copied.given(), "methods": methods, "seeds": [0]}))
    assert [state for *_, state in states(comparison)] == ["done"] * 4
    assert comparison.outcomes[2].directory == comparison.outcomes[3].directory


def test_a_run_of_several_cells_is_overwritten_once(tmp_path, inline):
    grid = grid_of(tmp_path, "dense", "early-bird", ratios=[0.3, 0.5], seeds=[0], overwrite=True, **BRIEF)
    watched = Watched()
    comparison = compare(grid, watcher=watched)
    dense = [number for number, cell in enumerate(comparison.outcomes) if cell.method == "dense"]
    assert [state for *_, state in states(comparison)] == ["done"] * 4
    assert len(set(dense) & set(watched.numbers("started"))) == 1
    assert comparison.outcomes[dense[0]].result == comparison.outcomes[dense[1]].result


# Interrupted.


def test_killed_in_the_middle(compared, copied, tmp_path):
    shutil.rmtree(copied.options["output"])
    grid = dataclasses.replace(copied, methods=copied.methods[1:3])
    words = ["-m", "earlyworm.cli", *shlex.split(grid.command())[1:], "--jobs", "1"]
    process = subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("done "):
            break
    wait_until(lambda: list(Path(copied.options["output"]).glob("*/checkpoint/*.safetensors")))  # of the next cell
    (worker,) = workers_of(process.pid)
    process.kill()
    process.wait()
    process.stderr.close()
    watched = Watched()
    comparison = compare(grid, jobs=1, watcher=watched)
    assert not alive(worker)
    assert [state for *_, state in states(comparison)] == ["done"] * 4
    assert len(watched.numbers("started")) == 3
    for cell in comparison.outcomes:
        first = next(other for other in compared[1].outcomes if (other.method, other.seed) == (cell.method, cell.seed))
        assert outcome(cell.result.config) == outcome(first.result.config)


def test_a_run_that_another_process_is_giving_up(whole, tmp_path):
    config = elsewhere(whole, tmp_path)
    directory = RunDirectory.of(config)
    claimed, given_up = threading.Event(), threading.Event()

    def work():
        with directory.claimed():
            claimed.set()
            given_up.wait(PATIENCE)

    other = threading.Thread(target=work)
    other.start()
    assert claimed.wait(PATIENCE)
    with pytest.raises(RunError, match="another process is at work"), directory.claimed():
        pass
    # It has not even written its settings yet.
    with pytest.raises(RunError, match="another process is at work"):
        run(config, patience=0.1)
    threading.Timer(0.3, given_up.set).start()
    run(config, patience=PATIENCE)
    other.join()
    assert outcome(config) == outcome(whole)


def test_a_run_for_all_ratios_that_fails_is_not_done_again(tmp_path, stub):
    class Failing(Watched):
        def started(self, number):
            super().started(number)
            os.kill(workers_of(os.getpid())[0], signal.SIGKILL)

    grid = grid_of(tmp_path / "runs", "dense", seeds=[0], ratios=[0.3, 0.5])
    watched = Failing()
    comparison = compare(grid, jobs=1, watcher=watched)
    assert watched.numbers("started") == [0]
    assert [cell.state for cell in comparison.outcomes] == ["failed"] * 2
    assert comparison.outcomes[0].error == comparison.outcomes[1].error


def test_a_cell_that_fails_is_told_and_does_not_stop_the_rest(tmp_path, stub):
    grid = grid_of(tmp_path / "runs", "early-bird", "constant", "worm", "late", "random@worm", seeds=[0])
    watched = Watched()
    comparison = compare(grid, jobs=1, watcher=watched)
    log = grid.directory / "logs" / "worker-0.log"
    goes_on = "the same command goes on from the last checkpoint"
    assert [cell.error for cell in comparison.outcomes] == [
        "no, because",
        "MemoryError: no room",
        f"its process was ended by SIGKILL (is there too little memory?): see {log}; {goes_on}",
        f"its process ended with status 3: see {log}; {goes_on}",
        "worm, whose ticket random@worm follows, has failed: see its error",
    ]
    assert watched.numbers("started") == [2, 0, 1, 3]
    # What libraries print, in Python or below it, does not come between what the process tells.
    written = log.read_text()
    assert all(words in written for words in ("loud\n", "louder\n", "MemoryError: no room\n"))
    assert not workers_of(os.getpid())


def test_interrupted_from_the_keyboard(tmp_path, stub):
    grid = grid_of(tmp_path / "runs", "dense", "imp")
    words = ["-m", "earlyworm.cli", *shlex.split(grid.command())[1:], "--jobs", "1"]
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    shown = [next(process.stderr), next(process.stderr)]
    (worker,) = workers_of(process.pid)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output) == (130, "")
    assert shown == ["grid cells=4\n", "started method=dense seed=0\n"]
    assert errors == "earlyworm: stopped; the same command goes on from the last checkpoint\n"
    assert not alive(worker)
    assert {state for *_, state in states(saved(grid))} == {"waiting"}


# The command.


def test_compare_report_and_inspect(command, copied, nothing_runs):
    grid = dataclasses.replace(copied, methods=copied.methods[:4])
    words = shlex.split(grid.command())[1:]
    status, output, errors = command(*words)
    assert status == 0
    assert errors == "grid cells=8\nnote 8 of 8 runs were there already\n"
    assert output.splitlines()[-2:] == [f"comparison: {grid.directory}", f"report: {grid.directory}/report.html"]
    assert all(method in output for method in ("narrow", "early-bird", "worm"))
    names = {"comparison.json", "comparison.csv", "comparison.md", "report.html", "grid.json"}
    assert names <= {path.name for path in grid.directory.iterdir()}
    csv = (grid.directory / "comparison.csv").read_bytes()
    (grid.directory / "comparison.csv").unlink()
    assert command("report", str(grid.directory)) == (0, f"{grid.directory}/report.html\n", "")
    assert (grid.directory / "comparison.csv").read_bytes() == csv
    status, shown, errors = command("inspect", str(grid.directory))
    assert (status, errors) == (0, "")
    assert output.startswith(shown)
    # What has not ended, and what is damaged.
    (grid.directory / "comparison.json").write_text("{")
    assert "is damaged" in command("inspect", str(grid.directory))[2]
    (grid.directory / "comparison.json").unlink()
    assert "compare again" in command("report", str(grid.directory))[2]


def test_failed_cells_are_told(command, copied, nothing_runs):
    grid = dataclasses.replace(copied, methods=copied.methods[2:4])
    RunDirectory.of(grid.cells()[1].config).result.write_text("{}")
    status, output, errors = command(*shlex.split(grid.command())[1:])
    assert status == 1
    assert output.splitlines()[-2:] == [f"comparison: {grid.directory}", f"report: {grid.directory}/report.html"]
    last = errors.splitlines()[-1]
    assert last.startswith("earlyworm: failed: worm, seed 0, vgg11_bn on digits, 200 examples, ratio 0.5: ")
    assert (grid.directory / "comparison.md").exists()


def test_a_comparison_of_processes_that_something_else_has_started(command, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE is 2"):
        compare(grid_of(tmp_path, "worm"))
    assert not list(tmp_path.iterdir())


def test_another_comparison_at_work(copied, monkeypatch):
    monkeypatch.setattr("earlyworm.comparisons.compare.LOCK_PATIENCE_SECONDS", 0.1)
    with RunDirectory(copied.directory).claimed(), pytest.raises(RunError, match="another process is at work"):
        compare(copied)


# Workers.


def test_shares_of_the_cores(monkeypatch):
    monkeypatch.setattr("earlyworm.comparisons.workers.cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert [threads_of_a_job(jobs) for jobs in (1, 3, 8)] == [8, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [threads_of_a_job(jobs) for jobs in (1, 3, 8)] == [3, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert threads_of_a_job(2) == 4


class Started:
    """Stands for a process that was started."""

    def __init__(self, command, **how):
        self.command, self.how = command, how
        self.stdin, self.stdout = open(os.devnull, "w"), open(os.devnull)  # noqa: SIM115

    def wait(self, timeout=None):
        return 0


def test_each_worker_has_its_share_and_its_gpu(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("earlyworm.comparisons.workers.cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **how: started.append(Started(*args, **how)) or started[-1])
    with Workers(4, tmp_path, ["0", "GPU-5"]) as workers:
        for number in range(4):
            workers.start(number, RunConfig())
    assert [process.how["env"]["CUDA_VISIBLE_DEVICES"] for process in started] == ["0", "GPU-5", "0", "GPU-5"]
    assert {process.how["env"]["OMP_NUM_THREADS"] for process in started} == {"2"}
    assert {process.command[-1] for process in started} == {"2"}


def test_ratios_are_picked_by_speed(tmp_path):
    grid = grid_of(
        tmp_path, "early-bird", pick="speed", ratios=[0.25, 0.5], seeds=[0], epsilon=0.3, epochs=5, probe_epochs=1
    )
    (cell,) = compare(grid, jobs=1).outcomes
    assert cell.setting.ratio is None
    assert [candidate.ratio for candidate in cell.result.candidates] == [0.25, 0.5]
    assert saved(grid).outcomes[0] == cell
