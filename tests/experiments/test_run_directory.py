"""The directory of a run: nothing of anybody else is touched, and damage is told."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest

from earlyworm.errors import ConfigError, RunError, TicketError
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.data import load_data
from earlyworm.experiments.networks import load_network
from earlyworm.experiments.run import run
from earlyworm.experiments.run_directory import RunDirectory
from runs import Recorder, copied, elsewhere, refused, small, tree


def test_somebody_elses_directory(tmp_path, untrained):
    config = small(tmp_path)
    directory = RunDirectory.of(config)
    directory.path.mkdir()
    (directory.path / "thesis.tex").write_text("precious")
    refused(config, RunError, str(directory.path), "holds something that is not a run", "--output")
    assert tree(tmp_path) == {f"{directory.path.name}/thesis.tex": b"precious"}


@pytest.mark.parametrize("content", [b"{", b"[]", b"3", b"\xff\xfe", b'{"seed": "x"}', b'{"sede": 1}', b'{"ratio": 7}'])
def test_damaged_settings(content, whole, tmp_path, untrained):
    config = copied(whole, tmp_path)
    path = RunDirectory.of(config).config
    path.write_bytes(content)
    refused(config, RunError, f"{path} is damaged", "remove")
    assert path.read_bytes() == content


def test_another_run_in_the_directory(whole, tmp_path, untrained):
    config = copied(whole, tmp_path)
    path = RunDirectory.of(config).config
    path.write_text(json.dumps({**json.loads(path.read_text()), "lr": 0.5}))
    refused(config, RunError, "holds another run, with another lr", "--output")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"schema": 1}', b'{"schema": 2}'])
def test_a_damaged_result(content, whole, tmp_path, untrained):
    config = copied(whole, tmp_path)
    path = RunDirectory.of(config).result
    path.write_bytes(content)
    refused(config, RunError, str(path), "run")
    with pytest.raises(RunError):
        load_network(RunDirectory.of(config).path)


def test_a_model_that_is_not_there(tmp_path, untrained):
    refused(small(tmp_path, model="resnet-18"), ConfigError, "unknown model 'resnet-18'", "did you mean 'resnet18'?")
    assert tree(tmp_path) == {}


def test_a_run_is_read_where_its_model_is_not_to_be_seen(whole, tmp_path, untrained):
    config = dataclasses.replace(whole, output=str(tmp_path), model="network")
    directory = RunDirectory.of(config)
    shutil.copytree(RunDirectory.of(whole).path, directory.path)
    for path in (directory.config, directory.result):
        path.write_text(path.read_text().replace('"vgg11_bn"', '"network"'))
    assert directory.read_config().model == directory.read_result().config.model == "network"
    assert run(config) == directory.read_result()


def test_what_another_process_has_ended_meanwhile_is_not_done_again(whole, tmp_path, untrained, monkeypatch):
    config, recorder = elsewhere(whole, tmp_path), Recorder()

    def load(some):
        copied(whole, tmp_path)
        return load_data(some)

    monkeypatch.setattr("earlyworm.experiments.run.load_data", load)
    assert run(config, recorder) == RunDirectory.of(whole).read_result()
    assert "has ended before" in recorder.told("note")[-1][0]


def test_a_file_in_the_place_of_the_directory(tmp_path, untrained):
    config = small(tmp_path)
    RunDirectory.of(config).path.write_text("mine")
    refused(config, RunError, "is a file", "--output")


@pytest.mark.parametrize("output", ["{tmp}/file/runs", "{tmp}/" + "n" * 300, "/proc/runs"])
def test_output_that_cannot_be_written(output, tmp_path, untrained):
    (tmp_path / "file").write_text("mine")
    refused(small(output.format(tmp=tmp_path)), RunError, "cannot ", "--output")
    assert tree(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("name", ["model.safetensors", "ticket.safetensors"])
@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: b"", None])
def test_a_damaged_network(name, damage, whole, tmp_path):
    config = copied(whole, tmp_path)
    path = RunDirectory.of(config).path / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises((RunError, TicketError)) as caught:
        load_network(RunDirectory.of(config).path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(
        RunError, match="though the run has ended: put it back, or run again with --overwrite"
    ) as caught:
        run(config)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_process_at_a_time_works_on_a_run(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    code = f"""
from pathlib import Path
from earlyworm.errors import RunError
from earlyworm.experiments.run_directory import RunDirectory
try:
    with RunDirectory(Path({str(directory.path)!r})).claimed():
        print("claimed")
except RunError as error:
    print(error)
"""

    def elsewhere():
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    with directory.claimed():
        assert elsewhere() == f"another process is at work in {directory.path}: wait for it, or stop it\n"
    directory.check_owner(RunConfig())  # what is left behind is nothing
    assert elsewhere() == "claimed\n"
