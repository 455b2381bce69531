"""Tests share a machine: one thread for each is faster than many that wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded; processes that the tests start inherit it
os.environ.pop("PYTHONUNBUFFERED", None)  # what they print is buffered, as it is for most users

import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

import earlyworm.experiments.bench
import earlyworm.experiments.checkpoint
import earlyworm.experiments.run
from earlyworm import cli
from runs import Recorder, forget_garbage, small

torch.set_num_threads(1)

# A shell makes what it starts in the background deaf to Ctrl-C, and all that is started from there, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _one_accelerator_a_test():
    """What accelerate was told stays for the whole process, and contradicts what the next test tells it."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def _every_checkpoint(monkeypatch):
    """None is spared: where a run goes on does not depend on how busy the machine is."""
    monkeypatch.setattr(earlyworm.experiments.checkpoint, "TIME_SHARE", 1.0)


@pytest.fixture
def fresh_python():
    """Runs code in a process of its own; returns what it prints."""

    def run(code):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def command(capsys):
    """Runs the command; returns exit status, standard output and standard error."""

    def run_command(*arguments):
        capsys.readouterr()  # what was printed before
        try:
            status = cli.main(arguments)
        except SystemExit as leaving:
            status = leaving.code or 0
        return status, *capsys.readouterr()

    return run_command


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A small run that nobody has interrupted: its settings, and what its observer was told."""
    forget_garbage()
    config, recorder = small(tmp_path_factory.mktemp("finished")), Recorder()
    earlyworm.experiments.run.run(config, recorder)
    return config, recorder


@pytest.fixture
def whole(finished):
    """The settings of a run that nobody has interrupted; its directory must be left as it is."""
    return finished[0]


@pytest.fixture
def untrained(monkeypatch):
    """Training is an error."""

    def fail(*_, **options):
        raise AssertionError(f"trains in the {options['stage']}")

    monkeypatch.setattr(earlyworm.experiments.bench, "train_steps", fail)


@pytest.fixture
def stages_trained(monkeypatch):
    """Which stages are trained, a name for every call."""
    calls, real = [], earlyworm.experiments.bench.train_steps

    def recorded(*args, **options):
        calls.append(options["stage"])
        return real(*args, **options)

    monkeypatch.setattr(earlyworm.experiments.bench, "train_steps", recorded)
    return calls


@pytest.fixture
def first_weights(monkeypatch):
    """The networks with which retraining starts, as state dictionaries."""
    states, real = [], earlyworm.experiments.retraining.retrain

    def recorded(bench, dense, small, *rest):
        states.append({key: tensor.clone() for key, tensor in small.state_dict().items()})
        return real(bench, dense, small, *rest)

    monkeypatch.setattr(earlyworm.experiments.run, "retrain", recorded)
    return states


@pytest.fixture(scope="module")
def browser():
    """A real browser without a window."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
        started = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", *quiet]
        )  # fmt: skip
        yield started
        started.close()


@pytest.fixture
def open_page(browser):
    """Open a page that lies in a file; whatever it requests beside itself, logs or throws is an error at the end."""
    requests, complaints, contexts, pages = [], [], [], set()

    def open_file(path, width=1100, color_scheme="light", **options):
        viewport = {"width": width, "height": 800}
        contexts.append(browser.new_context(viewport=viewport, color_scheme=color_scheme, **options))
        page = contexts[-1].new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        pages.add(path.as_uri())
        page.goto(path.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert complaints == []
    assert {url for url in requests if not url.startswith("data:")} == pages
