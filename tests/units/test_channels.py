"""Which channels are units, which are left out and why, and that looking for them leaves no trace."""

import copy
import math
import random
import threading
import time
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

import zoo
from earlyworm import UnitGroup, Units, UnitsError, compact, find_channels
from earlyworm.units.groups import named_tensors
from zoo import ConvNorm, Head, images

DIFFERS = "a removed channel differs from a zeroed one"
FIXED = "the forward fixes its width"


class Model(nn.Module):
    """A network from its parts and a function of it and an image."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def slices(group: UnitGroup) -> dict[str, tuple[int, str, bool, list[int], list[int]]]:
    """Everything in a group, as plain values: dimension, role, gate, positions, units."""
    plain = {
        f"{piece.tensor}[{piece.dim}]": (piece.role, piece.gate, piece.positions.tolist(), piece.units.tolist())
        for piece in group.slices
    }
    assert len(plain) == len(group.slices)
    return plain


def group_of(units: Units, name: str) -> UnitGroup:
    return next(group for group in units.groups if group.name == name)


def tensors_of(group: UnitGroup, role: str) -> set[str]:
    return {piece.tensor for piece in group.slices if piece.role == role}


# ------------------------------------------------------------------------------------ expected groups


def test_plain_convolution_and_batch_norm() -> None:
    units = zoo.units_of("plain")
    assert units.sizes == {"0.0": 8, "1.0": 12, "2.0": 6}
    assert units.skipped == {}
    assert units.removable is units.groups
    eight = list(range(8))
    assert slices(units.groups[0]) == {
        "0.0.weight[0]": ("filter", False, eight, eight),
        "0.1.weight[0]": ("scale", True, eight, eight),
        "0.1.bias[0]": ("shift", True, eight, eight),
        "0.1.running_mean[0]": ("statistic", False, eight, eight),
        "0.1.running_var[0]": ("statistic", False, eight, eight),
        "1.0.weight[1]": ("input", False, eight, eight),
    }


def test_without_a_norm_filter_and_bias_are_the_gates() -> None:
    units = zoo.units_of("conv_bias")
    assert units.sizes == {"0": 8, "2": 7, "4": 6, "6": 5}
    seven = list(range(7))
    assert slices(units.groups[1]) == {
        "2.weight[0]": ("filter", True, seven, seven),
        "2.bias[0]": ("bias", True, seven, seven),
        "4.weight[1]": ("input", False, seven, seven),
    }


def test_residual_sums_couple() -> None:
    units = zoo.units_of("resnet_basic")
    assert units.sizes == {"0.0": 6, "1.conv1": 6, "2.conv1": 8, "2.conv2": 8, "3.conv1": 8}
    stem, stage = group_of(units, "0.0"), group_of(units, "2.conv2")
    assert tensors_of(stem, "filter") == {"0.0.weight", "1.conv2.weight"}
    assert tensors_of(stem, "scale") == {"0.1.weight", "1.bn2.weight"}
    assert tensors_of(stem, "input") == {"1.conv1.weight", "2.conv1.weight", "2.shortcut.0.weight"}
    assert tensors_of(stage, "scale") == {"2.bn2.weight", "2.shortcut.1.weight", "3.bn2.weight"}
    assert tensors_of(stage, "input") == {"3.conv1.weight", "4.2.weight"}


def test_pre_activation_gates_are_the_norms_that_read_the_stream() -> None:
    units = zoo.units_of("pre_activation")
    assert units.sizes == {"0": 6, "1.conv1": 6, "2.conv1": 9, "2.conv2": 9, "3.conv1": 9}
    stream = group_of(units, "2.conv2")
    assert tensors_of(stream, "filter") == {"2.conv2.weight", "2.shortcut.weight", "3.conv2.weight"}
    assert {piece.tensor for piece in stream.gates()} == {"3.bn1.weight", "3.bn1.bias", "4.weight", "4.bias"}


def test_concatenation_offsets() -> None:
    units = zoo.units_of("inception")
    three = slices(group_of(units, "1.three.1.0"))
    assert three["2.one.0.weight[1]"] == ("input", False, [4, 5, 6, 7, 8], [0, 1, 2, 3, 4])
    assert three["2.pool.1.0.weight[1]"] == ("input", False, [4, 5, 6, 7, 8], [0, 1, 2, 3, 4])
    pool = slices(group_of(units, "2.pool.1.0"))
    assert pool["3.2.weight[1]"] == ("input", False, [9, 10, 11], [0, 1, 2])


def test_dense_concatenations_pass_many_norms() -> None:
    grown = slices(group_of(zoo.units_of("densenet"), "1.conv2"))
    gates = {name: value[2] for name, value in grown.items() if value[0] == "scale"}
    assert gates == {"2.bn1.weight[0]": [6, 7, 8], "3.weight[0]": [6, 7, 8]}
    assert "1.bn1.weight[0]" not in grown


def test_a_concatenation_with_itself() -> None:
    doubled = slices(group_of(zoo.units_of("doubled"), "conv"))
    assert doubled["next.0.weight[1]"] == ("input", False, list(range(12)), [0, 1, 2, 3, 4, 5] * 2)


def test_depthwise_convolutions_belong_to_their_producers() -> None:
    units = zoo.units_of("mobilenet")
    assert units.sizes == {"0.0": 4, "1.body.0.0": 12, "2.body.0.0": 12, "2.body.2.0": 6, "3.body.0.0": 18}
    expanded = group_of(units, "1.body.0.0")
    assert tensors_of(expanded, "filter") == {"1.body.0.0.weight", "1.body.1.0.weight"}
    assert tensors_of(expanded, "scale") == {"1.body.0.1.weight", "1.body.1.1.weight"}
    assert tensors_of(group_of(units, "0.0"), "scale") == {"0.1.weight", "1.body.2.1.weight"}


def test_units_of_grouped_convolutions_are_one_channel_of_every_group() -> None:
    units = zoo.units_of("resnext")
    assert units.sizes == {"0.0": 8, "1.reduce.0": 2, "1.spatial.0": 2, "1.expand.0": 10, "2.reduce.0": 6,
                           "2.spatial.0": 6}  # fmt: skip
    reduce = slices(group_of(units, "1.reduce.0"))  # 8 channels into 4 groups
    assert reduce["1.reduce.0.weight[0]"] == ("filter", False, list(range(8)), [0, 1] * 4)
    assert reduce["1.spatial.0.weight[1]"] == ("input", False, [0, 1], [0, 1])
    spatial = slices(group_of(units, "2.spatial.0"))  # 12 channels out of 2 groups
    assert spatial["2.spatial.0.weight[0]"] == ("filter", False, list(range(12)), [0, 1, 2, 3, 4, 5] * 2)
    assert spatial["2.expand.0.weight[1]"] == ("input", False, list(range(12)), [0, 1, 2, 3, 4, 5] * 2)
    assert group_of(units, "2.spatial.0").positions_per_unit() == 2


def test_flattened_maps_repeat() -> None:
    units = zoo.units_of("vgg")
    assert units.sizes == {"0.0": 6, "2.0": 8, "5": 10, "7": 7}
    flat = slices(group_of(units, "2.0"))
    assert flat["5.weight[1]"] == ("input", False, list(range(32)), [c for c in range(8) for _ in range(4)])
    norm = slices(group_of(zoo.units_of("flatten_norm"), "0"))
    assert norm["2.weight[0]"] == ("scale", True, list(range(24)), [c for c in range(6) for _ in range(4)])
    assert group_of(zoo.units_of("flatten_norm"), "0").positions_per_unit() == 1


def test_squeeze_and_excite_belongs_to_what_it_scales() -> None:
    units = zoo.units_of("squeeze_excite")
    assert units.sizes == {"0.0": 8, "1.reduce": 4, "2.0": 6, "3.fc.0": 3, "4.0": 6}
    assert tensors_of(group_of(units, "0.0"), "filter") == {"0.0.weight", "1.expand.weight"}
    assert tensors_of(group_of(units, "2.0"), "input") == {"3.fc.0.weight", "4.0.weight"}


def test_transposed_convolutions() -> None:
    up = slices(group_of(zoo.units_of("unet"), "up"))
    assert up["up.weight[1]"] == ("filter", True, list(range(5)), list(range(5)))
    assert up["leave.0.0.weight[1]"] == ("input", False, [6, 7, 8, 9, 10], list(range(5)))
    assert slices(group_of(zoo.units_of("unet"), "down.2.0"))["up.weight[0]"][0] == "input"


def test_instance_norms() -> None:
    units = zoo.units_of("instance_norm")
    assert units.sizes == {"0": 8, "3": 6, "6": 7, "9": 6}
    bare, affine = slices(units.groups[0]), slices(units.groups[1])
    assert bare["1.num_features[0]"][:2] == ("width", False)
    assert bare["0.weight[0]"][:2] == ("filter", True)
    assert affine["4.weight[0]"][:2] == ("scale", True)
    assert affine["3.weight[0]"][:2] == ("filter", False)


def test_one_slope_for_all_couples_nothing() -> None:
    assert zoo.units_of("prelu").sizes == {"conv1": 6, "conv2": 8, "conv3": 5}
    assert slices(group_of(zoo.units_of("prelu"), "conv1"))["act1.weight[0]"][:2] == ("statistic", False)


def test_shared_and_tied_layers() -> None:
    assert zoo.units_of("shared_modules").sizes == {"stem.0": 6, "last.0": 7}  # what it reads is what it makes
    assert zoo.units_of("tied_twins").sizes == {"stem.0": 6, "a": 8}
    tied = zoo.units_of("tied_autoencoder")  # 6 channels of the encoder and 6 of the decoder share one dimension
    assert tied.sizes == {"conv2": 8}
    assert set(tied.skipped) == {"conv1", "up2"}


def test_real_architectures() -> None:
    assert set(zoo.units_of("hf_regnet_y").sizes.values()) == {2, 3, 4, 6, 8, 12}
    assert list(zoo.units_of("hf_convnext").sizes.values()) == [16, 24]
    assert set(zoo.units_of("hf_convnext").skipped) == {
        "convnext.embeddings.patch_embeddings",
        "convnext.encoder.stages.1.downsampling_layer.1",
    }
    assert all("normalises across channels" in reason for reason in zoo.units_of("hf_convnext").skipped.values())
    with pytest.raises(UnitsError, match=r"no channels to prune in ConvNextV2.* \(.*pwconv1: a removed channel"):
        find_channels(*zoo.hf_convnext_v2())


@pytest.mark.parametrize("name", zoo.ZOO)
def test_invariants(name: str) -> None:
    model, _ = zoo.build(name)
    tensors, units = named_tensors(model), zoo.units_of(name)
    owned: set[tuple[str, int, int]] = set()
    assert units.groups
    assert len({group.name for group in units.groups}) == len(units.groups)
    for group in units.groups:
        assert group.size >= 2
        for piece in group.slices:
            assert piece.positions.dtype == piece.units.dtype == torch.int64
            assert (piece.positions.diff() > 0).all()
            assert piece.units.min() >= 0
            assert piece.units.max() < group.size
            if piece.role != "width":
                assert piece.positions.max() < tensors[piece.tensor].shape[piece.dim]
            places = {(piece.tensor, piece.dim, position) for position in piece.positions.tolist()}
            assert not places & owned, "two groups own one place"
            owned |= places
        gated = torch.cat([piece.units for piece in group.gates()])
        assert torch.equal(gated.unique(), torch.arange(group.size)), "a unit without a gate"
        made = torch.cat([piece.units for piece in group.with_role("filter")])
        assert torch.equal(made.unique(), torch.arange(group.size)), "a unit that no layer makes"


@pytest.mark.parametrize("name", ["plain", "unet", "two_outputs", "dict_output", "instance_norm", "tied_autoencoder"])
def test_outputs_and_image_channels_are_never_units(name: str) -> None:
    outputs = {
        "plain": ["3.2"], "unet": ["leave.1"], "two_outputs": ["classes.2", "boxes"],
        "dict_output": ["classes.2", "boxes"], "instance_norm": ["12"], "tied_autoencoder": ["up1"],
    }  # fmt: skip
    first = {"plain": "0.0", "unet": "enter.0", "instance_norm": "0", "tied_autoencoder": "conv1"}.get(
        name, "trunk.0.0"
    )
    units = zoo.units_of(name)
    made = {piece.tensor for group in units.groups for piece in group.with_role("filter")}
    read = {piece.tensor for group in units.groups for piece in group.with_role("input")}
    assert not made & {f"{output}.weight" for output in outputs[name]}
    assert f"{first}.weight" not in read
    assert not set(outputs[name]) & set(units.skipped)  # that is no news


# ------------------------------------------------------------------------------------ left out, with the reason


def stem() -> ConvNorm:
    return ConvNorm(3, 6)


def behind(*layers: nn.Module, channels: int = 8) -> nn.Sequential:
    """A convolution with `layers` behind it, and more convolutions around it."""
    return nn.Sequential(stem(), nn.Conv2d(6, 8, 3, padding=1), *layers, nn.Conv2d(channels, 5, 1), nn.ReLU(), Head(5))


class View(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 512)


class Assertion(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 8
        return x


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias, padding=1)


@pytest.mark.parametrize(("layers", "reason"), [
    ([nn.LayerNorm([8, 8, 8])], "its channels pass 2, which normalises across channels"),
    ([nn.GroupNorm(2, 8)], "its channels pass 2, which normalises across channels"),
    ([nn.LocalResponseNorm(3)], DIFFERS),
    ([nn.Sigmoid()], DIFFERS),
    ([nn.BatchNorm2d(8), nn.Sigmoid()], DIFFERS),
    ([nn.BatchNorm2d(8), nn.Softplus()], DIFFERS),
    ([nn.Softmax2d()], DIFFERS),
    ([nn.ChannelShuffle(2)], DIFFERS),
    ([nn.BatchNorm2d(8, affine=False)], DIFFERS),
    ([Assertion()], FIXED),
])  # fmt: skip
def test_layers_that_cannot_be_pruned_exactly(layers: list[nn.Module], reason: str) -> None:
    units = find_channels(behind(*layers), images())
    assert list(units.skipped) == ["1"]
    assert units.skipped["1"].startswith(reason)
    assert units.sizes == {"0.0": 6, str(2 + len(layers)): 5}


def test_activations_between_two_norms_may_be_anything() -> None:
    assert "1" in find_channels(behind(nn.BatchNorm2d(8), nn.Sigmoid(), nn.BatchNorm2d(8)), images()).sizes


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, str], dict[str, int]]] = {
    "hard-coded view": (
        lambda: nn.Sequential(stem(), nn.Conv2d(6, 8, 3, padding=1), View(), nn.Linear(512, 7), nn.ReLU(),
                              nn.Linear(7, 5)),
        {"1": FIXED}, {"0.0": 6, "3": 7},
    ),
    "pixels before channels": (
        lambda: Model(lambda s, x: s.last(s.fc(s.a(x).permute(0, 2, 3, 1).flatten(1))),
                      a=stem(), fc=nn.Linear(384, 7), last=nn.Linear(7, 5)),
        {"a.0": DIFFERS}, {"fc": 7},
    ),
    "halves": (zoo.Split, {"enter.0": "its channels cannot be followed to"}, {"stem.0": 6, "leave.0": 8}),
    "gated halves": (
        lambda: Model(lambda s, x: s.head(s.c(F.glu(s.b(s.a(x)), 1))),
                      a=stem(), b=nn.Conv2d(6, 12, 1), c=ConvNorm(6, 5), head=Head(5)),
        {"b": DIFFERS}, {"a.0": 6, "c.0": 5},
    ),
    "summed halves": (  # of 12 channels a third may go evenly from both halves
        lambda: Model(lambda s, x: s.head(s.c(torch.stack(s.b(s.a(x)).relu().chunk(2, 1)).sum(0))),
                      a=stem(), b=nn.Conv2d(6, 12, 1), c=ConvNorm(6, 5), head=Head(5)),
        {"b": DIFFERS}, {"a.0": 6, "c.0": 5},
    ),
    "maximum over channels": (
        lambda: Model(lambda s, x: s.head(torch.cat([s.b(s.a(x)), s.b(s.a(x)).amax(1, keepdim=True)], 1)),
                      a=stem(), b=nn.Conv2d(6, 8, 3), head=Head(9)),
        {"b": DIFFERS}, {"a.0": 6},
    ),
    "image in front": (
        lambda: Model(lambda s, x: s.head(s.b(torch.cat([x, s.a(x)], 1))), a=stem(), b=ConvNorm(9, 8), head=Head(8)),
        {"a.0": DIFFERS}, {"b.0": 8},
    ),
    "image in a sum": (
        lambda: Model(lambda s, x: s.head(s.b(x + s.a(x))), a=ConvNorm(3, 3), b=ConvNorm(3, 8), head=Head(8)),
        {"a.0": FIXED}, {"b.0": 8},
    ),
    "depthwise on the image": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), ConvNorm(3, 8), Head(8)),
        {"0": "its channels are the image's"}, {"1.0": 8},
    ),
    "generator": (
        lambda: Model(lambda s, x: s.c(s.b(s.fc(x.mean((2, 3))).view(-1, 8, 4, 4))), fc=nn.Linear(3, 128),
                      b=nn.ConvTranspose2d(8, 6, 4, 2, 1), c=nn.Conv2d(6, 3, 1)),
        {"fc": FIXED}, {"b": 6},
    ),
    "grouped transposed": (
        lambda: nn.Sequential(stem(), nn.ConvTranspose2d(6, 6, 2, groups=2), nn.ReLU(), ConvNorm(6, 5), Head(5)),
        dict.fromkeys(("0.0", "1"), "grouped transposed convolutions are not supported"), {"3.0": 5},
    ),
    "two in, one out": (
        lambda: nn.Sequential(ConvNorm(3, 12), nn.Conv2d(12, 6, 3, groups=6), nn.ReLU(), ConvNorm(6, 5), Head(5)),
        {"0.0": "only some of its channels pass the grouped convolution 1"}, {"3.0": 5},
    ),
    "weight norm": (
        lambda: nn.Sequential(stem(), parametrizations.weight_norm(nn.Conv2d(6, 8, 1)), ConvNorm(8, 5), Head(5)),
        dict.fromkeys(("0.0", "1"), "its channels cannot be followed to 1.weight"), {"2.0": 5},
    ),
    "weight standardisation": (
        lambda: nn.Sequential(stem(), Standardised(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Head(8)),
        {"0.0": DIFFERS}, {"1": 8},
    ),
    "attention": (
        lambda: nn.Sequential(stem(), nn.Flatten(2), nn.Linear(64, 4),
                              nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Flatten(), nn.Linear(24, 3)),
        {"2": "its channels pass a MultiheadAttention", "0.0": FIXED,
         "3.self_attn.out_proj": "the forward on the example inputs does not use it"},
        {"3.linear1": 8},
    ),
    "unused": (
        lambda: Model(lambda s, x: s.head(s.a(x)), a=stem(), b=ConvNorm(6, 4), head=Head(6)),
        {"b.0": "the forward on the example inputs does not use it"}, {"a.0": 6},
    ),
    "only one unit": (zoo.channel_multiplier_model, {"0.0": "its channels can only be removed all together"},
                      {"1.0": 2, "2.0": 6}),
    "used in train mode only": (
        zoo.Auxiliary,
        {"body.0": FIXED, "auxiliary.0.0": "the forward on the example inputs does not use it",
         "auxiliary.1.2": "the forward on the example inputs does not use it"},
        {"stem.0": 6, "last.0": 7},
    ),
    "its own map too": (zoo.Features, {"body.0": "removing its channels changes the shape of the output"},
                        {"stem.0": 8}),
    "a detached map too": (
        lambda: Model(lambda s, x: (s.b(s.a(x)).detach(), s.head(s.b(s.a(x)))), a=stem(), b=ConvNorm(6, 8),
                      head=Head(8)),
        {"b.0": "removing its channels changes the shape of the output"}, {"a.0": 6},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_forwards_that_cannot_be_pruned_exactly(name: str) -> None:
    build, reasons, sizes = MODELS[name]
    torch.manual_seed(0)
    units = find_channels(build(), images())
    assert units.sizes == sizes
    assert units.skipped.keys() == reasons.keys()
    assert all(units.skipped[layer].startswith(reason) for layer, reason in reasons.items())


@pytest.mark.parametrize("fill", [-1e4, -1e9, torch.finfo(torch.float32).min, -math.inf])
def test_masked_outputs_do_not_hide_a_wrong_cut(fill: float) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        b = s.b(s.a(x))
        y = s.head(torch.cat([b, b.amax(1, keepdim=True)], 1))
        return y.masked_fill(torch.arange(y.shape[1]) > 0, fill)

    units = find_channels(Model(forward, a=stem(), b=nn.Conv2d(6, 8, 3), head=Head(9)), images())
    assert units.sizes == {"a.0": 6}
    assert units.skipped["b"].startswith(DIFFERS)


def test_forwards_that_can_be_pruned() -> None:
    for model, sizes in [
        (Model(lambda s, x: s.head(s.b(torch.cat([s.a(x), x], 1))), a=stem(), b=ConvNorm(9, 8), head=Head(8)),
         {"a.0": 6, "b.0": 8}),
        (Model(lambda s, x: s.fc(torch.einsum("bchw,bchw->bc", s.a(x), s.b(x))), a=stem(), b=stem(),
               fc=nn.Linear(6, 2)), {"a.0": 6}),
        (Model(lambda s, x: s.head(s.a(x)) * s.t.log(), a=stem(), head=Head(6), t=nn.Parameter(torch.tensor(2.0))),
         {"a.0": 6}),
        (nn.Sequential(nn.BatchNorm2d(3), stem(), Head(6)), {"1.0": 6}),
        (Model(lambda s, x: (s.head(s.a(x)), x.new_zeros(0)), a=stem(), head=Head(6)), {"a.0": 6}),
        (Model(lambda s, x: s.head(s.a(x / s.std.sqrt())), a=stem(), head=Head(6), std=nn.Buffer(torch.ones(3, 1, 1))),
         {"a.0": 6}),
    ]:  # fmt: skip
        units = find_channels(model, images())
        assert units.sizes == sizes
        assert units.skipped == {}


# ------------------------------------------------------------------------------------ what a comparison tells


@pytest.mark.parametrize("last", [nn.ReLU(), nn.Hardtanh(0, 1), nn.Hardsigmoid()])
@pytest.mark.parametrize("width", range(3, 13))
def test_a_saturated_output_does_not_hide_a_wrong_cut(last: nn.Module, width: int) -> None:
    model = nn.Sequential(stem(), nn.Conv2d(6, width, 1), nn.Sigmoid(), Head(width, 1), last)
    units = find_channels(model, torch.rand(1, 3, 8, 8))
    assert units.sizes == {"0.0": 6}
    assert units.skipped["1"].startswith(DIFFERS)


def test_nor_does_one_of_two_outputs() -> None:
    for last in (nn.ReLU(), nn.Hardtanh(0, 1)):
        model = Model(
            lambda s, x: (s.head(s.a(x)), s.last(s.other(s.b(s.a(x)).sigmoid()))),
            a=stem(), b=nn.Conv2d(6, 8, 1), head=Head(6), other=Head(8, 1), last=last,
        )  # fmt: skip
        units = find_channels(model, images())
        assert units.sizes == {"a.0": 6}
        assert units.skipped["b"].startswith(DIFFERS)


def test_nor_does_an_input_of_zeros() -> None:
    model = Model(
        lambda s, x: s.head(s.a(x).relu() / s.a(x).shape[1]),
        a=nn.Conv2d(3, 8, 3, bias=False), head=nn.Sequential(nn.Conv2d(8, 6, 3, bias=False), nn.ReLU(), Head(6)),
    )  # fmt: skip
    for inputs in (torch.zeros(1, 3, 8, 8), images()):
        units = find_channels(model, inputs)
        assert units.sizes == {"head.0": 6}
        assert units.skipped["a"].startswith(DIFFERS)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("inputs", "last"), [
    (images() * 255, nn.Softmax(1)),
    (images() * 255, nn.Sigmoid()),
    (images(), Model(lambda s, x: (x / 0.05).softmax(1))),
])  # fmt: skip
def test_nor_does_an_output_that_is_all_but_saturated(inputs: Tensor, last: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    units = find_channels(nn.Sequential(stem(), nn.Conv2d(6, 8, 1), nn.Softplus(), Head(8, 4), last), inputs)
    assert units.sizes == {"0.0": 6}
    assert units.skipped["1"].startswith(DIFFERS)


def test_channels_without_effect_are_left_out() -> None:
    model = Model(lambda s, x: s.head(s.a(x)) + 0 * s.other(s.b(x)), a=stem(), b=stem(), head=Head(6), other=Head(6))
    units = find_channels(model, images())
    assert units.sizes == {"a.0": 6}
    assert units.skipped["b.0"].startswith("with random weights its channels change next to nothing in the output")


# ------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(("model", "message"), [
    (nn.ReLU(), "ReLU has no parameters: there is nothing to prune"),
    (nn.Conv2d(3, 4, 3), "no channels to prune in Conv2d: looked for convolutions and linear layers .* such layers"),
    (nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1)),
     r"no channels to prune in Sequential: .*\(0: its channels pass 1, which normalises across channels\)"),
    (nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 2, 1)),
     "Sequential cannot be traced on the example inputs: Given groups=1, weight of size"),
    (Model(lambda s, x: None, a=stem()), "Model cannot be traced .*: it returns no floating-point tensor"),
    (Model(lambda s, x: s.a(x).detach(), a=stem()), "Model cannot be traced .* that autograd can follow back"),
])  # fmt: skip
def test_nothing_to_prune(model: nn.Module, message: str) -> None:
    with pytest.raises(UnitsError, match=message) as caught:
        find_channels(model, images())
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_be_copied() -> None:
    model, inputs = zoo.plain()
    prune.l1_unstructured(model[0][0], "weight", 0.5)
    with pytest.raises(UnitsError, match=r"Sequential: 0\.0\.weight, a Tensor, cannot be copied: "):
        find_channels(model, inputs)
    model, inputs = zoo.plain()
    model.lock = threading.Lock()
    with pytest.raises(UnitsError, match=r"Sequential: lock, a lock, cannot be copied: "):
        find_channels(model, inputs)
    with pytest.raises(UnitsError, match=r"forward of OptimizedModule .* do not wrap parts of a model"):
        find_channels(nn.Sequential(torch.compile(stem(), backend="eager"), Head(6)), images())


def test_a_model_that_keeps_what_it_has_computed() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        s.kept = s.a(x)
        return s.head(s.kept)

    model = Model(forward, a=stem(), head=Head(6))
    model(images())
    with pytest.raises(UnitsError, match=r"Model: kept, a Tensor, cannot be copied: .* forward pass .* clear it"):
        find_channels(model, images())
    model.kept = None
    assert find_channels(model, images()).sizes == {"a.0": 6}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_that_torchscript_has_compiled() -> None:
    model, inputs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), images()
    for compiled in (torch.jit.trace(model, inputs), nn.Sequential(torch.jit.script(model))):
        with pytest.raises(UnitsError, match="is compiled by TorchScript: search the module that it was made from"):
            find_channels(compiled, inputs)


def test_a_group_with_impossible_positions_is_left_out() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        x = s.start(x)
        for gated, residual in zip(s.gated, s.residual, strict=True):
            a, b = gated(x).chunk(2, 1)
            z = residual(a.tanh() * b.sigmoid())
            x = z + x[..., -z.shape[-1] :]  # torch-pruning takes the cut in time for one in channels
        return s.end(s.last(x).relu())

    model = Model(
        forward, start=nn.Conv1d(4, 16, 1), last=nn.Conv1d(16, 8, 1), end=nn.Conv1d(8, 5, 1),
        gated=nn.ModuleList([nn.Conv1d(16, 32, 2, dilation=2**i) for i in range(3)]),
        residual=nn.ModuleList([nn.Conv1d(16, 16, 1) for _ in range(3)]),
    )  # fmt: skip
    units = find_channels(model, torch.randn(2, 4, 30))
    assert units.sizes == {"last": 8}
    assert "its channels cannot be followed to start" in units.skipped.values()


def test_channels_that_reach_the_output_without_being_it_are_named() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        return F.linear(F.normalize(s.b(s.a(x)).mean((2, 3))), F.normalize(s.classes))

    model = Model(forward, a=stem(), b=ConvNorm(6, 8), classes=nn.Parameter(torch.randn(5, 8)))
    units = find_channels(model, images())
    assert units.sizes == {"a.0": 6}
    assert units.skipped == {"b.0": "its channels reach the model's output without passing another layer"}


def test_a_forward_that_torch_pruning_cannot_follow() -> None:
    def shuffled(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        for layer in s.layers:
            a, b = y.chunk(2, 1)
            y = torch.cat([a, layer(b)], 1).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return s.head(y)

    model = Model(shuffled, a=ConvNorm(3, 24), layers=nn.ModuleList(ConvNorm(12, 12) for _ in range(4)), head=Head(24))
    message = (
        r"Model cannot be traced on the example inputs: torch-pruning cannot follow what its forward does \(integer"
    )
    with pytest.raises(UnitsError, match=message):
        find_channels(model, images())


def attend_by_einsum(m: Any, x: Tensor) -> Tensor:
    y = m.stem(x)
    q, k, v = (layer(y).flatten(2) for layer in (m.q, m.k, m.v))
    weights = torch.einsum("bcn,bcm->bnm", q, k).softmax(-1)
    return m.head(m.last(y + torch.einsum("bnm,bcm->bcn", weights, v).view_as(y)))


def test_a_group_that_does_not_end_is_left_out_and_no_other() -> None:
    parts = {"q": nn.Conv2d(6, 3, 1), "k": nn.Conv2d(6, 3, 1), "v": nn.Conv2d(6, 6, 1)}
    model = Model(attend_by_einsum, stem=ConvNorm(3, 6), last=ConvNorm(6, 5), head=Head(5), **parts)
    found = find_channels(model, images())
    assert found.sizes == {"last.0": 5}
    assert set(found.skipped) == {"stem.0", "q", "k", "v"}
    assert "what they are coupled with does not end" in found.skipped["q"]


@pytest.mark.parametrize("recurrent", [nn.GRU, nn.LSTM, nn.RNN])
def test_what_a_recurrent_layer_reads_is_left_out_and_no_other(recurrent: type[nn.Module]) -> None:
    model = Model(
        lambda m, x: m.head(m.recurrent(m.last(m.stem(x)).permute(0, 3, 1, 2).flatten(2))[0]),
        stem=ConvNorm(3, 6), last=ConvNorm(6, 5), recurrent=recurrent(40, 7, batch_first=True), head=nn.Linear(7, 2),
    )  # fmt: skip
    found = find_channels(model, images())
    assert found.sizes == {"stem.0": 6}
    assert "last.0" in found.skipped


@dataclass
class Returned:
    scores: Tensor
    features: Tensor


@pytest.mark.parametrize(
    "returned",
    [
        lambda scores, y: (Returned(scores, y),),
        lambda scores, y: {"scores": scores, "more": types.SimpleNamespace(features=y)},
        lambda scores, y: (scores, torch.fft.rfft2(y)),
    ],
)
def test_outputs_of_any_kind_are_seen(returned: Callable[[Tensor, Tensor], Any]) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.last(m.stem(x))
        return returned(m.head(y), y)

    found = find_channels(Model(forward, stem=ConvNorm(3, 6), last=ConvNorm(6, 5), head=Head(5)), images())
    assert found.sizes == {"stem.0": 6}


def in_train_mode(of_training: Callable[[Tensor], Tensor]) -> Model:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.last(m.stem(x))
        return (m.head(y), of_training(y)) if m.training else m.head(y)

    return Model(forward, stem=ConvNorm(3, 6), last=ConvNorm(6, 5), head=Head(5))


def test_values_in_train_mode_are_compared_where_they_are_not_random() -> None:
    assert find_channels(in_train_mode(lambda y: y.mean(1)), images()).sizes == {"stem.0": 6}
    found = find_channels(in_train_mode(lambda y: F.dropout(y, 0.5).sum(1)), images())
    assert found.sizes == {"stem.0": 6, "last.0": 5}


def test_a_branch_of_training_is_seen_with_a_batch_of_one_that_no_batch_norm_could_train_on() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.stem(x)
        scores = m.head(m.last(torch.cat([y, m.pooled(m.pool(y)).expand(-1, -1, *y.shape[2:])], 1)))
        return (scores, m.auxiliary(y)) if m.training else scores

    model = Model(
        forward, stem=ConvNorm(3, 6), pool=nn.AdaptiveAvgPool2d(1), pooled=ConvNorm(6, 4), last=ConvNorm(10, 5),
        head=Head(5), auxiliary=nn.Conv2d(6, 2, 1),
    )  # fmt: skip
    found = find_channels(model, images(batch=1))
    assert found.sizes == {"pooled.0": 4, "last.0": 5}
    assert FIXED in found.skipped["stem.0"]


class OfOnesOwn(nn.BatchNorm2d):
    """Normalises across channels too, but only while it is trained."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / x.std((1, 2, 3), keepdim=True) if self.training else x)


def test_a_norm_of_ones_own_is_tried_in_train_mode() -> None:
    model = nn.Sequential(stem(), nn.Conv2d(6, 5, 3), OfOnesOwn(5), nn.ReLU(), Head(5))
    units = find_channels(model, images())
    assert units.sizes == {"0.0": 6}
    assert units.skipped["1"].startswith(DIFFERS)


def test_matrices_whose_values_cannot_be_any() -> None:
    model = Model(
        lambda m, x: m.head(m.last(m.stem(x))) @ m.matrix.log(),
        stem=ConvNorm(3, 6), last=ConvNorm(6, 5), head=Head(5, 3), matrix=nn.Parameter(torch.rand(3, 3) + 0.5),
    )  # fmt: skip
    assert find_channels(model, images()).sizes == {"stem.0": 6, "last.0": 5}


def test_an_output_that_is_no_number_says_nothing() -> None:
    model = Model(
        lambda m, x: m.head(m.last(m.stem(x))) * math.nan, stem=ConvNorm(3, 6), last=ConvNorm(6, 5), head=Head(5)
    )
    with pytest.raises(UnitsError, match="the output is not a number, so that nothing can be compared"):
        find_channels(model, images())


def test_random_numbers_of_numpy_and_python_are_drawn_without_a_trace() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        noise = random.random() + float(np.random.random()) if m.training else 0.0
        return m.head(m.last(m.stem(x)) + noise)

    before = random.getstate(), np.random.get_state()[1].tolist()
    model = Model(forward, stem=ConvNorm(3, 6), last=ConvNorm(6, 5), head=Head(5))
    assert find_channels(model, images()).sizes == {"stem.0": 6, "last.0": 5}
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_unknown_coupling() -> None:
    with pytest.raises(UnitsError, match="coupling is 'loose', but must be 'coupled' or 'independent'"):
        find_channels(*zoo.plain(), coupling="loose")  # type: ignore[arg-type]


@pytest.mark.parametrize("when", ["at once", "while it is tried"])
def test_a_forward_that_hangs(when: str) -> None:
    calls = []

    def forward(model: Any, x: Tensor) -> Tensor:
        calls.append(None)
        torch.rand(1)
        while when == "at once" or len(calls) > 2:
            time.sleep(0.01)
        return model.head(model.a(x))

    model = Model(forward, a=stem(), head=Head(6))
    random_state, start = torch.get_rng_state(), time.perf_counter()
    with pytest.raises(UnitsError, match=r"longer than 0.5 seconds and was stopped: raise time_limit"):
        find_channels(model, images(), time_limit=0.5)
    assert time.perf_counter() - start < 5
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not [thread for thread in threading.enumerate() if thread.name == "earlyworm-trace"]


# ------------------------------------------------------------------------------------ independent coupling


def test_independent_coupling_takes_every_batch_norm_for_itself() -> None:
    units = zoo.units_of("resnet_basic", "independent")
    assert units.sizes == {"0.1": 6, "1.bn2": 6, "1.bn1": 6, "2.bn1": 8, "2.bn2": 8, "2.shortcut.1": 8, "3.bn2": 8,
                           "3.bn1": 8}  # fmt: skip
    assert {group.name: group.size for group in units.removable} == zoo.units_of("resnet_basic").sizes
    six = list(range(6))
    assert slices(group_of(units, "1.bn2")) == {
        "1.bn2.weight[0]": ("scale", True, six, six),
        "1.bn2.bias[0]": ("shift", True, six, six),
    }


def test_independent_coupling_joins_what_one_norm_reads() -> None:
    units = zoo.units_of("densenet", "independent")
    assert units.sizes["2.bn1"] == 9  # of two producers
    assert units.sizes["3"] == 12
    assert len(units.removable) == 8


def test_independent_masks_of_norms_alone_decide_what_can_be_cut() -> None:
    """Excitations scale what a batch norm has zeroed; a convolution without a norm in a residual sum stays."""
    units = zoo.units_of("squeeze_excite", "independent")
    assert [group.name for group in units.removable] == ["0.0", "2.0", "4.0"]
    gates = {piece.tensor for group in units.removable for piece in group.gates()}
    assert gates == {f"{norm}.{name}" for norm in ("0.1", "2.1", "4.1") for name in ("weight", "bias")}
    units = zoo.units_of("transposed", "independent")
    assert units.sizes == {"enter.1": 6, "norm": 6, "down.1": 7}
    assert [group.name for group in units.removable] == ["down.0"]


def test_independent_coupling_needs_batch_norms() -> None:
    with pytest.raises(UnitsError, match=r"looks for batch norms, and Sequential has none .* take coupling='coupled'"):
        find_channels(*zoo.conv_bias(), coupling="independent")


# ------------------------------------------------------------------------------------ it leaves no trace


def snapshot(model: nn.Module) -> dict[str, Any]:
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_state_dict_hooks", "_state_dict_pre_hooks")
    return {
        "state": {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()},
        "versions": [tensor._version for tensor in named_tensors(model).values()],
        "ids": [id(tensor) for tensor in named_tensors(model).values()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [[list(getattr(module, name)) for name in hooks] for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
    }


@pytest.mark.parametrize("name", ["resnet_basic", "mixed_requires_grad", "tied_twins", "instance_norm", "dict_output"])
def test_the_given_model_is_untouched(name: str) -> None:
    model, inputs = zoo.build(name)
    output = model(**inputs)["scores"] if name == "dict_output" else model(inputs)
    output.sum().backward()
    list(model.modules())[2].eval()
    before, given, random_state = snapshot(model), copy.deepcopy(inputs), torch.get_rng_state()
    find_channels(model, inputs)
    assert torch.equal(torch.get_rng_state(), random_state)
    after = snapshot(model)
    for key in ("state", "grads"):
        old, new = before.pop(key), after.pop(key)
        pairs = [(old[k], new[k]) for k in old] if key == "state" else zip(old, new, strict=True)
        assert all(a is b or torch.equal(a, b) for a, b in pairs), key
    assert before == after
    for tensor, old in zip(*([x] if isinstance(x, Tensor) else list(x.values()) for x in (inputs, given)), strict=True):
        assert torch.equal(tensor, old)


def test_inputs_are_untouched_by_a_forward_that_writes_to_them() -> None:
    x = images()
    given = x.clone()
    model = Model(lambda s, x: s.head(s.a(x.sub_(1))), a=stem(), head=Head(6))
    assert find_channels(model, x).sizes == {"a.0": 6}
    assert torch.equal(x, given)


def test_a_forward_that_draws_random_numbers() -> None:
    model = Model(lambda s, x: s.head(s.a(x + torch.randn_like(x))), a=stem(), head=Head(6))
    random_state = torch.get_rng_state()
    assert find_channels(model, images()).sizes == {"a.0": 6}
    assert torch.equal(torch.get_rng_state(), random_state)


def test_nothing_is_written_or_warned_about(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        find_channels(*zoo.instance_norm())
        find_channels(*zoo.scaled())
    assert not caught
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------ in all circumstances


def same_as_plain(units: Units) -> bool:
    return units.sizes == zoo.units_of("plain").sizes and not units.skipped


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_in_any_mode(mode: Callable[[], Any]) -> None:
    model, _ = zoo.plain()
    with mode():
        assert same_as_plain(find_channels(model, images() * 1))  # inputs made in that mode


def test_frozen_model() -> None:
    model, inputs = zoo.plain()
    assert same_as_plain(find_channels(model.requires_grad_(False), inputs))
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    for name in ("plain", "resnet_basic", "squeeze_excite"):
        model, inputs = zoo.build(name, dtype=dtype)
        units = find_channels(model, inputs)
        assert units.sizes == zoo.units_of(name).sizes
        assert not units.skipped
        compact(model, zoo.ticket_for(model, units, zoo.random_kept(units.groups, 0)), example_inputs=inputs)


def test_a_forward_that_fixes_precision_and_batch() -> None:
    model = Model(lambda s, x: s.head(s.a(x.view(3, 3, 8, 8).bfloat16())), a=stem().bfloat16(), head=Head(6).bfloat16())
    assert find_channels(model, images()).sizes == {"a.0": 6}


def test_batch_of_one_in_train_mode() -> None:
    model = nn.Sequential(ConvNorm(3, 6, stride=2), nn.AdaptiveAvgPool2d(1), ConvNorm(6, 4, 1), Head(4)).train()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model(images(batch=1))
    assert find_channels(model, images(batch=1)).sizes == {"0.0": 6, "2.0": 4}
    assert model.training


def test_zeroed_and_masked_models() -> None:
    """What is zero now says nothing: a ticket may be applied, and residual branches may start at zero."""
    model, inputs = zoo.build("resnet_basic")
    zoo.random_ticket("resnet_basic", 0).apply(model)
    assert find_channels(model, inputs).sizes == zoo.units_of("resnet_basic").sizes
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert find_channels(model, inputs * 0).sizes == zoo.units_of("resnet_basic").sizes


def test_wrappers_are_seen_through() -> None:
    model, inputs = zoo.plain()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager"),
                        nn.parallel.DistributedDataParallel(model), AveragedModel(model),
                        torch.compile(nn.parallel.DistributedDataParallel(model), backend="eager")):  # fmt: skip
            assert same_as_plain(find_channels(wrapped, inputs))
    finally:
        dist.destroy_process_group()
    model[0].compile(backend="eager")
    assert same_as_plain(find_channels(model, inputs))


def test_all_kinds_of_inputs() -> None:
    model, (left, right) = zoo.two_inputs()
    expected = zoo.units_of("two_inputs").sizes
    assert find_channels(model, [left, right]).sizes == expected
    assert find_channels(model, {"left": left, "right": right}).sizes == expected
    from transformers import BatchFeature

    assert find_channels(model, BatchFeature({"left": left, "right": right})).sizes == expected
