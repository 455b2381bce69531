"""The first-order Taylor score: what it is, that it changes nothing, and that it is carried through interruptions."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW

import earlyworm as ew
from earlyworm.masks.taylor import first_order
from earlyworm.units.groups import named_tensors
from residual import loss_on, make_batch, make_network, states_equal
from single_weights import BOTH, KEY, NEURONS, batch, network
from single_weights import step as step_on_attention
from stepping import UNITS, in_place_zero_grad, plain

LONG = ew.Emergence(window=50)


def test_literal():
    model = network()
    torch.nn.functional.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
    tensors = named_tensors(model)
    up, down = model.up, model.down
    sums = (up.weight * up.weight.grad).abs().sum(1) + (up.bias * up.bias.grad).abs()
    sums += (down.weight * down.weight.grad).abs().sum(0)
    assert torch.allclose(first_order(tensors, NEURONS), sums / (8 + 1 + 3))
    assert torch.equal(first_order(tensors, KEY), (model.qkv.weight * model.qkv.weight.grad).abs()[8:16])
    model.zero_grad()
    assert not first_order(tensors, NEURONS).any()
    assert not first_order(tensors, KEY).any()


def test_sum_over_the_steps_between_two_checks():
    model = make_network()
    optimizer = SGD(model.parameters(), lr=0.1)
    search = ew.TicketSearch(model, units=UNITS, score="taylor", emergence=LONG)
    tensors = named_tensors(model)
    with search.attach(optimizer):
        assert not search.history  # no gradient yet, so no mask
        for check in range(2):
            expected = {group.name: torch.zeros(group.size) for group in UNITS.groups}
            for i in range(3):
                optimizer.zero_grad()
                loss_on(model, make_batch(10 * check + i)).backward()
                for group in UNITS.groups:
                    expected[group.name] += first_order(tensors, group)
                optimizer.step()
            search.update()
            scores = search.draw(force=True).scores
            assert all(torch.allclose(scores[name], value) for name, value in expected.items())
    assert [check.step for check in search.history] == [3, 6]


@pytest.mark.parametrize("way", [plain, in_place_zero_grad])
def test_looking_changes_nothing(way):
    model, alone = make_network(), make_network()
    optimizer, other = SGD(model.parameters(), lr=0.1, momentum=0.9), SGD(alone.parameters(), lr=0.1, momentum=0.9)
    search = ew.TicketSearch(model, units=UNITS, score="taylor", emergence=LONG)
    with search.attach(optimizer):
        for i in range(4):
            way(model, optimizer, i)
            way(alone, other, i)
            search.update()
    assert states_equal(model, alone)


def test_gradients_are_seen_before_they_are_truncated():
    def scores(truncation):
        model = make_network()
        optimizer = SGD(model.parameters(), lr=0.1)
        search = ew.TicketSearch(model, units=UNITS, score="taylor", emergence=LONG, truncation=truncation)
        with search.attach(optimizer):
            for i in range(2):  # the first check gives the mask, the second step is truncated
                plain(model, optimizer, i)
                search.update()
        return search.draw(force=True).scores

    assert all(torch.equal(a, b) for a, b in zip(scores(None).values(), scores(ew.Constant(0)).values(), strict=True))


@pytest.mark.parametrize("biases_first", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_gates_in_several_optimizers(biases_first, scaled):
    def scores(apart):
        model = network()
        units = ew.Units((NEURONS,), (NEURONS,))
        biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
        matrices = [p for name, p in model.named_parameters() if name.endswith("weight")]
        parts = [biases, matrices] if biases_first else [matrices, biases]
        optimizers = [SGD(part, lr=0.1) for part in (parts if apart else [biases + matrices])]
        search = ew.TicketSearch(model, units=units, score="taylor", emergence=LONG, truncation=ew.Constant(0))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, enabled=scaled)
        with search.attach(*optimizers):
            for i in range(3):
                x, y = batch(i)
                for optimizer in optimizers:
                    optimizer.zero_grad()
                scaler.scale(cross_entropy(model(x), y)).backward()
                for optimizer in optimizers:
                    scaler.step(optimizer)
                scaler.update()
                search.update()
        return search.draw(force=True).scores["up"]

    assert torch.allclose(scores(apart=True), scores(apart=False), rtol=1e-4)


def test_groups_have_the_order_of_the_units_in_whatever_order_optimizers_step(tmp_path):
    model = make_network()
    parts = [list(layer.parameters()) for layer in model.children()]
    optimizers = [SGD(part, lr=0.1) for part in reversed(parts) if part]
    search = ew.TicketSearch(model, units=UNITS, score="taylor", emergence=LONG, truncation=ew.Constant(0))
    with search.attach(*optimizers):
        for order in (1, -1):
            loss_on(model, make_batch(0)).backward()
            for optimizer in optimizers[::order]:
                optimizer.step()
            search.update()
            assert list(search.mask.sizes.items()) == list(search.units.sizes.items())
    ticket = search.draw(force=True)
    ticket.save(tmp_path / "ticket.safetensors")
    loaded = ew.Ticket.load(tmp_path / "ticket.safetensors")
    assert {name: kept.tolist() for name, kept in loaded.mask.kept.items()} == {
        name: kept.tolist() for name, kept in ticket.mask.kept.items()
    }


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_is_skipped_for_its_overflow_adds_nothing(fused):
    """After `unscale_`, as with clipping, the scaler tells a fused optimizer of the overflow, and not of a scale."""

    def scores(overflows):
        model = network()
        optimizer = AdamW(model.parameters(), lr=0.01, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
        search = ew.TicketSearch(model, units=ew.Units((NEURONS,), (NEURONS,)), score="taylor", emergence=LONG)
        with search.attach(optimizer):
            for i in [*([None] if overflows else []), 0, 1]:
                x, y = batch(i or 0)
                optimizer.zero_grad()
                scaler.scale(cross_entropy(model(x), y) * (1e38 if i is None else 1)).backward()
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
            search.update()
        return search.draw(force=True).scores["up"]

    assert torch.allclose(scores(overflows=True), scores(overflows=False), rtol=1e-4)


def test_half_precision_does_not_underflow():
    model = network().half()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.02)
            parameter.grad = torch.full_like(parameter, 1e-6)
    tensors = dict(model.named_parameters())
    assert (first_order(tensors, KEY) > 0).all()
    assert (first_order(tensors, NEURONS) > 0).all()


def test_heads_neurons_and_weights():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    search = ew.TicketSearch(model, units=BOTH, score="taylor", emergence=LONG)
    with search.attach(optimizer):
        for i in range(2):
            step_on_attention(model, optimizer, i)
        search.update()
    assert search.mask.units_kept == 6 + 64


def test_interrupted_between_checks():
    def run(interrupt):
        model = make_network()
        optimizer = SGD(model.parameters(), lr=0.1)
        search = ew.TicketSearch(model, units=UNITS, score="taylor", emergence=LONG)
        search.attach(optimizer)
        for i in range(6):
            plain(model, optimizer, i)
            if i % 3 == 2:
                search.update()
            if i == interrupt:
                state = search.state_dict()
                search.detach()
                search = ew.TicketSearch(model, units=UNITS, score="taylor", emergence=LONG)
                search.load_state_dict(state)
                search.attach(optimizer)
        return search

    expected = run(None)
    for interrupt in range(6):
        search = run(interrupt)
        assert search.history == expected.history
        assert search.mask == expected.mask


def test_errors():
    model = make_network()
    optimizer = SGD(model.parameters(), lr=0.1)
    search = ew.TicketSearch(model, units=UNITS, score="taylor", emergence=LONG)
    with search.attach(optimizer):
        optimizer.step()
        with pytest.raises(ew.SearchError, match=r"no gradient of 'stem' was seen since the last check"):
            search.update()
    with pytest.raises(ew.SearchError, match="another score"):
        ew.TicketSearch(model, units=UNITS, emergence=LONG).load_state_dict(search.state_dict())
