"""Small runs for tests: their settings, an observer that can interrupt them, and what has to be equal between two."""

import dataclasses
import gc
import json
import resource
import shlex
import shutil
import signal
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

import earlyworm.experiments.training
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.data import load_data
from earlyworm.experiments.networks import load_network
from earlyworm.experiments.run import make_accelerator, run
from earlyworm.experiments.run_directory import RunDirectory
from earlyworm.experiments.training import evaluate

# On digits: three checks, WORM triggers at the second, the ticket emerges at the third, two and a half epochs remain.
SMALL = {
    "method": "worm", "model": "vgg11_bn", "width": 0.125, "limit": 200, "batch_size": 16, "lr": 0.02, "epochs": 4,
    "search_epochs": 3, "window": 2, "epsilon": 0.1, "trigger": 0.35, "check_every": 0.5, "device": "cpu",
}  # fmt: skip


def small(output, **changes):
    """The settings of a small run."""
    return RunConfig(**{**SMALL, "output": str(output), **changes})


def options(output, **changes):
    """The same as options of the command."""
    return shlex.split(small(output, **changes).command())[1:]


@dataclass
class Recorder:
    """Remembers what an observer is told; interrupts the run at event number `stop`, counted from 0."""

    stop: int | None = None
    events: list = field(default_factory=list)

    def _tell(self, *event):
        self.events.append(event)
        if len(self.events) - 1 == self.stop:
            raise KeyboardInterrupt

    def stage(self, name, epochs, done):
        self._tell("stage", name, epochs, done)

    def progress(self, epoch, loss):
        pass  # as often as time allows, so not the same in two runs

    def check(self, record):
        self._tell("check", record)

    def recovered(self, epoch, loss, accuracy):
        self._tell("recovered", epoch, loss, accuracy)

    def note(self, text):
        self._tell("note", text)

    def told(self, kind):
        """The events of one kind."""
        return [event[1:] for event in self.events if event[0] == kind]


def run_interrupted(config, *stops):
    """Do a run that is interrupted at each of these events, one after the other, and then goes on to its end."""
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            run(config, Recorder(stop))
    return run(config)


def interrupt_at_step(step, config, monkeypatch):
    """Begin a run that is interrupted right after an optimizer step, counted from 0."""
    recorder, taken = Recorder(), []

    def progress(_, loss):
        taken.append(loss)
        if len(taken) > step:
            raise KeyboardInterrupt

    recorder.progress = progress
    monkeypatch.setattr(earlyworm.experiments.training, "_REPORT_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        run(config, recorder)


def tree(folder):
    """Every file below a folder, with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()
    }


def header_and_data(content):
    """A safetensors file without the random order of its metadata."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def timeless(value):
    """A result as JSON without what it took in seconds."""
    if isinstance(value, dict):
        return {name: timeless(item) for name, item in value.items() if "seconds" not in name}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def outcome(config):
    """Everything that must be the same, bit for bit, however often a run was interrupted."""
    directory = RunDirectory.of(config)
    result = timeless(json.loads(directory.result.read_text()))
    for name in ("output", "overwrite", "track", "force_draw"):
        del result["config"][name]
    files = {
        path.name: header_and_data(path.read_bytes()) for path in (directory.ticket, directory.model) if path.exists()
    }
    leftovers = [path.name for path in directory.path.rglob("*.tmp")]
    return json.dumps(result), files, leftovers


def forget_garbage():
    """Collect garbage once; what lives now is not looked at again, which every run would wait for twice."""
    gc.collect()
    gc.freeze()


def elsewhere(config, output, **changes):
    """The same settings, in another folder."""
    return dataclasses.replace(config, output=str(output), **changes)


def copied(config, output):
    """A copy of a run in another folder, and its settings."""
    shutil.copytree(config.output, output, dirs_exist_ok=True)
    return elsewhere(config, output)


def refused(config, kind, *parts):
    """The run ends with a one-line error of this kind that says all these parts."""
    with pytest.raises(kind) as caught:
        run(config)
    text = str(caught.value)
    assert "\n" not in text
    assert all(part in text for part in parts), text
    return text


def same_tensors(first, second):
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


def held_out_accuracy(config):
    """What the saved network of a run gets right, loaded anew."""
    network, data = load_network(RunDirectory.of(config).path), load_data(config)
    accelerator = make_accelerator(config, RunDirectory.of(config))
    return evaluate(accelerator.prepare_model(network, evaluation_mode=True), data, config, accelerator)


def classifier_directory(path, *, channels=1, pretrained=False):
    """The directory of a small image classifier of transformers, with weights or without."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(5)
    config = ResNetConfig(
        num_channels=channels, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10
    )
    if pretrained:
        ResNetForImageClassification(config).save_pretrained(path)
    else:
        config.save_pretrained(path)
    return str(path)


@contextmanager
def largest_file(size):
    """No file may grow beyond `size` bytes, as on a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
