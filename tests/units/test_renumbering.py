"""Cutting units out in two steps, the second by their new places, gives what cutting them out at once gives."""

from dataclasses import replace

import pytest
import torch

import zoo
from earlyworm import Mask, UnitGroup, Units, compact, find_transformer_units
from earlyworm.inputs import call_model, floating_tensors
from earlyworm.search.shrinking import Shrinking
from earlyworm.units.groups import Slice, make_slice
from earlyworm.units.renumbering import removable_kept, units_left
from families import FAMILIES, build
from residual import states_equal

COUPLINGS = [(name, "coupled") for name in zoo.ZOO]
COUPLINGS += [(name, "independent") for name in ("resnet_basic", "densenet", "inception", "mobilenet", "doubled")]


def check_two_steps(model, units, inputs, seed):
    kept, more = (zoo.random_kept(units.groups, seed + i, 0.3) for i in (0, 1))
    wider = {name: mask | more[name] for name, mask in kept.items()}
    left = Shrinking(model, units, wanted=True).after(Mask.from_groups(wider))
    ticket = replace(zoo.ticket_for(model, units, kept), left=left)
    at_once = compact(model, ticket)
    first = compact(model, zoo.ticket_for(model, units, left.kept))
    assert sum(p.numel() for p in first.parameters()) < sum(p.numel() for p in model.parameters())
    twice = compact(first, ticket)
    assert states_equal(at_once, twice)
    assert [m.extra_repr() for m in at_once.modules()] == [m.extra_repr() for m in twice.modules()]
    wanted, found = (list(floating_tensors(call_model(some.eval(), inputs))) for some in (at_once, twice))
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


@pytest.mark.parametrize(("name", "coupling"), COUPLINGS)
def test_channels(name, coupling):
    for seed in (0, 2):
        check_two_steps(zoo.build(name)[0], zoo.units_of(name, coupling), zoo.build(name)[1], seed)


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_and_neurons(name):
    model = build(name, "", 0)
    check_two_steps(model, find_transformer_units(model), FAMILIES[name].inputs(), 0)


def group_of(name, tensor, positions, *more):
    """Units that each have a scale."""
    scale = make_slice(tensor, 0, positions, [*range(len(positions))], "scale", True)
    return UnitGroup(name, len(positions), (scale, *more))


def test_a_layer_that_would_vanish_keeps_a_unit_that_is_left():
    norm = group_of("norm", "norm.weight", [0, 1, 2, 3, 4])
    first, second = group_of("first", "norm.weight", [0, 1, 2]), group_of("second", "norm.weight", [3, 4])
    units = Units((norm,), (first, second))
    kept = {"norm": torch.tensor([False, False, False, True, False])}
    assert {name: mask.tolist() for name, mask in removable_kept(units, kept).items()} == {
        "first": [True, False, False], "second": [True, False],
    }  # fmt: skip
    left = {"norm": torch.tensor([False, True, True, True, False])}
    assert removable_kept(units, kept, left)["first"].tolist() == [False, True, False]


def test_places_in_a_tensor_that_several_groups_share_and_that_has_several_names():
    joined = Slice("joined", 1, torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 1, 1]), "input")
    again = make_slice("alias", 1, [4, 5, 6], [0, 1, 2], "input")
    units = Units(groups := (group_of("a", "x", [0, 1], joined), group_of("b", "y", [0, 1, 2], again)), groups)
    left = {"a": torch.tensor([False, True]), "b": torch.tensor([True, False, True])}
    a, b = units_left(units, left, {"joined": "joined", "alias": "joined"}).groups
    assert (a.size, b.size) == (1, 2)
    assert [(piece.positions.tolist(), piece.units.tolist()) for piece in (*a.slices, *b.slices)] == [
        ([0], [0]), ([0, 1], [0, 0]), ([0, 1], [0, 1]), ([2, 3], [0, 1]),
    ]  # fmt: skip
