"""Truncation and penalty under every way in which a training loop computes gradients and steps."""

import copy
import os
from collections import deque

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW, RMSprop

from earlyworm import Constant, Emergence, SearchError, Ticket, TicketSearch, Worm, find_channels
from residual import COUPLED, Residual, loss_on, make_batch, make_network, states_equal

LR = 0.1
UNITS = find_channels(make_network(), torch.randn(1, 3, 6, 6))
LONG = Emergence(window=50)  # never emerges here


def search_on(model, truncation, **options):
    return TicketSearch(model, units=UNITS, truncation=truncation, emergence=LONG, **options)


def factors(model, mask, chi):
    """What each gradient must be multiplied by, from the names of the network and not from what was found in it."""
    found = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    for group, norms in COUPLED.items():
        for norm in norms:
            for unit, kept in enumerate(mask.kept[group].tolist()):
                if not kept:
                    found[f"{norm}.weight"][unit] = found[f"{norm}.bias"][unit] = chi
    return found


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


# ------------------------------------------------------------------- ways to take one step on batch number `i` of a run


def plain(model, optimizer, i):
    optimizer.zero_grad()
    loss_on(model, make_batch(i)).backward()
    optimizer.step()


def in_place_zero_grad(model, optimizer, i):
    optimizer.zero_grad(set_to_none=False)
    loss_on(model, make_batch(i)).backward()
    optimizer.step()


def accumulated(model, optimizer, i):
    optimizer.zero_grad()
    for part in range(3):
        (loss_on(model, make_batch(100 * i + part)) / 3).backward()
    optimizer.step()


def autocast(model, optimizer, i):
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_on(model, make_batch(i))
    loss.backward()
    optimizer.step()


def scaled(model, optimizer, i):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer.zero_grad()
    scaler.scale(loss_on(model, make_batch(i))).backward()
    scaler.step(optimizer)
    scaler.update()


def scaled_and_clipped(model, optimizer, i):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer.zero_grad()
    for part in range(2):
        scaler.scale(loss_on(model, make_batch(100 * i + part)) / 2).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    scaler.step(optimizer)
    scaler.update()


def clipped(model, optimizer, i):
    optimizer.zero_grad()
    loss_on(model, make_batch(i)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    optimizer.step()


def make_closure(model, optimizer, i):
    def closure():
        optimizer.zero_grad()
        loss = loss_on(model, make_batch(i))
        loss.backward()
        return loss

    return closure


def positional_closure(model, optimizer, i):
    assert optimizer.step(make_closure(model, optimizer, i)) > 0  # the loss comes through


def keyword_closure(model, optimizer, i):
    assert optimizer.step(closure=make_closure(model, optimizer, i)) > 0


def no_closure(model, optimizer, i):
    optimizer.zero_grad()
    loss_on(model, make_batch(i)).backward()
    optimizer.step(closure=None)


def accelerated(model, optimizer, i):
    optimizer = Accelerator(cpu=True).prepare(optimizer)
    optimizer.zero_grad()
    loss_on(model, make_batch(i)).backward()
    optimizer.step()


WAYS = [plain, in_place_zero_grad, accumulated, autocast, scaled, scaled_and_clipped, clipped, positional_closure,
        keyword_closure, no_closure, accelerated]  # fmt: skip
CLOSURES = [positional_closure, keyword_closure]


@pytest.fixture(autouse=True)
def _forget_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Halving(SGD):
    """An optimizer whose step calls the step of its base, which has the same hooks."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] /= 2
        return super().step(closure)


def groups_of(model):
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    others = [parameter for name, parameter in model.named_parameters() if not name.endswith("bias")]
    return [{"params": biases, "lr": LR / 2}, {"params": others}]


OPTIMIZERS = {
    "sgd": lambda model: SGD(model.parameters(), lr=LR),
    "sgd-foreach": lambda model: SGD(model.parameters(), lr=LR, foreach=True),
    "sgd-fused": lambda model: SGD(model.parameters(), lr=LR, fused=True),
    "sgd-loop": lambda model: SGD(model.parameters(), lr=LR, foreach=False),
    "sgd-groups": lambda model: SGD(groups_of(model), lr=LR),
    "sgd-named": lambda model: SGD(model.named_parameters(), lr=LR),
    "sgd-subclass": lambda model: Halving(model.parameters(), lr=LR),
    "momentum": lambda model: SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=0.01),
    "adamw": lambda model: AdamW(model.parameters(), lr=LR, weight_decay=0),
    "adamw-fused": lambda model: AdamW(model.parameters(), lr=LR, fused=True, weight_decay=0),
    "adamw-decay": lambda model: AdamW(model.parameters(), lr=LR, weight_decay=0.1),
    "adam-amsgrad": lambda model: Adam(model.parameters(), lr=LR, amsgrad=True, foreach=True),
    "rmsprop": lambda model: RMSprop(model.parameters(), lr=LR),
}
DECAYING = ("momentum", "adamw-decay")  # weight decay moves static units too
PAIRS = (
    [(way, "sgd") for way in WAYS]
    + [(way, "sgd-fused") for way in (accumulated, scaled, scaled_and_clipped, positional_closure)]
    + [(way, "adamw-fused") for way in (scaled, scaled_and_clipped)]
    + [(way, "sgd-subclass") for way in (plain, positional_closure, scaled)]
    + [(plain, optimizer) for optimizer in OPTIMIZERS if optimizer not in ("sgd", "sgd-subclass")]
)


def over(pairs):
    return pytest.mark.parametrize(("way", "optimizer"), pairs, ids=lambda value: getattr(value, "__name__", value))


EVERY = over(PAIRS)


def numbers_in(optimizer):
    """All state of an optimizer, flat."""
    state = optimizer.state_dict()["state"]
    return [
        value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for slot in state.values()
        for value in slot.values()
        if value is not None and not isinstance(value, list)
    ]


@EVERY
def test_chi_one_changes_nothing(way, optimizer):
    model, reference = make_network(), make_network()
    ours, theirs = OPTIMIZERS[optimizer](model), OPTIMIZERS[optimizer](reference)
    search = search_on(model, Constant(chi=1.0))
    with search.attach(ours):
        for i in range(3):
            way(model, ours, i)
            way(reference, theirs, i)
            assert search.update() is False
    assert states_equal(model, reference)
    assert all(torch.equal(a, b) for a, b in zip(numbers_in(ours), numbers_in(theirs), strict=True))
    assert [check.truncated for check in search.history] == [0, 0, 0, 0]
    assert search.steps == 3


@EVERY
def test_gradients_of_static_units_are_scaled_once_and_others_not_at_all(way, optimizer):
    model, reference = make_network(), make_network()
    ours, theirs = OPTIMIZERS[optimizer](model), OPTIMIZERS[optimizer](reference)
    search = search_on(model, Constant(chi=0.25))
    expected = factors(model, search.attach(ours).mask, 0.25)
    way(model, ours, 0)
    way(reference, theirs, 0)
    before = gradients(reference)
    assert set(before) == set(expected)
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, before[name] * expected[name]), name  # a quarter is exact
    assert sum(int((factor == 0.25).sum()) for factor in expected.values()) > 0
    assert search.steps == 1


@over([pair for pair in PAIRS if pair[1] not in DECAYING])
def test_chi_zero_freezes_the_gates_of_static_units_and_nothing_else(way, optimizer):
    model, reference = make_network(), make_network()
    ours, theirs = OPTIMIZERS[optimizer](model), OPTIMIZERS[optimizer](reference)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    search = search_on(model, Constant(chi=0.0))
    static = {name: factor == 0 for name, factor in factors(model, search.attach(ours).mask, 0.0).items()}

    way(model, ours, 0)
    way(reference, theirs, 0)
    others = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        frozen = static[name]
        assert torch.equal(parameter[frozen], start[name][frozen]), name
        assert torch.equal(parameter[~frozen], others[name][~frozen]), name
        if frozen.any():
            assert (others[name][frozen] != start[name][frozen]).all(), name  # they would have moved

    for i in range(1, 4):
        way(model, ours, i)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter[static[name]], start[name][static[name]]), name


def test_accumulation_equals_one_big_backward():
    model, big = make_network().eval(), make_network().eval()  # without batch statistics, parts add up to the whole
    searches = [search_on(m, Constant(chi=0.3)) for m in (model, big)]
    optimizers = [SGD(m.parameters(), lr=LR, momentum=0.9) for m in (model, big)]
    with searches[0].attach(optimizers[0]), searches[1].attach(optimizers[1]):
        for i in range(4):
            images, labels = make_batch(i, size=12)
            for optimizer in optimizers:
                optimizer.zero_grad()
            for part in range(4):
                some = slice(3 * part, 3 * part + 3)
                (loss_on(model, (images[some], labels[some])) / 4).backward()
            loss_on(big, (images, labels)).backward()
            for optimizer, search in zip(optimizers, searches, strict=True):
                optimizer.step()
                search.update()
    assert searches[0].mask == searches[1].mask
    assert searches[0].steps == searches[1].steps == 4
    for a, b in zip(model.parameters(), big.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_clipping_sees_the_norm_of_untruncated_gradients():
    model, reference = make_network(), make_network()
    optimizer = SGD(model.parameters(), lr=LR)
    search = search_on(model, Constant(chi=0.0))
    with search.attach(optimizer):
        for m in (model, reference):
            loss_on(m, make_batch(0)).backward()
        ours, theirs = (nn.utils.clip_grad_norm_(m.parameters(), 0.01) for m in (model, reference))
        assert torch.equal(ours, theirs)
        optimizer.step()
    expected = factors(model, search.mask, 0.0)
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, gradients(reference)[name] * expected[name]), name


def test_accelerator_with_accumulation_and_clipping():
    model, reference = make_network(), make_network()
    optimizer = SGD(model.parameters(), lr=LR)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    prepared_model, prepared = accelerator.prepare(model, optimizer)
    search = search_on(prepared_model, Constant(chi=0.25))
    with search.attach(prepared):
        expected = factors(model, search.mask, 0.25)
        for part in range(3):
            with accelerator.accumulate(prepared_model):
                accelerator.backward(loss_on(prepared_model, make_batch(part)))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(prepared_model.parameters(), 0.05)
                prepared.step()
                if part < 2:
                    prepared.zero_grad()
            (loss_on(reference, make_batch(part)) / 3).backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 0.05)
        assert search.steps == 1
        search.update()
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, gradients(reference)[name] * expected[name]), name


@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_scaler_skips_the_step_on_infinite_gradients(penalty):
    model = make_network()
    optimizer = SGD(model.parameters(), lr=LR)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    search = search_on(model, Constant(chi=0.0), sparsity_penalty=penalty)
    with search.attach(optimizer):
        start = copy.deepcopy(model)
        scaler.scale(loss_on(model, make_batch(0)) * float("inf")).backward()
        scaler.step(optimizer)
        scaler.update()
        assert search.steps == 0
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))
        with pytest.raises(SearchError, match="no step of the attached optimizer"):
            search.update()

        optimizer.zero_grad()
        scaler.scale(loss_on(model, make_batch(0))).backward()
        scaler.step(optimizer)
        scaler.update()
        assert search.steps == 1
        search.update()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("fused", [False, True])
def test_scaled_steps_equal_plain_ones(fused):
    """The scale is a power of two, so nothing may differ: neither chi nor the penalty is scaled twice or not at all."""
    model, reference = make_network(), make_network()
    optimizers = [SGD(m.parameters(), lr=LR, fused=fused) for m in (model, reference)]
    searches = [search_on(m, Constant(chi=0.25), sparsity_penalty=0.125) for m in (model, reference)]
    with searches[0].attach(optimizers[0]), searches[1].attach(optimizers[1]):
        for i in range(3):
            scaled(model, optimizers[0], i)
            plain(reference, optimizers[1], i)
            assert [search.update() for search in searches] == [False, False]
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


# ------------------------------------------------------------------------------------------------- closures and LBFGS


def make_lbfgs(model):
    return LBFGS(model.parameters(), lr=0.05, max_iter=4, history_size=3)


@pytest.mark.parametrize("way", CLOSURES)
def test_lbfgs_chi_one_changes_nothing(way):
    model, reference = make_network(), make_network()
    ours, theirs = make_lbfgs(model), make_lbfgs(reference)
    search = search_on(model, Constant(chi=1.0))
    with search.attach(ours):
        for i in range(3):
            way(model, ours, i)
            way(reference, theirs, i)
            search.update()
    assert states_equal(model, reference)
    assert search.steps == 3


@pytest.mark.parametrize("way", CLOSURES)
def test_lbfgs_evaluates_truncated_gradients_in_every_iteration(way):
    model, reference = make_network(), make_network()
    ours, theirs = make_lbfgs(model), make_lbfgs(reference)
    search = search_on(model, Constant(chi=0.25))
    with search.attach(ours):
        expected = factors(model, search.mask, 0.25)
        for i in range(3):
            way(model, ours, i)
            closure = make_closure(reference, theirs, i)

            def truncated(closure=closure):
                loss = closure()
                for name, gradient in gradients(reference).items():
                    gradient.mul_(expected[name])
                return loss

            theirs.step(truncated)
    assert ours.state_dict()["state"][0]["func_evals"] > 6  # several calls in one step
    assert states_equal(model, reference)


@pytest.mark.parametrize("way", CLOSURES)
def test_lbfgs_chi_zero_freezes_static_units(way):
    model = make_network()
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_lbfgs(model)
    search = search_on(model, Constant(chi=0.0))
    with search.attach(optimizer):
        static = {name: factor == 0 for name, factor in factors(model, search.mask, 0.0).items()}
        for i in range(3):
            way(model, optimizer, i)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter[static[name]], start[name][static[name]]), name
        assert (parameter != start[name])[~static[name]].float().mean() > 0.9, name


# --------------------------------------------------------------------------- several optimizers and frozen parameters


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
        for name, gradient in gradients(model).items():
            assert torch.equal(gradient, gradients(reference)[name] * expected[name]), name
        assert search.steps == 1  # they step in turn
        for _ in range(2):
            for optimizer in ours:
                optimizer.step()
        assert search.steps == 3


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
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, gradients(reference)[name] * expected[name]), name


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
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, gradients(reference)[name] * expected[name]), name


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
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, gradients(reference)[name] * expected[name]), name


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


# ------------------------------------------------------------------------------------------------ the sparsity penalty


@EVERY
def test_penalty_is_added_to_the_scales_before_truncation(way, optimizer):
    model, reference = make_network(), make_network()
    with torch.no_grad():
        for m in (model, reference):
            m.stem_bn.weight[0] *= -1
            m.stem_bn.weight[1] = 0.0
    ours, theirs = OPTIMIZERS[optimizer](model), OPTIMIZERS[optimizer](reference)
    search = search_on(model, Constant(chi=0.25), sparsity_penalty=0.125)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with search.attach(ours):
        expected = factors(model, search.mask, 0.25)
        way(model, ours, 0)
    way(reference, theirs, 0)
    for name, gradient in gradients(model).items():
        penalty = 0.125 * start[name].sign() if name.endswith("bn.weight") else 0.0
        wanted = (gradients(reference)[name] + penalty) * expected[name]
        # adding to a gradient that is scaled by a power of two may round in another place
        torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-7)
        if name not in ("stem_bn.weight", "first_bn.weight", "second_bn.weight"):
            assert torch.equal(gradient, wanted), name


def test_penalty_without_truncation_needs_the_scales_only():
    model = make_network()
    scales = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    optimizer = SGD(scales, lr=LR)
    search = search_on(model, None, sparsity_penalty=1.0)
    with search.attach(optimizer):
        for scale in scales:
            scale.grad = torch.zeros_like(scale)
        optimizer.step()
    assert all(torch.equal(scale.grad, scale.sign()) for scale in scales)


# ---------------------------------------------------------------------------------- WORM once more, slowly and plainly


class SlowWorm:
    """The method as the papers write it, with a hook on every parameter's gradient."""

    def __init__(self, model, ratio, window, trigger, chi):
        self.model, self.ratio, self.trigger, self.low = model, ratio, trigger, chi
        self.masks = deque(maxlen=window)
        self.triggered = False
        self.chis = []
        self.factors = {}
        for name, parameter in model.named_parameters():
            parameter.register_hook(lambda gradient, name=name: gradient * self.factors.get(name, 1.0))
        self.check()

    def check(self):
        tensors = dict(self.model.named_parameters())
        scores = []
        for group, norms in COUPLED.items():
            for unit in range(len(tensors[f"{norms[0]}.weight"])):
                members = [abs(float(tensors[f"{norm}.weight"].detach()[unit])) for norm in norms]
                scores.append((sum(members) / len(members), group, unit))
        best = {max(score for score in scores if score[1] == group) for group in COUPLED}
        removed = {score[1:] for score in sorted(set(scores) - best)[: int(self.ratio * len(scores))]}
        older = list(self.masks)
        self.masks.append(removed)
        distances = [len(removed ^ other) / len(scores) for other in older]
        if len(distances) == self.masks.maxlen - 1 and sum(distances) / len(distances) < self.trigger:
            self.triggered = True
        chi = self.low if self.triggered else 1.0
        self.chis.append(chi)
        self.factors = {}
        for group, norms in COUPLED.items():
            for norm in norms:
                factor = torch.tensor([
                    chi if (group, unit) in removed else 1.0 for unit in range(len(tensors[f"{norm}.weight"]))
                ])  # fmt: skip
                self.factors[f"{norm}.weight"] = self.factors[f"{norm}.bias"] = factor


@pytest.mark.parametrize("make_optimizer", [
    lambda p: SGD(p, lr=0.2, momentum=0.9, weight_decay=1e-3), lambda p: AdamW(p, lr=0.03),
])  # fmt: skip
def test_same_weights_as_the_slow_restatement(make_optimizer):
    model, slow = make_network(1), make_network(1)
    optimizer, slow_optimizer = make_optimizer(model.parameters()), make_optimizer(slow.parameters())
    truncation = Worm(trigger=0.3, chi=0.01)
    search = TicketSearch(model, units=UNITS, truncation=truncation, emergence=Emergence(window=3, epsilon=0.0))
    worm = SlowWorm(slow, ratio=0.5, window=3, trigger=0.3, chi=0.01)
    with search.attach(optimizer):
        for i in range(12):
            plain(model, optimizer, i)
            plain(slow, slow_optimizer, i)
            if i % 2:
                emerged = search.update()
                worm.check()
                assert states_equal(model, slow)
                if emerged:
                    break
    assert [check.chi for check in search.history] == worm.chis
    assert {1.0, 0.01} == set(worm.chis)
    removed = {
        (group, unit) for group, kept in search.mask.kept.items() for unit in (~kept).nonzero().flatten().tolist()
    }
    assert removed == worm.masks[-1]


# --------------------------------------------------------------------------------------- what would silently do nothing


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


@pytest.mark.parametrize("options", [{"truncation": Constant()}, {"truncation": None, "sparsity_penalty": 0.1}])
def test_all_gates_frozen(options):
    model = make_network()
    for module in (model.stem_bn, model.first_bn, model.second_bn):
        module.requires_grad_(False)
    with pytest.raises(SearchError, match="all parameters of the units are frozen"):
        search_on(model, **options).attach(SGD(model.parameters(), lr=LR))


def test_scores_that_cannot_change_would_look_like_emergence():
    model = make_network()
    for module in (model.stem_bn, model.first_bn, model.second_bn):
        module.requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=LR)
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


def test_replaced_parameters():
    model = make_network()
    optimizer = SGD(model.parameters(), lr=LR)
    with search_on(model, Constant()).attach(optimizer) as search:
        plain(model, optimizer, 0)
        model.first_bn = nn.BatchNorm2d(4)
        with pytest.raises(SearchError, match=r"'first_bn.weight' is in none of the optimizers"):
            search.update()


# -------------------------------------------------------------------------------------------------------- two processes


def train_two_ways(model, search, optimizer, batches):
    """Three plain steps, then three that accumulate two micro-batches each without exchanging in the first."""
    histories = []
    with search.attach(optimizer):
        for i, (images, labels) in enumerate(batches):
            optimizer.zero_grad()
            if i < 3:
                loss_on(model, (images, labels)).backward()
            else:
                half = len(labels) // 2
                first, second = (images[:half], labels[:half]), (images[half:], labels[half:])
                if isinstance(model, nn.parallel.DistributedDataParallel):
                    with model.no_sync():
                        (loss_on(model, first) / 2).backward()
                else:
                    (loss_on(model, first) / 2).backward()
                (loss_on(model, second) / 2).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()
            search.update()
            histories.append(search.mask.flat.tolist())
    return histories


def parallel_search(model):
    return TicketSearch(
        model, units=UNITS, truncation=Constant(chi=0.1), emergence=Emergence(window=3, epsilon=0.0),
        sparsity_penalty=0.05,
    )  # fmt: skip


def on_one_rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        model = make_network(seed=rank).eval()  # rank 1 gets the weights of rank 0
        parallel = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        search = parallel_search(parallel)
        optimizer = SGD(parallel.parameters(), lr=0.5, momentum=0.9)
        batches = [tuple(part[rank::2] for part in make_batch(i, size=16)) for i in range(6)]
        masks = train_two_ways(parallel, search, optimizer, batches)
        ticket = search.draw(force=True)
        ticket.save(f"{folder}/ticket{rank}.safetensors")
        torch.save(
            {"masks": masks, "weights": model.state_dict(), "search": search.state_dict()}, f"{folder}/rank{rank}.pt"
        )
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_agree_with_each_other_and_with_one(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    ranks = [context.Process(target=on_one_rank, args=(rank, os.fspath(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()

    model = make_network(seed=0).eval()
    search = parallel_search(model)
    optimizer = SGD(model.parameters(), lr=0.5, momentum=0.9)
    # Each half of a batch holds what the two processes have in that half of theirs.
    batches = [make_batch(i, size=16) for i in range(6)]
    masks = train_two_ways(model, search, optimizer, batches)

    for process in ranks:
        process.join(120)
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert first["masks"] == second["masks"] == masks
    assert len({str(some) for some in masks}) > 1  # the masks did change
    tickets = [Ticket.load(tmp_path / f"ticket{rank}.safetensors") for rank in range(2)]
    assert tickets[0].mask == tickets[1].mask
    assert tickets[0].mask.flat.tolist() == masks[-1]
    assert (tickets[0].step, tickets[0].distances) == (tickets[1].step, tickets[1].distances)
    assert all(torch.equal(score, tickets[1].scores[name]) for name, score in tickets[0].scores.items())
    assert first["search"]["history"] == second["search"]["history"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(tensor, first["weights"][name], rtol=0, atol=1e-5)


def test_wrapped_models_are_the_same_model():
    model = make_network()
    compiled = torch.compile(model, backend="eager")  # compiles when it is called, and it is not
    search = TicketSearch(compiled, units=UNITS)
    assert search.model is model
    assert isinstance(search.model, Residual)
