"""Whole runs whose network gets smaller while the search goes on."""

import dataclasses
import json

import pytest
import torch

from earlyworm import compact, cost
from earlyworm.experiments.networks import build_network, load_network
from earlyworm.experiments.run import run
from earlyworm.experiments.run_directory import RunDirectory
from earlyworm.tickets.ticket import Ticket
from runs import Recorder, elsewhere, held_out_accuracy, interrupt_at_step, outcome, run_interrupted, small
from texts import small_text, write_all

# Static from the first mask on, so that units go at the second check already; the ticket emerges at the sixth.
SHRINKING = {"method": "constant", "chi": 0.5, "epsilon": 0.0, "shrink": True, "min_units": 1}


def shrinking(output, **changes):
    return small(output, **{**SHRINKING, **changes})


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory):
    """The settings of a run that nobody has interrupted, and its result."""
    config = shrinking(tmp_path_factory.mktemp("shrunk"))
    return config, run(config)


def test_the_result_says_what_was_spent(shrunk):
    config, result = shrunk
    directory, search, total = RunDirectory.of(config), result.search, result.total
    network, _ = build_network(config, classes=10, shape=(1, 8, 8))
    image = torch.zeros(1, 1, 8, 8)
    dense, small_one = cost(network, image), cost(load_network(directory.path), image)
    assert (result.dense.parameters, result.dense.macs) == (dense.parameters, dense.macs)
    assert (result.ticket.parameters, result.ticket.macs) == (small_one.parameters, small_one.macs)
    assert [check.truncated for check in search.history] == [172] * 6
    assert search.epoch == 2.5
    step, spent = 16 * dense.train_flops, search.train_flops
    # Dense until the second check; then more and more units are gone, but as many as in the ticket only at the end.
    assert 6 * step + 24 * 16 * small_one.train_flops < spent < 12 * step + 18 * 16 * dense.train_flops * 0.6
    assert total.dense_train_flops == 48 * step
    assert total.retrain_flops == 18 * 16 * small_one.train_flops
    assert total.train_flops == spent + total.retrain_flops
    assert held_out_accuracy(config) == result.accuracy.final
    ticket = Ticket.load(directory.ticket)
    assert 0 < ticket.left.units_removed < ticket.mask.units_removed == 172
    assert compact(network, ticket).state_dict().keys() == load_network(directory.path).state_dict().keys()


@pytest.mark.parametrize("stops", [(3,), (4,), (5, 2), (6,), (7,), (9,)])
def test_killed_and_resumed(stops, shrunk, tmp_path):
    config = elsewhere(shrunk[0], tmp_path)
    run_interrupted(config, *stops)
    assert outcome(config) == outcome(shrunk[0])


@pytest.mark.parametrize("step", [14, 20])
def test_killed_in_the_middle_of_training(step, shrunk, tmp_path, monkeypatch):
    config = elsewhere(shrunk[0], tmp_path)
    interrupt_at_step(step, config, monkeypatch)
    run(config)
    assert outcome(config) == outcome(shrunk[0])
    run(dataclasses.replace(config, overwrite=True))
    assert outcome(config) == outcome(shrunk[0])


@pytest.mark.parametrize("retrain_from", ["rewind", "reinitialise"])
def test_retraining_from_other_weights(retrain_from, shrunk, tmp_path):
    configs = [elsewhere(shrunk[0], tmp_path / name, retrain_from=retrain_from) for name in "ab"]
    result = run(configs[0])
    assert result.search.train_flops == shrunk[1].search.train_flops
    assert result.accuracy.pruned == shrunk[1].accuracy.pruned
    run_interrupted(configs[1], 4, 6)
    assert outcome(configs[1]) == outcome(configs[0])


def test_flops_that_were_saved_are_spent_on_retraining(shrunk, tmp_path):
    total = run(elsewhere(shrunk[0], tmp_path, match="flops")).total
    budget = shrunk[1].total.dense_train_flops
    step = shrunk[1].total.retrain_flops // 18
    assert budget - step < total.train_flops <= budget


def test_a_ticket_that_does_not_emerge_is_forced(tmp_path):
    config = shrinking(tmp_path, search_epochs=2)
    result = run(config)
    assert result.ticket is None
    assert result.search.train_flops < result.total.dense_train_flops
    forced = dataclasses.replace(config, force_draw=True)
    assert run(forced).search.train_flops == result.search.train_flops
    assert held_out_accuracy(forced) == RunDirectory.of(forced).read_result().accuracy.final


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16", "accumulation": 2, "method": "fade", "chi": 0.3, "trigger": 1.0},
        {"optimizer": "adamw", "lr": 0.005, "coupling": "independent", "model": "resnet20", "sparsity_penalty": 1e-3},
    ],
)
def test_other_runs_are_resumed_too(changes, tmp_path):
    configs = [shrinking(tmp_path / name, epochs=3, search_epochs=2, force_draw=True, **changes) for name in "ab"]
    result, recorder = run(configs[0]), Recorder()
    assert result.search.train_flops < 2 / 3 * result.total.dense_train_flops
    run_interrupted(configs[1], 5)
    run(configs[1], recorder)
    assert outcome(configs[1]) == outcome(configs[0])
    assert held_out_accuracy(configs[0]) == result.accuracy.final


def test_text(tmp_path):
    folder = write_all(tmp_path / "texts")
    options = {**SHRINKING, "window": 2, "check_every": 0.25, "force_draw": True, "score": "taylor", "search_epochs": 2}
    configs = [small_text(folder, tmp_path / name, **options) for name in "ab"]
    result = run(configs[0])
    directory = RunDirectory.of(configs[0])
    assert Ticket.load(directory.ticket).left.units_removed
    assert json.loads(directory.result.read_text())["config"]["shrink"]
    assert held_out_accuracy(configs[0]) == result.accuracy.final
    run_interrupted(configs[1], 6)
    assert outcome(configs[1]) == outcome(configs[0])
