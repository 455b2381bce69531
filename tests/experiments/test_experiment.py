"""Whole runs on digits: what they write and tell, and what every option does."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parameters_to_vector

import earlyworm.experiments.bench
import earlyworm.experiments.checkpoint
import earlyworm.experiments.run
import earlyworm.experiments.run_directory
import earlyworm.experiments.training
from earlyworm import compact
from earlyworm.errors import ConfigError, DataError, RunError
from earlyworm.experiments.data import load_data
from earlyworm.experiments.networks import build_network, load_network
from earlyworm.experiments.results import RunResult
from earlyworm.experiments.run import run
from earlyworm.experiments.run_directory import RunDirectory
from earlyworm.reporting.learning_curves import learning_curve
from earlyworm.reporting.run_figures import accuracy_figure
from earlyworm.tickets.ticket import Ticket
from runs import (
    Recorder,
    copied,
    elsewhere,
    held_out_accuracy,
    outcome,
    refused,
    run_interrupted,
    same_tensors,
    small,
    tree,
)


def test_a_run_that_has_ended_keeps_what_it_found_and_no_checkpoints(whole):
    config = whole
    directory = RunDirectory.of(config)
    names = {path.name for path in directory.path.iterdir()}
    assert names == {"config.json", "result.json", "ticket.safetensors", "model.safetensors", ".lock"}
    assert directory.read_config() == config
    assert list(directory.path.parent.iterdir()) == [directory.path]


def test_the_result_has_the_form_of_the_design(whole):
    values = json.loads(RunDirectory.of(whole).result.read_text())
    assert values["schema"] == 1
    assert set(values) >= {
        "config", "versions", "seed", "device", "search", "accuracy", "dense", "ticket", "total"
    }  # fmt: skip
    assert set(values["search"]) >= {
        "method", "emerged", "epoch", "triggered_epoch", "seconds", "train_flops", "history"
    }  # fmt: skip
    assert set(values["search"]["history"][0]) == {
        "epoch", "distance_mean", "distance_max", "chi", "truncated", "loss", "accuracy"
    }  # fmt: skip
    assert set(values["accuracy"]) == {"before", "pruned", "recovery", "final", "losses"}
    assert set(values["dense"]) == {"parameters", "macs", "latency_seconds"}
    assert set(values["ticket"]) == {"parameters", "macs", "latency_seconds", "units_kept", "units"}
    assert set(values["total"]) >= {"train_flops", "seconds", "dense_train_flops"}


def test_the_result_agrees_with_itself(whole):
    config = whole
    directory = RunDirectory.of(config)
    result, ticket = directory.read_result(), Ticket.load(directory.ticket)
    search, accuracy, total = result.search, result.accuracy, result.total
    assert (search.emerged, search.forced, search.epoch, search.triggered_epoch) == (True, False, 1.5, 1.0)
    assert [check.epoch for check in search.history] == [0, 0.5, 1, 1.5]
    assert [check.chi for check in search.history] == [1, 1, 0.003, 0.003]
    assert [check.truncated for check in search.history] == [0, 0, 172, 172]
    assert search.history[0].loss is search.history[0].distance_max is None
    assert search.history[-1].distance_max <= config.epsilon < search.history[-2].distance_max
    assert accuracy.before == search.history[-1].accuracy
    assert accuracy.final == accuracy.recovery[-1]
    assert len(accuracy.recovery) == 3  # the last is half an epoch
    assert all(0 <= value <= 1 for value in (accuracy.before, accuracy.pruned, *accuracy.recovery))
    assert 359 * accuracy.final == pytest.approx(round(359 * accuracy.final))
    assert (result.data.train, result.data.test, result.data.classes, result.data.shape) == (200, 359, 10, (1, 8, 8))
    assert "held out is a fifth" in result.data.split

    assert result.ticket.units_kept == ticket.mask.units_kept == result.ticket.units // 2 == 172
    assert result.layers == {name: (int(kept.sum()), len(kept)) for name, kept in ticket.mask.kept.items()}
    assert ticket.step == 18
    assert ticket.emerged
    assert 0 < result.ticket.parameters < result.dense.parameters
    assert 0 < result.ticket.macs < result.dense.macs
    # A step is a forward pass, and at most twice as much backward; 16 images a step, 18 of 48 steps for the search.
    per_image = search.train_flops / 18 / 16
    assert 2 * 2 * result.dense.macs < per_image <= 3 * 2 * result.dense.macs
    assert total.train_flops == search.train_flops + total.retrain_flops
    assert 2 * 2 * result.ticket.macs < total.retrain_flops / 30 / 16 <= 3 * 2 * result.ticket.macs
    assert total.dense_train_flops == search.train_flops // 18 * 48
    assert 0 < search.overhead_seconds < search.seconds < total.seconds
    assert result.seed == 0
    assert result.device == "cpu"
    assert set(result.versions) == {"python", "earlyworm", "torch", "torch-pruning", "accelerate", "safetensors"}
    assert RunResult.from_json(result.to_json()) == result


def test_the_observer_is_told_everything(finished):
    config, recorder = finished
    result = RunDirectory.of(config).read_result()
    assert recorder.told("stage") == [("search", 3, 0), ("retrain", 2.5, 0)]
    assert recorder.told("check") == [(check,) for check in result.search.history]
    recovered = recorder.told("recovered")
    assert [event[0] for event in recovered] == [1, 2, 2.5]
    assert tuple(event[2] for event in recovered) == result.accuracy.recovery
    assert recorder.told("note") == []


def test_fewer_evaluations_change_nothing_but_what_is_measured_in_between(whole, tmp_path):
    often = dataclasses.replace(whole, epochs=9, output=str(tmp_path / "often"))
    seldom = dataclasses.replace(often, evaluate_every=4, output=str(tmp_path / "seldom"))
    assert often.directory_name() == seldom.directory_name()
    every, recorder = run(often), Recorder()
    some = run(seldom, recorder)
    # The ticket emerges at 1.5: that is measured, then epochs 1 to 3 of retraining, every fourth, and the end, at 7.5.
    assert [check.accuracy is None for check in some.search.history] == [False, True, True, False]
    kept = [0, 1, 2, 3, 7]
    recovery = tuple(a if i in kept else None for i, a in enumerate(every.accuracy.recovery))
    assert some.accuracy == dataclasses.replace(every.accuracy, recovery=recovery)
    assert [event[2] for event in recorder.told("recovered")] == list(recovery)
    curve = learning_curve(some)
    assert curve.epochs == [0, 1.5, 1.5, 2.5, 3.5, 4.5, 5.5, 9]
    assert set(curve.accuracy) <= set(learning_curve(every).accuracy)
    assert list(accuracy_figure(some).data[-1].x) == curve.epochs[2:]
    assert same_tensors(*(load_file(RunDirectory.of(config).model) for config in (often, seldom)))


def test_the_saved_network_has_the_recorded_accuracy_in_a_fresh_process(whole, fresh_python):
    config = whole
    path = RunDirectory.of(config).path
    found = fresh_python(f"""
        import torch
        from earlyworm.experiments.image_data import load_images, normalise
        from earlyworm.experiments.networks import load_network
        model, data = load_network({str(path)!r}).eval(), load_images("digits", limit=200)
        with torch.inference_mode():
            images = normalise(data.test_images, data.mean, data.std, torch.float32)
            right = (model(images).argmax(1) == data.test_labels).sum()
        print(int(right) / len(data.test_labels), sum(p.numel() for p in model.parameters()))
    """)
    result = RunDirectory.of(config).read_result()
    assert found.split() == [str(result.accuracy.final), str(result.ticket.parameters)]


def test_the_saved_network_is_in_train_mode_and_random_if_asked(whole):
    path = RunDirectory.of(whole).path
    trained, first, second, other = (load_network(path, seed=seed) for seed in (None, 3, 3, 4))
    assert trained.training
    vectors = [parameters_to_vector(model.parameters()) for model in (trained, first, second, other)]
    assert torch.equal(vectors[1], vectors[2])
    assert not torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[1], vectors[3])
    assert not hasattr(trained.features[0], "_hf_hook")


def test_the_global_generator_of_random_numbers_is_left_alone(whole, tmp_path):
    state = torch.random.get_rng_state()
    build_network(whole, classes=10, shape=(1, 8, 8))
    load_network(RunDirectory.of(whole).path)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_same_command_reuses_the_result(whole, untrained):
    config, recorder = whole, Recorder()
    before = tree(config.output)
    result = run(config, recorder)
    assert result == RunDirectory.of(config).read_result()
    assert tree(config.output) == before
    assert [kind for kind, *_ in recorder.events] == ["note"]
    assert "--overwrite" in recorder.told("note")[0][0]


def test_overwrite_starts_afresh(whole, tmp_path, stages_trained):
    config = copied(whole, tmp_path)
    directory = RunDirectory.of(config)
    directory.report.write_text("old")
    (directory.path / "mine.txt").write_text("mine")
    recorder = Recorder()
    run(dataclasses.replace(config, overwrite=True), recorder)
    assert stages_trained == ["search"] * 3 + ["retrain"] * 3
    assert recorder.told("stage") == [("search", 3, 0), ("retrain", 2.5, 0)]
    assert outcome(config) == outcome(whole)
    assert not directory.report.exists()
    assert (directory.path / "mine.txt").read_text() == "mine"


def test_another_seed_is_another_run(whole, tmp_path):
    config = small(tmp_path, seed=1, epochs=3, search_epochs=2)
    run(config)
    assert RunDirectory.of(config).path.name != RunDirectory.of(whole).path.name
    assert not torch.equal(
        load_file(RunDirectory.of(config).model)["classifier.weight"],
        load_file(RunDirectory.of(whole).model)["classifier.weight"],
    )


def test_held_out_images_are_never_trained_on(whole, tmp_path, monkeypatch):
    def poisoned(config):
        data = load_data(config)
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, data.test_images.shape, generator=generator, dtype=torch.uint8)
        return dataclasses.replace(data, test_images=images, test_labels=9 - data.test_labels)

    monkeypatch.setattr(earlyworm.experiments.run, "load_data", poisoned)
    config = elsewhere(whole, tmp_path)
    result = run(config)
    assert result.accuracy.final != RunDirectory.of(whole).read_result().accuracy.final
    assert outcome(config)[1] == outcome(whole)[1]


# What the options do.


def test_checks_once_an_epoch(tmp_path):
    result = run(small(tmp_path, check_every=1.0, epsilon=0.2))
    assert [check.epoch for check in result.search.history] == list(range(len(result.search.history)))


@pytest.mark.parametrize("retrain_from", ["emergence", "rewind", "reinitialise"])
def test_what_retraining_starts_from(retrain_from, whole, tmp_path, first_weights, monkeypatch):
    config = elsewhere(whole, tmp_path, retrain_from=retrain_from)
    searched = {}
    real = earlyworm.experiments.run.find_ticket

    def recorded(bench, dense, *rest):
        found = real(bench, dense, *rest)
        searched.update(dense=dense)
        return found

    monkeypatch.setattr(earlyworm.experiments.run, "find_ticket", recorded)
    result = run(config)
    ticket = Ticket.load(RunDirectory.of(config).ticket)
    initial, _ = build_network(config, classes=10, shape=(1, 8, 8))
    cut = {"emergence": compact(searched["dense"], ticket), "rewind": compact(initial, ticket)}
    for name, network in cut.items():
        assert same_tensors(first_weights[0], network.state_dict()) == (name == retrain_from)
    if retrain_from == "reinitialise":  # from a distribution like that of the initial weights
        key = "features.4.weight"
        assert float(first_weights[0][key].std()) == pytest.approx(float(initial.state_dict()[key].std()), rel=0.2)
        assert first_weights[0]["features.1.running_mean"].abs().max() == 0
    # The ticket, and how good it was as it was cut out, do not depend on what follows.
    reference = RunDirectory.of(whole).read_result()
    assert result.search.history == reference.search.history
    assert result.accuracy.pruned == reference.accuracy.pruned


@pytest.mark.parametrize("retrain_from", ["rewind", "reinitialise"])
@pytest.mark.parametrize("event", [6, 7])  # before and after there is a checkpoint of retraining
def test_retraining_from_other_weights_is_resumed(event, retrain_from, whole, tmp_path):
    configs = [elsewhere(whole, tmp_path / name, retrain_from=retrain_from) for name in ("whole", "again")]
    run(configs[0])
    run_interrupted(configs[1], event)
    assert outcome(configs[1]) == outcome(configs[0])


def test_epochs_of_retraining_may_be_given(tmp_path):
    result = run(small(tmp_path, retrain_epochs=1, search_epochs=20))
    assert len(result.accuracy.recovery) == 1
    assert result.total.dense_train_flops == result.search.train_flops // 18 * 30


def test_no_retraining_at_all(tmp_path):
    config = small(tmp_path, retrain_epochs=0)
    result = run(config)
    assert result.accuracy.recovery == ()
    assert result.accuracy.final == result.accuracy.pruned
    assert result.total.retrain_flops == 0
    assert held_out_accuracy(config) == result.accuracy.final


def test_a_ticket_that_does_not_emerge(tmp_path, untrained_after):
    config = small(tmp_path, epsilon=0.0, search_epochs=2)
    directory = RunDirectory.of(config)
    result = run(config)
    assert (result.search.emerged, result.search.forced, result.search.epoch) == (False, False, None)
    assert result.ticket is None
    assert (result.accuracy.pruned, result.accuracy.recovery, result.accuracy.final) == (None, (), None)
    assert result.accuracy.before == result.search.history[-1].accuracy
    assert result.total.train_flops == result.total.dense_train_flops == result.search.train_flops
    assert len(result.search.history) == 5
    assert not directory.ticket.exists()
    assert not directory.model.exists()
    with pytest.raises(RunError, match="drew no ticket"):
        load_network(directory.path)
    before = tree(tmp_path)
    assert run(config) == result
    assert tree(tmp_path) == before

    # The same with force goes on without searching again.
    forced = dataclasses.replace(config, force_draw=True)
    untrained_after("search")
    drawn = run(forced)
    assert (drawn.search.emerged, drawn.search.forced, drawn.search.epoch) == (False, True, None)
    assert drawn.search.history == result.search.history
    assert drawn.ticket is not None
    assert len(drawn.accuracy.recovery) == 2
    assert not Ticket.load(directory.ticket).emerged
    assert "drawn without having emerged" in Ticket.load(directory.ticket).describe()
    assert held_out_accuracy(forced) == drawn.accuracy.final
    assert run(config) == drawn  # and there it stays

    # Forced at once, it is the same.
    at_once = dataclasses.replace(forced, output=str(tmp_path / "at once"))
    untrained_after(None)
    run(at_once)
    assert outcome(at_once) == outcome(forced)


@pytest.fixture
def untrained_after(monkeypatch):
    """Makes training in a stage an error."""
    real, forbidden = earlyworm.experiments.bench.train_steps, [None]

    def train_steps(*args, **options):
        assert options["stage"] != forbidden[0]
        return real(*args, **options)

    monkeypatch.setattr(earlyworm.experiments.bench, "train_steps", train_steps)
    return lambda stage: forbidden.__setitem__(0, stage)


def test_a_ticket_that_emerges_is_not_forced(whole, tmp_path):
    config = elsewhere(whole, tmp_path, force_draw=True)
    assert not run(config).search.forced
    assert outcome(config) == outcome(whole)


def test_widths_are_rounded_up(tmp_path):
    config = small(tmp_path, width=0.25, round_to=8, retrain_epochs=1)
    result = run(config)
    network = load_network(RunDirectory.of(config).path)
    widths = [module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert all(width % 8 == 0 for width in widths)
    assert result.ticket.units // 2 < result.ticket.units_kept < result.ticket.units
    assert sum(kept for kept, _ in result.layers.values()) == result.ticket.units_kept == sum(widths)
    assert held_out_accuracy(config) == result.accuracy.final


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "early-bird"}, {"method": "constant"}, {"method": "greedy"}, {"static": "window"},
        {"sparsity_penalty": 1e-3}, {"chi": 1.0}, {"score": "filter-l1"}, {"model": "resnet18"}, {"min_units": 3},
    ],
)  # fmt: skip
def test_every_option_from_beginning_to_end(changes, tmp_path):
    config = small(tmp_path, epsilon=0.3, epochs=2, search_epochs=1, **changes)
    result = run_interrupted(config, 3)
    assert result.search.emerged
    assert held_out_accuracy(config) == result.accuracy.final

    history = result.search.history
    chis, means = [check.chi for check in history], [check.distance_mean for check in history]
    match config.method, config.effective_chi:
        case "early-bird", _:
            assert set(chis) == {1}
            assert result.search.triggered_epoch is None
        case "constant", chi:
            assert set(chis) == {chi} == {0.1}
        case "greedy", _:
            assert chis == [1.0, *means[1:]]
        case "worm", chi:
            below = [i for i, mean in enumerate(means) if mean is not None and mean < 0.35]
            assert chis == [chi if below and i >= below[0] else 1 for i in range(len(history))]
            assert result.search.triggered_epoch == (history[below[0]].epoch if below and chi < 1 else None)
    for check in history:
        assert (check.truncated > 0) == (check.chi < 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16", "accumulation": 2, "augment": "crop-flip"},
        {"optimizer": "adamw", "schedule": "cosine", "lr": 0.005, "seed": 3},
        {"coupling": "independent", "model": "resnet20"},
        {"sparsity_penalty": 1e-3, "static": "window", "method": "greedy", "window": 3},
    ],
)
def test_other_runs_are_resumed_bit_for_bit_too(changes, tmp_path):
    configs = [
        small(tmp_path / name, epsilon=0.3, epochs=3, search_epochs=2, **{"window": 2, **changes}) for name in "ab"
    ]
    recorder = Recorder()
    result = run(configs[0], recorder)
    assert result.search.emerged
    assert held_out_accuracy(configs[0]) == result.accuracy.final
    checks, recovered = len(recorder.told("check")), len(recorder.told("recovered"))
    assert min(checks, recovered) >= 2
    # At the last check, before it is saved; and at the last epoch of retraining.
    run_interrupted(configs[1], checks, 1 + 1 + 1 + recovered - 1)
    assert outcome(configs[1]) == outcome(configs[0])


def test_both_stages_compute_in_bf16(tmp_path, monkeypatch):
    dtypes, real = {}, earlyworm.experiments.bench.train_steps

    def watched(model, *args, **options):
        convolution = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        seen = dtypes.setdefault(options["stage"], set())
        handle = convolution.register_forward_hook(lambda *called: seen.add(called[2].dtype))
        loss = real(model, *args, **options)
        handle.remove()
        return loss

    monkeypatch.setattr(earlyworm.experiments.bench, "train_steps", watched)
    run(small(tmp_path, precision="bf16", epochs=2, search_epochs=1, epsilon=1.0))
    assert dtypes == {"search": {torch.bfloat16}, "retrain": {torch.bfloat16}}


def test_a_chi_of_one_is_early_bird(tmp_path):
    histories = [run(small(tmp_path, **changes)).search.history for changes in ({"chi": 1.0}, {"method": "early-bird"})]
    assert histories[0] == histories[1]


# What cannot be done is found out before anything is written.


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"ratio": 0.99}, ("0.99 removes", "at least 1 of each")),
        ({"batch_size": 1}, ("cannot be trained on 1 examples at once", "raise batch_size")),
        ({"limit": 1}, ("cannot be trained on 1 examples at once", "limit")),
        ({"limit": 9, "batch_size": 16, "accumulation": 2}, ("a batch of 9 examples", "multiple of 2")),
        ({"track": ("tensorbored",)}, ("no tracker 'tensorbored' is installed", "did you mean 'tensorboard'")),
        ({"track": ("wandb",)}, ("no tracker 'wandb' is installed", "tensorboard")),
    ],
)
def test_settings_that_do_not_fit_the_data_or_the_machine(changes, parts, tmp_path, untrained):
    refused(small(tmp_path, **changes), ConfigError, *parts)
    assert tree(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_not_overwritten_by_an_impossible_one(whole, tmp_path, untrained, monkeypatch):
    config = copied(whole, tmp_path)
    before = tree(tmp_path)

    def fail(*_, **__):
        raise DataError("gone")

    monkeypatch.setattr(earlyworm.experiments.run, "load_data", fail)
    refused(dataclasses.replace(config, overwrite=True), DataError, "gone")
    assert tree(tmp_path) == before


# Trackers.


def scalars(config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for path in sorted(RunDirectory.of(config).trackers.rglob("events.*")):
        events = EventAccumulator(str(path))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    return found


def test_tensorboard(whole, tmp_path):
    config = elsewhere(whole, tmp_path, track=("tensorboard",))
    with pytest.raises(KeyboardInterrupt):
        run(config, Recorder(stop=3))
    assert list(scalars(config)["search/chi"]) == [0, 6]  # nothing that was logged is lost
    run(config)
    assert outcome(config) == outcome(whole)
    found, result = scalars(config), RunDirectory.of(config).read_result()
    assert [check.accuracy is not None for check in result.search.history] == [True, False, True, True]
    assert found["search/accuracy"] == pytest.approx(
        {6 * i: result.search.history[i].accuracy for i in (0, 2, 3)}  # after whole epochs, and where a ticket is drawn
    )
    assert list(found["retrain/accuracy"]) == [30, 42, 48]
    assert list(found["retrain/accuracy"].values()) == pytest.approx(list(result.accuracy.recovery))
    run(dataclasses.replace(config, overwrite=True, track=()))
    assert not RunDirectory.of(config).trackers.exists()
