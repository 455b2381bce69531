"""The methods that runs are compared with, against plain restatements of their definitions."""

import copy
import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import earlyworm as ew
import earlyworm.experiments.bench
from earlyworm.costs import count_flops
from earlyworm.errors import ConfigError
from earlyworm.experiments.baselines import extrusion_strength, narrow_mask, penalise_
from earlyworm.experiments.iterative_pruning import kept_after, round_epochs
from earlyworm.experiments.models import REFERENCE, initialise_
from earlyworm.experiments.networks import build_network, load_network
from earlyworm.experiments.run import run
from earlyworm.experiments.run_directory import RunDirectory
from earlyworm.tickets.ticket import Ticket
from runs import Recorder, copied, elsewhere, outcome, run_interrupted, same_tensors, small

METHODS = ("dense", "narrow", "random", "late", "imp", "rst")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One run of every method: settings and result."""
    folder = tmp_path_factory.mktemp("baselines")
    configs = {method: small(folder, method=method) for method in METHODS}
    return {method: (config, run(config)) for method, config in configs.items()}


def saved_ticket(config):
    return Ticket.load(RunDirectory.of(config).ticket)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_spends_the_same_epochs(done, method):
    config, result = done[method]
    steps = config.epochs * (200 // 16)
    assert result.total.dense_train_flops == pytest.approx(steps * 16 * count_of(result), rel=1e-9)
    assert result.search.set_by_method
    assert not result.search.emerged
    assert not result.search.forced
    assert not result.search.censored
    assert len(result.accuracy.losses) == len(result.accuracy.recovery)


def count_of(result):
    """Training FLOPs of the dense network per example."""
    model, _ = build_network(result.config, classes=10, shape=(1, 8, 8))
    return count_flops(model, torch.zeros(1, 1, 8, 8))[1]


def test_dense_keeps_everything_and_is_trained_once(done):
    config, result = done["dense"]
    assert result.ticket.units_kept == result.ticket.units
    assert (result.ticket.parameters, result.ticket.macs) == (result.dense.parameters, result.dense.macs)
    assert (result.search.epoch, len(result.accuracy.recovery)) == (0, 4)
    assert result.total.train_flops == result.total.dense_train_flops
    assert result.accuracy.pruned == result.accuracy.before
    network = load_network(RunDirectory.of(config).path)
    assert sum(parameter.numel() for parameter in network.parameters()) == result.dense.parameters


def test_a_dense_run_is_where_another_run_can_start(done, tmp_path, first_weights):
    config, _ = done["dense"]
    directory = RunDirectory.of(config)
    run(small(tmp_path, method="dense", weights=str(directory.path), classes=(5, 7, 9)))
    before = load_file(directory.model)
    after = {key: tensor for key, tensor in first_weights[0].items() if not key.startswith("classifier")}
    assert first_weights[0]["classifier.weight"].shape[0] == 3
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.items())


def test_random_removes_as_many_units_as_a_search(done):
    config, result = done["random"]
    assert result.ticket.units_kept == result.ticket.units - int(config.ratio * result.ticket.units)
    assert result.search.epoch == 0
    assert result.total.train_flops < result.total.dense_train_flops / 2


def test_random_can_be_drawn_later_and_is_the_same_ticket(done, tmp_path):
    config, _ = done["random"]
    later = dataclasses.replace(config, output=str(tmp_path), draw_epoch=1.5)
    result = run(later)
    assert result.search.epoch == 1.5
    assert [check.epoch for check in result.search.history] == [0, 0.5, 1, 1.5]
    assert saved_ticket(later).mask.bits.equal(saved_ticket(config).mask.bits)
    assert len(result.accuracy.recovery) == 3


def test_late_takes_the_mask_of_the_trained_network(done):
    config, result = done["late"]
    assert (result.search.epoch, len(result.accuracy.recovery)) == (3, 1)
    assert result.search.triggered_epoch is None
    ticket = saved_ticket(config)
    assert ticket.step == 36
    kept, removed = [], []
    for name, mask in ticket.mask.kept.items():
        kept.append(ticket.scores[name][mask])
        removed.append(ticket.scores[name][~mask])
    assert torch.cat(kept).min() >= torch.cat(removed).max()


def test_late_trains_with_two_whole_schedules(tmp_path, monkeypatch):
    seen, real = [], earlyworm.experiments.bench.train_steps

    def recorded(*args, **options):
        seen.append((options["stage"], options["progress"].after(options["first"] + options["steps"])))
        return real(*args, **options)

    monkeypatch.setattr(earlyworm.experiments.bench, "train_steps", recorded)
    run(small(tmp_path, method="late", check_every=1.5))
    assert seen == [("search", 0.5), ("search", 1.0), ("retrain", 1.0)]


@pytest.mark.parametrize("draw_epoch", [0.0, 2.0, 3.5])
def test_the_schedule_ends_with_the_epochs_of_retraining(draw_epoch, tmp_path, monkeypatch):
    seen, real = [], earlyworm.experiments.bench.train_steps

    def recorded(*args, **options):
        seen.append((options["stage"], options["progress"].after(options["first"] + options["steps"])))
        return real(*args, **options)

    monkeypatch.setattr(earlyworm.experiments.bench, "train_steps", recorded)
    run(small(tmp_path, method="random", search_epochs=2, draw_epoch=draw_epoch, retrain_epochs=1, check_every=4.0))
    searched = [("search", pytest.approx(draw_epoch / (draw_epoch + 1)))] if draw_epoch else []
    assert seen == [*searched, ("retrain", pytest.approx(1.0))]


# A uniformly narrower network.


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("fraction", [0.2, 0.45, 0.7])
def test_narrow_has_the_macs_of_the_ticket(name, fraction):
    torch.manual_seed(0)
    model, example = REFERENCE[name](classes=10, channels=3, width=0.25), torch.zeros(1, 3, 32, 32)
    units = ew.find_channels(model, example)
    ticket = ew.ticket_of(model, units, ew.random_mask(units, fraction, seed=1), method="", pruning_ratio=fraction)
    macs = count_flops(ew.compact(model, ticket), example)[0] // 2
    mask = narrow_mask(model, units, macs, example)
    narrow = ew.compact(model, ew.ticket_of(model, units, mask, method="narrow", pruning_ratio=0.0))
    assert 0.98 * macs <= count_flops(narrow, example)[0] // 2 <= macs
    widths = {name: int(kept.sum()) for name, kept in mask.kept.items()}
    share = max((widths[name] - 1.5) / size for name, size in units.sizes.items())
    assert all(widths[name] + 1.5 >= share * size for name, size in units.sizes.items())  # as uniform as whole units go


@pytest.mark.parametrize("coupling", ["coupled", "independent"])
@pytest.mark.parametrize("fraction", [0.3, 0.6])
def test_narrow_has_widths_that_are_multiples_within_the_macs(coupling, fraction):
    torch.manual_seed(0)
    model, example = REFERENCE["resnet20"](classes=10, channels=3, width=1.0), torch.zeros(1, 3, 32, 32)
    units = ew.find_channels(model, example, coupling=coupling)
    macs = int(fraction * count_flops(model, example)[0] / 2)
    mask = narrow_mask(model, units, macs, example, round_to=4)
    ticket = ew.ticket_of(model, units, mask, method="narrow", pruning_ratio=0.0)
    assert 0.9 * macs <= count_flops(ew.compact(model, ticket), example)[0] // 2 <= macs
    assert ew.round_ticket(ticket, 4).mask.bits.equal(mask.bits)  # nothing is left to be rounded
    assert all(int(kept.sum()) % 4 == 0 for kept in mask.kept.values()) or coupling == "independent"
    with pytest.raises(ConfigError, match="units in every layer, rounded up to multiples of 4, have more"):
        narrow_mask(model, units, 10**6, example, round_to=4)


def test_narrow_cannot_come_down_to_nothing():
    torch.manual_seed(0)
    model, example = REFERENCE["vgg11_bn"](classes=10, channels=1, width=0.125), torch.zeros(1, 1, 8, 8)
    units = ew.find_channels(model, example)
    with pytest.raises(ConfigError, match="macs is 10, but 1 units in every layer have more"):
        narrow_mask(model, units, 10, example)
    assert narrow_mask(model, units, 10**12, example).units_kept == sum(units.sizes.values())


def test_narrow_starts_from_weights_of_its_own(done, tmp_path, first_weights):
    config, result = done["narrow"]
    assert all(kept == round(units / 2) for kept, units in result.layers.values())
    run(dataclasses.replace(config, output=str(tmp_path)))
    initial, _ = build_network(config, classes=10, shape=(1, 8, 8))
    cut = ew.compact(initial, saved_ticket(config)).state_dict()
    weight = "features.4.weight"
    assert cut[weight].shape == first_weights[0][weight].shape
    assert not torch.equal(cut[weight], first_weights[0][weight])
    fan_out = cut[weight].shape[0] * 9
    assert float(first_weights[0][weight].std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


@pytest.mark.parametrize("start", ["rewind", "reinitialise"])
def test_narrow_has_no_other_weights_to_start_from(start, done, tmp_path, first_weights):
    config, _ = done["narrow"]
    for begin in ("emergence", start):
        run(dataclasses.replace(config, output=str(tmp_path), retrain_from=begin))
    assert same_tensors(*first_weights)


@pytest.mark.parametrize("name", REFERENCE)
def test_weights_that_are_drawn_anew_are_those_of_a_new_network(name):
    torch.manual_seed(0)
    model = REFERENCE[name](classes=10, channels=1, width=0.125)
    expected = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        nn.init.constant_(parameter, 3.0)
    torch.manual_seed(0)
    drawn = initialise_(model).state_dict()
    for key, tensor in drawn.items():
        assert not (tensor == 3).all(), key
        assert float(tensor.float().std(correction=0)) == pytest.approx(
            float(expected[key].float().std(correction=0)), rel=0.5, abs=0.02
        )


# Random Sparse Network Transformation (arXiv 2203.04248).


@pytest.mark.parametrize(("progress", "strength"), [(0, 0), (0.2, 0.5), (0.4, 1), (0.8, 2), (0.9, 2), (1, 2)])
def test_the_penalty_grows_to_its_bound_and_stays(progress, strength):
    assert extrusion_strength(progress, 2.0) == pytest.approx(strength)


def test_the_penalty_is_the_gradient_of_half_the_squares_of_what_is_removed():
    torch.manual_seed(0)
    weight, other = torch.randn(4, 3, requires_grad=True), torch.randn(2, requires_grad=True)
    mask = torch.tensor([True, False, True, False])[:, None]
    (weight.sum() ** 2).backward()
    plain = weight.grad.clone()
    restated = torch.autograd.grad(0.3 * (weight * ~mask).square().sum() / 2, weight)[0]
    penalise_({"w": weight, "o": other}, {"w": mask, "o": torch.tensor([False, False])}, 0.3)
    assert torch.allclose(weight.grad, plain + restated)
    assert torch.equal(weight.grad[mask.flatten()], plain[mask.flatten()])
    assert other.grad is None


def test_rst_empties_what_it_cuts_and_removes_what_random_removes(done, tmp_path):
    config, result = done["rst"]
    assert saved_ticket(config).mask.bits.equal(saved_ticket(done["random"][0]).mask.bits)
    assert result.search.epoch == 3
    strong = run(dataclasses.replace(config, output=str(tmp_path), extrusion=40.0))
    # What is cut out counts for nothing any more.
    assert strong.accuracy.pruned == pytest.approx(strong.accuracy.before, abs=0.02)


# Iterative magnitude pruning (arXiv 1803.03635).


def test_rounds_remove_the_same_fraction_each():
    assert kept_after(3, 0.488, 1000) == [800, 640, 512]
    assert kept_after(1, 0.3, 10) == [7]
    assert kept_after(2, 0.0, 10) == [10, 10]


@pytest.mark.parametrize(("rounds", "rewind"), [(1, 0), (3, 0), (3, 1.5), (5, 2)])
def test_all_rounds_together_take_the_whole_budget(rounds, rewind):
    length = round_epochs(24, rounds, rewind)
    assert length + rounds * (length - rewind) == pytest.approx(24)


def restated_rounds(config, weights_after, initial):
    """The masks of iterative pruning, from the trained weights of every round, by sorting."""
    names = [name for name, tensor in initial.items() if tensor.dim() > 1]
    kept = {name: torch.ones_like(initial[name], dtype=torch.bool) for name in names}
    total = sum(mask.numel() for mask in kept.values())
    counts = []
    for number, weights in enumerate(weights_after, 1):
        goal = total - int(config.ratio * total)
        if number < config.rounds:
            goal = round(total * (1 - config.ratio) ** (number / config.rounds))
        alive = torch.cat([weights[name][kept[name]].abs() for name in names])
        threshold = alive.sort(descending=True).values[goal - 1]
        for name in names:
            kept[name] &= weights[name].abs() >= threshold
        counts.append(sum(int(mask.sum()) for mask in kept.values()))
    return kept, counts


@pytest.mark.parametrize("rewind_epoch", [0.0, 0.5])
def test_surviving_weights_of_every_round_and_the_rewind(tmp_path, monkeypatch, first_weights, rewind_epoch):
    config = small(tmp_path, method="imp", epochs=6, rewind_epoch=rewind_epoch)
    ends, at_rewind, real = {}, {}, earlyworm.experiments.bench.train_steps

    def recorded(model, *args, **options):
        loss = real(model, *args, **options)
        state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        ends[options["stage"]] = state
        if options["stage"] == "round 1" and options["first"] + options["steps"] == round(rewind_epoch * 12):
            at_rewind.update(state)
        return loss

    monkeypatch.setattr(earlyworm.experiments.bench, "train_steps", recorded)
    result = run(config)
    initial = build_network(config, classes=10, shape=(1, 8, 8))[0].state_dict()
    rounds = [ends[f"round {number}"] for number in (1, 2, 3)]
    kept, counts = restated_rounds(config, rounds, initial)
    assert list(result.search.rounds) == counts
    assert result.ticket.units_kept == counts[-1]
    masks = saved_ticket(config).mask.kept
    for name, mask in kept.items():
        assert torch.equal(masks[name].view(mask.shape), mask)
    start = at_rewind or initial
    for key, tensor in first_weights[0].items():
        expected = start[key] * kept[key] if key in kept else start[key]
        assert torch.equal(tensor, expected), key
    final = load_file(RunDirectory.of(config).model)
    for name, mask in kept.items():
        assert not final[name][~mask].any()
    assert (rounds[2]["features.4.weight"] != start["features.4.weight"]).any()


# Budgets in FLOPs.


def test_methods_can_spend_the_same_flops_instead(done, tmp_path):
    dense = done["dense"][1]
    for method in ("random", "late"):
        result = run(small(tmp_path, method=method, match="flops", epochs=4, search_epochs=2))
        assert 0.98 <= result.total.train_flops / dense.total.train_flops <= 1
        assert len(result.accuracy.recovery) > (4 if method == "random" else 2)


# Interrupted and resumed.


@pytest.mark.parametrize("method", ["narrow", "late", "imp", "rst"])
def test_an_interrupted_baseline_goes_on_to_the_same_result(done, tmp_path, method):
    config, _ = done[method]
    expected = outcome(config)
    recorder = Recorder()
    run(elsewhere(config, tmp_path / "counted"), recorder)
    for stop in range(1, len(recorder.events), 4):
        again = elsewhere(config, tmp_path / str(stop))
        run_interrupted(again, stop)
        assert outcome(again) == expected


def test_a_finished_baseline_is_not_trained_again(done, tmp_path, untrained):
    config, result = done["imp"]
    assert run(copied(config, tmp_path)) == result
    network, saved = load_network(RunDirectory.of(config).path), load_file(RunDirectory.of(config).model)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in network.state_dict().items())
