"""Descriptions of blocks: what they need, which modules they hold for, and that those of known families are unique."""

import importlib
from typing import Any

import pytest
import torch
from torch import nn

from earlyworm import Attention, FeedForward, UnitsError
from earlyworm.units.known_blocks import KNOWN
from earlyworm.units.recognition import defining_class, describe, look_up, resembles


@pytest.mark.parametrize(("options", "message"), [
    ({"query": "q", "key": "k", "value": "v", "head_size": "d"}, "lacks a projection"),
    ({"query": "q", "key": "k", "output": "o", "head_size": "d"}, "lacks a projection"),
    ({"output": "o", "head_size": "d"}, "lacks a projection"),
    ({"fused": "qkv", "value": "v", "output": "o", "head_size": "d"}, "leave them out"),
    ({"fused": "qkv", "output": "o", "counts": {"width": "channels"}}, "how large a head is"),
])  # fmt: skip
def test_impossible_descriptions(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnitsError, match=message):
        Attention(**options)


def test_names_are_all_that_a_block_must_have() -> None:
    attention = Attention("q", "k", "v", "o", head_size="d", counts={"n": "heads"}, more=("extra",), tables={"t": 0})
    assert attention.names() == ["q", "k", "v", "o", "d", "n", "t"]
    assert FeedForward("a", "b").names() == ["a", "b"]
    assert FeedForward(("a", "b"), "c", counts=("n",)).names() == ["a", "b", "c", "n"]


def test_every_known_class_is_there_and_its_name_stands_for_it_alone() -> None:
    for package, known in KNOWN.items():
        module = importlib.import_module(
            f"{package}.modeling_{package.rpartition('.')[2]}" if package.startswith("transformers.") else package
        )
        for name in known:
            cls = getattr(module, name)
            assert issubclass(cls, nn.Module)
            assert cls.__module__.startswith(package)
            assert "forward" in vars(cls), f"{name} inherits its forward, so {name} is not what defines it"


# ------------------------------------------------------------------------------------ which class defines a module


class Base(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.helper(x)

    def helper(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Middle(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.helper(x) + self.more(x)

    def more(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Adds(Middle):
    def other(self) -> None: ...

    def extra_repr(self) -> str:
        return "more to read"


class ReplacesHelper(Middle):
    def more(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


class ReplacesInheritedHelper(Middle):
    def helper(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


class ReplacesForward(Middle):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(("cls", "defining"), [
    (Base, Base), (Middle, Middle), (Adds, Middle), (ReplacesForward, ReplacesForward), (ReplacesHelper, None),
    (ReplacesInheritedHelper, None),
])  # fmt: skip
def test_defining_class(cls: type[nn.Module], defining: type[nn.Module] | None) -> None:
    assert defining_class(cls()) is defining


def test_a_forward_that_is_replaced_on_the_instance_is_defined_by_no_class() -> None:
    module = Middle()
    module.forward = lambda x: x
    assert defining_class(module) is None
    module._original_forward = Middle.forward.__get__(module)  # what accelerate leaves behind is only wrapped
    assert defining_class(module) is Middle


MINE = FeedForward("a", "b")


@pytest.mark.parametrize(("cls", "key", "found"), [
    (Middle, "Middle", True),
    (Middle, Middle, True),
    (Adds, "Adds", True),
    (Adds, "Middle", True),
    (Adds, Middle, True),
    (Adds, "Base", False),
    (ReplacesForward, "Middle", False),
    (ReplacesForward, Middle, False),
    (ReplacesHelper, "ReplacesHelper", False),
])  # fmt: skip
def test_descriptions_hold_for_subclasses_that_inherit_forward(cls: type[nn.Module], key: Any, found: bool) -> None:
    assert describe(cls(), {key: MINE}) == ((MINE,) if found else ())


def test_own_descriptions_go_before_known_ones() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 8)
    assert describe(layer, {}) == (FeedForward("linear1", "linear2"),)
    assert describe(layer, {"TransformerEncoderLayer": (MINE, MINE)}) == (MINE, MINE)


class MultiheadAttention(nn.Module):
    """The name alone makes no block known."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class OwnEncoderLayer(nn.TransformerEncoderLayer):
    def _ff_block(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_a_class_is_known_by_its_package_too() -> None:
    assert describe(nn.MultiheadAttention(8, 2), {})
    assert not describe(MultiheadAttention(), {})
    assert not resembles(MultiheadAttention(), Attention)
    assert not describe(OwnEncoderLayer(8, 2, 8), {})
    assert resembles(OwnEncoderLayer(8, 2, 8), FeedForward)
    assert not resembles(OwnEncoderLayer(8, 2, 8), Attention)


def test_look_up() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 8)
    assert look_up(layer, "self_attn.num_heads") == 2
    assert look_up(layer, "self_attn.out_proj.weight") is layer.self_attn.out_proj.weight
    assert look_up(layer, "self_attn.nothing.weight") is None
