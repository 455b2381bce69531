"""The smaller model in the place of the one that is being trained: nobody notices but for the sizes."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, AdamW, RMSprop
from torch.optim.lr_scheduler import LambdaLR
from transformers import Adafactor

from earlyworm import Constant, SearchError, TicketError, TicketSearch, compact
from earlyworm.integrations.swapping import check_wrapper, compact_in_place
from residual import loss_on, make_batch, make_network, states_equal
from stepping import UNITS

OPTIMIZERS = {
    "sgd": lambda parameters: SGD(parameters, lr=0.1),
    "momentum": lambda parameters: SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adamw": lambda parameters: AdamW(parameters, lr=0.01),
    "adamw-fused": lambda parameters: AdamW(parameters, lr=0.01, fused=True),
    "amsgrad": lambda parameters: AdamW(parameters, lr=0.01, amsgrad=True),
    "rmsprop": lambda parameters: RMSprop(parameters, lr=0.01, centered=True, momentum=0.5),
}


def train(model, optimizer, batches):
    for i in batches:
        optimizer.zero_grad()
        loss_on(model, make_batch(i)).backward()
        optimizer.step()


def trained(optimizer_of=OPTIMIZERS["adamw"], model=None):
    """A network after three steps, its optimizer, and a ticket."""
    model = model or make_network()
    optimizer = optimizer_of(model.parameters())
    with TicketSearch(model, units=UNITS).attach(optimizer) as search:
        train(model, optimizer, range(3))
        search.update()
    optimizer.zero_grad()
    return model, optimizer, search.draw(force=True)


def test_everything_stays_the_object_that_it_was():
    model, optimizer, ticket = trained()
    expected = compact(model, ticket)
    modules, groups = list(model.modules()), optimizer.param_groups
    parameters, running = list(model.parameters()), list(model.buffers())
    hooks = []
    model.head.register_forward_hook(lambda *_: hooks.append(1))
    compact_in_place(model, ticket, [optimizer])
    assert states_equal(model, expected)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert optimizer.param_groups is groups
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(model.buffers(), running, strict=True))
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert all(a is b for a, b in zip(held, model.parameters(), strict=True))
    assert {id(parameter) for parameter in optimizer.state} == {id(parameter) for parameter in held}
    train(model, optimizer, [3])
    assert hooks


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_goes_on_like_the_masked_network(name):
    """Momentum, second moments and step counts of what is kept are those of the dense network."""
    model, optimizer, ticket = trained(OPTIMIZERS[name])
    masked = copy.deepcopy(model)
    other = OPTIMIZERS[name](masked.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    ticket.apply(masked, other)
    compact_in_place(model, ticket, [optimizer])
    train(masked, other, range(3, 9))
    train(model, optimizer, range(3, 9))
    images, _ = make_batch(9)
    torch.testing.assert_close(model.eval()(images), masked.eval()(images), rtol=1e-4, atol=1e-4)
    fresh = compact(trained(OPTIMIZERS[name])[0], ticket)
    train(fresh, OPTIMIZERS[name](fresh.parameters()), range(3, 9))
    if name != "sgd":  # which has no state
        assert not torch.allclose(fresh.eval()(images), masked(images), rtol=1e-4, atol=1e-4)


def test_the_schedule_goes_on():
    model, optimizer, ticket = trained()
    schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    train(model, optimizer, [3])
    schedule.step()
    compact_in_place(model, ticket, [optimizer])
    train(model, optimizer, [4])
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 / 3)


def test_state_of_another_shape_starts_afresh():
    def adafactor(parameters):
        return Adafactor(parameters, lr=0.01, relative_step=False, scale_parameter=False)

    model, optimizer, ticket = trained(adafactor)
    assert any("exp_avg_sq_row" in state for state in optimizer.state.values())
    compact_in_place(model, ticket, [optimizer])
    assert not optimizer.state
    train(model, optimizer, [3])
    assert {state["step"] for state in optimizer.state.values()} == {1}


def test_all_of_lbfgs_starts_afresh():
    model, bystander = make_network(), nn.Linear(3, 2)  # whose weight holds the state
    optimizer = LBFGS([*bystander.parameters(), *model.parameters()], lr=0.01, max_iter=2)

    def closure():
        optimizer.zero_grad()
        loss = loss_on(model, make_batch(0)) + bystander(torch.ones(3)).square().sum()
        loss.backward()
        return loss

    with TicketSearch(model, units=UNITS).attach(optimizer) as search:
        optimizer.step(closure)
        search.update()
    compact_in_place(model, search.draw(force=True), [optimizer])
    assert not optimizer.state
    before = model.head.weight.detach().clone()
    optimizer.step(closure)
    assert not torch.equal(before, model.head.weight)


class Bytes(torch.Tensor):
    """A state that says that it is floating-point, and of its parameter's shape, but cannot be cut."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.mul_, torch.Tensor.index_select, torch.index_select):
            raise NotImplementedError
        return super().__torch_function__(function, types, args, kwargs or {})


def test_state_in_tensors_of_another_class_starts_afresh():
    model, optimizer, ticket = trained()
    for state in optimizer.state.values():
        state["exp_avg"] = state["exp_avg"].as_subclass(Bytes)
    compact_in_place(model, ticket, [optimizer])
    assert not optimizer.state
    train(model, optimizer, [3])


def test_other_parameters_are_left_alone():
    model, bystander = make_network(), nn.Linear(3, 2)
    both = nn.ModuleList([model, bystander])
    optimizer = AdamW([{"params": both.parameters()}], lr=0.01)
    with TicketSearch(model, units=UNITS).attach(optimizer) as search:
        bystander(torch.ones(3)).sum().backward()
        train(model, optimizer, [0])
        bystander(torch.ones(3)).sum().backward()
        optimizer.step()
        search.update()
    before = copy.deepcopy(optimizer.state[bystander.weight])
    compact_in_place(model, search.draw(force=True), [optimizer])
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], both.parameters(), strict=True))
    assert all(torch.equal(before[key], optimizer.state[bystander.weight][key]) for key in before)


def test_several_optimizers():
    model = make_network()
    convolutions = [parameter for name, parameter in model.named_parameters() if "bn" not in name]
    norms = [parameter for name, parameter in model.named_parameters() if "bn" in name]
    optimizers = [AdamW(convolutions, lr=0.01), SGD(norms, lr=0.1, momentum=0.9)]
    with TicketSearch(model, units=UNITS).attach(*optimizers) as search:
        loss_on(model, make_batch(0)).backward()
        for optimizer in optimizers:
            optimizer.step()
        search.update()
    compact_in_place(model, search.draw(force=True), optimizers)
    for optimizer in optimizers:
        for parameter in optimizer.param_groups[0]["params"]:
            assert {v.shape for v in optimizer.state[parameter].values() if v.dim()} == {parameter.shape}
    assert sum(len(o.param_groups[0]["params"]) for o in optimizers) == len(list(model.parameters()))


def test_a_ticket_of_another_model_changes_nothing():
    model, optimizer, ticket = trained()
    compact_in_place(model, ticket, [optimizer])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TicketError, match="for another model"):
        compact_in_place(model, ticket, [optimizer])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_masked_weights_stay_masked():
    """Single weights are not cut out, but held at zero, in the place of the model too."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    optimizer = AdamW(encoder.parameters(), lr=0.01)
    x = torch.randn(2, 3, 8)

    def step():
        optimizer.zero_grad()
        encoder(x).square().mean().backward()
        optimizer.step()

    with TicketSearch(encoder, units="weights", truncation=Constant(0.1)).attach(optimizer) as search:
        step()
        search.update()
    compact_in_place(encoder, search.draw(force=True), [optimizer])
    assert sum(int((p == 0).sum()) for p in encoder.state_dict().values()) >= 64
    for _ in range(3):
        step()
    assert sum(int((p == 0).sum()) for p in encoder.state_dict().values()) >= 64


def test_what_cannot_be_made_anew_is_refused(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = make_network()
        parallel = nn.parallel.DistributedDataParallel(model)
        check_wrapper(parallel, model)
        check_wrapper(torch.compile(parallel, backend="eager"), model.head)
        parallel.register_comm_hook(None, lambda _, bucket: torch.futures.Future())
        with pytest.raises(SearchError, match="with a communication hook"):
            check_wrapper(parallel, model)
        with pytest.raises(SearchError, match="with a static graph"):
            check_wrapper(nn.parallel.DistributedDataParallel(model, static_graph=True), model)
        alone = torch.distributed.new_group([0])
        with pytest.raises(SearchError, match="with a process group of its own"):
            check_wrapper(nn.parallel.DistributedDataParallel(model, process_group=alone), model)
    finally:
        torch.distributed.destroy_process_group()


def test_a_copy_is_refused():
    model = make_network()
    check_wrapper(torch.compile(model, backend="eager"), model)
    with pytest.raises(SearchError, match="not the Residual itself, but a copy"):
        check_wrapper(copy.copy(model), model)
