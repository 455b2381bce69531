"""Runs that are interrupted, damaged or out of room go on, and end as if nothing had happened."""

import dataclasses
import math
import shutil

import pytest

import earlyworm.experiments.bench
import earlyworm.experiments.checkpoint
import earlyworm.experiments.run
import earlyworm.experiments.run_directory
from earlyworm.errors import RunError, TicketError
from earlyworm.experiments.data import load_data
from earlyworm.experiments.run import run
from earlyworm.experiments.run_directory import RunDirectory
from earlyworm.files import write_atomically
from runs import Recorder, copied, elsewhere, interrupt_at_step, largest_file, outcome, refused, small, tree

WRITES = [
    "config.json", *["checkpoint"] * 3, "ticket.safetensors", *["checkpoint"] * 3, "model.safetensors", "result.json"
]  # fmt: skip


@pytest.fixture
def writes(monkeypatch):
    """Names the files that are written, in order; raises what `stop` says right before or after one of them."""
    names, stop = [], {}

    def write(path, content):
        number = len(names)
        names.append("checkpoint" if path.parent.name == "checkpoint" else path.name)
        if (number, "before") in stop:
            raise stop[number, "before"]
        write_atomically(path, content)
        if (number, "after") in stop:
            raise stop[number, "after"]

    for module in (earlyworm.experiments.checkpoint, earlyworm.experiments.run_directory):
        monkeypatch.setattr(module, "write_atomically", write)
    return names, stop


AFTER_EACH = [(number, "after") for number in range(len(WRITES) - 1)]


def test_the_writes_at_which_a_run_is_interrupted_below_are_all(whole, tmp_path, writes):
    run(elsewhere(whole, tmp_path))
    assert writes[0] == WRITES


@pytest.mark.parametrize(("number", "when"), [(0, "before"), *AFTER_EACH])
def test_interrupted_at_every_write(number, when, whole, tmp_path, writes, stages_trained):
    config = elsewhere(whole, tmp_path)
    writes[1][number, when] = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run(config)
    writes[1].clear()
    stages_trained.clear()
    run(config)
    assert outcome(config) == outcome(whole)
    done = WRITES[: number + (when == "after")].count("checkpoint")
    assert len(stages_trained) == 6 - done  # nothing is trained twice


@pytest.mark.parametrize("number", range(5))
def test_interrupted_where_checkpoints_are_spared(number, whole, tmp_path, writes, monkeypatch):
    monkeypatch.setattr(earlyworm.experiments.checkpoint, "TIME_SHARE", 1e-9)
    config = elsewhere(whole, tmp_path)
    writes[1][number, "after"] = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert writes[0] == ["config.json", *["checkpoint"] * 2, "ticket.safetensors", "model.safetensors"][: number + 1]
    writes[1].clear()
    run(config)
    assert outcome(config) == outcome(whole)


@pytest.mark.parametrize("step", [0, 9, 40])
def test_interrupted_in_the_middle_of_training(step, whole, tmp_path, monkeypatch):
    config = elsewhere(whole, tmp_path)
    interrupt_at_step(step, config, monkeypatch)
    run(config)
    assert outcome(config) == outcome(whole)


def test_interrupted_again_and_again(whole, tmp_path, writes, stages_trained):
    config, (names, stop) = elsewhere(whole, tmp_path), writes
    for number in range(7):  # each time after one more file; the ticket is the fourth
        names.clear()
        stop.clear()
        stop[1 if number == 4 else 0, "after"] = KeyboardInterrupt  # the ticket is written again
        with pytest.raises(KeyboardInterrupt):
            run(config)
    stop.clear()
    run(config)
    assert len(stages_trained) == 6
    assert outcome(config) == outcome(whole)


def test_the_display_goes_on_where_it_was(whole, tmp_path):
    config = elsewhere(whole, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(config, Recorder(stop=3))  # at the second check after the first one was saved
    recorder = Recorder()
    run(config, recorder)
    assert recorder.told("stage") == [("search", 3, 0.5), ("retrain", 2.5, 0)]
    assert [record.epoch for (record,) in recorder.told("check")] == [1, 1.5]


@pytest.mark.parametrize("damaged", [1, 2])
@pytest.mark.parametrize("event", [4, 8])  # in the search, in retraining
def test_damaged_checkpoints(event, damaged, whole, tmp_path):
    config = elsewhere(whole, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(config, Recorder(stop=event))
    files = sorted(RunDirectory.of(config).checkpoints.folder.iterdir())[-damaged:]
    for path in files:
        path.write_bytes(path.read_bytes()[:-1])
    recorder = Recorder()
    run(config, recorder)
    assert [str(path) in text for path, (text,) in zip(reversed(files), recorder.told("note"), strict=True)] == [
        True
    ] * damaged
    assert outcome(config) == outcome(whole)


@pytest.mark.parametrize("event", [4, 8])  # in the search, in retraining
@pytest.mark.parametrize("classes", [10, 9])
def test_a_run_does_not_go_on_with_other_data(event, classes, whole, tmp_path, monkeypatch):
    config = elsewhere(whole, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(config, Recorder(stop=event))
    before = tree(tmp_path)

    def changed(some):
        data = load_data(some)
        return dataclasses.replace(data, train_labels=data.train_labels.flip(0) % classes, classes=classes)

    with monkeypatch.context() as patch:
        patch.setattr("earlyworm.experiments.run.load_data", changed)
        refused(config, RunError, str(RunDirectory.of(config).path), "was begun with other data", "--overwrite")
    assert tree(tmp_path) == before
    run(config)
    assert outcome(config) == outcome(whole)


def test_checkpoints_from_before_there_were_digests(whole, tmp_path):
    config = elsewhere(whole, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(config, Recorder(stop=4))
    checkpoints = RunDirectory.of(config).checkpoints
    state = checkpoints.load(lambda text: None)
    del state["data"]
    checkpoints.save(state)
    run(config)
    assert outcome(config) == outcome(whole)


def test_a_ticket_that_is_lost_while_retraining(whole, tmp_path):
    config = elsewhere(whole, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(config, Recorder(stop=8))
    ticket = RunDirectory.of(config).ticket
    ticket.write_bytes(ticket.read_bytes()[:-1])
    refused(config, TicketError, str(ticket), "damaged")
    ticket.unlink()
    refused(config, TicketError, str(ticket), "no ticket")
    run(dataclasses.replace(config, overwrite=True))
    assert outcome(config) == outcome(whole)


@pytest.mark.parametrize("ended", [True, False])
def test_overwrite_may_be_interrupted(ended, whole, tmp_path, monkeypatch):
    config = copied(whole, tmp_path) if ended else elsewhere(whole, tmp_path)
    directory = RunDirectory.of(config)
    if not ended:
        with pytest.raises(KeyboardInterrupt):
            run(config, Recorder(stop=8))

    def interrupt(*folders):
        raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "_remove", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(dataclasses.replace(config, overwrite=True))
    assert not directory.result.exists()
    monkeypatch.undo()
    run(config)
    assert outcome(config) == outcome(whole)


def test_what_a_killed_process_has_left_is_swept_up(whole, tmp_path):
    config = elsewhere(whole, tmp_path)
    directory = RunDirectory.of(config)
    directory.checkpoints.folder.mkdir(parents=True)
    (directory.path / ".config.json.77.tmp").write_text("{")
    shutil.rmtree(directory.checkpoints.folder)
    directory.check_owner(config)  # killed before there was a config.json
    directory.checkpoints.folder.mkdir()
    shutil.copy(RunDirectory.of(whole).config, directory.config)
    (directory.checkpoints.folder / ".000001-0.safetensors.77.tmp").write_text("x")
    run(config)
    assert outcome(config) == outcome(whole)


# Failures while it runs.


def test_a_full_disk(whole, tmp_path):
    config = elsewhere(whole, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(config, Recorder(stop=3))
    before = tree(tmp_path)
    with largest_file(100_000):
        text = refused(config, RunError, "cannot write the checkpoint", "File too large", "make room")
    assert str(tmp_path) in text
    assert tree(tmp_path) == before
    run(config)
    assert outcome(config) == outcome(whole)


@pytest.mark.parametrize(
    ("number", "name"), [(0, ""), (4, "ticket.safetensors"), (8, "model.safetensors"), (9, "result.json")]
)
def test_a_disk_that_is_full_for_one_file(number, name, whole, tmp_path, writes):
    config = elsewhere(whole, tmp_path)
    writes[1][number, "before"] = OSError(28, "No space left on device")
    refused(config, RunError, "cannot write ", name, "No space left on device", "--output")
    writes[1].clear()
    run(config)
    assert outcome(config) == outcome(whole)


@pytest.mark.parametrize("call", [2, 4])  # in the search, in retraining
def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(call, whole, tmp_path, monkeypatch):
    config, real, calls = elsewhere(whole, tmp_path), earlyworm.experiments.bench.train_steps, []

    def poisoned(model, *args, **options):
        calls.append(options["stage"])
        if len(calls) == call:
            next(model.parameters()).data[0] = math.nan
        return real(model, *args, **options)

    monkeypatch.setattr(earlyworm.experiments.bench, "train_steps", poisoned)
    refused(config, RunError, "the loss became nan in epoch 1 of the", "at learning rate 0.02", "lower --lr")
    assert len(list(RunDirectory.of(config).checkpoints.folder.iterdir())) == min(2, call - 1)
    monkeypatch.setattr(earlyworm.experiments.bench, "train_steps", real)
    run(config)
    assert outcome(config) == outcome(whole)


def test_a_learning_rate_that_is_too_high(tmp_path):
    config = small(tmp_path, lr=1e25)
    refused(config, RunError, "in epoch 1 of the search at learning rate 1e+25: lower --lr")
    assert not RunDirectory.of(config).result.exists()
