"""The compacted network computes what the masked one computes, and is otherwise the network that it came from."""

import copy
import functools
import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn

import earlyworm as ew
import zoo
from earlyworm import TicketError, UnitsError, compact, round_ticket
from earlyworm.inputs import call_model, floating_tensors
from earlyworm.units.groups import named_tensors
from earlyworm.units.holding import HoldAtZero

INDEPENDENT = ["plain", "resnet_basic", "resnet_bottleneck", "resnext", "pre_activation", "densenet", "inception",
               "mobilenet", "unet", "transposed", "flatten_norm", "conv1d", "doubled", "channels_last", "prelu",
               "squeeze_excite", "mixed_requires_grad", "shared_modules", "hf_regnet_y", "hf_mobilenet_v1"]  # fmt: skip

few = settings(max_examples=3, derandomize=True, deadline=None, database=None)
masks = given(seed=st.integers(0, 2**32 - 1), density=st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]))


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    return list(floating_tensors(call_model(model, inputs)))


def assert_close(expected: Tensor, actual: Tensor, tolerance: float, what: str = "output") -> None:
    assert expected.shape == actual.shape, what
    assert expected.dtype == actual.dtype, what
    expected, actual = expected.detach(), actual.detach()
    difference = float((expected - actual).abs().max()) if expected.numel() else 0.0
    assert difference <= tolerance * max(1.0, float(expected.abs().max())), (what, difference)


def loss_of(tensors: list[Tensor]) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.stack(
        [(torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) * t).sum() for t in tensors]
    ).sum()


def pair(name: str, ticket: ew.Ticket, seed: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, Any]:
    """The masked and the compacted network of one dense network, and inputs."""
    model, inputs = zoo.build(name, seed=seed, dtype=dtype)
    small = compact(model, ticket)
    ticket.apply(model)
    return model, small, inputs


# ------------------------------------------------------------------------------------ masked == compacted


@pytest.mark.parametrize("name", zoo.ZOO)
@few
@masks
def test_eval_and_train_mode_agree(name: str, seed: int, density: float) -> None:
    ticket = zoo.random_ticket(name, seed, density=density)
    masked, small, inputs = pair(name, ticket, seed, torch.float64)
    check_agreement(masked, small, inputs, zoo.kept_entries(zoo.build(name)[0], ticket))


@pytest.mark.parametrize("name", INDEPENDENT)
@few
@masks
def test_eval_and_train_mode_agree_with_independent_coupling(name: str, seed: int, density: float) -> None:
    ticket = zoo.random_ticket(name, seed, density=density, coupling="independent")
    masked, small, inputs = pair(name, ticket, seed, torch.float64)
    check_agreement(masked, small, inputs, None)


def check_agreement(masked: nn.Module, small: nn.Module, inputs: Any, entries: dict[str, Tensor] | None) -> None:
    masked.eval(), small.eval()
    for a, b in zip(outputs(masked, inputs), outputs(small, inputs), strict=True):
        assert_close(a, b, 1e-9)
    masked.train(), small.train()
    for _ in range(2):
        masked.zero_grad(), small.zero_grad()
        one, other = outputs(masked, inputs), outputs(small, inputs)
        for a, b in zip(one, other, strict=True):
            assert_close(a, b, 1e-9)
        loss_of(one).backward(), loss_of(other).backward()
    if entries is None:
        return
    dense, cut = named_tensors(masked), named_tensors(small)
    assert dense.keys() == cut.keys()
    for name, tensor in cut.items():
        if not tensor.is_floating_point():
            assert torch.equal(tensor, dense[name]), name
        elif isinstance(tensor, nn.Parameter):
            assert (tensor.grad is None) == (dense[name].grad is None), name
            if tensor.grad is not None:
                assert_close(dense[name].grad.flatten()[entries[name]], tensor.grad, 1e-8, name)
        else:
            assert_close(dense[name].flatten()[entries[name]], tensor, 1e-9, name)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_float32_agrees_to_1e5(name: str) -> None:
    masked, small, inputs = pair(name, zoo.random_ticket(name, 3), 3, torch.float32)
    for training in (False, True):
        masked.train(training), small.train(training)
        for a, b in zip(outputs(masked, inputs), outputs(small, inputs), strict=True):
            assert_close(a, b, 1e-5)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_small_network_is_smaller(name: str) -> None:
    ticket = zoo.random_ticket(name, 1, density=0.3)
    model, _ = zoo.build(name)
    small = compact(model, ticket)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    for group in ticket.units.groups:  # nothing that was removed is left anywhere
        kept = int(ticket.mask.kept[group.name].sum())
        for piece in group.with_role("filter"):
            before, after = named_tensors(model)[piece.tensor], named_tensors(small)[piece.tensor]
            assert before.shape[piece.dim] * kept == after.shape[piece.dim] * group.size or (
                len(piece.positions) < before.shape[piece.dim]
            )


def test_modules_describe_their_new_widths() -> None:
    for name in ("resnext", "mobilenet", "transposed", "instance_norm", "prelu", "vgg", "conv3d", "depthwise_bias"):
        small = compact(zoo.build(name)[0], zoo.random_ticket(name, 2))
        assert_widths(small)


def assert_widths(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            first, second = module.weight.shape[:2]
            channels = (module.in_channels, module.out_channels // module.groups)
            if not module.transposed:
                channels = (module.out_channels, module.in_channels // module.groups)
            assert (first, second) == channels
            assert module.in_channels % module.groups == module.out_channels % module.groups == 0
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.PReLU):
            assert module.weight.shape == (module.num_parameters,)
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            for tensor in (module.weight, module.running_mean):
                assert tensor is None or tensor.shape == (module.num_features,)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    convs = [module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd)]
    if isinstance(model, nn.Sequential) and len(norms) == len(convs) - 1:  # instance_norm: each behind its convolution
        assert [norm.num_features for norm in norms] == [conv.out_channels for conv in convs[:-1]]


def test_keeping_everything_changes_nothing() -> None:
    model, inputs = zoo.build("inception")
    small = compact(model, zoo.random_ticket("inception", 0, density=1.1), example_inputs=inputs)
    assert [p.shape for p in small.parameters()] == [p.shape for p in model.parameters()]
    assert torch.equal(model.eval()(inputs), small.eval()(inputs))


def test_a_compacted_network_can_be_searched_and_compacted_again() -> None:
    for name in ("resnext", "mobilenet", "densenet"):
        model, inputs = zoo.build(name)
        small = compact(model, zoo.random_ticket(name, 1, density=0.8))
        units = ew.find_channels(small, inputs)
        ticket = zoo.ticket_for(small, units, zoo.random_kept(units.groups, 2))
        smaller = compact(small, ticket)
        ticket.apply(small)
        assert_close(small.eval()(inputs), smaller.eval()(inputs), 1e-5)


# ------------------------------------------------------------------------------------ independent coupling


def test_independent_cuts_only_where_all_members_agree_and_holds_the_rest() -> None:
    units = zoo.units_of("resnet_basic", "independent")
    kept = {group.name: torch.ones(group.size, dtype=torch.bool) for group in units.groups}
    for name in ("0.1", "1.bn2"):  # the two that meet in a sum
        kept[name][[0, 2]] = False
    kept["1.bn2"][4] = False  # alone: stays, at zero
    kept["2.bn1"][3] = False
    model, _ = zoo.build("resnet_basic")
    small = compact(model, zoo.ticket_for(model, units, kept))
    assert small[0][0].out_channels == small[1].conv2.out_channels == 4
    assert small[2].conv1.out_channels == 7
    assert small[2].conv2.out_channels == 8
    expected = model[1].bn2.weight.detach()[[1, 3, 4, 5]].clone()
    expected[2] = 0
    assert torch.equal(small[1].bn2.weight, expected)
    assert torch.equal(small.state_dict()["1.bn2.weight"], expected)


def test_what_is_held_at_zero_stays_so_when_it_is_compacted_again() -> None:
    model, inputs = zoo.build("resnet_basic")
    small = compact(model, zoo.random_ticket("resnet_basic", 1, coupling="independent"))
    for model, prefix in ((small, ""), (nn.Sequential(small, nn.Identity()), "0.")):  # as a part of another, too
        units = ew.find_channels(model, inputs)
        ticket = zoo.ticket_for(model, units, zoo.random_kept(units.groups, 2, density=0.8))
        smaller = compact(model, ticket, example_inputs=inputs)
        masks = HoldAtZero.masks_in(smaller)
        assert masks
        assert {name.removeprefix(prefix) for name in masks} <= set(HoldAtZero.masks_in(small))
        optimizer = torch.optim.SGD(smaller.parameters(), lr=0.1, weight_decay=0.1)
        for _ in range(3):
            smaller.train()(inputs).sum().backward()
            optimizer.step()
        state = smaller.state_dict()
        assert all(not state[name][~mask.expand_as(state[name])].any() for name, mask in masks.items())


def test_independent_cuts_excited_channels() -> None:
    units = zoo.units_of("squeeze_excite", "independent")
    kept = {group.name: torch.arange(group.size) < 3 for group in units.groups}
    model, inputs = zoo.build("squeeze_excite")
    small = compact(model, zoo.ticket_for(model, units, kept), example_inputs=inputs)
    assert small[0][0].out_channels == small[1].expand.out_channels == small[1].reduce.in_channels == 3
    assert not small._forward_pre_hooks  # all of the mask was cut out


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    lambda p: torch.optim.AdamW(p, 0.01),
])  # fmt: skip
def test_independent_rest_stays_at_zero_while_the_small_network_is_trained(make: Any) -> None:
    ticket = zoo.random_ticket("resnet_bottleneck", 4, coupling="independent")
    masked, small, inputs = pair("resnet_bottleneck", ticket, 4, torch.float64)
    dense_optimizer, optimizer = make(masked.parameters()), make(small.parameters())
    zeros = {name: tensor == 0 for name, tensor in small.state_dict().items() if name.endswith(("weight", "bias"))}
    assert sum(int(zero.sum()) for zero in zeros.values()) > 5
    for _ in range(4):
        for model, optimizer_ in ((masked, dense_optimizer), (small, optimizer)):
            optimizer_.zero_grad()
            F.cross_entropy(model(inputs), torch.tensor([0, 1, 2])).backward()
            optimizer_.step()
        for name, zero in zeros.items():
            assert not small.get_parameter(name)[zero].any(), name
            assert small.get_parameter(name)[~zero].all(), name
    assert_close(masked.eval()(inputs), small.eval()(inputs), 1e-8)


def test_independent_copy_of_the_small_network_holds_its_own_rest() -> None:
    small = compact(zoo.build("resnet_basic")[0], zoo.random_ticket("resnet_basic", 1, coupling="independent"))
    twin = copy.deepcopy(small)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    state = twin.state_dict()
    zeros = {name: int((tensor == 0).sum()) for name, tensor in before.items() if "weight" in name}
    assert sum(zeros.values()) > 3
    assert {name: int((state[name] == 0).sum()) for name in zeros} == zeros
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())


# ------------------------------------------------------------------------------------ what stays as it was


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "state": {name: (tensor.detach().clone(), tensor.stride()) for name, tensor in named_tensors(model).items()},
        "ids": [id(tensor) for tensor in named_tensors(model).values()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "widths": [str(module) for module in model.modules()],
        "hooks": [(list(module._forward_pre_hooks), list(module._forward_hooks)) for module in model.modules()],
    }


def assert_unchanged(before: dict[str, Any], model: nn.Module) -> None:
    after = snapshot(model)
    for name, (tensor, stride) in before.pop("state").items():
        assert torch.equal(tensor, after["state"][name][0]), name
        assert stride == after["state"][name][1], name
    for one, other in zip(before.pop("grads"), after["grads"], strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    assert before == {key: after[key] for key in before}


@pytest.mark.parametrize(
    "name", ["resnet_basic", "tied_twins", "channels_last", "instance_norm", "mixed_requires_grad"]
)
@pytest.mark.parametrize("coupling", ["coupled", "independent"])
def test_the_given_network_is_untouched_and_shares_nothing(name: str, coupling: str) -> None:
    model, inputs = zoo.build(name)
    loss_of(outputs(model, inputs)).backward()
    list(model.modules())[2].eval()
    before, random_state = snapshot(model), torch.get_rng_state()
    small = compact(model, zoo.random_ticket(name, 1, coupling=coupling), example_inputs=inputs, round_to=2)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert_unchanged(before, model)
    storages = {tensor.untyped_storage().data_ptr() for tensor in named_tensors(model).values()}
    assert not storages & {tensor.untyped_storage().data_ptr() for tensor in named_tensors(small).values()}
    assert all(parameter.grad is None for parameter in small.parameters())
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert {n: p.requires_grad for n, p in small.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    assert all(parameter.is_leaf for parameter in small.parameters())


@pytest.mark.parametrize("name", ["channels_last", "mobilenet", "conv3d", "transposed"])
def test_memory_format(name: str) -> None:
    model, _ = zoo.build(name)
    last = torch.channels_last_3d if name == "conv3d" else torch.channels_last
    for memory_format in (torch.contiguous_format, last):
        small = compact(model.to(memory_format=memory_format), zoo.random_ticket(name, 1))
        fresh = copy.deepcopy(small).to(memory_format=torch.contiguous_format).to(memory_format=memory_format)
        for name_, parameter in small.named_parameters():
            assert parameter.is_contiguous(memory_format=memory_format if parameter.dim() > 3 else
                                           torch.contiguous_format)  # fmt: skip
            big = [d for d, size in enumerate(parameter.shape) if size > 1]  # a dimension of one has no stride
            assert [parameter.stride(d) for d in big] == [fresh.get_parameter(name_).stride(d) for d in big], name_


def test_dtype_per_parameter() -> None:
    model, inputs = zoo.build("plain", dtype=torch.bfloat16)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    before = {name: tensor.dtype for name, tensor in named_tensors(model).items()}
    small = compact(model, zoo.random_ticket("plain", 1), example_inputs=inputs)
    assert {name: tensor.dtype for name, tensor in named_tensors(small).items()} == before
    assert outputs(small, inputs)[0].dtype == torch.bfloat16


def test_ties_and_parameter_attributes() -> None:
    for name in ("tied_twins", "tied_autoencoder"):
        model, _ = zoo.build(name)
        small = compact(model, zoo.random_ticket(name, 1))
        ties = [[a is b for b in named_tensors(model).values()] for a in named_tensors(model).values()]
        assert ties == [[a is b for b in named_tensors(small).values()] for a in named_tensors(small).values()]
    model, _ = zoo.build("plain")
    for i, parameter in enumerate(model.parameters()):
        parameter.group = f"group {i}"
    small = compact(model, zoo.random_ticket("plain", 1))
    assert [p.group for p in small.parameters()] == [p.group for p in model.parameters()]


def test_buffers_stay_buffers() -> None:
    model, _ = zoo.build("plain")
    model.register_buffer("scratch", torch.ones(3), persistent=False)
    units = zoo.units_of("plain")
    small = compact(model, zoo.ticket_for(model, units, zoo.random_kept(units.groups, 1)))
    assert list(small.state_dict()) == list(model.state_dict())
    assert [name for name, _ in small.named_buffers()] == [name for name, _ in model.named_buffers()]
    assert [name for name, _ in small.named_parameters()] == [name for name, _ in model.named_parameters()]


def test_a_network_with_an_applied_ticket() -> None:
    ticket = zoo.random_ticket("resnet_basic", 1)
    model, inputs = zoo.build("resnet_basic")
    expected = compact(model, ticket)
    applied = ticket.apply(model)
    small = compact(model, ticket, example_inputs=inputs)
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), small.parameters(), strict=True))
    assert not small._forward_pre_hooks
    assert not small._state_dict_pre_hooks
    assert len(model._forward_pre_hooks) == 1
    applied.remove()


def test_wrappers_are_seen_through() -> None:
    ticket = zoo.random_ticket("plain", 1)
    model, inputs = zoo.build("plain")
    expected = compact(model, ticket)
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        small = compact(wrapped, ticket, example_inputs=inputs)
        assert type(small) is type(model)
        assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), small.parameters(), strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_made_in_any_mode_it_can_be_trained(mode: Any) -> None:
    model, inputs = zoo.build("resnet_basic")
    ticket = zoo.random_ticket("resnet_basic", 1, coupling="independent")
    with mode():
        small = compact(model, ticket, example_inputs=inputs)
    assert not any(tensor.is_inference() for tensor in named_tensors(small).values())
    small(inputs).sum().backward()
    torch.optim.SGD(small.parameters(), 0.1).step()


def test_example_inputs_catch_another_forward() -> None:
    class Other(zoo.Scaled):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x.softmax(1) + self.gamma * self.body(x))

    ticket = zoo.random_ticket("scaled", 1)
    model = zoo.randomise_(Other(), 0)
    compact(model, ticket)
    with pytest.raises(TicketError, match="does not compute what the masked one computes"):
        compact(model, ticket, example_inputs=zoo.images())


def test_a_bound_forward_goes_along_but_a_patched_one_is_an_error() -> None:
    model, inputs = zoo.build("plain")
    model[1].forward = model[1].forward
    small = compact(model, zoo.random_ticket("plain", 1), example_inputs=inputs)
    assert small[1].forward.__self__ is small[1]

    model, _ = zoo.build("plain")
    model[0].forward = functools.partial(model[0].forward)
    with pytest.raises(UnitsError, match=r"forward of ConvNorm was replaced .* put it into a subclass"):
        compact(model, zoo.random_ticket("plain", 1))


# ------------------------------------------------------------------------------------ rounding


@pytest.mark.parametrize("multiple", [2, 3, 8])
@pytest.mark.parametrize("name", ["plain", "resnet_basic", "resnext", "mobilenet", "flatten_norm", "vgg", "conv1d",
                                  "densenet", "hf_regnet_y", "channel_multiplier", "transposed"])  # fmt: skip
@settings(max_examples=3, derandomize=True, deadline=None, database=None)
@masks
def test_round_to(name: str, multiple: int, seed: int, density: float) -> None:
    ticket = zoo.random_ticket(name, seed, density=density)
    rounded = round_ticket(ticket, multiple)
    model, _ = zoo.build(name)
    small = compact(model, ticket, round_to=multiple)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), compact(model, rounded).parameters(), strict=True))
    for group in ticket.units.groups:
        before, after = ticket.mask.kept[group.name], rounded.mask.kept[group.name]
        assert not (before & ~after).any()  # only ever revives
        filters = list(group.with_role("filter"))
        widths = [named_tensors(small)[piece.tensor].shape[piece.dim] for piece in filters]
        whole = [named_tensors(model)[piece.tensor].shape[piece.dim] for piece in filters]
        assert all(width % multiple == 0 or width == full for width, full in zip(widths, whole, strict=True))
        revived, dead = after & ~before, ~after
        if revived.any():  # one less would not have been enough
            per_unit = widths[0] // int(after.sum())
            assert all((int(before.sum()) + i) * per_unit % multiple for i in range(int(revived.sum())))
            if dead.any():
                scores = ticket.scores[group.name]
                assert scores[revived].min() >= scores[dead].max()


def test_round_to_breaks_ties_by_index() -> None:
    model, _ = zoo.build("plain")
    units = zoo.units_of("plain")
    kept = {group.name: torch.ones(group.size, dtype=torch.bool) for group in units.groups}
    kept["1.0"][2:] = False
    ticket = zoo.ticket_for(model, units, kept)
    ticket.scores["1.0"][:] = 1
    assert round_ticket(ticket, 5).mask.kept["1.0"].tolist() == [True] * 5 + [False] * 7


@pytest.mark.parametrize("round_to", [1, 4])
def test_independent_masks_never_empty_a_layer(round_to: int) -> None:
    model, inputs = zoo.build("densenet")
    units = zoo.units_of("densenet", "independent")
    kept = {group.name: torch.zeros(group.size, dtype=torch.bool) for group in units.groups}
    for group in units.groups:
        kept[group.name][-1] = True  # so all that read a concatenation ignore its first branches
    ticket = zoo.ticket_for(model, units, kept)
    small = compact(model, ticket, example_inputs=inputs, round_to=round_to)
    convs = [module for module in small.modules() if isinstance(module, nn.Conv2d)]
    assert min(conv.out_channels for conv in convs) == (1 if round_to == 1 else 3)
    assert small[0].out_channels == round_to
    round_ticket(ticket, round_to).apply(model)
    model.train(), small.train()
    assert_close(model(inputs), small(inputs), 1e-5)


@masks
@few
def test_round_to_with_independent_coupling(seed: int, density: float) -> None:
    ticket = zoo.random_ticket("resnet_bottleneck", seed, density=density, coupling="independent")
    model, inputs = zoo.build("resnet_bottleneck", seed=seed, dtype=torch.float64)
    small = compact(model, ticket, round_to=4, example_inputs=inputs)
    for name in ("0.0", "1.reduce.0", "1.expand.0", "2.spatial.0", "2.expand.0"):
        width, full = small.get_submodule(name).out_channels, model.get_submodule(name).out_channels
        assert width % 4 == 0 or width == full
    rounded = round_ticket(ticket, 4)
    assert not (ticket.mask.flat & ~rounded.mask.flat).any()
    rounded.apply(model)
    assert_close(model.eval()(inputs), small.eval()(inputs), 1e-9)


def test_round_to_revives_the_best_of_the_coupled_units_under_independent_coupling() -> None:
    model, _ = zoo.build("resnet_basic")
    units = zoo.units_of("resnet_basic", "independent")
    kept = {group.name: torch.ones(group.size, dtype=torch.bool) for group in units.groups}
    kept["0.1"][1:] = False
    kept["1.bn2"][2:] = False  # so channels 2 to 5 can be cut; two are left
    ticket = zoo.ticket_for(model, units, kept)
    ticket.scores["0.1"] = torch.tensor([9.0, 9.0, 0.0, 3.0, 1.0, 2.0])
    ticket.scores["1.bn2"] = torch.tensor([9.0, 9.0, 9.0, 0.0, 1.0, 2.0])
    rounded = round_ticket(ticket, 4)  # means of the members: 4.5, 1.5, 1, 2
    assert rounded.mask.kept["1.bn2"].tolist() == [True, True, True, False, False, True]
    assert rounded.mask.kept["0.1"].tolist() == [True, False, True, False, False, True]


@pytest.mark.parametrize("multiple", [0, -8])
def test_impossible_multiple(multiple: int) -> None:
    with pytest.raises(TicketError, match=f"round_to is {multiple}, but must be a whole number, at least 1"):
        compact(zoo.build("plain")[0], zoo.random_ticket("plain", 1), round_to=multiple)


# ------------------------------------------------------------------------------------ export, compile, accelerate


@pytest.mark.parametrize(("name", "coupling"), [
    ("resnet_basic", "independent"), ("resnext", "coupled"), ("squeeze_excite", "coupled"), ("unet", "coupled"),
])  # fmt: skip
def test_export(name: str, coupling: str) -> None:
    model, inputs = zoo.build(name)
    small = compact(model, zoo.random_ticket(name, 1, coupling=coupling)).eval()
    exported = torch.export.export(small, (inputs,))
    assert_close(small(inputs), exported.module()(inputs), 1e-5)


@pytest.mark.parametrize(("name", "coupling", "backend"), [
    ("resnet_basic", "independent", "eager"), ("resnext", "coupled", "aot_eager"), ("unet", "coupled", "eager"),
])  # fmt: skip
def test_compile(name: str, coupling: str, backend: str) -> None:
    model, inputs = zoo.build(name)
    small = compact(model, zoo.random_ticket(name, 1, coupling=coupling))
    twin = copy.deepcopy(small)
    compiled = torch.compile(twin, backend=backend)
    for _ in range(2):
        expected, actual = small(inputs), compiled(inputs)
        assert_close(expected, actual, 1e-5)
        for network, output in ((small, expected), (twin, actual)):
            network.zero_grad()
            loss_of([output]).backward()
            torch.optim.SGD(network.parameters(), 0.01, momentum=0.9).step()
    for a, b in zip(small.state_dict().values(), twin.state_dict().values(), strict=True):
        assert_close(a, b, 1e-4)
    torch._dynamo.reset()


@pytest.fixture
def accelerator() -> Iterator[Any]:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    yield Accelerator(mixed_precision="bf16", cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    gc.collect()


def test_prepared_by_accelerate(accelerator: Any) -> None:
    model, inputs = zoo.build("resnet_basic")
    ticket = zoo.random_ticket("resnet_basic", 1)
    expected = compact(model, ticket)
    prepared = accelerator.prepare(model)
    assert "forward" in vars(prepared)
    small = compact(prepared, ticket, example_inputs=inputs)
    assert "forward" not in vars(small)
    assert torch.equal(small.eval()(inputs), expected.eval()(inputs))
    assert ew.find_channels(prepared, inputs).sizes == ticket.units.sizes
    prepared(inputs)  # the given one still runs, in mixed precision
    assert "forward" in vars(prepared)
    assert "forward" in vars(accelerator.prepare(small))  # and the smaller one can be prepared, too


# ------------------------------------------------------------------------------------ from files


FRESH = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, zoo
from safetensors.torch import load_model, save_file
from earlyworm import Ticket, compact
torch.set_num_threads(1)
for case in sys.argv[3:]:
    name, coupling = case.split("/")
    folder = f"{sys.argv[2]}/{name}-{coupling}"
    torch.manual_seed(99)
    model, inputs = zoo.ZOO[name]()  # with other weights
    small = compact(model, Ticket.load(f"{folder}/ticket.safetensors"))
    load_model(small, f"{folder}/model.safetensors")
    results = {"eval": small.eval()(inputs).detach()}
    small.train()
    results["train"] = small(inputs).detach()
    save_file(results, f"{folder}/fresh.safetensors")
"""


def test_small_network_in_a_fresh_process(tmp_path: Path) -> None:
    cases = ["resnet_basic/coupled", "resnet_basic/independent", "resnext/coupled", "tied_twins/coupled",
             "channels_last/coupled", "flatten_norm/coupled"]  # fmt: skip
    for case in cases:
        name, coupling = case.split("/")
        folder = tmp_path / case.replace("/", "-")
        folder.mkdir()
        model, inputs = zoo.build(name)
        ticket = zoo.random_ticket(name, 1, coupling=coupling)
        ticket.save(folder / "ticket.safetensors")
        small = compact(model, ticket)
        optimizer = torch.optim.SGD(small.parameters(), 0.01, momentum=0.9)
        small(inputs).square().mean().backward()
        optimizer.step()
        save_model(small, str(folder / "model.safetensors"))
        results = {"eval": small.eval()(inputs).detach()}
        small.train()
        results["train"] = small(inputs).detach()
        save_file(results, folder / "here.safetensors")
    subprocess.run([sys.executable, "-W", "error", "-c", FRESH, str(Path(zoo.__file__).parent), str(tmp_path), *cases],
                   check=True, timeout=100)  # fmt: skip
    for case in cases:
        here, fresh = (load_file(tmp_path / case.replace("/", "-") / f"{x}.safetensors") for x in ("here", "fresh"))
        assert torch.equal(here["eval"], fresh["eval"]), case
        assert torch.equal(here["train"], fresh["train"]), case


def test_a_search_is_no_ticket() -> None:
    model, inputs = zoo.build(next(iter(zoo.ZOO)))
    search = ew.TicketSearch(model, inputs)
    with pytest.raises(ew.TicketError, match=r"not a TicketSearch: search\.draw\(\) gives one"):
        ew.compact(model, search)
