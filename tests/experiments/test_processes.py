"""Runs in processes of their own: killed at any moment, interrupted from the keyboard, or two that share the work."""

import json
import multiprocessing
import os
import random
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import earlyworm.experiments.bench
import earlyworm.experiments.checkpoint
import earlyworm.experiments.choosing
import earlyworm.experiments.run
import earlyworm.experiments.run_directory
import earlyworm.reporting.run_report
from earlyworm.cli import main
from earlyworm.experiments.run import run
from earlyworm.experiments.run_directory import RunDirectory
from earlyworm.tickets.ticket import Ticket
from ranks import free_port
from runs import Recorder, options, outcome, small

PATIENCE = 120  # seconds, before a process that hangs is an error


@pytest.fixture(scope="module")
def context():
    """Makes processes from one that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    ours = [f"earlyworm.{name}" for name in ("experiments", "reporting", "units")]
    context.set_forkserver_preload([*ours, "accelerate", "sklearn.datasets", "torch.distributed", "torch._dynamo"])
    return context


def in_a_process(config):
    torch.set_num_threads(1)
    run(config)


def wait(process):
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        raise AssertionError("the process hangs")
    return process.exitcode


def test_killed_at_random_moments(whole, tmp_path, context):
    config = small(tmp_path)
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # shown if the test fails
    moments = random.Random(seed)
    for _ in range(4):
        process = context.Process(target=in_a_process, args=(config,))
        process.start()
        process.join(moments.uniform(0.3, 1.6))
        process.kill()
        wait(process)
    run(config)
    assert outcome(config) == outcome(whole)


def test_killed_right_after_a_checkpoint(whole, tmp_path, context):
    config = small(tmp_path)
    process = context.Process(target=in_a_process, args=(config,))
    process.start()
    folder = RunDirectory.of(config).checkpoints.folder
    deadline = time.monotonic() + PATIENCE
    while not (folder.is_dir() and any(path.suffix == ".safetensors" for path in folder.iterdir())):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    wait(process)
    run(config)
    assert outcome(config) == outcome(whole)


def test_interrupted_from_the_keyboard(tmp_path):
    changes = {"epsilon": 0.0, "search_epochs": 1000, "epochs": 1001}
    command = [sys.executable, "-m", "earlyworm.cli", *options(tmp_path, **changes)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    shown = []
    for line in process.stderr:
        shown.append(line.rstrip("\n"))
        if line.startswith("check epoch=1 "):
            process.send_signal(signal.SIGINT)
    output = process.stdout.read()
    assert process.wait(PATIENCE) == 130
    process.stdout.close()
    process.stderr.close()
    assert output == ""
    assert shown[-1] == "earlyworm: stopped; the same command goes on from the last checkpoint"
    assert all(line.startswith(("stage ", "check ")) for line in shown[:-1])

    recorder = Recorder(stop=0)
    with pytest.raises(KeyboardInterrupt):
        run(small(tmp_path, **changes), recorder)
    ((name, epochs, done),) = recorder.told("stage")
    assert (name, epochs) == ("search", 1000)
    assert done >= 0.5


# Two processes.


def on_rank(rank, port, job, config, folder):
    """What each of the processes does that a launcher starts."""
    torch.set_num_threads(1)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    os.environ.update(zip(names, map(str, (rank, rank, 2, 2, "127.0.0.1", port)), strict=True))
    output = open(f"{folder}/{job}{rank}.txt", "w")  # noqa: SIM115  (open as long as the process lives)
    os.dup2(output.fileno(), 1)
    if rank:
        forbid_writing()
    networks, real = [], earlyworm.experiments.run.retrain

    def retrain(bench, dense, network, *rest):
        networks.append(network)
        return real(bench, dense, network, *rest)

    earlyworm.experiments.run.retrain = retrain
    if job == "choosing":
        prefer_the_last(writing_takes=0 if rank else 0.5)
    if job == "interrupted":
        interrupt_at(4)
        try:
            run(config)
        except KeyboardInterrupt:
            sys.exit(130)
    status = main(shlex.split(config.command())[1:])
    if networks:
        save_file(networks[0].state_dict(), f"{folder}/{job}{rank}.safetensors")
    sys.stdout.flush()
    sys.exit(status)


def forbid_writing():
    def write(path, content):
        raise AssertionError(f"this process must not write {path}")

    for module in (
        earlyworm.experiments.checkpoint,
        earlyworm.experiments.run_directory,
        earlyworm.reporting.run_report,
        earlyworm.tickets.ticket,
    ):
        module.write_atomically = write


def prefer_the_last(writing_takes):
    """Of several ratios the one that was tried last is chosen, whose checkpoint is still being written."""
    earlyworm.experiments.choosing.training_speeds = lambda losses: {ratio: -ratio for ratio in losses}
    write = earlyworm.experiments.checkpoint.write_atomically

    def write_slowly(path, content):
        time.sleep(writing_takes)
        write(path, content)

    earlyworm.experiments.checkpoint.write_atomically = write_slowly


def interrupt_at(call):
    real, calls = earlyworm.experiments.bench.train_steps, []

    def train_steps(*args, **options):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*args, **options)

    earlyworm.experiments.bench.train_steps = train_steps


def launch(context, job, config, folder):
    """Run a job on both ranks; return their exit codes."""
    port = free_port()
    ranks = [context.Process(target=on_rank, args=(rank, port, job, config, str(folder))) for rank in (0, 1)]
    for process in ranks:
        process.start()
    return [wait(process) for process in ranks]


def test_two_processes(tmp_path, context):
    # 359 held-out images are no even number, and 200 training images no multiple of the batch.
    changes = {"width": 0.0625, "augment": "crop-flip", "accumulation": 2, "device": "auto"}
    whole, again = (small(tmp_path / name, **changes) for name in ("whole", "again"))
    assert launch(context, "whole", whole, tmp_path) == [0, 0]
    assert launch(context, "interrupted", again, tmp_path) == [130, 130]
    assert not RunDirectory.of(again).result.exists()
    assert launch(context, "resumed", again, tmp_path) == [0, 0]
    assert outcome(again) == outcome(whole)

    directory = RunDirectory.of(whole)
    result = json.loads(directory.result.read_text())
    assert result["device"] == "2 x cpu"
    assert result["search"]["emerged"]
    assert result["data"]["test"] == 359
    assert 359 * result["accuracy"]["final"] == pytest.approx(round(359 * result["accuracy"]["final"]))
    assert Ticket.load(directory.ticket).mask.units_kept == result["ticket"]["units_kept"]
    for job in ("whole", "resumed"):
        first, second = (load_file(tmp_path / f"{job}{rank}.safetensors") for rank in (0, 1))
        assert {key: tensor.shape for key, tensor in first.items()} == {key: t.shape for key, t in second.items()}
        # Gradients were exchanged to the end; running statistics are those of the first process, and are its own.
        assert all(torch.equal(first[key], second[key]) for key in first if "running" not in key)
        saved = load_file(directory.model)
        assert all(torch.equal(first[key], saved[key]) for key in saved)
        shown = [(tmp_path / f"{job}{rank}.txt").read_text() for rank in (0, 1)]
        assert "report: " in shown[0]
        assert shown[1] == ""


def test_two_processes_choose_a_ratio(tmp_path, context):
    options = {"method": "early-bird", "ratios": (0.25, 0.5), "epochs": 4, "search_epochs": 2, "epsilon": 1.0}
    config = small(tmp_path, probe_epochs=1, **options)
    assert launch(context, "choosing", config, tmp_path) == [0, 0]
    result = RunDirectory.of(config).read_result()
    assert [candidate.chosen for candidate in result.candidates] == [False, True]
