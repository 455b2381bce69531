"""Static units that fade: how fast, which ones, and nothing else."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.optim import SGD

import earlyworm as ew
from earlyworm.search.truncation import fading_factor
from earlyworm.units.groups import gate_masks
from residual import make_network, states_equal
from stepping import DECAYING, LR, OPTIMIZERS, PAIRS, UNITS, factors, over, plain, search_on


@dataclass(frozen=True)
class AtOnce:
    """Fades from the first mask on."""

    half_life: float | None
    chi: float = 0.0
    static: str = "latest"

    def chi_after(self, distances):
        return self.chi


def parameters_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# ------------------------------------------------------------------------------------------------------ the schedule


@pytest.mark.parametrize(
    ("schedule", "distances", "expected"),
    [
        (ew.Fade(), [1.0, 0.3, 0.29, 0.5, 0.0], [1.0, 1.0, 0.0, 0.0, 0.0]),  # strictly below, and it stays on
        (ew.Fade(trigger=0.8, chi=0.003), [1.0, 0.79, 0.78], [1.0, 1.0, 0.003]),
        (ew.Fade(trigger=0.0), [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
        (ew.Fade(), [1.0, 0.17, 0.21, 0.22, 0.07], [1.0, 1.0, 1.0, 1.0, 0.0]),  # not while they move faster and faster
        (ew.Fade(), [1.0, 0.05, 0.05], [1.0, 1.0, 0.0]),
    ],
)
def test_distances_to_chi(schedule, distances, expected):
    assert [schedule.chi_after(distances[: i + 1]) for i in range(len(distances))] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trigger": 1.5}, r"trigger is 1.5, but must be in \[0, 1\]"),
        ({"chi": 1.0}, r"chi is 1.0, but must be in \[0, 1\)"),
        ({"chi": math.nan}, r"chi is nan, but must be in \[0, 1\)"),
        ({"half_life": 0.0}, "half_life is 0.0, but must be a number of epochs, above 0"),
        ({"half_life": math.inf}, "half_life is inf, but must be a number of epochs, above 0"),
        ({"static": "ever"}, "static is 'ever', but must be 'latest' or 'window'"),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(ew.ConfigError, match=message):
        ew.Fade(**options)


@pytest.mark.parametrize(
    ("half_life", "dtype", "factor", "every"),
    [
        (1, torch.float32, 0.5, 1),
        (2, torch.float64, math.sqrt(0.5), 1),
        (138.3, torch.float32, 0.995, 1),
        (1e5, torch.float32, 1 - 6.93e-6, 1),
        (10, torch.bfloat16, 0.933, 1),
        (100, torch.bfloat16, 0.9794, 3),
        (1000, torch.float16, 0.9979, 3),
    ],
)
def test_factor(half_life, dtype, factor, every):
    found = fading_factor(half_life, dtype)
    assert found == (pytest.approx(factor, abs=1e-4), every)
    assert found[0] ** (half_life / every) == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("half_life", [3, 50, 400, 3000])
def test_every_number_shrinks_to_a_half_in_any_precision(dtype, half_life):
    start = torch.linspace(1, 2, 129)
    values, (factor, every) = start.to(dtype), fading_factor(half_life, dtype)
    for _ in range(half_life // every):
        smaller = values * torch.tensor(factor, dtype=dtype)
        assert (smaller < values).all()
        values = smaller
    if dtype == torch.float32:
        assert torch.allclose(values, start / 2, rtol=1e-3)
    else:
        assert ((values.float() / start).log2() + 1).abs().max() < 0.45


# ---------------------------------------------------------------------------------------------------------- every step


@over([pair for pair in PAIRS if pair[1] not in DECAYING])
def test_static_units_shrink_once_a_step_and_others_not_at_all(way, optimizer):
    model, reference = make_network(), make_network()
    ours, theirs = OPTIMIZERS[optimizer](model), OPTIMIZERS[optimizer](reference)
    start = parameters_of(model)
    search = search_on(model, AtOnce(half_life=0.25), steps_per_epoch=4)  # a half a step
    static = {name: factor == 0 for name, factor in factors(model, search.attach(ours).mask, 0.0).items()}
    way(model, ours, 0)
    way(reference, theirs, 0)
    others = parameters_of(reference)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter[static[name]], start[name][static[name]] / 2), name
        assert torch.equal(parameter[~static[name]], others[name][~static[name]]), name
    for i in (1, 2):
        way(model, ours, i)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter[static[name]], start[name][static[name]] / 8), name
    assert sum(int(chosen.sum()) for chosen in static.values()) > 0


def test_a_step_that_fails_fades_nothing():
    model = make_network()
    optimizer = SGD(model.parameters(), lr=LR)
    with search_on(model, AtOnce(half_life=1), steps_per_epoch=1).attach(optimizer):
        start = parameters_of(model)

        def closure():
            raise RuntimeError("out of memory")

        with pytest.raises(RuntimeError, match="out of memory"):
            optimizer.step(closure)
        assert all(torch.equal(now, start[name]) for name, now in parameters_of(model).items())
        plain(model, optimizer, 0)  # and the next one is a step again
        assert any(not torch.equal(now, start[name]) for name, now in parameters_of(model).items())


@pytest.mark.parametrize("steps", [4, 12])
def test_the_half_life_is_the_same_however_many_steps_an_epoch_has(steps):
    model = make_network()
    optimizer = SGD(model.parameters(), lr=0.0)
    with search_on(model, AtOnce(half_life=0.5), steps_per_epoch=steps).attach(optimizer) as search:
        start = parameters_of(model)
        static = {name: factor == 0 for name, factor in factors(model, search.mask, 0.0).items()}
        for i in range(steps):
            plain(model, optimizer, i)
        for name, now in parameters_of(model).items():
            expected = torch.where(static[name], start[name] / 4, start[name])
            assert torch.allclose(now, expected, rtol=1e-5), name


def test_a_unit_that_is_static_no_more_is_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))
    norm, x = model[1], torch.randn(8, 3, 6, 6)
    optimizer = SGD(model.parameters(), lr=0.0)

    def step():
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()

    search = ew.TicketSearch(
        model, x, truncation=AtOnce(half_life=1), steps_per_epoch=1, emergence=ew.Emergence(window=9)
    )
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    with search.attach(optimizer):
        step()
        assert norm.weight.tolist() == [0.5, 1.0, 3.0, 4.0]
        with torch.no_grad():
            norm.weight[1] = 8.0  # it has become important, in the place of the third
        search.update()
        step()
        assert norm.weight.tolist() == [0.25, 8.0, 1.5, 4.0]
    step()
    assert norm.weight.tolist() == [0.25, 8.0, 1.5, 4.0]  # detached


@pytest.mark.parametrize("frozen", [False, True])
def test_filters_without_batch_norm_and_single_weights(frozen):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(8, 3, 6, 6)
    model[0].bias.requires_grad_(not frozen)
    optimizer = SGD(model.parameters(), lr=0.0, momentum=0.9)
    for units in (ew.find_channels(model, x), ew.find_all_weights(model)):
        start = parameters_of(model)
        search = ew.TicketSearch(model, units=units, truncation=AtOnce(half_life=2), steps_per_epoch=1)
        with search.attach(optimizer):
            for _ in range(4):
                optimizer.zero_grad()
                model(x).square().sum().backward()
                optimizer.step()
            masked = search.draw(force=True)
        kept = gate_masks(model, units.groups, masked.mask.kept)
        for name, parameter in model.named_parameters():
            fades = ~kept[name] & parameter.requires_grad if name in kept else torch.zeros(1, dtype=torch.bool)
            assert torch.allclose(parameter, torch.where(fades, start[name] / 4, start[name])), name


@pytest.mark.parametrize("stop", range(9))
def test_interrupted_and_resumed_equals_uninterrupted(stop):
    def begin(seed):
        model = make_network(seed).to(torch.bfloat16)  # shrinks every few steps, by a count that must go on
        optimizer = SGD(model.parameters(), lr=LR, momentum=0.9)
        options = {"emergence": ew.Emergence(window=2, epsilon=0.0), "steps_per_epoch": 40}
        return model, optimizer, ew.TicketSearch(model, units=UNITS, truncation=AtOnce(None), **options)

    def go(model, optimizer, search, first, last):
        for i in range(first, last):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                plain(model, optimizer, i)
            if i % 3 == 2:
                search.update()

    model, optimizer, search = begin(0)
    with search.attach(optimizer):
        go(model, optimizer, search, 0, 8)
    assert search.history[1].chi == 0 < search.history[1].truncated
    part, its_optimizer, its_search = begin(0)
    with its_search.attach(its_optimizer):
        go(part, its_optimizer, its_search, 0, stop)
    again, other_optimizer, other_search = begin(1)
    again.load_state_dict(part.state_dict())
    other_optimizer.load_state_dict(its_optimizer.state_dict())
    other_search.load_state_dict(its_search.state_dict())
    with other_search.attach(other_optimizer):
        go(again, other_optimizer, other_search, stop, 8)
    assert states_equal(again, model)
    assert other_search.history == search.history


def test_flops_of_a_step():
    model = make_network()
    optimizer = SGD(model.parameters(), lr=LR)
    search = ew.TicketSearch(model, units=UNITS, truncation=AtOnce(half_life=1), steps_per_epoch=1)
    with search.attach(optimizer):
        before = search.overhead.flops
        plain(model, optimizer, 0)
    assert search.overhead.flops - before == 32 + 32  # as many gates as gradients


@pytest.mark.parametrize(("every", "window"), [(6, 3), (3, 5), (1, 13), (2, 2)])
def test_units_fade_within_the_window_unless_told_otherwise(every, window):
    """Whatever the interval between checks is: over a window they halve twelve times, from the second check on."""
    model = make_network()
    optimizer = SGD(model.parameters(), lr=LR)
    search = ew.TicketSearch(
        model, units=UNITS, truncation=AtOnce(half_life=None), emergence=ew.Emergence(window, epsilon=0.0)
    )
    with search.attach(optimizer):
        for i in range(every):
            plain(model, optimizer, i)
        search.update()
        before = parameters_of(model)
        static = {name: factor == 0 for name, factor in factors(model, search.mask, 0.0).items()}
        plain(model, optimizer, every)
        halvings = 12 / (every * (window - 1))
        for name, parameter in model.named_parameters():
            expected = before[name][static[name]] * 0.5**halvings
            torch.testing.assert_close(parameter[static[name]], expected, msg=name)


# ----------------------------------------------------------------------------------------------------------- bad input


def test_epochs_must_have_steps():
    model = make_network()
    with pytest.raises(ew.ConfigError, match=r"has a half-life in epochs, but steps_per_epoch is None: give .*loader"):
        ew.TicketSearch(model, units=UNITS, truncation=ew.Fade(half_life=0.5))
    with pytest.raises(ew.ConfigError, match="steps_per_epoch is 0, but must be at least 1"):
        ew.TicketSearch(model, units=UNITS, truncation=ew.Fade(), steps_per_epoch=0)
