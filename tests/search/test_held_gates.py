"""Whose gradients a search acts on: several optimizers, frozen, thawed, tied and missing parameters."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD

from earlyworm import Constant, SearchError, TicketSearch, find_channels
from residual import COUPLED, loss_on, make_batch, make_network, states_equal
from stepping import LR, assert_multiplied, factors, gradients, groups_of, plain, search_on


def test_two_optimizers():
    model, reference = make_network(), make_network()
    ours, theirs = ([SGD(group["params"], lr=LR) for group in groups_of(m)] for m in (model, reference))
    search = search_on(model, Constant(chi=0.25))
    with search.attach(*ours):
        expected = factors(model, search.mask, 0.25)
        for m, optimizers in ((model, ours), (reference, theirs)):
            loss_on(m, make_batch(0)).backward()
            for optimizer in optimizers:
                optimizer.step()
        assert_multiplied(model, reference, expected)
        assert search.steps == 1  # they step in turn
        for _ in range(2):
            for optimizer in ours:
                optimizer.step()
        assert search.steps == 3


def test_two_optimizers_that_hold_the_same_parameters_and_take_turns():
    model, reference = make_network(), make_network()
    ours = [SGD(model.parameters(), lr=LR), SGD(model.parameters(), lr=LR)]
    search = search_on(model, Constant(chi=0.25))
    with search.attach(*ours):
        expected = factors(model, search.mask, 0.25)
        for optimizer in ours:
            reference.load_state_dict(model.state_dict())
            for m in (model, reference):
                m.zero_grad()
                loss_on(m, make_batch(0)).backward()
            optimizer.step()
            assert_multiplied(model, reference, expected)


class Wrapping(torch.optim.Optimizer):
    """Has another optimizer do its work, as SAM does."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, {})
        self.inner, self.param_groups = inner, inner.param_groups

    def step(self, closure=None):
        return self.inner.step()


@pytest.mark.parametrize("both", [True, False])
def test_an_optimizer_inside_of_another_acts_once(both):
    model, reference = make_network(), make_network()
    outer = Wrapping(SGD(model.parameters(), lr=LR))
    search = search_on(model, Constant(chi=0.25))
    with search.attach(outer, *([outer.inner] if both else [])):
        expected = factors(model, search.mask, 0.25)
        for m, optimizer in ((model, outer), (reference, SGD(reference.parameters(), lr=LR))):
            loss_on(m, make_batch(0)).backward()
            optimizer.step()
        assert_multiplied(model, reference, expected)
        assert search.steps == 1
        if both:
            before = {name: gradient.clone() for name, gradient in gradients(model).items()}
            outer.inner.step()  # a step of its own
            for name, gradient in gradients(model).items():
                assert torch.equal(gradient, before[name] * expected[name]), name


def test_one_of_two_optimizers_steps_more_often():
    model = make_network()
    first, second = (SGD(group["params"], lr=1e-3) for group in groups_of(model))
    search = search_on(model, None)
    with search.attach(first, second):
        loss_on(model, make_batch(0)).backward()
        second.step()
        assert search.steps == 1  # the first has not stepped at all
        second.step()
        assert search.steps == 2
        first.step()
        assert search.steps == 2
        second.step()
        assert search.steps == 3
        search.update()


def test_frozen_parameters():
    model, reference = make_network(), make_network()
    for m in (model, reference):
        m.stem_bn.requires_grad_(False)
        m.first_bn.bias.requires_grad_(False)
        m.head.requires_grad_(False)
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=LR)
    search = search_on(model, Constant(chi=0.25))
    with search.attach(optimizer):
        expected = factors(model, search.mask, 0.25)
        for m in (model, reference):
            loss_on(m, make_batch(0)).backward()
        optimizer.step()
        search.update()
    assert states_equal(model.stem_bn, reference.stem_bn)
    assert_multiplied(model, reference, expected)


def test_frozen_parameters_that_the_optimizer_holds_are_truncated_once_they_thaw():
    model, reference = make_network(), make_network()
    optimizer = SGD(model.parameters(), lr=LR)
    model.stem_bn.requires_grad_(False)
    search = search_on(model, Constant(chi=0.25))
    with search.attach(optimizer):
        expected = factors(model, search.mask, 0.25)
        model.stem_bn.requires_grad_(True)
        for m in (model, reference):
            loss_on(m, make_batch(0)).backward()
        optimizer.step()
    assert_multiplied(model, reference, expected)


def test_parameters_that_are_thawed_and_added_later_are_truncated_from_the_next_check():
    model = make_network()
    model.stem_bn.requires_grad_(False)
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=LR)
    search = search_on(model, Constant(chi=0.0))
    with search.attach(optimizer):
        plain(model, optimizer, 0)
        model.stem_bn.requires_grad_(True)
        optimizer.add_param_group({"params": list(model.stem_bn.parameters())})
        search.update()
        start = model.stem_bn.weight.detach().clone()
        plain(model, optimizer, 1)
        kept = search.mask.kept["stem"]
    assert torch.equal(model.stem_bn.weight[~kept], start[~kept])
    assert (model.stem_bn.weight[kept] != start[kept]).all()


def test_parameters_that_are_thawed_and_held_by_nobody_are_an_error():
    model = make_network()
    model.stem_bn.requires_grad_(False)
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=LR)
    search = search_on(model, Constant(chi=0.0))
    with search.attach(optimizer):
        plain(model, optimizer, 0)
        model.stem_bn.requires_grad_(True)
        with pytest.raises(SearchError, match=r"'stem_bn.weight' is in none of the optimizers"):
            search.update()


class Tied(nn.Module):
    """Two layers that share one batch-norm scale, summed up."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3)
        self.a_bn, self.b_bn = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.b_bn.weight = self.a_bn.weight
        self.head = nn.Linear(6, 3)

    def forward(self, images):
        return self.head(torch.relu(self.a_bn(self.a(images)) + self.b_bn(self.b(images))).mean((2, 3)))


def test_tied_parameters_are_truncated_and_penalised_once():
    torch.manual_seed(0)
    model = Tied()
    with torch.no_grad():
        model.a_bn.weight.uniform_(0.5, 1.5)
    reference = copy.deepcopy(model)
    optimizer = SGD(model.parameters(), lr=LR)
    search = TicketSearch(model, torch.randn(1, 3, 6, 6), truncation=Constant(chi=0.25), sparsity_penalty=0.5)
    with search.attach(optimizer):
        for m in (model, reference):
            loss_on(m, make_batch(0)).backward()
        optimizer.step()
    factor = torch.where(search.mask.flat, 1.0, 0.25)
    assert torch.equal(model.a_bn.weight.grad, (reference.a_bn.weight.grad + 0.5) * factor)
    assert torch.equal(model.a_bn.bias.grad, reference.a_bn.bias.grad * factor)
    assert torch.equal(model.b_bn.bias.grad, reference.b_bn.bias.grad * factor)


def test_networks_without_batch_norm_are_truncated_at_their_filters():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    reference = copy.deepcopy(model)
    optimizer = SGD(model.parameters(), lr=LR)
    search = TicketSearch(model, torch.randn(1, 3, 6, 6), truncation=Constant(chi=0.25))
    with search.attach(optimizer):
        for m in (model, reference):
            loss_on(m, make_batch(0)).backward()
        optimizer.step()
    for layer in ("0", "2"):
        factor = torch.where(search.mask.kept[layer], 1.0, 0.25)
        ours, theirs = model.get_submodule(layer), reference.get_submodule(layer)
        assert torch.equal(ours.weight.grad, theirs.weight.grad * factor[:, None, None, None])
        assert torch.equal(ours.bias.grad, theirs.bias.grad * factor)
    assert torch.equal(model[5].weight.grad, reference[5].weight.grad)


def test_independent_batch_norms_are_truncated_each_by_its_own_mask():
    model, reference = make_network(), make_network()
    optimizer = SGD(model.parameters(), lr=LR)
    units = find_channels(model, torch.randn(1, 3, 6, 6), coupling="independent")
    search = TicketSearch(model, units=units, truncation=Constant(chi=0.25))
    with search.attach(optimizer):
        for m in (model, reference):
            loss_on(m, make_batch(0)).backward()
        optimizer.step()
    kept = search.mask.kept
    assert set(kept) == {norm for norms in COUPLED.values() for norm in norms}
    assert not torch.equal(kept["stem_bn"], kept["second_bn"])
    for name, gradient in gradients(model).items():
        norm = name.partition(".")[0]
        factor = torch.where(kept[norm], 1.0, 0.25) if norm in kept else 1.0
        assert torch.equal(gradient, gradients(reference)[name] * factor), name


def test_parameters_in_bfloat16():
    model, reference = make_network().bfloat16(), make_network().bfloat16()
    optimizer = SGD(model.parameters(), lr=LR)
    search = search_on(model, Constant(chi=0.25), sparsity_penalty=0.5)
    with search.attach(optimizer):
        expected = factors(model, search.mask, 0.25)
        for m in (model, reference):
            images, labels = make_batch(0)
            loss_on(m, (images.bfloat16(), labels)).backward()
        optimizer.step()
        for name, gradient in gradients(model).items():
            penalty = 0.5 if name.endswith("bn.weight") else 0.0
            assert gradient.dtype == torch.bfloat16
            assert torch.equal(gradient, (gradients(reference)[name] + penalty) * expected[name]), name
        search.update()


def test_parameters_without_a_gradient_in_some_step():
    """A branch that the forward skips has no gradient: the others are truncated all the same."""
    model, reference = make_network(), make_network()
    optimizer = SGD(model.parameters(), lr=LR)
    search = search_on(model, Constant(chi=0.25), sparsity_penalty=0.5)
    with search.attach(optimizer):
        expected = factors(model, search.mask, 0.25)
        for m in (model, reference):
            loss_on(m, make_batch(0)).backward()
            m.first_bn.weight.grad = None
        optimizer.step()
    assert model.first_bn.weight.grad is None
    for name, gradient in gradients(model).items():
        penalty = 0.5 if name.endswith("bn.weight") else 0.0
        assert torch.equal(gradient, (gradients(reference)[name] + penalty) * expected[name]), name


def test_an_exception_in_a_closure_leaves_nothing_behind():
    model, reference = make_network(), make_network()
    ours, theirs = SGD(model.parameters(), lr=LR), SGD(reference.parameters(), lr=LR)
    search = search_on(model, Constant(chi=0.25))

    def fail():
        raise KeyboardInterrupt

    with search.attach(ours):
        with pytest.raises(KeyboardInterrupt):
            ours.step(fail)
        expected = factors(model, search.mask, 0.25)
        plain(model, ours, 0)
    plain(reference, theirs, 0)
    assert_multiplied(model, reference, expected)


def test_detached_search_leaves_gradients_alone():
    model, reference = make_network(), make_network()
    ours, theirs = SGD(model.parameters(), lr=LR), SGD(reference.parameters(), lr=LR)
    search = search_on(model, Constant(chi=0.0), sparsity_penalty=1.0)
    with search.attach(ours):
        pass
    plain(model, ours, 0)
    plain(reference, theirs, 0)
    assert states_equal(model, reference)
    assert search.steps == 0
    with search.attach(ours):  # it can be attached again, and goes on from its mask
        assert len(search.history) == 1
        expected = factors(model, search.mask, 0.0)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        plain(model, ours, 1)
    for name, parameter in model.named_parameters():
        frozen = expected[name] == 0
        assert torch.equal(parameter[frozen], before[name][frozen])
