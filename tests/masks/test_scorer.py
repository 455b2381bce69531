"""What a search notices about the scores that it takes: whether any has changed, and whether all are finite."""

import pytest
import torch
from torch import nn

import earlyworm as ew
from earlyworm.masks import mask, scorer
from earlyworm.masks.scorer import Scorer
from residual import make_network
from single_weights import WEIGHTS, network
from stepping import UNITS

UNCHANGED = "no score has changed since the last check"


def of_batch_norms(model):
    first = Scorer(model, UNITS, "auto")
    first.take()
    return first


def test_scores_that_stay_are_noticed():
    model = make_network()
    some = of_batch_norms(model)
    for _ in range(2):
        with pytest.raises(ew.SearchError, match=UNCHANGED):
            some.take()
    with torch.no_grad():
        model.head.weight.add_(1)  # is not scored
    with pytest.raises(ew.SearchError, match=UNCHANGED):
        some.take()


@pytest.mark.parametrize("factor", [1 + 2**-23, 1 - 2**-24])
def test_one_score_that_changes_by_the_smallest_step_is_enough(factor):
    model = make_network()
    some = of_batch_norms(model)
    with torch.no_grad():
        model.first_bn.weight[2] = 1.0
        some.take()
        model.first_bn.weight[2] *= factor
    newest = some.take()
    assert float(newest["first"][2]) == factor
    assert torch.equal(some.newest["first"], newest["first"])


def test_scores_that_change_places_have_changed():
    """Their sum has not."""
    model = make_network()
    some = of_batch_norms(model)
    with torch.no_grad():
        model.first_bn.weight.copy_(model.first_bn.weight.flip(0).clone())
    some.take()


def test_of_many_weights_one_matrix_that_is_trained_is_enough():
    model = network()
    some = Scorer(model, WEIGHTS, "auto")
    some.take()
    with pytest.raises(ew.SearchError, match=UNCHANGED):
        some.take()
    with torch.no_grad():
        model.qkv.weight[9] *= 1.001  # one row of the keys
    some.take()
    assert some.newest == {}  # single weights are not copied


def test_another_model_is_noticed():
    """The search looks at a copy that nobody trains."""
    model, trained = make_network(), make_network()
    some = of_batch_norms(model)
    with torch.no_grad():
        trained.first_bn.weight.mul_(2)
    with pytest.raises(ew.SearchError, match=UNCHANGED):
        some.take()


def test_after_a_score_that_is_not_finite_it_is_as_before():
    model = make_network()
    some = of_batch_norms(model)
    before = some.state_dict()
    with torch.no_grad():
        model.first_bn.weight[0] = float("nan")
    with pytest.raises(ew.SearchError, match="the scores of 'first' are not finite"):
        some.take()
    assert all(torch.equal(score, before["scores"][name]) for name, score in some.newest.items())
    assert some.state_dict()["sums"] == before["sums"]


def test_what_is_remembered_is_carried_over():
    model = make_network()
    state = of_batch_norms(model).state_dict()
    resumed = Scorer(model, UNITS, "auto")
    resumed.load_state_dict(state)
    with pytest.raises(ew.SearchError, match=UNCHANGED):
        resumed.take()


def test_all_weights_are_summed_up_once_a_check(monkeypatch):
    summed = []

    def counted(score):
        summed.append(score.numel())
        return float(score.abs().sum())

    monkeypatch.setattr(scorer, "absolute_sum", counted)
    monkeypatch.setattr(mask, "absolute_sum", counted)
    model = network()
    search = ew.TicketSearch(model, units=WEIGHTS)
    assert summed == []
    search.attach(torch.optim.SGD(model.parameters(), lr=0.1)).detach()
    assert summed == [64, 64]


def test_units_without_a_score_are_refused_at_once():
    bare = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    units = ew.find_channels(bare, torch.randn(2, 3))
    with pytest.raises(ew.UnitsError, match="must be one number for each of its 4 units"):
        Scorer(bare, units, lambda tensors, group: torch.ones(3))
