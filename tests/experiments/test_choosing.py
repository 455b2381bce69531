"""Several ratios in one run: each is retrained for a while, and the one that learns fastest to the end."""

import dataclasses
import json

import pytest

from earlyworm.errors import ConfigError, RunError
from earlyworm.experiments.choosing import training_speeds
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.networks import load_network
from earlyworm.experiments.run import run
from earlyworm.experiments.run_directory import RunDirectory
from earlyworm.reporting.run_words import sentences
from earlyworm.tickets.ticket import Ticket
from runs import Recorder, copied, elsewhere, outcome, refused, run_interrupted, small

RATIOS = (0.25, 0.5, 0.75)


def several(folder, **changes):
    options = {"method": "early-bird", "epochs": 6, "search_epochs": 4, "epsilon": 0.25, "probe_epochs": 1}
    return small(folder, ratios=RATIOS, **{**options, **changes})


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    config, recorder = several(tmp_path_factory.mktemp("chosen")), Recorder()
    return config, run(config, recorder), recorder


def test_the_ratio_with_the_lowest_losses_is_trained_to_the_end(chosen):
    _, result, recorder = chosen
    assert [candidate.ratio for candidate in result.candidates] == list(RATIOS)
    emerged = [candidate for candidate in result.candidates if candidate.epoch is not None]
    assert len(emerged) >= 2
    best = min(emerged, key=lambda candidate: sum(candidate.losses))
    assert [candidate.chosen for candidate in result.candidates] == [c is best for c in result.candidates]
    assert result.ticket.units_kept == result.ticket.units - int(best.ratio * result.ticket.units)
    assert result.search.epoch == best.epoch
    assert result.accuracy.pruned == best.pruned
    assert result.accuracy.losses[:1] == best.losses
    assert result.accuracy.recovery[0] == best.accuracy
    assert sum(len(candidate.losses) for candidate in emerged) == len(emerged) == len(recorder.told("note"))


@pytest.mark.parametrize(
    ("losses", "speeds"),
    [
        ({0.3: [1.0, 0.5], 0.5: [0.9, 0.7]}, {0.3: 1.5, 0.5: 1.6}),
        ({0.3: [1.0, 0.5], 0.5: [0.9]}, {0.3: 1.0, 0.5: 0.9}),  # over as many epochs
        ({0.3: [1.0, 0.5], 0.5: [], 0.7: [2.0, 1.0]}, {0.3: 1.5, 0.7: 3.0}),  # it emerged too late to tell
        ({0.3: [], 0.5: []}, {0.3: 0.0}),
    ],
)
def test_losses_are_summed_over_as_many_epochs_of_each(losses, speeds):
    assert training_speeds(losses) == pytest.approx(speeds)


@pytest.mark.parametrize("retrain_epochs", [0, 1])
def test_what_emerges_too_late_is_not_chosen_for_having_few_losses(retrain_epochs, tmp_path):
    config = several(tmp_path, epsilon=1.0, window=2, probe_epochs=3, retrain_epochs=retrain_epochs)
    result = run(config)
    words = " ".join(sentences(result))
    assert all(candidate.drawn for candidate in result.candidates)
    assert "emerged in time" not in words
    if retrain_epochs:
        assert "over the first epochs its training losses summed to least (" in words
        assert all(candidate.speed == candidate.losses[0] for candidate in result.candidates)
    else:
        assert "Ratio 0.25 was trained to the end. That of ratio 0.5 and 0.75 was drawn too late" in words


def test_every_candidate_is_what_a_run_of_its_own_would_be(chosen, tmp_path):
    config, result, _ = chosen
    for candidate in result.candidates:
        if candidate.epoch is not None:
            alone = run(elsewhere(config, tmp_path, ratios=(), ratio=candidate.ratio))
            assert alone.search.epoch == candidate.epoch
            assert alone.accuracy.pruned == candidate.pruned
            assert alone.accuracy.losses[:1] == candidate.losses
            if candidate.chosen:
                assert alone.accuracy == result.accuracy
                assert alone.search.history == result.search.history
                assert alone.total.retrain_flops == result.total.retrain_flops
                extra = result.total.train_flops - alone.total.train_flops
                others = [c.retrain_flops for c in result.candidates if not c.chosen]
                assert extra >= sum(others) > 0


def test_what_is_saved_is_the_chosen_network(chosen):
    config, result, _ = chosen
    path = RunDirectory.of(config).path
    assert Ticket.load(path / "ticket.safetensors").mask.units_kept == result.ticket.units_kept
    assert sum(parameter.numel() for parameter in load_network(path).parameters()) == result.ticket.parameters
    assert RunDirectory(path).read_result() == result


def test_an_interrupted_choice_goes_on_to_the_same_result(chosen, tmp_path):
    config, _, recorder = chosen
    expected = outcome(config)
    for stop in range(2, len(recorder.events), 6):
        again = elsewhere(config, tmp_path / str(stop))
        run_interrupted(again, stop)
        assert outcome(again) == expected


def test_what_the_others_have_cost_is_taken_off_a_budget_of_flops(chosen, tmp_path):
    config, recorder = several(tmp_path / "whole", match="flops"), Recorder()
    result = run(config, recorder)
    budget = chosen[1].total.dense_train_flops  # of a run over as many epochs
    assert 0.98 * budget <= result.total.train_flops <= budget
    again = elsewhere(config, tmp_path / "again")
    run_interrupted(again, len(recorder.events) - 4)
    assert outcome(again) == outcome(config)


def test_what_was_chosen_is_chosen_again_however_long_it_was_trained_since(tmp_path):
    config, recorder = several(tmp_path / "whole", epochs=12), Recorder()
    run(config, recorder)
    again = elsewhere(config, tmp_path / "again")
    run_interrupted(again, len(recorder.events) - 4)
    assert outcome(again) == outcome(config)


def test_a_ticket_whose_weights_are_damaged(chosen, tmp_path):
    config, _, recorder = chosen
    again = elsewhere(config, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(again, Recorder(stop=len(recorder.events) - 4))
    for path in RunDirectory.of(again).candidates.glob("0.25/checkpoint/*"):
        path.write_bytes(path.read_bytes()[:-1])
    for _ in range(2):
        refused(again, RunError, "candidates/0.25 has a ticket, but no checkpoint that is whole", "--overwrite")
    assert run(dataclasses.replace(again, overwrite=True)).candidates


def test_a_finished_choice_is_not_made_again(chosen, tmp_path, untrained):
    config, result, _ = chosen
    assert run(copied(config, tmp_path)) == result


def test_no_ratio_has_emerged(tmp_path):
    config = several(tmp_path, epsilon=0.0)
    result = run(config)
    assert (result.ticket, result.candidates, result.search.epoch) == (None, (), None)
    forced = run(dataclasses.replace(config, force_draw=True))
    assert forced.search.forced
    assert [candidate.epoch for candidate in forced.candidates] == [None] * 3
    assert sum(candidate.chosen for candidate in forced.candidates) == 1


def test_old_results_have_no_candidates(chosen):
    config, _, _ = chosen
    directory = RunDirectory.of(config)
    values = json.loads(directory.result.read_text())
    del values["candidates"]
    assert type(directory.read_result()).from_json(json.dumps(values)).candidates == ()


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"ratios": (0.5,)}, "ratios is 0.5, but must be two or more"),
        ({"ratios": (0.5, 0.5)}, "ratios is 0.5 0.5"),
        ({"ratios": (0.5, 1.0)}, "in [0, 1)"),
        ({"ratios": (0.3, 0.5), "method": "dense"}, "empty for a method without a search"),
        ({"probe_epochs": 0}, "probe_epochs is 0, but must be at least 1"),
    ],
)
def test_impossible_choices(values, part):
    with pytest.raises(ConfigError) as caught:
        RunConfig(**values)
    assert part in str(caught.value)
