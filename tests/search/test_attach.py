"""What a search hangs on, and what would silently do nothing."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

from earlyworm import Constant, SearchError, TicketSearch
from residual import Residual, make_network
from stepping import LR, UNITS, plain, search_on


def test_optimizer_without_the_gates():
    model = make_network()
    search = search_on(model, Constant())
    for optimizer in (SGD(model.head.parameters(), lr=LR), SGD(make_network().parameters(), lr=LR)):
        with pytest.raises(SearchError, match=r"'stem_bn.weight' is in none of the optimizers"):
            search.attach(optimizer)
    assert search.history == []
    with search.attach(SGD(model.parameters(), lr=LR)):  # a failed attempt leaves nothing behind
        assert len(search.history) == 1


def test_optimizer_that_lacks_one_gate():
    model = make_network()
    some = [parameter for name, parameter in model.named_parameters() if name != "second_bn.bias"]
    with pytest.raises(SearchError, match=r"'second_bn.bias' is in none of the optimizers"):
        search_on(model, Constant()).attach(SGD(some, lr=LR))
    with search_on(model, None, sparsity_penalty=0.1).attach(SGD(some, lr=LR)):
        pass  # the penalty acts on scales only
    with search_on(model, None).attach(SGD(some, lr=LR)):
        pass  # Early Bird acts on none


@pytest.mark.parametrize(
    "options", [{"truncation": Constant()}, {"truncation": None, "sparsity_penalty": 0.1}, {"truncation": None}]
)
def test_all_gates_frozen(options):
    model = make_network()
    for module in (model.stem_bn, model.first_bn, model.second_bn):
        module.requires_grad_(False)
    with pytest.raises(SearchError, match="all parameters of the units are frozen"):
        search_on(model, **options).attach(SGD(model.parameters(), lr=LR))


def test_scores_that_cannot_change_would_look_like_emergence():
    model = make_network()
    optimizer = SGD(model.parameters(), lr=0)
    search = search_on(model, None)
    with search.attach(optimizer):
        plain(model, optimizer, 0)
        with pytest.raises(SearchError, match="no score has changed since the last check"):
            search.update()


def test_attach_twice():
    model = make_network()
    optimizer = SGD(model.parameters(), lr=LR)
    search = search_on(model, Constant())
    with search.attach(optimizer):
        with pytest.raises(SearchError, match="attached already"):
            search.attach(optimizer)
        plain(model, optimizer, 0)
        assert search.steps == 1  # and it still hangs there, once
    plain(model, optimizer, 1)
    assert search.steps == 1


@pytest.mark.parametrize("wrong", [(), (None,), (make_network(),)])
def test_attach_to_no_optimizer(wrong):
    with pytest.raises(SearchError, match=r"attach (needs|takes)"):
        search_on(make_network(), Constant()).attach(*wrong)


def test_update_without_attach():
    model = make_network()
    optimizer = SGD(model.parameters(), lr=LR)
    search = search_on(model, Constant())
    with pytest.raises(SearchError, match="not attached"):
        search.update()
    with search.attach(optimizer):
        plain(model, optimizer, 0)
    with pytest.raises(SearchError, match="not attached"):
        search.update()


def test_update_without_a_step():
    model = make_network()
    optimizer = SGD(model.parameters(), lr=LR)
    with search_on(model, Constant()).attach(optimizer) as search:
        for i in range(2):
            with pytest.raises(SearchError, match="no step of the attached optimizer since the last check"):
                search.update()
            plain(model, optimizer, i)
            search.update()
    assert len(search.history) == 3


def test_another_optimizer_trains_the_model():
    model = make_network()
    attached, used = SGD(model.parameters(), lr=LR), SGD(model.parameters(), lr=LR)
    with search_on(model, Constant()).attach(attached) as search:
        plain(model, used, 0)
        with pytest.raises(SearchError, match="no step of the attached optimizer"):
            search.update()


def test_truncation_that_had_no_gradient():
    model = make_network()
    optimizer = SGD(model.parameters(), lr=LR)
    with search_on(model, Constant()).attach(optimizer) as search:
        for module in (model.stem_bn, model.first_bn, model.second_bn):
            for parameter in module.parameters():
                parameter.grad = None
        optimizer.step()
        with pytest.raises(SearchError, match="truncation had no gradient to act on"):
            search.update()
        plain(model, optimizer, 0)
        search.update()
        model.zero_grad()
        optimizer.step()
        with pytest.raises(SearchError, match="truncation had no gradient to act on"):  # since that check
            search.update()


def test_replaced_parameters():
    model = make_network()
    optimizer = SGD(model.parameters(), lr=LR)
    with search_on(model, Constant()).attach(optimizer) as search:
        plain(model, optimizer, 0)
        model.first_bn = nn.BatchNorm2d(4)
        with pytest.raises(SearchError, match=r"'first_bn.weight' is in none of the optimizers"):
            search.update()


def test_wrapped_models_are_the_same_model():
    model = make_network()
    compiled = torch.compile(model, backend="eager")  # compiles when it is called, and it is not
    search = TicketSearch(compiled, units=UNITS)
    assert search.model is model
    assert isinstance(search.model, Residual)
