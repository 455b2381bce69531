"""Comparisons whose processes train nothing."""

import pytest

STUB = """
import sys, types

def run(config, observer, patience):
    import os, signal, time
    from earlyworm.errors import RunError
    observer.stage("search", config.search_epochs, 0)
    if config.method == "early-bird":
        print("loud")
        os.write(1, b"louder\\n")
        raise RunError("no, because")
    if config.method == "constant":
        raise MemoryError("no room\\nat all")
    if config.method == "worm":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.method == "late":
        os._exit(3)
    time.sleep(1000)

sys.modules["earlyworm.experiments.run"] = module = types.ModuleType("run")
module.run = run
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """In every process that is started, a run only ends in a way that depends on its method."""
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "sitecustomize.py").write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stub"))
