import pytest
import torch
from torch import nn

from earlyworm import TicketSearch, UnitGroup, Units, UnitsError, find_channels
from earlyworm.masks.scores import SCORES, choose_score, score_units
from earlyworm.units.groups import make_slice
from residual import make_network


def group(name, size, *slices):
    return UnitGroup(name, size, tuple(slices))


def whole(tensor, size, role, dim=0):
    """A slice in which position i belongs to unit i."""
    return make_slice(tensor, dim, list(range(size)), list(range(size)), role)


def scored(model, groups, score):
    return score_units(model, groups, {"channels": score})


class Layers(nn.Module):
    """One convolution of two filters, its batch norm, and a linear layer, all with literal numbers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, (1, 2), bias=False)
        self.bn = nn.BatchNorm2d(2)
        self.linear = nn.Linear(2, 2)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([[[[3.0, -4.0]]], [[[0.5, 0.0]]]]))
            self.bn.weight.copy_(torch.tensor([-2.0, 0.25]))
            self.linear.weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 2.0]]))


CONV = whole("conv.weight", 2, "filter")
SCALE = whole("bn.weight", 2, "scale")


@pytest.mark.parametrize(
    ("score", "slices", "expected"),
    [
        ("batch-norm", [SCALE], [2.0, 0.25]),
        ("batch-norm", [SCALE, CONV, whole("bn.bias", 2, "shift")], [2.0, 0.25]),  # other roles do not count
        ("filter-l1", [CONV], [7.0, 0.5]),
        ("filter-l2", [CONV], [5.0, 0.5]),
        ("filter-l1", [whole("linear.weight", 2, "filter")], [2.0, 2.0]),
        ("filter-l1", [whole("linear.weight", 2, "filter", dim=1)], [1.0, 3.0]),  # as of a transposed convolution
        ("filter-l2", [whole("linear.weight", 2, "filter", dim=1)], [1.0, 5.0**0.5]),
        # the mean over the members of a coupled group
        ("filter-l1", [CONV, whole("linear.weight", 2, "filter")], [4.5, 1.25]),
        ("filter-l2", [CONV, whole("linear.weight", 2, "filter", dim=1)], [3.0, (0.5 + 5.0**0.5) / 2]),
        # units in another order
        ("batch-norm", [make_slice("bn.weight", 0, [0, 1], [1, 0], "scale")], [0.25, 2.0]),
    ],
)
def test_scores_of_literal_layers(score, slices, expected):
    scores = scored(Layers(), (group("g", 2, *slices),), SCORES[score])
    assert list(scores) == ["g"]
    assert scores["g"].dtype == torch.float32
    torch.testing.assert_close(scores["g"], torch.tensor(expected), rtol=1e-6, atol=0)


def test_coupled_mean_over_batch_norms():
    model = make_network()
    with torch.no_grad():
        model.stem_bn.weight.copy_(torch.tensor([1.0, -2.0, 3.0, 0.0, 5.0, 6.0]))
        model.second_bn.weight.copy_(torch.tensor([1.0, 4.0, -1.0, 0.5, 0.0, -6.0]))
        model.first_bn.weight.copy_(torch.tensor([-0.5, 0.25, 0.0, 1.0]))
    units = find_channels(model, torch.randn(1, 3, 6, 6))
    scores = scored(model, units.groups, SCORES["batch-norm"])
    assert {name: score.tolist() for name, score in scores.items()} == {
        "stem": [1.0, 3.0, 2.0, 0.25, 2.5, 6.0],
        "first": [0.5, 0.25, 0.0, 1.0],
    }


def test_mean_counts_positions_and_not_layers():
    """A unit of several positions (a grouped convolution), and one that is a part of a concatenation only."""
    model = nn.ModuleDict({"a": nn.BatchNorm2d(4), "b": nn.BatchNorm2d(3)})
    with torch.no_grad():
        model["a"].weight.copy_(torch.tensor([1.0, 2.0, 3.0, -6.0]))
        model["b"].weight.copy_(torch.tensor([9.0, 10.0, 99.0]))
    both = group(
        "g",
        2,
        make_slice("a.weight", 0, [0, 1, 2, 3], [0, 1, 0, 1], "scale"),
        make_slice("b.weight", 0, [1], [1], "scale"),
    )
    scores = scored(model, (both,), SCORES["batch-norm"])
    assert scores["g"].tolist() == [2.0, (2.0 + 6.0 + 10.0) / 3]


def test_a_unit_without_a_score_is_an_error():
    some = group("g", 2, make_slice("bn.weight", 0, [1], [1], "scale"))
    with pytest.raises(UnitsError, match=r"some units of 'g' have no scale"):
        scored(Layers(), (some,), SCORES["batch-norm"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_scores_are_float32_whatever_the_model_is(dtype):
    model = Layers().to(dtype)
    for score, slices, expected in [("batch-norm", [SCALE], [2.0, 0.25]), ("filter-l2", [CONV], [5.0, 0.5])]:
        found = scored(model, (group("g", 2, *slices),), SCORES[score])["g"]
        assert found.dtype == torch.float32
        assert found.tolist() == expected


def test_norms_of_low_precision_filters_are_summed_in_float32():
    model = nn.Linear(257, 2).bfloat16()
    nn.init.ones_(model.weight)
    some = group("g", 2, whole("weight", 2, "filter"))
    assert scored(model, (some,), SCORES["filter-l1"])["g"].tolist() == [
        257.0,
        257.0,
    ]  # no bfloat16 number


def test_scores_share_nothing_with_the_model():
    model = Layers()
    scores = scored(model, (group("g", 2, SCALE),), lambda tensors, _: tensors["bn.weight"])
    assert not scores["g"].requires_grad
    with torch.no_grad():
        model.bn.weight.zero_()
    assert scores["g"].tolist() == [-2.0, 0.25]


@pytest.mark.parametrize("wrong", [torch.ones(3), torch.ones(2, 1), torch.tensor(1.0)])
def test_a_score_must_be_one_number_per_unit(wrong):
    with pytest.raises(UnitsError, match=r"the score of 'g' has shape .* each of its 2 units"):
        scored(Layers(), (group("g", 2, SCALE),), lambda *_: wrong)


def test_units_of_another_model():
    with pytest.raises(UnitsError, match=r"no tensor 'bn.weight': these units belong to another model"):
        scored(nn.Linear(2, 2), (group("g", 2, SCALE),), SCORES["batch-norm"])
    units = find_channels(make_network(), torch.randn(1, 3, 6, 6))
    with pytest.raises(UnitsError, match="these units belong to another model"):
        TicketSearch(nn.Sequential(make_network()), units=units)


# ------------------------------------------------------------------------------------------------------ the choice

NORMALISED, BARE = group("normalised", 2, SCALE, CONV), group("bare", 2, whole("linear.weight", 2, "filter"))
SCALE_ONLY = group("scale-only", 2, SCALE)


def units_of(*groups, removable=None, skipped=None):
    return Units(groups, groups if removable is None else removable, skipped or {})


@pytest.mark.parametrize(
    ("groups", "score", "chosen", "judged"),
    [
        ([NORMALISED], "auto", "batch-norm", ["normalised"]),
        ([NORMALISED, BARE], "auto", "batch-norm", ["normalised"]),
        ([BARE, NORMALISED], "auto", "batch-norm", ["normalised"]),
        ([BARE], "auto", "filter-l2", ["bare"]),
        ([NORMALISED, BARE], "filter-l1", "filter-l1", ["normalised", "bare"]),
        ([SCALE_ONLY, BARE, NORMALISED], "filter-l2", "filter-l2", ["bare", "normalised"]),
        ([SCALE_ONLY, BARE, NORMALISED], "batch-norm", "batch-norm", ["scale-only", "normalised"]),
    ],
)
def test_groups_without_the_score_are_skipped(groups, score, chosen, judged):
    units = units_of(*groups, skipped={"before": "its own reason"})
    function, found = choose_score(units, score)
    assert function == {"channels": SCORES[chosen]}
    assert [g.name for g in found.groups] == judged
    assert found.removable is found.groups  # coupled units stay so
    others = [g.name for g in groups if g.name not in judged]
    assert list(found.skipped) == ["before", *others]
    role = "scale" if chosen == "batch-norm" else "filter"
    assert all(found.skipped[name] == f"it has no {role} to score with {chosen!r}" for name in others)
    assert found.skipped["before"] == "its own reason"


def test_all_groups_judged_leaves_the_units_alone():
    units = units_of(NORMALISED, BARE)
    assert choose_score(units, "filter-l2")[1] is units


def test_independent_units_keep_what_is_removable():
    removable = (group("coupled", 2, SCALE, CONV),)
    _, found = choose_score(units_of(SCALE_ONLY, BARE, removable=removable), "batch-norm")
    assert [g.name for g in found.groups] == ["scale-only"]
    assert found.removable == removable


def test_function_as_score_judges_everything():
    def score(tensors, some):
        return torch.arange(some.size)

    units = units_of(SCALE_ONLY, BARE)
    assert choose_score(units, score) == ({"channels": score}, units)


def test_unknown_score():
    with pytest.raises(
        UnitsError, match=r"unknown score 'l3': choose from auto, taylor, batch-norm, filter-l1, filter-l2"
    ):
        choose_score(units_of(BARE), "l3")


@pytest.mark.parametrize(
    ("groups", "score", "role"), [([BARE], "batch-norm", "scale"), ([SCALE_ONLY], "filter-l1", "filter")]
)
def test_no_group_has_the_score(groups, score, role):
    with pytest.raises(UnitsError, match=f"no group of channels has a {role} to score with '{score}'"):
        choose_score(units_of(*groups), score)


def test_search_scores_with_the_choice():
    x = torch.randn(1, 3, 6, 6)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    mixed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(20, 2))  # fmt: skip
    assert list(TicketSearch(plain, x).units.sizes) == ["0"]
    found = TicketSearch(mixed, x).units
    assert found.sizes == {"0": 4}
    assert found.skipped["3"] == "it has no scale to score with 'batch-norm'"
    assert TicketSearch(mixed, x, score="filter-l1").units.sizes == {"0": 4, "3": 5}
    with pytest.raises(UnitsError, match="choose another of"):
        TicketSearch(plain, x, score="batch-norm")
