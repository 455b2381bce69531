"""Tests share a machine: one thread for each is faster than many that wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded; processes that the tests start inherit it

import subprocess
import sys
import textwrap

import pytest
import torch

torch.set_num_threads(1)


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
