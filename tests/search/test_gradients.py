"""Truncation and penalty under every way in which a training loop computes gradients and steps."""

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.optim import LBFGS, SGD

from earlyworm import Constant, SearchError
from residual import loss_on, make_batch, make_network, states_equal
from stepping import (
    CLOSURES,
    DECAYING,
    LR,
    OPTIMIZERS,
    PAIRS,
    assert_multiplied,
    factors,
    gradients,
    make_closure,
    over,
    plain,
    scaled,
    search_on,
)

EVERY = over(PAIRS)


@pytest.fixture(autouse=True)
def _forget_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


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
    assert_multiplied(model, reference, expected)


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
    assert_multiplied(model, reference, expected)


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
